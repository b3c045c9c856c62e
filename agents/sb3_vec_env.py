"""Environments side by side, for Stable-Baselines3.

One environment a step is slow: nearly all the time goes into calling the network for a single
observation. The gridworld's own vector environment steps any number of copies at the price of one.
"""

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

Array = NDArray[Any]


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment that resets in the same step, as Stable-Baselines3 has it.

    An episode's last info has `terminal_observation`, `TimeLimit.truncated` and what the
    environment tells at the end (`is_success`); all others are empty.

    Attributes:
        envs: The vector environment.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        """Wrap `envs`, which stays the caller's to close.

        Raises:
            ValueError: If it resets in another way.
        """
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode is {mode}, expected SAME_STEP: pass it when you make the vector "
                "environment"
            )
        self.envs = envs
        self._actions: Array = np.empty(0)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata

    def reset(self) -> Array:
        """Start an episode in every environment, with the seeds that `seed` left for it."""
        # Gymnasium's vector environments take one seed each, though their type says otherwise.
        seeds: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, _ = self.envs.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        return np.asarray(observations)

    def step_async(self, actions: Array) -> None:
        """Take the [B] actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Return [B] observations, float32 rewards, ends, and one info each."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        ended = terminated | truncated
        own: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(ended).tolist():
            last = infos.get("final_info", {})
            own[i] = {
                name: values[i]
                for name, values in last.items()
                if not name.startswith("_") and last[f"_{name}"][i]
            }
            own[i]["terminal_observation"] = infos["final_obs"][i]
            own[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), ended, own

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the vector environment's attribute, which all copies share, for each of them."""
        return [getattr(self.envs, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the copies share their attributes.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{attr_name} is shared by all environments: it cannot be set")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: there are no single environments with methods.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{method_name} cannot be called: there are no single environments")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return that no environment is wrapped."""
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))


class ScaledRewards(VecEnvWrapper):
    """Rewards times a number, for learning; what a monitor inside has noted stays as it was."""

    def __init__(self, envs: VecEnv, scale: float) -> None:
        super().__init__(envs)
        self.scale = scale

    def reset(self) -> Any:
        """Start an episode in every environment."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Return the step with its [B] rewards scaled."""
        observations, rewards, ended, infos = self.venv.step_wait()
        return observations, self.scale * rewards, ended, infos


def make_vec_env(env: gym.Env[Any, Any], n_envs: int, reward_scale: float) -> VecEnv:
    """Return what a Stable-Baselines3 model learns in, each episode monitored.

    Args:
        env: Stepped itself where `n_envs` is 1, else made again from its spec.
        n_envs: Copies side by side.
        reward_scale: Rewards are multiplied by it, but for the monitored returns.

    Raises:
        ValueError: If more than one environment is asked for and `env` was not made by its id.
    """
    # Monitors write no file of their own: it would be opened here, before anything is learned.
    envs = DummyVecEnv([lambda: Monitor(env)]) if n_envs == 1 else _copies(env, n_envs)
    return envs if reward_scale == 1 else ScaledRewards(envs, reward_scale)


def _copies(env: gym.Env[Any, Any], n_envs: int) -> VecEnv:
    from awsgd_rl.envs import TrapGridworld

    if env.spec is None:
        raise ValueError(
            f"n_envs is {n_envs}, but env cannot be made again: make it by gym.make(id), or pass "
            "n_envs=1"
        )
    spec = copy.deepcopy(env.spec)
    # Copies are stepped without anyone looking.
    spec.kwargs.pop("render_mode", None)
    if isinstance(env.unwrapped, TrapGridworld) and not spec.additional_wrappers:
        mode = AutoresetMode.SAME_STEP
        return VecMonitor(GymnasiumVecEnv(gym.make_vec(spec, n_envs, autoreset_mode=mode)))
    return DummyVecEnv([lambda: Monitor(gym.make(spec))] * n_envs)
