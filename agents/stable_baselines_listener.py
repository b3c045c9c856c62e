"""What counts episodes while an algorithm of Stable-Baselines3 learns, and writes its logs."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.monitor import ResultsWriter

from awsgd_rl.agents.history import record
from awsgd_rl.agents.logging import cut_off, open_writer

if TYPE_CHECKING:
    from awsgd_rl.agents.stable_baselines import StableBaselines


class StopLearning(Exception):  # noqa: N818 (it is no error)
    """The callback said so: between two batches, so that the training can go on from there."""


class Listener(BaseCallback):
    """Counts episodes, keeps the history and writes `monitor.csv`.

    Args:
        agent: Whose history it is.
        total_episodes: After how many more to stop; None: never.
        callback: Called with the agent after each entry of the history; False stops.
        monitor: Path of `monitor.csv`; None: not written. Its first `agent.monitor_rows` rows stay.
    """

    def __init__(
        self,
        agent: "StableBaselines",
        total_episodes: int | None,
        callback: "Callable[[StableBaselines], bool | None] | None",
        monitor: Path | None,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.last_episode = None if total_episodes is None else agent.num_episodes + total_episodes
        self.callback = callback
        self.monitor = monitor
        self.writer: ResultsWriter | None = None
        self.returns: list[float] = []
        self.successes: list[float] = []
        self.started = False
        self.updates = int(sum(agent.history["updates"]))

    def _on_training_start(self) -> None:
        self._estimate_length()
        self.t_start = time.time()
        if self.monitor is not None:
            self.writer = self._open_monitor(self.monitor)

    def _on_rollout_start(self) -> None:
        # The updates of the last batch have been made by now.
        if self.started and not self._end_batch():
            raise StopLearning
        self.started = True

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._end_episode(info)
        return self.last_episode is None or self.agent.num_episodes < self.last_episode

    def _on_training_end(self) -> None:
        self._end_batch()

    def close(self) -> None:
        """Close `monitor.csv`."""
        if self.writer is not None:
            self.writer.close()

    def _open_monitor(self, path: Path) -> ResultsWriter:
        agent = self.agent
        cut_off(path, agent.monitor_rows)
        goes_on = agent.monitor_rows > 0 and path.exists() and path.stat().st_size > 0
        header: dict[str, float | str] = {}
        if goes_on:
            with path.open() as file:
                first = file.readline()
            try:
                # Times in the file count from the first run's start.
                self.t_start = float(json.loads(first.removeprefix("#"))["t_start"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{path} is not a monitor file: its first line must be '#' and JSON; move it "
                    "away or log into another folder"
                ) from None
        else:
            agent.monitor_rows = 0
            env_id = agent.env.spec.id if agent.env.spec else type(agent.env).__name__
            header = {"t_start": self.t_start, "env_id": env_id}
        return ResultsWriter(
            str(path),
            header,
            # One wrapper's file has no column for a success that not every env reports.
            extra_keys=("is_success",),
            override_existing=not goes_on,
        )

    def _end_episode(self, info: dict[str, Any]) -> None:
        self.agent.num_episodes += 1
        success = float(info.get("is_success", math.nan))
        self.returns.append(info["episode"]["r"])
        self.successes.append(success)
        if self.writer is not None:
            seconds = round(time.time() - self.t_start, 6)
            self.writer.write_row({**info["episode"], "t": seconds, "is_success": success})
            self.agent.monitor_rows += 1
        self._estimate_length()

    def _estimate_length(self) -> None:
        """Let schedules run over the episodes, the training's length in steps being unknown.

        It is estimated anew from the episodes so far, those of an earlier `learn` included.
        """
        done = self.agent.num_episodes
        if self.last_episode is not None and done:
            steps = self.agent.num_timesteps * self.last_episode // done
            self.model._total_timesteps = max(1, steps)

    def _end_batch(self) -> bool:
        """Add to the history if an episode has ended; return whether to go on."""
        if not self.returns:
            return True
        agent = self.agent
        entry = dict.fromkeys(agent.history, math.nan)
        entry["episodes"] = agent.num_episodes
        entry["timesteps"] = agent.num_timesteps
        updates = cast("Any", self.model)._n_updates
        entry["updates"], self.updates = updates - self.updates, updates
        entry["success"] = float(np.mean(self.successes))
        entry["return"] = float(np.mean(self.returns))
        entry |= getattr(self.model, "diagnostics", {})
        record(agent.history, entry)
        self.returns, self.successes = [], []
        return self.callback is None or self.callback(agent) is not False


class _ContinuedTensorBoard(TensorBoardOutputFormat):
    """TensorBoard's last folder of a run, in which later steps are hidden."""

    def __init__(self, folder: Path, run_name: str, timesteps: int) -> None:
        # Not the parent's __init__, whose writer hides nothing.
        self.writer = open_writer(folder, run_name, append=True, purge_from=timesteps + 1)
        self._is_closed = False


def continued_logger(folder: Path, run_name: str, timesteps: int) -> Logger:
    """Return a logger that goes on in TensorBoard's last folder of a run.

    Args:
        folder: In which the run's folder is.
        run_name: Name of the run in TensorBoard.
        timesteps: What was logged at later steps is hidden.
    """
    return Logger(str(folder), [_ContinuedTensorBoard(folder, run_name, timesteps)])
