"""Which of Gymnasium's spaces a policy can act on, and the units that it does so in."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt


def check_spaces(observation_space: gym.Space[object], action_space: gym.Space[object]) -> None:
    """Refuse spaces that no policy here can act on.

    Args:
        observation_space: Space of one observation; Box and Discrete are supported.
        action_space: Space of one action; Discrete and Box (floating point) are supported.

    Raises:
        ValueError: for any other space, with its name and what to do about it.
    """
    if not isinstance(observation_space, gym.spaces.Box | gym.spaces.Discrete):
        raise ValueError(
            f"unsupported observation space {type(observation_space).__name__}: "
            f"{observation_space}; supported are Box and Discrete "
            "(wrap a Dict or Tuple with gymnasium.wrappers.FlattenObservation)"
        )
    if isinstance(action_space, gym.spaces.Discrete):
        return
    if not isinstance(action_space, gym.spaces.Box):
        raise ValueError(
            f"unsupported action space {type(action_space).__name__}: {action_space}; "
            "supported are Discrete and Box (map the actions to one of them with "
            "gymnasium.wrappers.TransformAction)"
        )
    if not np.issubdtype(action_space.dtype, np.floating):
        raise ValueError(
            f"unsupported action space of dtype {action_space.dtype}: {action_space}; "
            "a Box of actions must hold floating-point numbers"
        )


class Units:
    """Observations and actions between an environment's units and those that are learned with.

    Discrete ones count from 0. A Box observation is float32, unscaled. A Box action is flat, and
    -1 and 1 are the bounds of a coordinate that has two finite ones; others are as they are.

    Args:
        observation_space: Box or Discrete.
        action_space: Discrete or Box.

    Raises:
        ValueError: for another space.
    """

    def __init__(
        self, observation_space: gym.Space[object], action_space: gym.Space[object]
    ) -> None:
        check_spaces(observation_space, action_space)
        self.observation_space = observation_space
        self.action_space = action_space
        if isinstance(action_space, gym.spaces.Box):
            self._low = action_space.low.astype(np.float64).reshape(-1)
            self._high = action_space.high.astype(np.float64).reshape(-1)
            bounded = np.isfinite(self._low) & np.isfinite(self._high) & (self._high > self._low)
            low, high = np.where(bounded, self._low, -1.0), np.where(bounded, self._high, 1.0)
            self._centre, self._half = (low + high) / 2, (high - low) / 2

    def observations(self, raw: npt.ArrayLike) -> npt.NDArray[Any]:
        """[N, ...] observations of the environment to int64 states from 0, or float32."""
        array = np.asarray(raw)
        if isinstance(self.observation_space, gym.spaces.Discrete):
            return array.astype(np.int64) - int(self.observation_space.start)
        return array.astype(np.float32)

    def env_actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[N] or [N, D] actions of a policy to those of the environment, within its bounds."""
        if isinstance(self.action_space, gym.spaces.Box):
            within = np.clip(self._centre + self._half * actions, self._low, self._high)
            shape = (len(actions), *self.action_space.shape)
            boxed: npt.NDArray[Any] = within.astype(self.action_space.dtype).reshape(shape)
            return boxed
        assert isinstance(self.action_space, gym.spaces.Discrete)
        return (actions + int(self.action_space.start)).astype(self.action_space.dtype)
