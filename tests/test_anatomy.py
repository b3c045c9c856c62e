"""The bench that looks at the agent while it learns: what it measures, and that it only looks."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from awsgd_rl import plots_anatomy
from awsgd_rl.agents import AWSGD, engine
from awsgd_rl.benchmarks import anatomy
from awsgd_rl.runs import to_json
from awsgd_rl.statistics import Band


def make_env(size: int = 6, traps: int = 3) -> Any:
    return gym.make("awsgd_rl/TrapGridworld-v0", size=size, traps=traps, layout_seed=0)


def make_agent(episodes: int, **options: Any) -> anatomy.WatchedAWSGD:
    agent = anatomy.WatchedAWSGD("TablePolicy", make_env(), seed=0, **options)
    agent.learn(total_episodes=episodes)
    return agent


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "SIZE", 6)
    monkeypatch.setattr(anatomy, "TRAPS", 3)
    monkeypatch.setattr(anatomy, "TRIALS", (20, 60, 150))
    monkeypatch.setattr(anatomy, "MEASURE", 10_000)


def test_rows_summary_and_figures(small: None, tmp_path: Path) -> None:
    shares: list[float] = []
    rows, summary = anatomy.run(
        quick=True, jobs=1, progress=lambda share, text: shares.append(share)
    )
    assert shares == [0.5, 1.0]
    assert [(row["map"], row["trials"]) for row in rows] == [
        (m, trials) for m in (0, 1) for trials in (20, 60, 150)
    ]
    for name in (*anatomy.GEOMETRIC, *anatomy.PLAIN):
        for trials in (20, 60, 150):
            key = f"{name}_{trials}"
            assert summary[f"{key}_low"] <= summary[key] <= summary[f"{key}_high"]
    ratios = [row["variance_ratio"] for row in rows if row["trials"] == 60]
    assert summary["variance_ratio_60"] == pytest.approx(np.sqrt(np.prod(ratios)))
    for row in rows:
        assert sum(row["draw_by_end"]) == pytest.approx(1.0)
        assert sum(row["uniform_by_end"]) == pytest.approx(1.0)
        assert 1.0 <= row["effective_draws"] <= row["stored"] <= 100
        assert min(row["headroom"], row["headroom_returns"]) >= 1.0
    assert {row["map"] for row in rows if "policies" in row} == {0}
    # Figures are made from what a results file holds.
    rows, summary = json.loads(json.dumps(to_json([rows, summary])))
    written = anatomy.write_figures(rows, summary, tmp_path)
    names = ("variance", "bias", "draw", "policies", "policies-late")
    assert {path.name for path in written} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    assert all(path.stat().st_size > 5_000 for path in written)


def test_one_map_has_no_interval_and_the_same_seed_the_same_rows(small: None) -> None:
    first, summary = anatomy.run(quick=True, maps=1, seed=3, jobs=1)
    again, _ = anatomy.run(quick=True, maps=1, seed=3, jobs=1)
    assert first == again
    assert not any(name.endswith(("_low", "_high")) for name in summary)


@pytest.mark.parametrize("arguments", [{"maps": 0}, {"jobs": 0}])
def test_bad_numbers_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        anatomy.run(**arguments)


def test_looking_changes_nothing() -> None:
    plain = AWSGD("TablePolicy", make_env(), seed=0).learn(total_episodes=200)
    looked_at = anatomy.WatchedAWSGD("TablePolicy", make_env(), seed=0)
    for _ in range(4):
        looked_at.learn(total_episodes=50)
        look = anatomy.Look(looked_at)
        look.moments(100, 0)
        look.policies()
    ours, theirs = looked_at.learner.state_dict(), plain.learner.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_exact_critic_has_no_bias() -> None:
    look = anatomy.Look(make_agent(100))
    assert look.bias()["bias"] > 1e-3
    policy, horizon = look.target.probability, look.grid.horizon
    scale = 1.0 / np.abs(look.env.move_reward).max()
    exact_q = scale * look.mdp.action_values(policy, look.discount)
    visits = anatomy.expected_visits(look.mdp, policy, look.discount, horizon)
    gradient = anatomy.critic_gradient(visits, policy, exact_q)
    # But for episodes that the horizon cuts off, of which the critic knows nothing.
    assert anatomy.compare_gradients(gradient, look.exact)["bias"] < 1e-6
    assert anatomy.compare_gradients(gradient, look.exact)["cosine"] == pytest.approx(1.0)


def test_the_mean_of_the_critics_gradient_is_what_trajectories_give() -> None:
    agent = make_agent(60)
    look = anatomy.Look(agent)
    learner: Any = agent.learner
    means = []
    for _ in range(40):
        fresh = learner.collect(250, 0)
        means.append(learner.gradient(fresh, torch.ones(250, dtype=torch.float64)))
    sampled = np.mean(means, axis=0)
    error = np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    assert np.all(np.abs(sampled - look.mean) <= 5 * error + 1e-12)


def test_expected_visits_are_those_of_episodes() -> None:
    look = anatomy.Look(make_agent(100))
    policy, horizon = look.target.probability, look.grid.horizon
    visits = anatomy.expected_visits(look.mdp, policy, 1.0, horizon)
    assert visits.sum() == pytest.approx(look.mdp.expected_length(policy, horizon))
    assert not visits[look.mdp.terminal].any()


def test_moments_agree_with_exact_ones() -> None:
    look = anatomy.Look(make_agent(30))
    policy = look.target.probability
    scale = 1.0 / np.abs(look.env.move_reward).max()
    values = (policy * look.q).sum(axis=1)
    exact = scale**2 * look.mdp.gradient_second_moment(
        policy, look.discount, baseline=values / scale
    )
    # The mixture's own second moment comes back from noise and the exact gradient's norm.
    squared = float(np.sum(look.exact**2))
    sampled = []
    for seed in range(20):
        moments = look.moments(2_000, seed)
        mixed = look.batch_size * moments["noise_returns"] ** 2 * squared
        sampled.append(moments["variance_ratio_returns"] * mixed + squared)
    error = np.std(sampled, ddof=1) / np.sqrt(len(sampled))
    assert abs(np.mean(sampled) - exact) < 5 * error


def test_without_exploration_the_ratio_is_one() -> None:
    moments = anatomy.Look(make_agent(60, exploration_share=0.0)).moments(500, 0)
    assert moments["variance_ratio"] == pytest.approx(1.0)
    assert moments["variance_ratio_returns"] == pytest.approx(1.0)


def test_slots_are_those_of_the_memory() -> None:
    class Checked(anatomy.WatchedAWSGD):
        def replay(self, n: int, updates: int) -> None:
            super().replay(n, updates)
            newest = np.flatnonzero(self.watch.born == self.watch.born.max())
            memory = self.learner.memory  # type: ignore[attr-defined]
            fresh = self._fresh
            assert np.array_equal(memory.rows.size[newest], fresh.rows.size[fresh.which])
            reached = self.watch.end[newest] == engine.GOAL
            assert np.array_equal(reached, fresh.success.numpy() > 0)

    Checked("TablePolicy", make_env(), seed=0).learn(total_episodes=250)


def test_the_watch_counts_by_age_and_by_ending() -> None:
    watch = anatomy.Watch(capacity=4, batch_size=2)
    watch.append(np.array([engine.TRAP, engine.GOAL]), np.array([False, True]))
    watch.record(np.array([0.75, 0.25]))
    watch.append(np.array([engine.GOAL, engine.HORIZON]), np.array([False, True]))
    watch.record(np.array([0.5, 0.2, 0.2, 0.1]))
    summary = watch.summary()
    assert summary["draw_by_end"] == pytest.approx([0.325, 0.625, 0.05])
    assert summary["uniform_by_end"] == pytest.approx([0.5, 0.375, 0.125])
    assert summary["draw_by_age"] == pytest.approx([1.3 / 1.5, 0.7 / 0.5])
    assert summary["fresh_draws"] == pytest.approx(0.65)
    assert summary["failure_draws"] == pytest.approx(0.675)
    assert summary["failures"] == pytest.approx(0.5)
    assert summary["effective_draws"] == pytest.approx((1 / 0.625 + 1 / 0.34) / 2)
    assert summary["explored_draws"] == pytest.approx((0.25 + 0.3) / 2)
    assert summary["explored"] == pytest.approx(0.5)
    assert summary["stored"] == 3
    watch.clear()
    slots = watch.append(np.array([engine.GOAL, engine.GOAL]), np.array([False, False]))
    assert slots.tolist() == [0, 1]  # the oldest make way
    watch.record(np.full(4, 0.25))
    assert watch.summary()["draw_by_age"] == [1.0, 1.0]
    assert watch.summary()["uniform_by_end"] == [0.75, 0.0, 0.25]


def test_ages_that_are_not_there_yet_are_unknown() -> None:
    watch = anatomy.Watch(capacity=4, batch_size=2)
    watch.append(np.array([engine.GOAL, engine.GOAL]), np.array([False, False]))
    watch.record(np.array([0.5, 0.5]))
    assert watch.summary()["draw_by_age"] == [1.0, None]


def test_figures_refuse_what_does_not_fit() -> None:
    trials = np.array([10.0, 20.0])
    short = Band(np.ones(1), np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="no panel"):
        plots_anatomy.curve_row(trials, [], title="T")
    with pytest.raises(ValueError, match="has 1 points"):
        plots_anatomy.curve_row(trials, [plots_anatomy.Panel("P", {"a": short}, "y")], title="T")
    with pytest.raises(ValueError, match="no point"):
        plots_anatomy.draw_figure([], {}, {}, ends=("a",), title="T")
    point = plots_anatomy.DrawnFrom(10, np.ones(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="shapes"):
        plots_anatomy.draw_figure([point], {}, {}, ends=("a", "b"), title="T")
