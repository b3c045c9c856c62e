import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from awsgd_rl.benchmarks import survive as bench
from awsgd_rl.cli_bench import BENCHES


def finished(folder: Path, **changed: Any) -> Path:
    """A run folder as `awsgd-rl train` leaves it, of one episode."""
    (folder / "agent").mkdir(parents=True)
    value = changed.get("parameter", 1.0)
    save_file({"w": np.array([value])}, folder / "agent" / "parameters.safetensors")
    times = {"seconds": changed.get("seconds", 1.0), "started": changed.get("started", "now")}
    results = {"summary": {"success": changed.get("success", 1.0)}, **times}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "history.json").write_text(json.dumps({"return": changed.get("history", [1.0])}))
    rows = f"{changed.get('reward', 1.0)},5,{changed.get('time', 0.1)},True\n"
    (folder / "monitor.csv").write_text(f'#{{"t_start": 1}}\nr,l,t,is_success\n{rows}')
    return folder


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"seconds": 2.0, "started": "then", "time": 0.2}, True),
        ({"parameter": np.nextafter(1.0, 2.0)}, False),
        ({"success": 0.5}, False),
        ({"history": [1.0, 1.0]}, False),
        ({"reward": 2.0}, False),
    ],
)
def test_runs_are_compared_but_for_the_time_they_took(
    tmp_path: Path, changed: dict[str, Any], same: bool
) -> None:
    first, second = finished(tmp_path / "a"), finished(tmp_path / "b", **changed)
    assert (bench.outcome(first) == bench.outcome(second)) is same
    (second / "results.json").unlink()
    assert bench.outcome(second) is None


def test_the_bench_is_listed() -> None:
    assert BENCHES["survive"].module == bench.__name__


def test_fifty_kills_and_three_of_the_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def survive(task: bench.Task, _send: Any) -> dict[str, Any]:
        row = {"kind": task.kind, "seed": task.seed, "kills": task.kills}
        return {**row, "identical": float(task.kind == "table")}

    monkeypatch.setattr(bench, "survive", survive)
    monkeypatch.setattr(bench, "checkpoint_cost", lambda kind: {"checkpoint_ms": 2.0})
    rows, summary = bench.run(jobs=1, seed=4)
    assert summary == {
        "kills": 50,
        "runs": 10,
        "identical": 0.5,
        "table_checkpoint_ms": 2.0,
        "mlp_checkpoint_ms": 2.0,
    }
    assert {row["seed"] for row in rows} == {4, 5, 6, 7, 8}
    assert bench.run(quick=True, jobs=1)[1]["kills"] == 3


@pytest.mark.slow
def test_a_killed_run_is_identical_and_a_failed_one_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ["--env-kwargs", '{"size": 4, "traps": 2}', "--total-episodes", "800"]
    monkeypatch.setitem(bench.KINDS, "table", [*small, "--eval-episodes", "2"])
    row = bench.survive(bench.Task("table", 0, 1))
    assert row == {"kind": "table", "seed": 0, "kills": 1, "identical": 1.0}
    monkeypatch.setitem(bench.KINDS, "table", ["--learning-rate", "-1"])
    with pytest.raises(RuntimeError, match=r"ended with 2: .*learning_rate is -1"):
        bench.survive(bench.Task("table", 0, 1))


def test_the_cost_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_EPISODES", 40)
    cost = bench.checkpoint_cost("table", repeats=2)
    assert cost.keys() == {"checkpoint_ms", "checkpoint_kb", "checkpoint_share"}
    assert cost["checkpoint_share"] == pytest.approx(cost["checkpoint_ms"] / 60_000)
    assert cost["checkpoint_kb"] > 36  # the critic alone has 225 · 4 · 5 numbers of 8 bytes
