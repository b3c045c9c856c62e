"""The last few training states of a run, one written every so often while it learns."""

import shutil
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from awsgd_rl import validation
from awsgd_rl.agents.training_file import DamagedError, read_about

if TYPE_CHECKING:
    from awsgd_rl.agents.agent import Agent
    from awsgd_rl.agents.stable_baselines import StableBaselines

SECONDS: Final = 60.0
"""Time between two checkpoints, in seconds."""
KEEP: Final = 3
"""How many are kept."""

_SHARE: Final = 1 / 20  # of the time, at most, goes into writing them
_DIGITS = 12


@final
class Checkpoints:
    """Writes an agent's training state every so often: a callback of `learn`.

        agent.learn(total_episodes=20_000, callback=Checkpoints("run/checkpoints"))

    Each is a folder named by the number of episodes. An older one goes only when a newer one is
    whole on the disk. One that took long to write (a large replay buffer) is followed by a longer
    wait, so that at most a twentieth of the time goes into them. Where one cannot be written (the
    disk is full), a warning says so, those that are there stay, and the training goes on.

    Args:
        folder: where they are; made when the first is written.
        seconds: time between two, 0 or more; at 0 one is written after every batch, however long
            that takes.
        keep: how many are kept, at least 1.

    Attributes:
        last: the last one that was written, or None.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, folder: str | Path, *, seconds: float = SECONDS, keep: int = KEEP) -> None:
        self.folder = Path(folder)
        self.seconds = validation.require_non_negative("seconds", seconds)
        self.keep = validation.require_integer("keep", keep)
        self.last: Path | None = None
        self._clock = time.monotonic()
        self._took = 0.0  # seconds, the last one

    def __call__(self, agent: "Agent | StableBaselines") -> None:
        """Write one if it is time; a failure to write is a warning."""
        wait = max(self.seconds, self._took / _SHARE) if self.seconds else 0.0
        if time.monotonic() - self._clock >= wait:
            self.try_write(agent)

    def try_write(self, agent: "Agent | StableBaselines") -> bool:
        """Write one, now; return whether that went well, after a warning if it did not."""
        try:
            self.write(agent)
        except OSError as error:
            kept = f"the last one is {self.last}" if self.last else "there is none yet"
            warnings.warn(
                f"no checkpoint could be written ({error}); {kept}, and the training goes on",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True

    def write(self, agent: "Agent | StableBaselines") -> Path:
        """Write one, now, and remove those that are no longer kept; return its path.

        Raises:
            OSError: it could not be written; those that are there stay.
        """
        path = self.folder / f"{agent.num_episodes:0{_DIGITS}d}"
        begun = time.monotonic()
        try:
            agent.save_training(path)
        finally:
            self._clock = time.monotonic()
            self._took = self._clock - begun
        self.last = path
        others = [other for other in numbered(self.folder) if other != path]
        # What is of more episodes was damaged, or the training would have gone on from there.
        older = [other for other in others if int(other.name) < agent.num_episodes]
        kept = older[len(older) - self.keep + 1 :] if self.keep > 1 else []
        for other in {*others} - {*kept}:
            shutil.rmtree(other, ignore_errors=True)
        for leftover in self.folder.glob(".*.partial"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        return path


def numbered(folder: str | Path) -> list[Path]:
    """Return what has a checkpoint's name in a folder, the oldest first."""
    folder = Path(folder)
    found = [path for path in folder.iterdir() if _is_number(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def newest(folder: str | Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    Each that is damaged or cut short is passed over, with a warning that names it.

    Raises:
        ValueError: all are damaged, or one was written by a newer version.
    """
    paths = numbered(folder)
    for path in reversed(paths):
        try:
            read_about(path)
        except DamagedError as error:
            warnings.warn(
                f"the checkpoint {path} is passed over: {error}", RuntimeWarning, stacklevel=2
            )
        else:
            return path
    if paths:
        raise ValueError(
            f"{folder} holds {len(paths)} checkpoint{'s' * (len(paths) > 1)}, all of them damaged: "
            "nothing is left to go on from; start the run again"
        )
    return None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
