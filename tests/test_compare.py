"""The comparison: trials are measured right, summaries follow from them, bad input is refused."""

import dataclasses
import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl.benchmarks import engines
from awsgd_rl.benchmarks import trial as trial_module
from awsgd_rl.benchmarks.compare import CompareConfig, Comparison, compare, write_figures
from awsgd_rl.benchmarks.trial import (
    ALGORITHMS,
    BINS,
    Task,
    Trial,
    binned,
    over_training,
    run_task,
    walk,
)
from awsgd_rl.benchmarks.workers import TaskError, execution
from awsgd_rl.exact import TabularMDP
from awsgd_rl.runs import to_json
from awsgd_rl.statistics import mean_interval, ratio_interval

SMALL = {"size": 3, "traps": 1, "episodes": 400, "maps": 2, "jobs": 1}


STEPS = np.arange(1.0, BINS + 1)


class Fake:
    """An agent that succeeds more and more, more so for AW-SGD; its policy goes right or down."""

    exploration_share = 0.5

    def __init__(self, task, env):
        self.task, self.env = task, env
        self.num_episodes = self.num_timesteps = 0
        self.history = {"episodes": [], "timesteps": [], "success": [], "return": []}

    def learn(self, total_episodes=math.inf, callback=None, total_timesteps=math.inf):
        failure = {"awsgd": 0.1, "reinforce": 0.4}.get(self.task.algorithm, 0.2)
        while self.num_episodes < total_episodes and self.num_timesteps < total_timesteps:
            self.num_episodes = min(self.num_episodes + 20, total_episodes)
            self.num_timesteps += 100
            self.history["episodes"].append(float(self.num_episodes))
            self.history["timesteps"].append(float(self.num_timesteps))
            self.history["success"].append(1 - failure * (1 + 0.1 * self.task.map))
            self.history["return"].append(-5.0 - self.task.map)
            callback(self)

    def policy_table(self):
        return np.tile([0.0, 0.5, 0.5, 0.0], (self.env.unwrapped.n_states, 1))

    exploration_table = policy_table

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation), 1 if self.task.config.env else 2), None


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(trial_module, "make_agent", Fake)


def make_comparison(failures, metric="success", **settings):
    """Make a comparison whose trials fail as often as said: {algorithm: [maps]}."""
    maps = len(next(iter(failures.values())))
    config = CompareConfig(algos=tuple(failures), maps=maps, **settings)
    trials = [
        Trial(algorithm, k, metric, 1 - f, 1.0, 1000 + k, 0.1, np.full(BINS, 1 - f), STEPS)
        for algorithm, each in failures.items()
        for k, f in enumerate(each)
    ]
    return Comparison(config, tuple(trials))


# What a trial measures


def test_binned_by_hand():
    # Two batches of 3 and 1 episodes in two bins of 2.
    assert binned([3, 4], [0.0, 1.0], total=4, bins=2).tolist() == [0.0, 0.5]
    # What is not known takes the value before it, or the first known one; the end is filled up.
    assert binned([1, 2, 3], [math.nan, 0.5, math.nan], 4, bins=4).tolist() == [0.5] * 4
    # What goes beyond the total is cut.
    assert binned([2, 6], [0.0, 1.0], total=4, bins=4).tolist() == [0.0, 0.0, 1.0, 1.0]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_bins_keep_the_mean_over_episodes(batches, bins):
    sizes, values = (np.array(column, dtype=float) for column in zip(*batches, strict=True))
    curve = binned(sizes.cumsum(), values, total=int(sizes.sum()), bins=bins)
    assert curve.mean() == pytest.approx((sizes * values).sum() / sizes.sum(), abs=1e-9)
    assert curve.min() >= values.min() - 1e-9
    assert curve.max() <= values.max() + 1e-9


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="nothing was measured"):
        binned([1, 2], [math.nan, math.nan], 2)


def test_over_training_is_by_episodes_whatever_the_entries():
    history = {"episodes": [10.0, 40.0], "success": [0.0, 1.0], "return": [5.0, 5.0]}
    assert over_training(history, None) == ("success", [0.0, 1.0], pytest.approx(0.75))
    assert over_training(history, 80)[2] == pytest.approx(0.875)
    history["success"] = [math.nan, math.nan]
    assert over_training(history, None)[0] == "return"
    with pytest.raises(ValueError, match="no episode ended"):
        over_training({"episodes": [], "success": []}, None)


