"""Chunks of episodes of networks, or tables, in any Gymnasium environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from awsgd_rl.agents.rollout_samplers import Array, Chunk, Parameters, compact, log_mixture


class EpisodePart(NamedTuple):
    """B episodes of any environment, N steps in all.

    Attributes:
        log_drawn: [B] log density of the mixture that drew them.
        length: [B] steps.
        terminated: [B] whether the environment ended it.
        success: [B] as `Episode.success`.
        observations: [N + B, ...] each episode's, the final one included.
        actions: [N, ...] in the policy's units.
        rewards: [N].
        step_log_drawn: [N] log-probability of each action under the policy that took it.
    """

    log_drawn: Array
    length: Array
    terminated: Array
    success: Array
    observations: Array
    actions: Array
    rewards: Array
    step_log_drawn: Array


@dataclass
class EpisodeSampler:
    """Episodes of networks (or tables) through Gymnasium.

    Attributes:
        env: an environment's spec or id, or a function that makes one.
        horizon: longest episode; None for the environment's own limit.
        n_envs: copies that step together.
        kind: "mlp" or "table".
        hidden_sizes: widths of the hidden layers.
        explores: whether Q_τ is ever drawn from.
    """

    env: Any
    horizon: int | None
    n_envs: int
    kind: Any
    hidden_sizes: tuple[int, ...]
    explores: bool

    def __post_init__(self) -> None:
        self._modules: dict[str, Any] = {}

    def snapshot(self, learner: Any) -> Parameters:
        """Return the parameters of both policies and the moments of the observations."""
        modules = {"policy": learner.policy}
        if self.explores:
            modules["exploration"] = learner.exploration
        if learner.normaliser is not None:
            modules["observations"] = learner.normaliser
        return {
            f"{module}.{name}": tensor.detach().cpu().numpy().copy()
            for module, part in modules.items()
            for name, tensor in part.state_dict().items()
        }

    def load(self, parameters: Parameters) -> None:
        """Put the parameters into the networks, which the first call makes."""
        import torch

        if not self._modules:
            self._open(any(name.startswith("observations.") for name in parameters))
        for name, module in self._modules.items():
            prefix = f"{name}."
            state = {
                entry.removeprefix(prefix): torch.tensor(array)
                for entry, array in parameters.items()
                if entry.startswith(prefix)
            }
            module.load_state_dict(state)

    def _open(self, normalised: bool) -> None:
        import torch

        from awsgd_rl.agents.networks import ObservationNormaliser
        from awsgd_rl.agents.policy_networks import make_policy
        from awsgd_rl.agents.rollout import make_vector_env
        from awsgd_rl.agents.spaces import Units

        env = _with_copies(self.env, self.n_envs, self.horizon)
        self._envs, self._limit = make_vector_env(env, self.n_envs, self.horizon)
        spaces = (self._envs.single_observation_space, self._envs.single_action_space)
        self._units = Units(*spaces)
        anything = torch.Generator().manual_seed(0)  # the parameters follow
        for name in ("policy", "exploration") if self.explores else ("policy",):
            self._modules[name] = make_policy(*spaces, self.kind, self.hidden_sizes, 0.0, anything)
        if normalised:
            shape = self._envs.single_observation_space.shape
            assert shape is not None
            self._modules["observations"] = ObservationNormaliser(shape)

    def draw(self, chunk: Chunk) -> EpisodePart:
        """Run the chunk's episodes, from a fresh and seeded reset."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a sum that is split otherwise ends otherwise
        try:
            with torch.no_grad():
                return self._draw(chunk)
        finally:
            torch.set_num_threads(threads)

    def _draw(self, chunk: Chunk) -> EpisodePart:
        import torch

        from awsgd_rl.agents.rollout import EpisodeCollector

        env_seed, action_seed = chunk.seeds(2)
        generator = torch.Generator().manual_seed(action_seed >> 1)
        policy = self._modules["policy"]
        exploration = self._modules.get("exploration", policy)
        explore = np.arange(chunk.n_target + chunk.n_exploration) >= chunk.n_target

        def act(observations: Array, exploring: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
            inputs = self._features(observations)
            outputs = policy(inputs) if not exploring.all() else exploration(inputs)
            if exploring.any() and not exploring.all():
                chosen = torch.from_numpy(exploring).unsqueeze(-1)
                outputs = torch.where(chosen, exploration(inputs), outputs)
            actions = policy.draw(outputs, generator).numpy()
            return self._units.env_actions(actions), actions

        collector = EpisodeCollector(self._envs, self._limit, env_seed >> 33)
        episodes = collector.collect(explore, act)
        length = np.array([len(episode.rewards) for episode in episodes])
        actions = np.concatenate([episode.actions for episode in episodes])
        inputs = self._features(np.concatenate([e.observations[:-1] for e in episodes]))
        taken = torch.from_numpy(actions)
        log_p = policy.log_prob(policy(inputs), taken).double().numpy()
        log_q = log_p
        if exploration is not policy:
            log_q = exploration.log_prob(exploration(inputs), taken).double().numpy()
        # One sum an episode, of that episode's numbers alone.
        ends = np.cumsum(length)[:-1]
        log_ps, log_qs = (
            np.array([steps.sum() for steps in np.split(log, ends)]) for log in (log_p, log_q)
        )
        return EpisodePart(
            log_drawn=log_mixture(log_ps, log_qs, chunk.share),
            length=compact(length),
            terminated=np.array([episode.terminated for episode in episodes]),
            success=np.array([episode.success for episode in episodes]),
            observations=self._compact(np.concatenate([e.observations for e in episodes])),
            actions=compact(actions) if actions.dtype == np.int64 else actions,
            rewards=_narrow(np.concatenate([episode.rewards for episode in episodes])),
            step_log_drawn=np.where(np.repeat(explore, length), log_q, log_p),
        )

    def _features(self, observations: Array) -> Any:
        import torch

        # `torch.tensor` copies into aligned memory: where the bits of a product may depend on it.
        inputs = torch.tensor(self._units.observations(observations))
        normaliser = self._modules.get("observations")
        return inputs if normaliser is None else normaliser(inputs)

    def _compact(self, raw: Array) -> Array:
        if _discrete(self._units.observation_space):
            return compact(self._units.observations(raw))
        # Such as the bytes of an image: the learner makes numbers of them.
        return raw if raw.dtype.itemsize < 4 else self._units.observations(raw)

    def join(self, learner: Any, parts: Sequence[EpisodePart], n_target: int) -> Any:
        """Return `Trajectories`."""
        import torch

        from awsgd_rl.agents.trajectories import Episode, pad_episodes

        kind = np.int64 if _discrete(learner.observation_space) else np.float32
        episodes, log_steps = [], []
        for part in parts:
            ends = np.cumsum(part.length.astype(np.int64))
            seen = np.split(part.observations, (ends + np.arange(1, len(ends) + 1))[:-1])
            steps = (part.actions, part.rewards, part.step_log_drawn)
            acted, rewarded, logged = (np.split(array, ends[:-1]) for array in steps)
            log_steps += logged
            for b in range(len(ends)):
                whole = acted[b].dtype.kind in "iu"
                episodes.append(
                    Episode(
                        seen[b].astype(kind),
                        acted[b].astype(np.int64) if whole else acted[b],
                        rewarded[b].astype(np.float64),
                        bool(part.terminated[b]),
                        float(part.success[b]),
                    )
                )
        n = len(episodes)
        explore = np.arange(n) >= n_target
        trajectories = pad_episodes(episodes, explore, learner.discount, learner.device)
        for b, logged_steps in enumerate(log_steps):
            column = torch.from_numpy(logged_steps).to(learner.device)
            trajectories.step_log_drawn[: len(logged_steps), b] = column
        log_drawn = np.concatenate([part.log_drawn for part in parts])
        trajectories.log_drawn = torch.from_numpy(log_drawn).to(learner.device)
        return trajectories

    def close(self) -> None:
        """Close the environments."""
        if self._modules:
            self._envs.close()


def _discrete(space: Any) -> bool:
    import gymnasium as gym

    return isinstance(space, gym.spaces.Discrete)


def _narrow(rewards: Array) -> Array:
    """Return rewards in half the memory where that loses nothing."""
    with np.errstate(over="ignore"):
        half = rewards.astype(np.float32)
    return half if np.array_equal(half, rewards) else rewards


def _with_copies(env: Any, n_envs: int, horizon: int | None) -> Any:
    """Return what `make_vector_env` takes, for a spec, an id or a function."""
    import gymnasium as gym

    if isinstance(env, gym.envs.registration.EnvSpec):
        return gym.make(env)
    if isinstance(env, str):
        return env
    make: Callable[[], Any] = env

    def limited() -> Any:
        only = make()
        return only if horizon is None else gym.wrappers.TimeLimit(only, max_episode_steps=horizon)

    return gym.vector.SyncVectorEnv([limited] * n_envs)
