"""What the commands that run many trials share: where these run, and going on with the rest."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from awsgd_rl.benchmarks.resumable import CHECKPOINT_SECONDS
from awsgd_rl.benchmarks.workers import TaskError, execution
from awsgd_rl.cli_common import UsageError
from awsgd_rl.runs import read_config
from awsgd_rl.validation import require_non_negative

Config = TypeVar("Config")

TRIALS: Final = "trials"
"""Folder of a run folder in which finished results, and checkpoints of those under way, are kept
for `--resume`."""


@dataclass(frozen=True)
class EngineOptions:
    """Where trials run."""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: Ray (pip install 'awsgd-rl[ray]'), on this machine or
    a cluster. The results are the same."""
    address: str | None = None
    """Ray cluster that this machine is part of, HOST:PORT or auto. Default: a Ray with --jobs CPUs
    is started here, for this run."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between two checkpoints of a trial that is under way (awsgd and reinforce, and their
    variants); 0 for one after every batch."""

    def execution(self, jobs: int | None, store: Path) -> contextlib.AbstractContextManager[None]:
        """Return the block in which `run_tasks` follows these options; see `workers.execution`.

        Raises:
            ValueError: a number is out of range; and what `workers.execution` raises.
        """
        seconds = require_non_negative("--checkpoint-seconds", self.checkpoint_seconds)
        return execution(
            engine=self.engine,
            address=self.address,
            jobs=jobs,
            store=store,
            checkpoint_seconds=seconds,
        )


@dataclass(frozen=True)
class ResumeOptions:
    """Going on."""

    resume: bool = False
    """Go on with the interrupted run that --out holds, with its settings."""


@contextlib.contextmanager
def going_on(command: str, folder: Path, kept: Callable[[], int], what: str) -> Iterator[None]:
    """Let an error or Ctrl-C in here say what is kept, and how to go on with it.

    Args:
        command: "compare" or the like.
        folder: the run folder.
        kept: how many results are kept, asked when it is over.
        what: what one of them is called.

    Raises:
        TaskError: a trial failed.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        yield
    except (TaskError, KeyboardInterrupt) as stop:
        count = kept()
        how = f"awsgd-rl {command} --out {shlex.quote(str(folder))} --resume"
        hint = f"{count} {what}{'s' if count != 1 else ''} kept, go on with: {how}"
        if isinstance(stop, TaskError):
            raise TaskError(f"{stop}; {hint}") from stop
        raise KeyboardInterrupt(hint) from None


def stored_config(command: str, path: Path, given: Config) -> Config:
    """Return the config of an interrupted run, with the number of processes asked for now.

    Args:
        command: "compare" or the like.
        path: the run folder.
        given: the config of the present command line, a dataclass with the fields `algos`, a tuple,
            and `jobs`; what is not its default must be as it was then.

    Raises:
        UsageError: the folder holds another run, or other settings were given now.
    """
    held = read_config(path)
    if held.get("name") != command:
        raise UsageError(f"{str(path)!r} holds a run of {held.get('name')!r}, expected {command!r}")
    kind: Any = type(given)
    now, default = vars(given), vars(kind())
    try:
        then = {**held["config"], "algos": tuple(held["config"]["algos"]), "jobs": now["jobs"]}
        config: Config = kind(**then)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{str(path)!r} holds no run of this version: {error}") from None
    for field in dataclasses.fields(kind):
        value, stored = now[field.name], getattr(config, field.name)
        if value not in (default[field.name], stored):
            raise UsageError(
                f"--{field.name.replace('_', '-')} is {value}, but the run to go on with has "
                f"{stored}: leave it out"
            )
    return config
