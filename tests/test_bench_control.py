"""The bench of neural policies: what it runs, its names, its figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awsgd_rl.benchmarks import control
from awsgd_rl.benchmarks.control import ALGORITHMS, STEPS, Task
from awsgd_rl.benchmarks.trial import BINS
from awsgd_rl.runs import to_json

LEVELS = {"awsgd": 300.0, "reinforce-equal": 320.0, "reinforce": 250.0, "ppo": 400.0}


def fake_row(task: Task, _send: Any = None) -> dict[str, Any]:
    level = LEVELS[task.algorithm] + task.seed
    return {
        "env": task.env_id,
        "algorithm": task.algorithm,
        "seed": task.seed,
        "return_mean": level,
        "return_final": level + 100,
        "steps": task.steps + 7,
        "limit": task.steps,
        "seconds": 3.0,
        "curve": np.linspace(20, level, BINS).tolist(),
    }


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    tasks: list[Task] = []

    def run_tasks(function: Any, todo: Any, *, on_result: Any, **_: Any) -> Any:
        rows = []
        for task in todo:
            tasks.append(task)
            rows.append(fake_row(task))
            on_result(rows[-1])
        return rows

    monkeypatch.setattr(control, "run_tasks", run_tasks)
    return tasks


def test_every_agent_gets_the_same_steps_and_seeds(ran: list[Task]) -> None:
    rows, summary = control.run(seed=5)
    assert len(rows) == len(ran) == len(STEPS) * len(ALGORITHMS) * 20
    for env_id, steps in STEPS.items():
        for algorithm in ALGORITHMS:
            own = [t for t in ran if (t.env_id, t.algorithm) == (env_id, algorithm)]
            assert [task.seed for task in own] == list(range(5, 25))
            assert {task.steps for task in own} == {steps}
            key = f"{env_id}.{algorithm}"
            level = LEVELS[algorithm] + 14.5
            assert summary[f"{key}.return_mean"] == pytest.approx(level)
            assert summary[f"{key}.return_final_iqm"] == pytest.approx(level + 100)
            for name in ("return_mean", "return_mean_iqm", "return_final"):
                full = f"{key}.{name}"
                assert summary[f"{full}_low"] < summary[full] < summary[f"{full}_high"]
        assert summary[f"{env_id}.return_difference"] == pytest.approx(50.0)
        assert summary[f"{env_id}.return_difference_ppo"] == pytest.approx(-100.0)
        assert summary[f"{env_id}.return_difference_several_updates"] == pytest.approx(-20.0)
        assert summary[f"{env_id}.return_difference_low"] < 50


def test_a_part_of_the_bench(ran: list[Task], tmp_path: Path) -> None:
    rows, summary = control.run(quick=True, env="CartPole-v1", seeds=1)
    assert {task.steps for task in ran} == {STEPS["CartPole-v1"] // 10}
    assert len(rows) == len(ALGORITHMS)
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = control.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"control.png", "control.svg"}
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'"):
        control.run(env="CartPol-v1")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_is_measured(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "EVALUATION_EPISODES", 3)
    row = control.train(Task("CartPole-v1", algorithm, 3, 600), lambda message: None)
    again = control.train(Task("CartPole-v1", algorithm, 3, 600), lambda message: None)
    assert {**row, "seconds": 0} == {**again, "seconds": 0}
    assert len(row["curve"]) == BINS
    assert row["return_mean"] == pytest.approx(np.mean(row["curve"]), rel=1e-5)
    assert 8 <= row["return_final"] <= 500
    assert row["steps"] >= 600


def test_the_zoo_settings_are_options_of_ppo() -> None:
    from awsgd_rl.agents.stable_baselines_configs import PPOConfig

    for env_id in STEPS:
        PPOConfig(**control.ZOO[env_id])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", STEPS)
def test_episodes_of_ppo_end_within_few_steps_too(env_id: str) -> None:
    row = control.train(Task(env_id, "ppo", 0, STEPS[env_id] // 10), lambda message: None)
    assert np.isfinite(row["curve"]).all()
    assert row["steps"] >= STEPS[env_id] // 10
