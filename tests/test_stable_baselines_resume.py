"""Stable-Baselines3's algorithms, and ours on them, go on where they were stopped."""

import csv
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from awsgd_rl import cli
from awsgd_rl.agents.checkpoints import Checkpoints, newest, numbered
from awsgd_rl.agents.stable_baselines import StableBaselines
from awsgd_rl.agents.stable_baselines_random import random_states
from awsgd_rl.agents.training_file import ABOUT, REPLAY, TENSORS, sealed
from awsgd_rl.runs import read_results

GRID = "awsgd_rl/TrapGridworld-v0"
REPLAYED = {"buffer_size": 150, "learning_starts": 20, "batch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "a2c": {"n_envs": 2},
    "ppo": {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "reward_scale": 0.5},
    "dqn": {**REPLAYED, "n_steps": 3, "exploration_fraction": 0.9},
    "sac": {**REPLAYED, "train_freq": 4},
    "td3": {**REPLAYED, "train_freq": 4, "n_envs": 2},
    "prioritized-dqn": {**REPLAYED, "n_envs": 2, "n_steps": 2},
    "prioritized-sac": {**REPLAYED, "train_freq": 4, "ent_coef": "0.1"},
    "prioritized-td3": {**REPLAYED, "train_freq": 4, "proposal": "two-stage"},
}
TOTAL = 300


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(algorithm: str, *, seed: int = 3, env: Any = None, **more: Any) -> Any:
    if env is None:
        continuous = algorithm.endswith(("sac", "td3"))
        env = (
            gym.make("Pendulum-v1", max_episode_steps=10)
            if continuous
            else gym.make(GRID, size=3, traps=1, horizon=12)
        )
    options = {**KINDS[algorithm], **more}
    return StableBaselines(algorithm, "MlpPolicy", env, seed=seed, device="cpu", **options)


def transitions(agent: Any) -> dict[str, Any]:
    """What the replay buffer holds."""
    buffer = getattr(agent.model, "replay_buffer", None)
    if buffer is None:
        return {}
    if hasattr(buffer, "core"):
        ring, proposal = buffer.core._ring, buffer.core.proposal
        found = {
            "added": ring.added,
            "memory": ring.memory[: ring.size].numpy().tobytes(),
            "generator": buffer.core.generator.get_state().numpy().tobytes(),
        }
        if proposal is not None:
            found["priorities"] = proposal.tree.scores[: ring.size].tolist()
    else:
        names = ("observations", "next_observations", "actions", "rewards", "dones")
        found = {name: getattr(buffer, name)[: buffer.size()].tobytes() for name in names}
    return {**found, "pos": buffer.pos, "full": buffer.full, "size": buffer.size()}


def everything(agent: Any) -> Any:
    """All that is saved, but for the global generators."""
    model = agent.model
    names = ("_n_updates", "_n_calls", "_episode_num", "exploration_rate")
    history = {name: np.array(column, float).tobytes() for name, column in agent.history.items()}
    states = random_states(agent)
    return (
        {name: x.numpy().tobytes() for name, x in agent._state().items()},
        {name: getattr(model, name, None) for name in (*names, "_current_progress_remaining")},
        (agent.num_timesteps, agent.num_episodes, agent.seed, history),
        {name: states[name] for name in ("actions", "observations", "environments")},
        transitions(agent),
        {**agent.log_position(), "monitor_rows": 0},
    )


def draws() -> Any:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


def monitor_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "monitor.csv").open() as file:
        assert file.readline().startswith("#")
        return list(csv.DictReader(file))


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


SLOW = {"sac", "td3", "prioritized-sac"}


