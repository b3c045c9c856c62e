"""Figures of matrix factorisation: losses, speed-ups over a factor, pixels that are drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.plots import _DPI, _STYLE, PALETTE, _headline
from awsgd_rl.plots_panels import Curve
from awsgd_rl.runs import atomic_path

__all__ = ["log_panels", "pixel_animation", "pixel_maps"]


def log_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    title: str,
    subtitle: str,
    xlabels: Sequence[str],
    ylabels: Sequence[str],
    log_x: bool = False,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw curves on log scales side by side, one panel a task, one colour a label throughout.

    Args:
        panels: curves by label, by the panel's title.
        title: first line, bold.
        subtitle: second line.
        xlabels: of each panel, with the unit.
        ylabels: of each panel, with the unit.
        log_x: log scale of the x axes too.
        lines: heights of dashed lines in every panel, by what is written beside them.

    Raises:
        ValueError: if there is no panel.
    """
    if not panels:
        raise ValueError("got no panel, expected at least one")
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    colors = {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(labels)}
    width = max(6.8, 3.9 * len(panels))
    with matplotlib.rc_context({**_STYLE, "font.size": 9.5}):
        figure = Figure(figsize=(width, 4.3), dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(panels), squeeze=False)
        figure.subplots_adjust(
            left=0.72 / width, right=1 - 0.15 / width, bottom=0.25, top=0.78, wspace=0.24
        )
        for axes, (name, curves), xlabel, ylabel in zip(
            grid.flat, panels.items(), xlabels, ylabels, strict=True
        ):
            for label, curve in curves.items():
                estimate, low, high = curve.band
                axes.fill_between(curve.x, low, high, color=colors[label], alpha=0.15, linewidth=0)
                axes.plot(curve.x, estimate, color=colors[label], linewidth=1.6, label=label)
            axes.set_yscale("log")
            if log_x:
                axes.set_xscale("log")
            for text, height in (lines or {}).items():
                axes.axhline(height, color="#888888", linewidth=1.0, linestyle="--")
                axes.text(0.01, height, text, transform=axes.get_yaxis_transform(), va="bottom",
                          fontsize=8.5, color="#555555")  # fmt: skip
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
            axes.grid(axis="y", color="#E4E4E4", linewidth=0.7)
            axes.set_axisbelow(True)
        handles: dict[str, Any] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles.keys(), loc="lower left", frameon=False,
            bbox_to_anchor=(0.5 / width, 0.0), ncols=min(4, len(handles)),
        )  # fmt: skip
        _headline(figure, title, subtitle, left=0.12 / width)
    return figure


def pixel_maps(frames: ArrayLike, names: Sequence[str], *, title: str, subtitle: str) -> Figure:
    """Draw the probability of each pixel, one small picture a frame, all on one scale.

    Args:
        frames: [F, side, side].
        names: [F] what stands above each picture.
        title: first line, bold.
        subtitle: second line.
    """
    images = np.asarray(frames, np.float64)
    columns = 7
    lines = -(-len(images) // columns)
    with matplotlib.rc_context({**_STYLE, "font.size": 8.5}):
        figure = Figure(figsize=(8.4, 1.0 + 1.38 * lines), dpi=_DPI)
        FigureCanvasAgg(figure)
        height = 1.0 + 1.38 * lines
        grid = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.02, right=0.98, bottom=0.02, top=1 - 1.05 / height, wspace=0.06, hspace=0.24
        )
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, name in zip(grid.flat, images, names, strict=False):
            _draw_pixels(axes, image, images.max())
            axes.set_title(name, pad=2, fontsize=8.5)
        _headline(figure, title, subtitle, left=0.02)
    return figure


def pixel_animation(
    frames: ArrayLike, names: Sequence[str], folder: str | Path, name: str, *, per_second: int = 4
) -> Path:
    """Write the frames of `pixel_maps` as an animated GIF, and return its path."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    images = np.asarray(frames, np.float64)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.8, 3.1), dpi=90)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.03, 0.02, 0.94, 0.86))
        axes.set_axis_off()
        picture = _draw_pixels(axes, images[0], images.max())
        text = axes.set_title("", fontsize=10)

        def show(frame: int) -> Any:
            picture.set_data(images[frame])
            text.set_text(names[frame])
            return (picture, text)

        animation = FuncAnimation(figure, show, frames=len(images), blit=False)
        path = Path(folder) / f"{name}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft:
            animation.save(draft, writer=PillowWriter(fps=per_second))
    return path


def _draw_pixels(axes: Axes, image: NDArray[np.float64], top: float) -> Any:
    return axes.imshow(image, cmap="magma", vmin=0.0, vmax=top, interpolation="nearest")
