"""The interquartile mean over runs and tasks, as rliable reports it (Agarwal et al. 2021).

Computed here, and compared with rliable in the tests: its bootstrap draws from NumPy's global
generator, and its interval estimates need a package that current pandas breaks.
"""

import numpy as np
from numpy.typing import ArrayLike

from awsgd_rl.statistics import Interval


def iqm_interval(
    scores: ArrayLike, *, rng: np.random.Generator, n: int = 9_999, confidence: float = 0.95
) -> Interval:
    """Return the mean of the middle half of all scores, with a stratified bootstrap interval.

    Args:
        scores: [N, T] one score for each run and task. With N = 1 the ends are NaN.
        rng: source of the resampling.
        n: number of resamples; in each, every task's runs are drawn again by themselves.
        confidence: probability that the interval (plain percentiles) is to cover the IQM.

    Raises:
        ValueError: for scores that are not [N, T], none, or not finite.
    """
    from scipy.stats import trim_mean

    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"scores must be finite numbers [N, T], got shape {list(values.shape)}")
    runs, tasks = values.shape
    estimate = float(trim_mean(values, 0.25, axis=None))
    if runs == 1:
        return Interval(estimate, np.nan, np.nan)
    drawn = rng.integers(runs, size=(n, runs, tasks))
    resampled = values[drawn, np.arange(tasks)].reshape(n, -1)
    iqms = trim_mean(resampled, 0.25, axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(iqms, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))
