"""The bench of learning from replay: what it runs, its names, its figures."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from awsgd_rl.benchmarks import replay_learning
from awsgd_rl.benchmarks.replay_learning import ALGORITHMS, TASKS, Task
from awsgd_rl.benchmarks.trial import BINS
from awsgd_rl.runs import to_json

LEVELS = {"dqn": 100.0, "per": 110.0, "laber": 90.0}
SECONDS = {"dqn": 10.0, "per": 20.0, "laber": 40.0}


def fake_row(task: Task, _send: Any = None) -> dict[str, Any]:
    level = LEVELS[task.algorithm] + task.seed
    seconds = SECONDS[task.algorithm]
    return {
        "env": task.name,
        "algorithm": task.algorithm,
        "seed": task.seed,
        "return_mean": level,
        "return_final": level + 50,
        "seconds": seconds,
        "steps": task.steps,
        "curve": np.linspace(0, 2 * level, BINS).tolist(),
        "seconds_at": np.linspace(0, seconds, BINS + 1)[1:].tolist(),
    }


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    tasks: list[Task] = []

    def run_tasks(function: Any, todo: Any, *, on_result: Any, **_: Any) -> Any:
        tasks.extend(todo)
        rows = [fake_row(task) for task in todo]
        for row in rows:
            on_result(row)
        return rows

    monkeypatch.setattr(replay_learning, "run_tasks", run_tasks)
    monkeypatch.setattr(replay_learning, "find_spec", lambda name: object())
    return tasks


def test_every_algorithm_gets_the_same_steps_and_seeds(ran: list[Task], tmp_path: Path) -> None:
    rows, summary = replay_learning.run(seed=5)
    assert len(rows) == len(ran) == len(TASKS) * len(ALGORITHMS) * 10
    for name, setting in TASKS.items():
        for algorithm in ALGORITHMS:
            own = [t for t in ran if (t.name, t.algorithm) == (name, algorithm)]
            assert [task.seed for task in own] == list(range(5, 15))
            assert {task.steps for task in own} == {setting.steps}
            level = LEVELS[algorithm] + 9.5
            assert summary[f"{name}.{algorithm}.return_iqm"] == pytest.approx(level)
            assert summary[f"{name}.{algorithm}.return_final_iqm"] == pytest.approx(level + 50)
            assert summary[f"{name}.{algorithm}.seconds"] == SECONDS[algorithm]
        assert summary[f"{name}.per_gain"] == pytest.approx(10)
        assert summary[f"{name}.per_gain_low"] < 10 < summary[f"{name}.per_gain_high"]
        assert summary[f"{name}.laber_gain_final"] == pytest.approx(-10)
        # In DQN's 10 seconds PER is half-way, where the mean so far is half of that over all.
        own_half = (LEVELS["per"] + 9.5) / 2
        reached = summary[f"{name}.per.return_iqm_equal_time"]
        assert reached == pytest.approx(own_half, rel=0.02)
        assert summary[f"{name}.per_gain_equal_time"] == pytest.approx(reached - 109.5)
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = replay_learning.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {
        f"replay-learning-{axis}.{kind}" for axis in ("steps", "seconds") for kind in ("png", "svg")
    }


def test_minatar_is_left_out_where_it_is_missing(
    ran: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_learning, "find_spec", lambda name: None)
    told: list[str] = []
    replay_learning.run(True, seeds=1, progress=lambda share, text: told.append(text))
    assert {task.name for task in ran} == {"CartPole-v1", "TrapGridworld-8-2"}
    assert "pip install minatar" in told[0]


def test_one_task_alone(ran: list[Task]) -> None:
    replay_learning.run(env="CartPole-v1", seeds=1)
    assert {task.name for task in ran} == {"CartPole-v1"}
    with pytest.raises(ValueError, match="CartPole-v1"):
        replay_learning.run(env="CartPole")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_short_training(algorithm: str) -> None:
    row = replay_learning.train(Task("CartPole-v1", algorithm, 3, 300), lambda message: None)
    assert len(row["curve"]) == len(row["seconds_at"]) == BINS
    assert np.isfinite(row["curve"]).all()
    assert (np.diff(row["seconds_at"]) >= 0).all()
    assert 8 < row["return_mean"] < 500


def test_the_same_seed_learns_the_same() -> None:
    first, again = (
        replay_learning.train(Task("CartPole-v1", "per", 3, 300), lambda message: None)
        for _ in range(2)
    )
    assert first["curve"] == again["curve"]
    assert first["return_final"] == again["return_final"]


def test_only_the_draws_differ() -> None:
    models = {a: replay_learning.make_model("CartPole-v1", a, 0) for a in ALGORITHMS}
    for name, value in TASKS["CartPole-v1"].options.items():
        for algorithm, model in models.items():
            held = getattr(model, name)
            assert getattr(held, "frequency", held) == value, algorithm
    assert models["per"].proposal == "priority"
    assert models["laber"].proposal == "two-stage"


def test_rewards_are_scaled_and_returns_are_not() -> None:
    env = replay_learning.make_env("TrapGridworld-8-2")
    env.reset(seed=0)
    rewards, ended = [], False
    while not ended:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
        ended = terminated or truncated
    assert info["episode"]["r"] == pytest.approx(1_000 * sum(rewards))


def test_minatar_fits_its_network() -> None:
    pytest.importorskip("minatar")
    row = replay_learning.train(Task("MinAtar/Breakout-v1", "per", 0, 300), lambda message: None)
    assert np.isfinite(row["curve"]).all()
    assert "MinAtar/Breakout-v1" in gym.registry
