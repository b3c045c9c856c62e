"""Whole episodes from Gymnasium vector environments."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from awsgd_rl.agents.random_states import (
    check_environment_state,
    environment_state,
    set_environment_state,
)
from awsgd_rl.agents.trajectories import Episode

AnyVectorEnv = VectorEnv[Any, Any, Any]
Environment = str | gym.Env[Any, Any] | AnyVectorEnv

# (observations [n, ...], explore [n] bool) -> actions for the env [n, ...], actions to store.
Act = Callable[[npt.NDArray[Any], npt.NDArray[np.bool_]], tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def make_vector_env(env: Environment, n_envs: int, horizon: int | None) -> tuple[AnyVectorEnv, int]:
    """A vector environment whose episodes are known to end, and the longest they can be.

    An id, or an environment made by `gym.make`, is made again `n_envs` times from its spec
    (natively vectorised where it has a vector entry point); an environment that no spec can make
    again is used itself, alone. A vector environment is used as it is.

    Args:
        env: Environment id, environment or vector environment.
        n_envs: Copies to make; no effect on a vector environment.
        horizon: Longest episode in steps. None: the environment's own time limit. For a vector
            environment it is only checked, as nothing can end its episodes from outside.

    Returns:
        The vector environment and its time limit in steps.

    Raises:
        ValueError: if no time limit is known, or a vector environment does not say how it resets.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    if isinstance(env, VectorEnv):
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{env} does not say how it resets: metadata['autoreset_mode'] is {mode!r}; "
                "set it to a member of gymnasium.vector.AutoresetMode"
            )
        return env, horizon or _limit_of(env)
    if isinstance(env, str):
        return _from_spec(_find_spec(env), n_envs, horizon)
    spec = env.spec
    if spec is not None and all(w.kwargs is not None for w in spec.additional_wrappers):
        return _from_spec(spec, n_envs, horizon)
    if horizon is not None:
        env = gym.wrappers.TimeLimit(env, max_episode_steps=horizon)
    limit = horizon or _limit_of(env)
    only = env
    return SyncVectorEnv([lambda: only]), limit


def is_shared(envs: AnyVectorEnv, env: Environment) -> bool:
    """Return whether `make_vector_env` took `env` itself into `envs`, rather than copies of it."""
    if isinstance(env, str | VectorEnv):
        return envs is env
    base = envs.unwrapped
    return isinstance(base, SyncVectorEnv) and base.envs[0].unwrapped is env.unwrapped


def _find_spec(name: str) -> gym.envs.registration.EnvSpec:
    module, _, rest = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(rest)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"unknown environment {name!r}: {error}") from None


def _from_spec(
    spec: gym.envs.registration.EnvSpec, n_envs: int, horizon: int | None
) -> tuple[AnyVectorEnv, int]:
    spec = copy.deepcopy(spec)
    # Copies are stepped without anyone looking: a window for each would only slow them down.
    spec.kwargs.pop("render_mode", None)
    own_limit = spec.max_episode_steps
    native = spec.vector_entry_point is not None and not spec.additional_wrappers
    if horizon is not None:
        # A native vector env without a registered limit need not know `max_episode_steps`.
        native = native and own_limit is not None
        spec.max_episode_steps = horizon
    envs = gym.make_vec(spec, n_envs, "vector_entry_point" if native else "sync")
    return envs, horizon or _limit_of(envs)


def _limit_of(env: gym.Env[Any, Any] | AnyVectorEnv) -> int:
    """The time limit that an environment states: its spec's, a wrapper's, or a `horizon`."""
    members: list[Any] = [env]
    if isinstance(env.unwrapped, SyncVectorEnv):
        members += env.unwrapped.envs
    for member in members:
        if member.spec is not None and member.spec.max_episode_steps is not None:
            return int(member.spec.max_episode_steps)
        for name in ("_max_episode_steps", "max_episode_steps", "horizon"):
            limit = _attribute(member, name)
            if isinstance(limit, int | np.integer) and limit > 0:
                return int(limit)
    raise ValueError(
        f"{env} has no time limit, so an episode might never end: pass horizon=<steps>, "
        "or wrap it in gymnasium.wrappers.TimeLimit"
    )


def _attribute(env: Any, name: str) -> Any:
    while env is not None:
        if name in vars(env) or hasattr(type(env), name):
            return getattr(env, name)
        env = vars(env).get("env")
    return None


