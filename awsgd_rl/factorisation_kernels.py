"""The compiled loops of `factorisation`: thousands of batches in one call.

Draws of a batch share the proposal, its densities and the step size; the factors move after each
draw. The step of every draw is unbiased, and weighted with the density of the urn that it was drawn
from.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from awsgd_rl.urns import Urn, below, fill, random_bits

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

# A dot product may be added up in several lanes. NaN and infinity keep their meaning.
_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})

DECAY = 0.99
"""Memory of the running mean that ‖d‖² is divided by, per step of τ."""

LARGEST = 4.0
"""Cap of ‖d‖² over its running mean, in the step of τ alone: one outlier must not throw τ far."""


class Batch(NamedTuple):
    """B draws."""

    row: NDArray[np.uint32]
    column: NDArray[np.uint32]
    value: Singles
    weight: Singles
    """Importance weights p / q."""
    norm: Singles
    """‖d‖²: squared norms of the weighted gradients."""
    seconds: Floats
    """Access time of each draw."""


class Factors(NamedTuple):
    """Row and column factors, rank K, and AdaGrad's sums of squares ([0, 0] without)."""

    U: Singles
    V: Singles
    U_squares: Singles
    V_squares: Singles


class Entries(NamedTuple):
    """E observed entries, sorted by row."""

    row: NDArray[np.uint32]
    column: NDArray[np.uint32]
    value: Singles
    row_start: NDArray[np.int64]
    """[n + 1] first entry of each row."""
    by_column: NDArray[np.int64]
    """[E] entries sorted by column."""
    column_start: NDArray[np.int64]
    """[m + 1] first place of each column in `by_column`."""


class Running(NamedTuple):
    """What the loop carries from one call to the next."""

    random: NDArray[np.uint64]
    """[1] state of the random numbers."""
    draws: NDArray[np.int64]
    """[3] draws so far; at the last filling of the urn of rows; of columns."""
    scale: Floats
    """[2] running total and weight of ‖d‖²."""
    seconds: Floats
    """[1] access time so far."""


class Settings(NamedTuple):
    """Numbers that stay."""

    learning_rate: float
    half: float
    """N / 2 of the step size ρ0 / (N / 2 + t)."""
    adaptation_rate: float
    adapt_every: int
    ridge: float
    offset: float
    adagrad: bool
    time_aware: bool
    refresh: int
    """An urn of n items is filled anew after refresh * n draws."""
    side: int
    """Rows and columns of a block of draws."""


@_jit
def draw_pairs(
    rows: Urn, columns: Urn, random: NDArray[np.uint64], side: int, batch: Batch
) -> None:
    """Draw blocks: `side` rows and `side` columns independently, and all pairs of them.

    The weight p / q of a pair is that of its row times that of its column. side = 1: independent
    pairs.
    """
    low = np.uint64(0xFFFFFFFF)
    for start in range(0, batch.row.shape[0], side * side):
        for k in range(side):
            bits = random_bits(random)
            i = rows.tickets[below(bits >> np.uint64(32), rows.size[0])]
            batch.row[start + k * side] = i
            batch.column[start + k] = columns.tickets[below(bits & low, columns.size[0])]
        for k in range(side):
            i = batch.row[start + k * side]
            of_row = rows.weight[i]
            for other in range(side):
                j = batch.column[start + other]
                at = start + k * side + other
                batch.row[at], batch.column[at] = i, j
                batch.weight[at] = of_row * columns.weight[j]


@_jit
def draw_uniform_pairs(n: int, m: int, random: NDArray[np.uint64], side: int, batch: Batch) -> None:
    """Draw alike, uniformly from an n × m matrix: no urns, weights of 1."""
    low = np.uint64(0xFFFFFFFF)
    for start in range(0, batch.row.shape[0], side * side):
        for k in range(side):
            bits = random_bits(random)
            i, j = below(bits >> np.uint64(32), n), below(bits & low, m)
            for other in range(side):
                batch.row[start + k * side + other] = i
                batch.column[start + other * side + k] = j
    batch.weight[:] = np.float32(1.0)


