"""The bench of hashing: its names, its figures, and that its measurements are what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awsgd_rl.benchmarks import hashing
from awsgd_rl.benchmarks.hashing import Task
from awsgd_rl.benchmarks.hashing_problems import feature_scale, gradient_norms, load
from awsgd_rl.hashing import squared_loss_keys, squared_loss_query
from awsgd_rl.runs import to_json


@pytest.mark.slow
def test_summary_and_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hashing, "GOAL", 0.2)
    monkeypatch.setattr(hashing, "STAGES", (1.0,))

    def run_tasks(
        function: Callable[..., Any], tasks: list[Task], *, on_result: Any, **_: Any
    ) -> list[Any]:
        results = []
        for task in tasks:
            n = task.n if task.kind == "cost" else max(100, task.n // 25)
            results.append(function(task._replace(n=n), None))
            on_result(results[-1])
        return results

    monkeypatch.setattr(hashing, "run_tasks", run_tasks)
    monkeypatch.setattr(hashing, "SIZES", (100, 1000))
    monkeypatch.setattr(hashing, "SHAPES", ((6, 64), (4, 64), (6, 16)))
    shares = []
    rows, summary = hashing.run(
        quick=True, seeds=2, jobs=1, progress=lambda share, text: shares.append(share)
    )
    assert shares[-1] == 1.0
    for name in (
        "variance_ratio_heavy",
        "variance_ratio_light",
        "time_speedup",
        "step_speedup",
        "neighbours_variance_ratio_heavy",
        "neighbours_time_speedup",
    ):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert summary["step_cost_ratio"] == summary["step_cost_ratio_1e3"] > 0
    assert summary["neighbours_step_cost_ratio_1e2"] > 0
    assert summary["headroom_variance_ratio_heavy"] > summary["variance_ratio_heavy"]
    assert summary["bias_in_se"] < 3
    assert summary["published_bias_in_se"] > 5
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = hashing.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written if path.suffix == ".png"} == {
        "size.png",
        "shape.png",
        "cost.png",
        "variance.png",
    }


def test_variance_is_that_of_the_gradients() -> None:
    problem = load("gauss", 300)
    weights = (0.3 * problem.solution).requires_grad_()
    losses = (problem.x @ weights - problem.y).square()
    gradients = torch.stack(
        [torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses]
    ).double()
    norms, squared_mean = gradient_norms(problem, weights.detach())
    torch.testing.assert_close(norms, gradients.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert squared_mean == pytest.approx(gradients.mean(0).square().sum().item(), rel=1e-3)
    a = feature_scale(problem)
    inner = squared_loss_keys(problem.x, problem.y, a) @ squared_loss_query(weights, a)
    torch.testing.assert_close(2 * problem.x.norm(dim=1) * inner.abs(), norms.float())


def test_solution_is_the_least_squares_one() -> None:
    problem = load("outliers", 400)
    expected = np.linalg.lstsq(problem.x.numpy(), problem.y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(problem.solution.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("proposal", ["uniform", "hashing"])
def test_training_goes_to_the_solution(proposal: str) -> None:
    problem = load("gauss", 400)
    made = None if proposal == "uniform" else hashing.make_hashing(problem, 0)
    first, again = (
        hashing.train_to_goal(problem, made, 2e-3, 20, seed=3, limit=3000) for _ in range(2)
    )
    assert [point[2] for point in first] == [point[2] for point in again]
    assert first[-1][2] < 0.05


def test_bound_of_classes_is_above_the_measurement() -> None:
    problem = load("outliers", 2000)
    row = hashing.moments(problem, 0, 6, 64)
    assert row["best"] <= row["measured"] <= row["classes"]
    assert row["bound"] <= row["classes"] < 1.0
