"""Episodes of an agent's policy P_w and of an exploration policy that is learned on the way.

`EngineRollouts` runs table policies on the gridworld in a compiled kernel, `VectorRollouts` any
policy with Discrete actions through Gymnasium. Both keep the critic: they know what a state is.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.outcome_critics import NetworkCritic, Steps, TableCritic, aim

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOOR = 0.05
"""Share of its state's mean score that every action keeps in the exploration policy."""


class Summary(NamedTuple):
    """How one episode went, for outcomes that are functions.

    Attributes:
        total: undiscounted return.
        length: steps.
        terminated: whether the environment ended it; False if it was cut off at the horizon.
        success: 1.0 or 0.0; nan where the environment does not report `is_success`.
    """

    total: float
    length: int
    terminated: bool
    success: float


class Path(NamedTuple):
    """What happened in one episode.

    Attributes:
        observations: [L + 1, ...] the states passed through (gridworld tables) or observations.
        actions: [L] actions.
        probabilities: [L] of each action under P_w.
        log_probability: of all its actions.
        outcome: f.
    """

    observations: NDArray[Any]
    actions: Ints
    probabilities: Floats
    log_probability: float
    outcome: float


@dataclass
class Batch:
    """B whole episodes, the first ones by P_w.

    Attributes:
        log_p: [B] log-probability of its actions under P_w.
        log_q: [B] the same under the exploration policy as it was.
        total: [B] undiscounted return.
        length: [B] steps.
        terminated: [B] False where the horizon cut the episode off.
        success: [B] 1, 0 or nan.
        store: what the rollouts need of them to learn and to tell paths.
    """

    log_p: Floats
    log_q: Floats
    total: Floats
    length: Ints
    terminated: NDArray[np.bool_]
    success: Floats
    store: Any

    def summaries(self) -> list[Summary]:
        """Return each episode's summary."""
        columns = (self.total, self.length, self.terminated, self.success)
        return [Summary(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _walk(
    grid: engine.Grid,
    target: tables.Table,
    exploration: tables.Table,
    n_target: int,
    seed: np.uint64,
    begin: int,
    stop: int,
    counts: Ints,
    log_p: Floats,
    log_q: Floats,
    total: Floats,
    length: Ints,
    last: Ints,
    path: Ints,
) -> None:
    """Run episodes begin..stop-1; `path` [L, 2], if it has room, takes states and actions."""
    next_state, ends, reward, start, slip, horizon = grid
    golden = np.uint64(0x9E3779B97F4A7C15)
    unit = 1.0 / 9007199254740992.0  # 2^-53
    n_actions = target.logits.shape[1]
    for b in range(begin, stop):
        cumulative = target.cumulative if b < n_target else exploration.cumulative
        stream = engine._mix(seed + golden * np.uint64(2 * b + 1))
        s = start
        sum_p, sum_q, gain = 0.0, 0.0, 0.0
        steps = 0
        while steps < horizon:
            stream += golden
            u = float(np.int64(engine._mix(stream) >> np.uint64(11))) * unit
            a = 0
            while a < n_actions - 1 and u >= cumulative[s, a]:
                a += 1
            move = a
            if slip > 0.0:
                stream += golden
                u = float(np.int64(engine._mix(stream) >> np.uint64(11))) * unit
                if u < slip:
                    move = (a + (1 if u < 0.5 * slip else 3)) & 3
            sum_p += target.log_probability[s, a]
            sum_q += exploration.log_probability[s, a]
            gain += reward[s, move]
            counts[s, a, move] += 1
            if steps < len(path):
                path[steps, 0], path[steps, 1] = s, a
            s = next_state[s, move]
            steps += 1
            if ends[s] >= 0:
                break
        log_p[b], log_q[b], total[b] = sum_p, sum_q, gain
        length[b], last[b] = steps, s


class EngineRollouts:
    """Table policies on the gridworld.

    Args:
        learner: a `TabularLearner`.
    """

    minimum, growth = 20, 10
    """Fewest episodes between two fits of the critic while learning, and after which share of all
    so far (one in 10) there is another."""

    def __init__(self, learner: Any) -> None:
        from awsgd_rl.agents.tabular import grid_of

        self.grid = grid_of(learner.env)
        self.policy: Floats = learner.policy_table()
        self.target = tables.make_table(learner.target.logits)
        self.exploration = self.target
        self.critic = TableCritic(*self.policy.shape)
        self.known, self.possible = 0.0, np.inf

    def run(self, n_target: int, n_exploration: int, rng: np.random.Generator) -> Batch:
        """Run episodes, the first `n_target` by P_w, the others by the exploration policy."""
        n = n_target + n_exploration
        seed = np.uint64(rng.integers(2**63))
        counts = np.zeros((*self.policy.shape, 4), np.int64)
        log_p, log_q, total = np.empty(n), np.empty(n), np.empty(n)
        length, last = np.empty(n, np.int64), np.empty(n, np.int64)
        key = (self.grid, self.target, self.exploration, n_target, seed)
        columns = (log_p, log_q, total, length, last)
        _walk(*key, 0, n, counts, *columns, np.empty((0, 2), np.int64))
        ends = self.grid.end[last]
        success = (ends == engine.GOAL).astype(np.float64)
        return Batch(log_p, log_q, total, length, ends >= 0, success, (key, counts, columns))

    def learn(self, batch: Batch, outcomes: Floats, centre: float, largest: float) -> None:
        """Fit the critic to these episodes too, and aim the exploration policy by it."""
        _, counts, columns = batch.store
        states, actions, moves = np.nonzero(counts)
        self.critic.add(
            states, actions, self.grid.next_state[states, moves], counts[states, actions, moves]
        )
        self.critic.add_ends(columns[-1], outcomes, batch.terminated)
        solution = self.critic.solve(self.policy, np.array([self.grid.start]), centre, largest)
        self.known, self.possible = solution.known, solution.possible
        with np.errstate(divide="ignore"):
            logits = np.log(aim(self.policy, solution.roots, FLOOR))
        self.exploration = tables.make_table(logits)

    def path(self, batch: Batch, b: int) -> tuple[NDArray[Any], Ints, Floats]:
        """Return states [L + 1], actions and their probabilities [L] of episode `b`, run again."""
        key, counts, columns = batch.store
        steps = np.empty((batch.length[b], 2), np.int64)
        # Its results are known: what is wanted is the path.
        unused = [np.empty_like(column) for column in (counts, *columns)]
        arguments: tuple[Any, ...] = (*key, b, b + 1, *unused, steps)
        walk: Any = _walk
        walk(*arguments)
        states, actions = steps.T
        return np.append(states, columns[-1][b]), actions.copy(), self.policy[states, actions]


class VectorRollouts:
    """Policies with Discrete actions on any Gymnasium environment.

    Observations that come back (a grid, a table) are states of a `TableCritic`; where most are new
    a `NetworkCritic` generalises. Which of the two is decided by the first episodes.

    Args:
        agent: an agent with a `NeuralLearner`.
        seed: of the environment, the draws and the critic.
    """

    minimum, growth = 64, 4  # as above; a network is fitted less often
    _COPIES = 32
    _RETURNING = 0.25  # share of new observations below which they count as states
    _MOST_STEPS = 100_000  # that the network learns from: the last ones

    def __init__(self, agent: Any, seed: int) -> None:
        from awsgd_rl.agents.rollout import EpisodeCollector, make_vector_env

        self.learner = agent.learner
        copies, horizon = make_vector_env(agent.env, self._COPIES, self.learner.horizon)
        self.horizon = horizon
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
