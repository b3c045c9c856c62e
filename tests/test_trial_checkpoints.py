"""Trials that are stopped while they learn go on, and end as those that never were."""

import dataclasses
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsgd_rl import cli
from awsgd_rl.agents.agent import Agent
from awsgd_rl.agents.checkpoints import numbered
from awsgd_rl.agents.training_file import ABOUT, TENSORS
from awsgd_rl.benchmarks import control, resumable
from awsgd_rl.benchmarks import trial as trial_module
from awsgd_rl.benchmarks.compare import CompareConfig, Progress, compare
from awsgd_rl.benchmarks.resumable import Scratch, given_scratch, learn
from awsgd_rl.benchmarks.task_store import TaskStore
from awsgd_rl.benchmarks.trial import Task, run_task
from awsgd_rl.benchmarks.workers import execution, run_tasks
from awsgd_rl.runs import read_results, to_json

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

CONFIG = CompareConfig(size=4, traps=2, episodes=600, maps=1, algos=("awsgd", "reinforce"), jobs=1)
BATCH = {"awsgd": 10, "reinforce": 20}
START = (
    "import signal, sys\n"
    # A shell's background job, as the tests may be, hands down that Ctrl-C is ignored.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C is what it is in a program that a user starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of episodes after each batch that is learned in this process.

    A negative number in front says how many batches are left until Ctrl-C, within one.
    """
    found: list[int] = []
    batch = Agent._batch

    def watched(self: Any, n: int, log: Any) -> None:
        if found and found[0] < 0:
            found[0] += 1
            if found[0] == 0:
                found.pop(0)
                signal.raise_signal(signal.SIGINT)
        batch(self, n, log)
        found.append(self.num_episodes)

    monkeypatch.setattr(Agent, "_batch", watched)
    return found


def without_seconds(trials: Any) -> Any:
    return [to_json(dataclasses.replace(trial, seconds=0.0)) for trial in trials]


def results(folder: Path) -> dict[str, Any]:
    found = read_results(folder)
    for name in ("seconds", "started"):
        del found[name]
    del found["config"]["jobs"]
    for row in found["rows"]:
        row.pop("seconds")
    for name in [name for name in found["summary"] if "seconds" in name]:
        del found["summary"][name]
    return found


def scratch_of(folder: Path, config: CompareConfig, algorithm: str, map_: int = 0) -> Path:
    task = Task(dataclasses.replace(config, jobs=None), algorithm, map_)
    return TaskStore(folder).scratch(run_task, task)


def episodes_of(folder: Path) -> list[int]:
    return [int(path.name) for path in numbered(folder)]


def stopped_trial(
    config: CompareConfig, folder: Path, batches: list[int], after: int, seconds: float = 60.0
) -> Path:
    """Stop the first trial by Ctrl-C; return its scratch folder."""
    batches[:] = [-after]
    with (
        execution(store=folder, checkpoint_seconds=seconds),
        pytest.raises(KeyboardInterrupt),
    ):
        compare(config)
    assert len(batches) == after
    batches.clear()
    return scratch_of(folder, config, config.algos[0])


# The same numbers


@pytest.mark.parametrize(
    "settings",
    [
        {"algos": ("awsgd",)},
        {"algos": ("awsgd-paper",), "episodes": 300},  # its success is computed once a bin
        {"algos": ("reinforce-equal",), "regime": "paper"},
        {"algos": ("uniform-replay",), "steps": 2000},
        pytest.param(
            {"algos": ("awsgd",), "env": "CartPole-v1", "size": None, "traps": None, "steps": 700},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: settings["algos"][0] + str(settings.get("env", "")),
)
def test_a_trial_goes_on_within(
    settings: dict[str, Any], tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "FINAL_EPISODES", 3)
    config = dataclasses.replace(CONFIG, **settings)
    whole = compare(config)
    learned = batches.copy()
    half = len(learned) // 2
    # Twice, at Ctrl-C alone and with a checkpoint after every batch.
    scratch = stopped_trial(config, tmp_path, batches, half)
    assert episodes_of(scratch) == [learned[half - 1]]
    scratch = stopped_trial(config, tmp_path, batches, 2, seconds=0.0)
    assert episodes_of(scratch) == learned[half - 1 : half + 2]
    with execution(store=tmp_path):
        resumed = compare(config)
    assert batches == learned[half + 2 :]
    assert without_seconds(resumed.trials) == without_seconds(whole.trials)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_what_was_stopped_after_its_last_batch_learns_no_more(
    tmp_path: Path, batches: list[int]
) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",), episodes=50)
    scratch = stopped_trial(config, tmp_path, batches, 5)
    assert episodes_of(scratch) == [50]
    with execution(store=tmp_path):
        resumed = compare(config)
    assert batches == []
    assert without_seconds(resumed.trials) == without_seconds(compare(config).trials)


def test_the_seconds_before_a_stop_count(tmp_path: Path, batches: list[int]) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",))
    spent = stopped_trial(config, tmp_path, batches, 3) / "seconds.json"
    assert 0.0 < json.loads(spent.read_text()) < 1000.0
    spent.write_text("5000.0")
    with execution(store=tmp_path):
        (trial,) = compare(config).trials
    assert 5000.0 < trial.seconds < 6000.0
    for damaged in ("", "{", "[1]", "NaN", "Infinity", '"x"'):
        spent.parent.mkdir(exist_ok=True)
        spent.write_text(damaged)
        assert resumable._spent(spent.parent) == 0.0


# However it is stopped


def cli_process(*argv: str) -> "subprocess.Popen[str]":
    """Start `awsgd-rl` as a process of its own."""
    code = START + "from awsgd_rl import cli\nsys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended or hung: {process.communicate()[0]}")
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_comparison_goes_on_within_its_trials(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("awsgd_rl.cli_compare.write_figures", lambda *_: [])
    config = dataclasses.replace(CONFIG, episodes=1500)
    argv = ["compare", "--size", "4", "--traps", "2", "--episodes", "1500", "--maps", "1"]
    argv += ["--algos", "awsgd", "reinforce"]
    assert cli.main([*argv, "--jobs", "1", "--quiet", "--out", "whole"]) == cli.DONE
    going = ["--jobs", str(jobs), "--quiet", "--out", "run", "--checkpoint-seconds", "0"]
    started = {name: scratch_of(Path("run/trials"), config, name) for name in config.algos[:jobs]}
    with cli_process(*argv, *going) as process:
        # Of two workers one may be done before the other one has begun.
        wait_for(lambda: any(len(numbered(path)) >= 3 for path in started.values()), process)
        process.kill()
        process.communicate()  # until its workers have ended too
    assert process.returncode == -signal.SIGKILL
    assert not Path("run/results.json").exists()
    last = {name: episodes_of(path)[-1] for name, path in started.items() if numbered(path)}
    assert last
    assert min(last.values()) < config.episodes
    reports: dict[str, list[int]] = {}

    def report(message: Progress) -> None:
        reports.setdefault(message.task.partition(" ")[0], []).append(message.spent)

    with monkeypatch.context() as patch:
        patch.setattr(
            "awsgd_rl.cli_compare.compare",
            lambda config, progress, on_trial: compare(config, progress=report, on_trial=on_trial),
        )
        assert cli.main(["compare", "--resume", *going]) == cli.DONE
    for name, episodes in last.items():
        assert reports[name][0] == min(episodes + BATCH[name], config.episodes)
    assert results(Path("run")) == results(Path("whole"))
    assert not Path("run/trials").exists()


SCRIPT = """
from awsgd_rl.benchmarks.compare import CompareConfig, compare
from awsgd_rl.benchmarks.workers import execution

config = CompareConfig(
    size=4, traps=2, episodes=10**6, maps=1, algos=("awsgd", "reinforce"), jobs=2
)
with execution(store=sys.argv[1]):
    compare(config, progress=lambda report: print(report.task, report.spent, flush=True))
"""


@pytest.mark.slow
def test_ctrl_c_lets_workers_write_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START + SCRIPT, str(tmp_path / "kept")]
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdout is not None
        spent: dict[str, int] = {}
        while len(spent) < 2:
            name, *_, count = process.stdout.readline().split()
            spent[name] = int(count)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, errors = process.communicate(timeout=120)
    # One traceback, the parent's: workers say nothing.
    assert errors.count("Traceback") == 1
    config = dataclasses.replace(CONFIG, episodes=10**6)
    for name, count in spent.items():
        (episodes,) = episodes_of(scratch_of(tmp_path / "kept", config, name))
        assert count <= episodes < 10**6


# Workers import their function by name, so it has to stand in a module that they can find.
MODULE = """
import os
import signal
from pathlib import Path

from awsgd_rl.benchmarks.compare import CompareConfig
from awsgd_rl.benchmarks.resumable import learn
from awsgd_rl.benchmarks.trial import Task, make_agent


def count_calls(task, send):
    folder, number = task
    config = CompareConfig(size=4, traps=2)
    agent = make_agent(Task(config, "awsgd", number), config.make_env(number))
    calls = Path(folder, str(number))

    def follow(agent):
        with calls.open("a") as file:
            file.write(".")
        if number == 0 and calls.stat().st_size == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    learn(agent, "episodes", 200, follow)
    return calls.stat().st_size
"""


@pytest.mark.slow
def test_a_lost_worker_loses_no_more_than_its_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "functions_of_checkpoints.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    functions: Any = importlib.import_module("functions_of_checkpoints")
    tasks = [(str(tmp_path), number) for number in range(2)]
    with (
        execution(store=tmp_path / "kept", checkpoint_seconds=0.0),
        pytest.warns(UserWarning, match="its worker process died"),
    ):
        assert run_tasks(functions.count_calls, tasks, jobs=2) == [21, 20]
    del sys.modules["functions_of_checkpoints"]


# What is not whole


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, batches: list[int]) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",))
    whole = compare(config)
    scratch = stopped_trial(config, tmp_path, batches, 9, seconds=0.0)
    assert episodes_of(scratch) == [70, 80, 90]
    os.truncate(scratch / f"{90:012d}" / TENSORS, 100)
    with execution(store=tmp_path), pytest.warns(RuntimeWarning, match="90 is passed over"):
        resumed = compare(config)
    assert batches == list(range(90, 601, 10))
    assert without_seconds(resumed.trials) == without_seconds(whole.trials)


def test_without_a_whole_checkpoint_a_trial_starts_again(
    tmp_path: Path, batches: list[int]
) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",))
    whole = compare(config)
    scratch = stopped_trial(config, tmp_path, batches, 9, seconds=0.0)
    (scratch / f"{70:012d}" / ABOUT).write_text("{")
    (scratch / f"{80:012d}" / TENSORS).unlink()
    about = json.loads((scratch / f"{90:012d}" / ABOUT).read_text())
    (scratch / f"{90:012d}" / ABOUT).write_text(json.dumps({**about, "schema": 99}))
    (scratch / "000000000095").write_text("no folder")
    (scratch / "notes.txt").write_text("of somebody")
    with (
        execution(store=tmp_path, checkpoint_seconds=0.0),
        pytest.warns(RuntimeWarning, match="is passed over") as warned,
    ):
        resumed = compare(config)
    assert len(warned) == 4
    assert batches == list(range(10, 601, 10))
    assert without_seconds(resumed.trials) == without_seconds(whole.trials)
    assert not scratch.exists()


def test_another_agents_checkpoint_is_not_taken(tmp_path: Path, batches: list[int]) -> None:
    config = dataclasses.replace(CONFIG, algos=("reinforce",))
    whole = compare(config)
    scratch = stopped_trial(dataclasses.replace(CONFIG, algos=("awsgd",)), tmp_path, batches, 5)
    scratch.rename(scratch_of(tmp_path, config, "reinforce"))
    with execution(store=tmp_path), pytest.warns(RuntimeWarning, match="was saved with algorithm"):
        resumed = compare(config)
    assert without_seconds(resumed.trials) == without_seconds(whole.trials)


def test_a_full_disk_is_a_warning_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",), episodes=50)
    whole = compare(config)

    def full(self: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Agent, "save_training", full)
    with (
        execution(store=tmp_path, checkpoint_seconds=0.0),
        pytest.warns(RuntimeWarning, match="no checkpoint could be written .*No space left"),
    ):
        assert without_seconds(compare(config).trials) == without_seconds(whole.trials)


# Without it


class Plain:
    """An agent that could be saved, but would not go on exactly."""

    save_training = None

    def learn(self, total_episodes: int, callback: Callable[[Any], object]) -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.total = total_episodes
        callback(self)


def test_without_a_store_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*_: Any) -> None:
        raise AssertionError("a checkpoint without a store")

    monkeypatch.setattr(Agent, "save_training", never)
    compare(dataclasses.replace(CONFIG, episodes=50))
    assert not list(tmp_path.iterdir())


def test_agents_and_machines_that_cannot_do_without(tmp_path: Path) -> None:
    seen: list[Any] = []
    plain = Plain()
    with given_scratch(Scratch(tmp_path / "task.running", 0.0)):
        learn(plain, "episodes", 7, seen.append)
    assert (plain.total, seen) == (7, [plain])
    agent = trial_module.make_agent(Task(CONFIG, "awsgd", 0), CONFIG.make_env(0))
    with given_scratch(Scratch(tmp_path / "elsewhere" / "task.running", 0.0)):
        assert learn(agent, "episodes", 20) > 0.0
    assert agent.num_episodes == 20
    assert not list(tmp_path.iterdir())


def test_a_kept_result_needs_no_scratch(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, algos=("awsgd",), episodes=50)
    with execution(store=tmp_path):
        compare(config)
        # Killed between the two steps of `TaskStore.write`.
        scratch = scratch_of(tmp_path, config, "awsgd")
        (scratch / "000000000010").mkdir(parents=True)
        compare(config)
    assert not scratch.exists()


# The other commands


def test_tune_goes_on_within_its_trials(
    tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("awsgd_rl.benchmarks.search_figures.write_figures", lambda *_: [])
    argv = ["tune", "--size", "4", "--traps", "1", "--episodes", "60", "--maps", "1"]
    argv += ["--check-maps", "1", "--trials", "2", "--algos", "awsgd", "--quiet", "--jobs", "1"]
    assert cli.main([*argv, "--out", "whole"]) == cli.DONE
    learned = batches.copy()
    # The number of processes is no part of a trial's name.
    monkeypatch.setattr("awsgd_rl.benchmarks.engines.available_cores", lambda: 1)
    for after in (3, 6):
        batches[:] = [-after]
        resume = ["--resume"] if after > 3 else argv[1:]
        assert cli.main(["tune", *resume, "--quiet", "--out", "run"]) == cli.INTERRUPTED
        assert len(batches) == after
        assert len(list(Path("run/trials").glob("*.running"))) == 1
    batches.clear()
    assert cli.main(["tune", "--resume", "--quiet", "--out", "run"]) == cli.DONE
    assert batches == learned[9:]
    assert not Path("run/trials").exists()
    assert results(Path("run")) == results(Path("whole"))


@pytest.mark.slow
def test_bench_control_goes_on_within_its_trials(
    tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "EVALUATION_EPISODES", 1)
    task = control.Task("CartPole-v1", "awsgd", 0, 400)
    run = functools.partial(run_tasks, control.train, [task], jobs=1)
    (whole,) = run()
    learned = batches.copy()
    batches[:] = [-2]
    with execution(store=tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run()
        batches.clear()
        (resumed,) = run()
    assert batches == learned[2:]
    assert {**resumed, "seconds": 0.0} == {**whole, "seconds": 0.0}


@pytest.mark.parametrize("command", ["compare", "tune", "bench learning"])
@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_bad_seconds_write_nothing(
    command: str,
    seconds: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [*command.split(), "--out", "run", "--checkpoint-seconds", seconds]
    assert cli.main(argv) == cli.BAD_USAGE
    assert f"--checkpoint-seconds is {seconds}" in capsys.readouterr().err
    assert not Path("run").exists()
