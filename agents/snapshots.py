"""What a run keeps of its training, for `awsgd-rl report`: its policies on the map, and its curves.

`snapshots/` in the run folder holds a file for each of about forty moments, close together at the
start, where most is learned: P_w and Q_τ as tables, and some of the trajectories that these two
drew, with their weights. `map.json` beside them is the gridworld. `history.json` in the run folder
holds what the agent measured over all of training.

A file is written beside its place and renamed, so that a run killed at any moment leaves whole
ones; it is not forced onto the disk, which would take longer than to learn from the batch.
"""

import bisect
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from awsgd_rl.runs import atomic_path, to_json

Arrays = dict[str, NDArray[Any]]

FOLDER: Final = "snapshots"
MAP_FILE: Final = "map.json"
HISTORY_FILE: Final = "history.json"
ABOUT: Final = "about"
SCHEMA: Final = 1
SUFFIX: Final = ".safetensors"
GOAL, TRAP, CUT_OFF = 0, 1, 2
"""How a trajectory ended (`Snapshot.ends`)."""

MOST_CELLS: Final = 1 << 16
MOST_MOVES: Final = 20_000
"""Of all trajectories of a snapshot together."""
MOST_TRAJECTORIES: Final = 12
HISTORY_POINTS: Final = 2000
_POINTS: Final = 48
_FIRST_SHARE: Final = 1 / 2000  # of training, where the second snapshot may be


class Snapshot(NamedTuple):
    """One moment of training. S cells, K trajectories, E moves of all of them together.

    Attributes:
        episodes: learned from before these trajectories were drawn.
        timesteps: the same in environment steps.
        target: [S, 4] probabilities of P_w, float32.
        exploration: [S, 4] probabilities of Q_τ; None where nothing is drawn from it.
        weights: [K] importance weights of trajectories, p/q, float32.
        from_target: [K] True where P_w drew it, False where Q_τ did.
        lengths: [K] steps, int32.
        ends: [K] `GOAL`, `TRAP` or `CUT_OFF`, uint8.
        offsets: [K + 1] where in `moves` each trajectory begins, int32.
        moves: [E] 4 · cell + direction of every different move that it made, int32.
    """

    episodes: int
    timesteps: int
    target: NDArray[np.float32]
    exploration: NDArray[np.float32] | None
    weights: NDArray[np.float32]
    from_target: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    ends: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    moves: NDArray[np.int32]


