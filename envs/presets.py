"""Named maps of the trap gridworld, each with its own Gymnasium id.

`"15/9"` is a 15x15 grid with 9 traps. The id of a preset is `awsgd_rl/TrapGridworld-<name>-v0`
with `-` for `/`: `awsgd_rl/TrapGridworld-15-9-v0`. A preset with `layout_seed=k` is its map k.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from awsgd_rl.validation import require_name

GRIDWORLD_ID = "awsgd_rl/TrapGridworld-v0"


@dataclass(frozen=True)
class Preset:
    """Arguments of the trap gridworld under a name."""

    name: str
    """What `--preset` and `preset` take."""
    description: str
    """One line."""
    kwargs: dict[str, Any] = field(hash=False)
    """Arguments for the environment; add `layout_seed` for another map."""

    @property
    def id(self) -> str:
        """The Gymnasium id that the preset is registered under."""
        return f"awsgd_rl/TrapGridworld-{self.name.replace('/', '-')}-v0"


def _paper(name: str, size: int, traps: int, rule: str) -> Preset:
    text = f"{size}x{size}, traps = {rule} = {traps} (Bouchard et al. 2015, section 7)"
    return Preset(name, text, {"size": size, "traps": traps})


def _square(size: int, traps: int) -> Preset:
    name = f"{size}/{traps}"
    return Preset(name, f"{size}x{size} with {traps} traps", {"size": size, "traps": traps})


# The grid of Hanna et al. (2017, ICML) and Zhong et al. (2022, NeurIPS), as the latter's published
# code has it: only (3, 3) ends the episode, the cells of -10 and +1 are walked through, and a move
# off the grid costs 1 wherever it is made.
_LITERATURE = Preset(
    "literature",
    "4x4 grid of the behavior-policy-search literature, 100 steps, discount 1",
    {
        "desc": ["SFFF", "FFFF", "FFFF", "FFFG"],
        "goal_reward": 10.0,
        "step_reward": -1.0,
        "cell_rewards": [[1, 1, -10.0], [1, 3, 1.0]],
        "horizon": 100,
    },
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in [
        *(_paper(f"seed-{size}", size, -(-size // 25), "size/25") for size in (15, 50, 80)),
        *(_paper(f"full-{size}", size, size * size // 25, "size²/25") for size in (15, 50, 80)),
        *(_square(15, traps) for traps in (1, 9)),
        *(_square(50, traps) for traps in (2, 10, 25, 50, 100)),
        *(_square(80, traps) for traps in (4, 40, 256)),
        _LITERATURE,
    ]
}
"""All presets by name."""


def preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        ValueError: there is none; the message has the nearest name.
    """
    return PRESETS[require_name("preset", name, PRESETS)]
