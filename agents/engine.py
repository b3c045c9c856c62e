"""Whole episodes of softmax table policies on the gridworld, in a compiled kernel.

They come out compressed (`tables.Rows`). For the return-to-go at step t the identity

    discount^t G_t = R - sum_{k<t} discount^k r_k        (R the return of the whole episode)

lets one pass forward collect everything; no step is stored.

Each episode has a random stream of its own, keyed by (seed, episode), so that a batch is the same
for any number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np

from awsgd_rl.agents.tables import COUNT, DISCOUNTED, MOVES, RETURNS, Floats, Ints, Rows, Table

GOAL, TRAP, HORIZON = 0, 1, 2
"""How an episode ended (the values of `Outcomes.end`)."""

# Indices are unsigned: numba then leaves out the wrapping of negative ones, a fifth of the time.
_NONE = np.uintp(2**63)  # no row yet
_RIGHT, _LEFT = np.uintp(1), np.uintp(3)  # quarter turns, modulo 4

_PARALLEL_FROM = 256  # episodes; below it, waking the threads costs more than they save

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


class Grid(NamedTuple):
    """The gridworld as the kernels read it. S states, 4 actions.

    Attributes:
        next_state: [S, 4] where each direction leads.
        end: [S] -1 where the episode goes on, else `GOAL` or `TRAP`.
        reward: [S, 4] reward of a move in each direction.
        start: the first state.
        slip: probability of moving to a side instead, half to each.
        horizon: longest episode, in steps.
    """

    next_state: Ints
    end: Ints
    reward: Floats
    start: int
    slip: float
    horizon: int


class Outcomes(NamedTuple):
    """How B episodes went.

    Attributes:
        total: [B] discounted return of each.
        undiscounted: [B] the plain sum of its rewards.
        length: [B] steps.
        end: [B] `GOAL`, `TRAP` or `HORIZON`.
    """

    total: Floats
    undiscounted: Floats
    length: Ints
    end: Ints


@_jit
def _mix(z: np.uint64) -> np.uint64:
    """Finalise SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_jit
def _rollout_range(
    grid: Grid,
    target: Table,
    exploration: Table,
    n_target: int,
    discount: float,
    reward_to_go: bool,
    seed: np.uint64,
    begin: int,
    stop: int,
    rows: Rows,
    outcomes: Outcomes,
) -> None:
    next_state, ends, reward, start, slip, horizon = grid
    total, undiscounted, length, end = outcomes
    first, size, state, sums = rows
    n_actions = target.logits.shape[1]
    golden = np.uint64(0x9E3779B97F4A7C15)
    unit = 1.0 / 9007199254740992.0  # 2^-53
    row_of = np.full(next_state.shape[0], _NONE)
    # Worst-case room for those before, so that ranges never overlap.
    base = begin * min(horizon, next_state.shape[0])
    for b in range(begin, stop):
        cumulative = target.cumulative if b < n_target else exploration.cumulative
        stream = _mix(seed + golden * np.uint64(2 * b + 1))
        first[b] = base
        n_rows = 0
        s = np.uintp(start)
        so_far = 0.0
        plain = 0.0
        power = 1.0
        steps = 0
        ending = HORIZON
        while steps < horizon:
            stream += golden
            u = float(np.int64(_mix(stream) >> np.uint64(11))) * unit
            a = np.uintp(u >= cumulative[s, 0]) + np.uintp(u >= cumulative[s, 1])
            a += np.uintp(u >= cumulative[s, 2])
            row = row_of[s]
            if row == _NONE:
                row = np.uintp(base + n_rows)
                row_of[s] = row
                state[row] = s
                for k in range(n_actions):
                    for j in range(sums.shape[2]):
                        sums[row, k, j] = 0.0
                n_rows += 1
            sums[row, a, COUNT] += 1.0
            sums[row, a, DISCOUNTED] += power
            if reward_to_go:
                sums[row, a, RETURNS] -= so_far
            move = a
            if slip > 0.0:
                stream += golden
                u = float(np.int64(_mix(stream) >> np.uint64(11))) * unit
                if u < slip:
                    move = (a + (_RIGHT if u < 0.5 * slip else _LEFT)) & _LEFT
                sums[row, a, np.uintp(MOVES) + move] += 1.0
            gain = reward[s, move]
            s = np.uintp(next_state[s, move])
            so_far += power * gain
            plain += gain
            power *= discount
            steps += 1
            if ends[s] >= 0:
                ending = ends[s]
                break
        for row in range(base, base + n_rows):
            row_of[state[row]] = _NONE
            for k in range(n_actions):
                sums[row, k, RETURNS] += sums[row, k, COUNT] * so_far
        size[b] = n_rows
        base += n_rows
        total[b] = so_far
        undiscounted[b] = plain
        length[b] = steps
        end[b] = ending


def sums_of(grid: Grid) -> int:
    """Return the size of the last axis of `Rows.sums`."""
    return MOVES + grid.next_state.shape[1] if grid.slip > 0 else MOVES


def make_room(grid: Grid, n: int) -> Rows:
    """Return memory for `n` episodes of any length; only the rows that get written take any."""
    n_states, n_actions = grid.next_state.shape
    most = n * min(grid.horizon, n_states)
    return Rows(
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.empty(most, np.int32),
        np.empty((most, n_actions, sums_of(grid))),
    )


def rollout(
    grid: Grid,
    target: Table,
    exploration: Table,
    n_target: int,
    n_exploration: int,
    *,
    discount: float,
    seed: int,
    reward_to_go: bool = True,
    room: Rows | None = None,
    threads: int = 1,
) -> tuple[Rows, Outcomes]:
    """Run whole episodes, the first `n_target` by `target`, the others by `exploration`.

    Args:
        grid: the gridworld.
        target: the target policy P_w.
        exploration: the exploration policy Q_tau.
        n_target: episodes drawn from `target`.
        n_exploration: episodes drawn from `exploration`.
        discount: in (0, 1].
        seed: names the random streams; the same seed gives the same episodes for any number of
            threads.
        reward_to_go: False puts the whole episode's return in place of discount^t G_t (seed 001).
        room: memory from `make_room` to write the rows into, over what it held; fresh memory
            without it (which costs page faults: a hot loop passes it).
        threads: how many threads share a large batch.

    Returns:
        The episodes in compressed form, and how they went.
    """
    n = n_target + n_exploration
    rows = make_room(grid, n) if room is None else room
    outcomes = Outcomes(
        np.empty(n),
        np.empty(n),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
    )
    key = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
    policies = (grid, target, exploration, n_target, discount, reward_to_go, key)
    if threads == 1 or n < _PARALLEL_FROM:
        _rollout_range(*policies, 0, n, rows, outcomes)
        return rows, outcomes
    # Plain threads (the kernel holds no lock): numba's own would set the process's OpenMP threads,
    # and with them PyTorch's.
    chunks = 4 * threads
    with ThreadPoolExecutor(threads) as pool:
        ranges = [(n * c // chunks, n * (c + 1) // chunks) for c in range(chunks)]
        for done in [pool.submit(_rollout_range, *policies, *r, rows, outcomes) for r in ranges]:
            done.result()
    return rows, outcomes
