"""Intervals: closed forms, coverage by simulation, and input that has no answer."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl.statistics import (
    Interval,
    bootstrap_interval,
    mean_band,
    mean_interval,
    proportion_interval,
    ratio_interval,
)


def within_five_errors(hits: np.ndarray, probability: float) -> bool:
    error = math.sqrt(probability * (1 - probability) / len(hits))
    return abs(hits.mean() - probability) <= 5 * error


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_mean_interval_is_students():
    # Samples with mean 2 and standard deviation 1; t at 2 degrees of freedom has a closed form.
    interval = mean_interval([1.0, 2.0, 3.0], confidence=0.9)
    quantile = 0.9 * math.sqrt(2 / (1 - 0.9**2))
    assert interval.estimate == 2.0
    assert interval.high == pytest.approx(2 + quantile / math.sqrt(3), rel=1e-12)
    assert interval.low == pytest.approx(2 - quantile / math.sqrt(3), rel=1e-12)


@pytest.mark.parametrize("runs", [2, 5, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_mean_interval_covers_as_often_as_it_says(runs, confidence):
    rng = np.random.default_rng(runs)
    samples = rng.normal(3.0, 2.0, size=(runs, 4_000))
    band = mean_band(samples, confidence)
    hits = (band.low <= 3.0) & (band.high >= 3.0)
    assert within_five_errors(hits, confidence)


def test_band_is_the_interval_at_each_point():
    samples = np.random.default_rng(0).random((7, 4))
    band = mean_band(samples)
    for k in range(4):
        interval = mean_interval(samples[:, k])
        assert (band.estimate[k], band.low[k], band.high[k]) == pytest.approx(interval, rel=1e-13)


def test_bounds_cut_the_ends_only():
    free = mean_interval([0.9, 1.0, 1.0])
    cut = mean_interval([0.9, 1.0, 1.0], bounds=(0.0, 1.0))
    assert free.high > 1.0
    assert cut == (free.estimate, free.low, 1.0)


def test_one_run_has_no_interval():
    for interval in (
        mean_interval([0.25]),
        bootstrap_interval(np.mean, [0.25], rng=np.random.default_rng(0)),
        ratio_interval([0.25], [1.0], rng=np.random.default_rng(0)),
    ):
        assert interval.estimate == 0.25
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)


def test_bootstrap_of_a_mean_agrees_with_student():
    samples = np.random.default_rng(1).normal(size=12)
    ours = bootstrap_interval(np.mean, samples, rng=np.random.default_rng(2), n=20_000)
    student = mean_interval(samples)
    # The resampled means are normal up to O(1/N): the ends agree to a few per cent of the width.
    assert ours.estimate == pytest.approx(student.estimate)
    width = student.high - student.low
    assert abs(ours.low - student.low) < 0.1 * width
    assert abs(ours.high - student.high) < 0.1 * width


def test_bootstrap_of_a_ratio_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(400):
        shared = rng.normal(size=40)  # what a hard map does to both algorithms
        above = np.exp(0.3 * shared + 0.3 * rng.normal(size=40))
        below = np.exp(0.3 * shared + 0.2 * rng.normal(size=40))
        truth = math.exp((0.3**2 - 0.2**2) / 2)
        hits.append(covers(ratio_interval(above, below, rng=rng, n=400), truth))
    assert within_five_errors(np.array(hits), 0.95)


def test_pairing_narrows_a_ratio():
    rng = np.random.default_rng(4)
    shared = np.exp(rng.normal(size=30))
    above, below = 3 * shared * rng.uniform(0.9, 1.1, 30), shared
    ratio = ratio_interval(above, below, rng=rng)
    unpaired = bootstrap_interval(
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis), above, below, rng=rng
    )
    assert ratio.estimate == pytest.approx(above.mean() / below.mean())
    assert covers(ratio, 3.0)
    assert ratio.high - ratio.low < 0.3 * (unpaired.high - unpaired.low)


def test_proportional_runs_give_a_point():
    ratio = ratio_interval([0.2, 0.4, 0.8], [0.1, 0.2, 0.4], rng=np.random.default_rng(0))
    assert ratio == pytest.approx((2.0, 2.0, 2.0))


def test_ratio_to_nothing_is_unbounded():
    rng = np.random.default_rng(0)
    nothing = ratio_interval([0.1, 0.2], [0.0, 0.0], rng=rng)
    assert nothing.estimate == math.inf
    assert math.isnan(nothing.low)
    assert math.isnan(ratio_interval([0.0], [0.0], rng=rng).estimate)
    # Some resamples have no failure in the denominator: only the upper end is unbounded.
    sometimes = ratio_interval([0.5, 0.5, 0.5], [0.0, 0.0, 0.5], rng=rng)
    assert sometimes.estimate == pytest.approx(3.0)
    assert sometimes.high == math.inf
    assert sometimes.low == pytest.approx(1.0)


def test_same_generator_same_interval():
    samples = np.random.default_rng(5).random((2, 10))
    first, second = (ratio_interval(*samples, rng=np.random.default_rng(6)) for _ in range(2))
    assert first == second


def test_wilson_closed_form():
    z = NormalDist().inv_cdf(0.975)
    interval = proportion_interval(7, 50)
    centre = (7 / 50 + z * z / 100) / (1 + z * z / 50)
    half = z / (1 + z * z / 50) * math.sqrt(0.14 * 0.86 / 50 + z * z / (4 * 50 * 50))
    assert interval == pytest.approx((0.14, centre - half, centre + half), rel=1e-12)


@given(st.integers(1, 200), st.data())
def test_wilson_stays_inside(trials, data):
    successes = data.draw(st.integers(0, trials))
    estimate, low, high = proportion_interval(successes, trials)
    assert 0.0 <= low <= estimate <= high <= 1.0
    assert low < high


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one run"),
        ([[1.0, 2.0]], r"shape \[N\], got \[1, 2\]"),
        ([1.0, math.nan], "finite, got 1 of 2"),
        ([1.0, math.inf], "finite, got 1 of 2"),
    ],
)
def test_samples_without_an_answer(samples, message):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        mean_interval(samples)
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.mean, samples, rng=rng)
    with pytest.raises(ValueError, match=message):
        ratio_interval(samples, [1.0, 1.0], rng=rng)


def test_bad_arguments():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="confidence must lie inside"):
        mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="no sample"):
        bootstrap_interval(np.mean, rng=rng)
    with pytest.raises(ValueError, match=r"same runs in each, got \[2, 3\]"):
        ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0], rng=rng)
    with pytest.raises(ValueError, match="100 resamples"):
        bootstrap_interval(np.mean, [1.0, 2.0], rng=rng, n=10)
    with pytest.raises(ValueError, match="numerator must be non-negative, got -1"):
        ratio_interval([-1.0], [1.0], rng=rng)
    with pytest.raises(ValueError, match="between 0 and 3"):
        proportion_interval(4, 3)
    with pytest.raises(ValueError, match="at least 1"):
        proportion_interval(0, 0)
    with pytest.raises(ValueError, match=r"shape \[N, K\], got \[2\]"):
        mean_band([1.0, 2.0])
