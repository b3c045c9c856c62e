"""Weights compiled, for the CPU: at a few hundred draws a few tensor operations cost more.

Apart from them, so that numba is imported when weights are made, and not with `awsgd_rl.weights`.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def annealed(log_q: Floats, n: int, beta: float, by_max: bool, by_mean: bool) -> Floats:
    """Compute (n q)^−β, divided by its largest or its mean.

    Args:
        log_q: [B] log probabilities.
        n: number of items with mass.
        beta: the exponent.
        by_max: divide by the largest.
        by_mean: divide by the mean; then not by the largest.

    Returns:
        [B].
    """
    weights, log_n = np.empty(len(log_q)), np.log(float(n))
    largest = -np.inf
    for b in range(len(log_q)):
        weights[b] = -beta * (log_q[b] + log_n)
        # A NaN stays, as in a tensor's maximum: nothing is larger.
        if weights[b] > largest or np.isnan(weights[b]):
            largest = weights[b]
    shift = largest if by_max or by_mean else 0.0
    total = 0.0
    for b in range(len(log_q)):
        weights[b] = np.exp(weights[b] - shift)
        total += weights[b]
    if by_mean:
        for b in range(len(log_q)):
            weights[b] /= total / len(log_q)
    return weights
