import functools
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage

from awsgd_rl import cli
from awsgd_rl.agents.search_spaces import SPACES, Choices, Range, read_spaces, resolve
from awsgd_rl.benchmarks import search, search_figures, search_study
from awsgd_rl.benchmarks.search import Outcome, Task, TuneConfig, Tuned, make_subject, measure
from awsgd_rl.benchmarks.search_figures import history_figure, write_figures
from awsgd_rl.benchmarks.search_results import best_of, rows_of, summary_of, train_command
from awsgd_rl.benchmarks.search_study import SettingError, suggest, tune
from awsgd_rl.benchmarks.trial import Task as CompareTask
from awsgd_rl.benchmarks.trial import run_task
from awsgd_rl.cli_common import parse
from awsgd_rl.cli_train import TrainOptions
from awsgd_rl.runs import read_results

SMALL: dict[str, Any] = {"size": 4, "traps": 1, "episodes": 60, "maps": 3, "jobs": 1}
TUNE = ["tune", "--size", "4", "--traps", "1", "--episodes", "40", "--maps", "2", "--jobs", "1"]
TUNE += ["--algos", "awsgd", "reinforce", "--trials", "3", "--check-maps", "2"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def no_flushing() -> Iterator[None]:
    """Flushing each of a thousand small transactions to the disk is most of the time here."""

    def connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connect)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", connect)


def without_seconds(tuned: list[Tuned]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(tuned)]


def fake(task: Task, _send: Any) -> Outcome:
    """A smooth function of two options with noise of the map; large step sizes fail."""
    rate, batch = task.options["learning_rate"], task.options["batch_size"]
    noise = np.random.default_rng([task.map, int(1000 * rate), batch]).normal()
    mean = 0.8 - 0.02 * np.log(rate / 8) ** 2 - 0.01 * abs(batch - 12) / 12 + 0.003 * noise
    if rate > 40:
        return Outcome(task, "", np.nan, 0.0, "ValueError: too large")
    return Outcome(task, "success", float(mean - 0.1 * (task.map % 2)), 0.0)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "measure", fake)


def run(config: TuneConfig, path: Path) -> list[Tuned]:
    return tune(config, [make_subject(config, label) for label in config.algos], path)


# What is searched


@pytest.mark.parametrize("label", list(SPACES))
def test_the_ends_of_every_space_are_accepted(label: str) -> None:
    env = "Pendulum-v1" if label.endswith(("sac", "td3")) else None
    config = TuneConfig(env=env, algos=(label,), **({} if env else {"size": 4}))
    subject = make_subject(config, label)
    assert subject.space
    assert ("value_rate" in subject.space) == (subject.policy == "TablePolicy")
    for name, space in subject.space.items():
        assert isinstance(space, Range)
        assert space.low <= subject.defaults[name] <= space.high
        assert type(space.low) is type(space.high) is type(subject.defaults[name])
    search._check_ends(config, subject, config.make_env(config.seed))


def test_together_the_ends_of_a_batch_and_a_memory_fit() -> None:
    for label in ("awsgd", "awsgd-returns", "uniform-replay"):
        for env in (None, "CartPole-v1"):
            space = make_subject(TuneConfig(env=env, algos=(label,)), label).space
            memory, batch = space["memory"], space["batch_size"]
            assert isinstance(memory, Range)
            assert isinstance(batch, Range)
            assert memory.low >= batch.high


def test_networks_and_the_papers_regime_search_what_means_something_there() -> None:
    network = make_subject(TuneConfig(env="CartPole-v1"), "awsgd")
    assert network.policy == "MlpPolicy"
    assert "trace_decay" in network.space
    assert "value_rate" not in network.space
    paper = make_subject(TuneConfig(size=4, regime="paper"), "awsgd")
    assert not {"value_rate", "trace_decay", "batch_size"} & set(paper.space)
    assert paper.space["learning_rate"] == Range(0.4 / 8, 0.4 * 8, log=True)


