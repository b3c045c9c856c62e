"""Tasks on a real local Ray: the serial results, messages, lost workers, errors, a clean end."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awsgd_rl import cli, cli_compare, ray_connection
from awsgd_rl.benchmarks.compare import CompareConfig, compare
from awsgd_rl.benchmarks.ray_engine import ray_engine
from awsgd_rl.benchmarks.workers import TaskError, execution, run_tasks
from awsgd_rl.runs import to_json

MODULE = """
import os
import time


def square(task, send):
    send(("squaring", task, os.getpid()))
    return task * task


def chatter(task, send):
    for number in range(100):
        send((task, number))
    return task


def fail_at_three(task, send):
    if task == 3:
        raise ValueError("three is too many")
    return task


def die_at_three(task, send):
    if task == 3:
        os._exit(7)
    return task


def wait_for_file(path, send):
    send((path, os.getpid()))
    while not os.path.exists(path):
        time.sleep(0.02)
    return path


def sleep(task, send):
    send(os.getpid())
    time.sleep(60)
"""

SMALL = CompareConfig(size=4, traps=1, episodes=1000, maps=1, algos=("awsgd", "reinforce"), jobs=2)


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A module that workers find too: they get the environment of what starts Ray."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "functions_of_ray.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        import functions_of_ray

        yield functions_of_ray
        del sys.modules["functions_of_ray"]


@pytest.fixture(scope="module")
def local_ray(functions):
    """One Ray of two CPUs for all tests: it takes seconds to start."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_connection, "_OBJECT_STORE_BYTES", 80 * 2**20)
        patch.setenv("RAY_worker_niceness", "0")  # or other tests leave little to the workers
        with ray_engine(jobs=2):
            yield


@pytest.fixture
def on_ray(local_ray):
    with execution(engine="ray"):
        yield


def without_seconds(comparison):
    return [to_json(dataclasses.replace(trial, seconds=0.0)) for trial in comparison.trials]


def running_workers():
    """The processes that Ray started here and that are at a task."""

    def parent(process):
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])

    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                "ray::_stream" in (entry / "cmdline").read_text()
                and parent(parent(entry.name)) == os.getpid()
            ):
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, None])
def test_results_are_in_order_and_messages_arrive(functions, on_ray, jobs):
    messages, results = [], []
    squares = run_tasks(
        functions.square,
        [3, 1, 2],
        jobs=jobs,
        on_message=messages.append,
        on_result=results.append,
    )
    assert squares == [9, 1, 4]
    assert sorted(results) == [1, 4, 9]
    assert sorted(task for _, task, _ in messages) == [1, 2, 3]
    assert os.getpid() not in {process for *_, process in messages}
    assert run_tasks(functions.square, []) == []


@pytest.mark.slow
def test_messages_keep_their_order(functions, on_ray):
    messages = []
    run_tasks(functions.chatter, [1, 2, 3], on_message=messages.append)
    for task in (1, 2, 3):
        assert [number for name, number in messages if name == task] == list(range(100))


@pytest.mark.slow
def test_an_error_names_its_task(functions, on_ray):
    with pytest.raises(TaskError, match=r"^3: ValueError: three is too many$") as error:
        run_tasks(functions.fail_at_three, [1, 2, 3, 4])
    assert isinstance(error.value.__cause__, ValueError)
    assert "fail_at_three" in "".join(error.value.__cause__.__notes__)


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_an_error(functions, on_ray):
    with (
        pytest.warns(UserWarning, match="3: its worker process died"),
        pytest.raises(TaskError, match="3: its worker process died 3 times"),
    ):
        run_tasks(functions.die_at_three, [1, 2, 3, 4])


