"""Reading what a run recorded (`agents/snapshots.py`), and refusing what is damaged or not of it.

Nothing in a run folder is trusted: it may come from somebody else. Files are safetensors and JSON,
sizes are checked before anything is read, and every value before it is used.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from awsgd_rl.agents.snapshots import (
    ABOUT,
    FOLDER,
    HISTORY_FILE,
    HISTORY_POINTS,
    MAP_FILE,
    MOST_CELLS,
    MOST_MOVES,
    MOST_TRAJECTORIES,
    SCHEMA,
    SUFFIX,
    Snapshot,
)
from awsgd_rl.envs.layouts import Layout, parse_layout

_MOST_FILES: Final = 200
_MOST_BYTES: Final = 8 << 20
_KINDS: Final[dict[str, tuple[str, type[np.generic]]]] = {
    "target": ("F32", np.float32),
    "exploration": ("F32", np.float32),
    "weights": ("F32", np.float32),
    "from_target": ("U8", np.uint8),
    "lengths": ("I32", np.int32),
    "ends": ("U8", np.uint8),
    "offsets": ("I32", np.int32),
    "moves": ("I32", np.int32),
}

History = dict[str, NDArray[np.float64]]


class Recording(NamedTuple):
    """The snapshots of a run.

    Attributes:
        layout: the map.
        slip: probability that a move slips to one of the two sides.
        horizon: steps after which an episode is cut off.
        snapshots: in the order in which they were taken.
    """

    layout: Layout
    slip: float
    horizon: int
    snapshots: list[Snapshot]


def read_recording(folder: Path) -> Recording | None:
    """Return the snapshots of a run folder; None if it has none.

    Raises:
        ValueError: one of the files is damaged, too large, or not what a run writes.
    """
    place = folder / FOLDER
    paths = sorted(path for path in place.glob("*" + SUFFIX) if not path.name.startswith("."))
    if not paths:
        return None
    if len(paths) > _MOST_FILES:
        raise ValueError(
            f"{str(place)!r} holds {len(paths)} snapshots, expected at most {_MOST_FILES}"
        )
    world = _read_json(place / MAP_FILE)
    where = repr(str(place / MAP_FILE))
    desc, slip, horizon = world.get("desc"), world.get("slip"), world.get("horizon")
    if (
        not isinstance(desc, list)
        or not is_number(slip)
        or not 0 <= slip < 1
        or not isinstance(horizon, int)
        or horizon < 1
    ):
        raise ValueError(f"{where} is damaged: expected a map, a slip and a horizon")
    try:
        layout = parse_layout(desc)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from None
    cells = layout.rows * layout.columns
    if cells > MOST_CELLS:
        raise ValueError(f"{where} has {cells} cells, expected at most {MOST_CELLS}")
    return Recording(layout, slip, horizon, [read_snapshot(path, cells) for path in paths])


def read_snapshot(path: Path, cells: int) -> Snapshot:
    """Return one snapshot of a map of so many cells.

    Raises:
        ValueError: it is damaged, too large, or not of this map.
    """
    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                kind = file.get_slice(name).get_dtype()
                if name not in _KINDS or kind != _KINDS[name][0]:
                    raise ValueError(f"it has {name!r} of {kind}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        missing = sorted(_KINDS.keys() - {"exploration"} - arrays.keys())
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        counts = [_count(about, name) for name in ("schema", "episodes", "timesteps")]
        if counts[0] > SCHEMA:
            raise ValueError(f"it is of a newer version ({counts[0]}): upgrade awsgd-rl")
        _check_arrays(arrays, cells)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no snapshot of this run: {_line(error)}") from None
    return Snapshot(
        episodes=counts[1],
        timesteps=counts[2],
        target=arrays["target"],
        exploration=arrays.get("exploration"),
        weights=arrays["weights"],
        from_target=arrays["from_target"].astype(bool),
        lengths=arrays["lengths"],
        ends=arrays["ends"],
        offsets=arrays["offsets"],
        moves=arrays["moves"],
    )


def read_history(folder: Path) -> History | None:
    """Return what an agent measured over training, by name; None if the folder does not tell.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / HISTORY_FILE
    if not path.exists():
        return None
    content = _read_json(path)
    history = {}
    for name, values in content.items():
        if not isinstance(values, list):
            continue
        if not all(value is None or is_number(value) for value in values):
            raise ValueError(f"{str(path)!r} is damaged: {name!r} holds what is no number")
        history[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    lengths = {len(values) for values in history.values()}
    if "episodes" not in history or len(lengths) != 1 or lengths.pop() > HISTORY_POINTS:
        raise ValueError(
            f"{str(path)!r} is damaged: expected lists of one length, at most {HISTORY_POINTS}"
        )
    return history


def _check_arrays(arrays: dict[str, NDArray[Any]], cells: int) -> None:
    for name in ("target", "exploration"):
        table = arrays.get(name)
        if table is None:
            continue
        if table.shape != (cells, 4):
            raise ValueError(f"{name!r} has shape {list(table.shape)}, expected [{cells}, 4]")
        if not (np.isfinite(table).all() and (table >= 0).all()):
            raise ValueError(f"{name!r} holds what is no probability")
        if np.abs(table.sum(1) - 1).max() > 1e-3:
            raise ValueError(f"{name!r} has probabilities that do not sum to 1")
    weights, offsets, moves = arrays["weights"], arrays["offsets"], arrays["moves"]
    k, e = weights.size, moves.size
    if k > MOST_TRAJECTORIES or e > MOST_MOVES:
        raise ValueError(f"it has {k} trajectories of {e} moves, more than a run records")
    expected = dict.fromkeys(("weights", "from_target", "lengths", "ends"), (k,))
    for name, shape in {**expected, "offsets": (k + 1,), "moves": (e,)}.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name!r} has shape {list(arrays[name].shape)}, expected {shape}")
    for name, most in {"from_target": 1, "ends": 2, "moves": 4 * cells - 1, "offsets": e}.items():
        values = arrays[name]
        if values.size and not (values.min() >= 0 and values.max() <= most):
            raise ValueError(f"{name!r} holds numbers out of the range 0 to {most}")
    if offsets[0] != 0 or offsets[-1] != e or (np.diff(offsets) < 0).any():
        raise ValueError("'offsets' does not divide the moves")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("'weights' holds what is no importance weight")


def _read_json(path: Path) -> dict[str, Any]:
    _check_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise ValueError(f"{str(path)!r} is damaged: expected an object with a schema number")
    if content["schema"] > SCHEMA:
        raise ValueError(f"{str(path)!r} is of a newer version: upgrade awsgd-rl")
    return content


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {_line(error)}") from None
    if size > _MOST_BYTES:
        raise ValueError(
            f"{str(path)!r} has {size:,} bytes, expected at most {_MOST_BYTES:,}: "
            "it is not what a run records"
        )


def _count(about: object, name: str) -> int:
    value = about.get(name) if isinstance(about, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise ValueError(f"its {name!r} is {str(value)[:20]}, expected a count")
    return value


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value from a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
