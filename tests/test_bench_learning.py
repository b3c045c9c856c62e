"""The bench of learning: what it runs, its names, what it keeps, its figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awsgd_rl import cli_bench
from awsgd_rl.benchmarks import compare as compare_module
from awsgd_rl.benchmarks import engines, learning
from awsgd_rl.benchmarks.iqm import iqm_interval
from awsgd_rl.benchmarks.trial import ALGORITHMS, BINS, Task, Trial
from awsgd_rl.benchmarks.workers import execution
from awsgd_rl.cli_common import UsageError
from awsgd_rl.envs import PRESETS
from awsgd_rl.runs import to_json
from awsgd_rl.statistics import ratio_interval

FAILURES = {"awsgd": 0.05, "uniform-replay": 0.1, "reinforce": 0.4, "reinforce-equal": 0.08}


def fake_trial(task: Task, _send: Any = None) -> Trial:
    """A trial that fails more on later maps, and twice as often in the regime "paper"."""
    failure = FAILURES.get(task.algorithm, 0.9) * (1 + 0.1 * task.map)
    failure *= 2 if task.config.regime == "paper" else 1
    steps = 300 + task.map if task.config.steps is None else task.config.steps
    curve = np.linspace(1 - 1.5 * failure, 1 - 0.5 * failure, BINS).clip(0, 1)
    ends = steps * np.arange(1, BINS + 1) / BINS
    return Trial(task.algorithm, task.map, "success", 1 - failure, 0.9, steps, 2.0, curve, ends)


RAN: list[Task] = []


def recorded(task: Task, _send: Any) -> Trial:
    RAN.append(task)
    return fake_trial(task)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that were run, in this process, by a fake."""
    RAN.clear()
    monkeypatch.setattr(compare_module, "run_task", recorded)
    monkeypatch.setattr(engines, "available_cores", lambda: 1)
    return RAN


def test_the_full_bench_runs_every_cell(ran: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"strong": {"15/9": 5, "seed-50": 2}, "paper": {"15/9": 3, "seed-50": 2}}
    monkeypatch.setattr(learning, "MAPS", few)
    shares: list[float] = []
    rows, summary = learning.run(progress=lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    cells = {(row["regime"], row["preset"], row["algorithm"]) for row in rows}
    assert len(cells) == len(rows)
    ours = {(r, p, a) for r in ("strong", "paper") for p in few["strong"] for a in FAILURES}
    theirs = {("strong", p, a) for p in few["strong"] for a in ("a2c", "ppo")}
    assert cells == ours | theirs
    for task in ran:
        preset = task.config.preset
        assert preset is not None
        if task.algorithm in ("a2c", "ppo"):
            assert task.config.maps <= learning.STABLE_BASELINES_MAPS
            # As many steps as AW-SGD took on average.
            assert task.config.steps == int(
                np.mean([300 + k for k in range(few["strong"][preset])])
            )
        else:
            assert task.config.maps == few[task.config.regime][preset]
            assert task.config.episodes == 20_000
            assert task.config.steps is None
    # Two of a thousand uniform episodes reach the goal; all others return very nearly −1000.
    assert 0.001 < summary["paper.15/9.before_learning.success"] < 0.01
    assert 50 < summary["paper.15/9.before_learning.return_std"] < 200
    for regime in ("strong", "paper"):
        for preset in few[regime]:
            for name in learning.RATIOS:
                key = f"{regime}.{preset}.{name}"
                assert summary[f"{key}_low"] <= summary[key] <= summary[f"{key}_high"]
            for label in FAILURES:
                for name in ("success_mean", "success_final", "success_iqm", "steps_mean"):
                    assert f"{regime}.{preset}.{label}.{name}" in summary
                assert summary[f"{regime}.{preset}.{label}.seconds_mean"] == 2.0
            assert summary[f"{regime}.{preset}.failure_ratio"] == pytest.approx(8.0)
            assert summary[f"{regime}.{preset}.failure_ratio_uniform_replay"] == pytest.approx(2.0)
    assert {f"{name}{end}" for name in summary for end in ("_low", "_high")} >= {
        name for name in summary if name.endswith(("_low", "_high"))
    }


def test_the_steps_of_the_others_are_capped(
    ran: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(learning.MOST_STEPS, "50/25", 150)
    _, summary = learning.run(preset="50/25", regime="strong", maps=2)
    assert {task.config.steps for task in ran if task.algorithm == "ppo"} == {150}
    # What AW-SGD was at half its steps: by the fake, at the middle of a straight line.
    expected = np.mean([1 - 0.05 * (1 + 0.1 * k) for k in range(2)])
    found = summary["strong.50/25.awsgd.success_at_equal_steps"]
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_part_of_the_bench(ran: list[Task]) -> None:
    rows, summary = learning.run(preset="50/10", regime="paper", maps=3, seed=7)
    assert {row["preset"] for row in rows} == {"50/10"}
    assert {task.map for task in ran} == {7, 8, 9}
    assert {task.algorithm for task in ran} == set(FAILURES)  # the others have no regime
    failures = {
        label: [1 - fake_trial(task).mean for task in ran if task.algorithm == label]
        for label in FAILURES
    }
    expected = ratio_interval(
        failures["reinforce"], failures["awsgd"], rng=np.random.default_rng(7)
    )
    name = "paper.50/10.failure_ratio"
    assert [summary[name], summary[f"{name}_low"], summary[f"{name}_high"]] == list(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"preset": "50/11"}, "did you mean '50/10'"), ({"regime": "week"}, "regime")],
)
def test_unknown_parts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning.run(**arguments)


