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

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from awsgd_rl.benchmarks import data as datasets
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.workers import Progress, Send, available_cores, one_thread, run_tasks
from awsgd_rl.diagnostics import distances_to_optimum
from awsgd_rl.proposals import TableProposal
from awsgd_rl.signals import cross_entropy_signal
from awsgd_rl.statistics import Band, Interval, bootstrap_interval, mean_band, mean_interval
from awsgd_rl.validation import require_integer

PROPOSALS: Final = {
    "uniform": "uniform",
    "half": "half exact norms, half uniform",
    "gn": "exact gradient norms",
    "bound": "table of output gradients",
}
OPTIMIZERS: Final[Mapping[str, tuple[str, Callable[..., torch.optim.Optimizer]]]] = {
    "sgd": ("SGD", lambda w: torch.optim.SGD(w, lr=0.01)),
    "momentum": ("SGD with momentum", lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.5)),
    "rmsprop": ("RMSProp", lambda w: torch.optim.RMSprop(w, lr=0.01)),
    "adam": ("Adam", lambda w: torch.optim.Adam(w, lr=0.01)),
}
# The lowest mean log loss of 0.1, 0.2, 0.5 and 1 with SGD, by little, on seeds 1000 to 1003.
UNIFORM_SHARE: Final = 0.1
IMAGES, BATCH, STEPS, TURN, SEEDS = 100, 5, 300, 5, 12
# Adam's losses fall to the rounding of float32, where there is nothing left to learn.
TARGET, LOWEST = 1e-4, 1e-6
ASSESSED: Final = 50  # M of the paper's Algorithm 1

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
    jobs = available_cores() if jobs is None else require_integer("jobs", jobs)
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


def first_reached(at: Floats, curves: Floats, target: Floats) -> Floats:
    """[...] where falling curves [..., K] over `at` [K] first come to a target [...]."""
    k = (curves <= target[..., None]).argmax(-1)
    previous = np.maximum(k - 1, 0)
    before = np.take_along_axis(curves, previous[..., None], -1)[..., 0]
    after = np.take_along_axis(curves, k[..., None], -1)[..., 0]
    share = np.clip((before - target) / np.maximum(before - after, 1e-300), 0.0, 1.0)
    found: Floats = at[previous] + share * (at[k] - at[previous])
    return found


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


