"""Chunks given to workers, until all are drawn.

A thread of the learner's process stands for each worker: it takes the next chunk, hands it over,
and waits for the answer. A worker that is lost is started again, and its chunk is drawn again by
whichever worker is free: chunks depend on their numbers alone, so nothing changes.
"""

import pickle
import queue
import threading
from dataclasses import dataclass, field
from typing import Any

from awsgd_rl.agents.rollout_samplers import Chunk
from awsgd_rl.agents.rollout_workers import Engine, Failure, RolloutError, Worker, WorkerLostError

__all__ = ["Job", "Traffic", "WorkerPool"]

ATTEMPTS = 3
"""Workers that one chunk may cost, before it is taken to be what ends them."""


@dataclass(order=True)
class Job:
    """A chunk to be drawn with a version of the parameters. Earlier batches go first.

    Attributes:
        chunk: what to draw.
        version: number of the parameters, larger for later ones.
        message: the parameters, as the engine published them.
        size: bytes of the message.
        attempts: workers lost at it.
        unwanted: set where the answer is of no use any more.
        outcome: the answer, or the exception that it came to.
    """

    chunk: Chunk
    version: int
    message: Any = field(compare=False)
    size: int = field(compare=False)
    attempts: int = field(default=0, compare=False)
    unwanted: bool = field(default=False, compare=False)
    outcome: Any = field(default=None, compare=False)


@dataclass
class Traffic:
    """What learner and workers have sent each other.

    Attributes:
        episodes: how many were received.
        received: bytes of them.
        sent: bytes of parameters.
        lost: workers lost.
    """

    episodes: int = 0
    received: int = 0
    sent: int = 0
    lost: int = 0


class WorkerPool:
    """Workers that draw jobs, each with a thread that stands for it.

    Args:
        engine: where they run.
        workers: how many.
    """

    def __init__(self, engine: Engine, workers: int) -> None:
        self.engine = engine
        self.traffic = Traffic()
        self._waiting: queue.PriorityQueue[tuple[bool, Any]] = queue.PriorityQueue()
        # Not futures: Ctrl-C while one is waited for may leave its lock taken for ever.
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"rollouts-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Let a job be drawn by the next worker that is free."""
        self._waiting.put((True, job))

    def finish(self, jobs: list[Job]) -> list[Any]:
        """Wait for jobs; return their answers in the order of the jobs.

        Raises:
            RolloutError: one could not be drawn.
        """
        while any(job.outcome is None for job in jobs):
            self._done.get()
        for job in jobs:
            if isinstance(job.outcome, Exception):
                raise job.outcome
        return [job.outcome for job in jobs]

    def close(self) -> None:
        """End all workers, whatever they are at."""
        with self._lock:
            self._closing.set()
            for worker in self._workers:
                worker.kill()
        for _ in self._threads:
            self._waiting.put((False, 0))  # before all jobs
        for thread in self._threads:
            thread.join()
        self.engine.close()

    def _serve(self) -> None:
        worker: Worker | None = None
        while True:
            is_job, job = self._waiting.get()
            if not is_job or self._closing.is_set():
                break
            if job.unwanted:
                continue
            try:
                if worker is None:
                    worker = self._start()
                job.outcome = self._draw(worker, job)
            except WorkerLostError as error:
                if self._closing.is_set():
                    break
                if worker is not None:
                    self._stop(worker)
                worker = None
                job.attempts += 1
                if job.attempts < ATTEMPTS:
                    self.submit(job)
                    continue
                job.outcome = RolloutError(
                    f"{job.chunk}: {ATTEMPTS} workers ended at it "
                    f"({type(error.__cause__).__name__}): the environment may end its process or "
                    "want more memory than there is, or the script starts itself again where it "
                    'has no `if __name__ == "__main__":`'
                )
            except Exception as error:
                job.outcome = RolloutError(f"{job.chunk}: {type(error).__name__}: {error}")
            self._done.put(None)
        if worker is not None:
            self._stop(worker)

    def _start(self) -> Worker:
        worker = self.engine.start()
        with self._lock:
            self._workers.add(worker)
            if self._closing.is_set():
                worker.kill()
        return worker

    def _stop(self, worker: Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
            self.traffic.lost += not self._closing.is_set()
        worker.close()

    def _draw(self, worker: Worker, job: Job) -> Any:
        pickled, sent = worker.draw(job.version, job.message, job.chunk)
        answer = pickle.loads(pickled)
        if isinstance(answer, Failure):
            return answer.error(job.chunk)
        with self._lock:
            self.traffic.episodes += job.chunk.n_target + job.chunk.n_exploration
            self.traffic.received += len(pickled)
            self.traffic.sent += job.size if sent else 0
        return answer