def stop_after(count: int) -> Any:
    """Return what runs as many tasks, and is interrupted at the next one."""

    def run(task: Task, send: Any) -> Trial:
        if len(RAN) == count:
            raise KeyboardInterrupt
        return recorded(task, send)

    run.__qualname__ = recorded.__qualname__  # by which its results are kept
    return run


def test_an_interrupted_bench_goes_on(
    ran: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = learning.run(quick=True)
    everything = list(ran)
    ran.clear()
    with monkeypatch.context() as patch, execution(store=tmp_path):
        patch.setattr(compare_module, "run_task", stop_after(3))
        with pytest.raises(KeyboardInterrupt):
            learning.run(quick=True)
    assert len(list(tmp_path.glob("*.json"))) == len(ran) == 3
    with execution(store=tmp_path):
        rows, summary = learning.run(quick=True)
    assert len(ran) == len(everything)
    assert to_json(rows) == to_json(whole[0])
    assert to_json(summary) == to_json(whole[1])


def test_the_command_keeps_and_resumes(
    ran: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["learning", "--quick", "--regime", "paper", "--out", "run", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "run_task", stop_after(5))
        with pytest.raises(KeyboardInterrupt, match=r"5 results kept, .* --out run --resume"):
            cli_bench.main(line)
    assert len(ran) == 5
    with pytest.raises(UsageError, match="--regime is strong, but the run to go on with has paper"):
        cli_bench.main(["learning", "--regime", "strong", "--out", "run", "--resume"])
    cli_bench.main(["learning", "--out", "run", "--resume", "--quiet"])
    assert len(ran) == 8
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"] == {"quick": True, "regime": "paper"}
    assert "paper.15/9.failure_ratio" in results["summary"]
    assert (tmp_path / "run" / "ratios.png").exists()
    assert not (tmp_path / "run" / "trials").exists()


def test_the_presets_of_the_bench() -> None:
    seed = {*("15/9", "50/10", "50/25", "80/40"), *("seed-15", "seed-50", "seed-80")}
    assert set(learning.MAPS["paper"]) == seed
    assert set(learning.MAPS["strong"]) == seed | {"50/50", "full-50", "full-80"}
    assert set(learning.MAPS["strong"]) == set(learning.MOST_STEPS) <= set(PRESETS)


def test_figures_of_what_the_results_hold(
    ran: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = {"15/9": 1, "seed-50": 1}
    monkeypatch.setattr(learning, "MAPS", {"strong": one, "paper": one})
    rows, summary = learning.run()  # no interval: NaN, and null in the file
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = learning.write_figures(held["rows"], held["summary"], tmp_path)
    names = {
        f"{name}-{regime}"
        for name in ("learning", "failures", "steps")
        for regime in ("strong", "paper")
    }
    assert {path.stem for path in written} == names | {"ratios"}
    assert all(path.stat().st_size > 1000 for path in written)


@pytest.mark.slow
def test_quick_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "QUICK", {"maps": 1, "episodes": 200, "steps": 4096})
    rows, summary = learning.run(quick=True, regime="strong", jobs=1)
    assert [row["algorithm"] for row in rows] == [*FAILURES, "a2c", "ppo"]
    assert all(0 <= row["success_mean"] <= 1 for row in rows)
    assert all(len(row["curve"]) == BINS for row in rows)
    assert 0 < summary["strong.15/9.ppo.steps_mean"] <= 8192
    assert np.isnan(summary["strong.15/9.failure_ratio_low"])


# The interquartile mean


def test_iqm_by_hand() -> None:
    # The middle half of 0, ..., 7 is 2, 3, 4, 5.
    assert iqm_interval(np.arange(8.0)[:, None], rng=np.random.default_rng(0))[0] == 3.5
    one = iqm_interval([[0.5, 0.7]], rng=np.random.default_rng(0))
    assert one.estimate == pytest.approx(0.6)
    assert math.isnan(one.low)


def test_iqm_interval_has_the_normal_width() -> None:
    # For many runs the IQM is normal; for uniform scores its variance is
    # (∫ψ²)/N with ψ the influence function: x/0.5 cut at ±0.25 around the middle.
    rng = np.random.default_rng(1)
    n = 4000
    scores = rng.random((n, 1))
    x = np.clip(rng.random(10**6) - 0.5, -0.25, 0.25) / 0.5
    deviation = x.std() / math.sqrt(n)
    estimate, low, high = iqm_interval(scores, rng=rng, n=2000)
    assert abs(estimate - 0.5) < 5 * deviation
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_the_bootstrap_stays_within_tasks() -> None:
    # Tasks of constant scores: no resample can differ.
    scores = np.tile([0.1, 0.5, 0.6, 0.9], (5, 1))
    estimate, low, high = iqm_interval(scores, rng=np.random.default_rng(0), n=200)
    assert estimate == pytest.approx(low) == pytest.approx(high)


@pytest.mark.parametrize("shape", [(7, 1), (10, 3), (5, 2)])
def test_iqm_is_rliables(shape: tuple[int, int]) -> None:
    metrics = pytest.importorskip("rliable.metrics")
    scores = np.random.default_rng(2).random(shape)
    found = iqm_interval(scores, rng=np.random.default_rng(0), n=100).estimate
    assert found == pytest.approx(metrics.aggregate_iqm(scores))


@pytest.mark.parametrize("scores", [[0.5, 0.6], [[]], [[math.nan]]])
def test_bad_scores(scores: Any) -> None:
    with pytest.raises(ValueError, match=r"\[N, T\]"):
        iqm_interval(scores, rng=np.random.default_rng(0))


def test_uniform_replay_differs_in_the_draw_alone() -> None:
    assert ALGORITHMS["uniform-replay"].agent == ALGORITHMS["awsgd"].agent
    ours, theirs = ALGORITHMS["awsgd"].settings, ALGORITHMS["uniform-replay"].settings
    assert {**theirs, "uniform_share": 1.0} == {**ours, "uniform_share": 1.0}
