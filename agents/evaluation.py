"""How often does this agent fail? An outcome's mean under P_w, by exploration that is learned.

Plain rollouts see an outcome of probability p once in 1/p episodes. Here an exploration policy Q is
learned that makes the outcome frequent, and its episodes ξ are weighted back:

    draw ξ from (1 - α) P_w + α Q          whole episodes, a fixed number of each
    weight W = p(ξ) / ((1 - α) p(ξ) + α q(ξ)) <= 1 / (1 - α)          (balance heuristic, seed 004)
    estimate c + mean W (f(ξ) - c)          f the outcome, c its typical value, fixed beforehand

1. *Learning*: batches of episodes, after each of which the critic is fitted to all transitions so
   far and aims Q anew (`outcome_critics.py`), until nothing untried can matter (tables), or as
   many episodes are spent as the measurement will cost (networks); half the budget at most.
   These episodes enter the critic and c, and not the estimate.
2. *Measuring*: batches that double the number of episodes; Q and c of a batch depend on earlier
   batches alone, so that each batch is unbiased given them, and so is their fixed average.
   Stopping at a batch whose standard error is small enough (`relative_error`) is the one bias; it
   is of second order, and the bench `evaluation` measures it.

What is evaluated is the *stochastic* policy P_w, not its most probable actions: a deterministic
policy leaves nothing to explore.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from awsgd_rl import validation
from awsgd_rl.agents.outcome_rollouts import (
    Batch,
    EngineRollouts,
    Path,
    Summary,
    VectorRollouts,
)
from awsgd_rl.statistics import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Outcome = str | Callable[[Summary], float]

OUTCOMES = {
    "failure": "the episode has no success (1 - is_success)",
    "trap": "the environment ended the episode, without success",
    "horizon": "the episode was cut off at its longest length",
    "return": "the undiscounted return",
}
"""Outcomes by name."""

MINIMUM_EPISODES = 200
_LEAST_MEASURED = 200  # episodes of the first measuring batch, if as many are left
_MOST_PATHS = 6
_NEVER = -700.0  # log-probability of what is not worth telling
_UNEXPLORED = 0.05  # share of the estimate that untried actions may hide, if no error is asked for


@dataclass(frozen=True)
class OutcomeEstimate:
    """An outcome's mean under P_w, and what it took to estimate it.

    Attributes:
        outcome: its name.
        estimate: the mean outcome of an episode (for failures and the like: the probability).
        standard_error: of the estimate; nan if `bound_only`.
        low: lower end of the 95 % interval.
        high: its upper end.
        bound_only: the measurement met no episode off the typical outcome: `estimate` is that
            outcome, and `low` and `high` are the 95 % bounds that the plain episodes allow.
        ess: how many equally weighted episodes off the typical outcome the estimate rests on.
        episodes: all episodes run.
        learning_episodes: those that only taught the exploration policy.
        naive_episodes: plain rollouts for the same standard error.
        variance_ratio: variance of one plain rollout over that of one measuring episode.
        largest_weight: of all measuring episodes; at most 1 / (1 - exploration share).
        typical: the typical outcome c.
        paths: episodes that add most to the mean, by P_w's probability times |f - c|.
    """

    outcome: str
    estimate: float
    standard_error: float
    low: float
    high: float
    bound_only: bool
    ess: float
    episodes: int
    learning_episodes: int
    naive_episodes: float
    variance_ratio: float
    largest_weight: float
    typical: float
    paths: tuple[Path, ...] = field(repr=False)


def estimate_outcome(
    agent: Any,
    outcome: Outcome = "failure",
    *,
    bounds: tuple[float, float] | None = None,
    episodes: int = 100_000,
    relative_error: float | None = 0.1,
    exploration_share: float = 0.9,
    seed: int = 0,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> OutcomeEstimate:
    """Estimate the mean of an outcome under an agent's policy P_w.

    Args:
        agent: a table or MLP agent of this package with Discrete actions.
        outcome: one of `OUTCOMES`, or a function of an episode's `Summary`.
        bounds: what a function's values lie in (low, high).
        episodes: most episodes to run, those of learning included; 200 or more.
        relative_error: standard error, as a share of the estimate, at which to stop; None runs all
            episodes, which leaves no bias.
        exploration_share: α in [0, 1): share of the episodes that the exploration policy draws.
        seed: of all draws; the same seed gives the same numbers.
        progress: called with the episodes done, and what is being done.

    Raises:
        ValueError: the agent has no such policy, the outcome is unknown, missing or outside its
            bounds, the budget too small for an interval, or an argument out of range.
    """
    budget, share = _check(episodes, relative_error, exploration_share, seed)
    measure = Measure(outcome, bounds)
    rng = np.random.default_rng(seed)
    rollouts = make_rollouts(agent, seed)
    run = _Run(rollouts, measure, share, rng)
    goal = _UNEXPLORED if relative_error is None else relative_error

    while not run.ready(goal, budget // 2):
        n = min(max(rollouts.minimum, run.done // rollouts.growth), budget // 2 - run.done)
        run.batch(n)
        progress(run.done, "learning")
    learned = run.done
    measured = run.start_measuring()
    size = max(_LEAST_MEASURED, learned // 2)
    while run.done < budget:
        left = budget - run.done
        run.batch(left if left < size + _LEAST_MEASURED else size)
        size = run.done - learned
        progress(run.done, f"{measure.name} {measured.estimate:.3g}")
        if relative_error is not None and measured.relative_error <= relative_error:
            break
    return run.result(learned)


def check_arguments(
    agent: Any,
    outcome: Outcome = "failure",
    *,
    bounds: tuple[float, float] | None = None,
    episodes: int = 100_000,
    relative_error: float | None = 0.1,
    exploration_share: float = 0.9,
    seed: int = 0,
) -> None:
    """Raise what `estimate_outcome` would, after one episode at most."""
    _check(episodes, relative_error, exploration_share, seed)
    measure = Measure(outcome, bounds)
    measure(make_rollouts(agent, seed).run(1, 0, np.random.default_rng(seed)))


def _check(
    episodes: int, relative_error: float | None, exploration_share: float, seed: int
) -> tuple[int, float]:
    budget = validation.require_integer("episodes", episodes)
    if budget < MINIMUM_EPISODES:
        raise ValueError(
            f"episodes is {budget}, too few for an interval: expected {MINIMUM_EPISODES} or more"
        )
    if relative_error is not None:
        validation.require_positive("relative_error", relative_error)
    if exploration_share == 1:
        raise ValueError(
            "exploration_share is 1: the proposal may then miss what the policy does, "
            "expected below 1"
        )
    validation.require_integer("seed", seed, minimum=0)
    return budget, validation.require_fraction("exploration_share", exploration_share)


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
            ValueError: an outcome is outside the bounds, or the environment does not report it.
        """
        if self.name in ("failure", "trap") and self.function is None:
            if np.isnan(batch.success).any():
                raise ValueError(
                    f"the environment reports no is_success, which {self.name!r} needs: "
                    "evaluate 'return' or 'horizon', or a function of the episode"
                )
            failed: Floats = 1.0 - batch.success
            return failed if self.name == "failure" else failed * batch.terminated
        if self.function is None:
            return batch.total if self.name == "return" else (~batch.terminated).astype(np.float64)
        values = np.array([float(self.function(row)) for row in batch.summaries()])
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


