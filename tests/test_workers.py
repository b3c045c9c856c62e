"""Tasks over processes: same results for any number, messages, errors, and a clean end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awsgd_rl.benchmarks.workers import TaskError, available_cores, one_thread, run_tasks

# Workers import their function by name, so it has to stand in a module that they can find.
MODULE = """
import os
import time


def square(task, send):
    send(("squaring", task, os.getpid()))
    return task * task


def fail_at_three(task, send):
    if task == 3:
        raise ValueError("three is too many")
    return task


def exit_at_three(task, send):
    if task == 3:
        raise SystemExit("the window was closed")
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


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__("odd")


def fail_oddly(task, send):
    raise Odd(1, 2)


def unpicklable(task, send):
    return lambda: task


def sleep(task, send):
    send(os.getpid())
    time.sleep(60)


def count(task, send):
    with open(f"{task[0]}/{task[1]}", "a") as file:  # a byte for each call
        file.write("x")
    if task[1] >= 4 and not os.path.exists(f"{task[0]}/go"):
        time.sleep(60)
    return task[1] ** 2
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "functions_of_workers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import functions_of_workers

    yield functions_of_workers
    del sys.modules["functions_of_workers"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_in_order_and_messages_arrive(functions, jobs):
    messages, results = [], []
    tasks = [3, 1, 2]
    squares = run_tasks(
        functions.square, tasks, jobs=jobs, on_message=messages.append, on_result=results.append
    )
    assert squares == [9, 1, 4]
    assert sorted(results) == [1, 4, 9]
    assert sorted(task for _, task, _ in messages) == [1, 2, 3]
    assert ({process for *_, process in messages} == {os.getpid()}) == (jobs == 1)


def test_no_tasks(functions):
    assert run_tasks(functions.square, [], jobs=2) == []


def test_one_thread_is_given_back():
    import torch

    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_its_task(functions, jobs):
    with pytest.raises(TaskError, match=r"^3: ValueError: three is too many$") as error:
        run_tasks(functions.fail_at_three, [1, 2, 3, 4], jobs=jobs)
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_ends_its_program_is_an_error(functions, jobs):
    with pytest.raises(TaskError, match=r"^3: SystemExit: the window was closed$"):
        run_tasks(functions.exit_at_three, [1, 2, 3, 4], jobs=jobs)


def test_an_error_tells_where_it_was_raised(functions):
    with pytest.raises(TaskError) as error:
        run_tasks(functions.fail_at_three, [1, 3], jobs=2)
    assert "in fail_at_three" in "".join(error.value.__cause__.__notes__)


@pytest.mark.parametrize(
    ("name", "message"),
    [("fail_oddly", "^1: RuntimeError: Odd: odd$"), ("unpicklable", "^1: .*pickle")],
)
def test_what_cannot_be_sent_is_an_error_of_its_task(functions, name, message):
    with pytest.raises(TaskError, match=message):
        run_tasks(getattr(functions, name), [1, 1], jobs=2)


def test_a_task_that_kills_its_workers_is_an_error(functions):
    with (
        pytest.warns(UserWarning, match=r"^3: its worker process died \(exit status 7\)"),
        pytest.raises(TaskError, match=r"^3: its worker process died 3 times .*fewer jobs$"),
    ):
        run_tasks(functions.die_at_three, [1, 2, 3, 4], jobs=2)


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_killed_worker_loses_nothing(functions, tmp_path):
    tasks = [str(tmp_path / name) for name in ("a", "b", "c", "d")]
    seen, results = [], []

    def kill_the_first(message):
        path, process = message
        seen.append(path)
        if len(seen) == 1:
            os.kill(process, signal.SIGKILL)
        else:
            Path(path).touch()

    with pytest.warns(UserWarning, match=r"its worker process died \(by SIGKILL\)") as warned:
        found = run_tasks(
            functions.wait_for_file,
            tasks,
            jobs=2,
            on_message=kill_the_first,
            on_result=results.append,
        )
    assert found == tasks
    assert sorted(results) == tasks
    assert len(warned) == 1
    assert sorted(seen) == sorted([*tasks, seen[0]])


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_killed_sweep_goes_on_with_what_is_missing(functions, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import sys\n"
        "from functions_of_workers import count\n"
        "from awsgd_rl.benchmarks.workers import execution, run_tasks\n"
        "if __name__ == '__main__':\n"
        "    with execution(store='kept'):\n"
        "        show = lambda result: print(result, flush=True)\n"
        "        run_tasks(count, [('calls', k) for k in range(6)], jobs=2, on_result=show)\n"
    )
    (tmp_path / "calls").mkdir()
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        finished = {int(parent.stdout.readline()) for _ in range(4)}
        parent.kill()
    assert finished == {0, 1, 4, 9}
    assert len(list((tmp_path / "kept").glob("count-*.json"))) == 4
    (tmp_path / "calls" / "go").touch()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split()[:4] == ["0", "1", "4", "9"]  # those that were kept come first
    assert sorted(done.stdout.split()[4:]) == ["16", "25"]
    calls = [len((tmp_path / "calls" / str(k)).read_text()) for k in range(4)]
    assert calls == [1, 1, 1, 1]


def test_an_interruption_ends_the_workers(functions):
    processes = set()

    def interrupt(process):
        processes.add(process)
        if len(processes) == 2:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(functions.sleep, [1, 2, 3], jobs=2, on_message=interrupt)
    assert time.monotonic() - started < 50  # not the minute that the tasks sleep
    assert not any(alive(process) for process in processes)


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_workers_end_with_their_parent(tmp_path, how):
    (tmp_path / "functions_of_workers.py").write_text(MODULE)
    script = tmp_path / "main.py"
    script.write_text(
        "import signal\n"
        "from functions_of_workers import sleep\n"
        "from awsgd_rl.benchmarks.workers import run_tasks\n"
        "if __name__ == '__main__':\n"
        # A shell's background job, as the tests may be, hands down that Ctrl-C is ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    show = lambda process: print(process, flush=True)\n"
        "    run_tasks(sleep, [1, 2, 3], jobs=2, on_message=show)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(alive(worker) for worker in workers)
        if how == "SIGINT":  # as a terminal does: to the whole group
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.kill()
        _, errors = parent.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)
    # One traceback, the parent's: workers say nothing.
    assert errors.count("Traceback") == (1 if how == "SIGINT" else 0)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A zombie whose parent has not asked for it is dead too.
    try:
        with open(f"/proc/{process}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_available_cores():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
