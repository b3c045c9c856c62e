"""Run folders: what a command computed, written so that a crash never leaves half a file.

A run folder holds `config.json` (enough to run it again), `results.json` once the run is done,
and figures and logs. A file is written under another name beside its own, flushed to the disk and
then renamed, so that a reader sees the old file or the new one and nothing between.
"""

import contextlib
import dataclasses
import enum
import importlib.metadata
import itertools
import json
import math
import numbers
import os
import platform
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from awsgd_rl._version import __version__

CONFIG_FILE: Final = "config.json"
RESULTS_FILE: Final = "results.json"
_SCHEMA: Final = "awsgd_rl/run/1"
_RESULT_KEYS: Final = frozenset(
    {"name", "version", "config", "device", "started", "seconds", "rows", "summary"}
)
# What this package writes into a run folder: of a run, `overwrite` removes these and nothing else.
_OWN_FILES: Final = (
    "results.json",
    "history.json",
    "monitor.csv",
    "evaluations.npz",
    "*.png",
    "*.svg",
    "*.gif",
    "*.mp4",
    "best.json",
    "study.db",
    "study.db-journal",
    "report.html",
    ".*.partial*",
)
_OWN_FOLDERS: Final = ("agent", "checkpoints", "snapshots", "tensorboard", "trials", "wandb")
_RESUMABLE: Final = ("bench", "compare", "train", "tune")
_PACKAGES: Final = ("gymnasium", "numba", "numpy", "stable-baselines3", "torch")


class RunExistsError(FileExistsError, ValueError):
    """The folder already holds a run, and was not to be written over."""


