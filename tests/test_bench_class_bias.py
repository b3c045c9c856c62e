"""The bench of class bias: its compiled loops against the library's classes, its names, figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awsgd_rl.adaptation import RunningScale, ScoreFunctionAdaptation
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.benchmarks import class_bias
from awsgd_rl.benchmarks import class_bias_kernels as kernels
from awsgd_rl.benchmarks.class_bias import epochs_to
from awsgd_rl.benchmarks.class_bias_problems import SIZES, Problem, examples, problem
from awsgd_rl.benchmarks.class_bias_runs import (
    BEST,
    BINS,
    ETA,
    GROUPED,
    METHODS,
    UNIFORM_SHARE,
    Run,
    Task,
    measure_run,
    measure_variance,
)
from awsgd_rl.benchmarks.data import Labelled
from awsgd_rl.feature_proposals import FeatureSoftmaxProposal, bin_features
from awsgd_rl.proposals import ClassProposal, TableProposal
from awsgd_rl.runs import to_json

N, D, BATCH = 60, 5, 8


def small() -> Problem:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    x[:, -1] = 1.0
    y = (np.arange(N) % 5 == 0).astype(np.int64)
    clusters = np.where(y == 0, np.arange(N) % 2, 2)
    held = Labelled(x, y, x, y)
    return Problem(held, np.linalg.norm(x, axis=1), (1,), clusters)


def make_run(method: str, rho: float = 0.1) -> Run:
    made = small()
    task = examples(made, 1)
    return Run(method, made, task, horizon=100, batch=BATCH, rho=rho, seed=3)


def library(method: str, run: Run) -> Proposal:
    """The library's proposal in the state that the run's loop is in."""
    made = small()
    if method == "table":
        scores = run.nodes[run.starts[-1] : run.starts[-1] + N].copy()
        return TableProposal(torch.from_numpy(scores), uniform_share=UNIFORM_SHARE)
    tau = torch.from_numpy(run.proposal.tau.copy())
    groups = torch.from_numpy(run.proposal.groups.copy())
    if method == "features":
        return FeatureSoftmaxProposal(
            bin_features(BINS, 2), groups, tau=tau,
            uniform_share=UNIFORM_SHARE,
        )  # fmt: skip
    if method == "natural":
        return FeatureSoftmaxProposal(torch.zeros(1, 1), torch.zeros(N, dtype=torch.long))
    if method == "clusters":
        return ClassProposal(torch.from_numpy(made.clusters), 3, tau)
    return ClassProposal(groups, 2, torch.cat((torch.zeros(1), tau)))


@pytest.mark.parametrize(
    "method", ["natural", "balanced", "class", "clusters", "features", "table"]
)
def test_densities_are_the_library_proposals(method: str) -> None:
    run = make_run(method)
    run.advance(40)
    expected = library(method, run).log_prob(torch.arange(N)).detach().exp()
    np.testing.assert_allclose(run.probabilities(), expected.numpy(), rtol=1e-9)
    assert run.probabilities().sum() == pytest.approx(1.0)
    if method in GROUPED:
        assert np.abs(run.proposal.tau).min() > 1e-3


@pytest.mark.parametrize("method", ["class", "clusters", "features"])
def test_tau_steps_are_those_of_the_adaptation(method: str) -> None:
    """The same draws and signals, replayed through `ScoreFunctionAdaptation` and AdaGrad."""
    run = make_run(method)
    proposal: Proposal = library(method, run)
    rng = np.random.default_rng(1)
    tau = list(proposal.parameters())
    adaptation = ScoreFunctionAdaptation(proposal, torch.optim.Adagrad(tau, lr=ETA), scale=True)
    assert isinstance(adaptation.scale, RunningScale)
    log_p = torch.full((BATCH,), -math.log(N), dtype=torch.float64)
    share = UNIFORM_SHARE if method == "features" else 0.0
    for step in range(20):
        items = rng.integers(N, size=BATCH)
        signal = rng.uniform(0.1, 2.0, size=BATCH)
        groups = run.proposal.groups[items]
        softmax, shares = kernels.group_shares(run.proposal, method == "features", share)
        sizes = np.diff(run.proposal.first)
        q = (shares / np.maximum(sizes, 1))[groups]
        trust = (1.0 - share) * softmax[groups] / shares[groups]
        squared = np.square(signal / (N * q))
        kernels._adapt(run.proposal, squared, groups, softmax, trust, ETA)
        draw = Draw(torch.from_numpy(items), torch.from_numpy(np.log(q)))
        adaptation.update(draw, torch.from_numpy(signal), log_p)
        if method == "class":
            # ClassProposal has a number for each class; eq. 12 has the second alone.
            held = tau[0].data
            held[0] = 0.0
        expected = tau[0].detach().numpy()[-len(run.proposal.tau) :]
        np.testing.assert_allclose(run.proposal.tau, expected, rtol=1e-6, err_msg=str(step))


@pytest.mark.parametrize("method", METHODS)
def test_draws_have_their_probability_and_weight(method: str) -> None:
    """With no step of w and τ the items drawn are read off AdaGrad's first gradient."""
    made = small()
    # One-hot rows: the gradient tells which items were drawn, and how they were weighted.
    x = np.eye(N, dtype=np.float32)
    made = made._replace(held=made.held._replace(x_train=x), norms=np.ones(N, np.float32))
    task = examples(made, 1)
    rounds, total = 400, np.zeros(N)
    for seed in range(rounds):
        run = Run(method, made, task, horizon=10_000, batch=100, rho=0.0, seed=seed)
        run.advance(1)
        total += np.sqrt(run.model.squares)
    counts_or_weights = total / rounds / 0.5  # the residual at w = 0
    unweighted = method in ("sampler", "heuristic")
    q = make_run("balanced").probabilities() if unweighted else np.full(N, 1.0 / N)
    # A mean over 40,000 draws: p q (weight)² is at most about 3 / N a draw.
    error = np.sqrt(3.0 / N / (100 * rounds))
    np.testing.assert_allclose(counts_or_weights, q, atol=5 * error)


