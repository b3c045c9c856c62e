"""When a curve first comes to a value."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def first_reached(at: ArrayLike, curves: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Return where falling curves first come to a target, on straight lines between their points.

    Args:
        at: [K] steps, draws or seconds.
        curves: [..., K] values there; logarithms for straight lines on the log scale.
        target: [...] values to come to.

    Returns:
        [...] in the unit of `at`: its first entry where a curve starts at the target or below, and
        infinity where it does not come to it.
    """
    x, y, goal = (np.asarray(values, dtype=np.float64) for values in (at, curves, target))
    reached = y <= goal[..., None]
    k = np.asarray(reached.argmax(-1))
    previous = np.maximum(k - 1, 0)
    before = np.take_along_axis(y, previous[..., None], -1)[..., 0]
    after = np.take_along_axis(y, k[..., None], -1)[..., 0]
    share = np.clip((before - goal) / np.maximum(before - after, 1e-300), 0.0, 1.0)
    found = x[previous] + share * (x[k] - x[previous])
    return np.where(reached.any(-1), found, np.inf)
