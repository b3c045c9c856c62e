"""Figures of an agent looked at while it learns: curves side by side, and where its draw lies."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from awsgd_rl.plots import _DPI, _FAINT, _STYLE, PALETTE, _headline
from awsgd_rl.statistics import Band

__all__ = ["DrawnFrom", "Panel", "curve_row", "draw_figure"]

Floats = NDArray[np.float64]

_END_COLORS: Final = ("#1E8449", "#B03A2E", "#8A8A8A")  # as on maps; the cut off grey
_ROOM: Final = 4.0  # on a log axis, below and above the means
_TRIALS: Final = "trials learned from, log scale"


class Panel(NamedTuple):
    """Curves that share their axes, as `curve_row` draws them.

    Attributes:
        title: what stands over the panel.
        curves: [K] estimate, low and high by label; bands that are NaN are left out.
        ylabel: what is drawn, with the unit.
        log: log scale with a line at 1; else from 0 to 1.
    """

    title: str
    curves: Mapping[str, Band]
    ylabel: str
    log: bool = True


class DrawnFrom(NamedTuple):
    """Where the draw lay up to some trial, as `draw_figure` draws it.

    Attributes:
        trials: the trial.
        by_age: [ages] the draw's share of each age, newest first, over a uniform draw's; NaN where
            nothing was so old.
        by_end: [E] the draw's share of each ending.
        uniform_by_end: [E] a uniform draw's.
    """

    trials: int
    by_age: Floats
    by_end: Floats
    uniform_by_end: Floats


def curve_row(
    trials: Floats,
    panels: Sequence[Panel],
    *,
    title: str,
    subtitle: str = "",
    share_y: bool = False,
) -> Figure:
    """Draw panels of curves over the trials side by side, one colour a label throughout.

    Args:
        trials: [K] where on the log axes the points lie.
        panels: from left to right.
        title: first line, bold.
        subtitle: second line.
        share_y: one y axis for all.

    Raises:
        ValueError: if there is no panel, or one without a curve or with one that has not K points.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("got no panel, or one without a curve: expected at least one curve each")
    for panel in panels:
        for label, band in panel.curves.items():
            if any(np.shape(part) != np.shape(trials) for part in band):
                raise ValueError(
                    f"curve {label!r} has {len(band.estimate)} points, expected one for each of "
                    f"the {len(trials)} places on the axis"
                )
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    colors = {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(labels)}
    with matplotlib.rc_context(_STYLE):
        width, height = 4.4 * len(panels) + 0.3, 4.5
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=share_y)[0]
        figure.subplots_adjust(
            left=0.85 / width,
            right=1 - 0.2 / width,
            bottom=1.0 / height,
            top=1 - 1.0 / height,
            wspace=0.12 if share_y else 0.25,
        )
        for axes, panel in zip(grid, panels, strict=True):
            for k, (label, band) in enumerate(panel.curves.items()):
                _draw_band(axes, trials, band, colors[label], order=10 - k)
            axes.set_title(panel.title, fontsize=10.5, loc="left", pad=7)
            _trial_axis(axes, trials)
            if not share_y or axes is grid[0]:
                axes.set_ylabel(panel.ylabel)
            if panel.log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
                axes.axhline(1.0, color=_FAINT, linewidth=0.8, zorder=0)
                # Bands of few maps reach over many decades: the means decide.
                shown = panels if share_y else [panel]
                means = np.concatenate([b.estimate for p in shown for b in p.curves.values()])
                axes.set_ylim(means.min() / _ROOM, means.max() * _ROOM)
            else:
                axes.set_ylim(0.0, 1.0)
            axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.legend(
            [Line2D([], [], color=colors[label], linewidth=2) for label in labels],
            labels,
            loc="lower left",
            bbox_to_anchor=(0.65 / width, 0.02 / height),
            ncols=3,
            frameon=False,
            handlelength=1.4,
            fontsize=9.8,
        )
        _headline(figure, title, subtitle, left=0.12 / width)
    return figure


