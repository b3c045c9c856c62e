"""What more workers bring: trials side by side, and rollout workers around one learner.

*Trials* are independent: the same ones are run in this process, by two local workers, and on a
local Ray of one and of two CPUs, start of the workers included (start of Ray not). What limits them
on a large machine is how many tasks a second one process can hand out and take back: measured with
tasks that do nothing. *Rollouts* depend on one learner: its share of time at work is measured at 0,
1 and 2 workers, and from how long it takes to draw a batch and to learn from one follows how many
workers keep it busy.

All processes have one thread. Times are of this machine and its cores: run it on an idle one.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from awsgd_rl.benchmarks.compare import CompareConfig
from awsgd_rl.benchmarks.summary import add_interval_if_known, geometric_mean_interval
from awsgd_rl.benchmarks.trial import Task, run_task
from awsgd_rl.benchmarks.workers import Progress, Send, execution, one_thread, run_tasks
from awsgd_rl.statistics import mean_interval

WORKERS: Final = (("local", 1), ("local", 2), ("ray", 1), ("ray", 2))
"""Where the trials run: engine and number of workers. The first is this process."""

LAG: Final = 1


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        repeats: of everything.
        workers: of trials: engine and number.
        trials: in the set.
        trial_episodes: of each trial.
        empty_tasks: tasks that do nothing.
        rollout_episodes: of each run with rollout workers, by agent.
    """

    repeats: int
    workers: tuple[tuple[str, int], ...]
    trials: int
    trial_episodes: int
    empty_tasks: int
    rollout_episodes: Mapping[str, int]


FULL: Final = Size(3, WORKERS, 8, 100_000, 500, {"table": 5_000, "network": 500})
QUICK: Final = Size(1, (*WORKERS[:2], WORKERS[-1]), 4, 1_000, 50, {"table": 1_000, "network": 60})


