"""Adaptive importance sampling for stochastic gradients, in RL and supervised learning.

Importing this module registers the environments with Gymnasium and imports nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from awsgd_rl._version import __version__
from awsgd_rl.envs.presets import GRIDWORLD_ID, PRESETS

if TYPE_CHECKING:
    from awsgd_rl.agents import AWSGD, Reinforce
    from awsgd_rl.envs import TrapGridworld, TrapGridworldVectorEnv, preset

__all__ = [
    "AWSGD",
    "PRESETS",
    "Reinforce",
    "TrapGridworld",
    "TrapGridworldVectorEnv",
    "__version__",
    "preset",
]

_HOME = {
    "AWSGD": "awsgd_rl.agents",
    "Reinforce": "awsgd_rl.agents",
    "TrapGridworld": "awsgd_rl.envs",
    "TrapGridworldVectorEnv": "awsgd_rl.envs",
    "preset": "awsgd_rl.envs",
}


def _register_environments() -> None:
    ids = {GRIDWORLD_ID: {}, **{preset.id: preset.kwargs for preset in PRESETS.values()}}
    for id_, kwargs in ids.items():
        # A reload of this module must not warn that it writes over its own ids.
        if id_ not in registry:
            register(
                id=id_,
                entry_point="awsgd_rl.envs.gridworld:TrapGridworld",
                vector_entry_point="awsgd_rl.envs.vector:TrapGridworldVectorEnv",
                kwargs=dict(kwargs),
            )


_register_environments()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
