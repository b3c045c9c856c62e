"""The figures of the bench of optimal sampling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awsgd_rl import plots
from awsgd_rl.benchmarks.optimal_sampling_training import OPTIMIZERS, PROPOSALS
from awsgd_rl.benchmarks.summary import geometric_mean_band
from awsgd_rl.plots_panels import Curve, curve_panels
from awsgd_rl.statistics import Band


def draw_figures(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Draw `optimal-sampling`, the losses, and `optimal-sampling-metric`; return the paths."""
    panels: dict[str, dict[str, Curve]] = {}
    for unit in ("steps", "seconds"):
        for optimizer, (label, _) in OPTIMIZERS.items():
            panel = panels.setdefault(f"{label}, {unit}", {})
            for proposal, name in PROPOSALS.items():
                pair = (optimizer, proposal)
                own = [row for row in rows if (row["optimizer"], row["proposal"]) == pair]
                if own:
                    cost = np.mean([row["step_seconds"] for row in own]) if unit != "steps" else 1
                    at = np.array(own[0]["steps"]) * cost
                    panel[name] = Curve(at, geometric_mean_band([row["loss"] for row in own]))
    number = len({row["seed"] for row in rows})
    figure = curve_panels(
        panels,
        title="Norm-proportional draws with four optimizers",
        subtitle=f"training loss, geometric mean of {number} seeds; bands: 95% intervals",
        xlabel="steps (above), seconds on one core (below)",
        ylabel="training loss",
        percent=False,
    )
    for k, axes in enumerate(figure.axes[: len(panels)]):
        axes.set_yscale("log")
        if k >= len(OPTIMIZERS):  # uniform draws end early: what they do is to be seen
            ends = [curve.x[-1] for curve in list(panels.values())[k].values()]
            axes.set_xlim(0.0, 2.0 * min(ends))
    written = plots.save_figure(figure, folder, "optimal-sampling")
    return written + plots.save_figure(_histograms(rows), folder, "optimal-sampling-metric")


def _histograms(rows: Sequence[Mapping[str, Any]]) -> Any:
    labels = {
        "proposal": "table of output gradients",
        "uniform": "uniform",
        "fresh": "output gradients, just computed",
    }
    metrics = [row["metric"] for row in rows if "metric" in row]
    panels: dict[str, dict[str, Curve]] = {}
    for distance, title in (("tv", "total variation"), ("kl", "KL divergence, nats")):
        values = {k: np.concatenate([m[f"{k}_{distance}"] for m in metrics]) for k in labels}
        top = max(float(np.max(value)) for value in values.values())
        for name, label in labels.items():
            shares, edges = np.histogram(values[name], bins=25, range=(0.0, top))
            unknown = np.full(25, np.nan)
            band = Band(shares / len(values[name]), unknown, unknown)
            panels.setdefault(title, {})[label] = Curve((edges[1:] + edges[:-1]) / 2, band)
    return curve_panels(
        panels,
        title="How far a proposal is from the best one",
        subtitle="histograms over training with SGD and seeds (Lahire 2023, Algorithm 1)",
        xlabel="distance to the proposal of the exact gradient norms",
        ylabel="share of the evaluations",
        percent=False,
    )