def make_rollouts(agent: Any, seed: int) -> EngineRollouts | VectorRollouts:
    """Return what runs an agent's episodes.

    Raises:
        ValueError: the agent has no stochastic policy over Discrete actions that can be explored.
    """
    from awsgd_rl.agents.neural import NeuralLearner
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


class _Measured:
    """Weighted outcomes W (f - c) of the measuring batches."""

    def __init__(self) -> None:
        self.parts = np.empty(0)  # W (f - c)
        self.centres = np.empty(0)
        self.squares = np.empty(0)  # W (f - c)^2
        self.strata = np.empty(0, np.int64)  # two for each batch: drawn by P_w, and by Q
        self.largest_weight = 0.0

    def add(self, weights: Floats, outcomes: Floats, centre: float, n_target: int) -> None:
        g = outcomes - centre
        stratum = self.strata.max(initial=-1) + 1 + (np.arange(len(g)) >= n_target)
        self.strata = np.append(self.strata, stratum)
        self.parts = np.append(self.parts, weights * g)
        self.centres = np.append(self.centres, np.full(len(g), centre))
        self.squares = np.append(self.squares, weights * g**2)
        self.largest_weight = max(self.largest_weight, float(weights.max()))

    @property
    def estimate(self) -> float:
        return float((self.centres + self.parts).mean())

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(_mean_variance(self.parts, self.strata)))

    @property
    def relative_error(self) -> float:
        if not self.parts.any() or self.estimate == 0.0:
            return np.inf
        return self.standard_error / abs(self.estimate)


