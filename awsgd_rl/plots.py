"""Figures: plain arrays in, a Matplotlib figure out, with no state kept between two calls.

Only this module and `plots_maps` import Matplotlib, and only through its object interface: no
window, no `pyplot`, no figure that someone has to close. What is drawn is computed elsewhere.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.runs import atomic_path
from awsgd_rl.statistics import Band

__all__ = ["failure_curves", "learning_curves", "regret_curves", "save_figure"]

# Okabe and Ito's colours, in an order that also differs in lightness.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK: Final = "#222222"
_FAINT: Final = "#8A8A8A"
_STYLE: Final[Any] = {
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "awsgd-rl",  # the same figure gives the same file
}
_DPI: Final = 160


def learning_curves(
    episodes: ArrayLike,
    curves: Mapping[str, Band],
    *,
    title: str = "Success of the target policy while it learns",
    subtitle: str = "",
    ylabel: str = "success probability",
    percent: bool = True,
    total: float | None = None,
) -> Figure:
    """Draw a quantity over the episodes learned from, with its band; labels stand at the ends.

    Args:
        episodes: [K] where on the axis each point lies, in episodes.
        curves: [K] estimate, low and high by label; bands that are NaN are left out.
        title: first line, bold.
        subtitle: second line.
        ylabel: what is drawn, with its unit.
        percent: the quantity is a probability: axis from 0 to 100%.
        total: where the axis ends. Default: at the last point.

    Raises:
        ValueError: if there is no curve, or one does not have K points.
    """
    figure, axes = _curves(episodes, curves, title, subtitle, ylabel, total)
    if percent:
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _label_ends(axes, curves)
    return figure


def failure_curves(
    episodes: ArrayLike,
    curves: Mapping[str, Band],
    *,
    floor: float,
    title: str = "Failure probability of the target policy while it learns",
    subtitle: str = "",
    total: float | None = None,
) -> Figure:
    """Draw failure probabilities over the episodes learned from on a log scale.

    Args:
        episodes: [K] where on the axis each point lies, in episodes.
        curves: [K] estimate, low and high by label.
        floor: the smallest probability that the data can tell from 0; what is below is drawn there.
        title: first line, bold.
        subtitle: second line.
        total: where the axis ends. Default: at the last point.

    Raises:
        ValueError: if there is no curve, or one without K points; if `floor` is not in (0, 1).
    """
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie inside (0, 1) on a log scale, got {floor}")
    clipped = {
        label: Band(*(np.clip(part, floor, 1.0) for part in band)) for label, band in curves.items()
    }
    figure, axes = _curves(
        episodes, clipped, title, subtitle, "failure probability, log scale", total
    )
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _label_ends(axes, clipped)
    return figure


def regret_curves(
    episodes: ArrayLike,
    curves: Mapping[str, Band],
    *,
    title: str = "What learning costs: episodes failed so far",
    subtitle: str = "",
    total: float | None = None,
) -> Figure:
    """Draw the number of failures so far over the episodes: the regret against never failing.

    Args:
        episodes: [K] where on the axis each point lies, in episodes.
        curves: [K] estimate, low and high by label, in episodes.
        title: first line, bold.
        subtitle: second line.
        total: where the axis ends. Default: at the last point.

    Raises:
        ValueError: if there is no curve, or one does not have K points.
    """
    lowest = min((float(np.min(band.estimate)) for band in curves.values()), default=1.0)
    floor = max(0.5, 0.5 * lowest)
    clipped = {
        label: Band(*(np.maximum(part, floor) for part in band)) for label, band in curves.items()
    }
    figure, axes = _curves(
        episodes, clipped, title, subtitle, "episodes failed so far, log scale", total
    )
    # On a linear axis of time a curve that has become level is seen to have done so early.
    axes.set_xscale("linear")
    axes.set_xlim(left=0.0)
    axes.set_xlabel("episodes learned from")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    _label_ends(axes, clipped)
    return figure


def ratio_curves(
    episodes: ArrayLike,
    curves: Mapping[str, Band],
    *,
    title: str,
    subtitle: str = "",
    ylabel: str,
) -> Figure:
    """Draw ratios over the episodes learned from, both on log scales, with a line at 1.

    Args:
        episodes: [K] where on the axis each point lies, in episodes.
        curves: [K] estimate, low and high by label, all above 0; bands that are NaN are left out.
        title: first line, bold.
        subtitle: second line.
        ylabel: what is drawn.

    Raises:
        ValueError: if there is no curve, or one does not have K points.
    """
    figure, axes = _curves(episodes, curves, title, subtitle, ylabel, None)
    # A log axis of one decade has hardly a label of its own.
    axes.set_xticks(np.asarray(episodes), minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axhline(1.0, color="#8A8A8A", linewidth=0.8, zorder=0)
    _label_ends(axes, curves)
    return figure


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg` into the folder, whole or not at all; return their paths.

    Raises:
        ValueError: if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to write figures into: make it first")
    written = []
    with matplotlib.rc_context(_STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = folder / f"{name}.{kind}"
            with atomic_path(path) as partial:
                figure.savefig(partial, format=kind, metadata=metadata)
            written.append(path)
    return written


def _curves(
    episodes: ArrayLike,
    curves: Mapping[str, Band],
    title: str,
    subtitle: str,
    ylabel: str,
    total: float | None,
) -> tuple[Figure, Axes]:
    points = np.asarray(episodes, dtype=np.float64)
    if not curves:
        raise ValueError("got no curve, expected at least one")
    for label, band in curves.items():
        if any(np.shape(part) != points.shape for part in band):
            raise ValueError(
                f"curve {label!r} has {len(band.estimate)} points, expected one for each of the "
                f"{len(points)} places on the axis"
            )
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.3), dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.105, 0.125, 0.655, 0.70))
        for k, band in enumerate(curves.values()):
            color = PALETTE[k % len(PALETTE)]
            # The first curve is the one that the figure is about: on top.
            order = 10 - k
            axes.fill_between(
                points, band.low, band.high, color=color, alpha=0.10, linewidth=0, zorder=order
            )
            for edge in (band.low, band.high):  # areas on top of each other are told apart by it
                axes.plot(points, edge, color=color, alpha=0.45, linewidth=0.7, zorder=order + 10)
            axes.plot(points, band.estimate, color=color, linewidth=1.8, zorder=order + 20)
        # Most is learned in the first episodes: a log scale gives them room.
        axes.set_xscale("log")
        axes.set_xlim(float(points[0]), float(points[-1]) if total is None else total)
        axes.set_xlabel("episodes learned from, log scale")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        _headline(figure, title, subtitle, left=0.02)
    return figure, axes


def _headline(figure: Figure, title: str, subtitle: str, left: float) -> None:
    """Write the two lines over a figure, from `left` (a share of its width) on."""
    height = figure.get_size_inches()[1]
    figure.text(left, 1 - 0.12 / height, title, fontsize=12.5, fontweight="bold", va="top")
    figure.text(left, 1 - 0.38 / height, subtitle, fontsize=9.8, color="#555555", va="top")


def _label_ends(axes: Axes, curves: Mapping[str, Band]) -> None:
    """Write each label beside its curve's end, moved apart where ends are close."""
    ends = np.array([[0.0, band.estimate[-1]] for band in curves.values()])
    at = axes.transAxes.inverted().transform(axes.transData.transform(ends))[:, 1]
    labels = ["\n".join(textwrap.wrap(label, 20)) for label in curves]
    heights = np.array([0.058 * (1 + label.count("\n")) for label in labels])
    # Of curves that end together the first is labelled highest.
    order = np.lexsort((-np.arange(len(at)), np.round(at, 2)))
    places = _spread(np.clip(at[order], 0.0, 1.0), heights[order])
    for place, k in zip(places, order, strict=True):
        axes.text(
            1.02,
            place,
            labels[k],
            color=PALETTE[k % len(PALETTE)],
            transform=axes.transAxes,
            va="center",
            fontsize=9.8,
            fontweight="bold" if k == 0 else "normal",
            linespacing=1.15,
        )


def _spread(at: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move sorted places apart so that boxes of these heights do not overlap, within [0, 1]."""
    places = at.copy()
    for _ in range(200):
        gaps = np.diff(places) - (heights[1:] + heights[:-1]) / 2
        if len(gaps) == 0 or gaps.min() >= -1e-6:
            break
        push = np.minimum(gaps, 0.0) / 2
        places[:-1] += push
        places[1:] -= push
        places = np.clip(places, heights / 2 - 0.02, 1.02 - heights / 2)
    return places


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"
