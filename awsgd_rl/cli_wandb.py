"""Weights & Biases, for those who have it: what goes to TensorBoard is sent there too."""

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from awsgd_rl.cli_common import UsageError
from awsgd_rl.runs import CONFIG_FILE, RunFolder


@dataclass(frozen=True)
class WandbOptions:
    """Sending what is measured to Weights & Biases."""

    wandb: str | None = None
    """Project of Weights & Biases that the run is sent to (pip install 'awsgd-rl[wandb]'). With
    WANDB_MODE=offline it stays on this machine, in the run folder. Default: not sent."""


def check_wandb(project: str | None) -> None:
    """Check, before anything is written, that a run can be sent.

    Raises:
        UsageError: If that is asked for, and the package is not installed.
    """
    if project is not None:
        _import_wandb()


@contextlib.contextmanager
def wandb_run(project: str | None, folder: RunFolder, *, quiet: bool = False) -> Iterator[None]:
    """Send what is written to TensorBoard in here to a project as well; None: send nothing.

    A run that goes on in its folder goes on in the project too.

    Raises:
        UsageError: If the service does not take the run: not logged in, no connection.
    """
    if project is None:
        yield
        return
    wandb = _import_wandb()
    # The same for as long as the folder holds this run, and for no other run.
    identity = folder.path.resolve().name.encode() + (folder.path / CONFIG_FILE).read_bytes()
    try:
        # Before TensorBoard's writer is opened: that is what it listens to.
        run = wandb.init(
            project=project,
            dir=str(folder.path),
            config=folder.config,
            id=hashlib.sha256(identity).hexdigest()[:16],
            resume="allow",
            sync_tensorboard=True,
            settings=wandb.Settings(silent=quiet, console="off"),
        )
    except wandb.Error as error:
        raise UsageError(
            f"Weights & Biases did not take the run: {error} (log in with `wandb login`, or set "
            "WANDB_MODE=offline)"
        ) from error
    with run:
        yield


def _import_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UsageError(
            f"--wandb needs Weights & Biases ({error}): pip install 'awsgd-rl[wandb]'"
        ) from None
