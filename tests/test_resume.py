"""`awsgd-rl train --resume`: a run that was stopped ends as one that never was."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from awsgd_rl import cli
from awsgd_rl.agents.checkpoints import numbered
from awsgd_rl.agents.training_file import ABOUT, TENSORS
from awsgd_rl.runs import read_results

KWARGS = '{"size": 4, "traps": 2, "horizon": 20}'
TABLE = ["--env-kwargs", KWARGS, "--total-episodes", "60", "--eval-episodes", "5"]
MLP = [
    *("--env", "CartPole-v1", "--horizon", "20", "--updates", "2", "--batch-size", "4"),
    *("--total-timesteps", "900", "--eval-episodes", "2"),
]


class Run:
    """What one command said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Command = Callable[..., Run]


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `awsgd-rl train` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Run:
        status = cli.main(["train", *argv])
        return Run(status, *capsys.readouterr())

    return run


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run computed, less the times that it took."""
    results = read_results(folder)
    for name in ("seconds", "started"):
        del results[name]
    with (folder / "monitor.csv").open() as file:
        assert file.readline().startswith("#")
        monitor = [{**row, "t": None} for row in csv.DictReader(file)]
    evaluations = np.load(folder / "evaluations.npz")
    return {
        "results": results,
        "monitor": monitor,
        "history": (folder / "history.json").read_bytes(),
        "parameters": (folder / "agent" / "parameters.safetensors").read_bytes(),
        "agent": json.loads((folder / "agent" / "agent.json").read_text()),
        "evaluations": {name: evaluations[name].tolist() for name in evaluations.files},
    }


class Stopping(gym.Env[Any, Any]):
    """Twenty cells in a row and an end that comes by chance; interrupts, once, at a step."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(2)
    steps = 0
    stop_at = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return int(self.np_random.integers(5)), {}

    def step(self, action: Any) -> Any:
        Stopping.steps += 1
        if Stopping.steps == Stopping.stop_at:
            signal.raise_signal(signal.SIGINT)
        draw = self.np_random.random()
        return int(5 * draw), float(action), bool(draw < 0.1), False, {}


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of runs on `Stopping`."""
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    gym.register("test/Stopping-v0", entry_point=Stopping, max_episode_steps=20)  # type: ignore[arg-type]
    monkeypatch.setattr(Stopping, "steps", 0)
    return [
        *("--env", "test/Stopping-v0", "--total-episodes", "64", "--eval-episodes", "3"),
        *("--batch-size", "8", "--updates", "2", "--n-envs", "3"),
    ]


@pytest.mark.parametrize("policy", ["TablePolicy", "MlpPolicy"])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    train: Command, stopping: list[str], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*stopping, "--policy", policy]
    assert train(*options, "--out", "whole", "--quiet").status == 0
    monkeypatch.setattr(Stopping, "steps", 0)
    monkeypatch.setattr(Stopping, "stop_at", 200)
    run = train(*options, "--out", "a run", "--quiet")
    assert run.status == 130
    assert "go on with: awsgd-rl train --out 'a run' --resume" in run.err
    assert run.err.count("\n") == 1
    assert not Path("a run/results.json").exists()
    paths = numbered("a run/checkpoints")
    assert int(paths[0].name) == 0
    assert 0 < int(paths[-1].name) < 64
    run = train("--out", "a run", "--resume")
    assert (run.status, run.err) == (0, "")
    assert f"from {int(paths[-1].name)} episodes on" in run.out
    assert outcome(Path("a run")) == outcome(Path("whole"))
    assert not Path("a run/checkpoints").exists()
    before = Path("a run/results.json").read_bytes()
    run = train("--out", "a run", "--resume")
    assert (run.status, run.err) == (0, "")
    assert run.out == "a run is finished: nothing is left to do\n"
    assert Path("a run/results.json").read_bytes() == before


def stop(train: Command, stopping: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Leave a run in the folder `run` with its last three checkpoints; return these."""
    assert train(*stopping, "--out", "whole", "--quiet").status == 0
    monkeypatch.setattr(Stopping, "steps", 0)
    monkeypatch.setattr(Stopping, "stop_at", 400)
    run = train(*stopping, "--out", "run", "--quiet", "--checkpoint-seconds", "0")
    assert run.status == 130
    paths = numbered("run/checkpoints")
    assert len(paths) == 3
    return paths


