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

import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.workers import Progress, Send, available_cores, one_thread, run_tasks
from awsgd_rl.statistics import Band, Interval, mean_band, mean_interval
from awsgd_rl.validation import require_integer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from awsgd_rl.benchmarks.data import Labelled

METHODS: Final = {
    "switched": "two-stage while it pays",
    "always": "two-stage always",
    "uniform": "uniform",
    "shuffled": "uniform, without replacement",
}
# Of steps 0.025, 0.05, 0.1 and 0.2 the lowest loss in 10 seconds of processor time, on seed 1000:
# for uniform draws 0.076, 0.061, 0.070, 0.269, for two-stage ones 0.085, 0.070, 0.053, 0.060.
# Batches of 32 and 128, with the steps in proportion, leave the order as it is: at their best
# uniform draws come to 0.059 (128), two-stage ones to 0.050 (32). Without
# replacement, after as many steps as uniform draws took at 0.05: 0.066, 0.053, 0.070 of the first
# three.
BATCH_SIZE: Final = 64
LEARNING_RATES: Final = {"uniform": 0.05, "shuffled": 0.05, "always": 0.1, "switched": 0.1}
MOMENTUM, RATIO = 0.9, 4
EVALUATED, SMOOTHED, TURN = 5_000, 3, 50
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
    jobs = available_cores() if jobs is None else require_integer("jobs", jobs)
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
        logs = mean_interval(np.log([ratio for ratio, _ in found]))
        _add(summary, name, Interval(*(float(np.exp(part)) for part in logs)))
        if name == "time_speedup":
            summary["target_missed"] = float(np.mean([missed for _, missed in found]))
    for name in ("variance_reduction", "relative_cost", "predicted_speedup", "two_stage_share"):
        values = [runs["switched"][name] for runs in by_seed]
        highest = 1.0 if name == "two_stage_share" else np.inf
        _add(summary, name, mean_interval(values, bounds=(0.0, highest)))
    for method in METHODS:
        errors = [runs[method]["test_error"][-1] for runs in by_seed]
        _add(summary, f"{method}.test_error", mean_interval(errors, bounds=(0.0, 1.0)))
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
    from awsgd_rl.benchmarks import data

    images = Images(data.digits() if task.digits else data.mnist(task.data))
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


class Images:
    """Square images [N, 1, S, S] with their classes [N]."""

    def __init__(self, labelled: "Labelled") -> None:
        import torch

        side = round(labelled.x_train.shape[1] ** 0.5)
        self.side = side
        self.x = torch.from_numpy(labelled.x_train).reshape(-1, 1, side, side)
        self.y = torch.from_numpy(labelled.y_train)
        self.x_test = torch.from_numpy(labelled.x_test).reshape(-1, 1, side, side)[:EVALUATED]
        self.y_test = torch.from_numpy(labelled.y_test)[:EVALUATED]


def make_network(side: int) -> "nn.Sequential":
    """Two convolutions and a linear layer, for images of this side."""
    import torch
    from torch import nn

    kernel, stride = (5, 2) if side >= 16 else (3, 1)
    body = nn.Sequential(
        nn.Conv2d(1, 16, kernel, stride),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel, stride),
        nn.ReLU(),
        nn.Flatten(),
    )
    with torch.no_grad():
        width = body(torch.zeros(1, 1, side, side)).shape[1]
    return nn.Sequential(*body, nn.Linear(width, 10))


