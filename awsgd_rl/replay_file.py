"""A replay buffer in a file: safetensors, with a JSON header that says what it is. Data, no code.

Both ways the transitions pass in pieces, so that a buffer that fills the memory can be saved.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from awsgd_rl._version import __version__
from awsgd_rl.runs import atomic_path

if TYPE_CHECKING:
    from awsgd_rl.replay import ReplayBuffer

SCHEMA: Final = 1
"""Version of the layout of the file."""

_HEADER: Final = "awsgd_rl_replay"
DTYPES: Final = {
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""What safetensors calls them."""

_PIECE: Final = 1 << 26


def write(buffer: "ReplayBuffer", path: Path) -> None:
    """Writes a buffer; the file appears whole, in place of an older one, or not at all.

    Args:
      buffer: what to write.
      path: where.
    """
    if buffer.proposal is not None:
        buffer.proposal.raise_refused()
    ring = buffer._ring
    about = {
        "schema": SCHEMA,
        "version": __version__,
        "settings": _settings(buffer),
        "added": ring.added,
        "generator": buffer.device.type,
    }
    tensors = {
        "newest": torch.from_numpy(ring.newest),
        "free": torch.from_numpy(ring.free[: ring.free_count]),
        "generator": buffer.generator.get_state(),
        "aside": ring.aside,
        "transitions": ring.memory[: ring.size],
    }
    if buffer.proposal is not None:
        tensors = {"priorities": buffer.proposal.tree.scores[: ring.size], **tensors}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        write_tensors(partial, tensors, {_HEADER: json.dumps(about)})


def read(buffer: "ReplayBuffer", path: Path) -> None:
    """Reads what `write` wrote into a buffer; everything is checked before it changes.

    Args:
      buffer: of the same capacity, spaces, number of environments, proposal and alpha.
      path: of the file.

    Raises:
      ValueError: if the file is missing, cut short or damaged, or of a buffer that differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _read(buffer, path, file)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path} is no file, expected a saved replay buffer") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def _read(buffer: "ReplayBuffer", path: Path, file: Any) -> None:
    about = _about(path, file.metadata())
    _check_settings(path, about.get("settings"), _settings(buffer))
    ring = buffer._ring
    added = about.get("added")
    if not isinstance(added, int) or not 0 <= added < 2**62:
        raise ValueError(f"{path} is damaged: it says that {added!r} transitions were added")
    size = min(added, buffer.capacity)
    n_envs, places = buffer.n_envs, _rows(path, file, "aside")
    expected = {
        "newest": ("I64", [n_envs]),
        "free": ("I32", [_rows(path, file, "free")]),
        "generator": ("U8", [_rows(path, file, "generator")]),
        "aside": ("U8", [places, ring.aside.shape[1]]),
        "transitions": ("U8", [size, ring.memory.shape[1]]),
    }
    if buffer.proposal is not None:
        expected["priorities"] = ("F64", [size])
    for name, layout in expected.items():
        _rows(path, file, name)
        part = file.get_slice(name)
        if (part.get_dtype(), list(part.get_shape())) != layout:
            raise ValueError(
                f"{path} is damaged: {name} is {part.get_dtype()} of shape {part.get_shape()}, "
                f"expected {layout[0]} of shape {layout[1]}"
            )
    newest, free = file.get_tensor("newest").numpy(), file.get_tensor("free").numpy()
    _check_links(path, _links(buffer, file, size), newest, free, places)
    scores = None
    if buffer.proposal is not None:
        scores = file.get_tensor("priorities")
        if not bool(((scores > 0.0) & (scores <= 1e301 / buffer.capacity)).all()):
            raise ValueError(f"{path} is damaged: a priority is not a positive, finite number")
    generator = _generator(path, about, file, buffer.device)

    ring.restore(added, newest, free, file.get_tensor("aside"), _pieces(file, size))
    if buffer.proposal is not None and scores is not None:
        buffer.proposal.load(scores.to(buffer.device))
    if generator is not None:
        buffer.generator.set_state(generator)


def _settings(buffer: "ReplayBuffer") -> dict[str, Any]:
    """What must be the same where a file is written and read, as JSON has it."""
    fields = [
        [
            field.name,
            list(field.shape),
            field.dtype.str,
            None if field.low is None else field.low.tolist(),
            None if field.high is None else field.high.tolist(),
        ]
        for field in buffer._ring.fields
    ]
    settings = {
        "capacity": buffer.capacity,
        "n_envs": buffer.n_envs,
        "spaces": fields,
        "proposal": buffer.kind,
    }
    if buffer.proposal is not None:
        settings["alpha"] = buffer.proposal.alpha
    return settings


def _about(path: Path, metadata: Any) -> dict[str, Any]:
    try:
        about = json.loads((metadata or {})[_HEADER])
        schema = about["schema"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no replay buffer of awsgd-rl") from None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"{path} was written by a newer awsgd-rl (schema {schema}, this one reads {SCHEMA}): "
            "upgrade with pip install -U awsgd-rl"
        )
    return about  # type: ignore[no-any-return]


def _check_settings(path: Path, saved: Any, expected: dict[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is damaged: it has no settings")
    for name, value in expected.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path} is of a buffer whose {name} is {saved.get(name)}, expected {value}"
            )


def _rows(path: Path, file: Any, name: str) -> int:
    if name not in file.keys():  # noqa: SIM118 - it is no mapping
        raise ValueError(f"{path} is damaged: {name} is missing")
    shape = file.get_slice(name).get_shape()
    return int(shape[0]) if shape else 0


def _links(buffer: "ReplayBuffer", file: Any, size: int) -> NDArray[np.int32]:
    """[size] the links in the file's transitions."""
    begin = buffer._ring.offset("link")
    links = np.empty(size, np.int32)
    for first, piece in _pieces(file, size):
        column = piece[:, begin : begin + 4].contiguous().view(torch.int32)
        links[first : first + len(piece)] = column[:, 0].numpy()
    return links


