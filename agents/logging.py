"""Records of a training run in the files that Stable-Baselines3's users and tools read.

`monitor.csv` as its `Monitor` writes it, `evaluations.npz` as its `EvalCallback` does, and
TensorBoard scalars under its names. Everything is on disk when a call returns, so an exception or
a killed process loses nothing that was recorded before it.
"""

import csv
import glob
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

import numpy as np

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

# As many episodes as SB3 averages `rollout/ep_rew_mean` over.
_WINDOW = 100


class RunLogger:
    """Writes a run's episodes, evaluations and scalars; a context manager.

    Args:
        log_dir: Folder for `monitor.csv` and `evaluations.npz`; made if absent. None: neither.
        tensorboard_log: Folder under which the run gets a new folder of its own,
            `<run_name>_1`, `<run_name>_2`, ... None: no TensorBoard.
        env_id: What `monitor.csv` says the environment was.
        run_name: Name of the run in TensorBoard.
        append: Go on with the files of an earlier run in `log_dir`, and with TensorBoard's last
            folder, rather than start new ones.
        resume: Append from where the files stood then, as `position` told: what was recorded later
            is cut off (of TensorBoard's events, hidden).

    Raises:
        ImportError: if `tensorboard_log` is given and TensorBoard is not installed.
        ValueError: if files to append to are not of these formats.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        tensorboard_log: str | os.PathLike[str] | None = None,
        *,
        env_id: str = "None",
        run_name: str = "run",
        append: bool = False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        append = append or resume is not None
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.started = time.time()
        self._clock = time.perf_counter()
        self._steps_at_start: int | None = None
        self._rewards: deque[float] = deque(maxlen=_WINDOW)
        self._lengths: deque[int] = deque(maxlen=_WINDOW)
        self._successes: deque[float] = deque(maxlen=_WINDOW)
        self._monitor: TextIO | None = None
        self._evaluations: list[tuple[int, list[float], list[int], list[bool] | None]] = []
        self._writer: SummaryWriter | None = None
        self._timesteps = 0
        self._rows = 0  # of monitor.csv
        if resume is not None:
            self._timesteps = resume["timesteps"]
            self._rewards.extend(resume["rewards"])
            self._lengths.extend(resume["lengths"])
            self._successes.extend(resume["successes"])
            if self.log_dir is not None:
                cut_off(self.log_dir / "monitor.csv", resume["monitor_rows"])
        if tensorboard_log is not None:
            purge_from = None if resume is None else self._timesteps + 1
            self._writer = open_writer(Path(tensorboard_log), run_name, append, purge_from)
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            if append:
                self._evaluations = _read_evaluations(self.log_dir / "evaluations.npz")
            if resume is not None:
                del self._evaluations[resume["evaluations"] :]
            self._monitor = self._open_monitor(self.log_dir / "monitor.csv", env_id, append)

    def _open_monitor(self, path: Path, env_id: str, append: bool) -> TextIO:
        if append and path.exists() and path.stat().st_size:
            with path.open() as file:
                header = file.readline()
                self._rows = max(0, sum(1 for _ in file) - 1)
            if not header.startswith("#"):
                raise ValueError(
                    f"{path} is not a monitor file: its first line must be '#' and JSON; "
                    "move it away or log into another folder"
                )
            # Times in the file count from the first run's start.
            self.started = float(json.loads(header[1:])["t_start"])
            return path.open("a", newline="\n")
        file = path.open("w", newline="\n")
        file.write(f"#{json.dumps({'t_start': self.started, 'env_id': env_id})}\n")
        file.write("r,l,t,is_success\n")
        file.flush()
        return file

    def position(self) -> dict[str, Any]:
        """Return where the records stand, as JSON values; what they say so far is on the disk.

        A logger made with it as `resume` goes on from there.
        """
        if self._monitor is not None:
            os.fsync(self._monitor.fileno())
        return {
            "timesteps": self._timesteps,
            "monitor_rows": self._rows,
            "evaluations": len(self._evaluations),
            "rewards": list(self._rewards),
            "lengths": list(self._lengths),
            "successes": list(self._successes),
        }

    def episodes(
        self, rewards: Sequence[float], lengths: Sequence[int], successes: Sequence[float]
    ) -> None:
        """Record finished episodes, in the order in which they ended.

        Args:
            rewards: [B] Undiscounted sums of rewards.
            lengths: [B] Steps.
            successes: [B] 1 or 0; nan where the environment does not say.
        """
        if not len(rewards) == len(lengths) == len(successes):
            raise ValueError(
                "rewards, lengths and successes must have one entry per episode, got "
                f"{len(rewards)}, {len(lengths)} and {len(successes)}"
            )
        now = round(time.time() - self.started, 6)
        rows = []
        for reward, length, success in zip(rewards, lengths, successes, strict=True):
            self._rewards.append(float(reward))
            self._lengths.append(int(length))
            known = not math.isnan(success)
            if known:
                self._successes.append(float(success))
            rows.append((round(float(reward), 6), int(length), now, bool(success) if known else ""))
        if self._monitor is not None:
            csv.writer(self._monitor, lineterminator="\n").writerows(rows)
            self._monitor.flush()
            self._rows += len(rows)

    def scalars(self, timesteps: int, values: Mapping[str, float] | None = None) -> None:
        """Write TensorBoard scalars: the rolling means, the speed, and `values`.

        Args:
            timesteps: Environment steps so far: the horizontal axis.
            values: More scalars. A name without a slash is put under `train/`; values that are
                not finite are left out.
        """
        if self._steps_at_start is None:
            self._steps_at_start = 0
        self._timesteps = timesteps
        if self._writer is None:
            return
        scalars: dict[str, float] = {}
        if self._rewards:
            scalars["rollout/ep_rew_mean"] = float(np.mean(self._rewards))
            scalars["rollout/ep_len_mean"] = float(np.mean(self._lengths))
        if self._successes:
            scalars["rollout/success_rate"] = float(np.mean(self._successes))
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        scalars["time/fps"] = float(int((timesteps - self._steps_at_start) / seconds))
        for name, value in (values or {}).items():
            scalars[name if "/" in name else f"train/{name}"] = float(value)
        self._write(timesteps, scalars)

    def resume_from(self, timesteps: int) -> None:
        """Tell how many steps earlier runs made, so that `time/fps` counts only this one's."""
        self._steps_at_start = self._timesteps = timesteps
        self._clock = time.perf_counter()

    def evaluation(
        self,
        timesteps: int,
        rewards: Sequence[float],
        lengths: Sequence[int],
        successes: Iterable[float] | None = None,
    ) -> None:
        """Record an evaluation of the policy, and write `evaluations.npz` anew.

        Args:
            timesteps: Environment steps of training so far.
            rewards: [E] Undiscounted sums of rewards.
            lengths: [E] Steps.
            successes: [E] 1 or 0; None, or nan anywhere, if unknown.

        Raises:
            ValueError: if the number of episodes differs from that of earlier evaluations.
        """
        known = None if successes is None else [float(value) for value in successes]
        if known is not None and any(math.isnan(value) for value in known):
            known = None
        counts = {len(rewards), len(lengths)} | ({len(known)} if known is not None else set())
        counts |= {len(earlier[1]) for earlier in self._evaluations}
        if len(counts) != 1:
            raise ValueError(
                f"got evaluations of {sorted(counts)} episodes: evaluations.npz holds a matrix, so "
                "each must have the same number"
            )
        flags = None if known is None else [bool(value) for value in known]
        self._evaluations.append(
            (timesteps, [float(r) for r in rewards], [int(n) for n in lengths], flags)
        )
        if self.log_dir is not None:
            self._save_evaluations(self.log_dir / "evaluations.npz")
        scalars = {
            "eval/mean_reward": float(np.mean(rewards)),
            "eval/mean_ep_length": float(np.mean(lengths)),
        }
        if flags is not None:
            scalars["eval/success_rate"] = float(np.mean(flags))
        self._write(timesteps, scalars)

    def _save_evaluations(self, path: Path) -> None:
        steps, rewards, lengths, successes = zip(*self._evaluations, strict=True)
        arrays = {
            "timesteps": np.array(steps),
            "results": np.array(rewards),
            "ep_lengths": np.array(lengths),
        }
        if all(flags is not None for flags in successes):
            arrays["successes"] = np.array(successes)
        # Replaced as a whole: a run that is killed while writing leaves the last good file.
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        temporary.replace(path)

    def _write(self, timesteps: int, scalars: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, timesteps)
        self._writer.flush()

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


