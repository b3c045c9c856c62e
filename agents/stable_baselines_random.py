"""The generators that a training by Stable-Baselines3 draws from, as JSON values, and back.

NumPy's and Python's global ones, those of the spaces, from which random actions come, and those of
the environments. PyTorch's are tensors: see `torch_states`.
"""

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor

from awsgd_rl.agents.random_states import (
    check_environment_state,
    check_numpy_state,
    environment_state,
    numpy_state,
    set_environment_state,
)
from awsgd_rl.agents.sb3_vec_env import GymnasiumVecEnv
from awsgd_rl.runs import to_json

if TYPE_CHECKING:
    from awsgd_rl.agents.stable_baselines import StableBaselines

_MERSENNE_WORDS = 624


def torch_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's global generators: the CPU's, and the device's if another."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_torch_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Let PyTorch's global generators go on from such states."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def random_states(agent: "StableBaselines") -> dict[str, Any]:
    """Return the states of all generators but PyTorch's."""
    model = agent.model
    # Before the first reset an environment has no generator, only the seed that it will get.
    environments = _environments(model.env) if agent.num_timesteps else None
    return {
        "numpy": to_json(np.random.get_state(legacy=False)),  # noqa: NPY002
        "python": to_json(random.getstate()),
        "actions": numpy_state(model.action_space.np_random),
        "observations": numpy_state(model.observation_space.np_random),
        "environments": environments,
    }


def check_random_states(agent: "StableBaselines", states: Any) -> None:
    """Check what is to be given to `set_random_states`; nothing changes.

    Raises:
        ValueError: It is none, or of other environments.
    """
    if not isinstance(states, dict) or states.keys() != random_states(agent).keys():
        raise ValueError(f"got {states!r:.80} for the states of the generators: it is damaged")
    try:
        _numpy_global(states["numpy"], np.random.RandomState(0))
        random.Random(0).setstate(_python_global(states["python"]))
    except (KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"the state of a global generator is damaged: {error}") from None
    check_numpy_state(states["actions"])
    check_numpy_state(states["observations"])
    if states["environments"] is None:
        return
    base = _base(agent.model.env)
    if isinstance(base, GymnasiumVecEnv):
        check_environment_state(base.envs, states["environments"])
        return
    if not isinstance(states["environments"], list) or len(states["environments"]) != base.num_envs:
        raise ValueError(f"the environments' generators are not those of {base.num_envs}")
    for state in states["environments"]:
        check_numpy_state(state)


def set_random_states(agent: "StableBaselines", states: dict[str, Any]) -> None:
    """Let all go on from states that passed `check_random_states`; `agent` has its counts by now.

    Environments whose generators are out of reach get a seed that follows from the agent's and the
    number of steps.
    """
    model = agent.model
    _numpy_global(states["numpy"], np.random)
    random.setstate(_python_global(states["python"]))
    model.action_space.np_random.bit_generator.state = states["actions"]
    model.observation_space.np_random.bit_generator.state = states["observations"]
    base = _base(model.env)
    if states["environments"] is None:
        base.seed(_later_seed(agent.seed, agent.num_timesteps))
        return
    base._reset_seeds()  # those of the beginning
    if isinstance(base, GymnasiumVecEnv):
        set_environment_state(base.envs, states["environments"])
    elif isinstance(base, DummyVecEnv):
        for env, state in zip(base.envs, states["environments"], strict=True):
            env.unwrapped.np_random.bit_generator.state = state


def _later_seed(seed: int, timesteps: int) -> int:
    if timesteps == 0:
        return seed
    return int(np.random.SeedSequence([seed, timesteps]).generate_state(1)[0] >> 1)


def _environments(envs: VecEnv | None) -> Any:
    base = _base(envs)
    if isinstance(base, GymnasiumVecEnv):
        return environment_state(base.envs)
    if not isinstance(base, DummyVecEnv):
        return None
    generators = [env.unwrapped.np_random for env in base.envs]
    usual = [isinstance(getattr(g, "bit_generator", None), np.random.PCG64) for g in generators]
    return [numpy_state(g) for g in generators] if all(usual) else None


def _base(envs: VecEnv | None) -> VecEnv:
    while isinstance(envs, VecEnvWrapper):
        envs = envs.venv
    assert envs is not None
    return envs


def _numpy_global(state: dict[str, Any], generator: Any) -> None:
    """Set a state of NumPy's legacy generator, `np.random` or a `RandomState`."""
    key, pos = state["state"]["key"], state["state"]["pos"]
    # It checks neither, and would read beyond its own memory.
    if len(key) != _MERSENNE_WORDS or type(pos) is not int or not 0 <= pos <= _MERSENNE_WORDS:
        raise ValueError(f"got {len(key)} words and position {pos!r:.20}")
    generator.set_state({**state, "state": {"key": np.array(key, np.uint32), "pos": pos}})


def _python_global(state: Any) -> Any:
    version, words, gauss = state
    return version, tuple(words), gauss
