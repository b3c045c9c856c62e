"""A sum over a matrix by draws whose proposal learns: minimal-variance importance sampling.

100 × 100 matrix of rank 10, with one random block of 20 × 20 entries × 100, as in Bouchard (2015,
§6, Fig. 3): the mean squared error of random factors, estimated from up to N = 10,000 draws of
entries. The proposal is softmax(τ') over rows × softmax(τ'') over columns, at first uniform.

The standard deviation of the estimate over repetitions is compared with that of uniform draws with
replacement, which is known exactly. Two ways to put the batches together: equally, as Algorithm 1
has it, and by the square root rule (Owen & Zhou 2020), by which late batches, of a better proposal,
count more: `std_ratio_half`; with equal weights `std_ratio_half_equal`. Also:

- uniform draws *without* replacement, which a user would take of a matrix this small: at 50 % their
  standard deviation is 1 / √2 of those with replacement, and after all entries it is 0;
- the best product proposal, by alternating closed forms: what the family has to give;
- the same without a block, where there is next to nothing to learn;
- `break_even_microseconds`: a learned draw costs more than a uniform one. What an evaluation of f
  must cost for the learned estimate to be as good as the uniform one in the same time; for a lookup
  in a matrix uniform draws win the race.

Plain SGD for τ, as printed, does not reach 2: single draws in the block decide where τ goes, and
at steps that learn in time some runs end with too little mass on rows that matter. Adam's steps are
bounded.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import (
    add_interval_if_known,
    exp_mean,
    geometric_mean_band,
)
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import bootstrap_interval
from awsgd_rl.validation import require_integer

SIZE, RANK, BLOCK, FACTOR = 100, 10, 20, 100.0
ENTRIES: Final = SIZE * SIZE
# Of batches of 10, 20 and 40, SGD, Adagrad and Adam with three or four steps each, and a uniform
# share of 0 or 0.2: the best at 50 % by the square root rule, on matrices 1000 to 1003.
BATCH, LEARNING_RATE = 20, 0.1
POINTS: Final = 50
MATRICES, REPEATS = 12, 40
KINDS: Final = {"block": "a block × 100", "plain": "no block"}

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """One matrix, all repetitions."""

    matrix: int
    kind: str
    repeats: int

    def __str__(self) -> str:
        return f"matrix {self.matrix}, {KINDS[self.kind]}"


def run(
    quick: bool = False,
    seed: int = 0,
    seeds: int | None = None,
    jobs: int | None = None,
    *,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Estimate the sum of every matrix many times.

    Args:
        quick: 3 matrices and 5 repetitions.
        seed: the matrices are this one and those that follow.
        seeds: how many matrices. Default: 12, or 3 with `quick`.
        jobs: processes; the result, but for times, is the same for any number. Default: one for
            each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a matrix, and geometric means over matrices with 95 % bootstrap intervals:
        `std_ratio_half` (uniform / learned standard deviation after 50 % of the entries),
        `std_ratio_half_equal` (equal weights), `std_ratio_half_without_replacement`,
        `std_ratio_half_best` (the family's best), `plain.std_ratio_half`; `stated_error_ratio`
        (root mean square of the stated standard errors / the standard deviation, equal weights)
        and `break_even_microseconds`.
    """
    matrices = (3 if quick else MATRICES) if seeds is None else require_integer("seeds", seeds)
    repeats = 5 if quick else REPEATS
    tasks = [Task(seed + m, kind, repeats) for kind in KINDS for m in range(matrices)]
    done = count(1)
    rows = run_tasks(
        measure,
        tasks,
        jobs=jobs,
        on_result=lambda row: progress(
            next(done) / len(tasks), f"matrix {row['matrix']}: {row['ratio_half']:.2f} times"
        ),
    )
    block, plain = ([row for row in rows if row["kind"] == kind] for kind in KINDS)
    summary: dict[str, float] = {}
    for name, own, column in (
        ("std_ratio_half", block, "ratio_half"),
        ("std_ratio_half_equal", block, "ratio_half_equal"),
        ("std_ratio_half_without_replacement", block, "ratio_half_without_replacement"),
        ("std_ratio_half_best", block, "ratio_half_best"),
        ("plain.std_ratio_half", plain, "ratio_half"),
        ("stated_error_ratio", block, "stated_error_ratio"),
        ("break_even_microseconds", block, "break_even_microseconds"),
    ):
        _add(summary, name, [row[column] for row in own], seed)
    return rows, summary


def measure(task: Task, _send: Send) -> dict[str, Any]:
    """Estimate one sum `repeats` times, and compare with what is exact; a row."""
    loss = make_loss(task.matrix, task.kind)
    exact, uniform = float(loss.mean()), float(loss.std())
    at = ENTRIES * np.arange(1, POINTS + 1) // POINTS
    half = POINTS // 2 - 1
    with one_thread():
        runs = [learned(loss, task.matrix, repeat) for repeat in range(task.repeats)]
    equal, rooted, stated = (
        np.array(part) for part in zip(*(run[:3] for run in runs), strict=True)
    )
    seconds = float(np.median([run[3] for run in runs]))
    plain_std = uniform / np.sqrt(at)
    equal_std, rooted_std = (
        np.sqrt(np.mean((part - exact) ** 2, axis=0)) for part in (equal, rooted)
    )
    without = plain_std * np.sqrt((ENTRIES - at) / (ENTRIES - 1))
    ratio = float(plain_std[half] / rooted_std[half])
    return {
        "matrix": task.matrix,
        "kind": task.kind,
        "ratio_half": ratio,
        "ratio_half_equal": float(plain_std[half] / equal_std[half]),
        "ratio_half_without_replacement": float(without[half] / rooted_std[half]),
        "ratio_half_best": uniform / best_product_std(loss),
        "stated_error_ratio": float(np.sqrt(np.mean(stated**2)) / equal_std[half]),
        # n (c + overhead) of learned draws against ratio² n c of uniform ones.
        "break_even_microseconds": 1e6 * float(np.median(seconds)) / ENTRIES / (ratio**2 - 1.0)
        if ratio > 1.0
        else math.inf,
        "curves": {
            name: [float(f"{value / exact:.6g}") for value in curve]
            for name, curve in (
                ("rooted", rooted_std),
                ("equal", equal_std),
                ("uniform", plain_std),
                ("without", without),
                ("best", best_product_std(loss) / np.sqrt(at)),
            )
        },
    }


