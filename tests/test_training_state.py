"""A training that goes on from its state is the one that was never stopped, bit for bit."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv
from safetensors.torch import load_file, save, save_file

from awsgd_rl.agents import make_agent
from awsgd_rl.agents.checkpoints import Checkpoints, newest, numbered
from awsgd_rl.agents.rollout import EpisodeCollector
from awsgd_rl.agents.training_file import ABOUT, TENSORS, DamagedError, sealed

GRID = "awsgd_rl/TrapGridworld-v0"
SMALL = {"size": 4, "traps": 2, "horizon": 20}
SLIPPERY = {**SMALL, "slip": 0.2}

KINDS: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "awsgd": ("awsgd", "TablePolicy", GRID, SMALL, {}),
    "awsgd-slips": ("awsgd", "TablePolicy", GRID, SLIPPERY, {}),
    "awsgd-returns": ("awsgd", "TablePolicy", GRID, SMALL, {"critic": False}),
    "awsgd-mixture": ("awsgd", "TablePolicy", GRID, SMALL, {"variant": "mixture"}),
    "awsgd-paper": (
        "awsgd",
        "TablePolicy",
        GRID,
        SMALL,
        {"variant": "paper", "learning_rate": 0.1},
    ),
    "reinforce": ("reinforce", "TablePolicy", GRID, SMALL, {"updates": 3}),
    "table-elsewhere": ("awsgd", "TablePolicy", "FrozenLake-v1", {}, {"updates": 2, "horizon": 8}),
    "mlp": ("awsgd", "MlpPolicy", "CartPole-v1", {}, {"updates": 2, "horizon": 12}),
    "mlp-mixture": (
        *("awsgd", "MlpPolicy", "CartPole-v1", {}),
        {"variant": "mixture", "updates": 2, "horizon": 12},
    ),
    "mlp-box": ("awsgd", "MlpPolicy", "Pendulum-v1", {}, {"updates": 2, "horizon": 8}),
    "mlp-slips": ("awsgd", "MlpPolicy", GRID, SLIPPERY, {"updates": 2}),
    "mlp-reinforce": ("reinforce", "MlpPolicy", "Acrobot-v1", {}, {"updates": 2, "horizon": 8}),
}


def make(kind: str, seed: int = 3, **more: Any) -> Any:
    algorithm, policy, env, kwargs, options = KINDS[kind]
    logs = {name: more.pop(name) for name in ("log_dir", "tensorboard_log") if name in more}
    settings = {"batch_size": 4, "memory": 10, "n_envs": 3, **options, **more}
    if algorithm == "reinforce":
        del settings["memory"]
    return make_agent(
        algorithm, policy, gym.make(env, **kwargs), seed=seed, device="cpu", **logs, **settings
    )


def everything(agent: Any) -> tuple[dict[str, bytes], Any]:
    """All tensors as bytes (so that nan is nan), and all other values."""
    tensors, values = agent.learner.training_state()
    tensors = {**tensors, "generator": agent.generator.get_state()}
    for name, module in agent.modules().items():
        tensors |= {f"{name}.{key}": x for key, x in module.state_dict().items()}
    history = {name: np.array(column).tobytes() for name, column in agent.history.items()}
    counts = agent.num_episodes, agent.num_timesteps, agent.seed, list(agent.history)
    return {name: x.numpy().tobytes() for name, x in tensors.items()} | history, (values, counts)


SLOW = {"awsgd-returns", "mlp-mixture", "mlp-reinforce"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS]
)
def test_a_restored_training_ends_as_one_never_stopped(kind: str, tmp_path: Path) -> None:
    stopped = make(kind)
    stopped.learn(total_episodes=6)
    stopped.save_training(tmp_path / "a")
    going_on = make(kind, seed=8)  # whatever it has learned and drawn is replaced
    going_on.learn(total_episodes=4)
    going_on.restore_training(tmp_path / "a")
    assert everything(going_on) == everything(stopped)
    going_on.learn(total_episodes=6)
    going_on.save_training(tmp_path / "b")
    last = make(kind)
    last.restore_training(tmp_path / "b")
    last.learn(total_episodes=6)
    # Batches of 4 and 2, three times: what ended each `learn` of the stopped one.
    same = make(kind)
    for _ in range(3):
        same.learn(total_episodes=6)
    assert everything(last) == everything(same)


@pytest.mark.parametrize("kind", ["awsgd", "mlp"])
def test_saving_changes_nothing(kind: str, tmp_path: Path) -> None:
    plain, saving = make(kind), make(kind)
    plain.learn(total_episodes=16)
    saving.learn(total_episodes=16, callback=Checkpoints(tmp_path, seconds=0))
    assert everything(saving) == everything(plain)
    again = make(kind)
    again.restore_training(tmp_path / f"{12:012d}")
    again.learn(total_episodes=4)
    assert everything(again) == everything(plain)


@pytest.mark.parametrize("kind", ["awsgd", "mlp"])
def test_a_training_that_has_not_begun_is_restored(kind: str, tmp_path: Path) -> None:
    first = make(kind)
    first.save_training(tmp_path / "a")
    second = make(kind, seed=5)
    second.restore_training(tmp_path / "a")
    for agent in (first, second):
        agent.learn(total_timesteps=100)
    assert everything(second) == everything(first)


@pytest.mark.parametrize("kind", ["awsgd", "mlp"])
def test_numpy_numbers_are_restored(kind: str, tmp_path: Path) -> None:
    numbers = {"memory": np.int64(9), "value_rate": np.float32(0.1), "ratio_clip": np.inf}
    first, second = (make(kind, seed=np.int64(3), **numbers) for _ in range(2))
    first.learn(total_episodes=np.int64(8)).save_training(tmp_path / "a")
    second.restore_training(tmp_path / "a")
    assert everything(second) == everything(first)


class Coin(gym.Env[Any, Any]):
    """One step; what is seen is drawn from `np_random`, which goes on from episode to episode."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.random(1).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.random(1).astype(np.float32), 1.0, True, False, {}


