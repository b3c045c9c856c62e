"""The maps of a report: the policies that a run recorded, as the page's script draws them.

What is not on the disk is computed here: how often each policy comes to each cell, and how often it
succeeds. Tables become bytes, written in base64, since a page holds dozens of them.
"""

import base64
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.agents.snapshots import Snapshot
from awsgd_rl.report_snapshots import Recording

Floats = NDArray[np.float64]

LEAST_VISITS: Final = 1e-3
MOST_VISITS: Final = 10.0
"""The ends of the heat's log scale, in expected visits an episode; bytes 1 and 255."""

LINEAR_WEIGHTS: Final = 20.0
"""Weights of a mixture are at most a few; larger ones, of a free Q_τ, get a log scale."""

_STEPS_FOLLOWED: Final = 5000
"""A longest episode above it is not followed step by step, which would take minutes a run."""
_SHORT: Final = 1 / 40  # of the longest episode: none of a mean length below it is ever cut off


def recording_data(recording: Recording) -> dict[str, Any]:
    """Return a run's snapshots as JSON values: the map, and a frame for each moment."""
    layout = recording.layout
    world = _World(recording)
    frames = [_frame(snapshot, world) for snapshot in recording.snapshots]
    weights = np.concatenate([snapshot.weights for snapshot in recording.snapshots])
    heaviest = float(max(1.0, weights.max(initial=0.0)))
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "start": layout.start,
        "goals": layout.goal_cells.tolist(),
        "traps": layout.trap_cells.tolist(),
        "slip": recording.slip,
        "visits": [LEAST_VISITS, MOST_VISITS],
        "weight": heaviest,
        "logWeights": heaviest > LINEAR_WEIGHTS,
        "frames": frames,
    }


class _World:
    """Follows policies on the map: how often they come to each cell, and how often they succeed."""

    def __init__(self, recording: Recording) -> None:
        from awsgd_rl.envs.gridworld import TrapGridworld

        layout, slip, horizon = recording.layout, recording.slip, recording.horizon
        self.env = TrapGridworld(desc=layout.desc, slip=slip, horizon=horizon)
        self._moves: Any = self.env.transition_matrix()

    def follow(self, policy: Floats) -> tuple[Floats, float]:
        """Return [S] expected visits an episode, and the probability that it ends in a goal.

        Exact up to a horizon of 5,000 steps. On larger maps, policies that take long get an end at
        random in place of the horizon, after as many steps on average.
        """
        from awsgd_rl.benchmarks.trial import walk

        if self.env.horizon <= _STEPS_FOLLOWED:
            made = walk(self.env, policy)
            return made.visits, min(made.success, 1.0)
        # Not quite without an end, lest the visits of one that goes round in circles be infinite.
        visits = self._solve(policy, 1e-9)
        if visits[~self.env.terminal].sum() > self.env.horizon * _SHORT:
            visits = self._solve(policy, 1.0 / self.env.horizon)
        return visits, float(min(visits[self.env.goal_cells].sum(), 1.0))

    def _solve(self, policy: Floats, stops: float) -> Floats:
        """Return [S] expected visits if each episode also stops at each step by that chance."""
        from scipy.sparse import csr_array, identity
        from scipy.sparse.linalg import splu

        cells = self.env.n_states
        row = np.repeat(np.arange(cells), 4)
        choice = csr_array((policy.ravel(), (row, np.arange(4 * cells))))
        chain: Any = choice @ self._moves
        start = np.zeros(cells)
        start[self.env.start] = 1.0
        system: Any = identity(cells, format="csc") - (1.0 - stops) * chain.T.tocsc()
        visits: Floats = np.maximum(splu(system).solve(start), 0.0)
        return visits


def _frame(snapshot: Snapshot, world: _World) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "episodes": snapshot.episodes,
        "timesteps": snapshot.timesteps,
        "policies": [_policy(snapshot.target, world)],
        "weights": [float(f"{weight:.4g}") for weight in snapshot.weights],
        "fromTarget": snapshot.from_target.astype(int).tolist(),
        "lengths": snapshot.lengths.tolist(),
        "ends": snapshot.ends.tolist(),
        "offsets": snapshot.offsets.tolist(),
        "moves": _base64(snapshot.moves.astype("<u4")),
    }
    if snapshot.exploration is not None:
        frame["policies"].append(_policy(snapshot.exploration, world))
    return frame


def _policy(table: NDArray[np.float32], world: _World) -> dict[str, Any]:
    policy = table.astype(np.float64)
    policy /= policy.sum(1, keepdims=True)
    visits, success = world.follow(policy)
    span = np.log(MOST_VISITS / LEAST_VISITS)
    with np.errstate(divide="ignore"):  # cells that are never visited
        level = 1.0 + 254.0 * np.log(visits / LEAST_VISITS) / span
    heat = np.where(visits < LEAST_VISITS, 0.0, np.clip(level, 1.0, 255.0))
    return {
        "success": float(f"{success:.9g}"),
        "actions": _base64(np.rint(255.0 * policy).astype(np.uint8)),
        "visits": _base64(np.rint(heat).astype(np.uint8)),
    }


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
