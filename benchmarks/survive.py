"""Runs killed at random moments, with `kill -9`, and gone on with: do they end as if never stopped?

Each run is `awsgd-rl train` in processes of its own: AW-SGD with a table on the gridworld, and with
networks on CartPole-v1. A process is killed at a place of its training that is drawn uniformly, to
some hundredths of a second, while it learns, logs or writes a checkpoint (one every tenth of a
second); one in five within its first seconds, while it loads or takes up its checkpoint. The next
one goes on with `--resume`. At the end everything that the run computed is compared, byte for byte
where that is what a file should be, with a run of the same seed that was never stopped.

What a checkpoint costs is measured in this process: its time, the disk's included, as a share of
the minute that is between two by default, and its size.
"""

import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks

KINDS: Final = {
    "table": ["--total-episodes", "3000", "--eval-episodes", "10"],
    "mlp": [
        *("--env", "CartPole-v1", "--total-timesteps", "6000", "--eval-episodes", "2"),
        *("--exploration-share", "0.2"),
    ],
}
"""Options of `awsgd-rl train` for each kind of run."""
_RUNS, _KILLS = 5, 5  # of each kind, and of each run
_AT_START, _START_SECONDS = 0.2, 6.0
_REPEATS, _EPISODES = 20, 2_000


class Task(NamedTuple):
    """One run of a kind, killed so many times."""

    kind: str
    seed: int
    kills: int

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Kill and compare, and measure what a checkpoint costs.

    Args:
        quick: 3 kills in two runs, in place of 50 in ten.
        seed: the runs' seeds are this one and those that follow.
        jobs: runs at a time. Default: one for each core.
        progress: called with the share that is done, and the run that has just ended.

    Returns:
        One row a run. The summary has `kills` (of processes that were still running), `runs`,
        `identical` (the share of runs that ended as one never stopped) and for each kind
        `<kind>_checkpoint_ms`, `_checkpoint_kb` and `_checkpoint_share` (of the time).
    """
    if quick:
        tasks = [Task("table", seed, 2), Task("mlp", seed, 1)]
    else:
        tasks = [Task(kind, seed + number, _KILLS) for number in range(_RUNS) for kind in KINDS]
    done = count(1)
    rows = run_tasks(
        survive,
        tasks,
        jobs=jobs,
        on_result=lambda row: progress(
            next(done) / len(tasks), f"{row['kind']}, seed {row['seed']}: {row['kills']} kills"
        ),
    )
    summary: dict[str, float] = {
        "kills": sum(row["kills"] for row in rows),
        "runs": len(rows),
        "identical": statistics.mean(row["identical"] for row in rows),
    }
    for kind in KINDS:
        summary |= {f"{kind}_{name}": value for name, value in checkpoint_cost(kind).items()}
    return rows, summary


def survive(task: Task, _send: Send = lambda message: None) -> dict[str, Any]:
    """Return the row of one run: how often it was killed, and whether it ended as it should."""
    options = [*KINDS[task.kind], "--seed", str(task.seed)]
    rng = np.random.default_rng((task.seed, len(task.kind)))
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        with _train(whole, *options) as process:
            process.wait()
        # Episodes are logged as they are learned from: so far has a run come when it is killed.
        places = np.sort(rng.uniform(0.0, 0.95, task.kills)) * _size(whole)
        kills = 0
        again: list[str] = options
        for place in places:
            with _train(killed, *again, "--checkpoint-seconds", "0.1") as process:
                soon = rng.random() < _AT_START
                wait = rng.uniform(0.0, _START_SECONDS if soon else 0.05)
                while not soon and process.poll() is None and _size(killed) < place:
                    time.sleep(0.01)
                time.sleep(wait)
                process.kill()
                kills += process.wait() == -signal.SIGKILL
            # Killed before it had written its settings, there is nothing to go on with.
            again = ["--resume"] if (killed / "config.json").exists() else options
        with _train(killed, *again) as process:
            process.wait()
        identical = outcome(killed) == outcome(whole)
    return {"kind": task.kind, "seed": task.seed, "kills": kills, "identical": float(identical)}


def outcome(folder: Path) -> dict[str, Any] | None:
    """Return all that a run computed, less the times that it took; None if it did not finish."""
    if not (folder / "results.json").exists():
        return None
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with (folder / "monitor.csv").open(encoding="utf-8") as file:
        file.readline()
        episodes = [{**row, "t": None} for row in csv.DictReader(file)]
    return {
        "parameters": (folder / "agent" / "parameters.safetensors").read_bytes(),
        "results": {k: x for k, x in results.items() if k not in ("seconds", "started")},
        "history": (folder / "history.json").read_bytes(),
        "episodes": episodes,
    }


def checkpoint_cost(kind: str, repeats: int = _REPEATS) -> dict[str, float]:
    """Return the median time and the size of a checkpoint, of an agent that has learned a while."""
    from awsgd_rl.agents import make_agent
    from awsgd_rl.agents.checkpoints import SECONDS, Checkpoints

    with one_thread(), tempfile.TemporaryDirectory() as folder:
        if kind == "table":
            agent = make_agent("awsgd", "TablePolicy", "awsgd_rl/TrapGridworld-v0", seed=0)
            agent.learn(total_episodes=_EPISODES)
        else:
            agent = make_agent("awsgd", "MlpPolicy", "CartPole-v1", seed=0, device="cpu")
            agent.learn(total_timesteps=5_000)
        checkpoints = Checkpoints(folder)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            path = checkpoints.write(agent)
            seconds.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in path.iterdir())
    middle = statistics.median(seconds)
    return {
        "checkpoint_ms": 1e3 * middle,
        "checkpoint_kb": size / 1e3,
        "checkpoint_share": middle / SECONDS,
    }


@contextlib.contextmanager
def _train(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Give a process of `awsgd-rl train`, which does not outlive the block."""
    command = [sys.executable, "-m", "awsgd_rl.cli", "train", "--out", str(folder), "--quiet"]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        errors = process.communicate()[1]
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"awsgd-rl train ended with {process.returncode}: {errors.strip()}")


def _size(folder: Path) -> int:
    path = folder / "monitor.csv"
    return path.stat().st_size if path.exists() else 0