class SnapshotRecorder:
    """Takes snapshots of a table that learns on the gridworld; does nothing for other agents.

    Args:
        folder: the run folder.
        agent: what learns; made, or restored, but with no batch done since.
        total: what the whole run may spend, an earlier part of a resumed run included.
        unit: what that is counted in, "episodes" or "timesteps".
    """

    def __init__(self, folder: str | Path, agent: Any, *, total: int, unit: str) -> None:
        self.folder = Path(folder) / FOLDER
        self._agent = agent if _learns_a_map(agent) else None
        self._count = f"num_{unit}"
        first = max(1.0, total * _FIRST_SHARE)
        self._thresholds = np.geomspace(first, max(first, total), _POINTS).tolist()
        self._passed = self._reached() if getattr(agent, self._count, 0) else -1
        self._remember()

    def record(self, agent: Any) -> None:
        """Take a snapshot if it is time for one; call it after each batch, before anything else.

        Where it cannot be written (the disk is full), a warning says so, and there are no more.
        """
        if self._agent is None or agent is not self._agent:
            return
        reached = self._reached()
        if reached > self._passed:
            self._passed = reached
            try:
                self._write(*self._take())
            except (OSError, SafetensorError) as error:
                self._agent = None
                warnings.warn(
                    f"no snapshot could be written into {self.folder} ({error}): the report will "
                    "show none from here on, and the training goes on",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._remember()

    def drop_after(self, num_episodes: int) -> None:
        """Remove the snapshots of batches later than that many episodes, as a resumed run does."""
        for path in self.folder.glob("*"):
            episodes = path.name.removesuffix(SUFFIX)
            # What a killed run left half written begins with a dot.
            late = episodes.isdecimal() and int(episodes) >= num_episodes
            if path.is_file() and (late or path.name.startswith(".")):
                path.unlink()

    def _write(self, arrays: Arrays, about: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MAP_FILE).exists():
            self._write_map()
        name = f"{self._episodes:012d}{SUFFIX}"
        partial = self.folder / f".{name}.partial"
        try:
            save_file(arrays, partial, about)
            partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)

    def _reached(self) -> int:
        if self._agent is None:
            return -1
        return bisect.bisect_right(self._thresholds, getattr(self._agent, self._count))

    def _remember(self) -> None:
        """Keep the policies that draw the next batch: learning from it moves them."""
        if self._agent is None:
            return
        learner = self._agent.learner
        self._episodes, self._timesteps = self._agent.num_episodes, self._agent.num_timesteps
        self._target = learner.target.probability.copy()
        # A fitted Q_τ is written only when it draws, and the batch does not move it.
        self._exploration = learner.exploration.probability
        if learner.rule is None:
            self._exploration = self._exploration.copy()

    def _take(self) -> tuple[Arrays, dict[str, str]]:
        agent: Any = self._agent
        learner, fresh = agent.learner, agent._fresh
        chosen = np.unique(
            np.linspace(0, len(fresh) - 1, min(len(fresh), MOST_TRAJECTORIES)).astype(np.int64)
        )
        moves, offsets, ends = _moves(learner, fresh, chosen)
        arrays = {
            "target": self._target.astype(np.float32),
            "weights": self._weights(learner, fresh, chosen).astype(np.float32),
            "from_target": fresh.from_target.numpy()[chosen].astype(np.uint8),
            "lengths": fresh.lengths.numpy()[chosen].astype(np.int32),
            "ends": ends,
            "offsets": offsets,
            "moves": moves,
        }
        if agent.exploration_share > 0:
            arrays["exploration"] = self._exploration.astype(np.float32)
        counts = {"episodes": self._episodes, "timesteps": self._timesteps, "schema": SCHEMA}
        # One entry: their order in the file would differ from run to run.
        return arrays, {ABOUT: json.dumps(counts)}

    def _weights(self, learner: Any, fresh: Any, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights p/q that the trajectories were learned from with."""
        from awsgd_rl.agents import tables

        with np.errstate(divide="ignore"):  # an action that P_w never takes
            log_target = np.log(self._target)
        table = learner.target._replace(log_probability=log_target)
        log_p = tables.log_probability(fresh.rows, fresh.which[chosen], table)
        weights: NDArray[np.float64] = np.exp(log_p - fresh.log_drawn.numpy()[chosen])
        return weights

    def _write_map(self) -> None:
        env = self._agent.learner.env  # type: ignore[union-attr]
        world = {"desc": env.desc, "slip": env.slip, "horizon": env.horizon}
        with atomic_path(self.folder / MAP_FILE) as partial:
            text = json.dumps(to_json({"schema": SCHEMA, **world}), indent=1)
            partial.write_text(text + "\n", encoding="utf-8")


def write_history(folder: str | Path, history: Mapping[str, Sequence[float]]) -> Path:
    """Write what an agent measured into `history.json` of the run folder; return its path.

    More than `HISTORY_POINTS` batches are thinned, the later the more: each point is then the mean
    of the batches since the one before, `max_weight` their largest, and the counts the last ones.

    Args:
        folder: the run folder.
        history: one entry a batch under each name, as `agent.history`.
    """
    batches = len(history["episodes"])
    ends = np.unique(np.geomspace(1, max(batches, 1), HISTORY_POINTS).astype(np.int64))
    if batches <= HISTORY_POINTS:
        ends = np.arange(1, batches + 1)
    points = {
        name: _thin(name, np.asarray(values, dtype=np.float64), ends).tolist()
        for name, values in history.items()
    }
    path = Path(folder) / HISTORY_FILE
    with atomic_path(path) as partial:
        text = json.dumps(to_json({"schema": SCHEMA, "batches": batches, **points}))
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def _thin(name: str, values: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    if len(values) == len(ends) or name in ("episodes", "timesteps"):
        return values[ends - 1]
    begins = np.concatenate([[0], ends[:-1]])
    known = np.isfinite(values)
    if name == "max_weight":
        largest = np.maximum.reduceat(np.where(known, values, -math.inf), begins)
        return np.where(np.isfinite(largest), largest, np.nan)
    counts = np.add.reduceat(known.astype(np.float64), begins)
    sums = np.add.reduceat(np.where(known, values, 0.0), begins)
    with np.errstate(invalid="ignore"):  # no batch of a point told the quantity: 0/0
        means: NDArray[np.float64] = sums / counts
    return means


def _learns_a_map(agent: Any) -> bool:
    from awsgd_rl.agents.tabular import TabularLearner

    learner = getattr(agent, "learner", None)
    return isinstance(learner, TabularLearner) and learner.env.n_states <= MOST_CELLS


def _moves(
    learner: Any, fresh: Any, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """Return the different moves of trajectories [K], where each begins, and how each ended."""
    from awsgd_rl.agents.tables import COUNT, MOVES

    rows, env = fresh.rows, learner.env
    which = fresh.which[chosen]
    sizes = rows.size[which]
    at = np.concatenate([np.arange(rows.first[i], rows.first[i] + rows.size[i]) for i in which])
    # Where moves slip, the direction that followed is counted apart from the action.
    made = rows.sums[at, :, MOVES:].sum(1) if env.slip > 0 else rows.sums[at, :, COUNT]
    row, direction = np.nonzero(made)
    state = rows.state[at[row]].astype(np.int64)
    owner = np.repeat(np.arange(len(which)), sizes)[row]
    trapped = np.zeros(len(which), dtype=bool)
    # A trap is entered once and for all, and every other move ends in no trap.
    trap = np.zeros(env.n_states, dtype=bool)
    trap[env.trap_cells] = True
    trapped[owner[trap[env.next_state[state, direction]]]] = True
    success = fresh.success.numpy()[chosen] == 1
    ends = np.where(success, GOAL, np.where(trapped, TRAP, CUT_OFF)).astype(np.uint8)
    counts = np.bincount(owner, minlength=len(which))
    begins = np.cumsum(counts) - counts
    kept = np.arange(len(owner)) - begins[owner] < MOST_MOVES // len(which)
    counts = np.minimum(counts, MOST_MOVES // len(which))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return (4 * state + direction)[kept].astype(np.int32), offsets, ends