def run(
    quick: bool = False, seed: int = 0, *, progress: Progress = lambda share, text: None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure trials, empty tasks and rollouts, by turns.

    Args:
        quick: one repeat of a few short trials.
        seed: of the agents.
        progress: called with the share that is done, and what comes next.

    Returns:
        One row for each measurement: `part`, `engine`, `workers`, `repeat`, `seconds`, `items`
        (trials, tasks or episodes), `items_per_s`, `busy` (trials: share of the workers' time
        inside them; rollouts: share of the learner's time at work), `bytes_per_item` (what a result
        takes in the store; what a worker sends for a trajectory). Summary, means over repeats:
        `speedup_local_2`, `speedup_ray_1`, `speedup_ray_2` over the same trials in this process,
        `bytes_per_result`, `tasks_per_s_local` and `_ray`, `ray_start_seconds`, and for tables
        (under `network.` the same for networks) `bytes_per_trajectory`, `learner_share_<workers>`,
        `rollout_speedup_<workers>`, `saturation_workers`, how many keep the learner busy, and
        `bytes_to_workers_per_trajectory` of parameters, per worker. Without Ray its numbers are
        left out.
    """
    size = QUICK if quick else FULL
    chosen = [(engine, n) for engine, n in size.workers if engine == "local" or find_spec("ray")]
    steps = [
        (what, repeat)
        for repeat in range(size.repeats)
        for what in (*chosen, *((agent, n) for agent in AGENTS for n in (0, 1, 2)))
    ]
    rows: list[dict[str, Any]] = []
    with one_thread():
        run_task(_tasks(1, 20, seed)[0], lambda message: None)  # compiles
        for done, ((name, workers), repeat) in enumerate(steps):
            progress(done / len(steps), f"{name}, {workers} workers")
            if name in AGENTS:
                new = [measure_rollouts(name, workers, size.rollout_episodes[name], seed)]
            else:
                new = measure_trials(name, workers, size, seed)
            rows += [{**row, "repeat": repeat} for row in new]
    return rows, summarise(rows)


def measure_trials(engine: str, workers: int, size: Size, seed: int) -> list[dict[str, Any]]:
    """Run the set of trials; with two workers the empty tasks too. A row for each."""
    rows = []
    tasks = _tasks(size.trials, size.trial_episodes, seed)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with execution(engine=engine, jobs=workers, store=folder):
            started = time.perf_counter()
            trials = run_tasks(run_task, tasks, jobs=workers)
            seconds = time.perf_counter() - started
        sizes = [path.stat().st_size for path in Path(folder).iterdir()]
        row = _row("trials", engine, workers, seconds, len(trials))
        row["start_seconds"] = started - begun
        row["busy"] = sum(trial.seconds for trial in trials) / (workers * seconds)
        row["bytes_per_item"] = float(np.mean(sizes))
        rows.append(row)
    if workers > 1:
        with execution(engine=engine, jobs=workers):
            ends: list[float] = []
            run_tasks(
                nothing,
                range(size.empty_tasks),
                jobs=workers,
                on_result=lambda _: ends.append(time.perf_counter()),
            )
        # Between the first and the last: the workers start before.
        rows.append(_row("empty tasks", engine, workers, ends[-1] - ends[0], len(ends) - 1))
    return rows


def nothing(task: int, _send: Send) -> int:
    """Return the task."""
    return task


def measure_rollouts(agent_name: str, workers: int, episodes: int, seed: int) -> dict[str, Any]:
    """Learn with so many rollout workers, 0 for draws by the learner; a row."""
    from awsgd_rl.agents.distributed import RolloutWorkers

    agent = AGENTS[agent_name](seed)
    begun = waited = batches = 0.0

    with RolloutWorkers(agent, workers, lag=LAG) as rollouts:

        def follow(agent: Any) -> None:
            nonlocal begun, waited, batches
            if not begun:  # the workers have started, and all is compiled
                begun, waited = time.perf_counter(), rollouts.waited
            else:
                batches += 1

        agent.learn(total_episodes=episodes, callback=follow)
        seconds, waited = time.perf_counter() - begun, rollouts.waited - waited
        traffic = rollouts.traffic
    items = batches / len(agent.history["episodes"]) * agent.num_episodes
    row = _row(f"rollouts, {agent_name}", "local", workers, seconds, items)
    row["busy"] = 1.0 - waited / seconds
    row["waited_per_batch"] = waited / batches
    row["learning_per_batch"] = (seconds - waited) / batches
    if traffic.episodes:
        row["bytes_per_item"] = traffic.received / traffic.episodes
        row["sent_bytes_per_item"] = traffic.sent / traffic.episodes
    return row


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the summary; of one repeat, which tells no interval, the estimates alone."""

    def column(part: str, engine: str, workers: int, name: str = "seconds") -> np.ndarray[Any, Any]:
        own = [
            row[name]
            for row in rows
            if (row["part"], row["engine"], row["workers"]) == (part, engine, workers)
        ]
        return np.array(own, dtype=np.float64)

    summary: dict[str, float] = {}

    def add(name: str, values: np.ndarray[Any, Any]) -> None:
        if len(values):
            add_interval_if_known(summary, name, geometric_mean_interval(values))

    serial = column("trials", "local", 1)
    for engine, workers in WORKERS[1:]:
        seconds = column("trials", engine, workers)
        if len(seconds):
            add(f"speedup_{engine}_{workers}", serial / seconds)
    for engine in ("local", "ray"):
        add(f"tasks_per_s_{engine}", column("empty tasks", engine, 2, "items_per_s"))
    add("ray_start_seconds", column("trials", "ray", 2, "start_seconds"))
    add("seconds_per_trial", serial / column("trials", "local", 1, "items"))
    add("bytes_per_result", column("trials", "local", 1, "bytes_per_item"))
    for agent in AGENTS:
        part, prefix = f"rollouts, {agent}", "" if agent == "table" else f"{agent}."
        alone = column(part, "local", 0)
        drawing, learning = (
            column(part, "local", 0, name) for name in ("waited_per_batch", "learning_per_batch")
        )
        add(f"{prefix}saturation_workers", drawing / learning)
        add(f"{prefix}learning_seconds_per_batch", learning)
        for workers in (1, 2):
            shares = mean_interval(column(part, "local", workers, "busy"), bounds=(0.0, 1.0))
            add_interval_if_known(summary, f"{prefix}learner_share_{workers}", shares)
            add(f"{prefix}rollout_speedup_{workers}", alone / column(part, "local", workers))
        add(f"{prefix}bytes_per_trajectory", column(part, "local", 1, "bytes_per_item"))
        sent = column(part, "local", 1, "sent_bytes_per_item")
        add(f"{prefix}bytes_to_workers_per_trajectory", sent)
    return summary


def _table_agent(seed: int) -> Any:
    from awsgd_rl.agents import AWSGD

    return AWSGD("TablePolicy", "awsgd_rl/TrapGridworld-15-9-v0", seed=seed, device="cpu")


def _network_agent(seed: int) -> Any:
    from awsgd_rl.agents import AWSGD

    return AWSGD("MlpPolicy", "CartPole-v1", seed=seed, device="cpu")


AGENTS: Final[Mapping[str, Callable[[int], Any]]] = {
    "table": _table_agent,
    "network": _network_agent,
}
"""Who learns from the rollouts: a table on the 15×15 gridworld, networks on CartPole-v1."""


def _tasks(count: int, episodes: int, seed: int) -> list[Task]:
    config = CompareConfig(preset="15/9", episodes=episodes, seed=seed)
    # The first map's trial keeps its tables too: not that one, so that all results are alike.
    return [Task(config, "awsgd", seed + 1 + number) for number in range(count)]


def _row(part: str, engine: str, workers: int, seconds: float, items: float) -> dict[str, Any]:
    return {
        "part": part,
        "engine": engine,
        "workers": workers,
        "seconds": seconds,
        "items": items,
        "items_per_s": items / seconds,
        "busy": None,
        "bytes_per_item": None,
    }
