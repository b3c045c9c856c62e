"""The bench of the learned integral: what is exact in it, its names, its figure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from awsgd_rl.benchmarks import integral
from awsgd_rl.benchmarks.integral import Task, best_product_std, make_loss
from awsgd_rl.integration import Integrator
from awsgd_rl.proposals import UniformProposal
from awsgd_rl.runs import to_json


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integral, "ENTRIES", 2_000)
    monkeypatch.setattr(integral, "POINTS", 10)


def test_names_and_figure(tmp_path: Path) -> None:
    seen: list[float] = []
    rows, summary = integral.run(
        quick=True, seed=5, seeds=2, jobs=1, progress=lambda share, text: seen.append(share)
    )
    assert seen == [0.25, 0.5, 0.75, 1.0]
    assert [(row["kind"], row["matrix"]) for row in rows] == [
        ("block", 5), ("block", 6), ("plain", 5), ("plain", 6)
    ]  # fmt: skip
    ratio = np.exp(np.mean([math.log(row["ratio_half"]) for row in rows[:2]]))
    assert summary["std_ratio_half"] == pytest.approx(ratio)
    for name in ("std_ratio_half", "std_ratio_half_equal", "std_ratio_half_best"):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = integral.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"integral.png", "integral.svg"}


def test_a_row_is_the_same_every_time() -> None:
    times = {"break_even_microseconds"}
    one, two = (
        {k: v for k, v in integral.measure(Task(3, "block", 2), print).items() if k not in times}
        for _ in range(2)
    )
    assert one == two


def test_the_best_product_proposal() -> None:
    rows, columns = np.array([1.0, 2.0, 5.0]), np.array([3.0, 1.0])
    assert best_product_std(np.outer(rows, columns)) == pytest.approx(0.0, abs=1e-6)
    loss = make_loss(0, "block")
    assert best_product_std(loss) < 0.2 * loss.std()


def test_the_square_root_rule_of_the_bench_is_the_integrators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = make_loss(0, "block")
    _, rooted, _, _ = integral.learned(loss, 0, 0)

    def with_exponent(*arguments: object) -> Integrator:
        return Integrator(*arguments, weight_exponent=0.5)  # type: ignore[arg-type]

    monkeypatch.setattr("awsgd_rl.integration.Integrator", with_exponent)
    direct, _, _, _ = integral.learned(loss, 0, 0)
    np.testing.assert_allclose(rooted, direct)


def test_the_exact_curve_of_uniform_draws() -> None:
    loss = torch.from_numpy(make_loss(1, "plain")).flatten()
    integrator = Integrator(
        loss.__getitem__,
        lambda x: torch.full((len(x),), -math.log(len(loss)), dtype=torch.float64),
        UniformProposal(len(loss)),
    )
    integrator.step(20_000, generator=torch.Generator().manual_seed(0))
    assert integrator.estimate.standard_error.item() == pytest.approx(
        loss.std(correction=0).item() / math.sqrt(20_000), rel=0.05
    )
