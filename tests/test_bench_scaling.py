"""The bench of scaling: what its summary says of its rows, and a small run from end to end."""

import math
from typing import Any

import pytest

from awsgd_rl.benchmarks import scaling
from awsgd_rl.benchmarks.readme_scaling import TABLES
from awsgd_rl.cli_bench import BENCHES


def rows_of(seconds: dict[tuple[str, str, int], list[float]]) -> list[dict[str, Any]]:
    """Rows with these seconds for 10 items each, and round numbers for the rest."""
    return [
        {
            **scaling._row(part, engine, workers, value, 10.0),
            "repeat": repeat,
            "busy": 0.5,
            "bytes_per_item": 1000.0,
            "sent_bytes_per_item": 2000.0,
            "waited_per_batch": 3.0,
            "learning_per_batch": 2.0,
            "start_seconds": 4.0,
        }
        for (part, engine, workers), values in seconds.items()
        for repeat, value in enumerate(values)
    ]


FAKE = {
    ("trials", "local", 1): [20.0, 40.0],
    ("trials", "local", 2): [10.0, 20.0],
    ("trials", "ray", 1): [40.0, 40.0],
    ("trials", "ray", 2): [20.0, 10.0],
    ("empty tasks", "local", 2): [0.1, 0.1],
    ("empty tasks", "ray", 2): [0.2, 0.2],
    **{
        (f"rollouts, {agent}", "local", workers): [6.0 / (workers + 1)] * 2
        for agent in ("table", "network")
        for workers in (0, 1, 2)
    },
}


def test_the_summary_follows_from_the_rows() -> None:
    summary = scaling.summarise(rows_of(FAKE))
    assert summary["speedup_local_2"] == pytest.approx(2.0)
    assert summary["speedup_local_2_low"] == pytest.approx(2.0)
    assert summary["speedup_ray_1"] == pytest.approx(math.sqrt(0.5 * 1.0))
    assert summary["speedup_ray_2"] == pytest.approx(2.0)
    assert summary["speedup_ray_2_low"] < 1.0 < 4.0 < summary["speedup_ray_2_high"]
    assert summary["seconds_per_trial"] == pytest.approx(math.sqrt(2.0 * 4.0))
    assert summary["tasks_per_s_ray"] == pytest.approx(50.0)
    for prefix in ("", "network."):
        assert summary[f"{prefix}saturation_workers"] == pytest.approx(1.5)
        assert summary[f"{prefix}rollout_speedup_2"] == pytest.approx(3.0)
        assert summary[f"{prefix}learner_share_1"] == 0.5
        assert summary[f"{prefix}bytes_per_trajectory"] == pytest.approx(1000.0)
    names = {name for name in summary if not name.endswith(("_low", "_high"))}
    assert all({f"{name}_low", f"{name}_high"} <= summary.keys() for name in names)


def test_one_repeat_has_no_interval_and_without_ray_nothing_is_said_of_it() -> None:
    own = {key: values[:1] for key, values in FAKE.items() if key[1] != "ray"}
    summary = scaling.summarise(rows_of(own))
    assert "speedup_local_2" in summary
    assert not [name for name in summary if "ray" in name or name.endswith(("_low", "_high"))]


def test_the_plan_is_made_of_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from awsgd_rl.benchmarks import readme_scaling

    results = {"summary": scaling.summarise(rows_of(FAKE)), "rows": rows_of(FAKE)}
    monkeypatch.setattr(readme_scaling, "read_results", lambda root, name: results)
    for table in (made for name, made in TABLES.items() if name.startswith("scaling-")):
        lines = table(Path()).splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert not [line for line in lines if "nan" in line]
    plan = TABLES["scaling-plan"](Path())
    assert [row.split("|")[1].strip() for row in plan.splitlines()[2:]] == ["1", "100", "10,000"]


def test_it_is_registered() -> None:
    assert BENCHES["scaling"].module == scaling.__name__


@pytest.mark.slow
def test_small_run_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "find_spec", lambda name: None)  # Ray has its own tests
    small = scaling.Size(1, scaling.WORKERS, 2, 40, 5, {"table": 60})
    monkeypatch.setattr(scaling, "QUICK", small)
    monkeypatch.setattr(scaling, "AGENTS", {"table": scaling.AGENTS["table"]})
    shares: list[float] = []
    rows, summary = scaling.run(quick=True, progress=lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    parts = [(row["part"], row["workers"]) for row in rows]
    assert parts == [
        *[("trials", 1), ("trials", 2), ("empty tasks", 2)],
        *[("rollouts, table", n) for n in (0, 1, 2)],
    ]
    assert all(row["seconds"] > 0 and row["items_per_s"] > 0 for row in rows)
    assert all(0 <= row["busy"] <= 1 for row in rows if row["busy"] is not None)
    sizes = {row["part"]: row["bytes_per_item"] for row in rows if row["bytes_per_item"]}
    assert all(100 < sizes[part] < 100_000 for part in ("trials", "rollouts, table"))
    assert summary["speedup_local_2"] > 0
