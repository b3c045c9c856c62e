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


TABLES: Final[dict[str, Callable[[Path], str]]] = {"replay": _speed}
