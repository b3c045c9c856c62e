"""Tables of the results of supervised training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from awsgd_rl.benchmarks.readme_tables import (
    markdown_table,
    read_results,
    rounded,
    with_interval,
)

_SUPERVISED: Final = (
    ("integral", "std_ratio_half", "standard deviation of a sum after half of its entries", "2"),
    ("class-bias", "class_epoch_speedup_map", "class bias: epochs to 50/50's best mAP", "10"),
    ("class-bias", "best_epoch_speedup_map", "a score for each example: the same", "–"),
    ("class-bias", "best_time_speedup_map", "a score for each example: the same by the clock", "–"),
    ("matrix-factorisation", "iteration_speedup", "iterations to factorise a matrix", "2"),
    ("matrix-factorisation", "mnist_time_speedup", "MNIST's zeros, by the clock", "2.52"),
    ("time-aware", "speedup_f5000", "time of an epoch, half of it 5,000 times slower", "10"),
    ("time-aware", "speedup_f50000", "the same, 50,000 times slower", "100"),
    ("time-aware", "real_storage_speedup", "the same, from compressed storage", "–"),
    ("optimal-sampling", "sgd_step_ratio_gn", "steps of SGD, exact gradient norms", "above 1"),
    ("optimal-sampling", "adam_step_ratio_gn", "steps of Adam, exact gradient norms", "about 1"),
    ("optimal-sampling", "time_ratio_gn", "SGD by the clock, exact gradient norms", "below 1"),
    ("optimal-sampling", "time_ratio_bound", "SGD by the clock, table of their bound", "–"),
    ("hashing", "variance_ratio_heavy", "hashing: variance on flight delays", "–"),
    ("hashing", "variance_ratio_light", "hashing: variance, light tails", "–"),
    ("hashing", "time_speedup", "hashing: time to a loss, flight delays", "–"),
    ("two-stage", "time_speedup", "two-stage draws: time to a loss, CNN", "–"),
)


def _supervised(root: Path) -> str:
    rows = [
        [
            f"{title} ([{name}](docs/supervised-results.md#{name}))",
            seed,
            with_interval(read_results(root, name)["summary"], key, 2),
        ]
        for name, key, title, seed in _SUPERVISED
    ]
    return markdown_table(["uniform draws / ours", "seed", "measured"], rows)


def _summary(root: Path, name: str, titles: Mapping[str, str], digits: int = 2) -> str:
    """A row for each number of a bench's summary, with its interval where it has one."""
    summary = read_results(root, name)["summary"]
    rows = [
        [
            title,
            with_interval(summary, key, digits)
            if f"{key}_low" in summary
            else rounded(summary[key], digits),
        ]
        for key, title in titles.items()
    ]
    return markdown_table(["", "measured"], rows)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "supervised": _supervised,
}
