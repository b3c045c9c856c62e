"""`bench --resume`, and the options that say where trials run."""

import json
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from awsgd_rl import cli, cli_bench, ray_connection
from awsgd_rl.benchmarks.workers import run_tasks

CALLS: list["Square"] = []
STOP_AT: list[int] = []


class Square(NamedTuple):
    number: int
    data: Path | None

    def __str__(self) -> str:
        return f"number {self.number}"


def square(task: Square, _send: Any) -> dict[str, Any]:
    if task.number in STOP_AT:
        raise KeyboardInterrupt if task.number < 10 else RuntimeError("too large")
    CALLS.append(task)
    return {"number": task.number, "square": task.number**2}


def run(
    quick: bool = False, seeds: int = 5, data: Path | None = None, jobs: int | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows = run_tasks(square, [Square(number, data) for number in range(seeds)], jobs=1)
    return rows, {"sum": float(sum(row["square"] for row in rows))}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    module = types.ModuleType("squares_bench")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "squares_bench", module)
    monkeypatch.setitem(cli_bench.BENCHES, "squares", cli_bench.Bench("squares_bench", "squares"))
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    STOP_AT.clear()
    return module


def awsgd(line: str) -> int:
    return cli.main(line.split())


@pytest.mark.usefixtures("bench")
def test_a_bench_goes_on_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.npz").touch()
    STOP_AT.append(3)
    assert awsgd("bench squares --data some.npz --jobs 2 --out run") == cli.INTERRUPTED
    error = capsys.readouterr().err
    assert "3 results kept, go on with: awsgd-rl bench squares --out run --resume" in error
    assert [task.number for task in CALLS] == [0, 1, 2]
    assert awsgd("bench squares --out run") == cli.BAD_USAGE
    assert "--resume to go on with it" in capsys.readouterr().err

    STOP_AT.clear()
    assert awsgd("bench squares --out run --resume --jobs 1") == cli.DONE
    assert [task.number for task in CALLS] == [0, 1, 2, 3, 4]
    assert all(task.data == Path("some.npz") for task in CALLS)
    results = json.loads(Path("run/results.json").read_text())
    assert results["summary"] == {"sum": 30.0}
    assert [row["number"] for row in results["rows"]] == list(range(5))
    assert not Path("run/trials").exists()

    capsys.readouterr()
    assert awsgd("bench squares --out run --resume") == cli.DONE
    assert "finished" in capsys.readouterr().out
    assert len(CALLS) == 5


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 4", "--seeds is 4, but the run to go on with has 3"),
        ("--quick", "--quick is True, but the run to go on with has False"),
        ("--data .", "--data is ., but the run to go on with has none"),
    ],
)
def test_other_settings_are_refused(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    STOP_AT.append(1)
    assert awsgd("bench squares --seeds 3 --out run") == cli.INTERRUPTED
    STOP_AT.clear()
    capsys.readouterr()
    assert awsgd(f"bench squares --out run --resume {options}") == cli.BAD_USAGE
    assert message in capsys.readouterr().err
    assert len(CALLS) == 1
    assert awsgd("bench squares --out run --resume --seeds 3") == cli.DONE
    assert len(CALLS) == 3


@pytest.mark.usefixtures("bench")
def test_another_benchs_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    STOP_AT.append(1)
    assert awsgd("bench squares --out run") == cli.INTERRUPTED
    capsys.readouterr()
    assert awsgd("bench env-speed --out run --resume") == cli.BAD_USAGE
    assert "holds a run of 'bench squares', expected 'bench env-speed'" in capsys.readouterr().err


@pytest.mark.usefixtures("bench")
def test_a_failed_trial_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    STOP_AT.append(12)
    assert awsgd("bench squares --seeds 14 --out run") == cli.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "number 12: RuntimeError: too large; 12 results kept, go on with: " in error
    STOP_AT.clear()
    assert awsgd("bench squares --out run --resume") == cli.DONE
    assert len(CALLS) == 14


def test_a_bench_without_tasks_is_run_again(bench: types.ModuleType) -> None:
    runs: list[bool] = []

    def interrupted(quick: bool) -> Any:
        runs.append(quick)
        if len(runs) == 1:
            raise KeyboardInterrupt
        return [], {"speed": 1.0}

    bench.run = interrupted  # type: ignore[attr-defined]
    assert awsgd("bench squares --quick --out run") == cli.INTERRUPTED
    assert awsgd("bench squares --out run --resume") == cli.DONE
    assert runs == [True, True]


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("command", ["bench squares", "compare --size 3 --traps 1"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--address auto", "the engine is local: choose engine ray"),
        ("--engine rya", "--engine"),
        ("--engine ray --address somewhere", "expected HOST:PORT"),
        ("--engine ray", "pip install 'awsgd-rl[ray]'"),
    ],
)
def test_bad_engines_write_nothing(
    command: str,
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = "address" in options or None
    monkeypatch.setattr(ray_connection, "find_spec", lambda name: found)
    assert awsgd(f"{command} {options} --out run") == cli.BAD_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().iterdir())