def _check_links(
    path: Path,
    links: NDArray[np.int32],
    newest: NDArray[np.int64],
    free: NDArray[np.int32],
    places: int,
) -> None:
    """Refuses a file after which reads and writes would leave the memory, or mix transitions."""
    n_envs, size = len(newest), len(links)
    # A ring begins with as many and only adds to them; its writes count on them.
    if places < 4 * n_envs:
        raise ValueError(
            f"{path} is damaged: aside is of {places} rows, expected at least {4 * n_envs}"
        )
    open_ = newest[newest >= 0]
    ended = -1 - links[links < -n_envs].astype(np.int64)
    whole = (
        bool((links < size).all())
        and bool((newest >= -1).all() and (newest < size).all())
        and np.array_equal(links[open_], -1 - np.flatnonzero(newest >= 0))
        and np.array_equal(np.sort(np.concatenate([ended, free])), np.arange(n_envs, places))
        and np.count_nonzero(links < 0) == len(open_) + len(ended)
    )
    if not whole:
        raise ValueError(f"{path} is damaged: the links of its transitions do not fit together")


def _generator(path: Path, about: dict[str, Any], file: Any, device: torch.device) -> Tensor | None:
    """The generator's state, if it is one for this kind of device."""
    if about.get("generator") != device.type:
        return None
    state: Tensor = file.get_tensor("generator")
    try:
        torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged: its generator is none ({why})") from None
    return state


def _pieces(file: Any, size: int) -> Iterator[tuple[int, Tensor]]:
    """The file's transitions in pieces, each with the slot it begins at."""
    transitions = file.get_slice("transitions")
    step = max(1, _PIECE // max(1, int(transitions.get_shape()[1])))
    for first in range(0, size, step):
        yield first, transitions[first : min(first + step, size)]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file in pieces; the format's own writer copies every tensor first.

    Args:
      path: of the file.
      tensors: of `DTYPES`, with one dimension or more, on any device.
      metadata: texts by name.

    Raises:
      OSError: if the disk is full, or the like.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            step = max(1, _PIECE * len(tensor) // max(1, tensor.nbytes))
            for first in range(0, len(tensor), step):
                piece = tensor[first : first + step].cpu().contiguous()
                file.write(piece.numpy().data)
