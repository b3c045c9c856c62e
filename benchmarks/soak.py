"""Training for a long time: does memory stay flat, and does nothing slow down?

Three loops, each in a process of its own:

- *awsgd*: the default AW-SGD agent with tables, on 15x15 with 9 traps;
- *supervised*: logistic regression, batches by a table of 50,000 scores;
- *prioritized_dqn*: DQN with prioritized replay on CartPole-v1.

Every few seconds a loop notes how much it has done, how much CPU time that took, and its resident
memory: field 2 of /proc/self/statm in pages (`man proc_pid_statm`), shared libraries included, or
what psutil says where there is no /proc. The first tenth is warm-up: compilation, imports, caches,
a replay buffer whose pages are touched for the first time.

Times are the process's own, so that a busy machine counts less: an hour is one on a core of its
own. It counts still, by caches and cores that others share: a fixed piece of work, timed with every
sample, tells by how much the machine itself became faster or slower. The growth of memory is a
Theil-Sen slope (the median of the slopes between any two samples), which a step or a few outliers
do not move; its interval, and those of the speeds, take samples as independent, which those of one
run are not quite. What `agent.history` itself holds, with one entry a batch for as long as the
agent lives, is counted apart.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import add_interval_if_known
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import Interval, bootstrap_interval

SECONDS: Final = 3_600.0
QUICK_SECONDS: Final = 20.0
SAMPLES: Final = 400
"""Of each loop."""
WARM_UP: Final = 0.1
"""Share of the time that is not counted."""
EXAMPLES: Final = 50_000
"""Of the supervised loop."""
MEGABYTE: Final = 1e6
MEMORY_FILE: Final = Path("/proc/self/statm")

LABELS: Final = {
    "awsgd": "AW-SGD, tables",
    "supervised": "supervised, table of scores",
    "prioritized_dqn": "DQN, prioritized replay",
}
"""Title of each loop."""


COLUMNS: Final = ("seconds", "cpu_seconds", "done", "rss_mb", "history_mb", "fixed_work_ms")
"""Of a sample; `done` is how many iterations are, and the fixed work is not in the CPU time."""

Samples = Mapping[str, Sequence[float]]
"""[K] values by column."""


class Task(NamedTuple):
    """One loop, for so long."""

    loop: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        return self.loop


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    jobs: int | None = None,
    seconds: float | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Run the three loops, and watch them.

    Args:
        quick: 20 seconds instead of an hour; slopes per hour are then rough.
        seed: of all draws.
        jobs: processes; None for one a loop, all at once. With 1 the loops follow each other in
            this one, and a later one may use memory that an earlier one has left.
        seconds: how long each loop runs, in place of the hour.
        progress: called with the share that is done, and what memory the loops have.

    Returns:
        One row a loop, with its samples. The summary has `seconds` and `cpu_seconds` (the most of
        any loop); for the agent `rss_start_mb` (after warm-up), `rss_end_mb`,
        `rss_growth_mb_per_hour` and `speed_end_over_start` (iterations per CPU second, last tenth
        over first: 1 where nothing slows down), `machine_end_over_start`, the same of fixed work,
        these three with 95 % intervals, `iterations_per_s`, and `history_mb_per_hour`, what of the
        growth is its history; for the others the same but the history under `supervised.` and
        `prioritized_dqn.`. A megabyte is 10^6 bytes.

    Raises:
        ValueError: nothing tells the memory of a process here.
    """
    resident_bytes()  # before an hour is spent
    if seconds is None:
        seconds = QUICK_SECONDS if quick else SECONDS
    tasks = [Task(loop, seconds, seed) for loop in LABELS]
    jobs = len(tasks) if jobs is None else jobs
    shares = dict.fromkeys(LABELS, 0.0)

    def follow(message: tuple[str, float, float]) -> None:
        loop, share, memory = message
        shares[loop] = share
        progress(sum(shares.values()) / len(shares), f"{LABELS[loop]}: {memory:.0f} MB")

    rows = run_tasks(watch, tasks, jobs=jobs, on_message=follow)
    return rows, summarise(rows, seed)


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, float]:
    """Memory and speed of each loop after its warm-up."""
    summary = {name: max(float(row[name]) for row in rows) for name in ("seconds", "cpu_seconds")}
    for row in rows:
        own = settled(row["samples"])
        hours, memory, rates = own["cpu_seconds"] / 3600.0, own["rss_mb"], speeds(own)
        prefix = summary_prefix(row["loop"])
        summary[f"{prefix}rss_start_mb"] = float(memory[0])
        summary[f"{prefix}rss_end_mb"] = float(memory[-1])
        add_interval_if_known(summary, f"{prefix}rss_growth_mb_per_hour", slope(hours, memory))
        for what, series in (("speed", rates), ("machine", 1.0 / own["fixed_work_ms"])):
            ratio = end_over_start(series, np.random.default_rng(seed))
            add_interval_if_known(summary, f"{prefix}{what}_end_over_start", ratio)
        summary[f"{prefix}iterations_per_s"] = float(np.median(rates))
        if own["history_mb"].any():
            history = slope(hours, own["history_mb"])
            summary[f"{prefix}history_mb_per_hour"] = history.estimate
    return summary


