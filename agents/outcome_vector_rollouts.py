"""Episodes of any policy with Discrete actions through Gymnasium, and of its exploration policy."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from awsgd_rl.agents.outcome_critics import NetworkCritic, Steps, TableCritic, aim
from awsgd_rl.agents.outcome_rollouts import FLOOR
from awsgd_rl.agents.outcomes import Batch
from awsgd_rl.agents.random_states import environment_state, set_environment_state

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class VectorRollouts:
    """Policies with Discrete actions on any Gymnasium environment.

    Observations that come back (a grid, a table) are states of a `TableCritic`; where most are new
    a `NetworkCritic` generalises. Which of the two is decided by the first episodes, but for
    Discrete observations, which are states in any case.

    An environment that cannot be made again is the training's own. `close` puts its generators back
    to where they were, so that the training goes on as without an evaluation; those that are out of
    reach (`environment_state`) stay where they have come to, and other episodes follow.

    Args:
        agent: an agent with a `NeuralLearner`.
        seed: of the environment, the draws and the critic.
    """

    minimum, growth = 64, 4  # a network is fitted less often: growth 1
    _COPIES = 32
    _RETURNING = 0.25  # share of new observations below which they count as states
    _MOST_STEPS = 100_000  # that the network learns from: the last ones

    def __init__(self, agent: Any, seed: int) -> None:
        from awsgd_rl.agents.rollout import EpisodeCollector, is_shared, make_vector_env

        self.learner = agent.learner
        copies, horizon = make_vector_env(agent.env, self._COPIES, self.learner.horizon)
        self.horizon = horizon
        self._shared = is_shared(copies, agent.env)
        self._state = environment_state(copies) if self._shared else None
        seeds = np.random.SeedSequence(seed).generate_state(3)
        self._collector = EpisodeCollector(copies, horizon, int(seeds[0]))
        self._rng = np.random.default_rng(seeds[1])
        self._seed = int(seeds[2])
        self.n_actions = int(self.learner.action_space.n)
        self.known, self.possible = 0.0, np.inf
        self._numbers: dict[bytes, int] = {}
        self._policy = np.empty((0, self.n_actions))
        self._roots = np.empty((0, self.n_actions))
        self._largest = 1.0
        self._starts: list[int] = []
        self._aiming = False
        self._table: TableCritic | None = None
        self._network: NetworkCritic | None = None
        self._steps: list[tuple[Any, ...]] = []

    def run(self, n_target: int, n_exploration: int, rng: np.random.Generator) -> Batch:
        """Run episodes, the first `n_target` by P_w, the others by the exploration policy."""
        self._rng, self._aiming = rng, n_exploration > 0
        explore = np.arange(n_target + n_exploration) >= n_target
        episodes = self._collector.collect(explore, self._act)
        return Batch(
            log_p=np.array([episode.actions[:, 1].sum() for episode in episodes]),
            log_q=np.array([episode.actions[:, 2].sum() for episode in episodes]),
            total=np.array([episode.rewards.sum() for episode in episodes]),
            length=np.array([len(episode.rewards) for episode in episodes]),
            terminated=np.array([episode.terminated for episode in episodes]),
            success=np.array([episode.success for episode in episodes]),
            store=episodes,
        )

    def path(self, batch: Batch, b: int) -> tuple[NDArray[Any], Ints, Floats]:
        """Return observations [L + 1, ...], actions and their probabilities [L] of episode `b`."""
        episode = batch.store[b]
        actions, log_p = episode.actions[:, 0], episode.actions[:, 1]
        return episode.observations, actions.astype(np.int64), np.exp(log_p)

    def learn(self, batch: Batch, outcomes: Floats, centre: float, largest: float) -> None:
        """Fit the critic to these episodes too, and aim the exploration policy by it."""
        self._largest = largest
        if self._table is None and self._network is None:
            self._choose(batch.store)
            self.growth = 4 if self._table is not None else 1
        if self._table is not None:
            self._learn_table(self._table, batch, outcomes, centre, largest)
        else:
            self._learn_network(batch, outcomes, centre, largest)

    def close(self) -> None:
        """Close the copies; put the generators of the training's own environment back."""
        if not self._shared:
            self._collector.envs.close()
        elif self._state is not None:
            set_environment_state(self._collector.envs, self._state)

    @torch.no_grad()
    def _log_policy(self, observations: NDArray[Any]) -> Floats:
        log_p: Floats = self.learner.policy(self._features(observations)).cpu().numpy()
        return log_p

    @torch.no_grad()
    def _features(self, observations: NDArray[Any]) -> torch.Tensor:
        learner = self.learner
        inputs = torch.from_numpy(learner.units.observations(observations)).to(learner.device)
        return inputs if learner.normaliser is None else learner.normaliser(inputs)

    def _act(
        self, observations: NDArray[Any], explore: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        log_p = self._log_policy(observations)
        policy = np.exp(log_p)
        proposal = policy
        if self._aiming:
            proposal = aim(policy, self._known_roots(observations), FLOOR)
        chosen = np.where(explore[:, None], proposal, policy).cumsum(1)
        u = self._rng.random(len(chosen)) * chosen[:, -1]
        actions = (u[:, None] >= chosen).sum(1)
        each = np.arange(len(actions))
        with np.errstate(divide="ignore"):
            log_q = np.log(proposal[each, actions])
        stored = np.column_stack([actions, log_p[each, actions], log_q, log_p])
        return self.learner.units.env_actions(actions), stored

    def _known_roots(self, observations: NDArray[Any]) -> Floats:
        if self._network is not None:
            return self._network.roots(self._features(observations).cpu().float())
        roots = np.full((len(observations), self.n_actions), self._largest)
        for i, observation in enumerate(observations):
            number = self._numbers.get(_key(observation, False), -1)
            if 0 <= number < len(self._roots):
                roots[i] = self._roots[number]
        return roots

    def _choose(self, episodes: list[Any]) -> None:
        """Decide between a table and a network."""
        if isinstance(self.learner.observation_space, gym.spaces.Discrete):
            self._table = TableCritic(0, self.n_actions)
            return
        keys = {_key(row, False) for episode in episodes for row in episode.observations[:-1]}
        steps = sum(len(episode.rewards) for episode in episodes)
        if len(keys) <= self._RETURNING * steps:
            self._table = TableCritic(0, self.n_actions)
        else:
            width = int(np.prod(self._features(episodes[0].observations[:1]).shape[1:]))
            self._network = NetworkCritic(width, self.n_actions, self._seed)

    def _learn_table(
        self, table: TableCritic, batch: Batch, outcomes: Floats, centre: float, largest: float
    ) -> None:
        numbers, new = self._numbers, []
        states, last = [], np.empty(len(outcomes), np.int64)
        for b, episode in enumerate(batch.store):
            path = np.empty(len(episode.observations), np.int64)
            for t, observation in enumerate(episode.observations):
                at_end = episode.terminated and t == len(path) - 1
                key = _key(observation, at_end)
                if key not in numbers:
                    numbers[key] = len(numbers)
                    new.append(observation)
                path[t] = numbers[key]
            states.append(path)
            last[b] = path[-1]
        if new:
            rows = np.exp(self._log_policy(np.stack(new)))
            self._policy = np.concatenate([self._policy, rows])
            table.grow(len(numbers))
        actions = np.concatenate([e.actions[:, 0].astype(np.int64) for e in batch.store])
        before = np.concatenate([path[:-1] for path in states])
        after = np.concatenate([path[1:] for path in states])
        table.add(before, actions, after, np.ones(len(actions), np.int64))
        table.add_ends(last, outcomes, batch.terminated)
        self._starts += [int(path[0]) for path in states]
        starts = np.array(self._starts)
        solution = table.solve(self._policy, starts, centre, largest)
        self._roots = solution.roots
        self.known, self.possible = solution.known, solution.possible

    def _learn_network(self, batch: Batch, outcomes: Floats, centre: float, largest: float) -> None:
        assert self._network is not None
        for episode, outcome in zip(batch.store, outcomes, strict=True):
            # What P_w drew has the ratio p/q too: a trace cut by it is shorter, and no less right.
            observations = np.asarray(episode.observations[:-1])
            self._steps.append((observations, episode.actions, outcome))
        total = sum(len(actions) for _, actions, _ in self._steps)
        while total > self._MOST_STEPS and len(self._steps) > len(outcomes):
            total -= len(self._steps.pop(0)[1])
        if not any(outcome != centre for _, _, outcome in self._steps):
            return  # nothing to aim at yet
        observations = np.concatenate([seen for seen, _, _ in self._steps])
        acted = np.concatenate([actions for _, actions, _ in self._steps])
        lengths = [len(actions) for _, actions, _ in self._steps]
        last = np.zeros(len(acted), np.bool_)
        last[np.cumsum(lengths) - 1] = True
        self._network.fit(
            Steps(
                features=self._features(observations).cpu().float(),
                actions=torch.from_numpy(acted[:, 0].astype(np.int64)),
                log_p=torch.from_numpy(acted[:, 3:]),
                ratio=np.exp(np.minimum(acted[:, 1] - acted[:, 2], 0.0)),
                last=last,
                outcomes=np.repeat([outcome for _, _, outcome in self._steps], lengths),
            ),
            centre,
            largest,
        )
        self.known = 1.0


def _key(observation: Any, at_end: bool) -> bytes:
    return np.asarray(observation).tobytes() + (b"T" if at_end else b"")
