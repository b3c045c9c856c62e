"""The bench of optimal sampling: its norms, its ratios, its names; and the paper's theorem."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from awsgd_rl.benchmarks import data
from awsgd_rl.benchmarks import optimal_sampling as bench
from awsgd_rl.benchmarks import optimal_sampling_training as training_module
from awsgd_rl.benchmarks.optimal_sampling_training import (
    PROPOSALS,
    Network,
    Training,
    choose_images,
    gradient_norms,
)
from awsgd_rl.diagnostics import second_moment
from awsgd_rl.runs import to_json
from awsgd_rl.signals import per_example_gradient_norms


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0.0, 1.0)), min_size=2, max_size=12),
)
def test_between_uniform_and_the_best_is_between_in_speed(pairs: list[tuple[float, float]]) -> None:
    """Lahire 2023, section 3.1: S(u) <= S(p) <= S(p^GN), with S = constant - second moment.

    Any p between the two in every coordinate, not only their mixtures: a random point of the box,
    pulled towards u or p^GN, whichever restores the sum, so that it stays in the box.
    """
    norms, places = torch.tensor(pairs, dtype=torch.float64).T
    uniform = torch.full_like(norms, 1.0 / len(norms))
    best = norms / norms.sum()
    low, high = torch.minimum(uniform, best), torch.maximum(uniform, best)
    p = low + places * (high - low)
    end = low if p.sum() > 1.0 else high
    if (end - p).sum().abs() > 1e-12:
        p = p + (1.0 - p.sum()) / (end - p).sum() * (end - p)
    torch.testing.assert_close(p.sum(), torch.ones_like(p[0]))
    moments = [second_moment(norms, uniform, q).item() for q in (best, p, uniform)]
    assert moments[0] <= moments[1] * (1 + 1e-9)
    assert moments[1] <= moments[2] * (1 + 1e-9)


def test_the_norms_are_exact() -> None:
    x, y = choose_images(data.digits(), 0)
    network, few = Network(), torch.tensor([0, 1, 60, 99])
    norms = gradient_norms(network, x[few], y[few])
    exact = per_example_gradient_norms(network, functional.cross_entropy, x[few], y[few])
    torch.testing.assert_close(norms.double(), exact, rtol=1e-4, atol=1e-6)


def test_as_many_zeros_as_ones() -> None:
    x, y = choose_images(data.digits(), 3)
    assert x.shape == (100, 1, 28, 28)
    assert y.tolist() == [0] * 50 + [1] * 50
    assert not torch.equal(x, choose_images(data.digits(), 4)[0])


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_same_seed_same_curve(proposal: str) -> None:
    x, y = choose_images(data.digits(), 0)
    losses = []
    for _ in range(2):
        training = Training("momentum", proposal, x[40:60], y[40:60], 7)
        training.advance(4)
        training.evaluate()
        losses.append(training.losses)
    assert losses[0] == losses[1]
    assert losses[0][1] != losses[0][0]


def test_half_lies_between() -> None:
    x, y = choose_images(data.digits(), 0)
    half = Training("sgd", "half", x[40:60], y[40:60], 0)
    half.step()
    norms = half.table.scores
    torch.testing.assert_close(half.table.probabilities(), 0.5 * norms / norms.sum() + 0.5 / 20)


def test_ratios_of_known_curves() -> None:
    """Twice the speed at three times the cost of a step."""
    at = np.arange(0, 101, 5)
    rows = [
        {"steps": at.tolist(), "loss": np.exp(-rate * at).tolist(), "step_seconds": cost}
        for rate, cost in ((0.02, 1.0), (0.04, 3.0))
        for _ in range(3)
    ]
    steps = bench.ratio_to_uniform(rows[:3], rows[3:], by_time=False)
    assert steps.estimate == pytest.approx(2.0)
    seconds = bench.ratio_to_uniform(rows[:3], rows[3:], by_time=True)
    assert seconds.estimate == pytest.approx(2.0 / 3.0)
    assert bench.ratio_to_uniform(rows[3:], rows[:3], by_time=False).estimate == pytest.approx(0.5)


@pytest.mark.slow
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_module, "IMAGES", 10)
    monkeypatch.setattr(bench, "STEPS", 30)
    shares: list[float] = []
    rows, summary = bench.run(quick=True, jobs=1, progress=lambda share, text: shares.append(share))
    assert shares == [0.5, 1.0]
    assert len(rows) == 2 * 14
    names = {
        "sgd_step_ratio_gn",
        "sgd_step_ratio_half",
        "adam_step_ratio_gn",
        "time_ratio_gn",
        "time_ratio_bound",
        "metric_mean_proposal",
        "metric_mean_uniform",
        "metric_mean_proposal_kl",
    }
    for name in names:
        assert summary[name] > 0
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert "adam_step_ratio_half" not in summary
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = bench.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written if path.suffix == ".png"} == {
        "optimal-sampling.png",
        "optimal-sampling-metric.png",
    }
