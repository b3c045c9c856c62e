"""The bench of long runs: its arithmetic on made-up samples, and a short run of every loop."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awsgd_rl import cli_bench
from awsgd_rl.benchmarks import soak
from awsgd_rl.runs import to_json

INTERVALS = ("rss_growth_mb_per_hour", "speed_end_over_start", "machine_end_over_start")
NAMES = ("rss_start_mb", "rss_end_mb", *INTERVALS)


def made_up(loop: str, growth: float, slowing: float) -> dict[str, Any]:
    """An hour of CPU time in which memory grows so much, and the last half takes longer."""
    rng = np.random.default_rng(0)
    hours = np.linspace(0.0, 1.0, 201)
    speed = np.where(hours < 0.5, 1000.0, 1000.0 * slowing)
    noise = rng.normal(0.0, 0.01, len(hours))
    noise[::17] += 40.0  # what a few samples show is no growth
    warm_up = 100.0 * (hours < 0.08)
    columns = {
        "seconds": 7200.0 * hours,  # with half of a core: the hour is one of CPU time
        "cpu_seconds": 3600.0 * hours,
        "done": np.concatenate([[0.0], np.cumsum(speed[1:] * 18.0)]),
        "rss_mb": 300.0 + growth * hours + noise - warm_up,
        "history_mb": 0.5 * growth * hours,
        "fixed_work_ms": np.where(hours < 0.5, 2.0, 2.5),
    }
    last = {name: float(values[-1]) for name, values in columns.items()}
    samples = {name: values.tolist() for name, values in columns.items()}
    return {"loop": loop, **last, "samples": samples}


@pytest.fixture
def summary() -> dict[str, float]:
    rows = [
        made_up("awsgd", 50.0, 0.8),
        made_up("supervised", 0.0, 1.0),
        made_up("prioritized_dqn", -5.0, 1.0),
    ]
    return soak.summarise(rows)


def test_growth_and_slowing_are_found(summary: dict[str, float]) -> None:
    assert summary["rss_growth_mb_per_hour"] == pytest.approx(50.0, abs=0.2)
    assert summary["history_mb_per_hour"] == pytest.approx(25.0)
    assert summary["speed_end_over_start"] == pytest.approx(0.8)
    assert summary["machine_end_over_start"] == pytest.approx(0.8)
    assert summary["supervised.speed_end_over_start"] == pytest.approx(1.0)
    low, high = (summary[f"supervised.rss_growth_mb_per_hour_{end}"] for end in ("low", "high"))
    assert low < 0.0 < high < 0.1
    assert summary["prioritized_dqn.rss_growth_mb_per_hour_high"] < -4.5
    assert summary["seconds"] == 7200.0
    assert summary["cpu_seconds"] == 3600.0


def test_the_warm_up_is_left_out(summary: dict[str, float]) -> None:
    assert summary["supervised.rss_start_mb"] > 290.0  # not the 200 before


def test_memory_is_seen_to_grow() -> None:
    before = soak.resident_bytes()
    held = bytearray(b"x" * 50_000_000)
    grown = soak.resident_bytes() - before
    assert len(held) * 0.8 < grown < len(held) * 1.5


def test_without_proc_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(soak, "MEMORY_FILE", tmp_path / "statm")
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ValueError, match="pip install psutil"):
        soak.run(True, seconds=0.01)


def test_history_counts_lists_and_their_floats() -> None:
    history = {"return": [float(k) for k in range(1000)]}
    found = soak.history_bytes(history)
    assert 1000 * (8 + 24) <= found <= 1000 * (9 + 32) + 100


@pytest.mark.slow
def test_names_and_figure(tmp_path: Path) -> None:
    """The loops themselves, each for a moment, in this process."""
    told: list[float] = []
    rows, summary = soak.run(
        True, seconds=1.5, jobs=1, progress=lambda share, text: told.append(share)
    )
    assert told == sorted(told)
    assert told[-1] > 0.9
    assert [row["loop"] for row in rows] == list(soak.LABELS)
    for row in rows:
        for name in ("seconds", "cpu_seconds", "done", "history_mb"):
            assert (np.diff(row["samples"][name]) >= 0.0).all()
        prefix = "" if row["loop"] == "awsgd" else f"{row['loop']}."
        for name in NAMES:
            assert math.isfinite(summary[prefix + name])
        for name in INTERVALS:
            low, high = (summary[f"{prefix}{name}_{end}"] for end in ("low", "high"))
            assert low <= summary[prefix + name] <= high
    assert summary["seconds"] >= 1.0
    assert summary["history_mb_per_hour"] > 0.0
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = soak.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"soak.png", "soak.svg"}


def test_it_is_registered() -> None:
    assert cli_bench.BENCHES["soak"].module == soak.__name__
