"""A table critic learned from past trajectories, and the policy gradient that it gives.

The critic keeps how often each move followed each action, and Q(s, a): what is still to come. A
*backup* of a state and action sets

    Q(s, a) = mean over the moves seen of [ r + discount · sum_a' p(a'|s') Q(s', a') ]

under the policy of the moment (expected Sarsa; van Seijen et al. 2009), for what a replayed
trajectory visited, backwards: what is at its end reaches its start in one pass. A pair that was
never tried keeps the value 0, which is optimistic where only failures were seen so far.

With it, trajectory b has the gradient

    g_b = sum_t discount^t sum_a p(a|s_t) (Q(s_t, a) - V(s_t)) grad log p(a|s_t)

of all actions, not the drawn one alone (Sutton et al. 2001; Ciosek and Whiteson 2018). With the Q
of the policy this is the gradient of REINFORCE averaged over everything but the states visited:
its variance is far lower, so that much larger steps can be taken. The bias is the critic's error
(and that it knows no horizon), and goes to zero with it.
"""

from typing import NamedTuple

import numba
import numpy as np

from awsgd_rl.agents import tables
from awsgd_rl.agents.engine import Grid
from awsgd_rl.agents.tables import COUNT, DISCOUNTED, MOVES, Floats, Ints, Rows, Table

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


class Critic(NamedTuple):
    """What is known of the environment and of the target policy. S states, A actions.

    Attributes:
        q: [S, A] expected discounted return after each action, in scaled reward.
        moves: [S, A, 4] how often each direction followed it (the action's own without slips).
    """

    q: Floats
    moves: Floats


def make_critic(n_states: int, n_actions: int) -> Critic:
    """Return a critic that knows nothing."""
    return Critic(np.zeros((n_states, n_actions)), np.zeros((n_states, n_actions, n_actions)))


@_jit
def observe(rows: Rows, which: Ints, critic: Critic) -> None:
    """Count the moves of the trajectories `which` [B], each of them once in its life."""
    first, size, state, sums = rows
    n_actions = sums.shape[1]
    slips = sums.shape[2] > MOVES
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            s = state[row]
            for a in range(n_actions):
                if slips:
                    for move in range(n_actions):
                        critic.moves[s, a, move] += sums[row, a, MOVES + move]
                else:
                    critic.moves[s, a, a] += sums[row, a, COUNT]


@_jit
def back_up(
    rows: Rows, which: Ints, target: Table, grid: Grid, discount: float, critic: Critic
) -> Floats:
    """Back up what the trajectories `which` [B] did, from their last new state to the first.

    Returns:
        [B] sums of |TD error|: by how much each moved Q(s, a) in all.
    """
    first, size, state, sums = rows
    next_state, ends, reward = grid.next_state, grid.end, grid.reward
    q, moves = critic
    n_actions = q.shape[1]
    errors = np.zeros(which.shape[0])
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i] + size[i] - 1, first[i] - 1, -1):
            s = state[row]
            for a in range(n_actions):
                if sums[row, a, COUNT] == 0.0:
                    continue
                total = 0.0
                seen = 0.0
                for move in range(n_actions):
                    n = moves[s, a, move]
                    if n == 0.0:
                        continue
                    to = next_state[s, move]
                    value = reward[s, move]
                    if ends[to] < 0:
                        for k in range(n_actions):
                            value += discount * target.probability[to, k] * q[to, k]
                    total += n * value
                    seen += n
                if seen > 0.0:
                    errors[b] += abs(total / seen - q[s, a])
                    q[s, a] = total / seen
    return errors


@_jit
def _row_gradient(rows: Rows, row: int, target: Table, q: Floats, out: Floats) -> None:
    s = rows.state[row]
    n_actions = q.shape[1]
    value = 0.0
    visits = 0.0
    for a in range(n_actions):
        value += target.probability[s, a] * q[s, a]
        visits += rows.sums[row, a, DISCOUNTED]
    for a in range(n_actions):
        out[a] = visits * target.probability[s, a] * (q[s, a] - value)


@_jit
def gradient_norms(rows: Rows, which: Ints, target: Table, q: Floats) -> Floats:
    """Return [B] norms of each trajectory's gradient of the target policy's log-odds."""
    out = np.zeros(which.shape[0])
    gradient = np.empty(q.shape[1])
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(rows.first[i], rows.first[i] + rows.size[i]):
            _row_gradient(rows, row, target, q, gradient)
            for a in range(q.shape[1]):
                out[b] += gradient[a] ** 2
        out[b] = np.sqrt(out[b])
    return out


@_jit
def add_gradients(
    rows: Rows, which: Ints, weights: Floats, target: Table, q: Floats, scratch: Floats
) -> Ints:
    """Add sum_b weights[b] g_b to `scratch` [S, A + 1], as `tables.add_gradients` does."""
    n_actions = q.shape[1]
    room = 0
    for b in range(which.shape[0]):
        room += rows.size[which[b]]
    touched = np.empty(min(room, scratch.shape[0]), np.int64)
    n_touched = 0
    gradient = np.empty(n_actions)
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(rows.first[i], rows.first[i] + rows.size[i]):
            s = rows.state[row]
            if scratch[s, n_actions] == 0.0:
                scratch[s, n_actions] = 1.0
                touched[n_touched] = s
                n_touched += 1
            _row_gradient(rows, row, target, q, gradient)
            for a in range(n_actions):
                scratch[s, a] += weights[b] * gradient[a]
    return touched[:n_touched]


@_jit
def replay(
    rows: Rows,
    which: Ints,
    weights: Floats,
    log_drawn: Floats,
    clip: float,
    step: float,
    discount: float,
    target: Table,
    grid: Grid,
    critic: Critic,
    scratch: Floats,
) -> Floats:
    """Take U steps, each on n past trajectories.

    As `tables.replay`, with the gradients of the critic, which is backed up before each step.

    Returns:
        [U, n] sums of |TD error|: the new scores.
    """
    scores = np.empty(which.shape)
    for u in range(which.shape[0]):
        scores[u] = back_up(rows, which[u], target, grid, discount, critic)
        ratios = np.exp(tables.log_probability(rows, which[u], target) - log_drawn[which[u]])
        shares = np.minimum(ratios, clip) * weights[u] / which.shape[1]
        touched = add_gradients(rows, which[u], shares, target, critic.q, scratch)
        tables.apply(target, touched, scratch, step)
        tables.clear(touched, scratch)
    return scores
