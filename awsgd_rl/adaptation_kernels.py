"""The compiled step of `ScoreFunctionAdaptation`, for the CPU: thirty tensor operations cost more.

Apart from it, so that numba is imported by the first step and not by `import awsgd_rl.adaptation`.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_TINY = np.finfo(np.float64).tiny


@_jit
def coefficients(
    log_p: Floats,
    log_q: Floats,
    signal: Floats,
    cost: Floats,
    centre: bool,
    scale: tuple[float, float, float],
) -> tuple[Floats, float, float]:
    """Compute c_b of `score_function_coefficients` from what a draw and its signal are.

    Args:
        log_p: [B] log density under the target.
        log_q: [B] log density when drawn.
        signal: [B] norm of each item's gradient.
        cost: [B] access times, or empty.
        centre: subtract from each the mean of the others.
        scale: total, weight and decay of the running scale; a negative decay is none.

    Returns:
        [B] c, and the new total and weight of the scale. Where a number is to be refused, c is
        empty and the others are as they were.
    """
    count = len(signal)
    squares, mean = np.empty(count), 0.0
    for b in range(count):
        norm = np.exp(log_p[b] - log_q[b]) * signal[b]
        square = norm * norm
        # Written so that a NaN is refused too.
        if not (signal[b] >= 0.0 and square < np.inf):
            return squares[:0], scale[0], scale[1]
        if len(cost) > 0:
            if not cost[b] > 0.0:
                return squares[:0], scale[0], scale[1]
            square /= cost[b]
        squares[b] = square
        mean += square / count
    total, weight, divisor = scale[0], scale[1], 1.0
    if scale[2] >= 0.0:
        total, weight = scale[2] * total + mean, scale[2] * weight + 1.0
        divisor = max(total / weight, _TINY)
    for b in range(count):
        others = (mean * count - squares[b]) / max(count - 1, 1) if centre else 0.0
        squares[b] = (squares[b] - others) / divisor
    return squares, total, weight
