"""The figures of `awsgd-rl tune`: the trials in their order, and along each option."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from awsgd_rl.agents.search_spaces import Choices, Range
from awsgd_rl.benchmarks.search import Tried, TuneConfig, Tuned
from awsgd_rl.benchmarks.trial import ALGORITHMS
from awsgd_rl.plots import _DPI, _STYLE, PALETTE, _headline, save_figure

_COLUMNS: Final = 3
_WIDTH, _HEIGHT = 3.0, 2.35  # inches of a panel, its labels included
_PRUNED: Final = "#B5B5B5"
_LEGEND: Final = "filled: measured on all maps, grey: pruned, ring: the default, star: the best"


def write_figures(config: TuneConfig, tuned: Sequence[Tuned], folder: str | Path) -> list[Path]:
    """Draw `history`, and `slices-<algorithm>` for each, into an existing folder; return paths."""
    written = save_figure(history_figure(config, tuned), folder, "history")
    for own in tuned:
        written += save_figure(slice_figure(config, own), folder, f"slices-{own.subject.label}")
    return written


def history_figure(config: TuneConfig, tuned: Sequence[Tuned]) -> Figure:
    """Draw each algorithm's trials in their order, with the best so far as a line."""
    figure, panels = _panels(len(tuned), "What was tried, in its order", _subtitle(config))
    lowest = min(_shown(own).min() for own in tuned)
    highest = max(_shown(own).max() for own in tuned)
    margin = 0.06 * (highest - lowest) or 0.01
    for axes, own in zip(panels, tuned, strict=True):
        _scatter(axes, own, [trial.number for trial in own.trials])
        complete = [trial for trial in own.trials if trial.state == "complete"]
        best = np.maximum.accumulate([trial.values.mean() for trial in complete])
        axes.step(
            [*(trial.number for trial in complete), config.trials - 1],
            [*best, best[-1]],
            where="post",
            color=PALETTE[0],
            linewidth=1.2,
        )
        axes.set_title(ALGORITHMS[own.subject.label].title, fontsize=9.5, loc="left", pad=4)
        axes.set_ylim(lowest - margin, highest + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("trial")
        _value_axis(axes, own)
    return figure


def slice_figure(config: TuneConfig, own: Tuned) -> Figure:
    """Draw an algorithm's trials along each of its options."""
    title = f"{ALGORITHMS[own.subject.label].title}: what was tried, along each option"
    figure, panels = _panels(len(own.subject.space), title, _subtitle(config))
    for axes, (name, space) in zip(panels, own.subject.space.items(), strict=True):
        if isinstance(space, Choices):
            places = [space.values.index(trial.options[name]) for trial in own.trials]
            axes.set_xticks(range(len(space.values)), list(map(str, space.values)))
        else:
            places = [trial.options[name] for trial in own.trials]
            _number_axis(axes, space)
        _scatter(axes, own, places)
        axes.margins(y=0.1)
        share = own.importances.get(name)
        part = "" if share is None else f", {share:.0%} of the variance"
        axes.set_xlabel(f"{name}{part}")
        _value_axis(axes, own)
    return figure


def _panels(count: int, title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, max(2, count))
    rows = -(-count // columns)
    with matplotlib.rc_context({**_STYLE, "font.size": 9.0}):
        width, height = columns * _WIDTH + 0.3, rows * _HEIGHT + 1.0
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.75 / width,
            right=1 - 0.15 / width,
            bottom=0.8 / height,
            top=1 - 0.9 / height,
            hspace=0.55,
            wspace=0.32,
        )
        figure.text(0.12 / width, 0.14 / height, _LEGEND, fontsize=8.5, color="#555555")
        _headline(figure, title, subtitle, left=0.12 / width)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def _scatter(axes: Axes, own: Tuned, places: Sequence[Any]) -> None:
    """Draw the trials, each at its place on the horizontal axis."""

    def draw(chosen: Sequence[Tried], **style: Any) -> None:
        at = [places[trial.number] for trial in chosen]
        axes.plot(at, [trial.values.mean() for trial in chosen], linestyle="none", **style)

    by_state = {
        state: [trial for trial in own.trials if trial.state == state and len(trial.values)]
        for state in ("complete", "pruned")
    }
    draw(by_state["pruned"], marker="o", markersize=3.5, color=_PRUNED)
    draw(by_state["complete"], marker="o", markersize=4, color=PALETTE[0])
    draw([own.trials[0]], marker="o", markersize=8, color="#222222", fillstyle="none")
    draw([own.best], marker="*", markersize=11, color=PALETTE[1], zorder=5)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def _shown(own: Tuned) -> Any:
    return np.array([trial.values.mean() for trial in own.trials if len(trial.values)])


def _number_axis(axes: Axes, space: Range) -> None:
    if space.log:
        axes.set_xscale("log")
        axes.set_xlim(space.low / 1.15, space.high * 1.15)
        steps = (1.0, 2.0, 5.0) if space.high < 30 * space.low else (1.0, 3.0)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.05 * (space.high - space.low)
        axes.set_xlim(space.low - margin, space.high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _value_axis(axes: Axes, own: Tuned) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if own.metric == "success":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_ylabel("success" if own.metric == "success" else "return", labelpad=2)


def _subtitle(config: TuneConfig) -> str:
    count = f"{config.maps} {config.unit}{'s' if config.maps > 1 else ''}"
    return f"{config.task}, {config.length}, mean over {count} from {config.seed} on"