@pytest.mark.parametrize("slip", [0.0, 0.2])
@pytest.mark.parametrize("horizon", [5, 200])
def test_walk_agrees_with_the_exact_reference(slip, horizon):
    from awsgd_rl.envs import TrapGridworld

    env = TrapGridworld(size=4, traps=2, layout_seed=3, slip=slip, horizon=horizon)
    policy = np.random.default_rng(0).dirichlet([0.5, 2.0, 2.0, 0.5], size=env.n_states)
    went = walk(env, policy)
    mdp = TabularMDP.from_gridworld(env)
    success = mdp.success_probability(policy, horizon=horizon)
    assert went.success == pytest.approx(success, abs=1e-10)
    moves = went.visits[~env.terminal].sum()
    truncated = 1 - went.visits[env.terminal].sum()
    # Every state but the last of an episode is left by one move.
    length = mdp.expected_length(policy, horizon=horizon)
    assert moves - truncated == pytest.approx(length, abs=1e-9)


def test_a_trial_is_measured(fakes):
    config = CompareConfig(**SMALL, seed=2)
    messages = []
    trial = run_task(Task(config, "awsgd", 2), messages.append)
    assert (trial.metric, trial.steps, trial.map) == ("success", 2000, 2)
    assert trial.mean == pytest.approx(1 - 0.12)
    assert trial.curve.tolist() == pytest.approx([1 - 0.12] * BINS)
    grid = config.make_env(2).unwrapped
    assert trial.final == walk(grid, np.tile([0.0, 0.5, 0.5, 0.0], (9, 1))).success
    assert trial.target.visits.shape == (9,)
    assert messages[0][:2] == ("awsgd on map 2", 20)
    assert messages[0][2] == pytest.approx(0.88)
    # Tables are kept of the first map alone.
    assert run_task(Task(config, "awsgd", 3), messages.append).target is None


def test_steps_in_place_of_episodes(fakes):
    config = CompareConfig(size=3, traps=1, steps=500, algos=("awsgd",), maps=1)
    trial = run_task(Task(config, "awsgd", 1), lambda message: None)
    assert trial.steps == 500
    # The curve is over the steps, the mean over the episodes, here 100 steps for 20 of them.
    assert trial.curve_steps.tolist() == [5.0 * (k + 1) for k in range(BINS)]
    assert trial.mean == pytest.approx(1 - 0.1 * 1.1)
    assert trial.curve.mean() == pytest.approx(trial.mean)
    assert config.length == "500 steps each"


def test_steps_without_the_end_of_an_episode_are_failures(fakes, monkeypatch):
    def wander(self, total_timesteps, callback):
        self.num_timesteps = total_timesteps

    monkeypatch.setattr(Fake, "learn", wander)
    config = CompareConfig(size=3, traps=1, steps=500, algos=("awsgd",), maps=1)
    trial = run_task(Task(config, "awsgd", 1), lambda message: None)
    assert trial.mean == 0.0
    assert not trial.curve.any()


def test_without_successes_the_target_is_computed(fakes, monkeypatch):
    class Paper(Fake):
        def learn(self, total_episodes, callback):
            def hidden(agent):
                agent.history["success"][-1] = math.nan
                callback(agent)

            super().learn(total_episodes, hidden)

    monkeypatch.setattr(trial_module, "make_agent", Paper)
    trial = run_task(Task(CompareConfig(**SMALL), "awsgd-paper", 0), lambda message: None)
    assert trial.metric == "success"
    assert trial.mean == pytest.approx(trial.final)


def test_return_stands_in_where_success_is_not_known(fakes, monkeypatch):
    class Silent(Fake):
        def learn(self, total_episodes, callback):
            super().learn(total_episodes, lambda agent: None)
            self.history["success"] = [math.nan]
            callback(self)

    monkeypatch.setattr(trial_module, "make_agent", Silent)
    monkeypatch.setattr(trial_module, "FINAL_EPISODES", 3)
    config = CompareConfig(env="CartPole-v1", maps=2, episodes=100, jobs=1, algos=("awsgd",))
    comparison = compare(config)
    assert [trial.mean for trial in comparison.trials] == [-5.0, -6.0]
    assert all(5 < trial.final < 20 for trial in comparison.trials)  # the pole falls to one side
    assert sorted(comparison.summary())[::3] == [
        "awsgd.return_final",
        "awsgd.return_mean",
        "awsgd.steps_mean",
    ]


def test_fresh_episodes_measure_what_a_policy_is_worth(monkeypatch):
    """Side by side: short episodes, which fail here, must not count more often than they happen."""

    class Uniform:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return self.rng.integers(4, size=len(observation)), None

    monkeypatch.setattr(trial_module, "FINAL_EPISODES", 1000)
    make_env = functools.partial(CompareConfig(size=4, traps=1).make_env, 0)
    grid = make_env().unwrapped
    policy = np.full((grid.n_states, 4), 0.25)
    p = TabularMDP.from_gridworld(grid).success_probability(policy, grid.horizon)
    found = trial_module._evaluate(Uniform(), make_env, "success", seed=0)
    assert 0.05 < p < 0.8
    assert abs(found - p) < 5 * math.sqrt(p * (1 - p) / 1000)


