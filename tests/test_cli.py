import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from awsgd_rl import cli, cli_bench, cli_compare
from awsgd_rl.benchmarks.compare import compare
from awsgd_rl.cli_common import _one_line_of_tyro
from awsgd_rl.cli_output import format_interval, format_number
from awsgd_rl.report import command_line
from awsgd_rl.runs import RunFolder, read_config, read_results

COMMANDS = ["train", "evaluate", "compare", "bench", "tune", "report", "list"]
KWARGS = '{"size": 3, "traps": 1, "horizon": 12}'
TRAIN = ["train", "--algo", "a2c", "--env-kwargs", KWARGS, "--total-episodes", "20"]
TRAIN += ["--eval-episodes", "5"]
COMPARE = ["compare", "--size", "3", "--traps", "1", "--maps", "2", "--episodes", "20"]
COMPARE += ["--algos", "awsgd", "reinforce", "--jobs", "1"]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Run:
    """What one command said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Command = Callable[..., Run]


@pytest.fixture
def awsgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> Run:
        status = cli.main([str(argument) for argument in argv])
        return Run(status, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads, and much slower beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Walk(gym.Env[Any, Any]):
    """Ten steps; the n-th step of all does what a test needs."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)

    def __init__(self, steps: int = 20, what: str = "fail") -> None:
        self.left, self.what, self.time = steps, what, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        self.time += 1
        if self.left == 0 and self.what == "fail":
            raise RuntimeError("the motor\nis broken")
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return 0, 1.0, self.time == 10, False, {}


class BadSpaces(Walk):
    observation_space = spaces.Tuple([spaces.Discrete(2)])  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    environments: dict[str, Any] = {"Walk": Walk, "BadSpaces": BadSpaces}
    for name, entry_point in environments.items():
        gym.register(f"test/{name}-v0", entry_point=entry_point)