def make_loss(matrix: int, kind: str) -> Floats:
    """[100, 100] squared errors of random factors, on the matrix of this seed."""
    rng = np.random.default_rng(matrix)
    values, guess = (
        rng.standard_normal((SIZE, RANK)) @ rng.standard_normal((RANK, SIZE)) for _ in range(2)
    )
    row, column = rng.integers(SIZE - BLOCK + 1, size=2)
    if kind == "block":
        values[row : row + BLOCK, column : column + BLOCK] *= FACTOR
    return np.square(values - guess)


def learned(loss: Floats, matrix: int, repeat: int) -> tuple[Floats, Floats, float, float]:
    """Run the integrator once.

    Returns:
        [POINTS] estimates with equal weights, and by the square root rule; the standard error that
        it states at half of the entries, and the seconds that all of it took.
    """
    import torch

    from awsgd_rl.adaptation import ScoreFunctionAdaptation
    from awsgd_rl.integration import Integrator
    from awsgd_rl.proposals import ProductProposal, SoftmaxProposal

    values = torch.from_numpy(loss)
    log_p = torch.full((BATCH,), -math.log(ENTRIES), dtype=torch.float64)
    proposal = ProductProposal(SoftmaxProposal(SIZE), SoftmaxProposal(SIZE))
    optimizer = torch.optim.Adam(proposal.parameters(), lr=LEARNING_RATE)
    integrator = Integrator(
        lambda x: values[x[:, 0], x[:, 1]],
        lambda x: log_p,
        proposal,
        ScoreFunctionAdaptation(proposal, optimizer),
    )
    generator = torch.Generator().manual_seed(1_000 * matrix + repeat)
    batches = ENTRIES // BATCH
    means, stated = np.empty(batches), math.nan
    started = time.perf_counter()
    for k in range(batches):
        integrator.step(BATCH, generator=generator)
        means[k] = integrator.estimate.mean
        if k + 1 == batches // 2:
            stated = float(integrator.estimate.standard_error)
    seconds = time.perf_counter() - started
    # The rule of weight_exponent = ½, on the same draws.
    steps = np.arange(1, batches + 1)
    each = np.diff(means * steps, prepend=0.0)
    rooted = np.cumsum(np.sqrt(steps) * each) / np.cumsum(np.sqrt(steps))
    keep = batches * np.arange(1, POINTS + 1) // POINTS - 1
    return means[keep], rooted[keep], stated, seconds


def best_product_std(loss: Floats, sweeps: int = 200) -> float:
    """Standard deviation of f p / q under the best q(i, j) = r(i) c(j).

    `Σ f² / (r c)` is convex in the logs; for fixed c its best r is ∝ √(Σ_j f² / c), and so on.
    """
    squares = np.square(loss)
    columns = np.full(loss.shape[1], 1.0 / loss.shape[1])
    for _ in range(sweeps):
        rows = np.sqrt((squares / columns).sum(1))
        rows /= rows.sum()
        columns = np.sqrt((squares / rows[:, None]).sum(0))
        columns /= columns.sum()
    second = float((squares / np.outer(rows, columns)).sum()) / loss.size**2
    return math.sqrt(second - float(loss.mean()) ** 2)


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `integral`: the standard deviation over the share of entries; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    labels = {
        "rooted": "learned, square root rule",
        "equal": "learned, equal weights",
        "uniform": "uniform",
        "without": "uniform, without replacement",
        "best": "best product proposal",
    }
    at = 100.0 * np.arange(1, POINTS + 1) / POINTS
    panels: dict[str, dict[str, Curve]] = {}
    floor = 1.0
    for kind, title in KINDS.items():
        own = [row["curves"] for row in rows if row["kind"] == kind]
        panel = panels.setdefault(f"{title} ({len(own)} matrices)", {})
        for name, label in labels.items():
            # After all entries nothing is left to chance without replacement.
            keep = slice(None, -1) if name == "without" else slice(None)
            band = geometric_mean_band([curves[name][keep] for curves in own])
            panel[label] = Curve(at[keep], band)
            floor = min(floor, float(band.estimate.min()))
    figure = curve_panels(
        panels,
        title="The mean of a matrix, from some of its entries",
        subtitle="standard deviation / mean; bands: 95% intervals over matrices",
        xlabel="draws, % of the number of entries",
        ylabel="standard deviation, log scale",
        floor=0.7 * floor,
    )
    return plots.save_figure(figure, folder, "integral")


def _add(summary: dict[str, float], name: str, ratios: Sequence[float], seed: int) -> None:
    logs = np.log(ratios)
    if not np.isfinite(logs).all():
        summary[name] = math.inf
        return
    interval = bootstrap_interval(exp_mean, logs, rng=np.random.default_rng(seed))
    add_interval_if_known(summary, name, interval)
