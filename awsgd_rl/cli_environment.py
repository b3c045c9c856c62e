"""What `train` and `evaluate` share: making the environment, running episodes, summing them up."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.cli_common import UsageError
from awsgd_rl.envs.presets import GRIDWORLD_ID, PRESETS
from awsgd_rl.validation import require_name

if TYPE_CHECKING:
    import gymnasium as gym


class Episodes(NamedTuple):
    """N episodes of a policy."""

    returns: NDArray[np.float64]
    """[N] undiscounted returns."""
    lengths: NDArray[np.int64]
    """[N] steps."""
    successes: NDArray[np.float64]
    """[N] 1 or 0; nan where the environment does not say."""


def read_env_kwargs(text: str) -> dict[str, Any]:
    """Return the arguments that `--env-kwargs` gives.

    Raises:
        UsageError: If it is not a JSON object.
    """
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--env-kwargs is not JSON ({error}): write such as '{{\"size\": 8}}'"
        ) from (error)
    if not isinstance(kwargs, dict):
        raise UsageError(
            f"--env-kwargs is {text}, expected a JSON object such as '{{\"size\": 8}}'"
        )
    return kwargs


def choose_env(env: str | None, preset: str | None) -> str:
    """Return the environment's id from `--env` and `--preset`.

    Raises:
        UsageError: If both are given.
        ValueError: If the preset is unknown.
    """
    if preset is not None:
        if env is not None:
            raise UsageError("--env and --preset are both given, expected one of them")
        return PRESETS[require_name("preset", preset, PRESETS)].id
    return GRIDWORLD_ID if env is None else env


def choose_device(name: str) -> str:
    """Return the device that `--device` names: for "auto", CUDA where there is one.

    Raises:
        UsageError: If there is no such device.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"--device is {name!r}, expected auto, cpu or cuda")
    if kind == "cuda" and not available:
        raise UsageError(f"--device is {name!r}, but there is no CUDA device: use cpu or auto")
    return name


def device_of(agent: Any) -> str:
    """Return where an agent computes, for `results.json`."""
    from awsgd_rl.runs import describe_cpu

    device = getattr(getattr(agent, "learner", None), "device", None)
    if device is None and hasattr(agent, "model"):
        device = agent.model.device
    return describe_cpu() if str(device) in ("None", "cpu") else str(device)


def make_env(
    env_id: str, kwargs: Mapping[str, Any], render_mode: str | None = None
) -> "gym.Env[Any, Any]":
    """Make an environment.

    Raises:
        UsageError: If the id is unknown (the nearest is named), or its arguments are not valid.
    """
    import gymnasium as gym

    if ":" not in env_id:  # with a module, importing it registers the id
        require_name("environment", env_id, _known_ids(env_id))
    modes = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make(env_id, **{**kwargs, **modes})
    except (gym.error.Error, TypeError, ValueError, ImportError) as error:
        raise UsageError(f"{env_id} cannot be made: {error}") from error


def run_episodes(
    agent: Any,
    env: "gym.Env[Any, Any]",
    episodes: int,
    *,
    seed: int,
    deterministic: bool = False,
    on_step: Callable[[], object] = lambda: None,
    on_episode: Callable[[int], object] = lambda done: None,
) -> Episodes:
    """Run whole episodes of an agent's policy, without learning.

    Args:
        agent: Anything with `predict`.
        env: A single environment.
        episodes: N.
        seed: Seed of the first reset; the others go on from there.
        deterministic: The most probable actions rather than draws.
        on_step: Called after each reset and step.
        on_episode: Called with the number of episodes done.
    """
    returns, lengths, successes = [], [], []
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        on_step()
        total, length, ended = 0.0, 0, False
        while not ended:
            action, _ = agent.predict(observation, deterministic=deterministic)
            observation, reward, terminated, truncated, info = env.step(action)
            on_step()
            total += float(reward)
            length += 1
            ended = terminated or truncated
        returns.append(total)
        lengths.append(length)
        successes.append(float(info.get("is_success", np.nan)))
        on_episode(episode + 1)
    return Episodes(np.array(returns), np.array(lengths), np.array(successes))


def summarise(episodes: Episodes) -> dict[str, float]:
    """Return mean return, length and, where it is known, success, with their 95 % intervals.

    Student's interval for means, Wilson's for success. A single episode has no interval (nan).
    """
    from awsgd_rl.statistics import mean_interval, proportion_interval

    intervals = {
        "mean_return": mean_interval(episodes.returns),
        "mean_length": mean_interval(episodes.lengths, bounds=(0.0, np.inf)),
    }
    if np.isfinite(episodes.successes).all():
        intervals["success"] = proportion_interval(
            int(episodes.successes.sum()), len(episodes.successes)
        )
    summary: dict[str, float] = {"episodes": len(episodes.returns)}
    for name, interval in intervals.items():
        summary[name] = interval.estimate
        summary[f"{name}_low"], summary[f"{name}_high"] = interval.low, interval.high
    return summary


def _known_ids(env_id: str) -> list[str]:
    import gymnasium as gym

    # An id without its version means the latest one.
    ids = list(gym.registry)
    unversioned = {id_.rpartition("-v")[0] for id_ in ids}
    return [*ids, env_id] if env_id in unversioned else ids
