"""The bench of several proposals: its tasks, its methods, its names, its figure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from awsgd_rl.benchmarks import multiple_is as bench
from awsgd_rl.benchmarks import multiple_is_problems as problems
from awsgd_rl.benchmarks import multiple_is_training as training_module
from awsgd_rl.benchmarks.multiple_is import TASKS
from awsgd_rl.benchmarks.multiple_is_problems import make_problem
from awsgd_rl.benchmarks.multiple_is_training import METHODS, Setting, Training, gradient_errors
from awsgd_rl.runs import to_json

NODES = {"polynomial": 3, "mnist": 10, "image": 3, "points": 4}


@pytest.mark.parametrize("name", TASKS)
def test_node_gradients_are_those_of_the_loss(name: str) -> None:
    problem = make_problem(name, quick=True, data=None, seed=1)
    assert problem.nodes == NODES[name]
    assert problem.batch % problem.nodes == 0
    network, items = problem.network(), torch.tensor([3, 50, 200])
    outputs = network(problem.x[items])
    losses = problem.losses(outputs, problem.y[items])
    nodes = problem.node_gradients(outputs, items)
    norms = problem.norms(outputs, items)
    for k in range(len(items)):
        if problem.per_coefficient:
            (whole,) = torch.autograd.grad(losses[k], network.parameters(), retain_graph=True)
            expected = whole[0, list(problems.CHOSEN)]
        else:
            (whole,) = torch.autograd.grad(losses[k], outputs, retain_graph=True)
            expected = whole[k]
        torch.testing.assert_close(nodes[k], expected)
        torch.testing.assert_close(norms[k], whole.norm())


def test_the_torus_has_unit_normals_and_its_distances() -> None:
    problem = make_problem("points", quick=True, data=None, seed=0)
    distance, normal = problem.y[:, 0] / 5.0, problem.y[:, 1:]
    ring = problem.x[:, :2].norm(dim=1) - 0.6
    expected = torch.hypot(ring, problem.x[:, 2]) - 0.2
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(len(normal)))
    assert distance.abs().max() <= 0.2


def test_the_polynomial_is_measured_against_its_best_fit() -> None:
    problem = make_problem("polynomial", quick=True, data=None, seed=0)
    gradient = problem.x.double().T @ (problem.reference - problem.y).double()
    assert gradient.abs().max() < 1e-2
    assert (problem.reference - problem.y).std() > 0.1


@pytest.mark.parametrize("memory", [0.0, 0.7])
@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_curve_and_it_learns(method: str, memory: float) -> None:
    problem = make_problem("polynomial", quick=True, data=None, seed=0)
    runs = [Training(problem, method, Setting(0.05, memory), 3) for _ in range(2)]
    for training in runs:
        training.advance(training.epoch + 20)
        training.evaluate()
    assert runs[0].curves["loss"] == runs[1].curves["loss"]
    assert runs[0].curves["loss"][1] < 0.5 * runs[0].curves["loss"][0]


def test_the_first_epoch_is_shuffled_and_fills_the_tables() -> None:
    problem = make_problem("image", quick=True, data=None, seed=0)
    shuffled, several = (
        Training(problem, m, Setting(1e-3, 0.0), 0) for m in ("shuffled", "balance")
    )
    shuffled.advance(shuffled.epoch)
    several.advance(several.epoch - 1)
    assert all((table.scores == 1.0).any() for table in several.tables)
    several.advance(1)
    # Where α of the first score, 1, is kept, a seen score is below it: errors are below 1.
    assert all((table.scores != 1.0).all() for table in several.tables)
    for one, other in zip(shuffled.parameters, several.parameters, strict=True):
        assert torch.equal(one, other)


def test_memory_is_a_running_mean() -> None:
    problem = make_problem("polynomial", quick=True, data=None, seed=0)
    training = Training(problem, "plain", Setting(0.1, 0.7), 0)
    assert training.remembered([torch.tensor([1.0])])[0].item() == 1.0
    assert training.remembered([torch.tensor([2.0])])[0].item() == pytest.approx(1.3)


def test_weighted_draws_have_less_error() -> None:
    problem = make_problem("polynomial", quick=True, data=None, seed=0)
    network = Training(problem, "plain", Setting(0.1, 0.0), 0).network
    errors = gradient_errors(problem, network, 0)
    assert errors["plain"] == 1.0
    assert max(errors[method] for method in ("one", "balance", "control")) < 0.7
    assert errors["control"] < errors["balance"]


def test_losses_at_equal_steps_and_time() -> None:
    assert bench.smoothed([4.0, 2.0, 3.0, 1.0]).tolist() == pytest.approx([4.0, 3.0, 3.0, 2.0])
    row = {"seconds": [0.0, 2.0, 4.0], "loss": [3.0, 3.0, 0.0]}
    assert bench.loss_at(row, 3.0) == pytest.approx(2.5)
    assert bench.loss_at(row, 9.0) == pytest.approx(2.0)
    rows = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "seconds": [0.0, 3.0 if method == "optimal" else 1.0],
            "loss": [1.0, 0.0625],
            "gradient_error": None if method == "shuffled" else 0.5,
        }
        for task in TASKS
        for method in METHODS
        for seed in range(2)
    ]
    summary = bench.summarise(rows)
    assert summary["mnist.optimal.step_cost"] == pytest.approx(3.0)
    assert summary["points.control.gradient_error"] == pytest.approx(0.5)
    assert "points.shuffled.gradient_error" not in summary
    assert summary["image.plain.loss_equal_time"] == pytest.approx(
        summary["image.one.loss_equal_steps"]
    )
    assert summary["image.optimal.loss_equal_time"] > summary["image.plain.loss_equal_time"]


def test_every_method_is_tuned_on_every_task() -> None:
    assert bench.SETTINGS.keys() == TASKS.keys()
    for settings in bench.SETTINGS.values():
        assert settings.keys() == METHODS.keys()


@pytest.mark.slow
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = make_problem

    def short(name: str, **options: object) -> problems.Problem:
        problem = original(name, **options)  # type: ignore[arg-type]
        return problem._replace(
            x=problem.x[:240], y=problem.y[:240], reference=problem.reference[:240], steps=30
        )

    monkeypatch.setattr(bench, "make_problem", short)
    monkeypatch.setattr(bench, "EVALUATIONS", 3)
    monkeypatch.setattr(training_module, "BATCHES", 3)
    shares: list[float] = []
    rows, summary = bench.run(quick=True, jobs=1, progress=lambda share, text: shares.append(share))
    assert shares[-1] == 1.0
    assert len(rows) == 2 * len(TASKS) * len(METHODS)
    for task in TASKS:
        for method in METHODS:
            for name in ("loss_equal_steps", "loss_equal_time"):
                key = f"{task}.{method}.{name}"
                assert 0 < summary[f"{key}_low"] <= summary[key] <= summary[f"{key}_high"]
    assert np.isfinite(list(summary.values())).all()
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = bench.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"multiple-is.png", "multiple-is.svg"}