@pytest.mark.slow
def test_an_interruption_stops_the_tasks(functions, on_ray):
    def interrupt(process):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(functions.sleep, [1, 2, 3], on_message=interrupt)
    # The workers are free again: not after the minute that the tasks sleep.
    assert run_tasks(functions.square, [1, 2, 3]) == [1, 4, 9]
    assert time.monotonic() - started < 50


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_ray_is_silent(functions, on_ray, tmp_path, capfd):
    tasks = [str(tmp_path / name) for name in ("a", "b", "c")]
    killed = []

    def kill_the_first(message):
        path, process = message
        if killed:
            Path(path).touch()
            if path != killed[0]:
                return
        killed.append(path)
        if len(killed) == 1:
            os.kill(process, signal.SIGKILL)

    with pytest.warns(UserWarning, match=r"its worker process died \(WorkerCrashedError\)"):
        assert run_tasks(functions.wait_for_file, tasks, on_message=kill_the_first) == tasks
    time.sleep(1.0)  # Ray reports a dead worker from another thread
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_comparison_that_loses_workers_is_the_serial_one(local_ray, tmp_path):
    config = dataclasses.replace(SMALL, maps=2)
    serial = compare(dataclasses.replace(config, jobs=1))

    def kill_until_a_trial_is_lost(progress):  # a worker may have sent its result already
        if not lost:
            for worker in running_workers()[:1]:
                os.kill(worker, signal.SIGKILL)

    with (
        pytest.warns(UserWarning, match="its worker process died") as lost,
        execution(engine="ray", store=tmp_path),
    ):
        ours = compare(config, progress=kill_until_a_trial_is_lost)
    assert without_seconds(ours) == without_seconds(serial)
    with execution(store=tmp_path):  # and what it kept serves the other engine
        again = compare(config)
    assert [trial.seconds for trial in again.trials] == [trial.seconds for trial in ours.trials]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_what_was_started_ends_with_a_program_that_is_killed(functions, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    script = tmp_path / "main.py"
    script.write_text(
        "from functions_of_ray import sleep\n"
        "from awsgd_rl.benchmarks.workers import execution, run_tasks\n"
        "show = lambda process: print(process, flush=True)\n"
        "with execution(engine='ray', jobs=2):\n"
        "    run_tasks(sleep, [1, 2], on_message=show)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        _, errors = parent.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert errors == ""


@pytest.mark.slow
def test_the_command_on_ray_is_the_serial_one(local_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_compare, "write_figures", lambda comparison, folder: [])
    task = ["--size", "3", "--traps", "1", "--algos", "reinforce"]
    line = ["compare", *task, "--maps", "2", "--episodes", "20", "--quiet"]
    results = []
    for options in (["--engine", "ray"], ["--jobs", "1"]):
        out = tmp_path / options[0]
        assert cli.main([*line, *options, "--out", str(out)]) == cli.DONE
        results.append(json.loads((out / "results.json").read_text()))
        assert not (out / "trials").exists()
    rows = [[{**row, "seconds": 0} for row in result["rows"]] for result in results]
    assert rows[0] == rows[1]
    assert results[0]["summary"] == results[1]["summary"]
    assert capsys.readouterr() == ("", "")


# Bad input


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(ray_connection, "find_spec", lambda name: None)
    with (
        pytest.raises(ImportError, match=r"pip install 'awsgd-rl\[ray\]'"),
        execution(engine="ray"),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "rya"}, "unknown engine 'rya': did you mean 'ray'"),
        ({"address": "auto"}, "the engine is local"),
        ({"engine": "ray", "jobs": 0}, "jobs is 0"),
        ({"engine": "ray", "address": "ray://head:10001"}, "expected HOST:PORT"),
        ({"engine": "ray", "address": "head"}, "expected HOST:PORT"),
    ],
)
def test_bad_settings(settings, message):
    if "address" in settings or "jobs" in settings:
        pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(ValueError, match=message) as error, execution(**settings):
        pass
    assert "\n" not in str(error.value)


def test_a_cluster_that_does_not_answer_is_named_at_once():
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"),
        execution(engine="ray", address=address),
    ):
        pass
