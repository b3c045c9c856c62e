"""Tasks on Ray: on a cluster, or on a Ray that is started here for as long as it is needed.

A task is a stream of what it sends while it runs, with its result at the end: so messages need no
queue or actor beside it. The streams are read as they come. A task whose worker or node is lost is
run again, so that none is dropped: those that are lost are often the slow ones, and without them an
estimate would be biased.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
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
from awsgd_rl.validation import require_integer

Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_SECONDS: Final = 0.1
_TOGETHER_SECONDS: Final = 0.25
_CONNECT_SECONDS: Final = 5.0
_OBJECT_STORE_BYTES: Final = 100 * 2**20  # of a Ray that is started here: results are small
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a task without a GPU hides the GPUs of its machine, with a warning that it will not.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


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
    if jobs is not None:
        require_integer("jobs", jobs)
    if find_spec("ray") is None:
        raise ImportError("Ray is not installed: pip install 'awsgd-rl[ray]', or use engine local")
    if address is not None:
        _check_address(address)
    import ray

    if ray.is_initialized():
        yield _run
        return
    with _quietly(ray):
        try:
            _connect(ray, address, jobs)
        except Exception as error:
            raise ValueError(_why_not(address, error)) from error
        try:
            yield _run
        finally:
            ray.shutdown()


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


def _connect(ray: Any, address: str | None, jobs: int | None) -> None:
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {
            "address": "local",  # and not that of RAY_ADDRESS
            "num_cpus": jobs or available_cores(),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _why_not(address: str | None, error: Exception) -> str:
    if address is None:
        return f"cannot start Ray on this machine: {error}"
    # Ray shows its token to no address that it was given, unless it is told to.
    hint = "its version must be the one here; if it asks for a token, set RAY_AUTH_MODE=token"
    return f"cannot use the Ray cluster at {address}: {error} ({hint})"


def _check_address(address: str) -> None:
    """Raise ValueError if nothing answers: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError(
            f"address is {address!r}, expected HOST:PORT of a Ray cluster that this machine is "
            "part of, or auto (ray:// addresses cannot send progress)"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, "
            "or leave the address out to start one for this run"
        ) from error


@contextlib.contextmanager
def _quietly(ray: Any) -> Iterator[None]:
    """Keep Ray from reporting home, and from printing between this program's lines."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # It prints what happened to a lost worker, on standard output; there is no setting for it.
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before
