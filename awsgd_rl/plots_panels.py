"""Figures over many tasks at once: a panel of curves for each, ratios with intervals in rows."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from awsgd_rl.plots import _DPI, _STYLE, PALETTE, _headline
from awsgd_rl.statistics import Band, Interval

__all__ = ["Curve", "curve_panels", "ratio_forest"]

_COLUMNS: Final = 4
_WIDTH, _HEIGHT = 2.75, 2.3  # inches of a panel, its labels included


class Curve(NamedTuple):
    """A quantity with its band.

    Attributes:
        x: [K] where its points lie.
        band: [K] estimate, low and high; a band that is NaN is left out.
    """

    x: NDArray[np.float64]
    band: Band


def curve_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    title: str,
    subtitle: str,
    xlabel: str,
    ylabel: str,
    floor: float | None = None,
    log_x: bool = False,
    percent: bool = True,
) -> Figure:
    """Draw curves in small multiples, one panel a task, one colour a label throughout.

    Args:
        panels: curves by label, by the panel's title.
        title: first line, bold.
        subtitle: second line.
        xlabel: what the x axes are, with the unit.
        ylabel: what is drawn, with the unit.
        floor: log scale, whose lower end this is: what is below is drawn there.
        log_x: log scale of the x axes.
        percent: the quantity is a probability, written in per cent.

    Raises:
        ValueError: if there is no panel, a panel without curve, or a floor outside (0, 1).
    """
    if not panels or not all(panels.values()):
        raise ValueError("got no panel, or one without a curve: expected at least one curve each")
    if floor is not None and not 0 < floor < 1:
        raise ValueError(f"floor must lie inside (0, 1) on a log scale, got {floor}")
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    colors = {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(labels)}
    columns = min(_COLUMNS, max(2, len(panels)))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({**_STYLE, "font.size": 9.0}):
        legend_columns = min(3, columns)
        lines = -(-len(labels) // legend_columns)
        width = columns * _WIDTH + 0.5
        height = rows * _HEIGHT + 0.75 + 0.22 * lines + 0.2
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=percent)
        figure.subplots_adjust(
            left=0.68 / width,
            right=1 - 0.15 / width,
            bottom=(0.62 + 0.22 * lines) / height,
            top=1 - 0.95 / height,
            hspace=0.42,
            wspace=0.12 if percent else 0.3,
        )
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(name, fontsize=9.5, loc="left", pad=4)
            for k, (label, curve) in enumerate(curves.items()):
                _draw(axes, curve, colors[label], floor, order=10 - k)
            if log_x:
                axes.set_xscale("log")
            if floor is not None:
                axes.set_yscale("log")
                axes.set_ylim(floor, 1.0)
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
            elif percent:
                axes.set_ylim(0.0, 1.0)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.grid(axis="y", color="#E4E4E4", linewidth=0.7)
            axes.set_axisbelow(True)
        figure.text(0.68 / width, (0.28 + 0.22 * lines) / height, xlabel, va="center")
        figure.text(
            0.12 / width, 0.5, ylabel, rotation="vertical", ha="center", va="center", fontsize=9.0
        )
        figure.legend(
            [Line2D([], [], color=colors[label], linewidth=2) for label in labels],
            labels,
            loc="lower left",
            bbox_to_anchor=(0.5 / width, 0.02 / height),
            ncols=legend_columns,
            frameon=False,
            handlelength=1.4,
        )
        _headline(figure, title, subtitle, left=0.12 / width)
    return figure


def ratio_forest(
    groups: Mapping[str, Mapping[str, Interval]],
    *,
    title: str,
    subtitle: str,
    xlabel: str,
    first_color: int = 0,
) -> Figure:
    """Draw ratios with their intervals, one row each, on a log scale around 1.

    Args:
        groups: intervals by label, by the name of the group that they share; one colour a label.
            An end that is NaN or infinite is drawn to the edge.
        title: first line, bold.
        subtitle: second line.
        xlabel: what the ratios are of.
        first_color: place in the palette of the first label's colour.

    Raises:
        ValueError: if there is no positive, finite ratio.
    """
    known = [
        value
        for group in groups.values()
        for interval in group.values()
        for value in interval
        if np.isfinite(value) and value > 0
    ]
    if not known:
        raise ValueError("got no positive finite ratio, expected at least one")
    low, high = min(0.5, 0.8 * min(known)), max(2.0, 1.25 * max(known))
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    colors = {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(labels, first_color)}
    with matplotlib.rc_context(_STYLE):
        height = 0.6 + 0.24 * sum(len(group) + 0.6 for group in groups.values()) + 1.1
        figure = Figure(figsize=(7.6, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.2, 0.9 / height, 0.65, 1 - 1.55 / height))
        axes.axvline(1.0, color="#888888", linewidth=1.0)
        at, ticks = 0.0, []
        for group in groups.values():
            ticks.append(at + (len(group) - 1) / 2)
            for label, ratio in group.items():
                _draw_ratio(axes, at, ratio, colors[label], low, high)
                at += 1
            at += 0.6
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(at - 0.9, -0.7)
        axes.set_yticks(ticks, list(groups))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)
        handles = [Line2D([], [], color=colors[label], marker="o", ms=5) for label in labels]
        figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.02, 0), ncols=3, frameon=False,
            fontsize=9.5,
        )  # fmt: skip
        _headline(figure, title, subtitle, left=0.02)
    return figure


def _draw(axes: Axes, curve: Curve, color: str, floor: float | None, order: int) -> None:
    parts: Sequence[NDArray[np.float64]] = curve.band
    if floor is not None:
        parts = [np.clip(part, floor, 1.0) for part in parts]
    estimate, low, high = parts
    axes.fill_between(curve.x, low, high, color=color, alpha=0.15, linewidth=0, zorder=order)
    axes.plot(curve.x, estimate, color=color, linewidth=1.5, zorder=order + 20)


def _draw_ratio(
    axes: Axes, at: float, ratio: Interval, color: str, low: float, high: float
) -> None:
    estimate, start, end = ratio
    start = start if np.isfinite(start) and start > 0 else low
    end = end if np.isfinite(end) else high
    axes.plot([start, end], [at, at], color=color, linewidth=1.8, solid_capstyle="butt")
    axes.plot(float(np.clip(estimate, low, high)), at, "o", color=color, markersize=5)
    text = f"{estimate:.3g}" if np.isfinite(estimate) else "∞" if estimate > 0 else "?"
    axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)


def _short(value: float, _: object = None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