# What the comparison makes of its trials


def test_an_algorithm_that_does_not_tell_success_has_returns():
    known = make_comparison({"awsgd": [0.1, 0.2]})
    unknown = make_comparison({"awsgd-paper": [-30.0, -50.0]}, metric="return")
    config = dataclasses.replace(known.config, algos=("awsgd", "awsgd-paper"))
    both = Comparison(config, known.trials + unknown.trials)
    summary = both.summary()
    assert both.metric == "return"
    assert summary["awsgd.success_mean"] == pytest.approx(0.85)
    assert summary["awsgd-paper.return_mean"] == pytest.approx(41.0)
    assert "awsgd-paper.success_mean" not in summary


def test_success_above_one_by_rounding_is_no_failure():
    summary = make_comparison({"awsgd": [0.1, -2e-16], "reinforce": [-2e-16, 0.3]}).summary()
    assert summary["failure_ratio"] == pytest.approx(3.0)


def test_summary_follows_from_the_trials():
    failures = {"awsgd": [0.01, 0.02, 0.03], "reinforce": [0.1, 0.1, 0.4]}
    summary = make_comparison(failures, seed=5).summary()
    mean = mean_interval([0.99, 0.98, 0.97], bounds=(0, 1))
    ratio = ratio_interval(failures["reinforce"], failures["awsgd"], rng=np.random.default_rng(5))
    ends = ("", "_low", "_high")
    assert [summary[f"awsgd.success_mean{end}"] for end in ends] == pytest.approx(list(mean))
    assert [summary[f"failure_ratio{end}"] for end in ends] == pytest.approx(list(ratio))
    assert summary["failure_ratio"] == pytest.approx(10.0)
    assert summary["reinforce.steps_mean"] == 1001
    assert summary["reinforce.success_mean_high"] == 1.0
    assert "failure_ratio_equal_updates" not in summary


def test_ratios_are_there_when_their_agents_are():
    equal = make_comparison({"awsgd": [0.1, 0.2], "reinforce-equal": [0.2, 0.4]}).summary()
    assert equal["failure_ratio_equal_updates"] == pytest.approx(2.0)
    assert "failure_ratio" not in equal
    uniform = make_comparison({"awsgd": [0.1, 0.2], "uniform-replay": [0.3, 0.6]}).summary()
    assert uniform["failure_ratio_uniform_replay"] == pytest.approx(3.0)
    alone = make_comparison({"reinforce": [0.1, 0.2]}).summary()
    assert not any("ratio" in name for name in alone)


def test_one_map_has_no_interval():
    summary = make_comparison({"awsgd": [0.1], "reinforce": [0.2]}).summary()
    assert summary["failure_ratio"] == pytest.approx(2.0)
    assert math.isnan(summary["failure_ratio_low"])


def test_compare_runs_every_trial_in_order(fakes):
    progress, kept = [], []
    config = CompareConfig(**SMALL, seed=4)
    comparison = compare(config, progress=progress.append, on_trial=kept.append)
    assert [(trial.algorithm, trial.map) for trial in comparison.trials] == [
        (algorithm, map_) for algorithm in config.algos for map_ in (4, 5)
    ]
    assert len(kept) == 6
    assert progress[-1].done == progress[-1].total == 6 * 400
    assert [report.done for report in progress] == sorted(report.done for report in progress)
    assert {row["algorithm"] for row in comparison.rows} == set(config.algos)
    json.dumps(comparison.rows)


def test_an_interrupted_comparison_goes_on(fakes, monkeypatch, tmp_path):
    config = CompareConfig(**SMALL)
    whole = compare(config)
    kept, learned = [], []

    def stop(trial):
        kept.append(trial)
        if len(kept) == 3:
            raise KeyboardInterrupt

    with execution(store=tmp_path), pytest.raises(KeyboardInterrupt):
        compare(config, on_trial=stop)
    assert len(list(tmp_path.iterdir())) == 3

    def watched(task, env):
        learned.append(str(task))
        return Fake(task, env)

    monkeypatch.setattr(trial_module, "make_agent", watched)
    monkeypatch.setattr(engines, "available_cores", lambda: 1)
    every = []
    # The number of processes is no part of a trial's name.
    with execution(store=tmp_path):
        resumed = compare(dataclasses.replace(config, jobs=None), on_trial=every.append)
    assert len(learned) == 3
    assert not {str(task_of(config, trial)) for trial in kept} & set(learned)
    assert len(every) == 6
    assert resumed.summary() == whole.summary()
    for ours, theirs in zip(resumed.trials, whole.trials, strict=True):
        assert_same(ours, theirs)


def task_of(config, trial):
    return Task(config, trial.algorithm, trial.map)