class _Run:
    """The state of one evaluation."""

    def __init__(
        self,
        rollouts: EngineRollouts | VectorRollouts,
        measure: Measure,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        self.rollouts, self.measure, self.share, self.rng = rollouts, measure, share, rng
        self.done = 0
        self.centre = 0.0
        self.measured: _Measured | None = None
        self.plain = 0  # episodes drawn by P_w
        self.plain_off = 0  # of them, those off the typical outcome
        self._learning = _Measured()
        self._outcomes, self._weights = np.empty(0), np.empty(0)
        self._paths: dict[bytes, tuple[float, Path]] = {}
        self._unlearned: tuple[Batch, Floats] | None = None

    def ready(self, goal: float, most: int) -> bool:
        """Whether learning is over."""
        if self.done >= most:
            return True
        self._learn()
        known, possible = self.rollouts.known, self.rollouts.possible
        if known == 0.0 or self.done == 0:
            return False
        if np.isfinite(possible):
            return possible - known <= goal * known
        return self._learning.relative_error**2 / goal**2 * len(self._learning.parts) <= self.done

    def start_measuring(self) -> _Measured:
        self.measured = _Measured()
        return self.measured

    def batch(self, n: int) -> None:
        """Run `n` episodes, measure by them if it is time, and learn from them."""
        self._learn()
        # With nothing to aim at, plain episodes give the tightest bound; a table, while learning,
        # always has what was never tried.
        untried = self.measured is None and np.isfinite(self.rollouts.possible)
        aiming = self.rollouts.known > 0.0 or untried
        explored = round(self.share * n) if aiming else 0
        batch = self.rollouts.run(n - explored, explored, self.rng)
        outcomes = self.measure(batch)
        weights = mixture_weights(batch.log_p, batch.log_q, explored / n)
        if self.measured is not None:
            self.measured.add(weights, outcomes, self.centre, n - explored)
        self._learning = _Measured()
        self._learning.add(weights, outcomes, self.centre, n - explored)
        self._outcomes = np.append(self._outcomes, outcomes)
        self._weights = np.append(self._weights, weights)
        self.plain += n - explored
        self.done += n
        self._keep_paths(batch, outcomes)
        # For what is drawn next: the median under P_w.
        self.centre = _weighted_median(self._outcomes, self._weights)
        self._unlearned = batch, outcomes
        self.plain_off += int((outcomes[: n - explored] != self.centre).sum())

    def _learn(self) -> None:
        """Fit the critic to the last batch, which what is last of all spares itself."""
        if self._unlearned is not None:
            largest = self.measure.largest(self.centre, self._outcomes)
            self.rollouts.learn(*self._unlearned, self.centre, largest)
            self._unlearned = None

    def result(self, learned: int) -> OutcomeEstimate:
        measured, measure = self.measured, self.measure
        assert measured is not None
        bound_only = not measured.parts.any()
        if bound_only:
            low, high = self._bounds()
            error, ess = np.nan, 0.0
            naive = ratio = np.nan
        else:
            interval = weighted_interval(measured.parts, measured.strata)
            centre = float(measured.centres.mean())
            low = max(centre + interval.low, measure.low)
            high = min(centre + interval.high, measure.high)
            error = measured.standard_error
            ess = float(np.abs(measured.parts).sum() ** 2 / np.square(measured.parts).sum())
            plain = float(measured.squares.mean() - measured.parts.mean() ** 2)
            naive = plain / error**2
            ratio = naive / len(measured.parts)
        best = sorted(self._paths.values(), key=lambda scored: -scored[0])[:_MOST_PATHS]
        return OutcomeEstimate(
            outcome=measure.name,
            estimate=measured.estimate,
            standard_error=error,
            low=float(low),
            high=float(high),
            bound_only=bound_only,
            ess=ess,
            episodes=self.done,
            learning_episodes=learned,
            naive_episodes=naive,
            variance_ratio=ratio,
            largest_weight=measured.largest_weight,
            typical=self.centre,
            paths=tuple(path for _, path in best),
        )

    def _bounds(self) -> tuple[float, float]:
        """Clopper and Pearson's one-sided 95 % bound, from the plain episodes alone."""
        from scipy.special import betaincinv

        off = self.plain_off
        most = float(betaincinv(off + 1, self.plain - off, 0.95)) if off < self.plain else 1.0
        low = self.centre - most * (self.centre - self.measure.low)
        high = self.centre + most * (self.measure.high - self.centre)
        return low, high

    def _keep_paths(self, batch: Batch, outcomes: Floats) -> None:
        off = np.abs(outcomes - self.centre)
        with np.errstate(divide="ignore"):
            scores = batch.log_p + np.log(off)
        least = min((score for score, _ in self._paths.values()), default=-np.inf)
        full = len(self._paths) >= _MOST_PATHS
        for b in np.argsort(-scores, kind="stable")[: 4 * _MOST_PATHS]:
            if scores[b] < _NEVER or (full and scores[b] <= least):
                break
            parts = self.rollouts.path(batch, int(b))
            path = Path(*parts, float(batch.log_p[b]), float(outcomes[b]))
            self._paths[path.actions.tobytes()] = (float(scores[b]), path)
        best = sorted(self._paths.items(), key=lambda item: -item[1][0])[:_MOST_PATHS]
        self._paths = dict(best)


def mixture_weights(log_p: Floats, log_q: Floats, share: float) -> Floats:
    """Return [B] p / ((1 - share) p + share q), at most 1 / (1 - share).

    Args:
        log_p: [B] log densities under P_w.
        log_q: [B] under the exploration policy.
        share: of the exploration policy, in [0, 1].

    Raises:
        ValueError: the mixture gives an episode of P_w no density.
    """
    if share == 0.0:
        return np.ones(len(log_p))
    if share == 1.0 and (np.isneginf(log_q) & (log_p > -np.inf)).any():
        raise ValueError(
            "the proposal misses the target's support: it never draws an episode that P_w does; "
            "expected a share below 1"
        )
    with np.errstate(over="ignore"):
        weights: Floats = 1.0 / ((1.0 - share) + share * np.exp(log_q - log_p))
    return weights


def weighted_interval(parts: Floats, strata: Ints, confidence: float = 0.95) -> Interval:
    """Interval of a mean of skewed weighted outcomes, few of which are not 0.

    The gamma interval of Fay and Feuer (1997) for weighted counts, with the variance v as it was
    measured, enlarged by the square of one outcome of the largest size: for the lower end a gamma
    distribution of the mean y and that variance, for the upper one that of y and one such outcome
    more. For unit weights the upper end is Garwood's exact one of a Poisson count, and the lower
    end below his. Positive and negative parts are combined by MOVER (Zou and Donner 2008).

    Args:
        parts: [N] weighted outcomes W g.
        strata: [N] number of the stratum that each was drawn in: a policy in a batch.
        confidence: probability that the interval covers their expectation.
    """
    tail = 0.5 - 0.5 * confidence
    y, low, high = _gamma_interval(np.maximum(parts, 0.0), strata, tail)
    z, below, above = _gamma_interval(np.maximum(-parts, 0.0), strata, tail)
    return Interval(
        y - z, y - z - np.hypot(y - low, above - z), y - z + np.hypot(high - y, z - below)
    )


def _mean_variance(parts: Floats, strata: Ints) -> float:
    """Return the variance of the mean of parts [N] that were drawn in strata [N] of fixed sizes."""
    n, first, second = (np.bincount(strata, weights) for weights in (None, parts, parts**2))
    several = n > 1  # of a single draw nothing is known
    n, first, second = n[several], first[several], second[several]
    squares = np.maximum(second - first**2 / n, 0.0)
    return float((n / (n - 1) * squares).sum()) / len(parts) ** 2


def _gamma_interval(parts: Floats, strata: Ints, tail: float) -> tuple[float, float, float]:
    from scipy.special import gammaincinv

    mean = float(parts.mean())
    if mean == 0.0:
        return 0.0, 0.0, 0.0
    variance = _mean_variance(parts, strata)
    one = float(parts.max()) / len(parts)
    more = variance + one**2
    low = gammaincinv(mean**2 / more, tail) * more / mean
    high = gammaincinv((mean + one) ** 2 / more, 1.0 - tail) * more / (mean + one)
    return mean, float(low), float(high)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    running = weights[order].cumsum()
    return float(values[order][np.searchsorted(running, 0.5 * running[-1])])
