"""Episodes of an agent's policy P_w and of an exploration policy that is learned on the way.

`EngineRollouts` runs table policies on the gridworld in a compiled kernel, `VectorRollouts`
(`outcome_vector_rollouts.py`) any policy with Discrete actions through Gymnasium. Both keep the
critic: they know what a state is.
"""

from typing import Any, Protocol

import gymnasium as gym
import numba
import numpy as np
from numpy.typing import NDArray

from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.outcome_critics import TableCritic, aim
from awsgd_rl.agents.outcomes import Batch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOOR = 0.05
"""Share of its state's mean score that every action keeps in the exploration policy."""


class Rollouts(Protocol):
    """What runs the episodes of both policies.

    Attributes:
        minimum: fewest episodes between two fits of the critic while learning.
        growth: there is another fit after so many episodes: 1 / growth of all so far.
        known: a lower bound of the mean |f - c|, as far as the critic knows it; 0 if nothing is
            there to aim at.
        possible: an upper bound; inf where it cannot be told.
    """

    minimum: int
    growth: int
    known: float
    possible: float

    def run(self, n_target: int, n_exploration: int, rng: np.random.Generator) -> Batch:
        """Run episodes, the first `n_target` by P_w, the others by the exploration policy."""

    def learn(self, batch: Batch, outcomes: Floats, centre: float, largest: float) -> None:
        """Fit the critic to these episodes too, and aim the exploration policy by it."""

    def path(self, batch: Batch, b: int) -> tuple[NDArray[Any], Ints, Floats]:
        """Return observations [L + 1, ...], actions and their probabilities [L] of episode `b`."""

    def close(self) -> None:
        """Let go of what was made for the evaluation; leave the training as it was."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _walk(
    grid: engine.Grid,
    target: tables.Table,
    exploration: tables.Table,
    n_target: int,
    seed: np.uint64,
    begin: int,
    stop: int,
    counts: Ints,
    log_p: Floats,
    log_q: Floats,
    total: Floats,
    length: Ints,
    last: Ints,
    path: Ints,
) -> None:
    """Run episodes begin..stop-1; `path` [L, 2], if it has room, takes states and actions."""
    next_state, ends, reward, start, slip, horizon = grid
    golden = np.uint64(0x9E3779B97F4A7C15)
    unit = 1.0 / 9007199254740992.0  # 2^-53
    n_actions = target.logits.shape[1]
    for b in range(begin, stop):
        cumulative = target.cumulative if b < n_target else exploration.cumulative
        stream = engine._mix(seed + golden * np.uint64(2 * b + 1))
        s = start
        sum_p, sum_q, gain = 0.0, 0.0, 0.0
        steps = 0
        while steps < horizon:
            stream += golden
            u = float(np.int64(engine._mix(stream) >> np.uint64(11))) * unit
            a = 0
            while a < n_actions - 1 and u >= cumulative[s, a]:
                a += 1
            move = a
            if slip > 0.0:
                stream += golden
                u = float(np.int64(engine._mix(stream) >> np.uint64(11))) * unit
                if u < slip:
                    move = (a + (1 if u < 0.5 * slip else 3)) & 3
            sum_p += target.log_probability[s, a]
            sum_q += exploration.log_probability[s, a]
            gain += reward[s, move]
            counts[s, a, move] += 1
            if steps < len(path):
                path[steps, 0], path[steps, 1] = s, a
            s = next_state[s, move]
            steps += 1
            if ends[s] >= 0:
                break
        log_p[b], log_q[b], total[b] = sum_p, sum_q, gain
        length[b], last[b] = steps, s


class EngineRollouts:
    """Table policies on the gridworld.

    Args:
        learner: a `TabularLearner`.
    """

    minimum, growth = 20, 10

    def __init__(self, learner: Any) -> None:
        from awsgd_rl.agents.tabular import grid_of

        self.grid = grid_of(learner.env)
        self.policy: Floats = learner.policy_table()
        self.target = tables.make_table(learner.target.logits)
        self.exploration = self.target
        self.critic = TableCritic(*self.policy.shape)
        self.known, self.possible = 0.0, np.inf

    def run(self, n_target: int, n_exploration: int, rng: np.random.Generator) -> Batch:
        """Run episodes, the first `n_target` by P_w, the others by the exploration policy."""
        n = n_target + n_exploration
        seed = np.uint64(rng.integers(2**63))
        counts = np.zeros((*self.policy.shape, 4), np.int64)
        log_p, log_q, total = np.empty(n), np.empty(n), np.empty(n)
        length, last = np.empty(n, np.int64), np.empty(n, np.int64)
        key = (self.grid, self.target, self.exploration, n_target, seed)
        columns = (log_p, log_q, total, length, last)
        _walk(*key, 0, n, counts, *columns, np.empty((0, 2), np.int64))
        ends = self.grid.end[last]
        success = (ends == engine.GOAL).astype(np.float64)
        return Batch(log_p, log_q, total, length, ends >= 0, success, (key, counts, columns))

    def learn(self, batch: Batch, outcomes: Floats, centre: float, largest: float) -> None:
        """Fit the critic to these episodes too, and aim the exploration policy by it."""
        _, counts, columns = batch.store
        states, actions, moves = np.nonzero(counts)
        self.critic.add(
            states, actions, self.grid.next_state[states, moves], counts[states, actions, moves]
        )
        self.critic.add_ends(columns[-1], outcomes, batch.terminated)
        solution = self.critic.solve(self.policy, np.array([self.grid.start]), centre, largest)
        self.known, self.possible = solution.known, solution.possible
        with np.errstate(divide="ignore"):
            logits = np.log(aim(self.policy, solution.roots, FLOOR))
        self.exploration = tables.make_table(logits)

    def path(self, batch: Batch, b: int) -> tuple[NDArray[Any], Ints, Floats]:
        """Return states [L + 1], actions and their probabilities [L] of episode `b`, run again."""
        key, counts, columns = batch.store
        steps = np.empty((batch.length[b], 2), np.int64)
        # Its results are known: what is wanted is the path.
        unused = [np.empty_like(column) for column in (counts, *columns)]
        arguments: tuple[Any, ...] = (*key, b, b + 1, *unused, steps)
        walk: Any = _walk
        walk(*arguments)
        states, actions = steps.T
        return np.append(states, columns[-1][b]), actions.copy(), self.policy[states, actions]

    def close(self) -> None:
        """There is nothing to let go of."""


def make_rollouts(agent: Any, seed: int) -> Rollouts:
    """Return what runs an agent's episodes.

    Raises:
        ValueError: the agent has no stochastic policy over Discrete actions that can be explored.
    """
    from awsgd_rl.agents.neural import NeuralLearner
    from awsgd_rl.agents.outcome_vector_rollouts import VectorRollouts
    from awsgd_rl.agents.tabular import TabularLearner

    learner = getattr(agent, "learner", None)
    if isinstance(learner, TabularLearner):
        return EngineRollouts(learner)
    if not isinstance(learner, NeuralLearner):
        raise ValueError(
            f"got an agent of class {type(agent).__name__}, expected one of this package (awsgd, "
            "reinforce): only their policies tell the probabilities of actions"
        )
    if not isinstance(learner.action_space, gym.spaces.Discrete):
        raise ValueError(
            f"the agent acts in {learner.action_space}, expected Discrete actions: "
            "exploration for continuous ones is not learned here"
        )
    return VectorRollouts(agent, seed)
