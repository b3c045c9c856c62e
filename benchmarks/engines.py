"""Where tasks run: the contract of an engine, and the engine of local processes.

Workers are spawned, not forked: a fork of a process in which PyTorch or numba has started threads
may hang. A worker imports what its tasks need once, and ends with the process that started it,
however that ends.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Final, Protocol, TypeVar, final

from awsgd_rl.validation import require_integer

Task = TypeVar("Task")
Result = TypeVar("Result")
Send = Callable[[Any], None]

ATTEMPTS: Final = 3
"""How often a task is started at the most when the workers that it runs on die."""

_POLL_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 10.0  # for a batch and a checkpoint


class TaskError(RuntimeError):
    """A task failed; the message says which one, the cause is what it raised."""


class Engine(Protocol):
    """What runs tasks."""

    def __call__(
        self,
        function: Callable[[Task, Send], Result],
        tasks: Sequence[Task],
        jobs: int | None,
        on_message: Send,
        on_result: Callable[[int, Result], None],
    ) -> None:
        """Run every task.

        Args:
            function: a function of a module, whose result depends on the task alone.
            tasks: [N] what can be pickled.
            jobs: how many run at once, None for as many as there are cores.
            on_message: called with whatever a task sends while it runs.
            on_result: called with the number of each task and its result, as tasks end.

        Raises:
            TaskError: a task raised an exception, or lost `ATTEMPTS` workers; the others are
                stopped.
            KeyboardInterrupt: Ctrl-C, after all tasks have been stopped.
        """


def run_local(
    function: Callable[[Task, Send], Result],
    tasks: Sequence[Task],
    jobs: int | None,
    on_message: Send,
    on_result: Callable[[int, Result], None],
) -> None:
    """The `Engine` of local processes; with one job, or one task, all is done in this process."""
    jobs = available_cores() if jobs is None else require_integer("jobs", jobs)
    if jobs == 1 or len(tasks) < 2:
        for index, task in enumerate(tasks):
            try:
                result = function(task, on_message)
            except (Exception, SystemExit) as error:
                raise task_error(task, error) from error
            on_result(index, result)
        return
    waiting, lost = deque(range(len(tasks))), Losses()
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}
    try:
        with interrupts_held() as interrupted:
            while waiting or busy:
                while waiting and len(busy) < jobs:
                    worker, index = idle.pop() if idle else _Worker(function), waiting.popleft()
                    busy[worker.pipe] = worker, index
                    worker.give(tasks[index])
                for pipe in wait_for_any(busy, _POLL_SECONDS):
                    worker, index = busy[pipe]  # type: ignore[index]
                    try:
                        kind, content = worker.take()
                    except (EOFError, OSError):
                        del busy[worker.pipe]
                        waiting.appendleft(index)
                        lost.add(index, tasks[index], worker.kill())
                        continue
                    except Exception as error:  # what it sent cannot be unpickled here
                        kind, content = "error", error
                    if kind == "message":
                        on_message(content)
                        continue
                    del busy[worker.pipe]
                    idle.append(worker)
                    if kind == "error":
                        raise task_error(tasks[index], content) from content
                    on_result(index, content)
                if interrupted.is_set():
                    raise KeyboardInterrupt
    finally:
        _stop([worker for worker, _ in busy.values()])
        for worker in idle:
            worker.end()


def _stop(workers: "Sequence[_Worker]") -> None:
    """End workers that are at a task; those that learn may write a checkpoint before."""
    for worker in workers:
        worker.ask_to_stop()
    deadline = time.monotonic() + _STOP_SECONDS
    try:
        for worker in workers:
            worker.wait(deadline - time.monotonic())
    finally:  # another Ctrl-C does not wait for it
        for worker in workers:
            worker.kill()


@final
class _Worker:
    """A process that does one task after another, and the pipe to it.

    Each has a pipe of its own: one that is killed while it writes spoils no other's messages.
    """

    def __init__(self, function: Callable[[Any, Send], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs))
        with _interrupts_ignored():
            self._process.start()
        theirs.close()  # or the end of the worker would not end the pipe

    def give(self, task: object) -> None:
        # A worker that has died shows when its answer is read.
        with contextlib.suppress(OSError):
            self.pipe.send(task)

    def take(self) -> tuple[str, Any]:
        answer: tuple[str, Any] = self.pipe.recv()
        return answer

    def ask_to_stop(self) -> None:
        """Let the process end; at once, unless what it does has asked to be told: `stop_asked`."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for the process to end, so long at the most."""
        self._process.join(max(0.0, seconds))

    def kill(self) -> str:
        """End the process wherever it is; return how it ended."""
        self._process.join(_POLL_SECONDS)  # one that has died is not to be blamed on this
        code = self._process.exitcode
        self._process.kill()
        self.end()
        return f"by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"

    def end(self) -> None:
        """Let the process end after its task, and wait for it."""
        self.pipe.close()
        self._process.join()
        self._process.close()


def _serve(function: Callable[[Any, Send], Any], pipe: Connection) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = outcome(function, task, lambda message: pipe.send(("message", message)))
        except KeyboardInterrupt:  # it was told to stop, and has
            return
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# What all engines share


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def outcome(function: Callable[[Task, Send], Any], task: Task, send: Send) -> tuple[str, Any]:
    """Do a task in a worker: ("result", what it returned), or ("error", what it raised).

    Either can be pickled; an error tells where in the worker it was raised (`--debug` shows it).
    """
    try:
        result = function(task, send)
        pickle.dumps(result)
    except (Exception, SystemExit) as error:  # an environment may end its program
        error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return "error", RuntimeError(f"{type(error).__name__}: {error}")
        return "error", error
    return "result", result


def task_error(task: object, error: BaseException) -> TaskError:
    """Return what is raised for a task that failed."""
    return TaskError(f"{task}: {type(error).__name__}: {error}")


@final
class Losses:
    """How often each task has lost its worker."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()

    def add(self, index: int, task: object, how: str) -> None:
        """Count a loss: the task is to be run again.

        Raises:
            TaskError: the task has lost `ATTEMPTS` workers, and will lose the next one too.
        """
        self._count[index] += 1
        if self._count[index] == ATTEMPTS:
            raise TaskError(
                f"{task}: its worker process died {ATTEMPTS} times (the last one {how}): it may "
                "have run out of memory, try fewer jobs"
            )
        warnings.warn(f"{task}: its worker process died ({how}), it is run again", stacklevel=2)


@contextlib.contextmanager
def interrupts_held() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event in here, in place of an exception wherever the program happens to be.

    Raised between the end of a task and the writing of its result it would lose the result.
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


@contextlib.contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Let the first Ctrl-C, and in a worker its engine, set an event in here; a second one ends it.

    For what can stop at a better moment than at once: between two batches of a training.
    """
    event = threading.Event()
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    if multiprocessing.parent_process() is not None:
        usual[signal.SIGTERM] = signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    usual = {number: how for number, how in usual.items() if signal.getsignal(number) is how}

    def stop(*_: object) -> None:
        event.set()
        as_before()

    def as_before() -> None:
        for number, how in usual.items():
            signal.signal(number, how)

    for number in usual:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        as_before()


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