def test_a_damaged_checkpoint_is_passed_over(
    train: Command, stopping: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = stop(train, stopping, monkeypatch)
    os.truncate(paths[-1] / TENSORS, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run = train("--out", "run", "--resume")
    assert run.status == 0
    assert f"warning: the checkpoint {paths[-1]} is passed over: " in run.err
    assert run.err.count("\n") == 1
    assert f"from {int(paths[-2].name)} episodes on" in run.out
    assert outcome(Path("run")) == outcome(Path("whole"))


def test_what_cannot_go_on_is_one_clear_line(
    train: Command, stopping: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = stop(train, stopping, monkeypatch)
    for options, message in (
        (["--seed", "4"], "--seed is 4, but the run to go on with has 0: leave it out"),
        (["--env", "CartPole-v1"], "--env is CartPole-v1, but the run"),
        (["--preset", "15/9"], "--env is awsgd_rl/TrapGridworld-15-9-v0, but the run"),
        (["--algo", "reinforce"], "--algo is reinforce, but the run"),
        (["--learning-rate", "0.5"], "--learning-rate is 0.5, but the run"),
        (["--total-timesteps", "5"], "--total-timesteps is 5, but the run"),
        (["--env-kwargs", '{"a": 1}'], "--env-kwargs is"),
        (["--overwrite"], "--resume and --overwrite are both given"),
    ):
        run = train("--out", "run", "--resume", *options)
        assert run.status == 2
        assert message in run.err
        assert run.err.count("\n") == 1
    about = json.loads((paths[-1] / ABOUT).read_text())
    (paths[-1] / ABOUT).write_text(json.dumps(about | {"schema": 2}))
    run = train("--out", "run", "--resume")
    assert run.status == 2
    assert "newer awsgd-rl" in run.err
    for path in paths:
        (path / ABOUT).write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train("--out", "run", "--resume")
    assert run.status == 2
    assert "holds 3 checkpoints, all of them damaged" in run.err
    for path in paths:
        (path / ABOUT).unlink()
        (path / TENSORS).unlink()
        path.rmdir()
    run = train("--out", "run", "--resume")
    assert run.status == 2
    assert "checkpoints is gone: start again with --overwrite" in run.err
    # What was given with the same meaning is no other setting.
    Path("run/monitor.csv").unlink()  # as if it had been killed before it began
    same = ["--algo", "awsgd", "--env", "test/Stopping-v0", "--total-episodes", "64"]
    run = train("--out", "run", "--resume", *same, "--env-kwargs", "{ }")
    assert (run.status, run.err) == (0, "")
    assert read_results("run")["summary"] == read_results("whole")["summary"]


def test_resume_without_a_run_to_go_on_with(train: Command) -> None:
    for options, message in (
        (["--resume"], "pass its folder with --out"),
        (["--resume", "--out", "nowhere"], "holds no config.json"),
        (["--checkpoint-seconds", "-1"], "--checkpoint-seconds is -1"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints is 0"),
    ):
        run = train(*options)
        assert run.status == 2
        assert message in run.err
        assert run.err.count("\n") == 1
    assert not any(Path().iterdir())
    argv = ["--algo", "a2c", *TABLE[:-4], "--total-episodes", "5", "--eval-episodes", "0"]
    assert train(*argv, "--out", "a2c", "--quiet").status == 0
    Path("a2c/results.json").unlink()
    run = train("--out", "a2c", "--resume")
    assert run.status == 2
    assert "checkpoints is gone: start again with --overwrite" in run.err


def test_a_full_disk_is_a_warning_and_no_more(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*TABLE, "--out", "whole", "--quiet").status == 0
    fsync, calls = os.fsync, []

    def full_from_the_second_checkpoint_on(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if f"/checkpoints/.{0:012d}" not in name and ".partial/training" in name:
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_from_the_second_checkpoint_on)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run = train(*TABLE, "--out", "run", "--quiet", "--checkpoint-seconds", "0")
    assert run.status == 0
    assert "warning: no checkpoint could be written ([Errno 28] No space left" in run.err
    assert "the last one is run/checkpoints/000000000000, and the training goes on" in run.err
    assert len(calls) == 5  # six batches, and none after the last
    assert outcome(Path("run")) == outcome(Path("whole"))


def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        run = train(*TABLE, "--out", "run")
    assert run.status == 2
    assert "Read-only file system" in run.err
    assert run.err.count("\n") == 1
    assert not Path("run").exists()


def start(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start `awsgd-rl train` as a process of its own."""
    command = [sys.executable, "-m", "awsgd_rl.cli", "train", "--out", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def rows(folder: Path) -> int:
    path = folder / "monitor.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("table", 2), ("mlp", 1)])
def test_a_run_killed_at_random_moments_ends_as_one_never_stopped(
    train: Command, tmp_path: Path, kind: str, times: int
) -> None:
    options = {"table": [*TABLE[:2], "--total-episodes", "1500"], "mlp": MLP}[kind]
    assert train(*options, "--seed", "1", "--out", "whole", "--quiet").status == 0
    total = rows(tmp_path / "whole")
    rng = np.random.default_rng(5)
    run = tmp_path / "run"
    kills = 0
    process = start(run, *options, "--seed", "1", "--checkpoint-seconds", "0")
    # Where in the training is drawn, and when exactly within that batch; not so late that on a busy
    # machine the run may have ended before it is seen to be there.
    for at in np.sort(rng.integers(1, total // 2, size=times)):
        while rows(run) < at and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.02))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process = start(run, "--resume", "--checkpoint-seconds", "0")
    assert process.wait(timeout=300) == 0
    assert kills == times
    assert outcome(run) == outcome(tmp_path / "whole")
