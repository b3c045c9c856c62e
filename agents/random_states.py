"""States of random generators as plain data, and back: NumPy's, PyTorch's, and environments'.

Environments are reset at the start of every batch, so that between two batches nothing of an
environment goes on but its generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from torch import Tensor

from awsgd_rl.envs.vector import BLOCK, TrapGridworldVectorEnv

AnyVectorEnv = VectorEnv[Any, Any, Any]


def numpy_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state, integers that JSON can hold."""
    return dict(generator.bit_generator.state)


def check_numpy_state(state: Any) -> dict[str, Any]:
    """Return a state that `np.random.PCG64`, NumPy's default, takes as it is.

    Raises:
        ValueError: it is none.
    """
    probe = np.random.PCG64(0)
    try:
        probe.state = state
        same = probe.state == state
    except (KeyError, OverflowError, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f"got {state!r:.80} for a generator's state: the file is damaged")
    return dict(state)


def check_torch_state(state: Tensor, device: torch.device) -> None:
    """Check a state of `torch.Generator(device)`.

    Raises:
        ValueError: it is none.
    """
    try:
        torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"a generator's state is none ({why}): the file is damaged") from None


def environment_state(envs: AnyVectorEnv) -> dict[str, Any] | None:
    """Return the states of the environments' generators, for `set_environment_state`.

    They are those that Gymnasium gives every environment, `np_random`; and the numbers that
    this package's vectorised gridworld has drawn ahead. None where they are out of reach: in other
    processes (`AsyncVectorEnv`), or of another kind than NumPy's default. What an environment draws
    from a source of its own, or a wrapper remembers from episode to episode, is not known here.
    """
    base = envs.unwrapped
    if isinstance(base, AsyncVectorEnv):
        return None
    if isinstance(base, TrapGridworldVectorEnv):
        if base._generators is None:
            return None
        unused = np.arange(BLOCK) >= base._cursor[:, None]
        return {
            "generators": [numpy_state(generator) for generator in base._generators],
            "cursor": base._cursor.tolist(),
            "drawn": base._drawn,
            "ahead": [row[left].tolist() for row, left in zip(base._draws, unused, strict=True)],
        }
    generators = _generators(base)
    usual = [isinstance(getattr(g, "bit_generator", None), np.random.PCG64) for g in generators]
    return {"generators": [numpy_state(g) for g in generators]} if all(usual) else None


def check_environment_state(envs: AnyVectorEnv, state: Any) -> None:
    """Check what is to be given to `set_environment_state`; nothing changes.

    Raises:
        ValueError: it is not of such environments.
    """
    base = envs.unwrapped
    gridworld = isinstance(base, TrapGridworldVectorEnv)
    names = {"generators", "cursor", "drawn", "ahead"} if gridworld else {"generators"}
    if not isinstance(state, Mapping) or state.keys() != names:
        raise ValueError(f"got {state!r:.80} for the environments' generators, expected {names}")
    count = envs.num_envs if gridworld else len(_generators(base))
    for name in sorted(names - {"drawn"}):
        if not isinstance(state[name], list) or len(state[name]) != count:
            raise ValueError(
                f"the environments' {name} are not those of {count} environments: "
                "make the agent with as many as it was saved with"
            )
    for generator in state["generators"]:
        check_numpy_state(generator)
    if gridworld and not (
        all(isinstance(n, int) and 0 <= n <= BLOCK for n in (*state["cursor"], state["drawn"]))
        and all(_fits(*pair) for pair in zip(state["ahead"], state["cursor"], strict=True))
        and state["drawn"] >= max(state["cursor"])
    ):
        raise ValueError("the numbers that the environments have drawn ahead are damaged")


def set_environment_state(envs: AnyVectorEnv, state: Mapping[str, Any]) -> None:
    """Let the environments' generators go on from a state that passed `check_environment_state`.

    The next reset must be one without a seed.
    """
    base = envs.unwrapped
    if isinstance(base, TrapGridworldVectorEnv):
        base._seed([0] * base.num_envs)  # makes what the first reset makes
        assert base._generators is not None
        generators: Sequence[np.random.Generator] = base._generators
        base._draws[:] = 0.0
        for row, cursor, ahead in zip(base._draws, state["cursor"], state["ahead"], strict=True):
            row[cursor:] = ahead
        base._cursor[:] = state["cursor"]
        base._drawn = state["drawn"]
    else:
        generators = _generators(base)
    for generator, value in zip(generators, state["generators"], strict=True):
        generator.bit_generator.state = value


def _generators(base: Any) -> list[np.random.Generator]:
    """Return the generators of the single environments, or that of a native vector environment."""
    if isinstance(base, SyncVectorEnv):
        members: list[gym.Env[Any, Any]] = [env.unwrapped for env in base.envs]
        return [member.np_random for member in members]
    return [base.np_random]


def _fits(ahead: Any, cursor: int) -> bool:
    return (
        isinstance(ahead, list)
        and len(ahead) == BLOCK - cursor
        and all(isinstance(x, float) and 0.0 <= x < 1.0 for x in ahead)
    )