@pytest.mark.parametrize(
    "algorithm", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS]
)
def test_a_stopped_training_goes_on(algorithm: str, tmp_path: Path) -> None:
    stopped = make(algorithm)
    stopped.learn(TOTAL, callback=lambda agent: agent.num_timesteps < 180)
    stopped.save_training(tmp_path / "a")
    at = stopped.num_timesteps
    assert 180 <= at < TOTAL
    before = everything(stopped)
    # Stopping is between two batches: no step is made of which nothing is learned.
    assert stopped.history["timesteps"][-1] == at
    drawn = draws()

    going_on = make(algorithm, seed=8)
    going_on.learn(40)  # whatever it has learned and drawn is replaced
    going_on.restore_training(tmp_path / "a")
    assert draws() == drawn
    assert everything(going_on) == before
    going_on.save_training(tmp_path / "b")
    assert load_file(tmp_path / "b" / TENSORS).keys() == load_file(tmp_path / "a" / TENSORS).keys()

    # To the same number of steps and updates as one that was never stopped.
    whole = make(algorithm).learn(TOTAL)
    going_on.learn(TOTAL - at)
    assert going_on.num_timesteps == whole.num_timesteps
    assert going_on.model._n_updates == whole.model._n_updates
    episodes, timesteps = going_on.history["episodes"], going_on.history["timesteps"]
    assert episodes == sorted(set(episodes))
    assert timesteps == sorted(set(timesteps))
    assert [math.isfinite(x) for x in going_on.history["ess"]][-1:] == [
        algorithm.startswith("prioritized")
    ]


