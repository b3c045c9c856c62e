"""One method of the bench `class-bias` at work on one task, and what is measured meanwhile."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from awsgd_rl.benchmarks import class_bias_kernels as kernels
from awsgd_rl.benchmarks.class_bias_problems import SIZES, Problem, examples

Floats = NDArray[np.float64]

METHODS: Final = {
    "natural": "natural",
    "balanced": "50/50, weighted",
    "sampler": "weighted sampler",
    "heuristic": "balanced, then natural",
    "class": "AW-SGD class bias",
    "clusters": "clusters",
    "features": "feature softmax",
    "table": "table",
}
GROUPED: Final = ("class", "clusters", "features")
"""Those whose τ moves."""
BEST: Final = "table"
"""The best of ours on the seeds that settings were tuned on."""

BATCH, ETA = 10, 0.1
BINS, REFRESH_EPOCHS = 12, 0.05  # of the feature softmax
FLOOR, UNIFORM_SHARE = 0.01, 0.05  # of the table; the feature softmax has the same share
SWITCH: Final = 0.25  # of the horizon, in the heuristic
CHECKPOINTS: Final = 30
ORACLE_EVERY: Final = 3  # checkpoints, between measures of the variance

RHO: Final[Mapping[str, Mapping[str, float]]] = {
    "mnist": {**dict.fromkeys(METHODS, 0.1), "sampler": 0.03, "features": 0.2, "table": 0.2},
    "flights": dict.fromkeys(METHODS, 0.1),
    "digits": {**dict.fromkeys(METHODS, 0.1), "sampler": 0.03, "features": 0.2, "table": 0.2},
}
"""AdaGrad's step of w: the best of 0.03, 0.1, 0.2 and 0.3 on seed 1000 (0.1 and 0.2 on 1001 too,
where they were near), which is not reported. On MNIST by the epochs to the best mean average
precision of 50/50, or by a method's own best where it does not get there; on flights, whose curves
are noisy, by the mean over time. The digits have MNIST's. Less variance bears larger steps."""


class Task(NamedTuple):
    """All methods on one data set with one seed."""

    data: str
    path: Path | None
    seed: int
    methods: tuple[str, ...] = tuple(METHODS)
    epochs: float | None = None
    batch: int = BATCH
    rho: float | None = None

    def __str__(self) -> str:
        return f"{self.data}, seed {self.seed}"


