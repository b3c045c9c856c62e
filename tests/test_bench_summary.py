"""What the benches share: when a curve comes to a value, and how a summary is filled."""

import numpy as np
import pytest

from awsgd_rl.benchmarks.crossing import first_reached
from awsgd_rl.benchmarks.summary import (
    add_geometric_mean,
    add_interval_if_known,
    geometric_mean_band,
    geometric_mean_interval,
)
from awsgd_rl.statistics import Interval


def test_first_reached_lies_between_points() -> None:
    at = [10.0, 20.0, 40.0]
    curves = [[3.0, 2.0, 1.0], [1.0, 0.5, 0.5], [3.0, 3.0, 2.0], [2.0, 1.0, 2.0]]
    found = first_reached(at, curves, [1.5, 1.0, 1.5, 1.5])
    assert found.tolist() == [30.0, 10.0, np.inf, 15.0]
    assert float(first_reached(at, curves[0], 1.5)) == 30.0


def test_an_interval_of_one_run_is_left_out() -> None:
    summary: dict[str, float] = {}
    add_interval_if_known(summary, "one", Interval(2.0, np.nan, np.nan))
    add_interval_if_known(summary, "many", Interval(2.0, 1.0, 3.0))
    assert summary == {"one": 2.0, "many": 2.0, "many_low": 1.0, "many_high": 3.0}


def test_geometric_means() -> None:
    interval = geometric_mean_interval([1.0, 4.0])
    assert interval.estimate == pytest.approx(2.0)
    assert interval.low * interval.high == pytest.approx(4.0)
    band = geometric_mean_band([[1.0, 3.0], [4.0, 3.0]])
    assert band.estimate.tolist() == pytest.approx([2.0, 3.0])
    assert (band.low[0], band.high[0]) == pytest.approx(interval[1:])


def test_a_geometric_mean_is_0_where_a_run_never_got_there() -> None:
    summary: dict[str, float] = {}
    add_geometric_mean(summary, "reached", [1.0, 4.0])
    add_geometric_mean(summary, "missed", [1.0, np.inf])
    add_geometric_mean(summary, "never", [1.0, 0.0])
    assert summary["reached"] == pytest.approx(2.0)
    assert summary["missed"] == summary["never"] == 0.0
    assert set(summary) == {"reached", "reached_low", "reached_high", "missed", "never"}
