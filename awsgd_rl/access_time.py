"""Storage part of which is slow, and the clocks that its accesses are timed with.

A clock is a function that returns seconds: `time.perf_counter` for real storage, a `SimulatedClock`
for storage that only pretends.
"""

import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Clock", "CompressedRows", "SimulatedClock", "SimulatedStorage", "Storage"]

Clock = Callable[[], float]


class Storage(Protocol):
    """A matrix whose entries are read one at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""

    def read(self, row: int, column: int) -> float:
        """Return an entry, which may take long."""


class SimulatedClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds that have passed."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


class SimulatedStorage:
    """A matrix in memory whose accesses take simulated time, a number for each row.

    Args:
        matrix: [n, m].
        row_seconds: [n] positive time to access an entry of each row.
        clock: what an access advances.

    Raises:
        ValueError: a shape does not fit, or a time is not positive and finite.
    """

    def __init__(self, matrix: ArrayLike, row_seconds: ArrayLike, clock: SimulatedClock) -> None:
        self.matrix = np.asarray(matrix, np.float32)
        if self.matrix.ndim != 2:
            raise ValueError(f"matrix has shape {list(self.matrix.shape)}, expected [n, m]")
        self.row_seconds = check_seconds(row_seconds, len(self.matrix))
        self.clock = clock

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def read(self, row: int, column: int) -> float:
        """Return an entry, and let its time pass."""
        self.clock.advance(float(self.row_seconds[row]))
        return float(self.matrix[row, column])


class CompressedRows:
    """A matrix with some rows in memory and the others compressed, decoded at every access.

    Nothing waits or sleeps: the slow rows cost real work, as images or tables on a disk do.

    Args:
        matrix: [n, m], kept in float32.
        slow: [n] bool, which rows are compressed, `per_block` at a time.
        per_block: slow rows that are compressed, and so decoded, together: the more, the slower.

    Raises:
        ValueError: a shape does not fit, or per_block is below 1.
    """

    def __init__(self, matrix: ArrayLike, slow: ArrayLike, *, per_block: int = 1) -> None:
        values = np.ascontiguousarray(matrix, np.float32)
        chosen = np.asarray(slow, bool)
        if values.ndim != 2 or chosen.shape != values.shape[:1] or per_block < 1:
            raise ValueError(
                f"matrix has shape {list(values.shape)}, slow {list(chosen.shape)} and per_block "
                f"is {per_block}, expected [n, m], [n] and at least 1"
            )
        self._shape = values.shape[0], values.shape[1]
        self._rows = np.where(chosen[:, None], np.float32(np.nan), values)
        numbers = np.flatnonzero(chosen)
        self._place: dict[int, int] = {int(row): k for k, row in enumerate(numbers)}
        self._per_block = per_block
        self._blocks = [
            zlib.compress(values[numbers[k : k + per_block]].tobytes())
            for k in range(0, len(numbers), per_block)
        ]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self._shape

    def read(self, row: int, column: int) -> float:
        """Return an entry, decoding the block of its row if it is a slow one."""
        place = self._place.get(row)
        if place is None:
            return float(self._rows[row, column])
        block = np.frombuffer(zlib.decompress(self._blocks[place // self._per_block]), np.float32)
        return float(block[place % self._per_block * self._shape[1] + column])


def check_seconds(row_seconds: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return access times as [n] float64.

    Raises:
        ValueError: another shape, or a time that is not positive and finite.
    """
    seconds = np.asarray(row_seconds, np.float64)
    if seconds.shape != (n,):
        raise ValueError(f"row_seconds has shape {list(seconds.shape)}, expected [{n}]: one a row")
    bad = np.flatnonzero(~((seconds > 0.0) & np.isfinite(seconds)))
    if len(bad):
        raise ValueError(
            f"row_seconds[{bad[0]}] is {seconds[bad[0]]}, expected positive, finite seconds"
        )
    return seconds
