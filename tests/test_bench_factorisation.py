"""The benches of matrix factorisation and of access times: names, arithmetic, figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awsgd_rl.benchmarks import matrix_factorisation, time_aware
from awsgd_rl.runs import to_json


def test_draws_to_a_target_lie_between_points() -> None:
    row = {"losses": [1.0, 0.1, 0.01], "draws": [10, 20, 30]}
    assert matrix_factorisation.draws_to(row, 0.1) == pytest.approx(20)
    assert matrix_factorisation.draws_to(row, np.sqrt(0.001)) == pytest.approx(25)
    assert matrix_factorisation.draws_to(row, 2.0) == 10
    assert matrix_factorisation.draws_to(row, 0.001) == np.inf
    seconds, losses = np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.05, 0.001])
    assert 2.0 < time_aware.time_to(seconds, losses) < 3.0
    assert time_aware.time_to(seconds[:2], losses[:2]) == np.inf


def test_matrix_factorisation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = matrix_factorisation.Task

    def short(name: str, matrix: Any, rank: int, seed: int, *rest: Any) -> Any:
        return real(name, matrix, 4, seed, 3, 6, rest[-1])

    monkeypatch.setattr(matrix_factorisation, "Task", short)
    monkeypatch.setattr(matrix_factorisation, "FRAMES", 3)
    shares: list[float] = []
    rows, summary = matrix_factorisation.run(
        quick=True, seeds=2, progress=lambda share, text: shares.append(share)
    )
    assert shares == sorted(shares)
    for name in ("iteration_speedup", "mnist_time_speedup", "mnist_iteration_speedup"):
        assert np.isfinite([summary[name], summary[f"{name}_low"], summary[f"{name}_high"]]).all()
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = matrix_factorisation.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.suffix for path in written} == {".png", ".svg", ".gif"}
    assert all(path.is_file() for path in written)
    [shown] = [row for row in rows if row["task"] == "digits"]
    np.testing.assert_allclose(np.sum(shown["frames"], axis=1), 1.0, atol=0.01)
    again, _ = matrix_factorisation.run(quick=True, seeds=2)
    assert [r["losses"] for r in rows if "losses" in r] == [
        r["losses"] for r in again if "losses" in r
    ]


def test_time_aware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(time_aware, "SIZE", 100)
    monkeypatch.setattr(time_aware, "REAL_SIZE", 32)
    monkeypatch.setattr(time_aware, "PER_BLOCK", 4)
    rows, summary = time_aware.run(quick=True, seeds=2, jobs=1)
    for name in ("speedup_f5000", "speedup_f50000", "break_even_f", "real_storage_speedup"):
        assert np.isfinite(summary[name])
    assert summary["speedup_f5000"] > 1.5
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = time_aware.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"time-aware.png", "time-aware.svg"}


def test_break_even_is_where_one_epoch_takes_as_long() -> None:
    rows = [
        {
            "storage": "simulated",
            "method": method,
            "factor": factor,
            "seed": 0,
            "epoch_seconds": seconds,
        }
        for factor, uniform, learned in ((2.0, 1.0, 2.0), (8.0, 2.0, 1.0), (32.0, 8.0, 1.0))
        for method, seconds in (("uniform", uniform), ("time_aware", learned))
    ]
    np.testing.assert_allclose(time_aware.break_even(rows), [4.0])