def test_an_environment_without_spec_goes_on_with_its_own_generator(tmp_path: Path) -> None:
    def agent() -> Any:
        return make_agent("awsgd", "MlpPolicy", Coin(), seed=1, horizon=5, device="cpu", updates=1)

    whole, stopped, going_on = agent(), agent(), agent()
    whole.learn(total_episodes=24)
    stopped.learn(total_episodes=16).save_training(tmp_path / "a")
    going_on.restore_training(tmp_path / "a")
    going_on.learn(total_episodes=8)
    assert everything(going_on) == everything(whole)


def test_environments_out_of_reach_are_seeded_anew() -> None:
    envs = AsyncVectorEnv([Coin, Coin])
    try:
        collector = EpisodeCollector(envs, 5, seed=7)
        states = []
        for _ in range(2):
            collector.collect(np.zeros(2, bool), lambda seen, _: (np.zeros(len(seen), int),) * 2)
            states.append(collector.training_state())
        assert [state["environment"] for state in states] == [None, None]
        seeds = [state["seed"] for state in states]
        assert len({7, *seeds}) == 3
        collector.check_training_state(states[0])
        collector.restore_training(states[0])
        assert collector.training_state() == states[0]
    finally:
        envs.close()


# Damaged, foreign and unfitting files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make("awsgd").learn(total_episodes=8).save_training(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(path: Path, change: Any) -> None:
    """Change a training state as somebody would who makes its size and digest right."""
    about = json.loads((path / ABOUT).read_text())
    tensors = load_file(path / TENSORS)
    changed = change(about, tensors)
    about = changed if isinstance(changed, dict) else about
    data = tensors.pop("raw") if "raw" in tensors else save(tensors)
    (path / TENSORS).write_bytes(data)
    about |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / ABOUT).write_text(json.dumps(sealed(about)))