class Training:
    """A network that learns by one method, and its curves.

    Args:
        method: one of `METHODS`.
        images: what to learn from.
        seed: of the network and of all draws.
    """

    def __init__(self, method: str, images: Images, seed: int) -> None:
        import torch

        from awsgd_rl.proposals import UniformProposal
        from awsgd_rl.two_stage import TwoStageSampler

        self.images = images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = make_network(images.side)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=LEARNING_RATES[method], momentum=MOMENTUM
        )
        self.generator = torch.Generator().manual_seed(seed)
        n = len(images.x)
        self.log_p = torch.full((BATCH_SIZE,), -np.log(n), dtype=torch.float64)
        self.sampler = TwoStageSampler(
            UniformProposal(n), ratio=RATIO, threshold=1e-9 if method == "always" else 1.0
        )
        self.order = torch.empty(0, dtype=torch.long)
        self.step = {"uniform": self.step_uniform, "shuffled": self.step_shuffled}.get(
            method, self.step_two_stage
        )
        self.seconds, self.steps = 0.0, 0
        self.curves: dict[str, list[float]] = {
            name: [] for name in ("steps", "seconds", "loss", "test_error")
        }

    def advance(self, steps: int) -> None:
        """Take this many steps, and add their time."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.seconds += time.perf_counter() - started
        self.steps += steps

    def step_uniform(self) -> None:
        """One step on uniform draws with replacement."""
        import torch

        n = len(self.images.x)
        self.descend(torch.randint(n, (BATCH_SIZE,), generator=self.generator))

    def step_shuffled(self) -> None:
        """One step on the next examples of a shuffled epoch."""
        import torch

        if len(self.order) < BATCH_SIZE:
            self.order = torch.randperm(len(self.images.x), generator=self.generator)
        items, self.order = self.order[:BATCH_SIZE], self.order[BATCH_SIZE:]
        self.descend(items)

    def step_two_stage(self) -> None:
        """One step on a draw of the sampler."""
        from awsgd_rl.weights import importance_weights

        draw = self.sampler.draw(BATCH_SIZE, self.score, generator=self.generator)
        self.descend(draw.items, importance_weights(self.log_p, draw.log_q))
        self.sampler.step_done()

    def score(self, items: "Tensor") -> "Tensor":
        """[n] norm of the loss's gradient in the network's output."""
        from awsgd_rl.signals import cross_entropy_signal

        logits = self.network(self.images.x[items])
        return cross_entropy_signal(logits, self.images.y[items])

    def descend(self, items: "Tensor", weights: "Tensor | None" = None) -> None:
        """One step along the gradient of the (weighted) mean loss."""
        from torch.nn.functional import cross_entropy

        logits, classes = self.network(self.images.x[items]), self.images.y[items]
        if weights is None:
            loss = cross_entropy(logits, classes)
        else:
            losses = cross_entropy(logits, classes, reduction="none")
            loss = losses @ weights.to(losses) / len(losses)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def evaluate(self) -> None:
        """Add a point to the curves."""
        import torch
        from torch.nn.functional import cross_entropy

        images = self.images
        with torch.no_grad():
            loss = cross_entropy(self.network(images.x[:EVALUATED]), images.y[:EVALUATED])
            wrong = self.network(images.x_test).argmax(1) != images.y_test
        for name, value in (
            ("steps", self.steps),
            ("seconds", self.seconds),
            ("loss", loss.item()),
            ("test_error", wrong.double().mean().item()),
        ):
            self.curves[name].append(float(f"{value:.6g}"))

    def row(self) -> dict[str, Any]:
        """The curves, and of two-stage draws what the sampler measured."""
        sampler = self.sampler
        if sampler.two_stage_steps == 0:
            return dict(self.curves)
        return {
            **self.curves,
            "variance_reduction": sampler.reduction,
            "relative_cost": sampler.relative_cost,
            "predicted_speedup": sampler.speed_up,
            "two_stage_share": sampler.two_stage_steps / sampler.steps,
        }


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `two-stage`: the training loss over steps and time; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    panels: dict[str, dict[str, Curve]] = {"over steps": {}, "over seconds of training": {}}
    for method, label in METHODS.items():
        own = [row for row in rows if row["method"] == method]
        logs = mean_band([np.log(smoothed(row["loss"])[SMOOTHED - 1 :]) for row in own])
        band = Band(*(np.exp(part) for part in logs))
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


def _add(summary: dict[str, float], name: str, interval: Interval) -> None:
    summary[name] = interval.estimate
    if np.isfinite(interval.low):
        summary[f"{name}_low"], summary[f"{name}_high"] = interval.low, interval.high
