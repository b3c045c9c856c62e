"""Softmax table policies and compressed trajectories: probabilities, gradients and steps.

A trajectory is kept as one row per *visited state*, with the visits of each action and their
returns: all that probabilities and gradients of a table policy depend on. The kernels cost O(rows),
never [episodes × parameters].
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

COUNT, DISCOUNTED, RETURNS, MOVES = 0, 1, 2, 3
"""The last axis of `Rows.sums`."""


class Rows(NamedTuple):
    """Trajectories in compressed form. N trajectories, R rows in all, A actions.

    Attributes:
        first: [N] each trajectory's first row.
        size: [N] its number of rows (states visited).
        state: [R] the state of each row.
        sums: [R, A, 3] over the visits of each state and action: how many (`COUNT`), the sum of
            discount^t (`DISCOUNTED`), the sum of discount^t G_t (`RETURNS`). Side by side, as they
            are used together. Where moves slip [R, A, 7]: then how often each direction followed
            (`MOVES` and on).
    """

    first: Ints
    size: Ints
    state: NDArray[np.int32]
    sums: Floats


class Table(NamedTuple):
    """A softmax table policy and what is derived from its log-odds, kept up to date row by row.

    Attributes:
        logits: [S, A] log-odds.
        probability: [S, A] softmax of each row.
        log_probability: [S, A] its logarithm.
        cumulative: [S, A] running sums, for drawing; the last one never below 1.
    """

    logits: Floats
    probability: Floats
    log_probability: Floats
    cumulative: Floats


@_jit
def _refresh_row(table: Table, s: int) -> None:
    logits, probability, log_probability, cumulative = table
    n_actions = logits.shape[1]
    top = logits[s, 0]
    for a in range(1, n_actions):
        top = max(top, logits[s, a])
    total = 0.0
    for a in range(n_actions):
        probability[s, a] = np.exp(logits[s, a] - top)
        total += probability[s, a]
    log_total = np.log(total)
    running = 0.0
    last = 0
    for a in range(n_actions):
        probability[s, a] /= total
        log_probability[s, a] = logits[s, a] - top - log_total
        running += probability[s, a]
        cumulative[s, a] = running
        if probability[s, a] > 0.0:
            last = a
    # Rounding may leave the sum below 1: without this, an action of probability 0 could be drawn.
    for a in range(last, n_actions):
        cumulative[s, a] = np.inf


@_jit
def refresh(table: Table) -> None:
    """Derive everything of `table` anew from its log-odds."""
    for s in range(table.logits.shape[0]):
        _refresh_row(table, s)


def make_table(logits: Floats) -> Table:
    """Return a table policy with a copy of `logits` [S, A]."""
    logits = np.array(logits, dtype=np.float64, order="C")
    table = Table(logits, np.empty_like(logits), np.empty_like(logits), np.empty_like(logits))
    refresh(table)
    return table


@_jit
def copy_rows(source: Rows, which: Ints, into: Rows, slots: Ints, base: int) -> None:
    """Copy trajectories `which` [B] of `source` to `slots` [B] of `into`, rows from `base` on."""
    for b in range(which.shape[0]):
        i, slot = which[b], slots[b]
        into.first[slot] = base
        into.size[slot] = source.size[i]
        for row in range(source.first[i], source.first[i] + source.size[i]):
            into.state[base] = source.state[row]
            into.sums[base] = source.sums[row]
            base += 1


@_jit
def log_probability(rows: Rows, which: Ints, table: Table) -> Floats:
    """Return [B] sum_t log p(a_t | s_t) of the trajectories `which` [B] under `table`."""
    first, size, state, sums = rows
    log_p = table.log_probability
    out = np.zeros(which.shape[0])
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            for a in range(log_p.shape[1]):
                # 0 visits times -inf (an underflown probability) must stay 0.
                if sums[row, a, COUNT] > 0.0:
                    out[b] += sums[row, a, COUNT] * log_p[state[row], a]
    return out


@_jit
def gradient_norms(rows: Rows, which: Ints, table: Table, values: Floats) -> Floats:
    """Return [B] norms of each trajectory's gradient of the target policy.

    The gradient of trajectory b with respect to the log-odds is
    sum_t discount^t (G_t - values[s_t]) grad log p(a_t | s_t): REINFORCE with state values.
    """
    first, size, state, sums = rows
    n_actions = table.logits.shape[1]
    advantage = np.empty(n_actions)
    out = np.empty(which.shape[0])
    for b in range(which.shape[0]):
        i = which[b]
        squared = 0.0
        for row in range(first[i], first[i] + size[i]):
            s = state[row]
            total = 0.0
            for a in range(n_actions):
                advantage[a] = sums[row, a, RETURNS] - sums[row, a, DISCOUNTED] * values[s]
                total += advantage[a]
            for a in range(n_actions):
                squared += (advantage[a] - total * table.probability[s, a]) ** 2
        out[b] = np.sqrt(squared)
    return out


@_jit
def add_gradients(
    rows: Rows, which: Ints, weights: Floats, target: Table, values: Floats, scratch: Floats
) -> Ints:
    """Add sum_b weights[b] g_b to `scratch` [S, A] and return the states it touched.

    `g_b` is the gradient of `gradient_norms`. Only the rows of the returned states are written
    (their last column marks them); the caller applies them and sets them back to zero (`apply`,
    `clear`), so that a step never costs O(S).
    """
    first, size, state, sums = rows
    n_actions = target.logits.shape[1]
    room = 0
    for b in range(which.shape[0]):
        room += size[which[b]]
    touched = np.empty(min(room, scratch.shape[0]), np.int64)
    n_touched = 0
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            s = state[row]
            if scratch[s, n_actions] == 0.0:
                scratch[s, n_actions] = 1.0
                touched[n_touched] = s
                n_touched += 1
            total = 0.0
            for a in range(n_actions):
                advantage = weights[b] * (
                    sums[row, a, RETURNS] - sums[row, a, DISCOUNTED] * values[s]
                )
                scratch[s, a] += advantage
                total += advantage
            for a in range(n_actions):
                scratch[s, a] -= total * target.probability[s, a]
    return touched[:n_touched]


@_jit
def add_log_gradients(
    rows: Rows, which: Ints, weights: Floats, table: Table, scratch: Floats
) -> Ints:
    """Add sum_b weights[b] sum_t grad log p(a_t | s_t) to `scratch`, else as `add_gradients`."""
    first, size, state, sums = rows
    n_actions = table.logits.shape[1]
    room = 0
    for b in range(which.shape[0]):
        room += size[which[b]]
    touched = np.empty(min(room, scratch.shape[0]), np.int64)
    n_touched = 0
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            s = state[row]
            if scratch[s, n_actions] == 0.0:
                scratch[s, n_actions] = 1.0
                touched[n_touched] = s
                n_touched += 1
            visits = 0.0
            for a in range(n_actions):
                scratch[s, a] += weights[b] * sums[row, a, COUNT]
                visits += sums[row, a, COUNT]
            for a in range(n_actions):
                scratch[s, a] -= weights[b] * visits * table.probability[s, a]
    return touched[:n_touched]


@_jit
def apply(table: Table, touched: Ints, scratch: Floats, step: float) -> None:
    """Add step * scratch to the log-odds of the touched states and refresh these rows."""
    for s in touched:
        for a in range(table.logits.shape[1]):
            table.logits[s, a] += step * scratch[s, a]
        _refresh_row(table, s)


@_jit
def clear(touched: Ints, scratch: Floats) -> None:
    """Set the touched rows of `scratch` back to zero."""
    for s in touched:
        scratch[s, :] = 0.0


@_jit
def fit_values(rows: Rows, which: Ints, weights: Floats, values: Floats, rate: float) -> None:
    """Move each visited state's value towards the mean return seen from it.

    The mean is over all visits in the batch, weighted by discount^t and by the trajectory's weight;
    the step is `rate` of the way for each visit, 1 - (1 - rate)^visits in all.
    """
    first, size, state, sums = rows
    n_actions = sums.shape[1]
    mass = np.zeros(values.shape[0])
    total = np.zeros(values.shape[0])
    visits = np.zeros(values.shape[0])
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            for a in range(n_actions):
                mass[state[row]] += weights[b] * sums[row, a, DISCOUNTED]
                visits[state[row]] += sums[row, a, COUNT]
                total[state[row]] += weights[b] * sums[row, a, RETURNS]
    for s in range(values.shape[0]):
        if mass[s] > 0.0:
            values[s] += (1.0 - (1.0 - rate) ** visits[s]) * (total[s] / mass[s] - values[s])


@_jit
def replay(
    rows: Rows,
    which: Ints,
    weights: Floats,
    log_drawn: Floats,
    clip: float,
    step: float,
    target: Table,
    values: Floats,
    scratch: Floats,
) -> Floats:
    """Take U steps, each on n past trajectories; in one kernel, as each costs microseconds.

    Args:
        rows: where the trajectories lie.
        which: [U, n] trajectories of each step.
        weights: [U, n] weights of their draw.
        log_drawn: [N] log density that each trajectory in `rows` was drawn with.
        clip: largest ratio of the target's density to that one.
        step: step size.
        target: the target policy, moved.
        values: [S] state values.
        scratch: [S, A + 1] zeros, and left so.

    Returns:
        [U, n] gradient norms times ratios, before each step: the new scores.
    """
    scores = np.empty(which.shape)
    for u in range(which.shape[0]):
        ratios = np.exp(log_probability(rows, which[u], target) - log_drawn[which[u]])
        ratios = np.minimum(ratios, clip)
        scores[u] = ratios * gradient_norms(rows, which[u], target, values)
        shares = ratios * weights[u] / which.shape[1]
        touched = add_gradients(rows, which[u], shares, target, values, scratch)
        apply(target, touched, scratch, step)
        clear(touched, scratch)
    return scores
