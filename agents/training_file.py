"""A training state on the disk: a folder of `training.json` and `training.safetensors`.

An agent with a replay buffer has that in a file of its own beside them, `replay.safetensors`.

Data without code, and whole or not there: all files are flushed to the disk in a folder of another
name, which then gets its own in one step. The JSON says what the others must look like (size and
SHA-256), and itself, so that what was cut short or changed is noticed before any of it is used.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from awsgd_rl.runs import atomic_folder

SCHEMA: Final = 1
"""Version of the layout of both files."""
ABOUT: Final = "training.json"
TENSORS: Final = "training.safetensors"
REPLAY: Final = "replay.safetensors"

Layout = dict[str, tuple[torch.dtype, tuple[int | None, ...]]]
"""Type and shape of each tensor; None stands for any length."""

_LARGEST_ABOUT = 2**24  # bytes; a run's are some ten thousand
_PIECE = 2**20
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class DamagedError(ValueError):
    """What is there is no whole training state; one that was written before may be."""


def write_training(
    path: Path,
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    write_replay: Callable[[Path], None] | None = None,
) -> None:
    """Write a training state; the folder appears whole, in place of an older one, or not at all.

    Args:
        path: the folder.
        about: what is to be in the JSON; finite numbers, strings, lists and mappings.
        tensors: on any device.
        write_replay: writes the replay buffer to the path it is given, and flushes it to the disk.

    Raises:
        OSError: the disk is full, or the like; what was at `path` is still there.
        ValueError: `path` holds something that is no training state.
    """
    if path.exists() and not (path.is_dir() and {f.name for f in path.iterdir()} <= _OWN):
        raise ValueError(f"{path} exists and is no training state: choose another folder")
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    sums: dict[str, Any] = {"schema": SCHEMA, "bytes": len(data), "sha256": digest}
    with atomic_folder(path) as partial:
        if write_replay is not None:
            write_replay(partial / REPLAY)
            size = (partial / REPLAY).stat().st_size
            sums["replay"] = {"bytes": size, "sha256": _sha256(partial / REPLAY)}
        text = json.dumps(sealed({**sums, **about}))
        for name, content in ((TENSORS, data), (ABOUT, text.encode())):
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())


def read_about(path: Path) -> dict[str, Any]:
    """Check that a training state is whole; return what its JSON holds.

    Raises:
        DamagedError: a file is missing, cut short, or not as it was written.
        ValueError: it is of a newer version, or there is none.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder, expected a training state")
    about = _read_json(path)
    _check_file(path / TENSORS, about)
    if "replay" in about:
        _check_file(path / REPLAY, about["replay"])
    return about


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Give the tensors' file, of which nothing has been read but its header.

    Raises:
        DamagedError: it is no safetensors file, or its header does not fit its size.
    """
    try:
        with safe_open(path / TENSORS, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path / TENSORS} is no whole safetensors file: {error}") from None


def check_layout(path: Path, file: Any, layout: Layout) -> None:
    """Check names, types and shapes of an open file, before any of its tensors takes memory.

    Raises:
        ValueError: they are not those of the layout.
    """
    if wrong := sorted(layout.keys() ^ set(file.keys())):
        raise ValueError(
            f"{path} does not fit this agent: {wrong[0]!r} is on one side only; make the agent "
            "with the policy, environment and options that it was saved with"
        )
    for name, (dtype, shape) in layout.items():
        part = file.get_slice(name)
        got = tuple(part.get_shape())
        fits = len(got) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, got, strict=True)
        )
        if not fits or part.get_dtype() != _NAMES[dtype]:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(
                f"{path} does not fit this agent: {name!r} is {part.get_dtype()} of shape {got}, "
                f"expected {_NAMES[dtype]} of shape ({wanted})"
            )


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout that tensors have."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def named(prefix: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping whose names begin with the prefix."""
    return {prefix + name: value for name, value in mapping.items()}


def names_of(names: Iterable[str], prefix: str) -> list[str]:
    """Return the names that begin with the prefix, without it."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def tensors_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what `named` gave that prefix, under its own names."""
    return {name: tensors[prefix + name] for name in names_of(tensors, prefix)}


_OWN = frozenset({ABOUT, TENSORS, REPLAY})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{path} has {size} bytes, expected {expected['bytes']}: cut short")
        digest = _sha256(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if digest != expected["sha256"]:
        raise DamagedError(f"{path} is not as it was written: its SHA-256 differs")


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a JSON is to hold, with its own SHA-256 under "seal"."""
    content = {name: value for name, value in about.items() if name != "seal"}
    return {**content, "seal": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def _read_json(path: Path) -> dict[str, Any]:
    file = path / ABOUT
    try:
        if file.stat().st_size > _LARGEST_ABOUT:
            raise DamagedError(f"{file} has more than {_LARGEST_ABOUT} bytes: it is none of ours")
        about = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{file} cannot be read: {error}") from None
    if not isinstance(about, dict) or not isinstance(about.get("schema"), int):
        raise DamagedError(f"{file} is damaged: expected an object with a schema number")
    if about["schema"] > SCHEMA:
        raise ValueError(
            f"{path} was written by a newer awsgd-rl (schema {about['schema']}, this one reads "
            f"{SCHEMA}): upgrade with pip install -U awsgd-rl"
        )
    if about != sealed(about):
        raise DamagedError(f"{file} is not as it was written: its SHA-256 differs")
    for name, sums in ((TENSORS, about), (REPLAY, about.get("replay", about))):
        known = isinstance(sums, dict) and isinstance(sums.get("bytes"), int)
        if not known or not isinstance(sums.get("sha256"), str):
            raise DamagedError(f"{file} is damaged: it does not say the size and SHA-256 of {name}")
    return about
