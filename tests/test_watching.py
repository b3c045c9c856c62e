"""Looking at a run with other programs: films of an agent, and Weights & Biases."""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from awsgd_rl import cli
from awsgd_rl.runs import read_results

TRAIN = ["train", "--env-kwargs", '{"size": 3, "traps": 1, "horizon": 12}', "--eval-episodes", "2"]
TRAIN += ["--total-episodes", "20"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def awsgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        return cli.main(argv), *capsys.readouterr()

    return run


# Films


def test_an_mp4_by_gymnasiums_recorder(awsgd: Command) -> None:
    clips = pytest.importorskip("moviepy.video.io.VideoFileClip", reason="needs MoviePy")
    assert awsgd(*TRAIN, "--out", "agent", "--quiet")[0] == 0
    status, out, err = awsgd(
        "evaluate", "agent", "--render", "mp4", "--episodes", "3", "--out", "e"
    )
    assert (status, err) == (0, "")
    assert "wrote e/episode.mp4" in out
    first = read_results("e")["rows"][0]
    with clips.VideoFileClip("e/episode.mp4") as film:
        assert film.fps > 0
        assert round(film.duration * film.fps) == first["length"] + 1
        shown = list(film.iter_frames())
    assert shown[0].shape[2] == 3
    assert (shown[0] != shown[-1]).any()


def test_an_mp4_without_moviepy(awsgd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert awsgd(*TRAIN, "--out", "agent", "--quiet")[0] == 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = awsgd("evaluate", "agent", "--render", "mp4", "--out", "film")
    assert status == 2
    assert "awsgd-rl[video]" in err
    assert err.count("\n") == 1
    assert not Path("film").exists()


# Weights & Biases, whose package is stood in for by what is used of it


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.exit = arguments, -1
        self.events_before: list[Path] = list(Path(arguments["dir"]).rglob("events.*"))
        self.events: list[Path] = []

    def __enter__(self) -> "FakeRun":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.exit = 0 if kind is None else 1
        self.events = list(Path(self.arguments["dir"]).rglob("events.*"))


class FakeWandb(types.ModuleType):
    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.refusal = ""

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def init(self, **arguments: Any) -> FakeRun:
        if self.refusal:
            raise self.Error(self.refusal)
        self.runs.append(FakeRun(**arguments))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_is_sent_with_all_that_goes_to_tensorboard(awsgd: Command, wandb: FakeWandb) -> None:
    status, _, err = awsgd(*TRAIN, "--wandb", "grids", "--out", "run", "--quiet")
    assert (status, err) == (0, "")
    (run,) = wandb.runs
    assert run.arguments["project"] == "grids"
    assert run.arguments["sync_tensorboard"] is True
    assert run.arguments["settings"]["silent"] is True
    assert run.arguments["config"]["algo"] == "awsgd"
    assert run.arguments["config"]["learning_rate"] == 16.0
    # It listens to the writers that are opened after it has begun, and until it ends.
    assert run.events_before == []
    assert len(run.events) == 2  # while it learned, and its evaluation
    assert run.exit == 0
    assert awsgd(*TRAIN, "--wandb", "grids", "--out", "other", "--quiet")[0] == 0
    assert wandb.runs[1].arguments["id"] != run.arguments["id"]


def test_a_run_that_goes_on_is_the_same_one(
    awsgd: Command, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awsgd_rl import cli_train

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "_learn", interrupted)
        assert awsgd(*TRAIN, "--wandb", "grids", "--out", "run")[0] == 130
    assert wandb.runs[0].exit == 1
    assert awsgd("train", "--wandb", "grids", "--out", "run", "--resume")[0] == 0
    first, second = (run.arguments for run in wandb.runs)
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert not set(first["id"]) & set("/\\#?%:")


def test_no_run_is_sent_unasked(awsgd: Command, wandb: FakeWandb) -> None:
    assert awsgd(*TRAIN, "--out", "run", "--quiet")[0] == 0
    assert wandb.runs == []


def test_without_the_package(awsgd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = awsgd(*TRAIN, "--wandb", "grids", "--out", "run")
    assert status == 2
    assert "pip install 'awsgd-rl[wandb]'" in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_a_run_that_is_refused(awsgd: Command, wandb: FakeWandb) -> None:
    wandb.refusal = "No API key configured."
    status, _, err = awsgd(*TRAIN, "--wandb", "grids", "--out", "run")
    assert status == 2
    assert "No API key configured. (log in with `wandb login`, or set WANDB_MODE=offline)" in err
