"""The network of the bench `optimal-sampling`, and how it learns from the draws of a proposal."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from awsgd_rl.benchmarks.data import Labelled
from awsgd_rl.diagnostics import distances_to_optimum
from awsgd_rl.proposals import TableProposal
from awsgd_rl.signals import cross_entropy_signal

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
IMAGES, BATCH = 100, 5
LOWEST: Final = 1e-6  # Adam's losses fall to the rounding of float32
ASSESSED: Final = 50  # M of the paper's Algorithm 1


def choose_images(labelled: Labelled, seed: int) -> tuple[Tensor, Tensor]:
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
