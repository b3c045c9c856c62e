"""Signals compiled, for the CPU, where a dozen tensor operations cost ten times as much.

Apart from them, so that numba is imported by the first signal and not by `import awsgd_rl.signals`.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def binary_cross_entropy(logits: Any, labels: Any) -> NDArray[np.float64]:
    """Compute |ς(z) − y|.

    Args:
        logits: [B] z, of any type.
        labels: [B] y, of any type.

    Returns:
        [B]; empty where an entry is to be refused.
    """
    norms = np.empty(len(logits))
    for b in range(len(logits)):
        # 1 for y = 0 and −1 for y = 1: ς(−z) is what 1 − ς(z) loses to rounding.
        sign = 1.0 - 2.0 * labels[b]
        margin = sign * logits[b]
        if not (abs(sign) == 1.0 and abs(margin) < np.inf):
            return norms[:0]
        norms[b] = 1.0 / (1.0 + np.exp(-margin))
    return norms
