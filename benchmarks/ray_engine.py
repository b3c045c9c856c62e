"""Tasks on Ray.

A task is a stream of what it sends while it runs, with its result at the end: so messages need no
queue or actor beside it. The streams are read as they come. A task whose worker or node is lost is
run again, so that none is dropped: those that are lost are often the slow ones, and without them an
estimate would be biased.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from awsgd_rl.benchmarks.engines import (
    Engine,
    Losses,
    Send,
    available_cores,
    interrupts_held,
    outcome,
    task_error,
)
from awsgd_rl.ray_connection import ray_connection
from awsgd_rl.validation import require_integer

Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_SECONDS: Final = 0.1
_TOGETHER_SECONDS: Final = 0.25


@contextlib.contextmanager
def ray_engine(address: str | None = None, jobs: int | None = None) -> Iterator[Engine]:
    """Give an `Engine` on Ray; what is started for it ends with the block.

    A Ray that this process is connected to already is used as it is, and left as it is.

    Args:
        address: of a cluster that this machine is part of, "HOST:PORT" or "auto"; None to start a
            Ray on this machine.
        jobs: CPUs of the one that is started; None for all cores.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address, or it cannot be used.
    """
    cores = available_cores() if jobs is None else require_integer("jobs", jobs)
    with ray_connection(address, cores):
        yield _run


def _run(
    function: Callable[[Task, Send], Result],
    tasks: Sequence[Task],
    jobs: int | None,
    on_message: Send,
    on_result: Callable[[int, Result], None],
) -> None:
    import ray

    # Retries are counted here: Ray's own would go on for ever when memory is short.
    remote: Any = ray.remote(_stream).options(num_cpus=1, num_returns="streaming", max_retries=0)
    waiting, lost = deque(range(len(tasks))), Losses()
    running: dict[Any, int] = {}
    try:
        with interrupts_held() as interrupted:
            while waiting or running:
                while waiting and len(running) < (jobs or len(tasks)):
                    index = waiting.popleft()
                    running[remote.remote(function, tasks[index])] = index
                for stream in _ready(ray, list(running)):
                    index = running[stream]
                    try:
                        *messages, (kind, content) = ray.get(next(stream))
                    except ray.exceptions.RayTaskError as error:  # it did not even start
                        raise task_error(tasks[index], error.cause or error) from error
                    except ray.exceptions.RayError as error:
                        del running[stream]
                        waiting.appendleft(index)
                        lost.add(index, tasks[index], type(error).__name__)
                        continue
                    for _, message in messages:
                        on_message(message)
                    if kind == "message":
                        on_message(content)
                        continue
                    del running[stream]
                    if kind == "error":
                        raise task_error(tasks[index], content) from content
                    on_result(index, content)
                if interrupted.is_set():
                    raise KeyboardInterrupt
    finally:
        for stream in running:
            ray.cancel(stream, force=True)


def _ready(ray: Any, streams: list[Any]) -> list[Any]:
    """Return all streams that have something, after waiting a moment for the first."""
    ready, others = ray.wait(streams, num_returns=1, timeout=_POLL_SECONDS)
    if ready and others:
        ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return list(ready)


def _stream(function: Callable[[Any, Send], Any], task: Any) -> Iterator[list[tuple[str, Any]]]:
    """Yield lists of ("message", what the task sends); the last one ends with its `outcome`."""
    answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def work() -> None:
        answers.put(outcome(function, task, lambda message: answers.put(("message", message))))

    threading.Thread(target=work, daemon=True).start()
    kind = "message"
    while kind == "message":
        # What is sent in quick succession travels together: one process reads all streams.
        together = [answers.get()]
        end = time.monotonic() + _TOGETHER_SECONDS
        with contextlib.suppress(queue.Empty):
            while together[-1][0] == "message":
                together.append(answers.get(timeout=max(0.0, end - time.monotonic())))
        kind = together[-1][0]
        yield together
