"""A matrix with missing entries: (user, item, rating) triples, of a file or of arrays."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Ratings", "read_ratings"]


@dataclass(frozen=True)
class Ratings:
    """E observed entries of an n × m matrix, each pair at most once. Make it with `of`."""

    shape: tuple[int, int]
    """Numbers of rows (users) and columns (items)."""
    row: NDArray[np.int64]
    """[E]"""
    column: NDArray[np.int64]
    """[E]"""
    value: NDArray[np.float32]
    """[E]"""
    users: tuple[str, ...] = ()
    """[n] names of the rows, if there are any."""
    items: tuple[str, ...] = ()
    """[m] names of the columns, if there are any."""

    def __len__(self) -> int:
        return len(self.value)

    @staticmethod
    def of(
        row: ArrayLike,
        column: ArrayLike,
        value: ArrayLike,
        shape: tuple[int, int] | None = None,
        *,
        users: tuple[str, ...] = (),
        items: tuple[str, ...] = (),
    ) -> "Ratings":
        """Check triples and keep them.

        Args:
            row: [E] integers, from 0.
            column: [E] integers, from 0.
            value: [E] finite.
            shape: numbers of rows and columns. Default: what the triples need.
            users: names of the rows.
            items: names of the columns.

        Raises:
            ValueError: no triples, arrays that do not fit, an index out of range, a value that is
                not finite, or a pair that occurs twice; with the index at fault.
        """
        rows, columns = np.asarray(row), np.asarray(column)
        values = np.asarray(value, np.float32)
        if values.ndim != 1 or len(values) == 0 or rows.shape != values.shape != ():
            raise ValueError(
                f"row and value have shapes {list(rows.shape)} and {list(values.shape)}, "
                "expected [E] each, E of at least 1"
            )
        if columns.shape != values.shape:
            raise ValueError(
                f"column has shape {list(columns.shape)}, expected {list(values.shape)}"
            )
        for name, index, size in (
            ("row", rows, None if shape is None else shape[0]),
            ("column", columns, None if shape is None else shape[1]),
        ):
            if index.dtype.kind not in "iu":
                raise ValueError(f"{name} has type {index.dtype}, expected integers from 0")
            bad = np.flatnonzero((index < 0) | (index >= (np.inf if size is None else size)))
            if len(bad):
                end = "" if size is None else f" to {size - 1}"
                raise ValueError(f"{name}[{bad[0]}] is {index[bad[0]]}, expected 0{end}")
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"value[{bad[0]}] is {values[bad[0]]}, expected a finite number")
        if shape is None:
            shape = int(rows.max()) + 1, int(columns.max()) + 1
        rows, columns = rows.astype(np.int64), columns.astype(np.int64)
        twice = _first_repeat(rows * shape[1] + columns)
        if twice is not None:
            raise ValueError(
                f"entries {twice[0]} and {twice[1]} are both row {rows[twice[0]]}, column "
                f"{columns[twice[0]]}, expected each pair once: leave one out, or average them"
            )
        return Ratings(shape, rows, columns, values, users, items)

    @staticmethod
    def from_matrix(matrix: ArrayLike) -> "Ratings":
        """Take the entries of an [n, m] matrix that are not NaN.

        Raises:
            ValueError: as `of`, or the matrix has another number of axes.
        """
        values = np.asarray(matrix, np.float32)
        if values.ndim != 2:
            raise ValueError(f"matrix has shape {list(values.shape)}, expected [n, m]")
        row, column = np.nonzero(~np.isnan(values))
        return Ratings.of(row, column, values[row, column], (values.shape[0], values.shape[1]))


def read_ratings(path: str | Path, *, header: bool | None = None) -> Ratings:
    """Read a file of `user item rating`, separated by commas, tabs, `::` or semicolons.

    Users and items may be any text; they are numbered in the order in which they come. Columns
    after the third (a time, for one) are not read. MovieLens files are read as they are.

    Args:
        path: the file, UTF-8.
        header: whether the first line names the columns. Default: if its third entry is no number.

    Raises:
        ValueError: the file is missing or empty, or a row has fewer than three entries, an empty
            name, a rating that is no finite number, or a pair that an earlier row has; with the
            number of the row, from 1 at the top of the file.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name!r} cannot be read, expected a text file: {error}") from error
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    at: dict[tuple[int, int], int] = {}
    values: list[float] = []
    lines = text.splitlines()
    separator = _separator(next((line for line in lines if line.strip()), ""))
    reader = csv.reader((line.replace("::", "\t") for line in lines), delimiter=separator)
    for number, cells in enumerate(reader, start=1):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        where = f"{file.name!r}, row {number}"
        if len(cells) < 3 or not cells[0] or not cells[1]:
            raise ValueError(f"{where}: got {cells}, expected user, item and rating")
        value = _number(cells[2])
        if value is None or not math.isfinite(value):
            if number == 1 and value is None and header is not False:
                continue
            raise ValueError(f"{where}: the rating is {cells[2]!r}, expected a finite number")
        if number == 1 and header:
            continue
        pair = users.setdefault(cells[0], len(users)), items.setdefault(cells[1], len(items))
        if pair in at:
            raise ValueError(
                f"{where}: user {cells[0]!r} rates item {cells[1]!r} again, after row {at[pair]}: "
                "leave one of the two out"
            )
        at[pair] = number
        values.append(value)
    if not values:
        raise ValueError(f"{file.name!r} has no ratings, expected rows of user, item and rating")
    row, column = np.array(list(at), np.int64).T
    return Ratings.of(row, column, values, users=tuple(users), items=tuple(items))


def _separator(line: str) -> str:
    if "\t" in line or "::" in line:
        return "\t"
    return ";" if ";" in line else ","


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _first_repeat(keys: NDArray[np.int64]) -> tuple[int, int] | None:
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(same) == 0:
        return None
    return int(order[same[0]]), int(order[same[0] + 1])
