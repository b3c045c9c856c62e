"""The compiled half of `sum_tree`: draws and writes on the CPU, level by level over the batch.

Apart from it, so that numba is imported by the first tree and not by `import awsgd_rl.proposals`.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from awsgd_rl.sum_tree import BITS, WIDTH

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_FIRST_TOUCHED = 4
"""Level from which nodes may be outside the caches."""
_LARGEST = float(np.finfo(np.float64).max)


@_jit
def draw(nodes: Floats, starts: Ints, uniforms: Floats) -> Ints:
    """Return the [B] items at `uniforms` [B] times the total; the layout is `SumTree`'s."""
    items = np.zeros(len(uniforms), np.int64)
    targets = uniforms * nodes[0]
    touched = 0.0
    for level in range(1, len(starts)):
        if level >= _FIRST_TOUCHED:
            # A loop with little in it: the processor then fetches many nodes at once, where the
            # one below would wait for one after the other.
            for b in range(len(items)):
                first = starts[level] + items[b] * WIDTH
                touched += nodes[first] + nodes[first + WIDTH // 2]
        for b in range(len(items)):
            first = starts[level] + items[b] * WIDTH
            target, running, before, child = targets[b], 0.0, 0.0, 0
            # No early end: a loop without branches is faster than half of one with.
            for k in range(WIDTH):
                running += nodes[first + k]
                if running <= target:
                    before = running
                    child = k + 1
            targets[b] = target - before
            if child == WIDTH:
                # Rounding, or a uniform number of 1: the last that adds something, here and below.
                before, child = 0.0, 0
                for k in range(WIDTH):
                    if before + nodes[first + k] > before:
                        before += nodes[first + k]
                        child = k
                targets[b] = np.inf
            items[b] = items[b] * WIDTH + child
    # Never so; without a use the first loop would be left out.
    return items if touched >= 0.0 else items[:0]


@_jit
def draw_mixture(
    nodes: Floats, starts: Ints, uniforms: Floats, share: float, filled: int
) -> tuple[Ints, Floats]:
    """Return [B] items and [B] log probabilities, as `SumTree.draw_mixture`."""
    total = nodes[0]
    if total == 0.0:
        share, total = 1.0, 1.0
    places = np.empty(len(uniforms))
    for b in range(len(uniforms)):
        u = uniforms[b]
        places[b] = u / share if u < share else (u - share) / (1.0 - share)
    items = draw(nodes, starts, places)
    log_q = np.empty(len(uniforms))
    for b in range(len(uniforms)):
        if uniforms[b] < share:
            items[b] = min(int(places[b] * filled), filled - 1)
        mass = nodes[starts[-1] + items[b]]
        log_q[b] = np.log(mass / total * (1.0 - share) + share / filled)
    return items, log_q


@_jit
def are_writes(n: int, largest: float, items: Ints, scores: Floats) -> bool:
    """Return whether `items` [B] lie in 0 ... n - 1 and `scores` [B] in 0 ... largest."""
    good = True
    for b in range(len(items)):
        good &= (0 <= items[b] < n) & (0.0 <= scores[b] <= largest)
    return good


@_jit
def _sum_of_children(nodes: Floats, first: int) -> float:
    # Four running sums: additions that do not wait for each other. `sum_tree._row_sums` adds alike.
    a = b = c = d = 0.0
    for k in range(first, first + WIDTH, 4):
        a += nodes[k]
        b += nodes[k + 1]
        c += nodes[k + 2]
        d += nodes[k + 3]
    return (a + c) + (b + d)


@_jit
def write(nodes: Floats, starts: Ints, n: int, items: Ints, scores: Floats) -> bool:
    """Write `scores` [B] at `items` [B]; False, and nothing written, if one is out of range."""
    if not are_writes(n, _LARGEST, items, scores):
        return False
    for b in range(len(items)):
        nodes[starts[-1] + items[b]] = scores[b]
    end, shift = len(nodes), 0
    for level in range(len(starts) - 2, -1, -1):
        start, below = starts[level], starts[level + 1]
        shift += BITS
        size = (end - below) // WIDTH
        if size <= len(items):
            for node in range(size):
                nodes[start + node] = _sum_of_children(nodes, below + node * WIDTH)
        else:
            for b in range(len(items)):
                node = items[b] >> shift
                nodes[start + node] = _sum_of_children(nodes, below + node * WIDTH)
        end = below
    return True
