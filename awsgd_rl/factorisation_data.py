"""What the compiled loops of `factorisation` learn from, checked and laid out for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.factorisation_kernels import Entries
from awsgd_rl.ratings import Ratings

Singles = NDArray[np.float32]


def padded(rank: int) -> int:
    """Return the length of rows in memory: whole vector registers make a step twice as fast."""
    lanes = 8 if rank <= 16 else 32
    return -(-rank // lanes) * lanes


def check_matrix(data: Any) -> Singles:
    """Return a dense matrix as [n, m] float32.

    Raises:
        ValueError: another shape, empty, or an entry that is not finite, with its place.
    """
    matrix = np.ascontiguousarray(data, np.float32)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"matrix has shape {list(matrix.shape)}, expected [n, m], not empty")
    # The sum of a million numbers is finite only if all of them are, and much faster to look at.
    if not np.isfinite(matrix.sum(dtype=np.float64)):
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(
            f"matrix[{i}, {j}] is {matrix[i, j]}, expected finite numbers: "
            "Ratings.from_matrix takes NaN for a missing entry"
        )
    return matrix


def sorted_entries(ratings: Ratings) -> Entries:
    """Return observed entries in the order that the compiled loop draws from."""
    n, m = ratings.shape
    order = np.lexsort((ratings.column, ratings.row))
    row, column = ratings.row[order], ratings.column[order]
    return Entries(
        row.astype(np.uint32),
        column.astype(np.uint32),
        ratings.value[order],
        np.searchsorted(row, np.arange(n + 1)),
        np.argsort(column, kind="stable"),
        np.concatenate(([0], np.bincount(column, minlength=m).cumsum())),
    )
