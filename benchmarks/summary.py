"""What the summaries and figures of the benches have in common."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.statistics import Band, Interval, mean_band, mean_interval


def add_interval(summary: dict[str, float], name: str, interval: Interval) -> None:
    """Enter an estimate under `name`, and its ends under `<name>_low` and `<name>_high`."""
    summary[name] = interval.estimate
    summary[f"{name}_low"], summary[f"{name}_high"] = interval.low, interval.high


def add_interval_if_known(summary: dict[str, float], name: str, interval: Interval) -> None:
    """`add_interval`, but of one run, which tells no interval, the estimate alone."""
    if np.isfinite(interval.low):
        add_interval(summary, name, interval)
    else:
        summary[name] = interval.estimate


def add_geometric_mean(summary: dict[str, float], name: str, ratios: ArrayLike) -> None:
    """Enter the geometric mean of [N] runs with its interval; 0 where a run never got there."""
    values = np.asarray(ratios, dtype=np.float64)
    if np.isfinite(values).all() and (values > 0.0).all():
        add_interval_if_known(summary, name, geometric_mean_interval(values))
    else:
        summary[name] = 0.0


def exp_mean(logs: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """The geometric mean of numbers with these logarithms, as `bootstrap_interval` calls it."""
    mean: NDArray[np.float64] = np.exp(np.mean(logs, axis=axis))
    return mean


def geometric_mean_interval(samples: ArrayLike) -> Interval:
    """The geometric mean of [N] numbers above 0, with `mean_interval` of their logarithms."""
    return Interval(*(float(np.exp(part)) for part in mean_interval(np.log(samples))))


def geometric_mean_band(samples: ArrayLike) -> Band:
    """`geometric_mean_interval` at each of K points of [N, K] curves above 0."""
    return Band(*(np.exp(part) for part in mean_band(np.log(samples))))
