"""The figures of the bench of hashing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from awsgd_rl import plots
from awsgd_rl.benchmarks.hashing_problems import BITS, NEIGHBOURS, TABLES
from awsgd_rl.plots_panels import Curve, curve_panels, ratio_forest
from awsgd_rl.statistics import Band, Interval, mean_interval

PANELS: Final = {
    "outliers": "1 % outliers",
    "student": "heavy tails (Student)",
    "gauss": "light tails",
}
LABELS: Final = {"uniform": "uniform", "hashing": "hashing (LGD)", "neighbours": "near neighbours"}


def draw_figures(rows: Sequence[Mapping[str, Any]], folder: str | Path, batch: int) -> list[Path]:
    """Draw `size`, `shape`, `cost` and `variance`; return the paths written.

    Args:
        rows: of the bench.
        folder: where to.
        batch: size of the batches that steps were timed with.
    """
    lines = {
        "measured": "hashing, measured",
        "bound": "bound (3), by item",
        "classes": "bound (5), p₁, p₂ and classes",
        "best": "best possible proposal",
        "neighbours": "near neighbours, measured",
    }
    written: list[Path] = []

    def curves(own: list[Mapping[str, Any]], axis: str, names: Sequence[str]) -> dict[str, Curve]:
        at = sorted({row[axis] for row in own})
        return {
            lines[name]: Curve(
                np.array(at, dtype=np.float64),
                _band([[row[name] for row in own if row[axis] == x] for x in at]),
            )
            for name in names
        }

    sizes = [row for row in rows if row["kind"] == "size"]
    panels = {
        title: curves([row for row in sizes if row["data"] == data], "n", list(lines))
        for data, title in PANELS.items()
    }
    ylabel = "second moment / uniform's"
    figure = curve_panels(
        panels,
        title="The second moment does not grow with N",
        subtitle=f"K = {BITS}, L = {TABLES}; below 1 hashing beats uniform draws",
        xlabel="examples N, log scale",
        ylabel=ylabel,
        log_x=True,
        percent=False,
    )
    _log_scales(figure)
    written += plots.save_figure(figure, folder, "size")
    shapes = [row for row in rows if row["kind"] == "shape"]
    names = ["measured", "bound", "classes", "best"]
    by_bits = [row for row in shapes if row["tables"] == TABLES]
    by_tables = [row for row in shapes if row["bits"] == BITS]
    figure = curve_panels(
        {
            f"bits K (L = {TABLES})": curves(by_bits, "bits", names),
            f"tables L (K = {BITS})": curves(by_tables, "tables", names),
        },
        title="Bits have a best number, tables have enough",
        subtitle="heavy tails (Student); bands: 95% intervals over draws of tables",
        xlabel="number, log scale",
        ylabel=ylabel,
        log_x=True,
        percent=False,
    )
    _log_scales(figure, [[row["bits"] for row in by_bits], [row["tables"] for row in by_tables]])
    written += plots.save_figure(figure, folder, "shape")
    costs = [row for row in rows if row["kind"] == "cost"]
    at = np.array([row["n"] for row in costs], dtype=np.float64)
    seconds = {label: [row[f"{name}_seconds"] for row in costs] for name, label in LABELS.items()}
    uniform = seconds[LABELS["uniform"]]
    figure = curve_panels(
        {
            "µs a step, log scale": {
                label: Curve(at, _band([[1e6 * value] for value in own]))
                for label, own in seconds.items()
            },
            "over a uniform step, log scale": {
                label: Curve(at, _band([[x / y] for x, y in zip(own, uniform, strict=True)]))
                for label, own in seconds.items()
            },
        },
        title="The cost of a step, the query renewed at each",
        subtitle=f"batches of {batch}, 21 features; neighbours: {NEIGHBOURS:.0%} of N on each side",
        xlabel="examples N, log scale",
        ylabel="",
        log_x=True,
        percent=False,
    )
    for axes in figure.axes[:2]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    written += plots.save_figure(figure, folder, "cost")
    groups: dict[str, dict[str, Interval]] = {}
    for row in (row for row in rows if row["kind"] == "variance"):
        own = [
            r
            for r in rows
            if (r["kind"], r["data"]) == ("variance", row["data"]) and r["stage"] == row["stage"]
        ]
        groups[f"{row['data']}, {row['stage']:g} θ*"] = {
            label: Interval(*np.exp(mean_interval([np.log(r[name]) for r in own])))
            for name, label in (
                ("headroom", "best possible"),
                ("hashing", "hashing (LGD)"),
                ("neighbours", "near neighbours"),
            )
        }
    figure = ratio_forest(
        groups,
        title="Variance of uniform draws over ours, at parameters that stand still",
        subtitle="above 1 better than uniform; 95% intervals over draws of tables",
        xlabel="uniform variance / ours, log scale",
    )
    figure.axes[0].xaxis.set_minor_formatter(NullFormatter())
    written += plots.save_figure(figure, folder, "variance")
    return written


def _band(samples: Sequence[Sequence[float]]) -> Band:
    """Geometric means; one sample has no interval, and a band of no width."""
    intervals = [mean_interval(np.log(sample)) for sample in samples]
    parts = np.exp(np.array([(i.estimate, i.low, i.high) for i in intervals]))
    return Band(*(np.where(np.isnan(part), parts[:, 0], part) for part in parts.T))


def _log_scales(figure: Any, ticks: Sequence[Sequence[int]] | None = None) -> None:
    panels = [axes for axes in figure.axes if axes.get_visible()]
    for k, axes in enumerate(panels):
        axes.set_yscale("log")
        axes.set_yticks(
            [0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]
        )
        axes.set_yticks([], minor=True)
        axes.set_ylim(0.02, 5.0)
        axes.axhline(1.0, color="#888888", linewidth=0.8)
        if ticks is not None:
            axes.set_xticks(sorted(set(ticks[k])), [str(x) for x in sorted(set(ticks[k]))])
            axes.set_xticks([], minor=True)
