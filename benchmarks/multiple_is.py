"""Several proposals, each from one output's gradient, and how to combine them (Salaün 2025).

Four tasks (`multiple_is_problems`): a polynomial of order 6 with SGD, a network for MNIST with SGD,
the colours of an image and the signed distance and normal of a torus by a SIREN with Adam. After a
first shuffled epoch, in which every item's gradient is seen once, the methods draw

- shuffled: epochs without replacement, what users do;
- plain: uniform draws with replacement;
- one: a table of the norms of the gradient in the outputs;
- balance: a table for each output, of the magnitude of its gradient, as many draws from each,
  balance heuristic;
- optimal: the same draws with optimal weights;
- control: the same draws with balance weights, and the optimal fit of the batches before as a
  control variate, which leaves the gradient unbiased (not in the paper).

Tables keep `ALPHA` of the old score, are raised by a share of their mean once an epoch, and are
mixed with uniform draws. A method's gradient is a running mean of those of its batches, with a
memory of 0 or 0.7 (for optimal weights of A and b): so none is ahead by momentum alone. All
methods of a seed take turns in one process; evaluations are not timed. "Equal time" is the time of
all steps of plain training.

On two seeds every weighted method had less gradient error than uniform draws, one proposal mostly
the least, and MNIST and the torus gained by the step; several proposals cost 2 to 7 plain steps and
lost by the clock on all tasks. On the polynomial epochs without replacement were best.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.multiple_is_problems import make_problem
from awsgd_rl.benchmarks.multiple_is_training import METHODS, Setting, Training, gradient_errors
from awsgd_rl.benchmarks.summary import add_interval, geometric_mean_band, geometric_mean_interval
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.validation import require_integer

TASKS: Final = {
    "polynomial": "polynomial",
    "mnist": "MNIST",
    "image": "image",
    "points": "points of a torus",
}


def _settings(learning_rate: float, **memories: float) -> dict[str, Setting]:
    """One step size for all methods, and a memory of 0 but for those that are named."""
    return {method: Setting(learning_rate, memories.get(method, 0.0)) for method in METHODS}


# The best of every method on seed 1000, of a memory of 0 and 0.7 and of the step sizes 0.001,
# 0.0025 and 0.006 (polynomial); 0.15, 0.4 and 0.8 (MNIST, 2,000 steps); 0.0005 and 0.0015 (image);
# 0.001, 0.003 and 0.006 (points; 0.001 not for the control variate).
SETTINGS: Final[Mapping[str, Mapping[str, Setting]]] = {
    "polynomial": _settings(0.0025, shuffled=0.7, one=0.7, optimal=0.7),
    "mnist": _settings(0.8, one=0.7, optimal=0.7),
    "image": _settings(0.0005),
    "points": {**_settings(0.003), "balance": Setting(0.006, 0.0), "control": Setting(0.006, 0.0)},
}
EVALUATIONS, SMOOTHED, SEEDS = 30, 3, 5

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """All methods on one task and seed."""

    name: str
    seed: int
    quick: bool
    data: Path | None

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def run(
    quick: bool = False,
    seed: int = 0,
    data: Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    *,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train with every method on every task and seed.

    Args:
        quick: two seeds, few steps, less data (scikit-learn's digits for MNIST).
        seed: the seeds are this one and those that follow.
        data: an `mnist.npz`, or its folder.
        seeds: how many seeds, in place of `SEEDS`.
        jobs: processes. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, with its curves. The summary has `<task>.<method>.loss_equal_steps` and
        `<task>.<method>.loss_equal_time`, each the mean of three evaluations, and
        `<task>.<method>.step_cost`, the time of a step over that of a plain one, and
        `<task>.<method>.gradient_error`, see `gradient_errors`: geometric means over seeds with
        95 % intervals. The loss is of the training data, of the polynomial its
        excess over the best.
    """
    number = (2 if quick else SEEDS) if seeds is None else require_integer("seeds", seeds)
    tasks = [Task(name, seed + s, quick, data) for s in range(number) for name in TASKS]
    done = count(1)
    results = run_tasks(
        train,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks), f"{rows[0]['task']}, seed {rows[0]['seed']}"
        ),
    )
    rows = [row for result in results for row in result]
    return rows, summarise(rows)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Losses at equal steps and equal time, over seeds."""
    summary: dict[str, float] = {}
    for task in TASKS:
        by_method = {
            method: [row for row in rows if (row["task"], row["method"]) == (task, method)]
            for method in METHODS
        }
        for method, own in by_method.items():
            pairs = list(zip(own, by_method["plain"], strict=True))
            values = {
                "loss_equal_steps": [smoothed(row["loss"])[-1] for row in own],
                "loss_equal_time": [loss_at(row, plain["seconds"][-1]) for row, plain in pairs],
                "step_cost": [row["seconds"][-1] / plain["seconds"][-1] for row, plain in pairs],
                "gradient_error": [row["gradient_error"] for row in own],
            }
            if method == "shuffled":
                del values["gradient_error"]
            for name, numbers in values.items():
                add_interval(summary, f"{task}.{method}.{name}", geometric_mean_interval(numbers))
    return summary


def smoothed(losses: Sequence[float]) -> Floats:
    """[K] mean of each entry and the two before it; of the first ones, of those that there are."""
    total = np.cumsum([0.0, *losses])
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - SMOOTHED, 0)
    means: Floats = (total[ends] - total[starts]) / (ends - starts)
    return means


def loss_at(row: Mapping[str, Any], seconds: float) -> float:
    """The loss of a run after so much time; at its end where that comes sooner."""
    return float(np.interp(seconds, row["seconds"], smoothed(row["loss"])))


def train(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train all methods of one task and seed by turns; return a row for each."""
    with one_thread():
        problem = make_problem(task.name, quick=task.quick, data=task.data, seed=task.seed)
        settings = SETTINGS[task.name]
        runs = {
            method: Training(problem, method, settings[method], task.seed) for method in METHODS
        }
        for method in METHODS:
            Training(problem, method, settings[method], task.seed).warm_up()
        take_turns(list(runs.values()))
        errors = gradient_errors(problem, runs["shuffled"].network, task.seed)
    return [
        {
            "task": task.name,
            "method": method,
            "seed": task.seed,
            "gradient_error": errors.get(method),
            **training.curves,
        }
        for method, training in runs.items()
    ]