def assert_refused(path: Path, match: str, kind: str = "awsgd", **more: Any) -> None:
    agent = make(kind, **more)
    agent.learn(total_episodes=4)
    before = everything(agent)
    with pytest.raises(ValueError, match=match) as error:
        agent.restore_training(path)
    assert "\n" not in str(error.value)
    assert everything(agent) == before


@pytest.mark.parametrize("name", [ABOUT, TENSORS])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_what_is_cut_short_is_refused(saved: Path, name: str, left: float) -> None:
    size = (saved / name).stat().st_size
    os.truncate(saved / name, int(left * size))
    assert_refused(saved, "cut short|cannot be read")


@pytest.mark.parametrize("name", [ABOUT, TENSORS])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert_refused(saved, f"{name}.* cannot be read")


def test_a_changed_byte_is_refused(saved: Path) -> None:
    data = bytearray((saved / TENSORS).read_bytes())
    data[-100] ^= 1
    (saved / TENSORS).write_bytes(data)
    assert_refused(saved, "SHA-256 differs")


def test_a_changed_digit_is_refused(saved: Path) -> None:
    about = json.loads((saved / ABOUT).read_text())
    (saved / ABOUT).write_text(json.dumps({**about, "num_episodes": 9}))
    assert_refused(saved, f"{ABOUT} is not as it was written: its SHA-256 differs")


def test_a_newer_version_is_refused(saved: Path) -> None:
    rewrite(saved, lambda about, _: about | {"schema": 2})
    assert_refused(saved, "newer awsgd-rl .schema 2, this one reads 1.: upgrade")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_pickle_in_a_checkpoints_clothes_does_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # that is what it does
    mark.unlink()
    rewrite(saved, lambda _, tensors: tensors.update(raw=bomb))
    assert_refused(saved, "no whole safetensors file")
    torch.save({"a": Bomb(mark)}, saved / TENSORS)
    data = (saved / TENSORS).read_bytes()
    rewrite_raw = json.loads((saved / ABOUT).read_text())
    rewrite_raw |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (saved / ABOUT).write_text(json.dumps(sealed(rewrite_raw)))
    assert_refused(saved, "no whole safetensors file")
    (saved / ABOUT).write_bytes(bomb)
    assert_refused(saved, "cannot be read")
    assert not mark.exists()


def test_a_header_that_promises_terabytes_takes_no_memory(saved: Path) -> None:
    shape = [2**40]
    header = {"learner.values": {"dtype": "F64", "shape": shape, "data_offsets": [0, 2**43]}}
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + bytes(64)
    rewrite(saved, lambda _, tensors: tensors.update(raw=raw))
    assert_refused(saved, "no whole safetensors file")
    with (saved / ABOUT).open("wb") as file:
        file.truncate(2**33)  # a hole: takes no disk
    assert_refused(saved, "more than 16777216 bytes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learner.target.logits", torch.zeros(17, 4, dtype=torch.float64)),
        ("learner.values", torch.zeros(16)),
        ("learner.memory.sums", torch.zeros(3, 4, 2, dtype=torch.float64)),
        ("table.scores", torch.zeros(11, dtype=torch.float64)),
        ("generator", torch.zeros(16, dtype=torch.uint8)),
        ("learner.surplus", torch.zeros(1)),
    ],
)
def test_other_shapes_are_refused(saved: Path, name: str, value: torch.Tensor) -> None:
    rewrite(saved, lambda _, tensors: tensors.update({name: value}))
    assert_refused(saved, f"does not fit this agent: '{name}'")


