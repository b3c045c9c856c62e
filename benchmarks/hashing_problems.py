"""Least squares with heavy and light tails, and the proposals that the bench compares."""

import math
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from awsgd_rl.hashing import HashProposal, squared_loss_keys
from awsgd_rl.neighbours import NeighbourProposal

BITS, TABLES, SHARE = 6, 64, 0.3
THRESHOLD: Final = 3.0
"""Residual, in standard deviations of the target, that the keys are scaled to (see
`squared_loss_keys`). Found with bits, tables and share on 100,000 of the flights, one draw of
tables: {1, 2, 4} x {4, 6, 8} x {64, 128} x {0.1, 0.2, 0.3, 0.5}. 2 was best at 0, 4 at the
solution."""
NEIGHBOURS, NEIGHBOUR_SHARE = 0.05, 0.7
"""Neighbours found on each side, as a share of the examples; of 100 to 5,000 of 100,000."""


class Problem(NamedTuple):
    """Least squares, with its solution."""

    x: Tensor
    y: Tensor
    solution: Tensor


@cache
def load(name: str, n: int) -> Problem:
    """Return the data by name; flights are all taken, whatever n."""
    rng = np.random.default_rng(n)
    if name == "flights":
        from awsgd_rl.benchmarks.data import flights_delays

        features, delays = flights_delays()
        x, y = torch.from_numpy(features).double(), torch.from_numpy(delays).double()
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        # Dummies of one category sum to a constant: of that direction nothing is left.
        kept = variances > 1e-2
        x = x @ (axes[:, kept] / variances[kept].sqrt())
    elif name == "diabetes":
        from sklearn.datasets import load_diabetes

        features, values = load_diabetes(return_X_y=True)
        x = torch.from_numpy(features / features.std(0))
        y = torch.from_numpy(values)
    else:
        x = torch.from_numpy(rng.standard_normal((n, 20)))
        noise = rng.standard_t(2.5, n) if name == "student" else rng.standard_normal(n)
        if name == "outliers":
            wrong = rng.uniform(20.0, 40.0, n) * np.where(rng.random(n) < 0.5, -1.0, 1.0)
            noise = np.where(rng.random(n) < 0.01, wrong, 0.3 * noise)
        y = 0.2 * x.sum(1) + torch.from_numpy(noise)
    y = (y - y.mean()) / y.std()
    x = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1)
    solution = torch.linalg.solve(x.T @ x, x.T @ y)
    return Problem(x.float(), y.float(), solution.float())


def feature_scale(problem: Problem) -> float:
    """Return a of the keys: `THRESHOLD` over the length of the features."""
    return THRESHOLD / math.sqrt(problem.x.shape[1])


def make_hashing(
    problem: Problem, seed: int, bits: int = BITS, tables: int = TABLES
) -> HashProposal:
    """Return the tables of a seed."""
    return HashProposal(
        squared_loss_keys(problem.x, problem.y, feature_scale(problem)),
        bits=bits,
        tables=tables,
        uniform_share=SHARE,
        generator=torch.Generator().manual_seed(seed),
    )


def make_neighbours(problem: Problem) -> NeighbourProposal:
    """Return the index of all keys."""
    return NeighbourProposal(
        squared_loss_keys(problem.x, problem.y, feature_scale(problem)),
        neighbours=max(1, int(NEIGHBOURS * len(problem.x))),
        uniform_share=NEIGHBOUR_SHARE,
    )


def make_proposals(problem: Problem, seed: int) -> dict[str, Any]:
    """Return both by name."""
    return {"hashing": make_hashing(problem, seed), "neighbours": make_neighbours(problem)}


def gradient_norms(problem: Problem, weights: Tensor) -> tuple[Tensor, float]:
    """Return ‖∇ℓ_i‖ [N], float64, and the squared norm of the mean gradient."""
    x = problem.x.double()
    gradients = 2.0 * (x @ weights.double() - problem.y.double())
    mean = gradients @ x / len(x)
    return x.norm(dim=1) * gradients.abs(), mean.square().sum().item()


def second_moment(norms: Tensor, q: Tensor) -> float:
    """Return the mean of ‖∇ℓ‖² / (N q)² under q."""
    return (norms.square() / q).sum().item() / len(norms) ** 2


def mean_square(norms: Tensor) -> float:
    """Return the mean of ‖∇ℓ‖²: the second moment of uniform draws."""
    return norms.square().mean().item()