def tree(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def assert_one_line(err: str, command: str) -> None:
    assert err.startswith(f"awsgd-rl {command}: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err


# Help


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_shows_every_command(awsgd: Command, argv: list[str]) -> None:
    run = awsgd(*argv)
    assert run.status == 0
    assert run.err == ""
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\w", run.out, re.MULTILINE)
    assert "examples:" in run.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(awsgd: Command, command: str) -> None:
    run = awsgd(command, "--help")
    assert run.status == 0
    assert run.err == ""
    assert f"awsgd-rl {command}" in run.out.partition("examples:")[2]
    assert "--debug" in run.out
    for ugly in ("{None}", "(default: None)", "(default: False)", "--no-quiet"):
        assert ugly not in run.out
    assert not CONTROL.search(run.out)


@pytest.mark.parametrize(
    ("algorithm", "option"),
    [
        ("ppo", "--clip-range"),
        ("dqn", "--buffer-size"),
        ("awsgd", "--memory"),
        ("prioritized-dqn", "--double-q"),
        ("prioritized-sac", "--uniform-share"),
    ],
)
def test_train_shows_the_options_of_the_algorithm(
    awsgd: Command, algorithm: str, option: str
) -> None:
    assert option in awsgd("train", f"--algo={algorithm}", "--help").out
    assert option not in awsgd("train", "--algo", "a2c", "--help").out


def test_version(awsgd: Command) -> None:
    assert re.fullmatch(r"awsgd-rl \d+\.\d+.*\n", awsgd("--version").out)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["compare", "--help"],
        ["train", "--algo", "ppo", "--help"],
        ["train", "--algo", "prioritized-dqn", "--help"],
        ["evaluate", "--help"],
        ["bench", "--help"],
        ["tune", "--help"],
        ["report", "--help"],
        ["list"],
    ],
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    script = (
        "import sys; from awsgd_rl.cli import main; assert main(sys.argv[1:]) == 0;"
        "heavy = {'torch', 'numba', 'matplotlib', 'optuna', 'scipy', 'pandas'};"
        "heavy.add('stable_baselines3');"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


# Bad usage

BAD_USAGE = {
    "train --algo awsdg": "did you mean 'awsgd'",
    "train --algo": "--algo",
    "train --algo a2c --lerning-rate 1": "did you mean --learning-rate",
    "train --algo a2c --learning-rate x": "--learning-rate: ",
    "train --algo a2c --learning-rate -1": "learning_rate is -1",
    "train --algo a2c --learning-rate nan": "learning_rate is nan",
    "train --algo reinforce --learning-rate -1": "learning_rate is -1",
    "train --algo awsgd --exploration-share 1.0": "exploration_share is 1.0",
    "train --algo awsgd --exploration-share -0.1": "exploration_share is -0.1",
    "train --algo a2c --env CartPol-v1": "did you mean 'CartPole-v1'",
    "train --algo a2c --env nonesuch:Env-v0": "nonesuch",
    "train --algo a2c --env test/BadSpaces-v0": "space is Tuple",
    "train --algo awsgd --env test/BadSpaces-v0": "BadSpaces",
    "train --algo a2c --preset 15/8": "did you mean '15/9'",
    "train --algo a2c --preset 15/9 --env CartPole-v1": "expected one of them",
    "train --algo a2c --env-kwargs {": "not JSON",
    "train --algo a2c --env-kwargs [1]": "expected a JSON object",
    'train --algo a2c --env-kwargs {"size":1}': "size is 1",
    'train --algo a2c --env-kwargs {"size":4,"traps":99}': "at most 9",
    'train --algo a2c --env-kwargs {"sise":4}': "sise",
    'train --algo a2c --env-kwargs {"goal_reward":NaN}': "goal_reward is nan",
    'train --algo a2c --env-kwargs {"slip":1.5}': "slip is 1.5",
    'train --algo a2c --env-kwargs {"desc":["SF","FX"]}': "unknown letters",
    'train --algo a2c --env-kwargs {"desc":["SF","G"]}': "equally long",
    'train --algo a2c --env-kwargs {"desc":["SHF","HFG"]}': "no way",
    "train --algo a2c --policy Table": "did you mean 'TablePolicy'",
    "train --algo a2c --policy TablePolicy": "policy of a2c",
    "train --algo awsgd --env CartPole-v1 --policy TablePolicy": "table needs Discrete",
    "train --algo a2c --total-timesteps 0": "--total-timesteps is 0",
    "train --algo a2c --total-episodes 5 --total-timesteps 5": "both given",
    "train --algo a2c --eval-episodes -1": "--eval-episodes is -1",
    "train --algo a2c --seed -1": "--seed is -1",
    "train --algo a2c --device tpu": "expected auto, cpu or cuda",
    "train --algo a2c --resume": "pass its folder with --out",
    "evaluate": "DIR is missing",
    "evaluate nowhere": "no folder 'nowhere'",
    "evaluate .": "no saved agent",
    "evaluate . --episodes 0": "--episodes is 0",
    "evaluate . --render png": "png",
    "compare --preset 15/8": "did you mean '15/9'",
    "compare --preset 15/9 --size 4": "one task",
    "compare --algos awsdg": "did you mean 'awsgd'",
    "compare --size 1": "size is 1",
    "compare --size 4 --traps 99": "at most 9",
    "compare --slip 1.5": "slip is 1.5",
    "compare --episodes 0": "episodes is 0",
    "compare --maps x": "--maps",
    "compare --regime weak": "weak",
    "compare --env Nope-v0": "Nope",
    "compare --resume": "--out",
    "compare --resume --overwrite --out x": "expected one of them",
    "compare --resume --out x": "not a run folder",
    "bench": "NAME is missing",
    "bench env-sped": "did you mean 'env-speed'",
    "bench learning --regime papre": "did you mean 'paper'",
    "bench learning --preset 15/8": "did you mean '15/9'",
    "bench control --env CartPole": "did you mean 'CartPole-v1'",
    "bench replay-learning --env CartPole": "did you mean 'CartPole-v1'",
    "bench control --seed -1": "--seed is -1",
    "tune --trials 0": "trials is 0",
    "tune --seed 7": "seed is 7, expected 1000 or more",
    "tune --preset 15/8": "did you mean '15/9'",
    "tune --space [1]": "expected such as",
    "tune --resume": "--out",
    "tune --resume --out x": "not a run folder",
    "report": "no run folder",
    "report .": "not a run folder",
    "list x": "unknown option x",
    "list --quite": "unknown option --quite",
}


@pytest.mark.parametrize("line", BAD_USAGE)
def test_bad_usage_is_one_line_and_writes_nothing(
    awsgd: Command, tmp_path: Path, line: str
) -> None:
    run = awsgd(*line.split())
    assert run.status == 2
    assert run.out == ""
    assert_one_line(run.err, line.split()[0])
    assert BAD_USAGE[line] in run.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("framed", [True, False])
def test_the_errors_of_options_are_one_line_in_every_encoding(framed: bool) -> None:
    texts = [
        "Unrecognized options: --lerning-rate, 1",
        "Perhaps you meant:",
        "    --learning-rate X",
    ]
    if framed:
        texts = [f"│ {text:<50} │" for text in texts]
        lines = ["╭─ Unrecognized options ─────╮", texts[0], "│ ────── │", *texts[1:], "╰────╯"]
    else:
        texts = [f"  {text}" for text in texts]
        lines = [" Unrecognized options ", " --------- ", texts[0], "  -------- ", *texts[1:], ""]
    assert _one_line_of_tyro("\n".join(lines), "awsgd-rl train") == (
        "unknown option --lerning-rate: did you mean --learning-rate? (see awsgd-rl train --help)"
    )


def test_an_unknown_command_names_the_nearest(awsgd: Command) -> None:
    run = awsgd("trian")
    assert run.status == 2
    assert run.err.count("\n") == 1
    assert "did you mean 'train'" in run.err


def test_debug_shows_the_traceback(awsgd: Command) -> None:
    run = awsgd("train", "--algo", "a2c", "--learning-rate", "-1", "--debug")
    assert run.status == 2
    assert "Traceback" in run.err
    assert run.err.splitlines()[-1].startswith("awsgd-rl train: error: learning_rate")


# train


def test_train_writes_a_run_folder(awsgd: Command, tmp_path: Path) -> None:
    run = awsgd(*TRAIN, "--out", "run", "--seed", "3")
    assert run.err == ""
    assert run.status == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"agent", "config.json", "results.json", "monitor.csv", "evaluations.npz"} <= names
    assert {"learning.png", "learning.svg"} <= names
    assert len(list(tmp_path.glob("run/tensorboard/a2c_1/events.out.tfevents.*"))) >= 1
    config = read_config("run")["config"]
    assert config["algo"] == "a2c"
    assert config["seed"] == 3
    assert json.loads(config["env_kwargs"]) == json.loads(KWARGS)
    results = read_results("run")
    assert results["name"] == "train"
    assert results["config"] == config
    assert len(results["rows"]) == 1
    summary = results["summary"]
    assert summary["num_episodes"] == 20
    assert summary["success_low"] <= summary["success"] <= summary["success_high"]
    assert summary["mean_return_low"] <= summary["mean_return"] <= summary["mean_return_high"]
    evaluations = np.load("run/evaluations.npz")
    assert evaluations["results"].shape == (1, 5)
    assert evaluations["results"].mean() == pytest.approx(summary["mean_return"])
    assert evaluations["timesteps"] == [summary["num_timesteps"]]
    for line in ("wrote run/results.json", "wrote run/agent", "wrote run/learning.png"):
        assert line in run.out
    assert "success" in run.out
    assert not CONTROL.search(run.out)


@pytest.mark.parametrize("algorithm", ["awsgd", "reinforce"])
def test_train_with_a_table(awsgd: Command, algorithm: str) -> None:
    arguments = ["--env-kwargs", KWARGS, "--total-episodes", "60", "--eval-episodes", "3"]
    run = awsgd("train", "--algo", algorithm, *arguments, "--out", "run", "--updates", "2")
    assert run.err == ""
    assert run.status == 0
    results = read_results("run")
    assert results["config"]["policy"] == "TablePolicy"
    assert results["config"]["updates"] == 2
    assert results["summary"]["num_episodes"] == 60
    evaluated = awsgd("evaluate", "run", "--episodes", "4", "--out", "evaluated")
    assert evaluated.status == 0
    assert len(read_results("evaluated")["rows"]) == 4


def test_a_run_can_be_made_again_from_its_config(awsgd: Command) -> None:
    assert awsgd(*TRAIN, "--out", "a", "--learning-rate", "0.01", "--quiet").status == 0
    first = read_results("a")
    command = shlex.split(command_line("train", first["config"]))[1:]
    assert awsgd(*command, "--out", "b").status == 0
    assert read_results("b")["config"] == first["config"]
    assert read_results("b")["rows"] == first["rows"]


def test_train_without_evaluation_where_success_is_unknown(awsgd: Command) -> None:
    run = awsgd(
        *("train", "--algo", "dqn", "--env", "CartPole-v1", "--total-timesteps", "60"),
        *("--eval-episodes", "0", "--out", "run"),
    )
    assert run.status == 0
    results = read_results("run")
    assert results["rows"] == []
    assert set(results["summary"]) == {"num_episodes", "num_timesteps"}
    assert not Path("run/evaluations.npz").exists()


def test_same_seed_same_results(awsgd: Command) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert awsgd(*TRAIN, "--out", name, "--seed", seed, "--quiet").status == 0
    first, second, other = (read_results(name) for name in "abc")
    assert first["rows"] == second["rows"]
    parameters = [Path(name, "agent/parameters.safetensors").read_bytes() for name in "abc"]
    assert parameters[0] == parameters[1] != parameters[2]
    assert other["config"]["seed"] == 2


def test_quiet_prints_nothing(awsgd: Command) -> None:
    run = awsgd(*TRAIN, "--quiet")
    assert (run.status, run.out, run.err) == (0, "", "")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("train-")


def test_a_run_is_not_written_over(awsgd: Command, tmp_path: Path) -> None:
    assert awsgd(*TRAIN, "--out", "run").status == 0
    before = tree(tmp_path)
    run = awsgd(*TRAIN, "--out", "run")
    assert run.status == 2
    assert_one_line(run.err, "train")
    assert "--overwrite" in run.err
    assert tree(tmp_path) == before
    # What cannot run must not cost the run that is there.
    assert awsgd(*TRAIN, "--out", "run", "--overwrite", "--learning-rate", "-1").status == 2
    assert awsgd(*TRAIN, "--out", "run", "--overwrite", "--policy", "TablePolicy").status == 2
    assert tree(tmp_path) == before
    assert awsgd(*TRAIN, "--out", "run", "--overwrite", "--seed", "8").status == 0
    assert read_results("run")["config"]["seed"] == 8
    assert Path("run/monitor.csv").read_text().count("\n") == 22


def test_a_file_in_the_way(awsgd: Command, tmp_path: Path) -> None:
    Path("file").write_text("mine")
    for out in ("file", "file/run"):
        run = awsgd(*TRAIN, "--out", out, "--overwrite")
        assert run.status == 2
        assert_one_line(run.err, "train")
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("argv", [["--help"], ["list"]])
def test_a_reader_that_has_gone_is_no_error_to_show(argv: list[str]) -> None:
    """As in `awsgd-rl list | head -1`."""
    command = [sys.executable, "-m", "awsgd_rl.cli", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 1


def test_a_run_that_fails_is_one_line(awsgd: Command) -> None:
    argv = ["train", "--algo", "a2c", "--env", "test/Walk-v0", "--out", "run"]
    run = awsgd(*argv)
    assert run.status == 1
    assert_one_line(run.err, "train")
    assert "the motor is broken" in run.err
    assert read_config("run")["name"] == "train"
    run = awsgd(*argv, "--overwrite", "--debug")
    assert run.status == 1
    assert "Traceback" in run.err


def test_interrupting_keeps_the_agent(awsgd: Command) -> None:
    kwargs = '{"what": "interrupt", "steps": 35}'
    before = signal.getsignal(signal.SIGINT)
    run = awsgd(
        *("train", "--algo", "a2c", "--env", "test/Walk-v0", "--env-kwargs", kwargs),
        *("--total-timesteps", "100000", "--out", "run"),
    )
    assert run.status == 130
    assert_one_line(run.err, "train")
    assert "run/agent" in run.err
    assert not Path("run/results.json").exists()
    assert json.loads(Path("run/agent/agent.json").read_text())["num_episodes"] == 4
    assert signal.getsignal(signal.SIGINT) is before


# evaluate


@pytest.fixture
def trained(awsgd: Command) -> Path:
    assert awsgd(*TRAIN, "--out", "trained", "--quiet").status == 0
    return Path("trained")


def test_evaluate(awsgd: Command, trained: Path) -> None:
    run = awsgd("evaluate", trained, "--episodes", "40", "--out", "a")
    assert run.err == ""
    assert run.status == 0
    results = read_results("a")
    assert results["name"] == "evaluate"
    rows = results["rows"]
    assert [row["episode"] for row in rows] == list(range(40))
    summary = results["summary"]
    assert summary["mean_return"] == pytest.approx(np.mean([row["return"] for row in rows]))
    assert summary["success"] == pytest.approx(np.mean([row["success"] for row in rows]))
    assert summary["success_low"] < summary["success_high"]
    assert "wrote a/results.json" in run.out
    # The folder that `save` wrote will do, and the same seed gives the same episodes.
    assert awsgd("evaluate", trained / "agent", "--episodes", "40", "--out", "b").status == 0
    assert read_results("b")["rows"] == rows
    assert awsgd("evaluate", trained, "--episodes", "40", "--seed", "1", "--out", "c").status == 0
    assert read_results("c")["rows"] != rows


def test_evaluate_one_episode_without_draws(awsgd: Command, trained: Path) -> None:
    run = awsgd("evaluate", trained, "--episodes", "1", "--deterministic", "--out", "a")
    assert run.status == 0
    assert read_results("a")["summary"]["mean_return_low"] is None


def test_evaluate_draws_an_episode(
    awsgd: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    run = awsgd("evaluate", trained, "--episodes", "2", "--render", "gif", "--out", "a")
    assert run.status == 0
    assert "wrote a/episode.gif" in run.out
    first = read_results("a")["rows"][0]
    with Image.open("a/episode.gif") as image:
        # Equal frames that follow each other are stored as one.
        assert 1 <= getattr(image, "n_frames", 1) <= first["length"] + 1
        assert min(image.size) > 20


@pytest.mark.parametrize("rare", [[], ["--rare", "failure"]])
def test_evaluate_does_not_write_over_the_agent(
    awsgd: Command, trained: Path, rare: list[str]
) -> None:
    before = tree(trained)
    for directory in (trained, trained / "agent"):
        run = awsgd("evaluate", directory, *rare, "--out", trained, "--overwrite")
        assert run.status == 2
        assert "holds the agent itself" in run.err
    assert tree(trained) == before


def test_evaluate_in_an_environment_of_a_module(
    awsgd: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.syspath_prepend(Path.cwd())
    Path("elsewhere.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Elsewhere-v0', 'awsgd_rl.envs.gridworld:TrapGridworld')\n"
    )
    for named in ("Elsewhere-v0", "elsewhere:Elsewhere-v0"):  # no module that a file names
        spoil(trained / "agent", env={"id": named, "kwargs": json.loads(KWARGS)})
        run = awsgd("evaluate", trained)
        assert run.status == 2
        assert "--env MODULE:Elsewhere-v0" in run.err
    assert "elsewhere" not in sys.modules
    asked = ("--env", "elsewhere:Elsewhere-v0", "--episodes", "3")
    assert awsgd("evaluate", trained, *asked, "--out", "a").status == 0
    assert read_results("a")["config"]["env"] == "elsewhere:Elsewhere-v0"


def spoil(path: Path, **changes: Any) -> None:
    about = json.loads((path / "agent.json").read_text())
    (path / "agent.json").write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "agent.json").write_text("{"),
        lambda path: (path / "agent.json").write_text("[]"),
        lambda path: (path / "parameters.safetensors").unlink(),
        lambda path: (path / "parameters.safetensors").write_bytes(b"\x80\x04foreign"),
        lambda path: spoil(path, env={"id": "CartPole-v1"}),
        lambda path: spoil(path, env={"id": "Nope-v0"}),
        lambda path: spoil(path, env={}),
        lambda path: spoil(path, algorithm="alien"),
        lambda path: spoil(path, config={"alien": 1}),
        lambda path: spoil(path, schema=10**6),
    ],
)
def test_a_damaged_agent_is_bad_usage(
    awsgd: Command, trained: Path, damage: Callable[[Path], object]
) -> None:
    damage(trained / "agent")
    run = awsgd("evaluate", trained)
    assert run.status == 2
    assert run.out == ""
    assert_one_line(run.err, "evaluate")
    assert not Path("runs").exists()


# compare


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_compare(awsgd: Command) -> None:
    run = awsgd(*COMPARE, "--out", "run", "--seed", "4")
    assert run.err == ""
    assert run.status == 0
    results = read_results("run")
    assert [(row["algorithm"], row["map"]) for row in results["rows"]] == [
        *[("awsgd", 4), ("awsgd", 5), ("reinforce", 4), ("reinforce", 5)]
    ]
    for name in ("awsgd.success_mean", "reinforce.success_final", "awsgd.steps_mean"):
        for end in ("", "_low", "_high"):
            assert f"{name}{end}" in results["summary"]
    assert "failure_ratio" in results["summary"]
    assert results["config"]["episodes"] == 20
    assert Path("run/learning.png").exists()
    assert not Path("run/trials").exists()
    for text in ("awsgd ", "reinforce ", "failures of", "wrote run/results.json"):
        assert text in run.out
    assert not CONTROL.search(run.out)


def test_compare_goes_on_after_an_interruption(
    awsgd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_compare, "write_figures", lambda comparison, folder: [])
    assert awsgd(*COMPARE, "--out", "whole").status == 0
    real = compare

    def interrupted(config: Any, *, on_trial: Any, **arguments: Any) -> Any:
        def stop_after(trial: Any) -> None:
            on_trial(trial)
            raise KeyboardInterrupt

        return real(config, on_trial=stop_after, **arguments)

    monkeypatch.setattr(cli_compare, "compare", interrupted)
    run = awsgd(*COMPARE, "--out", "run")
    assert run.status == 130
    assert_one_line(run.err, "compare")
    assert "1 trial kept" in run.err
    assert "awsgd-rl compare --out run --resume" in run.err
    assert not Path("run/results.json").exists()
    monkeypatch.setattr(cli_compare, "compare", real)
    assert "--resume" in awsgd(*COMPARE, "--out", "run").err

    before = tree(Path("run"))
    run = awsgd("compare", "--out", "run", "--resume", "--episodes", "30")
    assert run.status == 2
    assert "--episodes is 30" in run.err
    assert tree(Path("run")) == before

    assert awsgd("compare", "--out", "run", "--resume", "--jobs", "1").status == 0
    whole, resumed = read_results("whole"), read_results("run")
    assert without_seconds(resumed["rows"]) == without_seconds(whole["rows"])
    assert resumed["summary"] == whole["summary"]
    assert not Path("run/trials").exists()
    before = tree(Path("run"))
    run = awsgd("compare", "--out", "run", "--resume")
    assert run.status == 0
    assert "finished" in run.out
    assert tree(Path("run")) == before


def test_a_fault_while_figures_are_drawn_can_be_put_right(
    awsgd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(comparison: Any, folder: Path) -> Any:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cli_compare, "write_figures", fail)
        assert awsgd(*COMPARE, "--out", "run").status == 1
        assert not Path("run/results.json").exists()
    assert awsgd("compare", "--out", "run", "--resume").status == 0
    assert Path("run/learning.png").exists()
    assert not Path("run/trials").exists()


def test_resume_needs_a_comparison(awsgd: Command) -> None:
    RunFolder.create("run", name="train", config={})
    run = awsgd("compare", "--out", "run", "--resume")
    assert run.status == 2
    assert_one_line(run.err, "compare")


# bench, report, list


def test_bench(awsgd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(quick: bool, seed: int = 0) -> Any:
        rows = [{"name": "x", "speed": 1e7 if quick else 2e7, "curve": [1, 2]}]
        return rows, {"speed": float(seed), "speed_low": 0.5, "speed_high": None}

    module = types.ModuleType("fake_bench")
    module.run = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_bench", module)
    monkeypatch.setitem(cli_bench.BENCHES, "fake", cli_bench.Bench("fake_bench", "a fake"))
    run = awsgd("bench", "fake", "--quick", "--out", "run", "--seed", "2")
    assert run.status == 0
    assert "10,000,000" in run.out
    results = read_results("run")
    assert results["name"] == "bench fake"
    assert results["config"] == {"quick": True, "seed": 2}
    assert results["summary"] == {"speed": 2.0, "speed_low": 0.5, "speed_high": None}
    run = awsgd("bench", "fake", "--data", ".")
    assert run.status == 2
    assert "takes no --data" in run.err


@pytest.mark.parametrize(
    ("bench", "option"),
    [("learning", "--maps"), ("control", "--seeds"), ("anatomy", "--jobs")],
)
def test_bench_refuses_a_count_of_none(awsgd: Command, bench: str, option: str) -> None:
    run = awsgd("bench", bench, "--quick", option, "0", "--out", "run")
    assert run.status == 2
    assert f"{option} is 0, expected 1 or more" in run.err
    assert not Path("run").exists()


def test_report(awsgd: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = awsgd("report", trained, "--open")
    assert run.status == 0
    assert run.out == "wrote trained/report.html\n"
    assert opened == [(trained / "report.html").resolve().as_uri()]
    assert awsgd("report", trained, trained, "--out", "both.html").status == 0
    before = Path("both.html").read_bytes()
    run = awsgd("report", trained, "--out", "both.html")
    assert run.status == 2
    assert_one_line(run.err, "report")
    assert Path("both.html").read_bytes() == before
    assert awsgd("report", trained, "--out", "both.html", "--overwrite").status == 0
    assert Path("both.html").read_bytes() != before


def test_list_names_everything(awsgd: Command) -> None:
    from awsgd_rl.agents import ALGORITHMS
    from awsgd_rl.envs import PRESETS

    run = awsgd("list")
    assert run.status == 0
    for name in [*ALGORITHMS, *PRESETS, *cli_bench.BENCHES, "awsgd_rl/TrapGridworld-v0"]:
        assert re.search(rf"^  {re.escape(name)}  ", run.out, re.MULTILINE)


# As a program


def test_the_installed_command_is_plain_in_a_pipe(tmp_path: Path) -> None:
    env = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    env.pop("FORCE_COLOR", None)
    command = [sys.executable, "-m", "awsgd_rl.cli", *TRAIN, "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stderr == ""
    assert done.returncode == 0
    assert not CONTROL.search(done.stdout)
    assert "train: 20 of 20 episodes" in done.stdout


# How numbers read


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "inf"),
        (0.98412, "0.984"),
        (-0.98412, "-0.984"),
        (0.0001234, "0.000123"),
        (12.345, "12.35"),
        (123.45, "123.5"),
        (1234.5, "1,234"),
        (0.0, "0.000"),
        (20, "20"),
        (3e7, "30,000,000"),
    ],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_format_interval() -> None:
    summary = {"x": 0.5, "x_low": 0.25, "x_high": None, "y": 2}
    assert format_interval(summary, "x") == "0.500 [0.250, -]"
    assert format_interval(summary, "y") == "2"
    assert format_interval(summary, "z") == "-"