@final
class RunFolder:
    """The folder of one run. Make it with `create`, fill it with the `write` methods.

    Attributes:
        path: The folder.
        name: The command or bench that fills it.
        config: The run's settings as plain JSON values.
        started: When the run started, UTC, ISO 8601.
    """

    def __init__(self, path: Path, name: str, config: dict[str, Any], started: str) -> None:
        self.path = path
        self.name = name
        self.config = config
        self.started = started
        self._clock: float | None = time.perf_counter()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        name: str,
        config: Mapping[str, Any],
        overwrite: bool = False,
        resume: bool = False,
    ) -> "RunFolder":
        """Make the folder and write its `config.json`.

        Call it when the run's settings are known to be good: with `overwrite` the old run's files
        go here. Files that this package does not write are left alone.

        Args:
            path: The folder; made with its parents when absent.
            name: The command or bench that fills it.
            config: The run's settings, enough to run it again.
            overwrite: Replace a run that the folder holds.
            resume: Go on with the run of this name that the folder holds: its files stay.

        Raises:
            RunExistsError: If the folder holds a run, or files of another program under a run's
                names, and neither `overwrite` nor `resume` allows its use.
            ValueError: If the path is not a folder, or both `overwrite` and `resume` are asked for.
        """
        if overwrite and resume:
            raise ValueError("overwrite and resume are both set, expected at most one of them")
        path = Path(path)
        check_free(path, name, overwrite=overwrite or resume)
        settings = to_json(config)
        if resume:
            begun = read_config(path)
            if begun.get("name") != name:
                raise RunExistsError(
                    f"{str(path)!r} holds a run of {begun.get('name')!r}, expected {name!r}"
                )
            _warn_of_other_versions(path, begun)
            folder = cls(path, name, settings, str(begun["started"]))
            folder._clock = None  # how long it ran before nobody knows
            return folder
        started = datetime.now(UTC).isoformat(timespec="seconds")
        path.mkdir(parents=True, exist_ok=True)
        if overwrite and is_run(path):
            _remove_run_files(path)
        folder = cls(path, name, settings, started)
        folder.write_json(
            CONFIG_FILE,
            {
                "schema": _SCHEMA,
                "name": name,
                "version": __version__,
                "started": started,
                "python": platform.python_version(),
                "platform": platform.platform(terse=True),
                "packages": _package_versions(),
                "config": settings,
            },
        )
        return folder

    def write_json(self, name: str, obj: object) -> Path:
        """Write `obj` as JSON to the file `name`, non-finite numbers as null; return its path."""
        path = self.path / name
        with atomic_path(path) as partial:
            partial.write_text(
                json.dumps(to_json(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n",
                encoding="utf-8",
            )
        return path

    def write_results(
        self, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], device: str
    ) -> Path:
        """Write `results.json`; return its path. Of a run that was resumed, `seconds` are null.

        Args:
            rows: [N] one mapping from column names to values for each seed or setting.
            summary: Flat map from names to numbers; a number that has an interval has `_low` and
                `_high` beside it.
            device: Where it was computed ("cuda:0", or `describe_cpu()`).

        Raises:
            ValueError: If a value of the summary is not a number.
        """
        for key, value in summary.items():
            if value is not None and not isinstance(value, numbers.Real | np.number | np.bool_):
                raise ValueError(f"summary[{key!r}] is {value!r}, expected a number")
        return self.write_json(
            RESULTS_FILE,
            {
                "name": self.name,
                "version": __version__,
                "config": self.config,
                "device": device,
                "started": self.started,
                "seconds": self._clock and round(time.perf_counter() - self._clock, 3),
                "rows": list(rows),
                "summary": summary,
            },
        )


def new_folder(command: str, root: str | Path = "runs") -> Path:
    """Make an empty folder `runs/<command>-<time stamp>` that no other run has; return its path."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    Path(root).mkdir(parents=True, exist_ok=True)  # fails where it cannot be, a dangling link too
    for number in itertools.count(1):
        path = Path(root) / (f"{command}-{stamp}" + (f"-{number}" if number > 1 else ""))
        # Runs started in the same second must not share a folder, so looking first will not do.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def describe_cpu() -> str:
    """Return the processor's name and how many cores this process may use, for results."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu ({name.strip()}, {cores} cores)"


def is_run(path: str | Path) -> bool:
    """Return whether the folder holds a run that this package wrote."""
    try:
        config = json.loads((Path(path) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("schema", "")).startswith("awsgd_rl/run/")


def check_free(path: str | Path, name: str, *, overwrite: bool = False) -> None:
    """Check, changing nothing, that a new run of this name may be written to the folder.

    Raises:
        RunExistsError: If it holds a run and `overwrite` is false, or files or folders of another
            program under a run's names, which are never written over.
        ValueError: If the path exists and is not a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is not a folder: choose another path with --out")
    if is_run(path):
        if not overwrite:
            resumable = (
                read_config(path).get("name") == name and name.partition(" ")[0] in _RESUMABLE
            )
            resume = " --resume to go on with it," if resumable else ""
            raise RunExistsError(
                f"{str(path)!r} already holds a run: pass --overwrite to replace it,{resume} or "
                "another folder with --out"
            )
        return
    for own in (CONFIG_FILE, RESULTS_FILE, *_OWN_FOLDERS):
        if (path / own).exists():
            raise RunExistsError(
                f"{str(path)!r} holds a {own} that is not of this package, or is damaged, and is "
                "never written over: choose another folder with --out"
            )


def read_config(path: str | Path) -> dict[str, Any]:
    """Return what the `config.json` of a run folder holds.

    Raises:
        ValueError: If there is none, or it is damaged or not of this package.
    """
    config = _read_object(Path(path), CONFIG_FILE)
    if not is_run(path) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{str(path)!r} holds a {CONFIG_FILE} that is not of this package")
    return config


def read_results(path: str | Path) -> dict[str, Any]:
    """Return the results of a run, given its folder or its `results.json`.

    Raises:
        ValueError: If there is none, or it is damaged or not of this package.
    """
    path = Path(path)
    folder = path.parent if path.name == RESULTS_FILE and not path.is_dir() else path
    results = _read_object(folder, RESULTS_FILE)
    missing = sorted(_RESULT_KEYS - results.keys())
    if missing or not isinstance(results["rows"], list) or not isinstance(results["summary"], dict):
        raise ValueError(
            f"{str(folder / RESULTS_FILE)!r} is not a run's results"
            + (f": it lacks {', '.join(missing)}" if missing else "")
        )
    return results


def to_json(obj: object) -> Any:
    """Return `obj` as plain JSON values; numbers that are not finite become None.

    Handles mappings, sequences, sets, dataclasses, enums, paths, NumPy scalars and arrays, and
    anything else with `tolist` (a tensor).

    Raises:
        ValueError: If a value has no JSON form.
    """
    if obj is None or isinstance(obj, bool | str | int):
        return obj.value if isinstance(obj, enum.Enum) else obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, enum.Enum):
        return to_json(obj.value)
    if isinstance(obj, Path):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_json(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_json(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_json(value) for value in obj]
    if isinstance(obj, set | frozenset):
        return [to_json(value) for value in sorted(obj)]
    if hasattr(obj, "tolist"):
        return to_json(obj.tolist())
    raise ValueError(f"{obj!r} has no JSON form: use numbers, strings, lists and mappings")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, its file takes the place of `path`.

    The file appears under its own name whole and on the disk, or not at all: an exception or a
    crash inside the block leaves what was at `path` as it was.
    """
    path = Path(path)
    # The suffix stays last: Matplotlib and NumPy choose the format by it.
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends well, it takes the place of `path`.

    The folder appears under its own name whole, or not at all: an exception inside the block leaves
    what was at `path` as it was. The files are the block's to flush to the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    partial, old = (path.with_name(f".{path.name}.{token}.{end}") for end in ("partial", "old"))
    try:
        partial.mkdir()
        yield partial
        _sync_folder(partial)
        if path.exists():
            path.replace(old)
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened to be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = name == RESULTS_FILE and is_run(folder)
        reason = "the run has not finished" if unfinished else "it is not a run folder"
        raise ValueError(f"{str(folder)!r} holds no {name}: {reason}") from None
    except NotADirectoryError:
        raise ValueError(f"{str(folder)!r} is not a folder: expected a run folder") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is damaged: expected a JSON object")
    return content


def _warn_of_other_versions(path: Path, begun: Mapping[str, Any]) -> None:
    """Tell whoever resumes a run that other packages may give it other numbers."""
    packages = begun.get("packages")
    before = {"awsgd-rl": begun.get("version"), "python": begun.get("python")}
    before |= packages if isinstance(packages, dict) else {}
    now = {"awsgd-rl": __version__, "python": platform.python_version(), **_package_versions()}
    others = [
        f"{name} {before[name]}, now {version}"
        for name, version in now.items()
        if before.get(name, version) != version
    ]
    if others:
        warnings.warn(
            f"{str(path)!r} was begun with {', '.join(others)}: it may not end with the numbers of "
            "a run that was never stopped",
            stacklevel=3,
        )


def _remove_run_files(path: Path) -> None:
    # config.json goes last, by being replaced: if this is cut short, the folder is still a run.
    for pattern in _OWN_FILES:
        for file in path.glob(pattern):
            # What a crash left of an agent that was being saved is a folder.
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink()
    for name in _OWN_FOLDERS:
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
