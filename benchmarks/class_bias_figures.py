"""The figures of the bench of class bias."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from awsgd_rl import plots
from awsgd_rl.benchmarks.class_bias_runs import BEST, GROUPED, METHODS, mean_curve
from awsgd_rl.plots_panels import Curve, curve_panels
from awsgd_rl.statistics import mean_band

TITLES: Final = {
    "digits": "Digits, mean of 10 tasks",
    "mnist": "MNIST, mean of 10 tasks",
    "flights": "Cancelled flights",
}
FIGURES: Final = {
    "class-bias": ("natural", "balanced", "sampler", "heuristic", "class", BEST),
    "class-bias-families": ("balanced", *GROUPED, BEST),
}
"""The methods in each of the figures of average precision."""


def draw_figures(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Draw `class-bias`, `class-bias-families` and `class-bias-tau`; return the paths written.

    Args:
        rows: of the bench.
        folder: where to.
    """
    by_seed: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault((row["data"], row["seed"]), []).append(row)
    written = []
    for name, methods in FIGURES.items():
        panels: dict[str, dict[str, Curve]] = {}
        for data in dict.fromkeys(data for data, _ in by_seed):
            own = [held for (of, _), held in by_seed.items() if of == data]
            at = np.array(own[0][0]["epochs"])
            start = int(np.searchsorted(at, at[-1] / 50))
            panels[f"{TITLES[data]} ({len(own)} seeds)"] = {
                METHODS[method]: Curve(
                    at[start:],
                    mean_band(
                        [mean_curve(held, method)[start:] for held in own], bounds=(0.0, 1.0)
                    ),
                )
                for method in methods
            }
        figure = curve_panels(
            panels,
            title="Rare classes: average precision while it learns",
            subtitle="test examples; bands: 95% intervals over seeds",
            xlabel="epochs (N drawn examples each), log scale",
            ylabel="mean average precision",
            percent=False,
            log_x=True,
        )
        written += plots.save_figure(figure, folder, name)
    return [*written, *_tau_figure(rows, folder)]


def _tau_figure(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Path]:
    own = [row for row in rows if row["method"] == "class"]
    panels: dict[str, dict[str, Curve]] = {}
    for data, label in dict.fromkeys((row["data"], row["class"]) for row in own):
        held = [row for row in own if (row["data"], row["class"]) == (data, label)]
        best = [[v["best_tau"] for v in row["variances"]] for row in held]
        panels["cancelled flights" if data == "flights" else f"{data}, {label}"] = {
            "learned": Curve(np.array(held[0]["epochs"]), mean_band([r["tau"] for r in held])),
            "best at the same weights": Curve(
                np.array([v["epoch"] for v in held[0]["variances"]]), mean_band(best)
            ),
        }
    figure = curve_panels(
        panels,
        title="Class bias: the log odds τ of drawing a positive example",
        subtitle="0 is 50/50; bands: 95% intervals over seeds",
        xlabel="epochs (N drawn examples each), log scale",
        ylabel="τ",
        percent=False,
        log_x=True,
    )
    return plots.save_figure(figure, folder, "class-bias-tau")