@_jit
def draw_entries(
    entries: Entries, rows: Urn, columns: Urn, random: NDArray[np.uint64], batch: Batch
) -> None:
    """Draw half by row (then one of its entries), the rest by column (one of its entries).

    With weights r_i of rows and c_j of columns, q(i, j) = (½ / r_i + ½ / c_j) / E over all draws,
    so p / q = 1 / (½ / r_i + ½ / c_j): the balance heuristic.
    """
    low = np.uint64(0xFFFFFFFF)
    size = batch.row.shape[0]
    share = np.float32(size // 2) / np.float32(size)
    for b in range(size):
        bits = random_bits(random)
        if b < size // 2:
            i = np.int64(rows.tickets[below(bits >> np.uint64(32), rows.size[0])])
            first = entries.row_start[i]
            entry = first + np.int64(below(bits & low, entries.row_start[i + 1] - first))
        else:
            j = np.int64(columns.tickets[below(bits >> np.uint64(32), columns.size[0])])
            first = entries.column_start[j]
            place = first + np.int64(below(bits & low, entries.column_start[j + 1] - first))
            entry = entries.by_column[place]
        i, j = np.int64(entries.row[entry]), np.int64(entries.column[entry])
        batch.row[b], batch.column[b], batch.value[b] = i, j, entries.value[entry]
        of_row, of_column = rows.weight[i], columns.weight[j]
        mixed = share * of_column + (np.float32(1.0) - share) * of_row
        batch.weight[b] = of_row * of_column / mixed


@_jit
def draw_uniform_entries(entries: Entries, random: NDArray[np.uint64], batch: Batch) -> None:
    """Draw observed entries uniformly."""
    for b in range(batch.row.shape[0]):
        entry = below(random_bits(random) >> np.uint64(32), entries.row.shape[0])
        batch.row[b], batch.column[b] = entries.row[entry], entries.column[entry]
        batch.value[b] = entries.value[entry]
        batch.weight[b] = np.float32(1.0)


@_jit
def step_factors(batch: Batch, factors: Factors, step: Any, settings: Settings) -> None:
    """Step along −w ∇f at each draw, f = (u·v + offset − y)² + ridge (‖u‖² + ‖v‖²)."""
    offset, ridge = np.float32(settings.offset), np.float32(settings.ridge)
    for b in range(batch.row.shape[0]):
        u, v = factors.U[batch.row[b]], factors.V[batch.column[b]]
        dot = np.float32(0.0)
        for k in range(u.shape[0]):
            dot += u[k] * v[k]
        move = np.float32(2.0) * step * batch.weight[b]
        keep = np.float32(1.0) - move * ridge
        move *= batch.value[b] - offset - dot
        for k in range(u.shape[0]):
            a = u[k]
            u[k] = keep * a + move * v[k]
            v[k] = keep * v[k] + move * a


@_jit
def step_factors_with_norms(batch: Batch, factors: Factors, step: Any, settings: Settings) -> None:
    """Do `step_factors`, and keep ‖d‖² of each draw: faster than one after the other."""
    offset, ridge = np.float32(settings.offset), np.float32(settings.ridge)
    for b in range(batch.row.shape[0]):
        u, v = factors.U[batch.row[b]], factors.V[batch.column[b]]
        dot, squares = np.float32(0.0), np.float32(0.0)
        for k in range(u.shape[0]):
            dot += u[k] * v[k]
            squares += u[k] * u[k] + v[k] * v[k]
        error = batch.value[b] - offset - dot
        norm = (error * error + ridge * ridge) * squares - np.float32(4.0) * error * ridge * dot
        batch.norm[b] = np.float32(4.0) * batch.weight[b] * batch.weight[b] * norm
        move = np.float32(2.0) * step * batch.weight[b]
        keep = np.float32(1.0) - move * ridge
        move *= error
        for k in range(u.shape[0]):
            a = u[k]
            u[k] = keep * a + move * v[k]
            v[k] = keep * v[k] + move * a


@_jit
def step_factors_adagrad(batch: Batch, factors: Factors, step: Any, settings: Settings) -> None:
    """Do `step_factors`, each coordinate's step divided by the root of its sum of squares."""
    offset, ridge = np.float32(settings.offset), np.float32(settings.ridge)
    for b in range(batch.row.shape[0]):
        i, j = batch.row[b], batch.column[b]
        u, v = factors.U[i], factors.V[j]
        u_squares, v_squares = factors.U_squares[i], factors.V_squares[j]
        dot = np.float32(0.0)
        for k in range(u.shape[0]):
            dot += u[k] * v[k]
        error = batch.value[b] - offset - dot
        two = np.float32(2.0) * batch.weight[b]
        for k in range(u.shape[0]):
            a, c = u[k], v[k]
            to_u, to_v = two * (error * c - ridge * a), two * (error * a - ridge * c)
            u_squares[k] += to_u * to_u
            v_squares[k] += to_v * to_v
            u[k] = a + step * to_u / np.sqrt(u_squares[k])
            v[k] = c + step * to_v / np.sqrt(v_squares[k])


@_jit
def squared_norms(batch: Batch, factors: Factors, settings: Settings) -> None:
    """Keep ‖d‖² of each draw, d = w ∇f."""
    offset, ridge = np.float32(settings.offset), np.float32(settings.ridge)
    for b in range(batch.row.shape[0]):
        u, v = factors.U[batch.row[b]], factors.V[batch.column[b]]
        dot, squares = np.float32(0.0), np.float32(0.0)
        for k in range(u.shape[0]):
            dot += u[k] * v[k]
            squares += u[k] * u[k] + v[k] * v[k]
        error = batch.value[b] - offset - dot
        norm = (error * error + ridge * ridge) * squares - np.float32(4.0) * error * ridge * dot
        batch.norm[b] = np.float32(4.0) * batch.weight[b] * batch.weight[b] * norm


@_jit
def running_scale(batch: Batch, running: Running) -> float:
    """Take the norms into their running mean, cap them, and return the mean."""
    mean = np.mean(batch.norm)
    running.scale[0] = DECAY * running.scale[0] + mean
    running.scale[1] = DECAY * running.scale[1] + 1.0
    scale = max(running.scale[0] / running.scale[1], 1e-30)
    for b in range(batch.norm.shape[0]):
        batch.norm[b] = min(batch.norm[b], LARGEST * scale)
    return float(scale)


@_jit
def step_tau(
    tau: Floats, items: NDArray[np.uint32], norms: Singles, rate: float, side: int
) -> None:
    """τ += rate Σ_b c_b ∇_τ log q(x_b), with c_b = ‖d_b‖² less the mean of the others (eq. 11).

    ∇_τ log q = e_i − softmax(τ), and Σ_b c_b = 0: the dense softmax part cancels, and only the
    entries that were drawn change. The mean of all differs from the mean of the others by a factor,
    with which the expected step is exactly that without centring.

    Args:
        tau: [n] changed in place.
        items: [B] what was drawn.
        norms: [B] ‖d‖², divided by the access time if that counts (Algorithm 3).
        rate: η, over the scale of the norms.
        side: rows of a block. Others of its pairs share an item, and are not independent of it.
    """
    block = side * side if side > 1 else items.shape[0]
    independent = side if side > 1 else items.shape[0]
    rate *= independent / (independent - 1.0)
    for start in range(0, items.shape[0], block):
        mean = np.mean(norms[start : start + block])
        for b in range(start, start + block):
            tau[items[b]] += rate * (norms[b] - mean)


@_jit
def refresh(rows: Urn, columns: Urn, running: Running, settings: Settings) -> None:
    """Fill the urns that are old."""
    if running.draws[0] - running.draws[1] >= settings.refresh * rows.tau.shape[0]:
        fill(rows)
        running.draws[1] = running.draws[0]
    if running.draws[0] - running.draws[2] >= settings.refresh * columns.tau.shape[0]:
        fill(columns)
        running.draws[2] = running.draws[0]


@_jit
def learn(
    batch: Batch,
    factors: Factors,
    rows: Urn,
    columns: Urn,
    running: Running,
    settings: Settings,
    split: int,
) -> None:
    """Learn from a batch of draws: the factors, and τ on a share of the batches.

    The first `split` draws are by row and move τ of the rows, those from `split` on are by column.
    With split = 0 all draws are of both.
    """
    size = batch.row.shape[0]
    step = np.float32(settings.learning_rate)
    if not settings.adagrad:
        step *= np.float32(settings.half / (settings.half + running.draws[0]))
    adapting = (
        settings.adaptation_rate > 0.0 and running.draws[0] // size % settings.adapt_every == 0
    )
    if settings.adagrad:
        if adapting:
            squared_norms(batch, factors, settings)
        step_factors_adagrad(batch, factors, step, settings)
    elif adapting:
        step_factors_with_norms(batch, factors, step, settings)
    else:
        step_factors(batch, factors, step, settings)
    if adapting:
        if settings.time_aware:
            for b in range(size):
                batch.norm[b] /= batch.seconds[b]
        rate = settings.adaptation_rate / running_scale(batch, running)
        end = split if split > 0 else size
        step_tau(rows.tau, batch.row[:end], batch.norm[:end], rate, settings.side)
        step_tau(columns.tau, batch.column[split:], batch.norm[split:], rate, settings.side)
    running.draws[0] += size


@_jit
def fit_dense(
    matrix: Singles,
    costs: Floats,
    factors: Factors,
    rows: Urn,
    columns: Urn,
    batch: Batch,
    running: Running,
    settings: Settings,
    batches: int,
) -> None:
    """Run AW-SGD on a dense matrix, or SGD with uniform draws where the adaptation rate is 0.

    `costs` [n] are simulated seconds to access an entry of each row; [0]: none.
    """
    for _ in range(batches):
        if settings.adaptation_rate > 0.0:
            refresh(rows, columns, running, settings)
            draw_pairs(rows, columns, running.random, settings.side, batch)
        else:
            draw_uniform_pairs(
                matrix.shape[0], matrix.shape[1], running.random, settings.side, batch
            )
        for b in range(batch.row.shape[0]):
            batch.value[b] = matrix[batch.row[b], batch.column[b]]
        if costs.shape[0] > 0:
            for b in range(batch.row.shape[0]):
                batch.seconds[b] = costs[batch.row[b]]
                running.seconds[0] += batch.seconds[b]
        learn(batch, factors, rows, columns, running, settings, 0)


@_jit
def fit_entries(
    entries: Entries,
    factors: Factors,
    rows: Urn,
    columns: Urn,
    batch: Batch,
    running: Running,
    settings: Settings,
    batches: int,
) -> None:
    """Run AW-SGD on observed entries, or SGD with uniform draws."""
    for _ in range(batches):
        if settings.adaptation_rate > 0.0:
            refresh(rows, columns, running, settings)
            draw_entries(entries, rows, columns, running.random, batch)
            learn(batch, factors, rows, columns, running, settings, batch.row.shape[0] // 2)
        else:
            draw_uniform_entries(entries, running.random, batch)
            learn(batch, factors, rows, columns, running, settings, 0)
