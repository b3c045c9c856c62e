"""Maps of the trap gridworld: checked when given, made from a seed otherwise.

A map is written as FrozenLake writes it, one string a row: `S` start, `G` goal, `H` or `T` trap,
`F` or `.` free. Every map that leaves this module has one start and a way from it to a goal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

LETTERS = "SGHTF."
UNIFORM_TRIES = 64


@dataclass(frozen=True, eq=False)
class Layout:
    """A checked map; cells are numbered `row * columns + column`."""

    desc: tuple[str, ...]
    """One string of `S`, `G`, `H`, `F` for each row (`T` and `.` are written `H` and `F`)."""
    start: int
    """The cell in which every episode starts."""
    goal_cells: NDArray[np.int64]
    """[goals] cells, ascending."""
    trap_cells: NDArray[np.int64]
    """[traps] cells, ascending."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.desc)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.desc[0])


def integer(name: str, value: object, least: int) -> int:
    """Return `value` as an int of at least `least`.

    Raises:
        ValueError: `value` is not an integer, or is below `least`.
    """
    try:
        number = index(cast("SupportsIndex", value))
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool | np.bool_):
        raise ValueError(
            f"{name} is {value!r}, expected an integer of at least {least}: pass {name}={least} "
            "or more"
        )
    return number


def max_traps(rows: int, columns: int) -> int:
    """Return the largest number of traps that can leave a way from corner to opposite corner.

    The way needs `rows + columns - 1` cells at least, since the corners are `rows + columns - 2`
    moves apart, and a monotone one needs no more; every other cell may be a trap.
    """
    return rows * columns - (rows + columns - 1)


def random_layout(rows: int, columns: int, traps: int, seed: int) -> Layout:
    """Make a map from a seed: start top left, goal bottom right, a way between them.

    `traps` cells are drawn uniformly and the map is kept if it has a way, so that at the usual
    densities the map is uniform over all that have one. After 64 maps without a way (which starts
    to happen when a third of the cells are traps) a monotone way is drawn, uniformly among all of
    them, and the traps are drawn uniformly from the other cells. The same arguments give the same
    map on every machine; only `Generator.random` is used, the steadiest part of NumPy's streams.

    Args:
        rows: number of rows, 2 or more.
        columns: number of columns, 2 or more.
        traps: number of traps, 0 to `max_traps(rows, columns)`.
        seed: number of the map, 0 or more.

    Raises:
        ValueError: an argument is not an integer in its range.
    """
    rows = integer("rows", rows, 2)
    columns = integer("columns", columns, 2)
    traps = integer("traps", traps, 0)
    seed = integer("layout_seed", seed, 0)
    most = max_traps(rows, columns)
    if traps > most:
        raise ValueError(
            f"traps is {traps}, but a {rows}x{columns} grid has room for at most {most} that leave "
            f"a way from start to goal: pass traps={most} or fewer, or a larger size"
        )
    rng = np.random.default_rng(seed)
    inner = np.arange(1, rows * columns - 1)
    for _ in range(UNIFORM_TRIES):
        chosen = inner[np.argsort(rng.random(inner.size), kind="stable")[:traps]]
        free = np.ones(rows * columns, dtype=bool)
        free[chosen] = False
        if _has_way(free.reshape(rows, columns), 0, {rows * columns - 1}):
            return _layout(rows, columns, chosen)
    way = _monotone_way(rows, columns, rng)
    others = np.setdiff1d(inner, way)
    return _layout(
        rows, columns, others[np.argsort(rng.random(others.size), kind="stable")[:traps]]
    )


def parse_layout(desc: Sequence[str]) -> Layout:
    """Check a map given as strings, one a row.

    Args:
        desc: one string a row, of equal lengths, of the letters `S G H T F .`: exactly one `S`,
            one or more `G`, of which one or more can be reached from `S` without meeting a trap.

    Raises:
        ValueError: the map is empty or ragged, has an unknown letter, not exactly one start, no
            goal, or no goal that can be reached.
    """
    lines = _lines(desc)
    text = "".join(lines)
    columns = len(lines[0])
    starts = text.count("S")
    if starts != 1:
        raise ValueError(
            f"desc has {starts} starts, expected exactly one: mark one cell with the letter S"
        )
    if "G" not in text:
        raise ValueError("desc has no goal, expected one or more: mark a cell with the letter G")
    cells = np.array(list(text))
    start = text.index("S")
    goals = np.flatnonzero(cells == "G")
    traps = np.flatnonzero(cells == "H")
    free = (cells != "H").reshape(len(lines), columns)
    if not _has_way(free, start, set(goals.tolist())):
        raise ValueError(
            "desc has no way from the start to a goal, expected one or more: "
            "free some of the cells marked H or T"
        )
    return Layout(lines, start, goals, traps)


def _lines(desc: Sequence[str]) -> tuple[str, ...]:
    if isinstance(desc, str) or not all(isinstance(line, str) for line in desc):
        raise ValueError(
            f"desc is {desc!r}, expected one string a row: pass a list such as ['SF', 'HG']"
        )
    lines = tuple(line.replace("T", "H").replace(".", "F") for line in desc)
    lengths = sorted({len(line) for line in lines})
    if not lines or lengths[0] == 0:
        raise ValueError("desc is empty, expected one string or more: pass such as ['SF', 'HG']")
    if len(lengths) > 1:
        raise ValueError(
            f"desc has rows of {lengths} letters, expected one length: make all rows equally long"
        )
    unknown = sorted(set("".join(lines)) - set(LETTERS))
    if unknown:
        raise ValueError(
            f"desc has the unknown letters {unknown}, expected S (start), G (goal), H or T (trap) "
            "and F or . (free): replace them"
        )
    return lines


def _layout(rows: int, columns: int, traps: NDArray[np.int64]) -> Layout:
    cells = np.full(rows * columns, "F")
    cells[0], cells[-1], cells[traps] = "S", "G", "H"
    desc = tuple("".join(line) for line in cells.reshape(rows, columns).tolist())
    goal = np.array([rows * columns - 1], dtype=np.int64)
    return Layout(desc, 0, goal, np.sort(traps).astype(np.int64))


def _monotone_way(rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the cells of a way that only goes right and down, uniform among all of them."""
    steps = np.repeat([columns, 1], [rows - 1, columns - 1])
    order = np.argsort(rng.random(steps.size), kind="stable")
    return np.concatenate([[0], np.cumsum(steps[order])])


def _has_way(free: NDArray[np.bool_], start: int, goals: set[int]) -> bool:
    """Tell whether a walk over free cells leads from `start` to one of `goals`."""
    columns = free.shape[1]
    width = columns + 2
    # A border of walls saves the tests for the grid's edges.
    walls = np.pad(~free, 1, constant_values=True).ravel()
    seen = bytearray(walls.tobytes())
    targets = {(cell // columns + 1) * width + cell % columns + 1 for cell in goals}
    first = (start // columns + 1) * width + start % columns + 1
    seen[first] = 1
    frontier = deque([first])
    while frontier:
        cell = frontier.popleft()
        if cell in targets:
            return True
        for neighbour in (cell - 1, cell + width, cell + 1, cell - width):
            if not seen[neighbour]:
                seen[neighbour] = 1
                frontier.append(neighbour)
    return False
