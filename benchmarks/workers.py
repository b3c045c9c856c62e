"""Independent tasks spread over processes, with messages from inside them while they run.

Workers are spawned, not forked: a fork of a process in which PyTorch or numba has started threads
may hang. A worker imports what its tasks need once, and ends with the process that started it,
however that ends.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

from awsgd_rl.validation import require_integer

__all__ = ["Progress", "Send", "TaskError", "available_cores", "one_thread", "run_tasks"]

Task = TypeVar("Task")
Result = TypeVar("Result")
Send = Callable[[Any], None]
Progress = Callable[[float, str], None]
"""Called with the share of a bench that is done, in [0, 1], and what to say beside it."""

_POLL_SECONDS = 0.1
_send: Send | None = None  # a worker's way to its parent, set once when it starts


class TaskError(RuntimeError):
    """A task failed; the message says which one, the cause is what it raised."""


def run_tasks(
    function: Callable[[Task, Send], Result],
    tasks: Sequence[Task],
    *,
    jobs: int | None = None,
    on_message: Send = lambda message: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Call `function(task, send)` for every task, `jobs` at a time.

    Args:
        function: a function of a module (it is pickled), whose result depends on the task alone.
        tasks: [N] what can be pickled; `str(task)` names a task in errors.
        jobs: number of processes, None for one a core; with 1 all is done in this one.
        on_message: called here with whatever a task sends while it runs.
        on_result: called here with each result, in the order in which tasks end.

    Returns:
        [N] results in the order of the tasks.

    Raises:
        ValueError: jobs is below 1, or no integer.
        TaskError: a task raised an exception, or its process died. The other tasks are stopped.
        KeyboardInterrupt: Ctrl-C, after all workers have ended.
    """
    jobs = available_cores() if jobs is None else require_integer("jobs", jobs)
    if jobs == 1 or len(tasks) < 2:
        return [_run_here(function, task, on_message, on_result) for task in tasks]
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    stop_reader, stop_writer = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        min(jobs, len(tasks)), context, _start_worker, (messages, stop_reader)
    )

    def deliver() -> None:
        while not messages.empty():
            on_message(messages.get())

    try:
        with _interrupts_ignored():
            futures = {executor.submit(_run_there, function, task): task for task in tasks}
        pending = set(futures)
        with _interrupts_held() as interrupted:
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                deliver()
                for future in done:
                    on_result(_result(future, futures[future]))
                if interrupted.is_set():
                    raise KeyboardInterrupt
        return [future.result() for future in futures]
    except BaseException:
        stop_writer.close()  # the workers see the end of the pipe, and leave what they are at
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        for end in (stop_reader, stop_writer, messages):
            end.close()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on one thread in here.

    Tasks beside each other need no more, and a sum that is split otherwise ends otherwise: so a
    result is the same in any process.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_here(
    function: Callable[[Task, Send], Result],
    task: Task,
    send: Send,
    on_result: Callable[[Result], None],
) -> Result:
    try:
        result = function(task, send)
    except Exception as error:
        raise _task_error(task, error) from error
    on_result(result)
    return result


def _run_there(function: Callable[[Task, Send], Result], task: Task) -> Result:
    assert _send is not None
    return function(task, _send)


def _result(future: "Future[Result]", task: object) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TaskError(
            f"a worker process died (at {task}, or beside it): it may have run out of memory, "
            "try fewer jobs"
        ) from error
    except Exception as error:
        raise _task_error(task, error) from error


def _task_error(task: object, error: Exception) -> TaskError:
    return TaskError(f"{task}: {type(error).__name__}: {error}")


def _start_worker(messages: Any, stop: Connection) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
    global _send
    _send = messages.put


def _end_with_parent(stop: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([stop, parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in here and in the processes started here (which inherit it)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event in here, in place of an exception wherever the program happens to be.

    Raised inside `concurrent.futures.wait` it can leave the lock of a future taken for ever, and
    the executor then never ends.
    """
    event = threading.Event()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield event
        return
    signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
