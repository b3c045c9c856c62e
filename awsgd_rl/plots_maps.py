"""Figures on the map of a gridworld: policies, and single trajectories."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.plots import _DPI, _INK, _STYLE, PALETTE, _headline

__all__ = ["PolicyPanel", "TrajectoryPanel", "policy_maps", "trajectory_maps"]

_SIDE: Final = 3.6  # inches of a map's width
_GAP: Final = 0.35  # inches between two maps
_RARE: Final = 0.1  # probability below which an action is marked
_MARK: Final = "#C04F00"
_MOST_LISTED: Final = 3
# The direction of FrozenLake's actions 0 left, 1 down, 2 right, 3 up; y grows downwards.
_DIRECTIONS: Final = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], dtype=np.float64)


class PolicyPanel(NamedTuple):
    """One policy on the map, as `policy_maps` draws it.

    Attributes:
        title: what stands over the panel.
        policy: [S, 4] action probabilities.
        visits: [S] expected visits an episode.
    """

    title: str
    policy: NDArray[np.float64]
    visits: NDArray[np.float64]


class TrajectoryPanel(NamedTuple):
    """One trajectory on the map, as `trajectory_maps` draws it.

    Attributes:
        title: what stands over the panel.
        cells: [L + 1] the cells passed through.
        probabilities: [L] the policy's probability of each action.
    """

    title: str
    cells: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def policy_maps(
    panels: Sequence[PolicyPanel],
    *,
    columns: int,
    start: int,
    goals: ArrayLike,
    traps: ArrayLike,
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draw policies side by side on the map: mean moves as arrows over the heat of their visits.

    Args:
        panels: one a policy; tables [S, 4] with FrozenLake's actions, visits [S].
        columns: cells in a row of the map; S is a multiple of it.
        start: the start cell.
        goals: [G] goal cells.
        traps: [T] trap cells.
        title: first line, bold.
        subtitle: second line.

    Raises:
        ValueError: if there is no panel, or its tables do not fit the map.
    """
    if not panels:
        raise ValueError("got no panel, expected at least one policy to draw")
    states = len(panels[0].visits)
    for panel in panels:
        if panel.policy.shape != (states, 4) or panel.visits.shape != (states,) or states % columns:
            raise ValueError(
                f"panel {panel.title!r} has a policy {list(panel.policy.shape)} and visits "
                f"{list(panel.visits.shape)}, expected [S, 4] and [S], S a multiple of {columns}"
            )
    rows = states // columns
    with matplotlib.rc_context(_STYLE):
        head = 0.95 if title or subtitle else 0.45
        height = _SIDE * rows / columns + head + 0.15
        width = max(len(panels) * _SIDE + (len(panels) - 1) * _GAP + 1.25, 6.4)
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        norm = LogNorm(0.01, max(2.0, max(float(panel.visits.max()) for panel in panels)))
        for k, panel in enumerate(panels):
            left = (0.15 + k * (_SIDE + _GAP)) / width
            box = (left, 0.15 / height, _SIDE / width, _SIDE * rows / columns / height)
            axes = figure.add_axes(box)
            image = _draw_panel(axes, panel, rows, columns, norm)
            _draw_cells(axes, columns, start, np.asarray(goals), np.asarray(traps))
            axes.set_title(panel.title, fontsize=10.5, loc="left", pad=5)
        bar_left = (0.15 + len(panels) * (_SIDE + _GAP) - 0.15) / width
        bar_axes = figure.add_axes((bar_left, box[1] + 0.1 * box[3], 0.12 / width, 0.8 * box[3]))
        bar = figure.colorbar(image, cax=bar_axes, extend="min")
        bar.set_label("visits an episode", fontsize=9.5)
        bar.ax.tick_params(labelsize=9)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.outline.set_visible(False)
        _headline(figure, title, subtitle, left=0.15 / width)
    return figure


