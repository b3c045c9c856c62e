"""Confidence intervals over independent runs: means, ratios of paired runs, proportions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Band",
    "Interval",
    "bootstrap_interval",
    "mean_band",
    "mean_interval",
    "proportion_interval",
    "ratio_interval",
]

FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval; the ends are NaN where one run tells nothing."""

    estimate: float
    low: float
    high: float


class Band(NamedTuple):
    """[K] point-wise estimates with their confidence intervals."""

    estimate: FloatArray
    low: FloatArray
    high: FloatArray


def mean_interval(
    samples: ArrayLike,
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of runs with Student's t interval: exact for normal runs, N − 1 degrees of freedom.

    Args:
        samples: [N] one number a run. With N = 1 the ends are NaN.
        confidence: probability that the interval covers the mean, in (0, 1).
        bounds: the range of the mean (0 and 1 for a probability), to which the ends are cut.

    Returns:
        The mean and the two ends, in the unit of the samples.

    Raises:
        ValueError: for samples that are not [N], none, or not finite; for a bad confidence.
    """
    values = _finite_samples(samples, "samples")
    band = mean_band(values[:, None], confidence, bounds=bounds)
    return Interval(float(band.estimate[0]), float(band.low[0]), float(band.high[0]))


def mean_band(
    samples: ArrayLike,
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Band:
    """`mean_interval` at each of K points of a curve (point-wise, not simultaneous).

    Args:
        samples: [N, K] one curve a run.
        confidence: probability, at each point by itself, that the band covers the mean, in (0, 1).
        bounds: the range of the mean, to which the band is cut.

    Returns:
        [K] means and ends.

    Raises:
        ValueError: for samples that are not [N, K], none, or not finite; for a bad confidence.
    """
    from scipy.special import stdtrit

    values = _finite_samples(samples, "samples", ndim=2)
    _check_confidence(confidence)
    n = len(values)
    mean = values.mean(axis=0)
    if n == 1:
        unknown = np.full_like(mean, np.nan)
        return Band(mean, unknown, unknown)
    quantile = float(stdtrit(n - 1, 0.5 + 0.5 * confidence))
    half = quantile * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Band(mean, np.maximum(mean - half, bounds[0]), np.minimum(mean + half, bounds[1]))


def bootstrap_interval(
    statistic: Callable[..., Any],
    *samples: ArrayLike,
    rng: np.random.Generator,
    n: int = 9_999,
    paired: bool = False,
    confidence: float = 0.95,
) -> Interval:
    """Bootstrap over runs: expanded percentiles of the statistic of resampled runs.

    Plain percentiles (and BCa) are too narrow for few runs. Their level is widened here to what
    makes them agree with Student's t for a mean: `Φ(−sqrt(N / (N − 1)) t)` in each tail (Hesterberg
    2015, "What Teachers Should Know about the Bootstrap", section 4.3). What no run shows, a rare
    failure for one, no bootstrap can account for.

    Args:
        statistic: function of the samples and `axis`, vectorised as NumPy's own (`numpy.mean`).
        *samples: [N] one number a run; one array or several. With N = 1 the ends are NaN.
        rng: source of the resampling.
        n: number of resamples.
        paired: entry i of every sample comes from the same run, and is resampled with it.
        confidence: probability that the interval covers the statistic, in (0, 1).

    Returns:
        The statistic of the samples and the two ends.

    Raises:
        ValueError: for samples that are missing, empty, not finite, or (paired) of unequal length;
            for fewer than 100 resamples; for a confidence outside (0, 1).
    """
    from scipy import stats

    if not samples:
        raise ValueError("got no sample, expected at least one array of runs")
    values = [_finite_samples(sample, f"sample {i}") for i, sample in enumerate(samples)]
    _check_confidence(confidence)
    lengths = [len(value) for value in values]
    if paired and len(set(lengths)) > 1:
        raise ValueError(f"paired samples need the same runs in each, got {lengths} of them")
    if n < 100:
        raise ValueError(f"n must be at least 100 resamples for an interval, got {n}")
    runs = min(lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(*values, axis=-1))
        if runs == 1:
            return Interval(estimate, np.nan, np.nan)
        resampled = stats.bootstrap(
            values,
            statistic,
            n_resamples=n,
            paired=paired,
            vectorized=True,
            method="percentile",
            rng=rng,
        ).bootstrap_distribution
    quantile = stats.t.ppf(0.5 + 0.5 * confidence, runs - 1)
    tail = stats.norm.cdf(-np.sqrt(runs / (runs - 1)) * quantile)
    # Not interpolated: half-way between a number and infinity there is nothing.
    low, high = np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf")
    return Interval(estimate, float(low), float(high))


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    rng: np.random.Generator,
    n: int = 9_999,
    confidence: float = 0.95,
) -> Interval:
    """Ratio of two means over the same runs, by resampling the runs in pairs.

    `mean(numerator) / mean(denominator)`, not the mean of the ratios: a run where the denominator
    is almost zero does not decide the answer.

    Args:
        numerator: [N] one non-negative number a run (a map, a seed).
        denominator: [N] the same runs in the same order, non-negative.
        rng: source of the resampling.
        n: number of resamples.
        confidence: probability that the interval covers the ratio, in (0, 1).

    Returns:
        The ratio and the two ends. A mean denominator of zero gives an infinite ratio (NaN where
        the numerator is zero too) whose lower end is NaN: unknown.

    Raises:
        ValueError: as `bootstrap_interval`, and for negative entries.
    """
    above = _finite_samples(numerator, "numerator")
    below = _finite_samples(denominator, "denominator")
    for name, values in (("numerator", above), ("denominator", below)):
        if values.min() < 0:
            raise ValueError(f"{name} must be non-negative, got {values.min()}")
    if not below.any():
        return Interval(np.inf if above.any() else np.nan, np.nan, np.inf)
    return bootstrap_interval(
        _ratio_of_means, above, below, rng=rng, n=n, paired=True, confidence=confidence
    )


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Success probability of independent trials with Wilson's score interval (Wilson 1927).

    Args:
        successes: number of trials that succeeded, between 0 and `trials`.
        trials: number of trials, at least 1.
        confidence: probability that the interval covers the proportion, in (0, 1).

    Returns:
        The observed proportion and the two ends, within [0, 1].

    Raises:
        ValueError: for counts out of range or a confidence outside (0, 1).
    """
    from scipy import stats

    _check_confidence(confidence)
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and {trials} trials, got {successes}")
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def _ratio_of_means(above: FloatArray, below: FloatArray, axis: int = -1) -> Any:
    return np.mean(above, axis=axis) / np.mean(below, axis=axis)


def _finite_samples(samples: ArrayLike, name: str, ndim: int = 1) -> FloatArray:
    values = np.asarray(samples, dtype=np.float64)
    expected = "[N]" if ndim == 1 else "[N, K]"
    if values.ndim != ndim:
        raise ValueError(f"{name} must have shape {expected}, got {list(values.shape)}")
    if values.size == 0:
        raise ValueError(f"{name} must hold at least one run, got none")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} must be finite, got {count} of {values.size} that are not")
    return values


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), got {confidence}")
