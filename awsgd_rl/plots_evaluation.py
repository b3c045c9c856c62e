"""The figure of the bench `evaluation`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from awsgd_rl.plots import _DPI, _STYLE, PALETTE, _headline

_OURS, _PLAIN = PALETTE[0], PALETTE[1]
_MARKS: Final = {"table": "o", "mlp": "s", "slip": "D"}
_KINDS: Final = {"table": "table", "mlp": "MLP, 8×8", "slip": "table, slips 10%"}


def evaluation_figure(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float]) -> Figure:
    """Draw what learned exploration saves when failures are counted.

    Left: one agent's failure probability with its 95 % interval against the episodes spent. Right:
    episodes for an error of 10 % against the failure probability, a pair of marks for each agent.

    Args:
        rows: of the bench, one with a "curve".
        summary: of the bench.

    Raises:
        ValueError: if no row has a curve.
    """
    curve = next((row["curve"] for row in rows if "curve" in row), None)
    if curve is None:
        raise ValueError("no row has a curve: pass the rows of the bench evaluation")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 4.5), dpi=_DPI)
        FigureCanvasAgg(figure)
        _draw_curve(figure.add_axes((0.07, 0.13, 0.40, 0.66)), curve)
        _draw_episodes(figure.add_axes((0.575, 0.13, 0.40, 0.66)), rows)
        ratio = summary.get("episode_ratio_1e3", np.nan)
        _headline(
            figure,
            "How often does a trained agent fail? Learned exploration needs far fewer episodes",
            f"15×15 grids with 9 traps; at a failure probability of 0.001, {ratio:,.0f} times "
            "fewer for 10% error, learning included",
            left=0.015,
        )
    return figure


def _draw_curve(axes: Axes, curve: Mapping[str, Sequence[float]]) -> None:
    episodes, p = np.asarray(curve["episodes"]), curve["p"][0]
    floor = p / 12
    for name, color, shift in (("plain", _PLAIN, 1.06), ("ours", _OURS, 1 / 1.06)):
        value, low, high = (np.asarray(curve[name + end]) for end in ("", "_low", "_high"))
        shown = np.maximum(value, floor)
        spread = np.maximum([shown - np.maximum(low, floor), high - shown], 0.0)
        axes.errorbar(
            episodes * shift, shown, spread, fmt="o", color=color, ms=4.5, lw=1.4, capsize=2.5
        )
    axes.axhline(p, color="#222222", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.text(episodes[-1] * 1.25, p * 1.08, "exact", ha="right", va="bottom", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(floor, p * 60)
    axes.set_xlabel("episodes spent, log scale")
    axes.set_title("failure probability of one agent, 95% interval", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.text(0.98, 0.95, "plain rollouts", color=_PLAIN, transform=axes.transAxes, ha="right")
    axes.text(
        0.98, 0.88, "learned exploration", color=_OURS, transform=axes.transAxes, ha="right",
        fontweight="bold",
    )  # fmt: skip


def _draw_episodes(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for kind, mark in _MARKS.items():
        own = [row for row in rows if row["kind"] == kind and row["budget"] is None]
        if not own:
            continue
        p = np.array([row["p"] for row in own])
        axes.plot(p, [row["plain_episodes"] for row in own], mark, color=_PLAIN, ms=5.5, mfc="none")
        axes.plot(p, [row["episodes"] for row in own], mark, color=_OURS, ms=5.5)
        axes.plot([], [], mark, color="#555555", ms=5.5, label=_KINDS[kind])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("exact failure probability, log scale")
    axes.set_title("episodes for an error of 10%", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left", fontsize=9, handletextpad=0.2)