def draw_figure(
    points: Sequence[DrawnFrom],
    explored: Mapping[str, Band],
    number: Mapping[str, Band],
    *,
    ends: Sequence[str],
    title: str,
    subtitle: str = "",
) -> Figure:
    """Draw by age, by ending, by policy and by number where the draw lies, over the trials.

    Args:
        points: K of them, in order.
        explored: [K] share of trajectories of Q_τ, by label: drawn, then stored.
        number: [K] number of trajectories, by label: drawn in effect, then stored.
        ends: [E] the names of the endings.
        title: first line, bold.
        subtitle: second line.

    Raises:
        ValueError: if there is no point, or they have not the same shapes.
    """
    if not points:
        raise ValueError("got no point, expected at least one")
    for point in points:
        shapes = (point.by_age.shape, point.by_end.shape, point.uniform_by_end.shape)
        if shapes != (points[0].by_age.shape, (len(ends),), (len(ends),)):
            raise ValueError(
                f"at {point.trials} trials the shares have shapes {shapes}, expected the first "
                f"point's {points[0].by_age.shape} ages and {len(ends)} endings twice"
            )
    with matplotlib.rc_context({**_STYLE, "font.size": 9.8}):
        width, height = 8.6, 7.6
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        left, right, wide, tall = 0.085, 0.61, 0.365, 0.315
        upper, lower = 0.535, 0.075
        _draw_ages(
            figure,
            figure.add_axes((left, upper, wide, tall)),
            figure.add_axes((left + wide + 0.01, upper, 0.012, tall)),
            points,
        )
        endings = figure.add_axes((right, upper, wide, tall))
        _draw_ends(endings, points, ends)
        trials = np.array([point.trials for point in points], dtype=np.float64)
        for x, curves, name, ylabel in (
            (left, explored, "share of trajectories that Q_τ drew", "share"),
            (right, number, "number of trajectories", "trajectories, in effect"),
        ):
            axes = figure.add_axes((x, lower, wide, tall))
            for (label, band), color in zip(curves.items(), (PALETTE[0], _FAINT), strict=True):
                _draw_band(axes, trials, band, color, order=5)
                axes.plot([], [], color=color, linewidth=1.8, label=label)
            _trial_axis(axes, trials)
            axes.set_ylim(0.0, 1.3 * max(float(band.estimate.max()) for band in curves.values()))
            axes.set_title(name, fontsize=10.2, loc="left", pad=7)
            axes.set_ylabel(ylabel)
            axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
            axes.legend(frameon=False, fontsize=9.3, loc="upper left", ncols=2, handlelength=1.3)
            if curves is explored:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        endings.legend(
            [Patch(color=color) for color in _END_COLORS[: len(ends)]],
            list(ends),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.155),
            ncols=len(ends),
            fontsize=9.3,
            handlelength=1.2,
            frameon=False,
        )
        _headline(figure, title, subtitle, left=0.012)
    return figure


def _draw_ages(figure: Figure, axes: Axes, bar_axes: Axes, points: Sequence[DrawnFrom]) -> None:
    lifts = np.array([point.by_age for point in points]).T
    known = lifts[np.isfinite(lifts)]
    largest = max(2.0, float(known.max(initial=1.0)))
    norm = TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=largest)
    image = axes.imshow(lifts, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("#EEEEEE")
    axes.set_yticks(range(0, len(lifts), 2 if len(lifts) > 5 else 1))
    axes.set_ylabel("age in batches, 0 the newest")
    _point_axis(axes, points)
    axes.set_title("draws on each age, times uniform", fontsize=10.2, loc="left", pad=7)
    bar = figure.colorbar(image, cax=bar_axes)
    bar.set_ticks([0.0, 0.5, 1.0, *np.arange(2.0, largest + 0.01, 1.0)])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
    bar.ax.tick_params(labelsize=8.5, length=2)
    bar.outline.set_visible(False)


def _draw_ends(axes: Axes, points: Sequence[DrawnFrom], ends: Sequence[str]) -> None:
    at = np.arange(len(points))
    for offset, name, alpha in ((-0.21, "uniform_by_end", 0.45), (0.21, "by_end", 1.0)):
        base = np.zeros(len(points))
        # Failures stand at the bottom, where small shares are seen best.
        for k in (*range(1, len(ends)), 0):
            share = np.array([getattr(point, name)[k] for point in points])
            axes.bar(at + offset, share, 0.38, base, color=_END_COLORS[k], alpha=alpha)
            base += share
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _point_axis(axes, points)
    axes.set_title("by ending: stored (pale) and drawn (full)", fontsize=10.2, loc="left", pad=7)


def _point_axis(axes: Axes, points: Sequence[DrawnFrom]) -> None:
    axes.set_xticks(range(len(points)), [_short(point.trials) for point in points], fontsize=8.3)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("trials learned from")


def _trial_axis(axes: Axes, trials: Floats) -> None:
    axes.set_xscale("log")
    axes.set_xlim(float(trials[0]), max(float(trials[-1]), 1.001 * float(trials[0])))
    shown = [float(trials[0])]
    for t in trials:  # labels of looks that are close would touch
        if t / shown[-1] > 1.9:
            shown.append(float(t))
    axes.set_xticks(shown, [_short(t) for t in shown], fontsize=9.3)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(_TRIALS)


def _draw_band(axes: Axes, x: Floats, band: Band, color: str, order: int) -> None:
    axes.fill_between(x, band.low, band.high, color=color, alpha=0.15, linewidth=0, zorder=order)
    axes.plot(x, band.estimate, color=color, linewidth=1.8, zorder=order + 20)
    axes.plot(x, band.estimate, "o", color=color, markersize=3.2, zorder=order + 20)


def _short(value: float) -> str:
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
