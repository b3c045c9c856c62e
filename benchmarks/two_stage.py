"""Two-stage draws on a small convolutional network, against uniform draws, by the clock.

MNIST, two convolutions and a linear layer, SGD with momentum and a constant step. Uniform draws get
a budget of steps; the target is the lowest training loss that they come to, and `time_speedup` how
many times sooner two-stage draws are there: m = 4 candidates for each draw, scored by the norm of
the cross-entropy's gradient in the output, and switched off while that does not pay
(`TwoStageSampler`). Beside it the same without the switch, and uniform epochs without replacement,
which is what a user has. Losses are means of three evaluations, on 5,000 examples; evaluations are
not timed. All methods of a seed train in one process by turns, 50 steps each, so that whatever
slows the machine slows all of them.

The gain is in the later part, where the noise of the gradients holds the loss up: that of two-stage
draws varies about 3.5 times less, and takes twice the step. In the first few hundred steps all are
alike by the clock. Measured by the training loss; the test error hardly differs.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks import data as datasets
from awsgd_rl.benchmarks.summary import (
    add_interval_if_known,
    geometric_mean_band,
    geometric_mean_interval,
)
from awsgd_rl.benchmarks.two_stage_training import METHODS, Images, Training
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import mean_interval
from awsgd_rl.validation import require_integer

SMOOTHED, TURN = 3, 50
EVALUATIONS: Final = 40
SEEDS, STEPS = 6, 4_000

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """All methods on one seed."""

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
    """Train with every method on every seed.

    Args:
        quick: two seeds of a few steps on scikit-learn's digits.
        seed: the seeds are this one and those that follow.
        data: an `mnist.npz`, or its folder.
        seeds: how many seeds, in place of `SEEDS`.
        jobs: processes. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, with its curves. The summary has geometric means over seeds with 95 %
        intervals: `time_speedup`, of the switched two-stage draws over uniform ones, and
        `step_speedup`; `time_speedup_shuffled`, over epochs without replacement;
        `always.time_speedup`, without the switch; `variance_reduction`, `relative_cost` and
        `predicted_speedup`, as the sampler measured them last; and `<method>.test_error` at the
        end. `target_missed` is the share of seeds on which the switched draws, in as many steps as
        uniform ones, did not come to the target: there a speed-up is the ratio of the whole times.
    """
    number = (2 if quick else SEEDS) if seeds is None else require_integer("seeds", seeds)
    tasks = [Task(seed + s, STEPS // 10 if quick else STEPS, quick, data) for s in range(number)]
    done = count(1)
    results = run_tasks(
        train,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks), f"seed {rows[0]['seed']}: loss {rows[0]['loss'][-1]:.3f}"
        ),
    )
    rows = [row for result in results for row in result]
    return rows, summarise(rows)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Speed-ups and what they come from, over seeds."""
    by_seed = [
        {row["method"]: row for row in rows if row["seed"] == seed}
        for seed in dict.fromkeys(row["seed"] for row in rows)
    ]
    summary: dict[str, float] = {}
    for name, ours, reference, axis in (
        ("time_speedup", "switched", "uniform", "seconds"),
        ("step_speedup", "switched", "uniform", "steps"),
        ("time_speedup_shuffled", "switched", "shuffled", "seconds"),
        ("always.time_speedup", "always", "uniform", "seconds"),
    ):
        found = [speed_up(runs[reference], runs[ours], axis) for runs in by_seed]
        interval = geometric_mean_interval([ratio for ratio, _ in found])
        add_interval_if_known(summary, name, interval)
        if name == "time_speedup":
            summary["target_missed"] = float(np.mean([missed for _, missed in found]))
    for name in ("variance_reduction", "relative_cost", "predicted_speedup", "two_stage_share"):
        values = [runs["switched"][name] for runs in by_seed]
        highest = 1.0 if name == "two_stage_share" else np.inf
        add_interval_if_known(summary, name, mean_interval(values, bounds=(0.0, highest)))
    for method in METHODS:
        errors = [runs[method]["test_error"][-1] for runs in by_seed]
        interval = mean_interval(errors, bounds=(0.0, 1.0))
        add_interval_if_known(summary, f"{method}.test_error", interval)
    return summary


def speed_up(
    reference: Mapping[str, Any], ours: Mapping[str, Any], axis: str
) -> tuple[float, bool]:
    """How many times sooner `ours` comes to the lowest loss of the reference, and if it never does.

    Where it never does, the ratio of the reference's time to the whole of ours: too favourable.
    """
    losses = smoothed(reference["loss"])
    target = losses.min()
    needed = reference[axis][int(losses.argmin())]
    below = np.flatnonzero(smoothed(ours["loss"]) <= target)
    if len(below) == 0:
        return needed / ours[axis][-1], True
    return needed / ours[axis][int(below[0])], False


def smoothed(losses: Sequence[float]) -> Floats:
    """[K] mean of each entry and those before it, three in all; of the first ones, infinity."""
    means = np.convolve(losses, np.full(SMOOTHED, 1.0 / SMOOTHED), mode="valid")
    return np.concatenate([np.full(SMOOTHED - 1, np.inf), means])


def train(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train all methods of one seed by turns; return a row for each."""
    images = Images(datasets.digits() if task.digits else datasets.mnist(task.data))
    with one_thread():
        runs = {method: Training(method, images, task.seed) for method in METHODS}
        between = max(1, task.steps // EVALUATIONS)
        for _ in range(0, task.steps, between):
            left = between
            while left > 0:
                for training in runs.values():
                    training.advance(min(TURN, left))
                left -= TURN
            for training in runs.values():
                training.evaluate()
    return [{"seed": task.seed, "method": name, **run.row()} for name, run in runs.items()]


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `two-stage`: the training loss over steps and time; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    panels: dict[str, dict[str, Curve]] = {"over steps": {}, "over seconds of training": {}}
    for method, label in METHODS.items():
        own = [row for row in rows if row["method"] == method]
        band = geometric_mean_band([smoothed(row["loss"])[SMOOTHED - 1 :] for row in own])
        for panel, axis in zip(panels.values(), ("steps", "seconds"), strict=True):
            at = np.mean([row[axis] for row in own], axis=0)[SMOOTHED - 1 :]
            panel[label] = Curve(at, band)
    figure = curve_panels(
        panels,
        title="Two-stage draws on a small convolutional network",
        subtitle=f"geometric means, seeds: {len(own)}; bands: 95% intervals",
        xlabel="steps, or seconds on one core",
        ylabel="training loss, log scale",
        percent=False,
    )
    for axes in figure.axes:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = [t * 10.0**k for k in range(-5, 2) for t in (1, 2, 5) if low <= t * 10.0**k <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)
    return plots.save_figure(figure, folder, "two-stage")
