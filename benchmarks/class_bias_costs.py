"""What an iteration of each method of the bench `class-bias` costs, beside 50/50's."""

import time
from collections.abc import Mapping

import numpy as np

from awsgd_rl.benchmarks.class_bias_kernels import Examples
from awsgd_rl.benchmarks.class_bias_problems import Problem, examples
from awsgd_rl.benchmarks.class_bias_runs import BATCH, METHODS, Run
from awsgd_rl.benchmarks.data import Labelled


def measure_costs(made: Problem, rounds: int) -> dict[str, list[float]]:
    """Return for each method the time of an iteration over that of 50/50, in each round."""
    task = examples(made, made.positives[0])
    n = len(task.signs)
    runs = {
        method: Run(method, made, task, horizon=8 * n, batch=BATCH, rho=0.1, seed=0)
        for method in METHODS
    }
    # A quarter of an epoch, so that all that is done now and then has its share.
    iterations = max(1, n // BATCH // 4)
    _ratios(runs, iterations, 1)
    return _ratios(runs, iterations, rounds)


def measure_overhead(rounds: int, n: int = 5_000, d: int = 4_096) -> list[float]:
    """Return the time of an iteration of class bias over 50/50's: the paper's size, batch 100.

    τ takes steps too small to move it: elsewhere rare examples that are drawn less often also stay
    in the processor's cache less often, which is no cost of the method's.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    signs = np.where(rng.random(n) < 0.1, 1.0, -1.0).astype(np.float32)
    task = Examples(x, signs, np.linalg.norm(x, axis=1))
    y = (signs > 0).astype(np.int64)
    made = Problem(Labelled(x, y, x, y), task.norms, (1,), y)
    runs = {
        method: Run(method, made, task, horizon=1, batch=100, rho=0.01, seed=0, eta=1e-12)
        for method in ("balanced", "class")
    }
    _ratios(runs, 20, 1)
    return _ratios(runs, 100, rounds)["class"]


def _ratios(runs: Mapping[str, Run], iterations: int, rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(rounds):
        for method, run in runs.items():
            started = time.perf_counter()
            run.advance(iterations)
            taken[method].append(time.perf_counter() - started)
    return {
        method: [own / base for own, base in zip(times, taken["balanced"], strict=True)]
        for method, times in taken.items()
        if method != "balanced"
    }