def trajectory_maps(
    panels: Sequence[TrajectoryPanel],
    *,
    columns: int,
    states: int,
    start: int,
    goals: ArrayLike,
    traps: ArrayLike,
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draw trajectories side by side, three in a row; what the policy rarely does stands out.

    Args:
        panels: one a trajectory.
        columns: cells in a row of the map.
        states: S, a multiple of it.
        start: the start cell.
        goals: [G] goal cells.
        traps: [T] trap cells.
        title: first line, bold.
        subtitle: second line.

    Raises:
        ValueError: if there is no panel, or a trajectory does not fit the map.
    """
    if not panels:
        raise ValueError("got no panel, expected at least one trajectory to draw")
    for panel in panels:
        if panel.probabilities.shape != (len(panel.cells) - 1,) or panel.cells.max() >= states:
            raise ValueError(
                f"panel {panel.title!r} has {len(panel.cells)} cells up to {panel.cells.max()} and "
                f"{len(panel.probabilities)} probabilities, expected [L + 1] below {states} and [L]"
            )
    rows, across = states // columns, min(3, len(panels))
    down = -(-len(panels) // across)
    side = _SIDE * 0.8
    tall, head = side * rows / columns, 0.95 if title or subtitle else 0.45
    step = tall + 0.42
    width = max(across * side + (across - 1) * 0.25 + 0.3, 6.4)
    height = head + down * step - 0.42 + 0.15
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        for k, panel in enumerate(panels):
            left = 0.15 + (k % across) * (side + 0.25)
            bottom = height - head - tall - (k // across) * step
            axes = figure.add_axes((left / width, bottom / height, side / width, tall / height))
            axes.set_xlim(-0.5, columns - 0.5)
            axes.set_ylim(rows - 0.5, -0.5)
            _draw_lines(axes, rows, columns)
            _draw_cells(axes, columns, start, np.asarray(goals), np.asarray(traps), side)
            _draw_trajectory(axes, panel, columns)
            axes.set_title(panel.title, fontsize=10, loc="left", pad=4)
            axes.set_title(_rare_ones(panel), fontsize=9, loc="right", pad=4, color=_MARK)
        _headline(figure, title, subtitle, left=0.15 / width)
    return figure


def _rare_ones(panel: TrajectoryPanel) -> str:
    """Return the probabilities of the actions that are marked."""
    rare = panel.probabilities[panel.probabilities < _RARE]
    more = f" … ({len(rare)})" if len(rare) > _MOST_LISTED else ""
    return ", ".join(f"{100 * p:.2g}%" for p in rare[:_MOST_LISTED]) + more


def _draw_trajectory(axes: Axes, panel: TrajectoryPanel, columns: int) -> None:
    x, y = panel.cells % columns, panel.cells // columns
    moved = (np.diff(x) != 0) | (np.diff(y) != 0)
    rare = panel.probabilities < _RARE
    for chosen, color, size in ((moved & ~rare, PALETTE[0], 0.10), (moved & rare, _MARK, 0.16)):
        axes.quiver(
            x[:-1][chosen],
            y[:-1][chosen],
            np.diff(x)[chosen],
            np.diff(y)[chosen],
            color=color,
            angles="xy",
            scale_units="xy",
            scale=1.0,
            units="x",
            width=size,
            headwidth=3.2,
            headlength=3.2,
            headaxislength=3.0,
            zorder=9 + 2 * (size > 0.1),
        )
    # A move off the grid stays where it is: a ring.
    stays = rare & ~moved
    axes.plot(x[:-1][stays], y[:-1][stays], "o", mfc="none", mec=_MARK, mew=2, ms=9, zorder=12)


def _draw_panel(axes: Axes, panel: PolicyPanel, rows: int, columns: int, norm: LogNorm) -> Any:
    heat = np.maximum(panel.visits, 1e-12).reshape(rows, columns)
    image = axes.imshow(heat, cmap=_heat_colors(), norm=norm)
    _draw_lines(axes, rows, columns)
    move = panel.policy @ _DIRECTIONS
    states = np.arange(rows * columns)
    # A policy says nothing where it never was: its first values still stand there.
    drawn = (panel.visits > 1e-3) & (np.hypot(*move.T) > 0.1)
    axes.quiver(
        states[drawn] % columns,
        states[drawn] // columns,
        0.8 * move[drawn, 0],
        0.8 * move[drawn, 1],
        color=np.where(panel.visits[drawn] > 0.25, "white", "#3A3A3A"),
        angles="xy",
        scale_units="xy",
        scale=1.0,
        units="x",
        width=0.09,
        headwidth=4.5,
        headlength=4.5,
        headaxislength=4.0,
        pivot="mid",
        zorder=5,
    )
    return image


def _draw_lines(axes: Axes, rows: int, columns: int) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
    for x in range(1, columns):
        axes.axvline(x - 0.5, color="#DDDDDD", linewidth=0.4)
    for y in range(1, rows):
        axes.axhline(y - 0.5, color="#DDDDDD", linewidth=0.4)


def _draw_cells(
    axes: Axes,
    columns: int,
    start: int,
    goals: NDArray[Any],
    traps: NDArray[Any],
    side: float = _SIDE,
) -> None:
    size = side * 72 / columns  # points a cell
    for cells, mark, face in ((traps, "x", "#B03A2E"), (goals, "*", "#1E8449")):
        x, y = cells % columns, cells // columns
        for left, top in zip(x - 0.5, y - 0.5, strict=True):
            axes.add_patch(Rectangle((left, top), 1, 1, facecolor=face, zorder=6))
        axes.plot(
            x,
            y,
            mark,
            color="white",
            markersize=size * (0.36 if mark == "x" else 0.55),
            markeredgewidth=size * (0.09 if mark == "x" else 0.0),
            zorder=7,
        )
    corner = (start % columns - 0.44, start // columns - 0.44)
    axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=_INK, zorder=8, lw=1.6))


def _heat_colors() -> Colormap:
    colors = LinearSegmentedColormap.from_list(
        "visits", ["#FFFFFF", "#CFE3F2", "#4A98C9", "#08306B"]
    )
    return colors.with_extremes(under="#FFFFFF")