def choose_images(labelled: datasets.Labelled, seed: int) -> tuple[Tensor, Tensor]:
    """As many zeros as ones, [100, 1, 28, 28] and [100] long; digits of 8 x 8 are enlarged."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labelled.y_train == k))[: IMAGES // 2] for k in (0, 1)]
    )
    side = round(labelled.x_train.shape[1] ** 0.5)
    pixels = torch.from_numpy(labelled.x_train[chosen]).reshape(-1, 1, side, side)
    if side < 28:
        pixels = functional.pad(pixels.repeat_interleave(3, 2).repeat_interleave(3, 3), (2,) * 4)
    return pixels, torch.from_numpy(labelled.y_train[chosen])


class Network(nn.Module):
    """Two convolutions and two linear layers (Lahire 2023, appendix F): 402,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 5, 5), nn.Conv2d(5, 10, 5)
        self.linear1, self.linear2 = nn.Linear(4000, 100), nn.Linear(100, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2] logits of [B, 1, 28, 28] images."""
        return self.layers(x)[-1]

    def layers(self, x: Tensor) -> list[Tensor]:
        """What each layer puts out, before its ReLU."""
        first = self.conv1(x)
        second = self.conv2(first.relu())
        third = self.linear1(second.relu().flatten(1))
        return [first, second, third, self.linear2(third.relu())]


def gradient_norms(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """The exact ‖∇_w ℓ_i‖ of `signals.per_example_gradient_norms`, made for this network.

    A linear layer's gradient is an outer product, whose norm is the product of two norms; only
    those of the small convolutions are written out.

    Args:
        network: the network.
        x: [B, 1, 28, 28] images.
        y: [B] classes.

    Returns:
        [B] norms.
    """
    outputs = network.layers(x)
    loss = functional.cross_entropy(outputs[-1], y, reduction="sum")
    errors = torch.autograd.grad(loss, outputs)
    with torch.no_grad():
        inputs = [x, *(output.relu() for output in outputs[:-1])]
        squares = [
            _convolution(errors[0], inputs[0]),
            _convolution(errors[1], inputs[1]),
            _linear(errors[2], inputs[2].flatten(1)),
            _linear(errors[3], inputs[3]),
        ]
        return torch.stack(squares).sum(0).sqrt()


def _linear(errors: Tensor, inputs: Tensor) -> Tensor:
    return errors.square().sum(1) * (inputs.square().sum(1) + 1.0)


def _convolution(errors: Tensor, inputs: Tensor) -> Tensor:
    # Views of 5 x 5 patches: torch's unfold is five times slower here.
    patches = inputs.unfold(2, 5, 1).unfold(3, 5, 1).permute(0, 1, 4, 5, 2, 3)
    errors = errors.flatten(2)
    patches = patches.reshape(len(inputs), -1, errors.shape[2])
    weights = torch.bmm(errors, patches.transpose(1, 2))
    return weights.square().sum((1, 2)) + errors.sum(2).square().sum(1)


class Training:
    """A network that learns by one optimizer from the draws of one proposal.

    Args:
        optimizer: one of `OPTIMIZERS`.
        proposal: one of `PROPOSALS`.
        x: [N, 1, 28, 28] images.
        y: [N] classes.
        seed: of the network and of all draws.
    """

    def __init__(self, optimizer: str, proposal: str, x: Tensor, y: Tensor, seed: int) -> None:
        self.optimizer_name, self.proposal, self.x, self.y = optimizer, proposal, x, y
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network()
        self.optimizer = OPTIMIZERS[optimizer][1](self.network.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        self.metric_generator = torch.Generator().manual_seed(seed)
        # What is not yet drawn counts as undecided: ‖(½, ½) − (0, 1)‖.
        scores = torch.full((len(x),), 0.5**0.5, dtype=torch.float64)
        shares = {"bound": UNIFORM_SHARE, "half": 0.5}
        self.table = TableProposal(scores, uniform_share=shares.get(proposal, 0.0))
        self.everything = torch.arange(len(x))
        self.seconds, self.taken = 0.0, 0
        self.steps: list[int] = []
        self.losses: list[float] = []
        assessed = proposal == "bound" and optimizer == "sgd"
        self.metric: dict[str, list[float]] | None = {} if assessed else None
        self.evaluate()

    def advance(self, steps: int) -> None:
        """Take this many steps, and add their time."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.seconds += time.perf_counter() - started
        self.taken += steps

    def step(self) -> None:
        """One draw, and one step along its weighted mean gradient."""
        if self.proposal == "uniform":
            items = torch.randint(len(self.x), (BATCH,), generator=self.generator)
            loss = functional.cross_entropy(self.network(self.x[items]), self.y[items])
        else:
            if self.proposal != "bound":
                norms = gradient_norms(self.network, self.x, self.y)
                self.table.set_scores(self.everything, norms)
            items, log_q = self.table.draw(BATCH, generator=self.generator)
            logits, classes = self.network(self.x[items]), self.y[items]
            weights = log_q.neg().exp().div(len(self.x) * BATCH).to(logits)
            loss = functional.cross_entropy(logits, classes, reduction="none") @ weights
            if self.proposal == "bound":
                self.table.set_scores(items, cross_entropy_signal(logits, classes))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def evaluate(self) -> None:
        """Add a point to the curve of the loss on all images, and to the metric."""
        with torch.no_grad():
            loss = functional.cross_entropy(self.network(self.x), self.y)
        self.steps.append(self.taken)
        self.losses.append(float(f"{max(loss.item(), LOWEST):.6g}"))
        if self.metric is not None:
            for name, value in self.distances().items():
                self.metric.setdefault(name, []).append(float(f"{value:.6g}"))

    def distances(self) -> dict[str, float]:
        """Distances to p^GN on images drawn uniformly (Lahire 2023, Algorithm 1)."""
        n = len(self.x)
        items = torch.randperm(n, generator=self.metric_generator)[:ASSESSED]
        norms = gradient_norms(self.network, self.x[items], self.y[items])
        with torch.no_grad():
            fresh = cross_entropy_signal(self.network(self.x[items]), self.y[items])
        fresh = (1.0 - UNIFORM_SHARE) * fresh / fresh.mean() + UNIFORM_SHARE
        found = {}
        for distance in ("tv", "kl"):
            table = distances_to_optimum(self.table.log_prob(items), norms, distance)
            found[f"proposal_{distance}"] = table.proposal.item()
            found[f"uniform_{distance}"] = table.uniform.item()
            new = distances_to_optimum(fresh.log(), norms, distance)
            found[f"fresh_{distance}"] = new.proposal.item()
        return found

    def row(self) -> dict[str, Any]:
        """The curves, the time of a step and the metric."""
        row = {
            "optimizer": self.optimizer_name,
            "proposal": self.proposal,
            "steps": self.steps,
            "loss": self.losses,
            "step_seconds": float(f"{self.seconds / max(self.taken, 1):.6g}"),
        }
        return row if self.metric is None else {**row, "metric": self.metric}


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `optimal-sampling`, the losses, and `optimal-sampling-metric`; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    panels: dict[str, dict[str, Curve]] = {}
    for unit in ("steps", "seconds"):
        for optimizer, (label, _) in OPTIMIZERS.items():
            panel = panels.setdefault(f"{label}, {unit}", {})
            for proposal, name in PROPOSALS.items():
                pair = (optimizer, proposal)
                own = [row for row in rows if (row["optimizer"], row["proposal"]) == pair]
                if own:
                    cost = np.mean([row["step_seconds"] for row in own]) if unit != "steps" else 1
                    at = np.array(own[0]["steps"]) * cost
                    band = mean_band(np.log([row["loss"] for row in own]))
                    panel[name] = Curve(at, Band(*(np.exp(part) for part in band)))
    number = len({row["seed"] for row in rows})
    figure = curve_panels(
        panels,
        title="Norm-proportional draws with four optimizers",
        subtitle=f"training loss, geometric mean of {number} seeds; bands: 95% intervals",
        xlabel="steps (above), seconds on one core (below)",
        ylabel="training loss",
        percent=False,
    )
    for k, axes in enumerate(figure.axes[: len(panels)]):
        axes.set_yscale("log")
        if k >= len(OPTIMIZERS):  # uniform draws end early: what they do is to be seen
            ends = [curve.x[-1] for curve in list(panels.values())[k].values()]
            axes.set_xlim(0.0, 2.0 * min(ends))
    written = plots.save_figure(figure, folder, "optimal-sampling")
    return written + plots.save_figure(_histograms(rows), folder, "optimal-sampling-metric")


def _histograms(rows: Sequence[Mapping[str, Any]]) -> Any:
    from awsgd_rl.plots_panels import Curve, curve_panels

    labels = {
        "proposal": "table of output gradients",
        "uniform": "uniform",
        "fresh": "output gradients, just computed",
    }
    metrics = [row["metric"] for row in rows if "metric" in row]
    panels: dict[str, dict[str, Curve]] = {}
    for distance, title in (("tv", "total variation"), ("kl", "KL divergence, nats")):
        values = {k: np.concatenate([m[f"{k}_{distance}"] for m in metrics]) for k in labels}
        top = max(float(np.max(value)) for value in values.values())
        for name, label in labels.items():
            shares, edges = np.histogram(values[name], bins=25, range=(0.0, top))
            unknown = np.full(25, np.nan)
            band = Band(shares / len(values[name]), unknown, unknown)
            panels.setdefault(title, {})[label] = Curve((edges[1:] + edges[:-1]) / 2, band)
    return curve_panels(
        panels,
        title="How far a proposal is from the best one",
        subtitle="histograms over training with SGD and seeds (Lahire 2023, Algorithm 1)",
        xlabel="distance to the proposal of the exact gradient norms",
        ylabel="share of the evaluations",
        percent=False,
    )
