"""The compiled half of the replay buffer on the CPU: rows, links, returns and priorities.

Rows are bytes, whatever they hold: one compiled loop serves all spaces.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from awsgd_rl.sum_tree import BITS, WIDTH
from awsgd_rl.sum_tree_kernels import Floats, Ints, write

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Links = NDArray[np.int32]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def first_outside(values: NDArray[Any], low: float, high: float) -> int:
    """Return the position of the first of `values` [n] that is not in low ... high, or −1."""
    for i in range(len(values)):
        if not low <= values[i] <= high:
            return i
    return -1


@_jit
def _are_same(kept: Bytes, row: Bytes) -> bool:
    """Return whether `row` begins with `kept`."""
    # No early end: most are the same, and a loop without branches compares many bytes at once.
    difference = 0
    for k in range(len(kept)):
        difference |= kept[k] ^ row[k]
    return difference == 0


@_jit
def link(
    links: Links,
    newest: Ints,
    free: Links,
    free_count: int,
    added: int,
    kept: Bytes,
    rows: Bytes,
    ended: Bools,
    valid: Bools,
) -> tuple[Ints, Ints, Ints, int]:
    """Find places for a row of transitions, and link them: see `TransitionRing`.

    Args:
      links: [N] of the ring; changed.
      newest: [E] the slot of each environment's newest transition that may be followed, or −1.
      free: places aside that are free: the first `free_count`.
      free_count: how many.
      added: number of transitions added before.
      kept: [≥ E, A] the next observation of each environment's newest transition.
      rows: [E, ≥ A] transitions to add, beginning with their observations.
      ended: [E] whether the episode ends with it.
      valid: [E] which to add.

    Returns:
      [E] slots (−1: none); [E] where their next observations go aside (−1: nowhere); [E] where
      what was kept must be moved before (−1: nowhere); the new `free_count`.
    """
    n, capacity = len(valid), len(links)
    slots, places, moves = np.full(n, -1), np.full(n, -1), np.full(n, -1)
    count = 0
    for e in range(n):
        if valid[e]:
            slots[e] = (added + count) % capacity
            count += 1
            old = -1 - links[slots[e]]
            if old >= n:
                free[free_count] = old
                free_count += 1
    for e in range(n):
        before = newest[e]
        newest[e] = -1
        # An environment that was idle for a whole round is overwritten by the others.
        if before >= 0 and (before - added) % capacity >= count:
            if valid[e] and _are_same(kept[e], rows[e]):
                links[before] = slots[e]
            else:
                free_count -= 1
                moves[e] = free[free_count]
                links[before] = -1 - moves[e]
        if not valid[e]:
            continue
        if ended[e]:
            free_count -= 1
            places[e] = free[free_count]
        else:
            places[e] = e
            newest[e] = slots[e]
        links[slots[e]] = -1 - places[e]
    return slots, places, moves, free_count


@_jit
def _copy(source: Bytes, begin: int, target: Bytes, to: int, width: int) -> None:
    """Copy `width` bytes."""
    # Slices and a plain loop: what compilers turn into copies of whole registers.
    given, taken = source[begin : begin + width], target[to : to + width]
    for k in range(width):
        taken[k] = given[k]


@_jit
def put_rows(target: Bytes, rows: Bytes, to: Ints) -> None:
    """Copy `rows` [n, W] to the rows `to` [n] of `target`, but for those at −1."""
    for i in range(len(to)):
        if to[i] >= 0:
            _copy(rows[i], 0, target[to[i]], 0, rows.shape[1])


@_jit
def store(
    memory: Bytes,
    aside: Bytes,
    links: Links,
    rows: Bytes,
    next_rows: Bytes,
    slots: Ints,
    places: Ints,
    moves: Ints,
) -> None:
    """Write a row that `link` found places for, and its links again, which lie in the memory."""
    put_rows(aside, aside[: len(moves)], moves)
    put_rows(aside, next_rows, places)
    put_rows(memory, rows, slots)
    for e in range(len(slots)):
        if slots[e] >= 0:
            links[slots[e]] = -1 - places[e]


@_jit
def read(
    memory: Bytes,
    aside: Bytes,
    links: Links,
    rewards: NDArray[np.float32],
    terminated: Bools,
    slots: Ints,
    n_step: int,
    discount: float,
    begins: Ints,
    widths: Ints,
    next_fields: int,
    sums: NDArray[np.float32],
    discounts: NDArray[np.float32],
    out: Bytes,
    out_begins: Ints,
) -> int:
    """Gather transitions: returns and discounts [B] each, and their fields' bytes.

    Field f of the rows, `widths[f]` bytes from `begins[f]`, goes into the block of `out` from
    `out_begins[f]`. The first `next_fields` fields are the observation: those of the following
    observation go into the blocks after all others.

    Returns:
      A number without meaning, so that what touches memory early is not left out.
    """
    row, aside_row = memory.shape[1], aside.shape[1]
    flat, flat_aside = memory.reshape(-1), aside.reshape(-1)
    # Loops with little in them, before those with more: the processor then fetches many rows at
    # once, where it would wait for one after the other.
    touched = 0
    for b in range(len(slots)):
        touched += memory[slots[b], 0] + memory[slots[b], row - 1]
    following = np.empty(len(slots), np.int64)
    for b in range(len(slots)):
        slot = slots[b]
        total, factor = float(rewards[slot]), discount
        for _ in range(n_step - 1):
            if links[slot] < 0:
                break
            slot = links[slot]
            total += factor * rewards[slot]
            factor *= discount
        sums[b] = total
        discounts[b] = 0.0 if terminated[slot] else factor
        following[b] = links[slot]
    for b in range(len(slots)):
        slot = max(following[b], 0)
        touched += memory[slot, 0] + memory[slot, aside_row - 1]
    for f in range(len(begins)):
        begin, width, to = begins[f], widths[f], out_begins[f]
        for b in range(len(slots)):
            _copy(flat, slots[b] * row + begin, out, to + b * width, width)
    for f in range(next_fields):
        begin, width, to = begins[f], widths[f], out_begins[len(begins) + f]
        for b in range(len(slots)):
            if following[b] >= 0:
                _copy(flat, following[b] * row + begin, out, to + b * width, width)
            else:
                place = -1 - following[b]
                _copy(flat_aside, place * aside_row + begin, out, to + b * width, width)
    return touched


@_jit
def raise_maxima(nodes: Floats, starts: Ints, maxima: Floats, items: Ints) -> None:
    """Put the largest score under each node right, where the scores of `items` have changed.

    `maxima` lies as the levels of `nodes` above the scores do.
    """
    leaves = len(starts) - 1
    for b in range(len(items)):
        child = items[b]
        for level in range(leaves - 1, -1, -1):
            child >>= BITS
            first = starts[level + 1] + child * WIDTH
            below = nodes if level + 1 == leaves else maxima
            largest = 0.0
            for k in range(first, first + WIDTH):
                largest = max(largest, below[k])
            if maxima[starts[level] + child] == largest:
                # What is above is right for it, or is put right from a sibling that has changed.
                break
            maxima[starts[level] + child] = largest


@_jit
def enter_at_maximum(
    nodes: Floats, starts: Ints, maxima: Floats, n: int, items: Ints, initial: float
) -> None:
    """Write the largest of all other scores, or `initial` where there is none, at `items`."""
    for b in range(len(items)):
        nodes[starts[-1] + items[b]] = 0.0
    raise_maxima(nodes, starts, maxima, items)
    scores = np.full(len(items), maxima[0] if maxima[0] > 0.0 else initial)
    write(nodes, starts, n, items, scores)
    raise_maxima(nodes, starts, maxima, items)


@_jit
def update(
    nodes: Floats,
    starts: Ints,
    maxima: Floats,
    n: int,
    items: Ints,
    signal: NDArray[Any],
    epsilon: float,
    alpha: float,
    bounds: tuple[float, float],
    stamp: int,
    added: int,
) -> int:
    """Write (|signal| + epsilon)^alpha at those of `items` that are as they were at `stamp`.

    Returns:
      −1; or the position of the first draw whose item is not one of the filled ones, or whose
      priority is not within `bounds`; nothing is written then.
    """
    count = 0
    kept, scores = np.empty(len(items), np.int64), np.empty(len(items))
    for b in range(len(items)):
        priority = abs(float(signal[b])) + epsilon
        if not (bounds[0] <= priority <= bounds[1] and 0 <= items[b] < min(n, added)):
            return b
        if (items[b] - stamp) % n >= added - stamp:
            kept[count] = items[b]
            scores[count] = priority**alpha
            count += 1
    write(nodes, starts, n, kept[:count], scores[:count])
    raise_maxima(nodes, starts, maxima, kept[:count])
    return -1
