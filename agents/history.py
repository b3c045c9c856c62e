"""What was measured while an agent learned, one entry a batch: bounded, however long it learns."""

from collections.abc import Mapping
from typing import Final

import numpy as np

History = dict[str, list[float]]
"""One entry a batch under each name: episodes, timesteps, success, return, ess, max_weight,
variance_ratio, headroom, updates. Of a very long training neighbours are one entry: `record`."""

MOST_ENTRIES: Final = 2**15
"""About 10 MB."""

_LAST: Final = ("episodes", "timesteps")
_SUM: Final = ("updates",)
_LARGEST: Final = ("max_weight",)


def record(history: History, row: Mapping[str, float]) -> None:
    """Append one batch's measurements; at `MOST_ENTRIES` every two neighbours become one entry.

    Args:
        history: the columns, all of one length; changed in place.
        row: one number for each column. `episodes` and `timesteps` count from the start.
    """
    for name, value in row.items():
        history.setdefault(name, []).append(float(value))
    if len(history["episodes"]) >= MOST_ENTRIES:
        _halve(history)


def _halve(history: History) -> None:
    ends = np.array(history["episodes"])
    if odd := len(ends) % 2:  # the newest stays as it is
        ends = ends[:-1]
    shares = np.diff(ends, prepend=0.0).reshape(-1, 2)
    for name, column in history.items():
        pairs = np.array(column[: len(ends)]).reshape(-1, 2)
        if name in _LAST:
            merged = pairs[:, 1]
        elif name in _SUM:
            merged = pairs.sum(1)
        elif name in _LARGEST:
            merged = np.fmax(pairs[:, 0], pairs[:, 1])
        else:  # a mean over the episodes for which it is known
            known = np.where(np.isnan(pairs), 0.0, shares)
            total = known.sum(1)
            sums = (known * np.nan_to_num(pairs)).sum(1)
            merged = np.divide(sums, total, out=np.full(len(pairs), np.nan), where=total > 0)
        column[:] = [*merged.tolist(), *column[-odd:][:odd]]