def test_an_agents_failure_names_its_trial(monkeypatch):
    def fail(task, env):
        raise RuntimeError("no luck")

    monkeypatch.setattr(trial_module, "make_agent", fail)
    with pytest.raises(TaskError, match="awsgd on map 0: RuntimeError: no luck"):
        compare(CompareConfig(**SMALL))


def test_figures_of_a_comparison(fakes, tmp_path):
    comparison = compare(CompareConfig(**SMALL))
    names = ("learning", "failures", "regret", "policies")
    paths = write_figures(comparison, tmp_path)
    assert {path.name for path in paths} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert all(path.stat().st_size > 1000 for path in paths)


def test_figures_of_one_run_with_returns(tmp_path):
    comparison = make_comparison({"ppo": [100.0]}, metric="return", env="CartPole-v1")
    paths = write_figures(comparison, tmp_path)
    assert [path.name for path in paths] == ["learning.png", "learning.svg"]


# With the real agents


def assert_same(ours, theirs):
    """Two trials agree bit for bit in everything but the seconds."""
    left, right = (to_json(dataclasses.replace(trial, seconds=0.0)) for trial in (ours, theirs))
    assert left == right


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same():
    config = CompareConfig(size=4, traps=1, episodes=200, maps=2)
    one, two = (compare(dataclasses.replace(config, jobs=jobs)) for jobs in (1, 2))
    for ours, theirs in zip(one.trials, two.trials, strict=True):
        assert_same(ours, theirs)
    assert {trial.algorithm for trial in one.trials} == set(config.algos)


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["strong", "paper"])
@pytest.mark.parametrize("algorithm", ["awsgd", "awsgd-mixture", "awsgd-paper", "reinforce-equal"])
def test_every_algorithm_learns_something(algorithm, regime):
    config = CompareConfig(size=3, traps=1, episodes=400, regime=regime, algos=(algorithm,))
    trial = run_task(Task(config, algorithm, 0), lambda message: None)
    assert trial.metric == "success"
    assert 0.0 < trial.mean <= 1.0
    assert (trial.exploration is None) == (algorithm == "reinforce-equal")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["awsgd", "reinforce", "ppo"])
def test_another_environment(algorithm, monkeypatch):
    monkeypatch.setattr(trial_module, "FINAL_EPISODES", 3)
    config = CompareConfig(env="CartPole-v1", episodes=30, maps=1, jobs=1, algos=(algorithm,))
    (trial,) = compare(config).trials
    assert trial.metric == "return"
    assert 5 < trial.mean < 200


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algos": ("awsdg",)}, "unknown algorithm 'awsdg': did you mean 'awsgd'"),
        ({"algos": ()}, "no algorithm to compare"),
        ({"algos": ("awsgd", "awsgd")}, "names an algorithm twice"),
        ({"regime": "weak"}, "unknown regime 'weak'"),
        ({"maps": 0}, "maps is 0, expected 1 or more"),
        ({"episodes": -5}, "episodes is -5"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"jobs": 0}, "jobs is 0"),
        ({"preset": "15/9", "size": 15}, "got preset and size, expected one task"),
        ({"env": "CartPole-v1", "traps": 3, "slip": 0.1}, "got env and traps and slip"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        CompareConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"env": "CartPol-v1"},
        {"env": "nowhere:Thing-v0"},
        {"preset": "15/99"},
        {"size": 1},
        {"size": 3, "traps": 9},
        {"slip": 1.5},
    ],
)
def test_tasks_that_cannot_be_made(settings, fakes):
    learned = []
    with pytest.raises((ValueError, ImportError)):
        compare(CompareConfig(**settings, jobs=1), on_trial=learned.append)
    assert not learned


def test_tasks_in_words():
    assert CompareConfig().task == "15×15 grid with 9 traps"
    assert CompareConfig(size=10, slip=0.1).task == "10×10 grid with 4 traps, slip 0.1"
    assert CompareConfig(preset="50/25").task == "preset 50/25"
    assert CompareConfig(env="CartPole-v1").task == "CartPole-v1"
    assert (CompareConfig().unit, CompareConfig(env="CartPole-v1").unit) == ("map", "seed")
    assert CompareConfig(preset="literature").unit == "seed"


def test_maps_differ_and_are_named_by_their_seed():
    config = CompareConfig()
    traps = [tuple(config.make_env(k).unwrapped.trap_cells) for k in (0, 1, 0)]
    assert traps[0] == traps[2] != traps[1]
    preset = CompareConfig(preset="15/9").make_env(1).unwrapped
    assert tuple(preset.trap_cells) == traps[1]


def test_importing_the_module_is_light():
    code = (
        "import sys, awsgd_rl.benchmarks.compare\n"
        "heavy = {'torch', 'numba', 'matplotlib', 'stable_baselines3', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_label_is_documented():
    import inspect

    text = inspect.getsource(CompareConfig)
    assert all(label in text for label in ALGORITHMS)