def test_numbers_that_would_leave_the_memory_are_refused(saved: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(saved, original)

    def damage(name: str, index: int, value: float) -> Any:
        def change(_: Any, tensors: dict[str, Any]) -> None:
            tensors[name].view(-1)[index] = value

        return change

    for change in (
        damage("learner.memory.state", 0, 16),
        damage("learner.memory.state", 0, -1),
        damage("learner.memory.size", 0, 10**6),
        damage("table.filled_slots", 0, 11),
        damage("table.scores", 0, float("nan")),
        lambda about, _: about["learner"]["memory"].update(next=10),
        lambda about, _: about["learner"].update(generator={"bit_generator": "PCG64"}),
        lambda about, _: about["learner"].update(memory=None),
        lambda about, _: about.update(num_episodes=-1),
        lambda about, _: about.update(log={"timesteps": 3}),
        lambda about, _: about.update(learner=None),
        lambda about, _: about.update(history="ess"),
        lambda _, tensors: tensors.update({"history.ess": torch.zeros(9, dtype=torch.float64)}),
    ):
        shutil.rmtree(saved)
        shutil.copytree(original, saved)
        rewrite(saved, change)
        assert_refused(saved, "damaged|does not fit")


def test_numbers_of_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make("mlp-slips").learn(total_episodes=8).save_training(tmp_path / "original")
    saved = tmp_path / "saved"
    memory = "learner.memory."

    def collector(about: Any) -> Any:
        return about["learner"]["collector"]

    for change in (
        lambda _, tensors: tensors[f"{memory}lengths"].fill_(10**9),
        lambda _, tensors: tensors[f"{memory}observations"].fill_(99),
        lambda _, tensors: tensors[f"{memory}actions"].fill_(-1),
        lambda _, tensors: tensors.update({f"{memory}success": torch.zeros(1).double()}),
        lambda _, tensors: [tensors.pop(x) for x in list(tensors) if x.startswith(memory)],
        lambda _, tensors: tensors.pop("learner.values_optimizer.0.exp_avg"),
        lambda about, _: about["learner"]["memory"].update(stored=11),
        lambda about, _: collector(about).update(batches=-1),
        lambda about, _: collector(about).update(environment=None),
        lambda about, _: collector(about)["environment"]["generators"].clear(),
        lambda about, _: collector(about)["environment"].update(drawn=-1),
        lambda about, _: collector(about)["environment"]["cursor"].__setitem__(0, 513),
        lambda about, _: collector(about)["environment"]["ahead"][0].append(0.5),
    ):
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(tmp_path / "original", saved)
        rewrite(saved, change)
        assert_refused(saved, "damaged|does not fit", "mlp-slips")


def test_an_agent_made_otherwise_is_refused(saved: Path) -> None:
    assert_refused(saved, "learning_rate=16.0, expected 8.0", learning_rate=8.0)
    assert_refused(saved, "algorithm 'awsgd', expected 'reinforce'", "reinforce")
    assert_refused(saved, "saved with env", "awsgd-slips")
    assert_refused(saved, "saved with policy", "mlp")
    with pytest.raises(ValueError, match="is no folder"):
        make("awsgd").restore_training(saved / "nowhere")


def test_foreign_files_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no training state"):
        make("awsgd").save_training(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


# The last few


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    agent = make("awsgd")
    agent.learn(total_episodes=24, callback=Checkpoints(tmp_path, seconds=0, keep=2))
    assert [int(path.name) for path in numbered(tmp_path)] == [20, 24]
    assert newest(tmp_path) == tmp_path / f"{24:012d}"
    assert newest(tmp_path / "nowhere") is None


def test_the_one_before_is_used_if_the_newest_is_damaged(tmp_path: Path) -> None:
    make("awsgd").learn(total_episodes=16, callback=Checkpoints(tmp_path, seconds=0))
    paths = numbered(tmp_path)
    assert len(paths) == 3
    os.truncate(paths[-1] / TENSORS, 1000)
    with pytest.warns(RuntimeWarning, match=f"{paths[-1].name} is passed over: .* cut short"):
        assert newest(tmp_path) == paths[-2]
    # The training that goes on there takes the damaged one's place, and loses no good one for it.
    agent = make("awsgd")
    agent.restore_training(paths[-2])
    (tmp_path / ".000000000016.abcd.partial").mkdir()  # of a run that was killed
    agent.learn(total_episodes=2, callback=Checkpoints(tmp_path, seconds=0, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n:012d}" for n in (12, 14)]
    for path in numbered(tmp_path):
        (path / ABOUT).unlink()
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="2 checkpoints, all of"):
        newest(tmp_path)


def test_a_newer_version_is_not_passed_over(tmp_path: Path) -> None:
    make("awsgd").learn(total_episodes=8, callback=Checkpoints(tmp_path, seconds=0))
    rewrite(numbered(tmp_path)[-1], lambda about, _: about | {"schema": 9})
    with pytest.raises(ValueError, match="newer awsgd-rl"):
        newest(tmp_path)


def test_a_full_disk_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, plain = make("awsgd"), make("awsgd")
    plain.learn(total_episodes=12)
    checkpoints = Checkpoints(tmp_path, seconds=0)
    agent.learn(total_episodes=4, callback=checkpoints)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(RuntimeWarning, match="No space left on device.*; the last one is .*004"):
            agent.learn(total_episodes=4, callback=checkpoints)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.write(agent)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert newest(tmp_path) == checkpoints.last
    agent.learn(total_episodes=4, callback=checkpoints)
    assert everything(agent) == everything(plain)
    assert int(numbered(tmp_path)[-1].name) == 12


def test_a_state_that_is_replaced_is_there_if_the_new_one_fails(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / ABOUT).read_bytes()
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        make("awsgd").save_training(saved)
    assert (saved / ABOUT).read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(("name", "value"), [("seconds", -1.0), ("keep", 0)])
def test_wrong_intervals_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Checkpoints(tmp_path, **{name: value})


# Logs


def test_what_was_logged_later_is_cut_off(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def logged(folder: Path) -> Any:
        events = EventAccumulator(str(folder / "board" / "awsgd_1"))
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag != "time/fps"]
        rows = [line.split(",") for line in (folder / "monitor.csv").read_text().splitlines()[1:]]
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
        return [row[:2] + row[3:] for row in rows], scalars

    def agent(name: str) -> Any:
        return make("awsgd", log_dir=tmp_path / name, tensorboard_log=tmp_path / name / "board")

    whole = agent("whole")
    whole.learn(total_episodes=24)
    killed = agent("killed")
    killed.save_training(tmp_path / "0")
    killed.learn(total_episodes=12, callback=Checkpoints(tmp_path / "c", seconds=0, keep=9))
    for state in (tmp_path / "0", tmp_path / "c" / f"{8:012d}"):  # in this order, all from 8 on
        going_on = agent("killed")
        going_on.restore_training(state)
        going_on.learn(total_episodes=24 - going_on.num_episodes)
        assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def test_logs_that_are_gone_start_anew(tmp_path: Path) -> None:
    agent = make("awsgd", log_dir=tmp_path / "logs")
    agent.learn(total_episodes=4).save_training(tmp_path / "a")
    going_on = make("awsgd", log_dir=tmp_path / "elsewhere")
    going_on.restore_training(tmp_path / "a")
    going_on.save_training(tmp_path / "b")  # knows where the logs stood, without having any
    assert json.loads((tmp_path / "b" / ABOUT).read_text())["log"]["monitor_rows"] == 4
    going_on.learn(total_episodes=4)
    assert (tmp_path / "elsewhere" / "monitor.csv").read_text().count("\n") == 6


def test_damaged_is_a_kind_of_value_error() -> None:
    assert issubclass(DamagedError, ValueError)


def test_the_file_is_read_by_safetensors_alone(saved: Path, tmp_path: Path) -> None:
    """Data in the public format: what is written is what any reader of it gets."""
    tensors = load_file(saved / TENSORS)
    save_file(tensors, tmp_path / "copy.safetensors")
    assert tensors["history.episodes"].tolist() == [4.0, 8.0]
