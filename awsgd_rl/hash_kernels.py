"""Query and draw of `HashProposal` on the CPU, compiled: a loop in place of twenty tensors."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


# Sums in any order: the compiler then compares many codes at once.
@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def draw_items(
    uniforms: Array,
    shares: Array,
    starts: Array,
    sizes: Array,
    order: Array,
    codes: Array,
    query_codes: Array,
    densities: Array,
) -> tuple[Array, Array]:
    """Draw as the tensor form does from the same uniforms.

    Args:
      uniforms: [2 B] in [0, 1): for the tables, then for the places in their buckets.
      shares: [L + 1] running total of the tables' probabilities.
      starts: [L + 1] where buckets start in the order.
      sizes: [L + 1] of the buckets.
      order: [(L + 1) N] items.
      codes: [N, L].
      query_codes: [L].
      densities: [L + 1] what a hit in a table adds to q.

    Returns:
      [B] items and [B] log q.
    """
    count = len(uniforms) // 2
    tables = codes.shape[1]
    total = shares[-1]
    items = np.empty(count, np.int64)
    log_q = np.empty(count)
    last = np.searchsorted(shares, total)
    # Loops apart, so that the reads from all over memory overlap.
    for b in range(count):
        table = min(np.searchsorted(shares, uniforms[b] * total, side="right"), last)
        within = min(int(uniforms[count + b] * sizes[table]), sizes[table] - 1)
        items[b] = starts[table] + within
    for b in range(count):
        items[b] = order[items[b]]
    for b in range(count):
        q = densities[0]
        for t in range(tables):
            q += densities[t + 1] if codes[items[b], t] == query_codes[t] else 0.0
        log_q[b] = np.log(q)
    return items, log_q


@_jit
def look_up(
    codes: Array, first: Array, bits: int, n: int, uniform_share: float
) -> tuple[Array, Array, Array, Array]:
    """Find the query's buckets, as the tensor form does.

    Args:
      codes: [L] of the query; negative before the first.
      first: [L 2^K + 1] where buckets start.
      bits: K.
      n: N.
      uniform_share: u.

    Returns:
      [L + 1] each: starts, sizes, running shares and densities.
    """
    tables = len(codes)
    starts, sizes = np.zeros(tables + 1, np.int64), np.zeros(tables + 1, np.int64)
    shares, densities = np.zeros(tables + 1), np.zeros(tables + 1)
    sizes[0], full = n, 0
    for t in range(tables):
        if codes[t] >= 0:
            place = (t << bits) + codes[t]
            starts[t + 1] = first[place]
            sizes[t + 1] = first[place + 1] - first[place]
            full += sizes[t + 1] > 0
    shares[0] = uniform_share if full > 0 else 1.0
    densities[0] = shares[0] / n
    for t in range(1, tables + 1):
        shares[t] = shares[t - 1]
        if sizes[t] > 0:
            share = (1.0 - uniform_share) / full
            shares[t] += share
            densities[t] = share / sizes[t]
    return starts, sizes, shares, densities


@_jit
def write_codes(products: Array, symmetric: bool, codes: Array) -> None:
    """Write the codes of one vector, as `hash_tables.hash_vectors`.

    Args:
      products: [L K] inner products with the directions.
      symmetric: as there.
      codes: [L], written.
    """
    bits = len(products) // len(codes)
    for t in range(len(codes)):
        flip = symmetric and products[t * bits] > 0
        code = 0
        for k in range(bits):
            code |= ((products[t * bits + k] > 0) != flip) << k
        codes[t] = code