def test_logistic_regression_is_learned_alike() -> None:
    """Weighted methods end near the minimum of the same loss; unweighted ones elsewhere."""
    losses = {}
    for method in METHODS:
        run = make_run(method, rho=0.3)
        run.advance(3000)
        margins = run.task.signs * (run.task.x @ run.model.w)
        losses[method] = float(np.logaddexp(0.0, -margins).mean())
    least = min(losses.values())
    for method in set(METHODS) - {"sampler", "heuristic"}:
        assert losses[method] < least + 0.01, method
    assert losses["sampler"] > least + 0.05


def test_best_of_a_family_is_no_worse_than_what_was_learned() -> None:
    for method in (*GROUPED, BEST):
        run = make_run(method)
        run.advance(200)
        held = measure_variance(run)
        assert held["achieved"] <= held["best"] + 1e-9 <= held["per_example"] + 2e-9
    made = make_run("class")
    moments = np.random.default_rng(0).uniform(size=N)
    least, tau = made.best_second_moment(moments)
    for value, check in ((tau, pytest.approx(least)), (tau + 0.3, None), (tau - 0.3, None)):
        made.proposal.tau[0] = value
        moment = float((moments / made.probabilities()).sum())
        assert moment == check if check is not None else moment > least


def test_epochs_to_a_value() -> None:
    at, curve = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.5, 0.4])
    assert epochs_to(at, curve, 0.3) == pytest.approx(1.5)
    assert epochs_to(at, curve, 0.05) == 1.0
    assert epochs_to(at, curve, 0.6) == math.inf


def test_a_row_is_reproducible() -> None:
    task = Task("digits", None, 0, epochs=2.0)
    made = problem("digits", None, 0)
    for method in ("class", "table"):
        row = measure_run(method, made, 3, task)
        again = measure_run(method, made, 3, task)
        assert {**row, "seconds": 0} == {**again, "seconds": 0}
        assert len(row["epochs"]) == len(row["average_precision"]) > 10
        assert row["epochs"][-1] == pytest.approx(2.0, abs=0.02)
        assert 0.5 < row["average_precision"][-1] <= 1.0


@pytest.mark.slow
def test_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES["digits"]._replace(epochs=1.0)
    monkeypatch.setitem(SIZES, "digits", size)
    monkeypatch.setattr(class_bias, "measure_overhead", lambda rounds: [1.01, 1.02, 1.03])
    shares: list[float] = []

    def progress(share: float, text: str) -> None:
        shares.append(share)

    rows, summary = class_bias.run(quick=True, seeds=2, jobs=1, progress=progress)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(rows) == 2 * 10 * len(METHODS)
    for name in (
        *("class_oracle_fraction", "class_overhead_percent", "class_epoch_speedup_map"),
        *("best_epoch_speedup_map", "best_time_speedup_map", "best_oracle_fraction"),
    ):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert summary["class_overhead_percent"] == pytest.approx(2.0)
    assert all(len(row["tau"]) == len(row["epochs"]) for row in rows if row["method"] == "class")
    held: dict[str, Any] = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = class_bias.write_figures(held["rows"], held["summary"], tmp_path)
    names = {path.stem for path in written}
    assert names == {"class-bias", "class-bias-families", "class-bias-tau"}
