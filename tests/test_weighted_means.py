"""Weights, means and intervals of rare weighted outcomes."""

import numpy as np
import pytest
from scipy import stats

from awsgd_rl.weighted_means import (
    WeightedMean,
    largest_proportion,
    mixture_weights,
    weighted_interval,
    weighted_median,
)


def test_weights_are_bounded():
    rng = np.random.default_rng(0)
    log_p, log_q = rng.normal(0, 300, (2, 1000))
    weights = mixture_weights(log_p, log_q, 0.9)
    assert np.isfinite(weights).all()
    assert weights.max() <= 10.0 + 1e-12
    np.testing.assert_array_equal(mixture_weights(log_p, log_q, 0.0), 1.0)


def test_weights_are_unbiased():
    # Enumerated: the mixture's expectation of the weight is 1.
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 2)
    p[0] = 0.0
    p /= p.sum()
    with np.errstate(divide="ignore"):
        weights = mixture_weights(np.log(p), np.log(q), 0.7)
    assert ((0.3 * p + 0.7 * q) * weights).sum() == pytest.approx(1.0)


def test_a_proposal_that_misses_the_support_is_refused():
    with pytest.raises(ValueError, match="misses the target's support"):
        mixture_weights(np.zeros(2), np.array([0.0, -np.inf]), 1.0)
    assert mixture_weights(np.zeros(1), np.array([-np.inf]), 0.9)[0] == pytest.approx(10.0)


def draw_means(n_batches, rng):
    """A mean of f = x over x = 0, 1, 2 with centres that change and two strata a batch."""
    p, q, values = np.array([0.9, 0.08, 0.02]), np.array([0.1, 0.3, 0.6]), np.arange(3.0)
    mean = WeightedMean()
    for k in range(n_batches):
        x = np.append(rng.choice(3, 10, p=p), rng.choice(3, 30, p=q))
        weights = mixture_weights(np.log(p)[x], np.log(q)[x], 0.75)
        mean.add(weights, values[x], float(k % 2), 10)
    return mean, p @ values, p @ values**2 - (p @ values) ** 2


def test_means_are_unbiased_with_the_error_they_say():
    rng = np.random.default_rng(1)
    found = [draw_means(4, rng) for _ in range(800)]
    exact = found[0][1]
    estimates = np.array([mean.estimate for mean, *_ in found])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - exact) < 5 * error
    squares = np.array([mean.standard_error**2 for mean, *_ in found])
    of_squares = squares.std(ddof=1) / np.sqrt(len(squares))
    variance = estimates.var(ddof=1)
    of_variance = variance * np.sqrt(2 / len(found))
    assert abs(squares.mean() - variance) < 5 * np.hypot(of_squares, of_variance)
    covered = np.mean(
        [
            interval.low <= exact <= interval.high
            for interval in (mean.interval() for mean, *_ in found)
        ]
    )
    assert covered > 0.95 - 5 * np.sqrt(0.05 * 0.95 / len(found))


def test_the_plain_variance_is_the_targets():
    # One centre, from which the outcomes are as far as their mean allows.
    rng = np.random.default_rng(2)
    found = [draw_means(1, rng) for _ in range(500)]
    plain = np.array([mean.plain_variance for mean, *_ in found])
    # The square of a mean is too large by the mean's variance.
    bias = np.mean([mean.standard_error**2 for mean, *_ in found])
    error = plain.std(ddof=1) / np.sqrt(len(plain))
    assert abs(plain.mean() + bias - found[0][2]) < 5 * error


def test_the_effective_sample_size_counts_what_is_not_typical():
    mean = WeightedMean()
    assert mean.ess == 0.0
    mean.add(np.full(10, 0.5), np.array([1.0] * 4 + [0.0] * 6), 0.0, 5)
    assert mean.ess == pytest.approx(4.0)
    assert mean.largest_weight == 0.5
    empty = WeightedMean()
    empty.add(np.ones(10), np.zeros(10), 0.0, 10)
    assert (empty.ess, empty.relative_error) == (0.0, np.inf)


def test_intervals_of_counts_are_garwoods_or_wider():
    parts = np.zeros(100_000)
    parts[:7] = 1.0
    strata = np.zeros(100_000, np.int64)
    interval = weighted_interval(parts, strata)
    low, high = stats.chi2.ppf(0.025, 14) / 2, stats.chi2.ppf(0.975, 16) / 2
    assert 0.8 * low < interval.low * 100_000 < low
    assert interval.high * 100_000 == pytest.approx(high, rel=1e-3)
    flipped = weighted_interval(-parts, strata)
    assert (flipped.low, flipped.high) == (
        pytest.approx(-interval.high),
        pytest.approx(-interval.low),
    )


def test_a_proportion_is_at_most_clopper_and_pearsons_bound():
    assert largest_proportion(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    # At the bound, so few successes or fewer have probability 0.05.
    assert stats.binom.cdf(4, 50, largest_proportion(4, 50)) == pytest.approx(0.05)
    assert largest_proportion(3, 3) == 1.0


def test_the_median_is_weighted():
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_median(values, np.ones(3)) == 2.0
    assert weighted_median(values, np.array([5.0, 1.0, 1.0])) == 3.0