@pytest.mark.parametrize("algorithm", ["ppo", "prioritized-dqn"])
def test_what_was_logged_later_is_cut_off(algorithm: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def agent() -> Any:
        return make(algorithm, log_dir=tmp_path, tensorboard_log=tmp_path)

    killed = agent()
    killed.save_training(tmp_path / "0")
    checkpoints = Checkpoints(tmp_path / "c", seconds=0, keep=50)
    killed.learn(total_episodes=30, callback=checkpoints)
    first = numbered(tmp_path / "c")[1]
    for path in (tmp_path / "0", first):
        going_on = agent()
        going_on.restore_training(path)
        rows = going_on.num_episodes
        kept = monitor_rows(tmp_path)[:rows]
        going_on.learn(total_episodes=40 - rows)
        assert going_on.num_episodes == 40
        now = monitor_rows(tmp_path)
        assert now[:rows] == kept
        assert len(now) == 40 == going_on.monitor_rows
        times = [float(row["t"]) for row in now]
        assert times == sorted(times)
        assert [path.name for path in tmp_path.glob(f"{algorithm}_*")] == [f"{algorithm}_1"]
        events = EventAccumulator(str(tmp_path / f"{algorithm}_1"))
        events.Reload()
        steps = [event.step for event in events.Scalars("rollout/ep_len_mean")]
        assert steps == sorted(set(steps))
        assert steps[-1] > 30


def test_numpy_numbers_are_restored(tmp_path: Path) -> None:
    numbers = {"batch_size": np.int64(8), "learning_rate": np.float32(1e-3)}
    first, second = (make("dqn", seed=np.int64(3), **numbers) for _ in range(2))
    first.learn(60).save_training(tmp_path / "a")
    second.restore_training(tmp_path / "a")
    assert everything(second) == everything(first)


def test_environments_do_not_begin_again(tmp_path: Path) -> None:
    """Their generators go on: what begins is not what began at first."""
    agent = make("dqn", env=gym.make("CartPole-v1", max_episode_steps=10))
    agent.learn(100)
    agent.save_training(tmp_path / "a")
    again = make("dqn", env=gym.make("CartPole-v1", max_episode_steps=10))
    again.restore_training(tmp_path / "a")
    generator = again.env.unwrapped.np_random
    expected = np.random.Generator(np.random.PCG64(0))
    expected.bit_generator.state = generator.bit_generator.state
    again.learn(1)
    first = again.model.replay_buffer.observations[100, 0]
    np.testing.assert_allclose(first, expected.uniform(-0.05, 0.05, 4), rtol=1e-6)


def test_exploration_goes_on_from_its_share_of_the_episodes(tmp_path: Path) -> None:
    agent = make("dqn", exploration_fraction=1.0, exploration_final_eps=0.01)
    agent.learn(total_episodes=60, callback=lambda agent: agent.num_episodes < 30)
    agent.save_training(tmp_path / "a")
    rates: list[float] = []
    again = make("dqn", exploration_fraction=1.0, exploration_final_eps=0.01)
    again.restore_training(tmp_path / "a")
    assert again.model.exploration_rate == agent.model.exploration_rate
    again.learn(total_episodes=30, callback=lambda a: rates.append(a.model.exploration_rate))
    assert again.model.exploration_rate == pytest.approx(0.01, abs=1e-3)
    assert max(rates) < 0.6


def test_returns_of_several_steps_end_where_the_training_was_stopped(tmp_path: Path) -> None:
    agent = make("dqn", env=gym.make("CartPole-v1", max_episode_steps=500), n_steps=3)
    agent.learn(100, callback=lambda agent: agent.num_timesteps < 60)
    agent.save_training(tmp_path / "a")
    buffer = agent.model.replay_buffer
    buffer.dones[buffer.pos - 1] = 0.0
    agent.save_training(tmp_path / "a")
    again = make("dqn", env=gym.make("CartPole-v1", max_episode_steps=500), n_steps=3)
    again.restore_training(tmp_path / "a")
    last = again.model.replay_buffer.pos - 1
    again.learn(8)
    samples = again.model.replay_buffer._get_samples(np.array([last]))
    assert samples.rewards.tolist() == [[1.0]]  # of one step: the next one is of another episode
    assert samples.dones.tolist() == [[0.0]]


def test_a_full_disk_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make("prioritized-dqn")
    checkpoints = Checkpoints(tmp_path, seconds=0)
    agent.learn(total_episodes=5, callback=checkpoints)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(RuntimeWarning, match="No space left on device.*; the last one is"):
            agent.learn(total_episodes=5, callback=checkpoints)
    assert agent.num_episodes >= 10
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_the_wait_is_longer_after_a_checkpoint_that_took_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("awsgd_rl.agents.checkpoints.time.monotonic", lambda: now[0])

    class Agent:
        num_episodes = 0

        def save_training(self, path: Path) -> None:
            now[0] += 10.0
            path.mkdir(parents=True)

    agent: Any = Agent()
    checkpoints = Checkpoints(tmp_path, seconds=60)
    written = []
    for wait in (59.0, 1.0, 60.0, 139.0, 1.0):
        now[0] += wait
        agent.num_episodes += 1
        checkpoints(agent)
        written.append(checkpoints.last is not None and int(checkpoints.last.name))
    assert written == [False, 2, 2, 2, 5]  # after 60 seconds, and then after 20 times 10
    eager = Checkpoints(tmp_path / "eager", seconds=0)
    for agent.num_episodes in (1, 2, 3):
        eager(agent)
        assert eager.last is not None
        assert int(eager.last.name) == agent.num_episodes


def test_a_second_learn_keeps_the_first_ones_log(tmp_path: Path) -> None:
    agent = make("a2c", log_dir=tmp_path)
    agent.learn(total_episodes=5)
    agent.learn(total_episodes=5)
    assert len(monitor_rows(tmp_path)) == agent.num_episodes


def test_a_foreign_monitor_file_is_refused(tmp_path: Path) -> None:
    agent = make("a2c", log_dir=tmp_path)
    agent.learn(total_episodes=5)
    (tmp_path / "monitor.csv").write_text("a,b\n" * 30)
    with pytest.raises(ValueError, match="is not a monitor file"):
        agent.learn(total_episodes=5)


# Damaged, foreign and unfitting files


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for algorithm in ("a2c", "dqn", "prioritized-dqn"):
        make(algorithm).learn(60).save_training(folder / algorithm)
    return folder


def rewrite(path: Path, change: Any) -> None:
    """Change a training state as somebody would who makes its sizes and digests right."""
    about = json.loads((path / ABOUT).read_text())
    tensors = load_file(path / TENSORS)
    changed = change(about, tensors)
    about = changed if isinstance(changed, dict) else about
    (path / TENSORS).write_bytes(save(tensors))
    sign(path, about)


def sign(path: Path, about: dict[str, Any]) -> None:
    def sums(name: str) -> dict[str, Any]:
        data = (path / name).read_bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    about |= sums(TENSORS)
    if "replay" in about and (path / REPLAY).exists():
        about["replay"] = sums(REPLAY)
    (path / ABOUT).write_text(json.dumps(sealed(about)))


def assert_refused(path: Path, match: str, algorithm: str, agent: Any = None) -> None:
    agent = make(algorithm).learn(30) if agent is None else agent
    before = everything(agent)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=match) as error:
        agent.restore_training(path)
    assert "\n" not in str(error.value)
    assert everything(agent) == before
    assert torch.initial_seed() == 0