def settled(samples: Samples) -> dict[str, NDArray[np.float64]]:
    """The samples of a loop after its warm-up."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in samples.items()}
    kept = arrays["seconds"] >= WARM_UP * arrays["seconds"][-1]
    return {name: values[kept] for name, values in arrays.items()}


def speeds(samples: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Iterations per CPU second between each sample and the next."""
    done, seconds = np.diff(samples["done"]), np.diff(samples["cpu_seconds"])
    rates: NDArray[np.float64] = done[seconds > 0.0] / seconds[seconds > 0.0]
    return rates


def end_over_start(series: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """The median of the last tenth of a series over that of the first, with its 95 % interval."""
    return bootstrap_interval(
        lambda end, start, axis: np.median(end, axis) / np.median(start, axis),
        _tenth(series[::-1]),
        _tenth(series),
        rng=rng,
    )


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> Interval:
    """The Theil-Sen slope of y over x with its 95 % interval (Sen 1968)."""
    from scipy.stats import theilslopes

    found = theilslopes(y, x, alpha=0.95)
    return Interval(float(found.slope), float(found.low_slope), float(found.high_slope))


def resident_bytes() -> int:
    """Resident memory of this process, in bytes.

    Raises:
        ValueError: there is neither /proc nor psutil.
    """
    if MEMORY_FILE.exists():
        return int(MEMORY_FILE.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        psutil = import_module("psutil")
    except ImportError:
        raise ValueError(
            "got neither /proc/self/statm nor psutil, expected one of them to tell the memory of a "
            "process: pip install psutil"
        ) from None
    return int(psutil.Process().memory_info().rss)


def fixed_work() -> float:
    """Do always the same, in Python and in NumPy; return the CPU seconds that it took."""
    begin = time.process_time()
    total = 0
    for number in range(20_000):
        total += number & 7
    np.sort(np.arange(40_000.0) * 7919.0 % 40_009.0)
    return time.process_time() - begin


def history_bytes(history: Mapping[str, Any]) -> int:
    """What an agent's history holds: its lists, and a float object for each entry of theirs."""
    return sum(
        sys.getsizeof(values) + (_FLOAT_BYTES * len(values) if isinstance(values, list) else 0)
        for values in history.values()
    )


_FLOAT_BYTES: Final = 32  # 24, and CPython's allocator gives multiples of 16


# --- The loops


AfterIteration = Callable[..., bool]
"""To be called after each iteration, with what tells the bytes of a history if there is one:
returns whether to go on."""


def watch(task: Task, send: Send) -> dict[str, Any]:
    """Run a loop, and return its row."""
    samples: dict[str, list[float]] = {name: [] for name in COLUMNS}
    begin = begin_cpu = due = 0.0
    done = 0

    def after_iteration(history: Callable[[], int] = lambda: 0) -> bool:
        nonlocal begin, begin_cpu, due, done
        if done == 0:  # all is imported, and most of it compiled
            begin, begin_cpu = time.monotonic(), time.process_time()
        done += 1
        seconds = time.monotonic() - begin
        if seconds >= due:
            due = seconds + task.seconds / SAMPLES
            cpu_seconds, memory = time.process_time() - begin_cpu, resident_bytes() / MEGABYTE
            fixed = fixed_work()
            begin_cpu += fixed
            sample = (seconds, cpu_seconds, done, memory, history() / MEGABYTE, 1e3 * fixed)
            for name, value in zip(COLUMNS, sample, strict=True):
                samples[name].append(value)
            send((task.loop, min(1.0, seconds / task.seconds), memory))
        return seconds < task.seconds

    with one_thread():
        LOOPS[task.loop](task.seed, after_iteration)
    last = {name: values[-1] for name, values in samples.items()}
    return {"loop": task.loop, **last, "samples": samples}


def awsgd(seed: int, after_iteration: AfterIteration) -> None:
    """The default agent; an iteration is a batch of episodes."""
    import awsgd_rl  # noqa: F401  (registers the environments)
    from awsgd_rl.agents import AWSGD

    def follow(agent: AWSGD) -> bool:
        return after_iteration(lambda: history_bytes(agent.history))

    agent = AWSGD("TablePolicy", "awsgd_rl/TrapGridworld-15-9-v0", seed=seed, device="cpu")
    agent.learn(total_timesteps=sys.maxsize, callback=follow)


def supervised(seed: int, after_iteration: AfterIteration) -> None:
    """Logistic regression; an iteration is a batch of examples."""
    import torch
    from torch.nn.functional import cross_entropy

    from awsgd_rl.adaptation import TableAdaptation
    from awsgd_rl.loader import ImportanceLoader
    from awsgd_rl.proposals import TableProposal
    from awsgd_rl.signals import cross_entropy_signal
    from awsgd_rl.weights import importance_weights

    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, 20, generator=rng)
    y = (x[:, 0] + 0.3 * torch.randn(EXAMPLES, generator=rng) > 2.1).long()
    model = torch.nn.Linear(20, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = TableProposal(EXAMPLES, uniform_share=0.2)
    adaptation = TableAdaptation(table, decay=0.5)
    loader = ImportanceLoader((x, y), table, batch_size=100, generator=seed)
    while True:  # an epoch
        for (x_batch, y_batch), draw in loader:
            output = model(x_batch)
            weights = importance_weights(loader.log_p(draw), draw.log_q)
            optimizer.zero_grad()
            losses = cross_entropy(output, y_batch, reduction="none")
            (weights * losses).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            adaptation.update(draw, cross_entropy_signal(output, y_batch), loader.log_p(draw))
            if not after_iteration():
                return


def prioritized_dqn(seed: int, after_iteration: AfterIteration) -> None:
    """DQN; an iteration is a step in the environment, with an update after every fourth."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger

    from awsgd_rl.agents.prioritized import PrioritizedDQN

    class Follow(BaseCallback):
        def _on_step(self) -> bool:
            return after_iteration()

    steps = 10**9
    model = PrioritizedDQN(
        "MlpPolicy",
        "CartPole-v1",
        seed=seed,
        device="cpu",
        buffer_size=10_000,
        learning_starts=100,
        exploration_fraction=10_000 / steps,
    )
    # Its own choice leaves an empty folder behind in the temporary directory.
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(steps, callback=Follow())


LOOPS: Final[Mapping[str, Callable[[int, AfterIteration], None]]] = {
    "awsgd": awsgd,
    "supervised": supervised,
    "prioritized_dqn": prioritized_dqn,
}


# --- The figure


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `soak`: memory beyond that after warm-up, and speed beside that at first, over time."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from awsgd_rl import plots

    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(11.0, 4.3), dpi=plots._DPI)
        FigureCanvasAgg(figure)
        left = figure.add_axes((0.07, 0.25, 0.4, 0.55))
        right = figure.add_axes((0.57, 0.25, 0.4, 0.55))
        for row, color in zip(rows, plots.PALETTE, strict=False):
            own, loop = settled(row["samples"]), row["loop"]
            minutes, memory = own["seconds"] / 60.0, own["rss_mb"]
            growth = summary[f"{summary_prefix(loop)}rss_growth_mb_per_hour"]
            label = f"{LABELS[loop]}: {memory[0]:.0f} MB, {growth:+.3g} MB/h"
            left.plot(minutes, memory - memory[0], color=color, linewidth=1.6, label=label)
            rates = speeds(own)
            shown = _running_median(rates / np.median(_tenth(rates)), 9)
            right.plot(minutes[-len(shown) :], shown, color=color, linewidth=1.4)
        right.axhline(1.0, color="#888888", linewidth=1.0, zorder=0)
        right.set_ylim(0.0, max(1.5, right.get_ylim()[1]))
        left.set_ylabel("more memory than at first, MB")
        right.set_ylabel("iterations per CPU second,\nover those at first")
        for axes in (left, right):
            axes.set_xlabel("minutes")
            axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 0.0),
            ncols=3,
            frameon=False,
            fontsize=9.0,
        )
        plots._headline(
            figure,
            "Memory and speed of long trainings",
            f"{summary['seconds'] / 60:.3g} minutes, the first tenth left out; below: resident "
            "memory at first, and its Theil-Sen slope per hour of CPU time",
            left=0.012,
        )
    return plots.save_figure(figure, folder, "soak")


def summary_prefix(loop: str) -> str:
    """What the names of a loop's numbers begin with in the summary."""
    return "" if loop == "awsgd" else f"{loop}."


def _tenth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first tenth, and at least one."""
    return values[: max(1, len(values) // 10)]


def _running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    width = min(width, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    median: NDArray[np.float64] = np.median(windows, axis=1)
    return median
