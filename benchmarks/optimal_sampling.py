"""Norm-proportional draws and four optimizers, as Lahire 2023, section 4, figure 2 and table 1.

A convolutional network tells 100 images of 0 and 1 apart: batches of 5, 300 steps, step size 0.01,
momentum 0.5, all else PyTorch's defaults. Draws are

- uniform;
- in proportion to the exact gradient norms of all 100 images at every step (p^GN);
- half of them uniform (p^1/2), which lies between the two;
- in proportion to a table of the norms of the cross-entropy's gradient in the output, each as old
  as the image's last draw: the bound, for the price of a table.

The exact norms are computed layer by layer from one forward and one backward pass, twenty times
faster than with a gradient per image. All draws of a seed start from the same network and take
turns of `TURN` steps in one process; evaluations are not timed. RMSProp and Adam are PyTorch's,
with a second moment for each coordinate, where the paper analyses one for the whole gradient.
The paper has 45 seeds: `--seeds 45` takes about four times as long.

The paper's gain of SGD by the step is not reached: on five seeds p^GN was 0.95 to 1.08 times as
fast as uniform draws. At this step size the loss falls as the exact gradient would have it, so that
less variance has little to bring. By the clock p^GN costs 8 steps, and cannot win.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks import data as datasets
from awsgd_rl.benchmarks.crossing import first_reached
from awsgd_rl.benchmarks.optimal_sampling_training import (
    OPTIMIZERS,
    PROPOSALS,
    Training,
    choose_images,
)
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import Interval, bootstrap_interval, mean_interval
from awsgd_rl.validation import require_integer

STEPS, TURN, SEEDS = 300, 5, 12
TARGET: Final = 1e-4  # below it are Adam's losses alone, where there is nothing left to learn

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """All proposals and optimizers on one seed."""

    seed: int
    steps: int
    digits: bool
    data: Path | None

    def __str__(self) -> str:
        return f"seed {self.seed}"


def run(
    quick: bool = False,
    seed: int = 0,
    data: Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    *,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train with every proposal and optimizer on every seed.

    Args:
        quick: two seeds of 50 steps on scikit-learn's digits.
        seed: the seeds are this one and those that follow; they choose images and network too.
        data: an `mnist.npz`, or its folder.
        seeds: how many seeds, in place of `SEEDS`.
        jobs: processes. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, with its curves. The summary has, with 95 % intervals over seeds,
        `<optimizer>_step_ratio_<proposal>`, steps of uniform draws over steps of ours to the same
        loss: above 1 ours are better. That loss is the higher of the lowest losses of the two
        (geometric means over seeds), and at least `TARGET`. `<optimizer>_time_ratio_<proposal>` is
        the same by the clock; `time_ratio_gn` and `time_ratio_bound` are SGD's.
        `step_cost_ratio_<proposal>` is the time of a step of SGD over that of a uniform one.
        `metric_mean_proposal` and `metric_mean_uniform` are the mean total variations of the table
        of output gradients, and of uniform draws, from p^GN (Algorithm 1, while SGD trains);
        `metric_mean_fresh` is that of the same bound just computed; with `_kl` the same in KL
        divergence.
    """
    number = (2 if quick else SEEDS) if seeds is None else require_integer("seeds", seeds)
    tasks = [Task(seed + s, STEPS // 6 if quick else STEPS, quick, data) for s in range(number)]
    done = count(1)
    results = run_tasks(
        train,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks), f"seed {rows[0]['seed']}: loss {rows[0]['loss'][-1]:.3g}"
        ),
    )
    rows = [row for result in results for row in result]
    return rows, summarise(rows, seed)


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, float]:
    """Ratios to uniform draws and distances, over seeds; `seed` is that of the resampling."""
    summary: dict[str, float] = {}
    for optimizer in OPTIMIZERS:
        runs = {
            name: [row for row in rows if (row["optimizer"], row["proposal"]) == (optimizer, name)]
            for name in PROPOSALS
        }
        for name, ours in runs.items():
            if name == "uniform" or not ours:
                continue
            for kind, by_time in (("step", False), ("time", True)):
                interval = ratio_to_uniform(runs["uniform"], ours, by_time=by_time, seed=seed)
                add_interval(summary, f"{optimizer}_{kind}_ratio_{name}", interval)
                if optimizer == "sgd" and by_time:
                    add_interval(summary, f"time_ratio_{name}", interval)
            if optimizer == "sgd":
                costs = [
                    own["step_seconds"] / other["step_seconds"]
                    for own, other in zip(ours, runs["uniform"], strict=True)
                ]
                add_interval(
                    summary, f"step_cost_ratio_{name}", mean_interval(costs, bounds=(0, np.inf))
                )
    assessed = [row["metric"] for row in rows if "metric" in row]
    for name in ("proposal", "uniform", "fresh"):
        for distance, suffix in (("tv", ""), ("kl", "_kl")):
            means = [float(np.mean(metric[f"{name}_{distance}"])) for metric in assessed]
            add_interval(
                summary, f"metric_mean_{name}{suffix}", mean_interval(means, bounds=(0, np.inf))
            )
    return summary


def ratio_to_uniform(
    uniform: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    *,
    by_time: bool,
    seed: int = 0,
) -> Interval:
    """Steps or seconds of uniform draws over ours to the same loss, geometric mean over runs.

    Args:
        uniform: [R] rows of uniform draws.
        ours: [R] rows of the same seeds.
        by_time: seconds in place of steps.
        seed: of the resampling of the runs, in pairs.

    Returns:
        The ratio, with its 95 % interval.
    """
    # From the first turn on: where an optimizer's first steps blow up, the start is no target.
    at = np.array(uniform[0]["steps"][1:], dtype=np.float64)
    losses = [np.log([row["loss"][1:] for row in runs]) for runs in (uniform, ours)]
    seconds = [np.array([row["step_seconds"] for row in runs]) for runs in (uniform, ours)]

    def ratio(chosen: Floats, axis: int) -> Any:
        runs = chosen.astype(np.int64)
        curves = [np.minimum.accumulate(loss[runs].mean(-2), -1) for loss in losses]
        target = np.maximum(curves[0][..., -1], curves[1][..., -1]).clip(np.log(TARGET))
        found = [first_reached(at, curve, target) for curve in curves]
        if by_time:
            found = [
                steps * cost[runs].mean(axis) for steps, cost in zip(found, seconds, strict=True)
            ]
        return found[0] / found[1]

    rng = np.random.default_rng(seed)
    return bootstrap_interval(ratio, np.arange(len(uniform)), rng=rng, n=1_000)


def train(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train with all proposals and optimizers of one seed by turns; return a row for each."""
    labelled = datasets.digits() if task.digits else datasets.mnist(task.data)
    with one_thread():
        x, y = choose_images(labelled, task.seed)
        runs = [
            Training(optimizer, proposal, x, y, task.seed)
            for optimizer in OPTIMIZERS
            for proposal in PROPOSALS
            # The theorem is on SGD, and the paper has no p^1/2 for the other two.
            if proposal != "half" or optimizer in ("sgd", "momentum")
        ]
        # What is compiled or loaded once is not timed.
        for training in runs:
            Training(training.optimizer_name, training.proposal, x, y, task.seed).advance(2)
        for _ in range(0, task.steps, TURN):
            for training in runs:
                training.advance(TURN)
            for training in runs:
                training.evaluate()
    return [{"seed": task.seed, **training.row()} for training in runs]


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `optimal-sampling`, the losses, and `optimal-sampling-metric`; return the paths."""
    from awsgd_rl.benchmarks.optimal_sampling_figures import draw_figures

    return draw_figures(rows, folder)