def test_a_space_of_ones_own() -> None:
    text = '{"awsgd": {"memory": {"choices": [40, 100]}, "learning_rate": {"low": 4, "high": 32}}}'
    given = read_spaces(text, ["awsgd", "reinforce"])["awsgd"]
    space = resolve("awsgd", {"memory": 100, "learning_rate": 16.0}, grid=True, given=given)
    assert space == {"memory": Choices((40, 100)), "learning_rate": Range(4.0, 32.0)}
    assert isinstance(space["learning_rate"][0], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected such as"),
        ('{"awsgd": 1}', "expected such as"),
        ('{"awsdg": {}}', "did you mean 'awsgd'"),
        ('{"awsgd": {}}', "no option"),
        ('{"awsgd": {"memory": 3}}', "expected low and high"),
        ('{"awsgd": {"memory": {"low": 3}}}', "expected low and high"),
        ('{"awsgd": {"memory": {"low": 3, "high": "x"}}}', "memory.high is 'x'"),
        ('{"awsgd": {"memory": {"low": 3, "high": 3}}}', "low < high"),
        ('{"awsgd": {"memory": {"low": 0, "high": 3, "log": true}}}', "above 0"),
        ('{"awsgd": {"memory": {"low": 1, "high": 3, "log": 1}}}', "true or false"),
        ('{"awsgd": {"memory": {"choices": []}}}', "different plain values"),
        ('{"awsgd": {"memory": {"choices": [1, true]}}}', "different plain values"),
        ('{"awsgd": {"memory": {"choices": [[1]]}}}', "different plain values"),
        ('{"awsgd": {"memroy": {"low": 10, "high": 200}}}', "did you mean 'memory'"),
        ('{"awsgd": {"memory": {"low": 10.5, "high": 200}}}', "whole numbers"),
        ('{"awsgd": {"memory": {"low": 10, "high": 20}}}', "hold the default 100"),
        ('{"awsgd": {"memory": {"choices": [20, 40]}}}', "hold the default 100"),
        ('{"awsgd": {"memory": {"low": 1, "high": 200}}}', "memory is 1"),
        ('{"awsgd": {"variant": {"low": 1, "high": 200}}}', "default is 'replay'"),
        ('{"awsgd": {"baseline": {"low": 0, "high": 1}}}', "default is True"),
        ('{"awsgd": {"learning_rate": {"choices": [16, "high"]}}}', "learning_rate is 'high'"),
    ],
)
def test_a_space_that_does_not_fit(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_subject(TuneConfig(size=4, algos=("awsgd",), space=text), "awsgd")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"maps": 0}, "maps is 0"),
        ({"check_maps": -1}, "check_maps is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"seed": 999}, "seed is 999, expected 1000 or more"),
        ({"maps": 501}, "500 or less"),
        ({"check_maps": 501}, "500 or less"),
        ({"algos": ("awsdg",)}, "did you mean 'awsgd'"),
        ({"space": '{"ppo": {"learning_rate": {"low": 1, "high": 2}}}'}, "unknown algorithm"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneConfig(**settings)


def test_no_seed_is_used_twice_or_reported_by_compare() -> None:
    config = TuneConfig(maps=500, check_maps=500)
    assert not set(config.seeds) & set(config.check_seeds)
    assert min(config.seeds) == 1000


# One setting on one map


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("awsgd", {}),
        ("awsgd-paper", {}),
        ("reinforce-equal", {"regime": "paper"}),
        ("reinforce", {"steps": 300}),
        ("ppo", {}),
        ("awsgd", {"env": "CartPole-v1", "size": None, "traps": None, "steps": 100}),
    ],
)
def test_the_measure_is_that_of_compare(label: str, settings: dict[str, Any]) -> None:
    config = TuneConfig(**{**SMALL, "algos": (label,), **settings})
    subject = make_subject(config, label)
    outcome = measure(Task(config, subject, 0, subject.default_options, 1001), print)
    trial = run_task(CompareTask(config, label, 1001), print)
    assert outcome.error == ""
    assert (outcome.metric, outcome.mean) == (trial.metric, trial.mean)


def test_options_reach_the_agent() -> None:
    config = TuneConfig(**SMALL)
    subject = make_subject(config, "awsgd")
    means = {
        measure(Task(config, subject, 1, {"learning_rate": rate}, 1000), print).mean
        for rate in (0.001, 16.0)
    }
    assert len(means) == 2


def test_a_setting_that_an_agent_refuses_is_a_result() -> None:
    config = TuneConfig(**SMALL)
    subject = make_subject(config, "awsgd")
    outcome = measure(Task(config, subject, 3, {"learning_rate": -1.0}, 1000), print)
    assert np.isnan(outcome.mean)
    assert "learning_rate is -1" in outcome.error