NOTHING: Final[Mapping[str, Any]] = {
    "timesteps": 0,
    "monitor_rows": 0,
    "evaluations": 0,
    "rewards": [],
    "lengths": [],
    "successes": [],
}
"""The position at which nothing has been recorded."""


def check_position(position: Any) -> None:
    """Check what is to be given as `resume`; None is no position, and allowed.

    Raises:
        ValueError: it is none.
    """
    if position is None:
        return
    if not isinstance(position, dict) or not all(
        isinstance(position.get(name), type(value)) for name, value in NOTHING.items()
    ):
        raise ValueError(f"got {position!r:.80} for the place of the logs: it is damaged")
    counts = [value for value in position.values() if isinstance(value, int)]
    recent = [x for value in position.values() if isinstance(value, list) for x in value]
    if min(counts) < 0 or not all(isinstance(x, int | float) for x in recent):
        raise ValueError("the place of the logs has negative counts, or no numbers: it is damaged")


def cut_off(path: Path, rows: int) -> None:
    """Keep the header and that many rows of a monitor file, if it is there; for none, nothing."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        for _ in range(2 + rows if rows else 0):
            line = file.readline()
            if not line.endswith(b"\n"):  # the end, or a row that was not written to its end
                file.seek(-len(line), os.SEEK_CUR)
                break
        file.truncate()


def open_writer(
    folder: Path, run_name: str, append: bool, purge_from: int | None
) -> "SummaryWriter":
    """Return a writer into a new folder `<run_name>_<number>` of `folder`.

    Args:
        folder: TensorBoard's.
        run_name: of the run.
        append: write into the last one instead, if there is one.
        purge_from: steps from this one on that are there are hidden; None: none are.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    # Imported here: it takes longer than all the rest, and few runs want it.
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard_log needs TensorBoard, which is not installed: pip install tensorboard"
        ) from error
    numbers = [
        int(number)
        for entry in folder.glob(f"{glob.escape(run_name)}_*")
        if (number := entry.name[len(run_name) + 1 :]).isdecimal()
    ]
    last = max(numbers, default=0)
    index = last if append and last else last + 1
    return SummaryWriter(str(folder / f"{run_name}_{index}"), purge_step=purge_from)


def _read_evaluations(
    path: Path,
) -> list[tuple[int, list[float], list[int], list[bool] | None]]:
    if not path.exists():
        return []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            steps = arrays["timesteps"].tolist()
            rewards = arrays["results"].tolist()
            lengths = arrays["ep_lengths"].tolist()
            flags = arrays["successes"].tolist() if "successes" in arrays else [None] * len(steps)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an evaluations file ({error}): "
            "move it away or log into another folder"
        ) from error
    return list(zip(steps, rewards, lengths, flags, strict=True))
