"""Workers that draw chunks of episodes: local processes and Ray actors behind one interface.

Parameters go to a worker once for each version that it draws with. Who gives it chunks, and what
becomes of one whose worker is lost, is `rollout_pool.py`.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any, NamedTuple, Protocol

from awsgd_rl.agents.rollout_samplers import Chunk, Parameters, Sampler
from awsgd_rl.ray_connection import ray_connection

__all__ = ["Engine", "ProcessEngine", "RayEngine", "RolloutError", "Worker", "WorkerLostError"]


class RolloutError(RuntimeError):
    """A chunk could not be drawn; the message says which one, and what was raised."""


class WorkerLostError(Exception):
    """A worker is gone without an answer."""


class Failure(NamedTuple):
    """What an answer is when a chunk raised an exception (which need not be picklable)."""

    summary: str
    details: str

    def error(self, chunk: Chunk) -> RolloutError:
        """Return it as the learner's exception, the worker's traceback as a note."""
        error = RolloutError(f"{chunk}: {self.summary}")
        error.add_note(self.details)
        return error


class Worker(Protocol):
    """One worker, as the thread that stands for it sees it."""

    def draw(self, version: int, message: Any, chunk: Chunk) -> tuple[bytes, bool]:
        """Return the pickled answer, and whether the parameters had to be sent.

        Raises:
            WorkerLostError: the worker ended before it answered.
        """

    def kill(self) -> None:
        """End it at once; a `draw` under way then raises."""

    def close(self) -> None:
        """End it, and let go of everything it held here."""


class Engine(Protocol):
    """Where workers run."""

    def publish(self, parameters: Parameters) -> tuple[Any, int]:
        """Return a version's parameters as workers take them, and how many bytes they are."""

    def start(self) -> Worker:
        """Start a worker."""

    def close(self) -> None:
        """Let go of what was started, after all workers."""


class Answering:
    """The worker's end: a sampler, which holds the parameters that it was given last.

    Args:
        sampler: pickled where it has come from another process.
    """

    def __init__(self, sampler: Sampler | bytes) -> None:
        self._given = sampler
        self._sampler: Sampler | None = None

    def answer(self, parameters: Parameters | None, chunk: Chunk) -> Any:
        """Return the chunk's episodes, or what went wrong.

        Args:
            parameters: None for those of the chunk before.
            chunk: what to draw.
        """
        try:
            sampler = self._sampler
            if sampler is None:
                # Here, so that a module that is not there is told as any other error.
                given = self._given
                sampler = pickle.loads(given) if isinstance(given, bytes) else given
                self._sampler = sampler
            if parameters is not None:
                sampler.load(parameters)
            return sampler.draw(chunk)
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


# -- local processes ----------------------------------------------------------------------------


class ProcessEngine:
    """Workers are processes of this machine. Spawned: a fork may hang once threads were started.

    Args:
        sampler: what each worker draws with.

    Raises:
        ValueError: the sampler cannot be sent to another process.
    """

    def __init__(self, sampler: Sampler) -> None:
        try:
            self._sampler = _pickled(sampler)
        except Exception as error:
            raise ValueError(
                f"the environment cannot be sent to another process ({error}): pass its id, or "
                "make_env=, a function at the top level of a module that makes it"
            ) from None

    def publish(self, parameters: Parameters) -> tuple[Any, int]:
        """Return them pickled, once for all workers."""
        message = _pickled(parameters)
        return message, len(message)

    def start(self) -> Worker:
        """Start a process."""
        return _ProcessWorker(self._sampler)

    def close(self) -> None:
        """Nothing is left when the workers are closed."""


class _ProcessWorker:
    def __init__(self, sampler: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, sampler), daemon=True)
        with _ctrl_c_kept_from_children():
            self._process.start()
        theirs.close()
        self._version: int | None = None

    def draw(self, version: int, message: Any, chunk: Chunk) -> tuple[bytes, bool]:
        new = version != self._version
        try:
            self._connection.send_bytes(message if new else b"")
            self._connection.send_bytes(_pickled(chunk))
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise WorkerLostError from error
        self._version = version
        return answer, new

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()


def _work(connection: Connection, sampler: bytes) -> None:
    """Answer until the learner is gone."""
    # Ctrl-C reaches the whole process group; the learner decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answering = Answering(sampler)
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = connection.recv_bytes()
            chunk = pickle.loads(connection.recv_bytes())
            parameters = pickle.loads(message) if message else None
            connection.send_bytes(_pickled(answering.answer(parameters, chunk)))


def _end_with_parent() -> None:
    # Also in the middle of a chunk, which may be long.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """Let a process that is started in here not see Ctrl-C, even before it can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it would undo what follows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


# -- Ray ----------------------------------------------------------------------------------------


class RayEngine:
    """Workers are actors of a Ray cluster; parameters go through its object store.

    Args:
        sampler: what each worker draws with.
        workers: how many there will be.
        address: of a running cluster; None for the one that this process uses already, or else
            one of its own on this machine, which ends with `close`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address.
    """

    def __init__(self, sampler: Sampler, workers: int, address: str | None = None) -> None:
        self._connection = contextlib.ExitStack()
        ray = self._ray = self._connection.enter_context(ray_connection(address, workers))
        # By value where a module has no name that another process knows it by.
        by_value: Any = ray.cloudpickle
        self._sampler: bytes = by_value.dumps(sampler)
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(_RayActor)

    def publish(self, parameters: Parameters) -> tuple[Any, int]:
        """Put them into the object store, from where each machine fetches them once."""
        return self._ray.put(dict(parameters)), len(_pickled(parameters))

    def start(self) -> Worker:
        """Start an actor."""
        return _RayWorker(self._ray, self._actor.remote(self._sampler))

    def close(self) -> None:
        """End the cluster if it was started here."""
        self._connection.close()


class _RayActor(Answering):
    def draw(self, parameters: Parameters | None, chunk: Chunk) -> bytes:
        return _pickled(self.answer(parameters, chunk))


class _RayWorker:
    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._version: int | None = None

    def draw(self, version: int, message: Any, chunk: Chunk) -> tuple[bytes, bool]:
        new = version != self._version
        try:
            answer = self._actor.draw.remote(message if new else None, chunk)
            pickled: bytes = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError from error
        self._version = version
        return pickled, new

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def close(self) -> None:
        self.kill()
