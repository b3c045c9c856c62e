"""The data sets of the bench `class-bias`, with random ReLU features, and their tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from awsgd_rl.benchmarks.class_bias_kernels import Examples
from awsgd_rl.benchmarks.data import Labelled, digits, flights_cancelled, mnist


class Size(NamedTuple):
    """Size of a data set here."""

    epochs: float
    """Horizon."""
    relu: int
    """Random features."""
    raw: bool
    """Whether the features that it has are kept beside them."""


SIZES: Final = {
    "digits": Size(12, 100, False),
    "mnist": Size(20, 500, False),
    "flights": Size(4, 100, True),
}
CLUSTERS: Final = {"digits": 4, "mnist": 4, "flights": 16}  # in each class


class Problem(NamedTuple):
    """Features and labels, made once for all methods."""

    held: Labelled
    """x with random features, and a constant."""
    norms: NDArray[np.float32]
    positives: tuple[int, ...]
    """The class of each task that is to be told from the rest."""
    clusters: NDArray[np.int64]
    """[N]"""


def problem(data: str, path: Path | None, seed: int) -> Problem:
    """Return a data set with random ReLU features, standardised, and a constant."""
    from awsgd_rl.feature_proposals import cluster_labels

    makers: dict[str, Callable[[], Labelled]]
    makers = {"digits": digits, "mnist": lambda: mnist(path), "flights": flights_cancelled}
    held, size = makers[data](), SIZES[data]
    rng = np.random.default_rng(seed)
    d = held.x_train.shape[1]
    weights = rng.normal(size=(d, size.relu)) * np.sqrt(2.0 / d)
    biases = 0.1 * rng.normal(size=size.relu)

    def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
        relu = np.maximum(x @ weights.astype(np.float32) + biases.astype(np.float32), 0.0)
        return np.concatenate((x, relu), 1) if size.raw else relu

    train, test = features(held.x_train), features(held.x_test)
    mean, deviation = train.mean(0), train.std(0) + np.float32(1e-6)

    def finished(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate(((x - mean) / deviation, np.ones((len(x), 1), np.float32)), 1)

    held = held._replace(x_train=finished(train), x_test=finished(test))
    classes = torch.from_numpy(held.y_train)
    clusters = cluster_labels(torch.from_numpy(held.x_train), classes, CLUSTERS[data], seed=seed)
    positives = (1,) if data == "flights" else tuple(range(10))
    return Problem(held, np.linalg.norm(held.x_train, axis=1), positives, clusters.numpy())


def examples(made: Problem, positive: int) -> Examples:
    """Return the task of telling one class from the rest."""
    signs = np.where(made.held.y_train == positive, 1.0, -1.0).astype(np.float32)
    return Examples(made.held.x_train, signs, made.norms)