def test_what_is_cut_short_or_changed_is_refused(originals: Path, tmp_path: Path) -> None:
    agent = make("prioritized-dqn").learn(30)
    for name in (ABOUT, TENSORS, REPLAY):
        path = tmp_path / name
        shutil.copytree(originals / "prioritized-dqn", path)
        size = (path / name).stat().st_size
        if name != ABOUT:
            data = bytearray((path / name).read_bytes())
            data[-10] ^= 1
            (path / name).write_bytes(data)
            assert_refused(path, "SHA-256 differs", "prioritized-dqn", agent)
        os.truncate(path / name, size // 2)
        assert_refused(path, "cut short|cannot be read", "prioritized-dqn", agent)
        (path / name).unlink()
        assert_refused(path, f"{name}.* cannot be read", "prioritized-dqn", agent)


def test_a_damaged_buffer_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, seconds=0)
    make("dqn").learn(total_episodes=10, callback=checkpoints)
    paths = numbered(tmp_path)
    os.truncate(paths[-1] / REPLAY, 100)
    with pytest.warns(RuntimeWarning, match=f"{paths[-1].name} is passed over: .*{REPLAY}"):
        assert newest(tmp_path) == paths[-2]


def test_a_newer_version_is_refused(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "a2c", tmp_path / "a")
    rewrite(tmp_path / "a", lambda about, _: about | {"schema": 2})
    assert_refused(tmp_path / "a", "newer awsgd-rl .schema 2, this one reads 1.", "a2c")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("algorithm", ["dqn", "prioritized-dqn"])