class Run:
    """One method at work on one task.

    Args:
        method: one of `METHODS`.
        made: the data.
        task: the examples.
        horizon: iterations in all, which the heuristic's switch is a share of.
        batch: examples in a batch.
        rho: AdaGrad's step of w.
        seed: of the draws.
        eta: AdaGrad's step of τ, where the method moves it.
    """

    def __init__(
        self,
        method: str,
        made: Problem,
        task: kernels.Examples,
        *,
        horizon: int,
        batch: int,
        rho: float,
        seed: int,
        eta: float = ETA,
    ) -> None:
        from awsgd_rl.feature_proposals import bin_features
        from awsgd_rl.sum_tree import SumTree

        self.method, self.task, self.batch, self.rho = method, task, batch, rho
        self.eta = eta if method in GROUPED else 0.0
        self.rng = np.random.default_rng(seed)
        self.model = kernels.make_model(task)
        self.done, self.switch = 0, int(SWITCH * horizon)
        n = len(task.signs)
        self.refresh = max(1, round(REFRESH_EPOCHS * n / batch))
        classes = (task.signs > 0).astype(np.int64)
        if method == "table":
            scores = kernels.table_scores(task, self.model, FLOOR, np.arange(n))
            tree = SumTree(torch.from_numpy(scores))
            self.nodes, self.starts = tree.nodes.numpy(), tree.starts
            return
        features: Floats | int
        if method == "clusters":
            features, groups = int(made.clusters.max()) + 1, made.clusters
        elif method == "features":
            features, groups = bin_features(BINS, 2).numpy(), classes * BINS
        else:
            # One number, as in eq. 12: the log odds of a positive example.
            features, groups = np.array([[0.0], [1.0]]), classes
        self.proposal = kernels.make_groups(features, groups)

    def advance(self, iterations: int) -> None:
        """Train for so many batches."""
        if self.method == "table":
            kernels.train_table(
                *(self.task, self.model, self.nodes, self.starts, self.rng, iterations),
                *(self.batch, self.rho, FLOOR, UNIFORM_SHARE),
            )
        elif self.method == "heuristic":
            balanced = min(iterations, max(0, self.switch - self.done))
            self._advance(balanced, weighted=False, by_size=False)
            self._advance(iterations - balanced, weighted=False, by_size=True)
        else:
            self._advance(
                iterations,
                weighted=self.method != "sampler",
                by_size=self.method in ("natural", "features"),
            )
        self.done += iterations

    def _advance(self, iterations: int, *, weighted: bool, by_size: bool) -> None:
        binned = self.method == "features"
        kernels.train_groups(
            *(self.task, self.model, self.proposal, self.rng, iterations, self.batch, self.rho),
            *(self.eta, weighted, by_size),
            *((UNIFORM_SHARE, BINS) if binned else (0.0, 0)),
            self.refresh,
        )

    def probabilities(self) -> Floats:
        """Return [N] the probability of each example, as the next draw has it."""
        n = len(self.task.signs)
        if self.method == "table":
            scores = self.nodes[self.starts[-1] : self.starts[-1] + n]
            mixed: Floats = (1.0 - UNIFORM_SHARE) * scores / scores.sum() + UNIFORM_SHARE / n
            return mixed
        binned = self.method == "features"
        by_size = self.method in ("natural", "features")
        share = UNIFORM_SHARE if binned else 0.0
        _, shares = kernels.group_shares(self.proposal, by_size, share)
        sizes = np.maximum(np.diff(self.proposal.first), 1)
        probabilities: Floats = (shares / sizes)[self.proposal.groups]
        return probabilities

    def best_second_moment(self, moments: Floats) -> tuple[float, float]:
        """Return the least Σ m_i / q_i in the family of the proposal, and (class bias) its τ.

        Args:
            moments: [N] m_i = (p_i ‖∇f_i‖)².
        """
        if self.method == "table":
            return float(np.sqrt(moments).sum() ** 2), np.nan
        n_groups = len(self.proposal.first) - 1
        sums: Floats = np.bincount(self.proposal.groups, moments, n_groups).astype(np.float64)
        sizes = np.bincount(self.proposal.groups, minlength=n_groups)
        if self.method == "features":
            return _best_feature_softmax(self.proposal.features, sums, sizes), np.nan
        roots = np.sqrt(sums * sizes)
        tau = np.log(roots[1] / roots[0]) if self.method == "class" else np.nan
        return float(roots.sum() ** 2), float(tau)


def _best_feature_softmax(features: Floats, sums: Floats, sizes: NDArray[np.int64]) -> float:
    from scipy.optimize import minimize

    used = sizes > 0
    features, sums, sizes = features[used], sums[used], sizes[used]

    def log_moment(tau: Floats) -> float:
        exponents = features @ tau
        softmax = np.exp(exponents - exponents.max())
        softmax /= (sizes * softmax).sum()
        q = (1.0 - UNIFORM_SHARE) * softmax + UNIFORM_SHARE / sizes.sum()
        return float(np.log((sums / q).sum()))

    starts = [np.zeros(features.shape[1]), np.eye(features.shape[1])[0]]
    found = [minimize(log_moment, start, method="Nelder-Mead").fun for start in starts]
    return float(np.exp(min(found)))


def checkpoints(n: int, batch: int, epochs: float) -> NDArray[np.int64]:
    """Return the iterations after which a run is looked at, evenly spaced in their logarithm."""
    last = max(CHECKPOINTS, int(n / batch * epochs))
    return np.unique(np.geomspace(max(1, last / 300), last, CHECKPOINTS).astype(np.int64))


