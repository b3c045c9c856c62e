"""How a network of the bench `multiple-is` learns by each method, and how far gradients are off."""

import time
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from awsgd_rl.adaptation import TableAdaptation
from awsgd_rl.base import Draw
from awsgd_rl.benchmarks.multiple_is_problems import Problem
from awsgd_rl.multiple import (
    OptimalCombination,
    OutputNodeAdaptation,
    draw_from_each,
    gradient_rows,
    optimal_weights,
    raise_scores,
    responsibilities,
)
from awsgd_rl.proposals import MixtureProposal, TableProposal

METHODS: Final = {
    "control": "optimal fit as control variate",
    "optimal": "optimal weights",
    "balance": "balance heuristic",
    "one": "one proposal",
    "plain": "uniform",
    "shuffled": "uniform, without replacement",
}

ALPHA, BETA, UNIFORM_SHARE, RAISE = 0.1, 0.7, 0.2, 0.05
EVALUATED: Final = 20_000
WARM, BATCHES = 10, 100  # of the measurement of a gradient's error


class Setting(NamedTuple):
    """What is tuned, on the same grid for every method."""

    learning_rate: float
    memory: float


class Training:
    """A network that learns by one method, and its curves.

    Args:
        problem: what to learn.
        method: one of `METHODS`.
        setting: step size and memory.
        seed: of the network and of all draws.
    """

    def __init__(self, problem: Problem, method: str, setting: Setting, seed: int) -> None:
        self.problem, self.method = problem, method
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = problem.network()
        self.parameters = list(self.network.parameters())
        self.optimizer = problem.optimizer(self.parameters, lr=setting.learning_rate)
        self.memory: float = setting.memory
        self.past: list[Tensor] | None = None
        self.generator = torch.Generator().manual_seed(seed)
        n, nodes = len(problem.x), problem.nodes
        self.log_p = -float(np.log(n))
        self.order, self.taken, self.seconds = torch.empty(0, dtype=torch.long), 0, 0.0
        self.epoch = -(-n // problem.batch)
        number = {"plain": 0, "shuffled": 0, "one": 1}.get(method, nodes)
        self.tables = [TableProposal(n, uniform_share=UNIFORM_SHARE) for _ in range(number)]
        self.counts = [problem.batch // nodes] * nodes
        if number > 1:
            self.mixture = MixtureProposal(self.tables, [1 / nodes] * nodes)
            self.nodes = OutputNodeAdaptation(self.mixture, decay=ALPHA)
            self.n = torch.tensor(self.counts, dtype=torch.float64)
            control = method == "control"
            beta = BETA if control else setting.memory
            self.combination = OptimalCombination(self.n, beta=beta, unbiased=control)
        elif number == 1:
            self.norms = TableAdaptation(self.tables[0], decay=ALPHA)
        self.curves: dict[str, list[float]] = {"steps": [], "seconds": [], "loss": []}
        self.evaluate()

    def advance(self, steps: int) -> None:
        """Take this many steps, and add their time."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.seconds += time.perf_counter() - started

    def warm_up(self) -> None:
        """A few steps after the first epoch: what is compiled or loaded once is not timed."""
        self.taken = self.epoch
        self.advance(3)

    def step(self) -> None:
        """One step; the first epoch is shuffled for all methods."""
        if self.taken < self.epoch:
            gradients = self.remembered(self.shuffled())
        elif self.method == "optimal" and self.memory > 0.0:
            gradients = self.combined()  # has a memory of its own
        else:
            gradients = self.remembered(self.gradient())
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.taken += 1
        if self.taken % self.epoch == 0:
            self.raise_tables()

    def raise_tables(self) -> None:
        """Let what is rarely drawn come back."""
        for table in self.tables:
            raise_scores(table, RAISE * table.scores.mean().item())

    def gradient(self) -> list[Tensor]:
        """The gradient of one batch, without those before."""
        if self.method == "shuffled":
            return self.shuffled()
        if self.method == "plain":
            return self.plain()
        if self.method == "one":
            return self.one()
        return self.combined() if self.method == "control" else self.several()

    def plain(self) -> list[Tensor]:
        """The gradient of uniform draws."""
        n, batch = len(self.problem.x), self.problem.batch
        items = torch.randint(n, (batch,), generator=self.generator)
        return self.descend(self.network(self.problem.x[items]), items, None)

    def shuffled(self) -> list[Tensor]:
        """The gradient of the next items of a shuffled epoch."""
        if len(self.order) == 0:
            self.order = torch.randperm(len(self.problem.x), generator=self.generator)
        batch = self.problem.batch
        items, self.order = self.order[:batch], self.order[batch:]
        outputs = self.network(self.problem.x[items])
        if self.tables:
            self.adapt(Draw(items, torch.zeros(len(items), dtype=torch.float64)), outputs)
        return self.descend(outputs, items, None)

    def one(self) -> list[Tensor]:
        """The weighted gradient of a draw of the one table."""
        draw = self.tables[0].draw(self.problem.batch, generator=self.generator)
        outputs = self.network(self.problem.x[draw.items])
        self.adapt(draw, outputs)
        return self.descend(outputs, draw.items, (self.log_p - draw.log_q).exp())

    def several(self) -> list[Tensor]:
        """The gradient with balance weights, or with optimal weights of this batch alone."""
        draw, log_components = draw_from_each(self.mixture, self.counts, generator=self.generator)
        if self.method == "balance":
            weights = (self.log_p - draw.log_q).exp()
        else:
            log_p = torch.full_like(draw.log_q, self.log_p)
            weights = optimal_weights(log_p, log_components, self.n)
        outputs = self.network(self.problem.x[draw.items])
        self.adapt(draw, outputs)
        return self.descend(outputs, draw.items, weights)

    def combined(self) -> list[Tensor]:
        """The gradient of the running sums A and b, or with them as a control variate."""
        draw, log_components = draw_from_each(self.mixture, self.counts, generator=self.generator)
        shares = responsibilities(log_components, self.n)
        outputs = self.network(self.problem.x[draw.items])
        self.adapt(draw, outputs)
        losses = self.problem.losses(outputs, self.problem.y[draw.items])
        weights = (self.log_p - draw.log_q).exp()
        rows = gradient_rows(losses, weights, shares, self.parameters)
        return self.combination.update(shares, rows)

    def adapt(self, draw: Draw, outputs: Tensor) -> None:
        """Write the gradients in the outputs into the tables."""
        if len(self.tables) == 1:
            self.norms.update(draw, self.problem.norms(outputs, draw.items))
        else:
            self.nodes.update(draw, self.problem.node_gradients(outputs, draw.items))

    def descend(self, outputs: Tensor, items: Tensor, weights: Tensor | None) -> list[Tensor]:
        """The gradient of the (weighted) mean loss."""
        losses = self.problem.losses(outputs, self.problem.y[items])
        loss = losses.mean() if weights is None else losses @ weights.to(losses) / len(losses)
        return list(torch.autograd.grad(loss, self.parameters))

    def remembered(self, gradients: list[Tensor]) -> list[Tensor]:
        """The running mean of the gradients, from the first on."""
        if self.memory == 0.0:
            return gradients
        if self.past is None:
            self.past = gradients
        else:
            self.past = [
                torch.lerp(new, old, self.memory)
                for old, new in zip(self.past, gradients, strict=True)
            ]
        return self.past

    def evaluate(self) -> None:
        """Add a point to the curves."""
        problem = self.problem
        with torch.no_grad():
            outputs = self.network(problem.x[:EVALUATED])
            loss = problem.losses(outputs, problem.reference[:EVALUATED]).mean().item()
        for name, value in (("steps", self.taken), ("seconds", self.seconds), ("loss", loss)):
            self.curves[name].append(float(f"{value:.6g}"))


def gradient_errors(problem: Problem, network: nn.Module, seed: int) -> dict[str, float]:
    """E‖estimate − gradient‖² of a batch of each method over that of uniform draws.

    At a fixed network, with tables up to date, without memory (but the control variate's).
    """
    everything = torch.arange(len(problem.x))
    errors: dict[str, float] = {}
    for method in METHODS:
        if method == "shuffled":  # no estimate by itself: the batches of an epoch cancel out
            continue
        training = Training(problem, method, Setting(0.0, 0.0), seed)
        training.network.load_state_dict(network.state_dict())
        outputs = training.network(problem.x)
        exact = torch.autograd.grad(problem.losses(outputs, problem.y).mean(), training.parameters)
        if training.tables:
            draw = Draw(everything, torch.zeros(len(everything), dtype=torch.float64))
            training.adapt(draw, outputs)
            training.raise_tables()
        total = 0.0
        for k in range(WARM + BATCHES):
            gradient = training.gradient()
            if k >= WARM:
                total += sum(
                    (one - other).square().sum().item()
                    for one, other in zip(gradient, exact, strict=True)
                )
        errors[method] = total
    return {method: error / errors["plain"] for method, error in errors.items()}
