"""Tables of the results of supervised training."""

from collections.abc import Callable, Mapping
from functools import partial
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
    return markdown_table(["baseline / ours", "seed", "measured"], rows)


def _summary(root: Path, name: str, digits: int = 2) -> str:
    """A row for each number of a bench's summary, with its interval where it has one."""
    summary = read_results(root, name)["summary"]
    rows = [
        [
            title,
            with_interval(summary, key, digits)
            if f"{key}_low" in summary
            else rounded(summary[key], digits),
        ]
        for key, title in _SUMMARIES[name].items()
    ]
    return markdown_table(["", "measured"], rows)


_SUMMARIES: Final[Mapping[str, Mapping[str, str]]] = {
    "integral": {
        "std_ratio_half": "square root rule",
        "std_ratio_half_equal": "equal weights, Algorithm 1 as printed",
        "std_ratio_half_best": "the best rows × columns proposal",
        "std_ratio_half_without_replacement": "against uniform draws without replacement",
        "plain.std_ratio_half": "no block: nothing to learn",
        "stated_error_ratio": "stated standard error / true one",
        "break_even_microseconds": "µs that an evaluation must cost to pay by the clock",
    },
    "class-bias": {
        "class_oracle_fraction": "class bias: share of the best one's gain that is learned",
        "class_oracle_ratio_median": "best class bias: variance of 50/50 / its own, median",
        "class_epoch_speedup_map": "class bias: epochs",
        "clusters_epoch_speedup_map": "clusters: epochs",
        "features_epoch_speedup_map": "feature softmax: epochs",
        "table_epoch_speedup_map": "table: epochs",
        "best_time_speedup_map": "table: time",
        "best_oracle_fraction": "table: share of the best proposal's gain",
        "natural_epoch_speedup_map": "natural draws: epochs",
        "sampler_epoch_speedup_map": "WeightedRandomSampler, no weights: epochs",
        "heuristic_epoch_speedup_map": "balanced, then natural: epochs",
        "class_overhead_percent": "what class bias costs, % of a compiled iteration",
        "flights.table_epoch_speedup_map": "flights, table: epochs",
        "flights.class_epoch_speedup_map": "flights, class bias: epochs",
    },
    "matrix-factorisation": {
        "iteration_speedup": "synthetic: iterations",
        "adagrad_iteration_speedup": "synthetic, both with AdaGrad: iterations",
        "mnist_iteration_speedup": "MNIST's zeros: iterations",
        "mnist_step_cost_ratio": "MNIST's zeros: time of our step / of a uniform one",
        "mnist_time_speedup": "MNIST's zeros: time",
        "mnist_adagrad_time_speedup": "MNIST's zeros, both with AdaGrad: time",
    },
    "time-aware": {
        "speedup_f5000": "first epoch, f = 5,000: time",
        "speedup_f50000": "first epoch, f = 50,000: time",
        "steady_speedup_f50000": "a later epoch, f = 50,000: time",
        "break_even_f": "f at which an epoch breaks even",
        "error_speedup_f5000": "time to the same error, f = 5,000",
        "error_speedup_f50000": "time to the same error, f = 50,000",
        "real_storage_speedup": "compressed storage: time of an epoch",
        "real_storage_error_speedup": "compressed storage: time to the same error",
    },
    "optimal-sampling": {
        "sgd_step_ratio_gn": "SGD, exact norms: steps",
        "sgd_step_ratio_half": "SGD, half of them uniform: steps",
        "adam_step_ratio_gn": "Adam, exact norms: steps",
        "time_ratio_gn": "SGD, exact norms: time",
        "time_ratio_bound": "SGD, table of the bound: time",
    },
    "hashing": {
        "variance_ratio_heavy": "flight delays: variance",
        "headroom_variance_ratio_heavy": "flight delays, best possible: variance",
        "variance_ratio_light": "normal residuals: variance",
        "neighbours_variance_ratio_heavy": "near neighbours, flight delays: variance",
        "bias_in_se": "largest bias of a mean, in standard errors",
        "published_bias_in_se": "the same by the published probability",
        "step_cost_ratio_1e3": "time of our step / of a uniform one, N = 1,000",
        "step_cost_ratio_1e6": "the same, N = 1,000,000",
        "step_speedup": "steps to a loss",
        "time_speedup": "time to a loss",
        "time_speedup_built": "time to a loss, the making of the tables included",
    },
    "two-stage": {
        "variance_reduction": "variance of uniform draws / ours",
        "step_speedup": "steps to uniform draws' loss",
        "time_speedup": "time to it, switched off while it does not pay",
        "always.time_speedup": "time to it, always on",
        "time_speedup_shuffled": "time to it, uniform epochs without replacement",
    },
    "overhead": {
        "class_bias_overhead_percent": "class bias, τ moved every 20 batches, 4,096 features: %",
        "class_bias_each_overhead_percent": "class bias, τ moved every batch: %",
        "class_bias_16384_overhead_percent": "class bias, every 20 batches, 16,384 features: %",
        "table_overhead_percent": "table of 60,000 scores, small CNN: %",
        "table_overhead_percent_1e6": "table of 1,000,000 scores, small CNN: %",
        "draw_update_us_1e3": "draw and write 256 of 1,000 scores: µs",
        "draw_update_us_1e6": "draw and write 256 of 1,000,000 scores: µs",
        "rebuilt_us_1e6": "the same without a tree: µs",
    },
}
"""What of a bench's summary its table shows, and how it is called there."""


def _multiple(root: Path) -> str:
    from awsgd_rl.benchmarks.multiple_is import TASKS
    from awsgd_rl.benchmarks.multiple_is_training import METHODS

    summary = read_results(root, "multiple-is")["summary"]

    def cells(task: str, method: str) -> list[str]:
        plain = summary[f"{task}.plain.loss_equal_steps"]
        return [
            rounded(summary[f"{task}.{method}.loss_equal_{what}"] / plain, 2)
            for what in ("steps", "time")
        ]

    rows = [[METHODS[m], *(c for task in TASKS for c in cells(task, m))] for m in METHODS]
    head = [f"{title}, {what}" for title in TASKS.values() for what in ("steps", "time")]
    return markdown_table(["loss / plain's, at equal", *head], rows)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "supervised": _supervised,
    "multiple-is": _multiple,
    **{name: partial(_summary, name=name) for name in _SUMMARIES},
}