class EpisodeCollector:
    """Runs a fixed number of whole episodes, assigned to the sub-environments in advance.

    Sub-environment i runs the episodes i, i + n, i + 2n, ... to their ends. Taking the first
    episodes to finish instead would prefer short ones, and bias every estimate.

    Args:
        envs: Vector environment, in any autoreset mode.
        horizon: Steps that no episode may exceed.
        seed: Seeds the first reset; later ones go on with the environments' own generators.
    """

    def __init__(self, envs: AnyVectorEnv, horizon: int, seed: int | None) -> None:
        self.envs = envs
        self.horizon = horizon
        self.mode: AutoresetMode = envs.metadata["autoreset_mode"]
        self._seed = seed
        self._first_seed = seed
        self._batches = 0

    def training_state(self) -> dict[str, Any]:
        """Return what the next `collect` depends on, between two of them, as JSON values.

        That is the environments' generators (see `environment_state` for those that it knows).
        Where they are out of reach, a seed is put in their place, made of the collector's own and
        of how many batches there were: a run that goes on from it draws as well as the one that was
        stopped, and the same each time that it goes on from there, but not what that would have.
        """
        state = None if self._seed is not None else environment_state(self.envs)
        seed = self._seed
        if seed is None and state is None and self._first_seed is not None:
            entropy = (self._first_seed, self._batches)
            seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return {
            "seed": seed,
            "first_seed": self._first_seed,
            "batches": self._batches,
            "environment": state,
        }

    def check_training_state(self, state: Any) -> None:
        """Check what is to be given to `restore_training`; nothing changes.

        Raises:
            ValueError: it is no state of such a collector.
        """
        names = ("seed", "first_seed", "batches")
        if not isinstance(state, dict) or not all(
            (isinstance(state.get(name), int) and state[name] >= 0)
            or (name in state and state[name] is None and name != "batches")
            for name in names
        ):
            raise ValueError(f"got {state!r:.80} for the collector of episodes: it is damaged")
        if state.get("environment") is not None:
            check_environment_state(self.envs, state["environment"])
        elif state["seed"] is None and state["first_seed"] is not None:
            raise ValueError(
                "the collector of episodes has neither a seed nor a state: it is damaged"
            )

    def restore_training(self, state: dict[str, Any]) -> None:
        """Go on from what `training_state` returned, after `check_training_state`."""
        self._seed, self._first_seed = state["seed"], state["first_seed"]
        self._batches = state["batches"]
        if state.get("environment") is not None:
            set_environment_state(self.envs, state["environment"])

    def collect(self, explore: npt.NDArray[np.bool_], act: Act) -> list[Episode]:
        """Run one episode for each entry of `explore`.

        Args:
            explore: [B] Whether episode b is run by the exploration policy.
            act: Chooses actions for all sub-environments at once.

        Returns:
            The B episodes in the order of `explore`.

        Raises:
            RuntimeError: if an episode runs beyond the horizon.
        """
        n, total = self.envs.num_envs, len(explore)
        episodes: list[Episode | None] = [None] * total
        current = np.arange(n)
        start = np.zeros(n, dtype=np.int64)
        ghost = np.zeros(n, dtype=np.bool_)
        observations, _ = self.envs.reset(seed=self._seed)
        self._seed = None
        self._batches += 1
        seen: list[npt.NDArray[Any]] = []
        acted: list[npt.NDArray[Any]] = []
        rewarded: list[npt.NDArray[np.float64]] = []
        while (live := current < total).any():
            # A copy: a vector env may hand out the same buffer at every step.
            seen.append(np.array(observations))
            actions, stored = act(seen[-1], explore[np.minimum(current, total - 1)])
            observations, rewards, terminated, truncated, info = self.envs.step(actions)
            acted.append(stored)
            rewarded.append(np.array(rewards, dtype=np.float64))
            now = len(seen)
            # After an episode's end NEXT_STEP spends one step on the reset alone: it belongs to
            # no episode, and the observation that it returns is the first of the next one.
            start[ghost] = now
            done = (terminated | truncated) & ~ghost
            for i in np.flatnonzero(done & live).tolist():
                steps = slice(start[i], now)
                final, last_info = self._end_of(i, observations, info)
                episodes[current[i]] = Episode(
                    np.stack([*(row[i] for row in seen[steps]), final]),
                    np.stack([row[i] for row in acted[steps]]),
                    np.array([row[i] for row in rewarded[steps]]),
                    bool(terminated[i]),
                    _success(i, last_info),
                )
            if (late := live & ~done & ~ghost & (now - start >= self.horizon)).any():
                raise RuntimeError(
                    f"an episode of sub-environment {int(late.argmax())} ran beyond the horizon of "
                    f"{self.horizon} steps; give the environment its own time limit "
                    "(gymnasium.wrappers.TimeLimit)"
                )
            current[done] += n
            start[done] = now
            if self.mode is AutoresetMode.NEXT_STEP:
                ghost = done
            elif self.mode is AutoresetMode.DISABLED and done.any():
                observations, _ = self.envs.reset(options={"reset_mask": done})
        return [episode for episode in episodes if episode is not None]

    def _end_of(
        self, i: int, observations: npt.NDArray[Any], info: dict[str, Any]
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        if self.mode is AutoresetMode.SAME_STEP:
            return np.asarray(info["final_obs"][i]), info.get("final_info", {})
        return np.asarray(observations[i]), info


def _success(i: int, info: dict[str, Any]) -> float:
    if "is_success" not in info:
        return float("nan")
    given = info.get("_is_success")
    if given is not None and not given[i]:
        return float("nan")
    value = info["is_success"][i]
    return float("nan") if value is None else float(value)
