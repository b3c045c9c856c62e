"""Means of weighted outcomes that are rare: weights of a defensive mixture, and the interval.

Draws come from a mixture (1 - α) p + α q, a fixed number of p and of q in every batch (two
strata a batch), and are weighted by p over the mixture's density. Of the weighted outcomes W g most
are 0 and the others all of one sign, or nearly so: the mean of few such numbers is skewed, and a
symmetric interval would miss too often on one side.
"""

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.statistics import Interval

__all__ = [
    "WeightedMean",
    "largest_proportion",
    "mixture_weights",
    "weighted_interval",
    "weighted_median",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def mixture_weights(log_p: Floats, log_q: Floats, share: float) -> Floats:
    """Return [B] p / ((1 - share) p + share q), at most 1 / (1 - share).

    The balance heuristic of two strata (Veach and Guibas 1995), by the difference of the two log
    densities alone: exactly 1 where they agree, as `weights.balance_heuristic` is not.

    Args:
        log_p: [B] log densities under the target.
        log_q: [B] under the proposal.
        share: of the draws that are the proposal's, in [0, 1].

    Raises:
        ValueError: the mixture gives a draw of the target no density.
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


class WeightedMean:
    """The mean outcome c + mean W (f - c) of the batches added so far.

    c, the centre, may differ from batch to batch, if it is fixed before the batch is drawn.

    Attributes:
        parts: [N] weighted outcomes W (f - c).
        strata: [N] number of the stratum of each.
        largest_weight: of all W.
    """

    def __init__(self) -> None:
        self.parts = np.empty(0)
        self.strata = np.empty(0, np.int64)
        self.largest_weight = 0.0
        self._centres = np.empty(0)
        self._squares = np.empty(0)  # W (f - c)^2

    def add(self, weights: Floats, outcomes: Floats, centre: float, n_target: int) -> None:
        """Add a batch.

        Args:
            weights: [B] mixture weights W.
            outcomes: [B] outcomes f.
            centre: c.
            n_target: how many of them the target drew, which come first.
        """
        g = outcomes - centre
        stratum = self.strata.max(initial=-1) + 1 + (np.arange(len(g)) >= n_target)
        self.strata = np.append(self.strata, stratum)
        self.parts = np.append(self.parts, weights * g)
        self._centres = np.append(self._centres, np.full(len(g), centre))
        self._squares = np.append(self._squares, weights * g**2)
        self.largest_weight = max(self.largest_weight, float(weights.max()))

    @property
    def estimate(self) -> float:
        """The mean outcome."""
        return float((self._centres + self.parts).mean())

    @property
    def standard_error(self) -> float:
        """Of the estimate."""
        return float(np.sqrt(_mean_variance(self.parts, self.strata)))

    @property
    def relative_error(self) -> float:
        """Standard error as a share of the estimate; infinite while all outcomes are c."""
        if not self.parts.any() or self.estimate == 0.0:
            return np.inf
        return self.standard_error / abs(self.estimate)

    @property
    def ess(self) -> float:
        """How many equally weighted outcomes other than c the estimate rests on (Kish 1965)."""
        squares = float(np.square(self.parts).sum())
        return float(np.abs(self.parts).sum() ** 2) / squares if squares > 0.0 else 0.0

    @property
    def plain_variance(self) -> float:
        """Variance of one outcome f under the target, estimated from these draws."""
        return float(self._squares.mean() - self.parts.mean() ** 2)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The estimate with its `weighted_interval`."""
        centre = float(self._centres.mean())
        _, low, high = weighted_interval(self.parts, self.strata, confidence)
        return Interval(self.estimate, centre + low, centre + high)


def weighted_interval(parts: Floats, strata: Ints, confidence: float = 0.95) -> Interval:
    """Interval of a mean of skewed weighted outcomes, few of which are not 0.

    The gamma interval of Fay and Feuer (1997) for weighted counts, with the variance v as it was
    measured, enlarged by the square of one outcome of the largest size: for the lower end a gamma
    distribution of the mean y and that variance, for the upper one that of y and one such outcome
    more. For unit weights the upper end is Garwood's exact one of a Poisson count, and the lower
    end below his. Positive and negative parts are combined by MOVER (Zou and Donner 2008).

    The largest size is that of the outcomes *seen*: an outcome much heavier than all of them, which
    no draw has met, is not accounted for. The weights' bound limits how heavy it can be.

    Args:
        parts: [N] weighted outcomes W g.
        strata: [N] number of the stratum that each was drawn in: a policy in a batch.
        confidence: probability that the interval covers their expectation.
    """
    tail = 0.5 - 0.5 * confidence
    y, low, high = _gamma_interval(np.maximum(parts, 0.0), strata, tail)
    z, below, above = _gamma_interval(np.maximum(-parts, 0.0), strata, tail)
    return Interval(
        y - z,
        float(y - z - np.hypot(y - low, above - z)),
        float(y - z + np.hypot(high - y, z - below)),
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


def largest_proportion(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Return the upper bound, by itself, of a proportion (Clopper and Pearson 1934).

    Of no success in N trials it is about 3 / N: the rule of three.

    Args:
        successes: between 0 and `trials`.
        trials: how many.
        confidence: probability that the proportion is not above the bound.
    """
    from scipy.special import betaincinv

    if successes >= trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, confidence))


def weighted_median(values: Floats, weights: Floats) -> float:
    """Return the least of values [N] that, with those below it, holds half of the weight [N]."""
    order = np.argsort(values, kind="stable")
    running = weights[order].cumsum()
    return float(values[order][np.searchsorted(running, 0.5 * running[-1])])
