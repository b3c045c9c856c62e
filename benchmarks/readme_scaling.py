"""The tables of docs/scaling.md and docs/guides/running.md: `bench scaling` and `bench soak`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from awsgd_rl.benchmarks.readme_tables import markdown_table, read_results, with_interval
from awsgd_rl.benchmarks.soak import LABELS, summary_prefix

CORES: Final = (1, 100, 10_000)


def speedups(root: Path) -> str:
    """Speed-ups of a set of independent trials."""
    results = read_results(root, "scaling")
    rows = [
        [
            f"{engine}, {workers}",
            with_interval(results["summary"], f"speedup_{engine}_{workers}", 2),
        ]
        for engine, workers in (("local", 2), ("ray", 1), ("ray", 2))
        if f"speedup_{engine}_{workers}" in results["summary"]
    ]
    return markdown_table(["engine, workers", "speed-up over one process"], rows)


def messages(root: Path) -> str:
    """What is sent and kept, and how fast."""
    summary = read_results(root, "scaling")["summary"]
    lines = (
        ("a finished trial in the store", "bytes_per_result", "bytes"),
        ("a trajectory to the learner, table", "bytes_per_trajectory", "bytes"),
        ("a trajectory to the learner, network", "network.bytes_per_trajectory", "bytes"),
        ("parameters to a worker, table", "bytes_to_workers_per_trajectory", "bytes a trajectory"),
        (
            "parameters to a worker, network",
            "network.bytes_to_workers_per_trajectory",
            "bytes a trajectory",
        ),
        ("tasks handed out and taken back, local", "tasks_per_s_local", "a second"),
        ("tasks handed out and taken back, Ray", "tasks_per_s_ray", "a second"),
        ("start of a local Ray", "ray_start_seconds", "s"),
    )
    rows = [[what, f"{_short(summary[name])} {unit}"] for what, name, unit in lines]
    return markdown_table(["what", "measured"], rows)


def learner(root: Path) -> str:
    """How busy one learner is with 1 and 2 rollout workers, and how many saturate it."""
    summary = read_results(root, "scaling")["summary"]
    rows = [
        [
            what,
            *(with_interval(summary, f"{prefix}learner_share_{n}", 2) for n in (1, 2)),
            with_interval(summary, f"{prefix}saturation_workers", 1),
            *(with_interval(summary, f"{prefix}rollout_speedup_{n}", 2) for n in (1, 2)),
        ]
        for what, prefix in (("table, 15/9", ""), ("network, CartPole-v1", "network."))
    ]
    head = ["agent", "learner at work, 1 worker", "2 workers", "workers that keep it busy"]
    return markdown_table([*head, "speed-up over none, 1 worker", "2 workers"], rows)


def plan(root: Path) -> str:
    """What the measured numbers allow on 1, 100 and 10,000 cores."""
    summary = read_results(root, "scaling")["summary"]
    trial, rate = summary["seconds_per_trial"], summary["tasks_per_s_ray"]
    rows = []
    for cores in CORES:
        a_second = min(cores / trial, rate)
        bounded = "the process that hands them out" if cores / trial > rate else "the cores"
        workers = max(1, math.ceil(summary["network.saturation_workers"]))
        learners = max(1, cores // (workers + 1))
        rows.append(
            [
                f"{cores:,}",
                _short(60 * a_second),
                bounded,
                f"{_short(a_second * summary['bytes_per_result'] / 1e3)} kB/s",
                f"{learners:,} learners with {workers} workers each" if cores > 1 else "no workers",
            ]
        )
    head = ["cores", "trials a minute", "limited by", "results", "rollouts of networks"]
    return markdown_table(head, rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def soak(root: Path) -> str:
    """Memory and speed of an hour of training, a row a loop."""
    summary = read_results(root, "soak")["summary"]
    rows = []
    for loop, title in LABELS.items():
        prefix = summary_prefix(loop)
        memory = [f"{summary[f'{prefix}rss_{when}_mb']:.0f}" for when in ("start", "end")]
        ratios = [
            with_interval(summary, f"{prefix}{what}_end_over_start", 2)
            for what in ("speed", "machine")
        ]
        rows.append([title, *memory, *ratios])
    header = ["training", "MB after warm-up", "MB at the end", "speed, end / start"]
    return markdown_table([*header, "the machine's own"], rows)


TABLES: Final[dict[str, Callable[[Path], Any]]] = {
    "soak": soak,
    "scaling-speedups": speedups,
    "scaling-messages": messages,
    "scaling-learner": learner,
    "scaling-plan": plan,
}
