"""The network of the bench `two-stage`, and how it learns by each method."""

import time
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from awsgd_rl.benchmarks.data import Labelled
from awsgd_rl.proposals import UniformProposal
from awsgd_rl.signals import cross_entropy_signal
from awsgd_rl.two_stage import TwoStageSampler
from awsgd_rl.weights import importance_weights

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
EVALUATED: Final = 5_000


class Images:
    """Square images [N, 1, S, S] with their classes [N]."""

    def __init__(self, labelled: Labelled) -> None:
        side = round(labelled.x_train.shape[1] ** 0.5)
        self.side = side
        self.x = torch.from_numpy(labelled.x_train).reshape(-1, 1, side, side)
        self.y = torch.from_numpy(labelled.y_train)
        self.x_test = torch.from_numpy(labelled.x_test).reshape(-1, 1, side, side)[:EVALUATED]
        self.y_test = torch.from_numpy(labelled.y_test)[:EVALUATED]


def make_network(side: int) -> nn.Sequential:
    """Two convolutions and a linear layer, for images of this side."""
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
        n = len(self.images.x)
        self.descend(torch.randint(n, (BATCH_SIZE,), generator=self.generator))

    def step_shuffled(self) -> None:
        """One step on the next examples of a shuffled epoch."""
        if len(self.order) < BATCH_SIZE:
            self.order = torch.randperm(len(self.images.x), generator=self.generator)
        items, self.order = self.order[:BATCH_SIZE], self.order[BATCH_SIZE:]
        self.descend(items)

    def step_two_stage(self) -> None:
        """One step on a draw of the sampler."""
        draw = self.sampler.draw(BATCH_SIZE, self.score, generator=self.generator)
        self.descend(draw.items, importance_weights(self.log_p, draw.log_q))
        self.sampler.step_done()

    def score(self, items: Tensor) -> Tensor:
        """[n] norm of the loss's gradient in the network's output."""
        logits = self.network(self.images.x[items])
        return cross_entropy_signal(logits, self.images.y[items])

    def descend(self, items: Tensor, weights: Tensor | None = None) -> None:
        """One step along the gradient of the (weighted) mean loss."""
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
