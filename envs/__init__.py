"""The trap gridworld: one environment, many at once, maps, presets and pictures.

Nothing is imported until it is asked for: `import awsgd_rl` registers the ids and stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "awsgd_rl.envs":
    raise ImportError(
        f"this folder is the package 'awsgd_rl.envs', but was imported as {__name__!r}: "
        "install the project (pip install -e .) and import awsgd_rl.envs"
    )

if TYPE_CHECKING:
    from awsgd_rl.envs.gridworld import TrapGridworld
    from awsgd_rl.envs.layouts import Layout, max_traps, parse_layout, random_layout
    from awsgd_rl.envs.presets import PRESETS, Preset, preset
    from awsgd_rl.envs.rendering import draw_grid, text_grid
    from awsgd_rl.envs.vector import TrapGridworldVectorEnv

__all__ = [
    "PRESETS",
    "Layout",
    "Preset",
    "TrapGridworld",
    "TrapGridworldVectorEnv",
    "draw_grid",
    "max_traps",
    "parse_layout",
    "preset",
    "random_layout",
    "text_grid",
]

_HOME = {
    "TrapGridworld": "gridworld",
    "Layout": "layouts",
    "max_traps": "layouts",
    "parse_layout": "layouts",
    "random_layout": "layouts",
    "PRESETS": "presets",
    "Preset": "presets",
    "preset": "presets",
    "draw_grid": "rendering",
    "text_grid": "rendering",
    "TrapGridworldVectorEnv": "vector",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