# Suggestions


def test_suggestions_depend_on_the_trials_and_the_seed_alone() -> None:
    space: Any = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.1, 10.0, log=True)}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    for _ in range(8):
        trial = study.ask(space)
        study.tell(trial, -((trial.params["x"] - 0.3) ** 2))
    first = suggest(study.trials, space, seed=1)
    assert suggest(study.trials, space, seed=1) == first
    assert suggest(study.trials, space, seed=2) != first
    assert suggest(study.trials[:7], space, seed=1) != first
    assert len(study.trials) == 8


def test_suggestions_go_where_it_is_good() -> None:
    space: Any = {"x": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    for _ in range(30):
        trial = study.ask(space)
        study.tell(trial, -((trial.params["x"] - 0.3) ** 2))
    found = [suggest(study.trials, space, seed=seed)["x"] for seed in range(40)]
    assert np.mean(np.abs(np.array(found) - 0.3) < 0.15) > 0.6  # uniform ones: 0.3


# All trials


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneConfig, list[Tuned], Path]:
    """All trials of two algorithms by `fake`, and their file."""
    space = '{"awsgd": {"learning_rate": {"low": 2, "high": 60, "log": true}, '
    space += '"batch_size": {"choices": [5, 10, 20]}}}'
    config = TuneConfig(**SMALL, trials=17, space=space, algos=("awsgd", "reinforce"))
    path = tmp_path_factory.mktemp("tune") / "study.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", fake)
        return config, run(config, path), path


Explored = tuple[TuneConfig, list[Tuned], Path]


def test_every_side_has_the_same_budget(explored: Explored) -> None:
    tuned = explored[1]
    for own in tuned:
        assert len(own.trials) == 17
        assert own.trials[0].options == own.subject.default_options
        assert own.best.values.mean() >= own.trials[0].values.mean()
        assert [len(own.check[number]) for number in (0, own.best.number)] == [4, 4]
    summary = summary_of(tuned)
    assert summary["awsgd.trials"] == summary["reinforce.trials"] == 17
    assert summary["awsgd.failed"] > 0  # step sizes above 40
    failed = [row for row in rows_of(tuned) if row["state"] == "failed"]
    assert all("too large" in row["error"] for row in failed)
    # A step size of 8 is better than the default 16 everywhere.
    assert summary["awsgd.check_gain"] > 0
    for name in ("best_success_mean", "default_success_mean", "check_best_success_mean"):
        assert summary[f"awsgd.{name}_low"] <= summary[f"awsgd.{name}"]
        assert summary[f"awsgd.{name}_high"] >= summary[f"awsgd.{name}"]


def test_pruned_are_those_behind_the_median(explored: Explored) -> None:
    pruned = 0
    for own in explored[1]:
        default = own.trials[0].values
        for start in range(0, 17, 5):
            before = [t.values - default for t in own.trials[:start] if t.state == "complete"]
            bar = np.median([gains[:2].mean() for gains in before]) if len(before) > 4 else -np.inf
            for trial in own.trials[start : start + 5]:
                if trial.state != "failed":
                    behind = (trial.values[:2] - default[:2]).mean() < bar
                    assert behind == (trial.state == "pruned")
                    assert len(trial.values) == (2 if behind else 3)
                    pruned += behind
    assert pruned > 3


def test_a_side_is_the_same_whatever_stands_beside_it(fakes: None, tmp_path: Path) -> None:
    alone = run(TuneConfig(**SMALL, trials=8, algos=("reinforce",)), tmp_path / "a.db")
    both = run(TuneConfig(**SMALL, trials=8, algos=("awsgd", "reinforce")), tmp_path / "b.db")
    assert without_seconds(alone) == without_seconds(both[1:])


def test_another_seed_tries_other_settings(fakes: None, tmp_path: Path) -> None:
    runs = [
        run(TuneConfig(**SMALL, trials=3, seed=seed, algos=("awsgd",)), tmp_path / f"{seed}.db")
        for seed in (1000, 2000)
    ]
    options = [[trial.options for trial in own[0].trials] for own in runs]
    assert options[0][0] == options[1][0]
    assert options[0][1:] != options[1][1:]


