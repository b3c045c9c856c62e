"""Stopping a training and going on with it: the checkpoints of `awsgd-rl train`, and `--resume`."""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from awsgd_rl.cli_common import PROGRAM, UsageError
from awsgd_rl.cli_environment import choose_env, read_env_kwargs
from awsgd_rl.runs import read_config
from awsgd_rl.validation import require_integer, require_non_negative

if TYPE_CHECKING:
    from awsgd_rl.agents.checkpoints import Checkpoints

CHECKPOINTS: Final = "checkpoints"

Options = TypeVar("Options")


@dataclass(frozen=True)
class CheckpointOptions:
    """Stopping and going on."""

    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints, or more where one takes long to write (a replay buffer): at
    most a twentieth of the time goes into them. 0 for one after every batch."""
    keep_checkpoints: int = 3
    """How many are kept: an older one goes when a newer one is whole on the disk."""
    resume: bool = False
    """Go on with the interrupted run that --out holds, with its settings."""


def value_of(argv: Sequence[str], option: str) -> str | None:
    """Return what `argv` gives for an option, before it can be parsed."""
    value = None
    for index, argument in enumerate(argv):
        if argument == option and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


def stored_config(argv: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the run that `--resume` is to go on with; nothing without it.

    Raises:
        UsageError: If the folder holds a run of another command.
        ValueError: If it holds none.
    """
    out = value_of(argv, "--out")
    if "--resume" not in argv or out is None:
        return {}
    stored = read_config(out)
    if stored.get("name") != "train":
        raise UsageError(f"{out!r} holds a run of {stored.get('name')!r}, expected 'train'")
    config: dict[str, Any] = stored["config"]
    return config


def stored_options(
    stored: Mapping[str, Any], asked: Options, settings: dict[str, Any], config_class: Any
) -> tuple[Options, dict[str, Any]]:
    """Return the common options and the algorithm's settings of the run to go on with.

    Args:
        stored: Its settings.
        asked: The common options given now (`TrainOptions`).
        settings: The algorithm's settings given now.
        config_class: Of the algorithm's settings.

    Raises:
        UsageError: If other options were given now that differ from the run's.
    """
    kind: Any = type(asked)
    kept = {"preset": None, "total_timesteps": None, "total_episodes": None, **stored}
    kept = {name: _read(value) for name, value in kept.items()}
    now = {**vars(asked), **settings}
    if missing := sorted(now.keys() - kept.keys()):
        raise UsageError(f"the run to go on with has no {missing[0]}: it is of another version")
    defaults = {**vars(kind()), **vars(config_class())}
    if now["env"] is not None or now["preset"] is not None:
        now["env"], now["preset"] = choose_env(now["env"], now["preset"]), None
    if read_env_kwargs(now["env_kwargs"]) == read_env_kwargs(kept["env_kwargs"]):
        now["env_kwargs"] = kept["env_kwargs"]
    for name, value in now.items():
        if value not in (defaults[name], kept[name]):
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option} is {value}, but the run to go on with has {kept[name]}: leave it out"
            )
    return kind(**{name: kept[name] for name in vars(asked)}), {n: kept[n] for n in settings}


def make_checkpoints(path: Path, options: CheckpointOptions) -> "Checkpoints":
    """Return what writes the checkpoints of a run.

    Raises:
        ValueError: If a number is out of range.
    """
    from awsgd_rl.agents.checkpoints import Checkpoints

    seconds = require_non_negative("--checkpoint-seconds", options.checkpoint_seconds)
    keep = require_integer("--keep-checkpoints", options.keep_checkpoints)
    return Checkpoints(path / CHECKPOINTS, seconds=seconds, keep=keep)


def begin(agent: Any, path: Path, checkpoints: "Checkpoints", *, resume: bool) -> str:
    """Write the first checkpoint, or go on from the newest one that is whole.

    Returns:
        What to say of it.

    Raises:
        UsageError: If there is none to go on from.
        OSError: If none can be written.
        ValueError: If all are damaged, or one is of a newer version.
    """
    from awsgd_rl.agents.checkpoints import newest

    last = newest(checkpoints.folder) if resume else None
    if last is None:
        # The first one is written before anything is logged.
        if resume and (path / "monitor.csv").exists():
            raise UsageError(f"{checkpoints.folder} is gone: start again with --overwrite")
        checkpoints.write(agent)
        return ""
    agent.restore_training(last)
    checkpoints.last = last
    return f", from {agent.num_episodes:,} episodes on"


def how_to_go_on(path: Path) -> str:
    """Return what to say when a run has been stopped."""
    return f"go on with: {PROGRAM} train --out {shlex.quote(str(path))} --resume"


def remove_checkpoints(path: Path) -> None:
    """Remove the checkpoints of a run that is done."""
    shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)


def _read(value: Any) -> Any:
    """Return a setting as it was before JSON, which has no infinity and no tuples."""
    return math.inf if value == "inf" else tuple(value) if isinstance(value, list) else value