def measure_run(method: str, made: Problem, positive: int, task: Task) -> dict[str, Any]:
    """Train one method on one class, and return its row."""
    from sklearn.metrics import average_precision_score

    own = examples(made, positive)
    n = len(own.signs)
    epochs = SIZES[task.data].epochs if task.epochs is None else task.epochs
    stops = checkpoints(n, task.batch, epochs)
    rho = RHO[task.data][method] if task.rho is None else task.rho
    # Sequences of seeds that differ in one entry are independent.
    seed = np.random.SeedSequence([task.seed, positive, list(METHODS).index(method)])
    run = Run(
        method, made, own, horizon=int(stops[-1]), batch=task.batch, rho=rho,
        seed=int(seed.generate_state(1)[0]),
    )  # fmt: skip
    weights, variances, tau, seconds = [], [], [], 0.0
    for k, iterations in enumerate(np.diff(stops, prepend=0)):
        started = time.perf_counter()
        run.advance(int(iterations))
        seconds += time.perf_counter() - started
        weights.append(run.model.w.copy())
        tau.append(float(run.proposal.tau[0]) if method == "class" else np.nan)
        if method in (*GROUPED, BEST) and k % ORACLE_EVERY == ORACLE_EVERY - 1:
            at = float(stops[k] * task.batch / n)
            variances.append({"epoch": at, **measure_variance(run)})
    stacked = np.stack(weights, axis=1)
    margins = made.held.x_test @ stacked
    labels = made.held.y_test == positive
    odds = float((own.signs > 0).mean())
    shift = np.log(odds / (1.0 - odds)) if method == "sampler" else 0.0
    loss, calibrated = (
        float(np.logaddexp(0.0, np.where(labels, -1, 1) * (margins[:, -1] + by)).mean())
        for by in (0.0, shift)
    )
    row: dict[str, Any] = {
        "data": task.data,
        "seed": task.seed,
        "class": positive,
        "method": method,
        "rho": rho,
        "epochs": [float(f"{stop * task.batch / n:.5g}") for stop in stops],
        "average_precision": [
            float(f"{average_precision_score(labels, margins[:, k]):.5g}")
            for k in range(len(stops))
        ],
        "log_loss": loss,
        "log_loss_calibrated": calibrated,
        "seconds": seconds,
        "variances": variances,
    }
    if method == "class":
        row["tau"] = [float(f"{value:.5g}") for value in tau]
    return row


def measure_variance(run: Run) -> dict[str, float]:
    """Return logs of ratios of the variance: 50/50 draws over the run's, its family's best, any."""
    task, n = run.task, len(run.task.signs)
    margins = task.signs * (task.x @ run.model.w)
    residuals = 1.0 / (1.0 + np.exp(margins.astype(np.float64)))
    moments = np.square(residuals * task.norms / n)
    mean = task.x.T @ (residuals * task.signs).astype(np.float32) / n
    squared_mean = float(np.square(mean, dtype=np.float64).sum())
    positive = task.signs > 0
    sizes = np.where(positive, positive.sum(), n - positive.sum())
    reference = float((moments * 2.0 * sizes).sum()) - squared_mean
    achieved = float((moments / run.probabilities()).sum()) - squared_mean
    least, tau = run.best_second_moment(moments)
    return {
        "achieved": float(np.log(reference / achieved)),
        "best": float(np.log(reference / (least - squared_mean))),
        "per_example": float(np.log(reference / (np.sqrt(moments).sum() ** 2 - squared_mean))),
        "best_tau": tau,
    }


def mean_curve(rows: Sequence[Mapping[str, Any]], method: str) -> Floats:
    """Return [K] the average precision over time, a mean over the tasks."""
    curves = [row["average_precision"] for row in rows if row["method"] == method]
    mean: Floats = np.mean(curves, axis=0)
    return mean