def test_a_default_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(task: Task, _send: Any) -> Outcome:
        return Outcome(task, "", np.nan, 0.0, "ValueError: no")

    monkeypatch.setattr(search, "measure", broken)
    with pytest.raises(SettingError, match="awsgd fails with its default settings"):
        run(TuneConfig(**SMALL, trials=2), tmp_path / "study.db")


def test_a_setting_that_fails_its_check_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = TuneConfig(**SMALL, trials=3, check_maps=2, algos=("awsgd",))

    def measured(task: Task, _send: Any) -> Outcome:
        good = 0.5 if task.number == 0 else 0.9
        if task.map in config.check_seeds and task.number > 0:
            return Outcome(task, "", np.nan, 0.1, "ValueError: it diverged")
        return Outcome(task, "success", good, 0.1)

    monkeypatch.setattr(search, "measure", measured)
    with pytest.warns(RuntimeWarning, match="fails on fresh map 150.*it diverged"):
        (tuned,) = run(config, tmp_path / "study.db")
    assert tuned.best.number > 0
    summary = summary_of([tuned])
    assert summary["awsgd.check_default_success_mean"] == 0.5
    assert "awsgd.check_best_success_mean" not in summary
    assert "awsgd.check_gain" not in summary
    (again,) = run(config, tmp_path / "study.db")  # nothing is left to do
    assert summary_of([again]) == summary


