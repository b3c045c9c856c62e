"""Step sizes of the main comparison, found on maps that it does not report.

Each algorithm gets a grid of the same number of settings, each tried on the same maps (from 1000
on), with the mean success of the target policy over all trials as the measure. The agents' defaults
are the best settings found so, but for on-policy learning with one update a batch: there a step of
6 was ahead by less than the noise, and 4 locks less often into loops.
"""

from itertools import count, product
from typing import Any, NamedTuple

import numpy as np

from awsgd_rl.benchmarks.resumable import learn
from awsgd_rl.benchmarks.trial import ALGORITHMS
from awsgd_rl.benchmarks.workers import Progress, Send, run_tasks
from awsgd_rl.statistics import mean_interval

FIRST_MAP, MAPS, EPISODES = 1000, 10, 20_000
SIZE, TRAPS = 15, 9


def _on_policy(*rates: float) -> list[dict[str, float]]:
    return [
        {"batch_size": batch_size, "learning_rate": rate, "value_rate": value_rate}
        for batch_size, rate, value_rate in product((10, 20), rates, (0.01, 0.03))
    ]


_REPLAY: list[dict[str, float]] = [
    {"batch_size": batch_size, "learning_rate": rate, "memory": memory}
    for batch_size, rate, memory in product((10, 20), (8.0, 16.0, 32.0), (40, 100))
]
GRIDS: dict[str, list[dict[str, float]]] = {
    "reinforce": _on_policy(2.0, 4.0, 6.0),
    "reinforce-equal": _on_policy(1.0, 2.0, 4.0),
    "awsgd": _REPLAY,
    "uniform-replay": _REPLAY,
}
"""The settings that each algorithm is tried with: equally many."""


class Task(NamedTuple):
    """One setting of one algorithm on one map."""

    algorithm: str
    setting: dict[str, float]
    map: int
    episodes: int

    def __str__(self) -> str:
        return f"{self.algorithm} {self.setting} on map {self.map}"


def run(
    quick: bool = False, *, progress: Progress = lambda share, text: None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Try every setting.

    Args:
        quick: fewer maps and episodes, under a minute.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a setting, and a summary of the best of each algorithm.
    """
    maps, episodes = (2, 1000) if quick else (MAPS, EPISODES)
    tasks = [
        Task(algorithm, setting, FIRST_MAP + m, episodes)
        for algorithm, grid in GRIDS.items()
        for setting in grid
        for m in range(maps)
    ]
    done = count(1)
    results = np.array(
        run_tasks(
            success_of,
            tasks,
            on_result=lambda success: progress(next(done) / len(tasks), f"success {success:.3f}"),
        )
    ).reshape(-1, maps)
    rows: list[dict[str, Any]] = []
    for task, successes in zip(tasks[::maps], results, strict=True):
        mean, low, high = mean_interval(successes, bounds=(0.0, 1.0))
        interval = {"success_mean": mean, "success_mean_low": low, "success_mean_high": high}
        # A table's columns are those of its first row.
        setting = {"batch_size": 0, "learning_rate": 0, "value_rate": 0, "memory": 0}
        rows.append(
            {"algorithm": task.algorithm, **setting, **task.setting, **interval, "maps": maps}
        )
    summary = {}
    for algorithm in GRIDS:
        best = max(
            (r for r in rows if r["algorithm"] == algorithm), key=lambda r: r["success_mean"]
        )
        found = {name: value for name, value in best.items() if name not in ("algorithm", "maps")}
        summary.update({f"{algorithm}.{name}": value for name, value in found.items()})
    return rows, summary


def success_of(task: Task, _send: Send) -> float:
    """Return the mean success of the target policy over all trials of one task."""
    import gymnasium as gym

    from awsgd_rl import agents

    env = gym.make("awsgd_rl/TrapGridworld-v0", size=SIZE, traps=TRAPS, layout_seed=task.map)
    algorithm = ALGORITHMS[task.algorithm]
    options = {**algorithm.settings, **task.setting}
    if task.algorithm == "reinforce-equal":
        updates = agents.AWSGD.defaults("TablePolicy", agents.AWSGDConfig())["updates"]
        options["updates"] = updates
    agent = getattr(agents, algorithm.agent)("TablePolicy", env, seed=task.map, **options)
    learn(agent, "episodes", task.episodes)
    ended = np.array(agent.history["episodes"])
    return float(np.average(agent.history["success"], weights=np.diff(ended, prepend=0)))
