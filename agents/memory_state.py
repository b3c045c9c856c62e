"""The memory of past trajectories as flat tensors, and back.

Trajectories follow one another without padding, in the order of their slots; `lengths` tells where
each begins. Names begin with `memory.`.
"""

from dataclasses import fields
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from awsgd_rl.agents.spaces import Units
from awsgd_rl.agents.training_file import Layout
from awsgd_rl.agents.trajectories import Trajectories, TrajectoryMemory

_PREFIX = "memory."
_FIELDS: Layout = {
    "rewards": (torch.float32, (None,)),
    "step_log_drawn": (torch.float64, (None,)),
    "terminated": (torch.bool, (None,)),
    "lengths": (torch.int64, (None,)),
    "returns": (torch.float64, (None,)),
    "success": (torch.float64, (None,)),
    "from_target": (torch.bool, (None,)),
    "log_drawn": (torch.float64, (None,)),
}
"""But for observations and actions, which depend on the spaces; all steps happened (`mask`)."""
_PER_STEP = ("actions", "rewards", "step_log_drawn")


def memory_state(memory: TrajectoryMemory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the trajectories as tensors, and the slot that the next one takes.

    Empty tensors are left out, so that a memory without trajectories has none.
    """
    kept = [row for row in memory._rows if row is not None]  # the ring fills from slot 0
    names = [field.name for field in fields(Trajectories) if field.name != "mask"] if kept else []
    tensors = {}
    for name in names:
        # [L, 1, ...] each, or [1]
        parts = [getattr(row, name) for row in kept]
        stepwise = name in ("observations", *_PER_STEP)
        tensors[_PREFIX + name] = torch.cat([part[:, 0] for part in parts] if stepwise else parts)
    return tensors, {"stored": len(kept), "next": memory._next}


def memory_layout(
    observation: tuple[torch.dtype, tuple[int, ...]], action: tuple[torch.dtype, tuple[int, ...]]
) -> Layout:
    """Return the layout of a memory's tensors, given types and shapes of single steps."""
    layout = dict(_FIELDS)
    for name, (dtype, shape) in (("observations", observation), ("actions", action)):
        layout[name] = (dtype, (None, *shape))
    return {_PREFIX + name: part for name, part in layout.items()}


def check_memory(
    memory: TrajectoryMemory, tensors: dict[str, Tensor], values: Any, units: Units
) -> None:
    """Check what is to be given to `restore_memory`, of the types of `memory_layout`.

    Raises:
        ValueError: the parts do not fit together, or an observation or action is none.
    """
    size = len(memory._rows)
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name), int) and 0 <= values[name] < max(size, 1) + extra
        for name, extra in (("stored", int(size > 0)), ("next", 0))
    ):
        raise ValueError(f"got {values!r:.80} for the memory's counters: it is damaged")
    count = values["stored"]
    if (count > 0) != (f"{_PREFIX}lengths" in tensors):
        raise ValueError(f"the memory counts {count} trajectories, which are not there, or others")
    if not count:
        return
    lengths = tensors[f"{_PREFIX}lengths"]
    rows = len(tensors[f"{_PREFIX}rewards"])
    total = int(lengths.sum()) if bool(((lengths >= 1) & (lengths <= rows)).all()) else -1
    expected = {"observations": total + count, **dict.fromkeys(_PER_STEP, total)}
    for name in ("observations", "actions", *_FIELDS):
        if len(tensors[_PREFIX + name]) != expected.get(name, count):
            raise ValueError(f"the memory's {name!r} do not fit its {count} lengths: it is damaged")
    spaces = {"observations": units.observation_space, "actions": units.action_space}
    for name, space in spaces.items():
        part = tensors[_PREFIX + name]
        if isinstance(space, gym.spaces.Discrete) and not bool(
            ((part >= 0) & (part < int(space.n))).all()
        ):
            raise ValueError(f"the memory's {name!r} are not all in {space}: it is damaged")


def restore_memory(
    memory: TrajectoryMemory,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    device: torch.device,
) -> None:
    """Put trajectories that passed `check_memory` into the memory, in place of what it holds."""
    memory._rows = [None] * len(memory._rows)
    memory._next = values["next"]
    if not values["stored"]:
        return
    lengths = tensors[f"{_PREFIX}lengths"].tolist()
    split: dict[str, tuple[Tensor, ...]] = {}
    for name in ("observations", "actions", *_FIELDS):
        sizes = [1] * len(lengths)
        if name == "observations":
            sizes = [length + 1 for length in lengths]
        elif name in _PER_STEP:
            sizes = lengths
        split[name] = torch.split(tensors[_PREFIX + name], sizes)
    for slot, length in enumerate(lengths):
        parts = {name: pieces[slot].clone().to(device) for name, pieces in split.items()}
        for name in ("observations", *_PER_STEP):
            parts[name] = parts[name].unsqueeze(1)
        mask = torch.ones(length, 1, dtype=torch.bool, device=device)
        memory._rows[slot] = Trajectories(mask=mask, **parts)