def test_a_finished_file_is_read_again_without_measuring(
    explored: Explored, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tuned, path = explored
    monkeypatch.setattr(search, "measure", None)
    again = run(config, path)
    assert rows_of(again) == rows_of(tuned)
    assert summary_of(again) == summary_of(tuned)


# Going on


WRITES = (
    "create_new_trial",
    "set_trial_user_attr",
    "set_trial_intermediate_value",
    "set_trial_state_values",
    "set_study_user_attr",
)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_run_ends_as_one_never_stopped(
    fakes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: bool
) -> None:
    config = TuneConfig(**SMALL, trials=12, check_maps=1, algos=("awsgd",))
    subjects = [make_subject(config, "awsgd")]
    count = stop_at = 0

    def stopping(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == stop_at and not after:
                raise KeyboardInterrupt
            result = write(*args, **kwargs)
            if count == stop_at:
                raise KeyboardInterrupt
            return result

        return wrapped

    for name in WRITES:
        monkeypatch.setattr(RDBStorage, name, stopping(getattr(RDBStorage, name)))
    expected = without_seconds(tune(config, subjects, tmp_path / "whole.db"))
    writes = count
    assert writes > 60
    # One run, stopped and gone on with again and again, at bounds that differ.
    rng = np.random.default_rng(int(after))
    interruptions = 0
    while True:
        count, stop_at = 0, int(rng.integers(1, 9))
        try:
            tuned = tune(config, subjects, tmp_path / "parts.db")
        except KeyboardInterrupt:
            interruptions += 1
            # Not to be stopped for ever before the first write.
            assert interruptions < 10 * writes
            continue
        break
    assert interruptions > 8
    assert without_seconds(tuned) == expected


@pytest.mark.slow
def test_a_killed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "awsgd_rl.cli", *TUNE, "--trials", "7"]
    whole = subprocess.run([*command, "--out", "whole"], cwd=tmp_path, env=environment)
    assert whole.returncode == 0
    for measured in (3, 11):  # trials of the first batch are running; some are done
        resume = ["--resume"] if measured > 3 else []
        process = subprocess.Popen(
            [*command, "--out", "parts", *resume],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None and maps_measured(tmp_path / "parts") < measured:
                time.sleep(0.02)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run([*command, "--out", "parts", "--resume"], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    results = [read_results(tmp_path / name) for name in ("whole", "parts")]
    for result in results:
        for row in result["rows"]:
            del row["seconds"]
    assert results[0]["rows"] == results[1]["rows"]
    assert results[0]["summary"] == results[1]["summary"]


def maps_measured(folder: Path) -> int:
    path = folder / "study.db"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path) as database:
            return int(
                database.execute(
                    "SELECT count(*) FROM trial_user_attributes WHERE key LIKE 'map %'"
                ).fetchone()[0]
            )
    except sqlite3.OperationalError:  # no tables yet, or locked
        return 0
    finally:
        database.close()


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    config = TuneConfig(**{**SMALL, "maps": 2}, trials=6, check_maps=2, algos=("awsgd",))
    one = run(config, tmp_path / "one.db")
    two = run(replace(config, jobs=2), tmp_path / "two.db")
    assert without_seconds(one) == without_seconds(two)
    assert summary_of(one) == summary_of(two)


# Files


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 8192):
        data[start : start + 512] = b"\xff" * 512
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def text(path: Path) -> None:
    path.write_text("These are not the trials you are looking for.\n" * 40)


def another_programs(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, "is damaged"),
        (truncate, "is damaged"),
        (text, "no SQLite file"),
        (another_programs, "another program"),
    ],
)
def test_a_file_that_is_no_study_is_refused_and_left_alone(
    fakes: None, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "study.db"
    config = TuneConfig(**SMALL, trials=2, check_maps=0, algos=("awsgd",))
    run(config, path)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(config, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1001}, "another seed"),
        ({"size": 5}, "another task"),
        ({"space": '{"awsgd": {"memory": {"low": 20, "high": 200}}}'}, "another space"),
        ({"batch": 4}, "another batch"),
    ],
)
def test_trials_of_other_settings_are_refused(
    fakes: None, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = TuneConfig(**SMALL, trials=2, check_maps=0, algos=("awsgd",))
    run(config, tmp_path / "study.db")
    with pytest.raises(ValueError, match=message):
        run(replace(config, **change), tmp_path / "study.db")


def test_folders_with_odd_names(fakes: None, tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#d%20é"
    folder.mkdir()
    run(TuneConfig(**SMALL, trials=1, check_maps=0, algos=("awsgd",)), folder / "study.db")
    assert [path.name for path in folder.iterdir()] == ["study.db"]


# What comes out


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        *((label, {"size": 4}) for label in SPACES if not label.endswith(("sac", "td3"))),
        ("awsgd-paper", {"preset": "15/9", "regime": "paper", "steps": 5000}),
        ("sac", {"env": "Pendulum-v1"}),
        ("awsgd", {"env": "CartPole-v1"}),
    ],
)
def test_the_command_trains_with_the_settings(label: str, settings: dict[str, Any]) -> None:
    from awsgd_rl.agents import ALGORITHMS, make_agent
    from awsgd_rl.agents.stable_baselines_configs import CONFIGS

    config = TuneConfig(**settings, algos=(label,))
    subject = make_subject(config, label)
    options = {name: space[0] for name, space in subject.space.items()}
    words = shlex.split(train_command(config, subject, options))
    assert words[:2] == ["awsgd-rl", "train"]
    entry = ALGORITHMS[subject.algorithm]
    config_class = entry.config_class or CONFIGS[subject.algorithm]
    asked, read = parse("train", words[2:], "", TrainOptions, config_class)
    assert asked.algo == subject.algorithm
    assert {asked.total_episodes, asked.total_timesteps} == {config.budget, None}
    where = config.make_env(1000) if config.env is None else config.env
    agent = make_agent(subject.algorithm, subject.policy, where, seed=0, **asdict(read))
    assert asdict(agent.config) == {**subject.defaults, **options}


def test_figures(explored: Explored, tmp_path: Path) -> None:
    config, tuned, _ = explored
    written = write_figures(config, tuned, tmp_path)
    names = [path.stem for path in written if path.suffix == ".png"]
    assert names == ["history", "slices-awsgd", "slices-reinforce"]
    axes = history_figure(config, tuned).axes[0]
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    best = np.asarray(line.get_ydata())
    assert (np.diff(best) >= 0).all()
    assert best[-1] == tuned[0].best.values.mean()


def test_best_json_names_what_it_was_chosen_by(explored: Explored) -> None:
    config, tuned, _ = explored
    best = best_of(config, tuned)["awsgd"]
    assert best["settings"] == tuned[0].trials[best["trial"]].options
    assert best["success_mean"] == max(
        trial.values.mean() for trial in tuned[0].trials if trial.state == "complete"
    )


