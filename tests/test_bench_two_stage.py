"""The bench of two-stage draws: its names, its figure, how speed-ups are counted."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awsgd_rl.benchmarks import data, two_stage
from awsgd_rl.benchmarks.two_stage import speed_up, summarise
from awsgd_rl.benchmarks.two_stage_training import BATCH_SIZE, METHODS, Images, Training
from awsgd_rl.runs import to_json


def row(method: str, seed: int, losses: list[float], cost: float = 1.0) -> dict[str, Any]:
    steps = [float(k) for k in range(1, len(losses) + 1)]
    return {
        "method": method,
        "seed": seed,
        "loss": losses,
        "steps": steps,
        "seconds": [cost * k for k in steps],
        "test_error": losses,
        "variance_reduction": 3.0,
        "relative_cost": 0.5,
        "predicted_speedup": 2.0,
        "two_stage_share": 0.9,
    }


SLOW = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 2.0]  # means of three: 5, 4, 3, 2, 5/3
FAST = [6.0, 3.0, 0.5, 0.3, 0.2, 0.2, 0.2]  # the third mean is 1.27


class TestSpeedUp:
    def test_time_and_steps_to_the_references_lowest_loss(self) -> None:
        reference, ours = row("uniform", 0, SLOW), row("switched", 0, FAST, cost=1.5)
        assert speed_up(reference, ours, "steps") == (7.0 / 4.0, False)
        assert speed_up(reference, ours, "seconds") == (7.0 / (4.0 * 1.5), False)

    def test_never_there(self) -> None:
        reference, ours = row("uniform", 0, FAST), row("switched", 0, SLOW, cost=2.0)
        ratio, missed = speed_up(reference, ours, "seconds")
        assert missed
        assert ratio == pytest.approx(6.0 / 14.0) or ratio == pytest.approx(7.0 / 14.0)

    def test_against_itself_it_is_one(self) -> None:
        assert speed_up(row("uniform", 0, SLOW), row("uniform", 0, SLOW), "seconds") == (1.0, False)

    def test_summary(self) -> None:
        rows = [
            row(method, seed, FAST if method == "switched" else SLOW, cost=1.0 + 0.1 * seed)
            for seed in (3, 4)
            for method in METHODS
        ]
        summary = summarise(rows)
        assert summary["time_speedup"] == pytest.approx(7.0 / 4.0)
        assert summary["always.time_speedup"] == pytest.approx(1.0)
        assert summary["target_missed"] == 0.0
        assert summary["uniform.test_error"] == 2.0
        assert summary["time_speedup_low"] <= summary["time_speedup"]
        assert "time_speedup_low" not in summarise(rows[:4])


def test_names_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_stage, "STEPS", 300)
    monkeypatch.setattr(two_stage, "EVALUATIONS", 6)
    monkeypatch.setattr(two_stage, "TURN", 7)
    rows, summary = two_stage.run(quick=True, seed=4, seeds=2, jobs=1)
    assert [(r["seed"], r["method"]) for r in rows] == [(s, m) for s in (4, 5) for m in METHODS]
    for r in rows:
        assert r["steps"] == [5, 10, 15, 20, 25, 30]
        assert r["seconds"] == sorted(r["seconds"])
        assert r["loss"][-1] < r["loss"][0]
    assert all(math.isfinite(value) for value in summary.values())
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = two_stage.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"two-stage.png", "two-stage.svg"}


def test_methods_start_from_the_same_network_and_learn_alike_from_the_same_seed() -> None:
    images = Images(data.digits())

    def parameters(training: Training) -> torch.Tensor:
        return torch.cat([w.detach().flatten() for w in training.network.parameters()])

    first = [parameters(Training(method, images, 3)) for method in METHODS]
    assert all(torch.equal(w, first[0]) for w in first)
    for method in ("uniform", "shuffled", "always"):
        one, two = Training(method, images, 3), Training(method, images, 3)
        one.advance(25)
        two.advance(25)
        assert torch.equal(parameters(one), parameters(two))


def test_an_epoch_without_replacement() -> None:
    images = Images(data.digits())
    training = Training("shuffled", images, 0)
    seen: list[int] = []
    training.descend = lambda items, weights=None: seen.extend(items.tolist())  # type: ignore[method-assign]
    batches = len(images.x) // BATCH_SIZE
    training.advance(batches)
    assert len(set(seen)) == len(seen) == batches * BATCH_SIZE


def test_smoothing_leaves_out_what_has_no_past() -> None:
    np.testing.assert_allclose(two_stage.smoothed([3.0, 6.0, 9.0, 0.0]), [np.inf, np.inf, 6.0, 5.0])