def test_a_renamed_pickle_does_not_run(originals: Path, tmp_path: Path, algorithm: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "a"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # that is what it does
    mark.unlink()
    agent = make(algorithm).learn(30)
    for name in (TENSORS, REPLAY):
        shutil.copytree(originals / algorithm, path)
        (path / name).write_bytes(bomb)
        sign(path, json.loads((path / ABOUT).read_text()))
        assert_refused(path, "no whole safetensors file", algorithm, agent)
        shutil.rmtree(path)
    assert not mark.exists()


def test_numbers_that_do_not_fit_are_refused(originals: Path, tmp_path: Path) -> None:
    def generators(about: Any) -> Any:
        return about["random"]

    agents = {kind: make(kind).learn(30) for kind in ("a2c", "dqn")}
    path = tmp_path / "a"
    for kind, change in (
        ("a2c", lambda _, tensors: tensors.pop("state.optimizer.0.square_avg")),
        ("a2c", lambda _, tensors: tensors.update({"state.surplus": torch.zeros(1)})),
        ("a2c", lambda _, tensors: tensors.update({"history.ess": torch.zeros(0).double()})),
        ("a2c", lambda _, tensors: tensors["random.cpu"].fill_(255)),
        ("a2c", lambda about, _: about.update(replay={"bytes": 0, "sha256": ""})),
        ("a2c", lambda about, _: about.update(log={"timesteps": 3})),
        ("a2c", lambda about, _: about.update(num_timesteps=-1)),
        ("a2c", lambda about, _: about.update(history=["episodes"])),
        ("a2c", lambda about, _: about.update(random=None)),
        ("a2c", lambda about, _: about["model"].update(_n_updates=-1)),
        ("a2c", lambda about, _: about["model"].pop("_n_updates")),
        ("a2c", lambda about, _: about.update(diagnostics={"policy": 1.0})),
        ("a2c", lambda about, _: generators(about)["numpy"]["state"].update(pos=10**6)),
        ("a2c", lambda about, _: generators(about)["numpy"]["state"]["key"].pop()),
        ("a2c", lambda about, _: generators(about)["python"][1].pop()),
        ("a2c", lambda about, _: generators(about).update(actions={})),
        ("a2c", lambda about, _: generators(about).update(environments=[])),
        ("dqn", lambda about, _: about.pop("replay")),
        ("dqn", lambda about, _: about["model"].update(exploration_rate=7.0)),
        ("dqn", lambda about, _: generators(about).update(environments=[{}, {}])),
    ):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(originals / kind, path)
        rewrite(path, change)
        assert_refused(path, "damaged|does not fit|cannot be read", kind, agents[kind])


def test_a_buffer_that_does_not_fit_is_refused(originals: Path, tmp_path: Path) -> None:
    from awsgd_rl.agents import stable_baselines_replay

    path = tmp_path / REPLAY
    header = stable_baselines_replay._HEADER
    buffer = make("dqn").model.replay_buffer
    original = load_file(originals / "dqn" / REPLAY)
    size = len(original["rewards"])
    for change, position, match in (
        (lambda tensors: tensors.pop("dones"), {}, "holds"),
        (lambda tensors: tensors.update(dones=tensors["dones"].double()), {}, "dones is F64"),
        (lambda tensors: tensors.update(dones=torch.zeros(size + 1, 1)), {}, "dones is F32"),
        (lambda _: None, {"pos": 10**6}, "filled up to"),
        (lambda _: None, {"pos": True}, "filled up to"),
        (lambda _: None, {"full": 1}, "filled up to"),
        (lambda _: None, {"full": True}, "expected F32 of shape|expected I64 of shape"),
    ):
        tensors = dict(original)
        change(tensors)
        text = json.dumps({"pos": size, "full": False, **position})
        path.write_bytes(save(tensors, {header: text}))
        with pytest.raises(ValueError, match=match):
            stable_baselines_replay.read(buffer, path)
        assert buffer.pos == 0
    path.write_bytes(save(original))
    with pytest.raises(ValueError, match="holds no replay buffer"):
        stable_baselines_replay.read(buffer, path)


def test_an_agent_made_otherwise_is_refused(originals: Path) -> None:
    a2c, other = originals / "a2c", gym.make(GRID, size=4, traps=1, horizon=12)
    assert_refused(a2c, "gamma=0.99, expected 0.5", "a2c", make("a2c", gamma=0.5).learn(20))
    assert_refused(a2c, "saved with algorithm 'a2c', expected 'ppo'", "ppo")
    assert_refused(a2c, "saved with env", "a2c", make("a2c", env=other).learn(20))


# awsgd-rl train --resume


OPTIONS = {
    "ppo": [
        *("--algo", "ppo", "--env", "CartPole-v1", "--n-steps", "64", "--batch-size", "32"),
        *("--total-timesteps", "1000", "--eval-episodes", "2"),
    ],
    "prioritized-dqn": [
        *("--algo", "prioritized-dqn", "--env", "CartPole-v1", "--buffer-size", "5000"),
        *("--total-timesteps", "1000", "--eval-episodes", "2"),
    ],
}


def assert_whole(folder: Path, total: int) -> None:
    results = read_results(folder)
    episodes = results["summary"]["num_episodes"]
    assert results["summary"]["num_timesteps"] == total
    rows = monitor_rows(folder)
    assert len(rows) == episodes
    assert sum(int(row["l"]) for row in rows) <= total
    history = json.loads((folder / "history.json").read_text())
    assert history["episodes"] == sorted(set(history["episodes"]))
    assert history["episodes"][-1] == episodes
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [total]
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_ctrl_c_and_on(
    algorithm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_row = "stable_baselines3.common.monitor.ResultsWriter.write_row"
    from stable_baselines3.common.monitor import ResultsWriter

    original, count = ResultsWriter.write_row, []

    def interrupting(writer: Any, row: Any) -> None:
        original(writer, row)
        count.append(row)
        if len(count) == 10:
            signal.raise_signal(signal.SIGINT)

    options = [*OPTIONS[algorithm], "--total-timesteps", "512", "--checkpoint-seconds", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(write_row, interrupting)
        assert cli.main(["train", *options, "--out", "run", "--quiet"]) == 130
    assert "go on with: awsgd-rl train --out run --resume" in capsys.readouterr().err
    paths = numbered("run/checkpoints")
    os.truncate(paths[-1] / TENSORS, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["train", "--out", "run", "--resume"]) == 0
    captured = capsys.readouterr()
    assert f"the checkpoint {paths[-1]} is passed over" in captured.err
    assert f"from {int(paths[-2].name)} episodes on" in captured.out
    assert_whole(Path("run"), 512)


def start(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start `awsgd-rl train` as a process of its own."""
    command = [sys.executable, "-m", "awsgd_rl.cli", "train", "--out", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", OPTIONS)
def test_a_killed_run_goes_on(algorithm: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *OPTIONS[algorithm], "--checkpoint-seconds", "0")
    monitor = run / "monitor.csv"
    try:
        # Lines, not rows: the run may be in the middle of writing the first.
        while process.poll() is None and not (monitor.exists() and lines(monitor) > 14):
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    process = start(run, "--resume")
    assert process.wait(timeout=300) == 0
    total = 1024 if algorithm == "ppo" else 1000
    assert_whole(run, total)
