"""Tables of the results of prioritized replay."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from awsgd_rl.benchmarks.readme_tables import (
    markdown_table,
    read_results,
    rounded,
    with_interval,
)
from awsgd_rl.benchmarks.replay_learning import ALGORITHMS, TASKS

DIGITS: Final = {"CartPole-v1": 0, "TrapGridworld-8-2": 0, "MinAtar/Breakout-v1": 1}
"""Decimals of a task's returns."""


def _speed(root: Path) -> str:
    """Times and ratios at 10^6 transitions, a row a batch size."""
    summary = read_results(root, "replay")["summary"]
    ratios = {
        "vs_sb3_uniform": "ours / SB3's uniform sample",
        "vs_cpprb": "cpprb / ours",
        "vs_tianshou": "tianshou / ours",
        "vs_torchrl": "torchrl / ours",
    }
    rows = [
        [
            f"{batch:,}",
            rounded(summary[f"cpu_sample_update_us_{batch}_1m"], 0),
            *(with_interval(summary, f"cpu_{name}_{batch}_1m", 2) for name in ratios),
        ]
        for batch in (32, 256, 4_096)
    ]
    return markdown_table(["batch", "ours, µs", *ratios.values()], rows)


def _learning(root: Path) -> str:
    """Returns of DQN and of its prioritized kin, a row a task and algorithm."""
    summary = read_results(root, "replay-learning")["summary"]
    columns = {
        "return_iqm": "return, all training",
        "return_iqm_equal_time": "in as much time as DQN",
        "return_final_iqm": "afterwards",
    }
    rows = []
    for task in TASKS:
        for algorithm, (title, _) in ALGORITHMS.items():
            key = f"{task}.{algorithm}"
            cells = [with_interval(summary, f"{key}.{name}", DIGITS[task]) for name in columns]
            rows.append([task, title, *cells, rounded(summary[f"{key}.seconds"], 0)])
    return markdown_table(["task", "algorithm", *columns.values(), "s"], rows)


def _gains(root: Path) -> str:
    """How far PER and LaBER are above DQN, a row a task."""
    summary = read_results(root, "replay-learning")["summary"]
    rows = []
    for task in TASKS:
        keys = [
            f"{task}.{algorithm}_gain{what}"
            for what in ("", "_equal_time", "_final")
            for algorithm in ("per", "laber")
        ]
        rows.append([task, *(with_interval(summary, key, DIGITS[task]) for key in keys)])
    whens = ("all training", "as much time", "afterwards")
    titles = [f"{name}, {when}" for when in whens for name in ("PER", "LaBER")]
    return markdown_table(["return above DQN's", *titles], rows)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "replay": _speed,
    "replay-learning": _learning,
    "replay-gains": _gains,
}
