"""Independent tasks, such as the trials of a bench: run side by side, and kept when they are done.

`run_tasks` is the one call of all benches. Where it runs them, and whether it keeps their results
in a folder, is said around it:

    with execution(engine="ray", store=folder):
        rows, summary = bench.run(...)

The results are the same wherever the tasks run. What a task has done when it is stopped is kept too
if it learns by `resumable.learn`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from awsgd_rl.benchmarks.engines import (
    Engine,
    Send,
    TaskError,
    available_cores,
    interrupts_held,
    run_local,
)
from awsgd_rl.benchmarks.resumable import CHECKPOINT_SECONDS, Scratch, given_scratch
from awsgd_rl.benchmarks.task_store import TaskStore
from awsgd_rl.validation import require_integer, require_name, require_non_negative

__all__ = [
    "ENGINES",
    "Progress",
    "Send",
    "TaskError",
    "available_cores",
    "execution",
    "one_thread",
    "run_tasks",
]

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[float, str], None]
"""Called with the share of a bench that is done, in [0, 1], and what to say beside it."""

ENGINES: Final = ("local", "ray")


class _Execution(NamedTuple):
    engine: Engine = run_local
    jobs: int | None = None
    store: TaskStore | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS


_execution: ContextVar[_Execution | None] = ContextVar("_execution", default=None)


@contextlib.contextmanager
def execution(
    *,
    engine: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    store: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Iterator[None]:
    """Say where `run_tasks` runs its tasks in here, and where it keeps their results.

    Args:
        engine: "local" for processes of this machine, "ray" for Ray.
        address: of a running Ray cluster, None to start one on this machine.
        jobs: how many tasks run at once where `run_tasks` is not told, and CPUs of the Ray that is
            started here; None for all cores.
        store: a folder, made when it is absent, in which each result is kept as soon as it is
            there; a task whose result it holds is not run again.
        checkpoint_seconds: time between two checkpoints of a task that learns, with a store; 0 for
            one after every batch.

    Raises:
        ValueError: there is no such engine, an address without Ray, no cluster at it, or a number
            is out of range.
        ImportError: Ray is not installed.
    """
    require_name("engine", engine, ENGINES)
    if address is not None and engine != "ray":
        raise ValueError(f"address is {address!r}, but the engine is {engine}: choose engine ray")
    require_non_negative("checkpoint_seconds", checkpoint_seconds)
    with contextlib.ExitStack() as stack:
        run: Engine = run_local
        if engine == "ray":
            from awsgd_rl.benchmarks.ray_engine import ray_engine

            run = stack.enter_context(ray_engine(address, jobs))
        kept = None if store is None else TaskStore(store)
        token = _execution.set(_Execution(run, jobs, kept, checkpoint_seconds))
        try:
            yield
        finally:
            _execution.reset(token)


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
        jobs: how many run at once, None for what `execution` says, or else one a core; with 1, all
            is done in this process unless `execution` says otherwise.
        on_message: called here with whatever a task sends while it runs.
        on_result: called here with each result: first those that the store holds, then the others
            in the order in which tasks end.

    Returns:
        [N] results in the order of the tasks.

    Raises:
        ValueError: jobs is below 1, or no integer.
        TaskError: a task raised an exception, or lost several workers. The others are stopped.
        KeyboardInterrupt: Ctrl-C, after all workers have ended.
    """
    if jobs is not None:
        require_integer("jobs", jobs)
    engine, usual_jobs, store, seconds = _execution.get() or _Execution()
    results: dict[int, Result] = {}
    if store is not None:
        results = store.read_all(function, tasks)
        for result in results.values():
            on_result(result)
    missing = [index for index in range(len(tasks)) if index not in results]

    def finish(position: int, result: Result) -> None:
        index = missing[position]
        results[index] = result
        if store is not None:
            with interrupts_held() as interrupted:
                store.write(function, tasks[index], result)
            if interrupted.is_set():
                raise KeyboardInterrupt
        on_result(result)

    run: Callable[[Any, Send], Result] = function
    todo: list[Any] = [tasks[index] for index in missing]
    if store is not None and todo:
        store.folder.mkdir(parents=True, exist_ok=True)
        run = functools.partial(_run_with_scratch, function)
        todo = [
            _WithScratch(task, Scratch(store.scratch(function, task).absolute(), seconds))
            for task in todo
        ]
    engine(run, todo, usual_jobs if jobs is None else jobs, on_message, finish)
    return [results[index] for index in range(len(tasks))]


class _WithScratch(NamedTuple):
    """A task, and what it may use while it is under way."""

    task: Any
    scratch: Scratch

    def __str__(self) -> str:
        return str(self.task)


def _run_with_scratch(
    function: Callable[[Any, Send], Result], given: _WithScratch, send: Send
) -> Result:
    with given_scratch(given.scratch):
        return function(given.task, send)


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
