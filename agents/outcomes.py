"""Outcomes of an episode whose mean is asked for: failure, trap, horizon, return, or a function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl import validation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OUTCOMES = {
    "failure": "the episode has no success (1 - is_success)",
    "trap": "the environment ended the episode, without success",
    "horizon": "the episode was cut off at its longest length",
    "return": "the undiscounted return",
}
"""Outcomes by name."""

_MOST_PATHS = 6
_MOST_ALIKE = 24  # episodes of one probability looked at in a batch: most are one path, drawn again
_NEVER = -700.0  # log-probability of what is not worth telling


class Summary(NamedTuple):
    """How one episode went, for outcomes that are functions.

    Attributes:
        total: undiscounted return.
        length: steps.
        terminated: whether the environment ended it; False if it was cut off at the horizon.
        success: 1.0 or 0.0; nan where the environment does not report `is_success`.
    """

    total: float
    length: int
    terminated: bool
    success: float


Outcome = str | Callable[[Summary], float]


@dataclass
class Batch:
    """B whole episodes, the first ones by P_w.

    Attributes:
        log_p: [B] log-probability of its actions under P_w.
        log_q: [B] the same under the exploration policy as it was.
        total: [B] undiscounted return.
        length: [B] steps.
        terminated: [B] False where the horizon cut the episode off.
        success: [B] 1, 0 or nan.
        store: what the rollouts need of them to learn and to tell paths.
    """

    log_p: Floats
    log_q: Floats
    total: Floats
    length: Ints
    terminated: NDArray[np.bool_]
    success: Floats
    store: Any

    def summaries(self) -> list[Summary]:
        """Return each episode's summary."""
        columns = (self.total, self.length, self.terminated, self.success)
        return [Summary(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


class Measure:
    """An outcome with its name and bounds.

    Args:
        outcome: one of `OUTCOMES`, or a function.
        bounds: of a function's values.

    Raises:
        ValueError: the name is unknown, or a function comes without bounds.
    """

    def __init__(self, outcome: Outcome, bounds: tuple[float, float] | None = None) -> None:
        self.function = outcome if callable(outcome) else None
        if self.function is None:
            self.name = validation.require_name("outcome", outcome, OUTCOMES)
            if bounds is not None:
                raise ValueError(f"bounds are given for the outcome {self.name!r}, leave them out")
            unbounded = (-np.inf, np.inf)
            self.low, self.high = unbounded if self.name == "return" else (0.0, 1.0)
            return
        self.name = getattr(outcome, "__name__", "outcome")
        if bounds is None:
            raise ValueError("a function as outcome needs its bounds: pass bounds=(low, high)")
        self.low = validation.require_finite("the lower bound", bounds[0])
        self.high = validation.require_finite("the upper bound", bounds[1])
        if not self.low < self.high:
            raise ValueError(f"bounds are {bounds}, expected (low, high) with low below high")

    def __call__(self, batch: Batch) -> Floats:
        """Return [B] outcomes.

        Raises:
            ValueError: an outcome is outside the bounds or not finite, or the environment does not
                report it.
        """
        if self.function is not None:
            return self._call(self.function, batch)
        if self.name == "return":
            return _checked_returns(batch.total)
        if self.name == "horizon":
            return (~batch.terminated).astype(np.float64)
        if np.isnan(batch.success).any():
            raise ValueError(
                f"the environment reports no is_success, which {self.name!r} needs: "
                "evaluate 'return' or 'horizon', or a function of the episode"
            )
        failed: Floats = 1.0 - batch.success
        return failed if self.name == "failure" else failed * batch.terminated

    def _call(self, function: Callable[[Summary], float], batch: Batch) -> Floats:
        values = np.array([float(function(row)) for row in batch.summaries()])
        outside = ~((values >= self.low) & (values <= self.high))
        if outside.any():
            raise ValueError(
                f"the outcome of an episode is {values[outside][0]}, outside its bounds "
                f"({self.low:g}, {self.high:g}): pass wider bounds"
            )
        return values

    def largest(self, centre: float, seen: Floats) -> float:
        """Return the largest |f - centre| that can be, or, without bounds, that was seen."""
        ends = [self.low, self.high] if np.isfinite(self.high) else seen
        return float(np.abs(np.asarray(ends) - centre).max(initial=0.0)) or 1.0


def _checked_returns(returns: Floats) -> Floats:
    wrong = returns[~np.isfinite(returns)]
    if wrong.size:
        raise ValueError(
            f"the return of an episode is {wrong[0]}, expected a finite number: repair the "
            "environment's rewards"
        )
    return returns


class Path(NamedTuple):
    """What happened in one episode.

    Attributes:
        observations: [L + 1, ...] the states passed through (gridworld tables) or observations.
        actions: [L] actions.
        probabilities: [L] of each action under P_w.
        log_probability: of all its actions.
        outcome: f.
    """

    observations: NDArray[Any]
    actions: Ints
    probabilities: Floats
    log_probability: float
    outcome: float


class LikeliestPaths:
    """Of the episodes met, those that add most to the mean: P_w's probability times |f - c|."""

    def __init__(self) -> None:
        self._paths: dict[bytes, Path] = {}
        self._centre = 0.0

    def add(
        self,
        batch: Batch,
        outcomes: Floats,
        centre: float,
        path: Callable[[Batch, int], tuple[NDArray[Any], Ints, Floats]],
    ) -> None:
        """Keep what a batch has of them.

        Args:
            batch: B episodes.
            outcomes: [B] their outcomes f.
            centre: the typical outcome c as it is known now.
            path: returns observations, actions and their probabilities of an episode.
        """
        if centre != self._centre:
            self._centre = centre
            self._paths = {k: kept for k, kept in self._paths.items() if kept.outcome != centre}
        with np.errstate(divide="ignore"):
            scores = batch.log_p + np.log(np.abs(outcomes - centre))
        alike: dict[float, int] = {}
        for b in np.argsort(-scores, kind="stable").tolist():
            score = float(scores[b])
            full = len(self._paths) == _MOST_PATHS
            if score < _NEVER or (full and score <= min(map(self._score, self._paths.values()))):
                break
            alike[score] = alike.get(score, 0) + 1
            if alike[score] > _MOST_ALIKE:
                continue
            found = Path(*path(batch, b), float(batch.log_p[b]), float(outcomes[b]))
            key = found.actions.tobytes()  # where moves slip, the same actions may lead elsewhere
            if key not in self._paths or self._score(self._paths[key]) < score:
                self._paths[key] = found
            if len(self._paths) > _MOST_PATHS:
                del self._paths[min(self._paths, key=lambda key: self._score(self._paths[key]))]

    def best(self) -> tuple[Path, ...]:
        """Return them, the first one adds most."""
        return tuple(sorted(self._paths.values(), key=self._score, reverse=True))

    def _score(self, path: Path) -> float:
        return path.log_probability + float(np.log(abs(path.outcome - self._centre)))