def take_turns(runs: Sequence[Training]) -> None:
    """Train all by turns to the end of their steps."""
    steps = runs[0].problem.steps
    ends = [round(steps * (k + 1) / EVALUATIONS) for k in range(EVALUATIONS)]
    for start, end in zip([0, *ends], ends, strict=False):
        for training in runs:
            training.advance(end - start)
            training.evaluate()


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `multiple-is`: the loss over steps and time, a panel a task; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    panels: dict[str, dict[str, Curve]] = {}
    for axis in ("steps", "seconds"):
        for task, title in TASKS.items():
            panel = panels.setdefault(f"{title}, {axis}", {})
            for method, label in METHODS.items():
                own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
                band = geometric_mean_band([smoothed(row["loss"]) for row in own])
                panel[label] = Curve(np.mean([row[axis] for row in own], axis=0), band)
    figure = curve_panels(
        panels,
        title="A proposal for each output, combined",
        subtitle=f"training loss, geometric mean of {len(own)} seeds; bands: 95% intervals",
        xlabel="steps (above), seconds on one core (below)",
        ylabel="training loss",
        percent=False,
    )
    for axes, (name, panel) in zip(figure.axes, panels.items(), strict=False):
        axes.set_yscale("log")
        if name.endswith("seconds"):  # plain training ends early: what it does is to be seen
            axes.set_xlim(0.0, 2.0 * panel[METHODS["plain"]].x[-1])
    return plots.save_figure(figure, folder, "multiple-is")