def test_the_study_file_is_optunas_own(explored: Explored) -> None:
    _, tuned, path = explored
    storage = RDBStorage(f"sqlite:///{path}")
    study = optuna.load_study(study_name="awsgd", storage=storage)
    assert study.best_trial.number == tuned[0].best.number
    assert study.best_value == tuned[0].best.values.mean()
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.slow
def test_importances_once_enough_was_tried(fakes: None, tmp_path: Path) -> None:
    space = '{"awsgd": {"learning_rate": {"low": 2, "high": 32, "log": true}, '
    space += '"batch_size": {"low": 5, "high": 20}}}'
    config = TuneConfig(
        **{**SMALL, "maps": 2}, trials=12, batch=12, check_maps=0, algos=("awsgd",), space=space
    )
    own = run(config, tmp_path / "study.db")[0]
    assert set(own.importances) == {"learning_rate", "batch_size"}
    assert own.importances["learning_rate"] > 0.5
    assert sum(own.importances.values()) == pytest.approx(1.0)
    assert "awsgd.check_gain" not in summary_of([own])


# The command


@pytest.fixture
def awsgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        return cli.main(argv), *capsys.readouterr()

    return run


Command = Callable[..., tuple[int, str, str]]


def test_the_command(awsgd: Command) -> None:
    status, out, err = awsgd(*TUNE, "--out", "run")
    assert (status, err) == (0, "")
    results = read_results("run")
    assert results["name"] == "tune"
    assert [row["algorithm"] for row in results["rows"]] == ["awsgd"] * 3 + ["reinforce"] * 3
    best = json.loads(Path("run/best.json").read_text())
    for label in ("awsgd", "reinforce"):
        summary = results["summary"]
        assert summary[f"{label}.best_success_mean"] >= summary[f"{label}.default_success_mean"]
        assert f"{label}.check_gain_low" in summary
        assert best[label]["train"] in out
    assert "maps 1500 to 1501" in out
    assert "looks better than it is" in out
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert {"history.png", "slices-awsgd.svg", "study.db", "config.json"} <= set(before)
    status, out, _ = awsgd("tune", "--out", "run", "--resume")
    assert (status, out) == (0, "run is finished: nothing is left to do\n")
    assert before == {path.name: path.read_bytes() for path in Path("run").iterdir()}
    status, _, err = awsgd(*TUNE, "--out", "run")
    assert status == 2
    assert "--resume to go on" in err


def test_resuming_after_an_interruption(awsgd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "measure", fake)
    monkeypatch.setattr(search_figures, "write_figures", lambda *_: [])
    assert awsgd(*TUNE, "--out", "whole", "--quiet")[0] == 0
    left = 4

    @functools.wraps(fake)  # a name of its own: results are kept under it
    def interrupted(task: Task, send: Any) -> Outcome:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return fake(task, send)

    monkeypatch.setattr(search, "measure", interrupted)
    status, _, err = awsgd(*TUNE, "--out", "parts")
    assert status == 130
    assert err == (
        "awsgd-rl tune: stopped: 1 trial kept, go on with: awsgd-rl tune --out parts --resume\n"
    )
    for given, message in (
        (("--trials", "9"), "--trials is 9, but the run to go on with has 3"),
        (("--space", '{"awsgd": {"memory": {"low": 1, "high": 2}}}'), "leave it out"),
        (("--algos", "awsgd"), "leave it out"),
    ):
        status, _, err = awsgd("tune", *given, "--out", "parts", "--resume")
        assert status == 2
        assert message in err
    shutil.copytree("parts", "spoilt")
    text(Path("spoilt/study.db"))
    status, _, err = awsgd("tune", "--out", "spoilt", "--resume")
    assert status == 2
    assert "is damaged" in err
    assert err.count("\n") == 1
    assert awsgd("tune", "--out", "parts", "--resume", "--jobs", "1", "--quiet")[0] == 0
    assert read_results("parts")["summary"] == read_results("whole")["summary"]


def test_a_study_of_somebody_elses_is_not_touched(awsgd: Command) -> None:
    Path("run").mkdir()
    Path("run/study.db").write_bytes(b"mine")
    status, _, err = awsgd(*TUNE, "--out", "run")
    assert status == 2
    assert "is there: choose another folder" in err
    assert Path("run/study.db").read_bytes() == b"mine"


def test_the_help_shows_the_spaces(awsgd: Command) -> None:
    status, out, err = awsgd("tune", "--help")
    assert (status, err) == (0, "")
    for label in SPACES:
        assert f"  {label} " in out
    assert "learning_rate ×÷8" in out
    assert "--space" in out


assert search_study.STUDY_FILE == "study.db"
