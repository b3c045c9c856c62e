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
policy leaves nothing to explore, and the result says so.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awsgd_rl import validation
from awsgd_rl.agents.outcome_rollouts import Rollouts, make_rollouts
from awsgd_rl.agents.outcomes import Batch, LikeliestPaths, Measure, Outcome, Path
from awsgd_rl.weighted_means import (
    WeightedMean,
    largest_proportion,
    mixture_weights,
    weighted_median,
)

Floats = NDArray[np.float64]

MINIMUM_EPISODES = 200
_LEAST_MEASURED = 200  # episodes of the first measuring batch, if as many are left
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
            outcome, and `low` and `high` are the 95 % bounds that the plain episodes allow (for
            an agent that never failed: `high` is an upper bound, and there is no estimate).
        deterministic: P_w took every action with probability 1 (up to rounding): there was
            nothing to explore, and all episodes are plain rollouts.
        ess: how many equally weighted episodes off the typical outcome the estimate rests on.
        episodes: all episodes run.
        learning_episodes: those that only taught the exploration policy.
        naive_episodes: plain rollouts for the same standard error.
        variance_ratio: variance of one plain rollout over that of one measuring episode.
        largest_weight: of all measuring episodes; at most 1 / (1 - exploration share).
        typical: the typical outcome c.
        paths: of the episodes met, those that add most to the mean: P_w's probability times
            |f - c|.
    """

    outcome: str
    estimate: float
    standard_error: float
    low: float
    high: float
    bound_only: bool
    deterministic: bool
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
        outcome: one of `OUTCOMES` (`outcomes.py`), or a function of an episode's `Summary`.
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
    goal = _UNEXPLORED if relative_error is None else relative_error
    with closing(make_rollouts(agent, seed)) as rollouts:
        run = _Run(rollouts, measure, share, np.random.default_rng(seed))
        while not run.has_learned(goal, budget // 2):
            n = min(max(rollouts.minimum, run.done // rollouts.growth), budget // 2 - run.done)
            run.learn(n)
            progress(run.done, "learning")
        learned = run.done

        size = max(_LEAST_MEASURED, learned // 2)
        while run.done < budget:
            left = budget - run.done
            run.measure(left if left < size + _LEAST_MEASURED else size)
            size = run.done - learned
            progress(run.done, f"{measure.name} {run.mean.estimate:.3g}")
            if relative_error is not None and run.mean.relative_error <= relative_error:
                break
        return run.combine(learned)


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
    with closing(make_rollouts(agent, seed)) as rollouts:
        measure(rollouts.run(1, 0, np.random.default_rng(seed)))


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


class _Run:
    """One evaluation, batch by batch."""

    def __init__(
        self,
        rollouts: Rollouts,
        outcome: Measure,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        self.rollouts, self.outcome, self.share, self.rng = rollouts, outcome, share, rng
        self.done = 0
        self.mean = WeightedMean()  # of the measuring batches
        self.centre = 0.0  # c of the next batch
        self._last = WeightedMean()  # of the last batch
        self._outcomes, self._weights = np.empty(0), np.empty(0)
        self._unlearned: tuple[Batch, Floats] | None = None
        self._plain = self._plain_off = 0  # episodes drawn by P_w, and those of them off c
        self._deterministic = True
        self._paths = LikeliestPaths()

    def has_learned(self, goal: float, most: int) -> bool:
        """Whether learning is over: a standard error of `goal` is in reach, or `most` are run."""
        if self.done >= most:
            return True
        self._fit()
        known, possible = self.rollouts.known, self.rollouts.possible
        if known == 0.0 or self.done == 0:
            return False
        if np.isfinite(possible):
            return possible - known <= goal * known
        return self._last.relative_error**2 / goal**2 * len(self._last.parts) <= self.done

    def learn(self, n: int) -> None:
        """Run `n` episodes that teach the exploration policy alone."""
        self._fit()
        # A table always has what was never tried; a network aims once it has met the outcome.
        aiming = self.rollouts.known > 0.0 or np.isfinite(self.rollouts.possible)
        self._batch(n, round(self.share * n) if aiming else 0)

    def measure(self, n: int) -> None:
        """Run `n` episodes that enter the estimate (and teach, for the batches that follow)."""
        self._fit()
        # With nothing to aim at, plain episodes give the tightest bound. Two of them at least, for
        # their variance, and for weights that are bounded.
        explored = min(round(self.share * n), n - 2) if self.rollouts.known > 0.0 else 0
        centre = self.centre
        self.mean.add(*self._batch(n, explored), centre, n - explored)

    def _fit(self) -> None:
        """Fit the critic to the last batch, which what is last of all spares itself."""
        if self._unlearned is not None:
            largest = self.outcome.largest(self.centre, self._outcomes)
            self.rollouts.learn(*self._unlearned, self.centre, largest)
            self._unlearned = None

    def _batch(self, n: int, explored: int) -> tuple[Floats, Floats]:
        """Run episodes, `explored` of them by Q; return weights and outcomes [n]."""
        batch = self.rollouts.run(n - explored, explored, self.rng)
        outcomes = self.outcome(batch)
        weights = mixture_weights(batch.log_p, batch.log_q, explored / n)
        self._last = WeightedMean()
        self._last.add(weights, outcomes, self.centre, n - explored)
        self.done += n
        self._deterministic &= not batch.log_p.any()
        # For what is drawn next: the median under P_w.
        self._outcomes = np.append(self._outcomes, outcomes)
        self._weights = np.append(self._weights, weights)
        self.centre = weighted_median(self._outcomes, self._weights)
        self._paths.add(batch, outcomes, self.centre, self.rollouts.path)
        self._plain += n - explored
        self._plain_off += int((outcomes[: n - explored] != self.centre).sum())
        self._unlearned = batch, outcomes
        return weights, outcomes

    def combine(self, learned: int) -> OutcomeEstimate:
        """Return the estimate, `learned` episodes having been for learning."""
        mean, outcome = self.mean, self.outcome
        bound_only = not mean.parts.any()
        if bound_only:
            # One-sided, from the plain episodes alone.
            plain, off = self._plain, self._plain_off
            if self._deterministic:  # what Q drew is plain too
                plain, off = self.done, int((self._outcomes != self.centre).sum())
            most = largest_proportion(off, plain)
            low = self.centre - most * (self.centre - outcome.low)
            high = self.centre + most * (outcome.high - self.centre)
            error = naive = np.nan
        else:
            _, low, high = mean.interval()
            low, high = max(low, outcome.low), min(high, outcome.high)
            error = mean.standard_error
            naive = mean.plain_variance / error**2 if error > 0.0 else np.inf
        return OutcomeEstimate(
            outcome=outcome.name,
            estimate=mean.estimate,
            standard_error=error,
            low=low,
            high=high,
            bound_only=bound_only,
            deterministic=self._deterministic,
            ess=mean.ess,
            episodes=self.done,
            learning_episodes=learned,
            naive_episodes=naive,
            variance_ratio=naive / len(mean.parts),
            largest_weight=mean.largest_weight,
            typical=self.centre,
            paths=self._paths.best(),
        )
