"""This package's replay buffer behind the interface of Stable-Baselines3's.

Stable-Baselines3 calls `add` and `sample` of its replay buffers; this one passes them on. What its
`sample` returns has the same fields, and with them the draw, from which `PrioritizedDQN`, `SAC` and
`TD3` make weights and to which they give errors back.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.buffers import ReplayBuffer as StableBaselinesBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from awsgd_rl.replay import ReplayBuffer, ReplaySample

__all__ = ["PrioritizedReplayBuffer", "PrioritizedSamples"]


class PrioritizedSamples(NamedTuple):
    """What Stable-Baselines3's buffers return, and where it came from."""

    observations: Any
    """[B, ...], or a dict of them; normalised if a `VecNormalize` was given."""
    actions: Tensor
    """[B, action dimensions]"""
    next_observations: Any
    """[B, ...], or a dict of them."""
    dones: Tensor
    """[B, 1] 1 where the episode terminated, 0 where it was truncated or went on."""
    rewards: Tensor
    """[B, 1] the n-step return."""
    discounts: Tensor
    """[B, 1] what the next observation's value counts; 0 where the episode terminated."""
    source: ReplaySample
    """The sample as the core drew it, not normalised: slots and probabilities in its `draw`."""


@final
class PrioritizedReplayBuffer(StableBaselinesBuffer):
    """A `ReplayBuffer` for Stable-Baselines3: any of its observation and action spaces.

    Sizes are in transitions, where Stable-Baselines3's own are in steps of all environments: n_envs
    need not divide the capacity. `DQN`, `SAC` and `TD3` themselves run with it as their
    `replay_buffer_class`, but do not weight: use the prioritized ones, or proposal="uniform".

    Args:
      buffer_size: capacity, in transitions.
      observation_space: of one environment.
      action_space: of one environment.
      device: where samples go.
      n_envs: number of environments.
      optimize_memory_usage: must be False: a next observation is stored once in any case.
      handle_timeout_termination: take `info["TimeLimit.truncated"]` for truncation, after which the
        value counts; otherwise every end of an episode is a termination.
      n_steps: steps of a return.
      gamma: discount.
      storage_device: where transitions lie; None takes `device`. "cpu" for what is larger than the
        GPU's memory.
      **options: of `awsgd_rl.replay.ReplayBuffer`: proposal, alpha, epsilon, uniform_share,
        stratified, ratio, seed.

    Attributes:
      core: the buffer itself.

    Raises:
      ValueError: if a setting is out of range, or a space not supported.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage_device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage is True, expected False: this buffer stores next "
                "observations once in any case"
            )
        # Its own __init__ would allocate arrays.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self._settings = {
            "n_envs": n_envs,
            "device": self.device if storage_device is None else storage_device,
            "n_step": n_steps,
            "discount": gamma,
            **options,
        }
        self.reset()

    def reset(self) -> None:
        """Empties the buffer, and starts its generator anew."""
        self.core = ReplayBuffer(
            self.buffer_size, self.observation_space, self.action_space, **self._settings
        )
        self._count()

    def size(self) -> int:
        """Number of transitions stored, of all environments together."""
        return self.core.size

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds a transition of each environment.

        Args:
          obs: [E, ...] array, or a dict of them.
          next_obs: [E, ...] with final observations where episodes ended, as Stable-Baselines3 puts
            them there from `info["terminal_observation"]`.
          action: [E, ...].
          reward: [E].
          done: [E].
          infos: one of each environment, of which `TimeLimit.truncated` counts.

        Raises:
          ValueError: as `awsgd_rl.replay.ReplayBuffer.add`; nothing is stored then.
        """
        ended = np.asarray(done).astype(np.bool_)
        truncated = np.zeros_like(ended)
        if self.handle_timeout_termination:
            truncated = ended & [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        self.core.add(
            self._rows(obs),
            np.asarray(action).reshape(self.n_envs, *(self.action_space.shape or ())),
            reward,
            self._rows(next_obs),
            ended & ~truncated,
            truncated,
        )
        self._count()

    def sample(  # type: ignore[override]
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        *,
        score: Callable[[PrioritizedSamples], Tensor] | None = None,
    ) -> PrioritizedSamples:
        """Draws transitions.

        Args:
          batch_size: number of draws B.
          env: normalises observations and rewards as its statistics are now. Of an n-step return
            it is the sum that is divided and clipped, to clip_reward Σ_j gamma^j.
          score: for proposal "two-stage": [n] candidates to their [n] scores.

        Returns:
          The samples, on `device`.

        Raises:
          ValueError: as `awsgd_rl.replay.ReplayBuffer.sample`.
        """
        if score is None:
            return self._samples(self.core.sample(batch_size), env)

        def score_core(candidates: ReplaySample) -> Tensor:
            return score(self._samples(candidates, env)).to(self.core.device)

        return self._samples(self.core.sample(batch_size, score=score_core), env)

    def update(self, samples: PrioritizedSamples, signal: Tensor) -> None:
        """Sets the priorities of what was drawn.

        Args:
          samples: as `sample` returned them.
          signal: [B] TD errors or gradient norms.

        Raises:
          ValueError: as `awsgd_rl.replay.ReplayBuffer.update`; no priority has changed then.
        """
        self.core.update(samples.source, signal)

    def save(self, path: str | Path) -> None:
        """Writes everything into a safetensors file: numbers, nothing that runs when it is read."""
        self.core.save(path)

    def restore(self, path: str | Path) -> None:
        """Reads what `save` wrote.

        Raises:
          ValueError: as `awsgd_rl.replay.ReplayBuffer.restore`; the buffer is then as it was.
        """
        self.core.restore(path)
        self._count()

    def _count(self) -> None:
        self.pos, self.full = self.core.position, self.core.size == self.buffer_size

    def _rows(self, observations: Any) -> Any:
        if isinstance(observations, dict):
            return {key: self._row(observations[key], key) for key in observations}
        return self._row(observations, None)

    def _row(self, values: Any, key: str | None) -> Any:
        parts = self.observation_space
        space = parts[key] if key is not None and isinstance(parts, spaces.Dict) else parts
        # Some environments have [E], others [E, 1] of these.
        return np.reshape(values, -1) if isinstance(space, spaces.Discrete) else values

    def _samples(self, source: ReplaySample, env: VecNormalize | None) -> PrioritizedSamples:
        actions = source.actions.reshape(len(source.actions), self.action_dim)
        rewards = source.rewards.to(self.device).unsqueeze(1)
        discounts = source.discounts.to(self.device).unsqueeze(1)
        if env is not None and env.norm_reward:
            steps = sum(self.core.discount**j for j in range(self.core.n_step))
            scale = float(np.sqrt(env.ret_rms.var + env.epsilon))
            rewards = (rewards / scale).clamp(-env.clip_reward * steps, env.clip_reward * steps)
        return PrioritizedSamples(
            self._observations(source.observations, env),
            (actions.float() if actions.is_floating_point() else actions).to(self.device),
            self._observations(source.next_observations, env),
            (discounts == 0.0).float(),
            rewards,
            discounts,
            source,
        )

    def _observations(self, observations: Any, env: VecNormalize | None) -> Any:
        shapes: Any = self.obs_shape  # Stable-Baselines3 has [B, 1] of a Discrete space
        if isinstance(observations, dict):
            return {
                key: self._normalised(part.reshape(-1, *shapes[key]), env, key)
                for key, part in observations.items()
            }
        return self._normalised(observations.reshape(-1, *shapes), env, None)

    def _normalised(self, values: Tensor, env: VecNormalize | None, key: str | None) -> Tensor:
        values = values.to(self.device)
        if env is None or not env.norm_obs:
            return values
        statistics: Any = env.obs_rms
        if key is not None:
            if key not in (env.norm_obs_keys or ()):
                return values
            statistics = statistics[key]
        # In float64, as there, but without leaving the device.
        mean, variance = (
            torch.as_tensor(part, dtype=torch.float64, device=self.device)
            for part in (statistics.mean, statistics.var)
        )
        scaled = (values - mean) / (variance + env.epsilon).sqrt()
        return scaled.clamp(-env.clip_obs, env.clip_obs).float()
