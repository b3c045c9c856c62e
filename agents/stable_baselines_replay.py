"""Stable-Baselines3's replay buffer in a safetensors file: its arrays, as far as they are filled.

Stable-Baselines3 itself pickles the buffer, and loading that can run anything. Both ways here the
transitions pass in pieces, so that a buffer that fills the memory can be saved.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from awsgd_rl.replay_file import DTYPES, write_tensors
from awsgd_rl.runs import atomic_path

_HEADER: Final = "awsgd_rl_stable_baselines_replay"
_ARRAYS: Final = (
    *("observations", "next_observations", "actions"),
    *("rewards", "dones", "timeouts"),
)
_ROWS: Final = 2**16


def write(buffer: ReplayBuffer, path: Path) -> None:
    """Write the buffer; the file appears whole, in place of an older one, or not at all.

    Raises:
        OSError: The disk is full, or the like.
    """
    tensors = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in _ARRAYS}
    position = json.dumps({"pos": buffer.pos, "full": buffer.full})
    with atomic_path(path) as partial:
        write_tensors(partial, tensors, {_HEADER: position})


def read(buffer: ReplayBuffer, path: Path) -> None:
    """Read what `write` wrote; everything is checked before the buffer changes.

    The environments are to be reset: returns of several steps end where the file ends.

    Args:
        buffer: Of the same size, spaces and number of environments.
        path: Of the file.

    Raises:
        ValueError: It is damaged, or of a buffer that differs.
    """
    try:
        with safe_open(path, framework="np") as file:
            _read(buffer, path, file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def interrupt(buffer: ReplayBuffer) -> None:
    """Let returns of several steps end at the last row: the environments will be reset."""
    if isinstance(buffer, NStepReplayBuffer) and buffer.size():
        # As it does itself when it draws, until the next transition is there: that one will be of
        # another episode.
        last = buffer.pos - 1
        open_ = np.logical_not(buffer.dones[last])
        buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], open_)


def _read(buffer: ReplayBuffer, path: Path, file: Any) -> None:
    pos, full = _position(buffer, path, file.metadata())
    size = buffer.buffer_size if full else pos
    if set(file.keys()) != set(_ARRAYS):
        raise ValueError(f"{path} holds {sorted(file.keys())}, expected {sorted(_ARRAYS)}")
    for name in _ARRAYS:
        array = getattr(buffer, name)
        part = file.get_slice(name)
        got = (part.get_dtype(), tuple(part.get_shape()))
        expected = (DTYPES[torch.from_numpy(array[:0]).dtype], (size, *array.shape[1:]))
        if got != expected:
            raise ValueError(
                f"{path} is of another buffer: {name} is {got[0]} of shape {got[1]}, expected "
                f"{expected[0]} of shape {expected[1]}"
            )
    for name in _ARRAYS:
        array, part = getattr(buffer, name), file.get_slice(name)
        for first in range(0, size, _ROWS):
            last = min(first + _ROWS, size)
            array[first:last] = part[first:last]
    buffer.pos, buffer.full = pos, full
    interrupt(buffer)


def _position(buffer: ReplayBuffer, path: Path, metadata: Any) -> tuple[int, bool]:
    try:
        position = json.loads((metadata or {})[_HEADER])
        pos, full = position["pos"], position["full"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no replay buffer of Stable-Baselines3") from None
    if type(pos) is not int or type(full) is not bool or not 0 <= pos < buffer.buffer_size:
        raise ValueError(f"{path} is damaged: it says that it is filled up to {position!r:.80}")
    return pos, full
