import math

import numpy as np
import pytest

from awsgd_rl.agents import AWSGD, history
from awsgd_rl.agents.history import record


def filled(count: int) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for k in range(count):
        success = math.nan if k in (2, 6, 7) else float(k)
        record(
            columns,
            {
                "episodes": 10.0 * (k + 1) if k != 1 else 40.0 - 10.0,
                "timesteps": 100.0 * (k + 1),
                "success": success,
                "max_weight": float(-k),
                "updates": 3,
            },
        )
    return columns


def test_neighbours_become_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled(8)
    monkeypatch.setattr(history, "MOST_ENTRIES", 8)
    halved = filled(8)
    assert {len(column) for column in halved.values()} == {4}
    assert halved["timesteps"] == whole["timesteps"][1::2]
    assert halved["episodes"] == whole["episodes"][1::2]
    assert sum(halved["updates"]) == sum(whole["updates"]) == 24
    assert halved["max_weight"] == [0.0, -2.0, -4.0, -6.0]
    # 10 episodes, then 20: a mean by episodes; where one is unknown the other; or neither.
    np.testing.assert_allclose(halved["success"], [2 / 3, 3.0, 4.5, math.nan])


def test_the_newest_of_an_odd_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_ENTRIES", 7)
    halved = filled(7)
    assert halved["timesteps"] == [200.0, 400.0, 600.0, 700.0]
    assert math.isnan(halved["success"][-1])


def test_a_long_training_keeps_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_ENTRIES", 16)
    agent = AWSGD("TablePolicy", "awsgd_rl/TrapGridworld-15-9-v0", seed=0)
    agent.learn(total_episodes=500)
    assert 8 <= len(agent.history["episodes"]) < 16
    assert agent.history["episodes"][-1] == 500
    assert sum(agent.history["updates"]) == 50 * agent.config.updates
