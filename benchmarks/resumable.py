"""Learning within a task that goes on where it was stopped: checkpoints while a trial is under way.

`run_tasks` gives each task a folder of its own when results are kept, and removes it when the
result is. What learns in there ends with the same numbers, on the CPU bit for bit, however often
and however it is stopped; where there is no such folder, it learns as usual.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from awsgd_rl.benchmarks.engines import stop_asked
from awsgd_rl.runs import atomic_path

CHECKPOINT_SECONDS: Final = 60.0
"""Time between two checkpoints, in seconds."""

_SPENT_FILE: Final = "seconds.json"


class Scratch(NamedTuple):
    """What a task that is under way may use.

    Attributes:
        folder: of this task alone; made by whoever writes the first file.
        seconds: time between two checkpoints, 0 or more.
    """

    folder: Path
    seconds: float


_scratch: ContextVar[Scratch | None] = ContextVar("_scratch", default=None)


@contextlib.contextmanager
def given_scratch(scratch: Scratch) -> Iterator[None]:
    """Let the task in this block write checkpoints."""
    token = _scratch.set(scratch)
    try:
        yield
    finally:
        _scratch.reset(token)


def learn(
    agent: Any,
    unit: Literal["episodes", "timesteps"],
    total: int,
    callback: Callable[[Any], object] = lambda agent: None,
) -> float:
    """Let the fresh agent of a task learn, from the task's last checkpoint on if there is one.

    Args:
        agent: made from the task alone. One of Stable-Baselines3 starts from the beginning: it
            would go on, but with other numbers than if it had not been stopped.
        unit: what `total` counts.
        total: the length of the training.
        callback: called after each batch. What it needs of earlier batches it must find in the
            agent (its `history` is part of a checkpoint): these may have been learned elsewhere.

    Returns:
        Seconds that the training took, before and after it was stopped.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the wish of the engine, at the end of a batch, after a
            checkpoint. A second Ctrl-C ends the batch.
    """
    from awsgd_rl.agents.agent import Agent

    started = time.perf_counter()
    scratch, exact = _scratch.get(), isinstance(agent, Agent)
    # On another machine of a cluster the folder may be out of reach.
    if scratch is None or not exact or not scratch.folder.parent.is_dir():
        agent.learn(**{f"total_{unit}": total}, callback=callback)
        return time.perf_counter() - started
    started -= _restore(agent, scratch.folder)
    left = total - (agent.num_episodes if unit == "episodes" else agent.num_timesteps)
    with stop_asked() as stop:
        write = _writer(scratch, started)

        def after_batch(agent: Any) -> None:
            callback(agent)
            write(agent, stop.is_set())
            if stop.is_set():
                raise KeyboardInterrupt

        if left > 0:
            agent.learn(**{f"total_{unit}": left}, callback=after_batch)
    if stop.is_set():
        raise KeyboardInterrupt
    return time.perf_counter() - started


def _restore(agent: Any, folder: Path) -> float:
    """Let the agent go on from the newest checkpoint that it can; return the seconds spent on it.

    Where none is whole the agent stays as it is, after a warning for each.
    """
    from awsgd_rl.agents.checkpoints import numbered

    for path in reversed(numbered(folder)):
        try:
            agent.restore_training(path)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"the checkpoint {path} is passed over: {error}", RuntimeWarning, stacklevel=3
            )
        else:
            return _spent(folder)
    return 0.0


def _writer(scratch: Scratch, started: float) -> Callable[[Any, bool], None]:
    """Return what writes a checkpoint when it is time, or at once; a failure is a warning."""
    from awsgd_rl.agents.checkpoints import Checkpoints

    checkpoints = Checkpoints(scratch.folder, seconds=scratch.seconds)

    def write(agent: Any, now: bool) -> None:
        last = checkpoints.last
        try:
            if now:
                checkpoints.try_write(agent)
            else:
                checkpoints(agent)
            if checkpoints.last != last:
                with atomic_path(scratch.folder / _SPENT_FILE) as partial:
                    partial.write_text(json.dumps(time.perf_counter() - started))
        except (OSError, ValueError) as error:
            warnings.warn(f"no checkpoint could be written: {error}", RuntimeWarning, stacklevel=2)

    return write


def _spent(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        seconds = float(json.loads((folder / _SPENT_FILE).read_text()))
        return seconds if math.isfinite(seconds) else 0.0
    return 0.0
