"""`ClassProposal` compiled, for the CPU: a dozen tensor operations cost ten times that.

Apart from it, so that numba is imported by the first draw and not by `import awsgd_rl.proposals`.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def draw(
    tau: Floats, members: Ints, first: Ints, sizes: Ints, uniforms: Floats
) -> tuple[Ints, Floats]:
    """Draw a class by softmax(tau) and one of its items uniformly.

    Args:
        tau: [K].
        members: [N] the items, class after class.
        first: [K] where each class begins.
        sizes: [K] items of each class.
        uniforms: [2 B] numbers in [0, 1): of the classes, then of the places within.

    Returns:
        [B] items and [B] log probabilities.
    """
    count = len(uniforms) // 2
    items, log_q = np.empty(count, np.int64), np.empty(count)
    cumulative, log_density = np.empty(len(tau)), np.empty(len(tau))
    top, running, last = tau.max(), 0.0, 0
    for k in range(len(tau)):
        mass = np.exp(tau[k] - top)
        if running + mass > running:
            last = k
        running += mass
        cumulative[k] = running
    log_total = np.log(running)
    for k in range(len(tau)):
        log_density[k] = tau[k] - top - log_total - np.log(sizes[k])
    for b in range(count):
        # At most the last class that adds to the total: rounding may reach the total itself.
        label = min(np.searchsorted(cumulative, uniforms[b] * running, side="right"), last)
        within = min(int(uniforms[count + b] * sizes[label]), sizes[label] - 1)
        items[b] = members[first[label] + within]
        log_q[b] = log_density[label]
    return items, log_q


@_jit
def score_sum(tau: Floats, labels: Ints, items: Ints, c: Floats) -> Floats:
    """Compute `ClassProposal.score_sum`.

    Args:
        tau: [K].
        labels: [N] class of each item.
        items: [B].
        c: [B].

    Returns:
        [K] Σ_b c_b ∇_τ log q(x_b).
    """
    softmax = np.exp(tau - tau.max())
    softmax /= softmax.sum()
    sums, total = np.zeros(len(tau)), 0.0
    for b in range(len(items)):
        sums[labels[items[b]]] += c[b]
        total += c[b]
    made: Floats = sums - total * softmax
    return made
