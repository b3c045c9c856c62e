"""Pictures of a trap gridworld, in NumPy alone: the map, an agent, a policy, a visit heat map.

Every shape is a signed distance in pixels, positive outside, and a pixel takes its colour by
`clip(0.5 - distance, 0, 1)`: smooth edges at any size, all cells at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils import colorize
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from awsgd_rl.envs.gridworld import TrapGridworld

# Single precision: pictures of large grids are bound by memory.
Floats = NDArray[Any]
Colour = tuple[int, int, int]

GAP: Colour = (222, 226, 234)
FREE: Colour = (250, 251, 253)
TRAP: Colour = (62, 66, 84)
TRAP_MARK: Colour = (243, 134, 120)
GOAL: Colour = (64, 170, 124)
GOAL_MARK: Colour = (255, 250, 224)
START: Colour = (150, 164, 190)
AGENT: Colour = (49, 110, 222)
AGENT_EDGE: Colour = (255, 255, 255)
ARROW: Colour = (38, 50, 82)
GOOD: Colour = (186, 228, 205)
BAD: Colour = (246, 196, 190)
HEAT: tuple[Colour, ...] = (FREE, (255, 237, 200), (253, 201, 130), (243, 140, 74))

# Unit vectors (x to the right, y down) of left, down, right, up.
DIRECTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))
ARROW_LETTERS = "←↓→↑"


def check_policy(policy: ArrayLike, n_states: int) -> Floats:
    """Return [S, 4] probabilities.

    Raises:
        ValueError: the shape is another, or a row is not a distribution.
    """
    table = np.asarray(policy, dtype=np.float32)
    if table.shape != (n_states, 4):
        raise ValueError(
            f"policy has shape {table.shape}, expected ({n_states}, 4): "
            "pass the four action probabilities of every cell"
        )
    if not (np.all(table >= 0) and np.allclose(table.sum(axis=1), 1, atol=1e-3)):
        raise ValueError(
            "policy has rows that are no distributions, expected values of 0 or more that sum "
            "to 1: pass probabilities, not log-odds"
        )
    return table


def check_heat(heat: ArrayLike, n_states: int) -> Floats:
    """Return [S] amounts.

    Raises:
        ValueError: the number of cells is another, or a value is negative or not finite.
    """
    amounts = np.asarray(heat, dtype=np.float32)
    if amounts.size != n_states:
        raise ValueError(
            f"heat has shape {amounts.shape}, expected one value for each of {n_states} cells: "
            "pass visits per cell"
        )
    if not np.all(np.isfinite(amounts)) or np.any(amounts < 0):
        raise ValueError(
            "heat has negative values or values that are not finite, expected 0 or more: "
            "pass visits per cell"
        )
    return amounts.ravel()


def draw_grid(
    env: TrapGridworld,
    *,
    policy: ArrayLike | None = None,
    heat: ArrayLike | None = None,
    agent: int | None = None,
    cell_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Draw the map, and what is asked for on top of it.

    Args:
        env: the gridworld (`env.unwrapped` of a wrapped one).
        policy: [S, 4] action probabilities: an arrow in each direction, as long as it is likely.
        heat: [S] or [rows, columns] amounts of 0 or more, such as visits: the square root of the
            share of the largest is the shade, so that rare visits show.
        agent: the cell that the agent is in.
        cell_pixels: width of a cell in pixels; by default 10 to 96, for about 640 in all.

    Returns:
        [rows * cell_pixels, columns * cell_pixels, 3] uint8.

    Raises:
        ValueError: a shape or value is wrong.
    """
    rows, columns, n_states = env.rows, env.columns, env.n_states
    if cell_pixels is None:
        cell_pixels = min(96, max(10, 640 // max(rows, columns)))
    if cell_pixels < 1:
        raise ValueError(f"cell_pixels is {cell_pixels}, expected 1 or more: pass such as 16")
    fill = _fill_colours(env, None if heat is None else check_heat(heat, n_states))
    x, y = _local(cell_pixels)
    half = cell_pixels / 2
    tile = _coverage(_box(x, y, half - cell_pixels * 0.03, cell_pixels * 0.14))
    if cell_pixels < 12:
        # The gaps between such small cells would be most of the picture.
        tile = np.ones_like(tile)

    cells = np.empty((n_states, cell_pixels, cell_pixels, 3), dtype=np.float32)
    cells[:] = GAP
    _blend(cells, tile, fill[:, None, None, :])
    _mark(cells, env.trap_cells, _cross(x, y, half), TRAP_MARK)
    _mark(cells, env.goal_cells, _star(x, y, half * 0.68), GOAL_MARK)
    ring = np.abs(_disc(x, y, half * 0.56)) - half * 0.07
    _mark(cells, np.array([env.start]), ring, START)
    if policy is not None:
        live = np.flatnonzero(~env.terminal)
        table = check_policy(policy, n_states)
        cells[live] = _with_arrows(cells[live], table[live], x, y)
    if agent is not None:
        _mark(cells, np.array([agent]), _disc(x, y, half * 0.62), AGENT_EDGE)
        _mark(cells, np.array([agent]), _disc(x, y, half * 0.5), AGENT)
    picture = cells.reshape(rows, columns, cell_pixels, cell_pixels, 3).swapaxes(1, 2)
    return np.rint(picture).astype(np.uint8).reshape(rows * cell_pixels, columns * cell_pixels, 3)


def text_grid(
    env: TrapGridworld, *, policy: ArrayLike | None = None, agent: int | None = None
) -> str:
    """Write the map with terminal colours, one line a row.

    Args:
        env: the gridworld.
        policy: [S, 4] action probabilities: the likeliest direction is an arrow in each free cell.
        agent: the cell that the agent is in, highlighted.

    Raises:
        ValueError: `policy` is not [S, 4] probabilities.
    """
    letters = list("".join(env.desc).replace("F", "."))
    if policy is not None:
        likeliest = check_policy(policy, env.n_states).argmax(axis=1)
        for cell in np.flatnonzero(~env.terminal).tolist():
            letters[cell] = ARROW_LETTERS[likeliest[cell]]
    colours = {"H": "red", "G": "green"}
    texts = [colorize(text, colours[text]) if text in colours else text for text in letters]
    if agent is not None:
        texts[agent] = colorize(letters[agent], "blue", highlight=True)
    starts = range(0, env.n_states, env.columns)
    return "\n".join("".join(texts[first : first + env.columns]) for first in starts) + "\n"


class Window:
    """A pygame window that shows pictures at a steady rate."""

    def __init__(self, title: str, frames_per_second: int) -> None:
        """Open nothing yet: the first picture says how large the window is.

        Raises:
            DependencyNotInstalled: pygame is missing.
        """
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                'render_mode="human" needs pygame: pip install "awsgd-rl[human]"'
            ) from error
        self._pygame: Any = pygame
        self._title = title
        self._frames_per_second = frames_per_second
        self._surface: Any = None
        self._clock: Any = None

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Show [H, W, 3] uint8, and wait for the next frame's time."""
        pygame = self._pygame
        if self._surface is None:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            self._surface = pygame.display.set_mode((picture.shape[1], picture.shape[0]))
            self._clock = pygame.time.Clock()
        pygame.surfarray.blit_array(self._surface, picture.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._frames_per_second)

    def close(self) -> None:
        """Close the window."""
        if self._surface is not None:
            self._pygame.display.quit()
            self._surface = None


def _fill_colours(env: TrapGridworld, heat: Floats | None) -> Floats:
    """Return the colour of each cell, [S, 3]."""
    fill = np.empty((env.n_states, 3), dtype=np.float32)
    fill[:] = FREE
    if heat is not None and heat.max() > 0:
        shade = np.sqrt(heat / heat.max())
        stops = np.linspace(0, 1, len(HEAT))
        fill[:] = np.stack(
            [np.interp(shade, stops, channel) for channel in np.array(HEAT).T], axis=1
        )
    else:
        fill[env.cell_reward > env.step_reward] = GOOD
        fill[env.cell_reward < env.step_reward] = BAD
    fill[env.trap_cells] = TRAP
    fill[env.goal_cells] = GOAL
    return fill


def _with_arrows(cells: Floats, policy: Floats, x: Floats, y: Floats) -> Floats:
    """Return the cells [N, c, c, 3] with an arrow for each action of `policy` [N, 4].

    The arrows of a cell leave one point, which is moved against their sum by half its length:
    whatever the probabilities, the figure is centred and fits a square of `reach`.
    """
    pixels = x.shape[0]
    reach = pixels * 0.84
    vectors = np.array(DIRECTIONS, dtype=policy.dtype)
    origin = -0.5 * reach * (policy @ vectors)
    x, y = x - origin[:, 0, None, None], y - origin[:, 1, None, None]
    ink = np.zeros(cells.shape[:3], dtype=cells.dtype)
    for action, (right, down) in enumerate(DIRECTIONS):
        length = policy[:, action, None, None] * reach
        along, aside = x * right + y * down, np.abs(x * down - y * right)
        # An arrow shorter than a pixel or two would only soil the cell's centre.
        strength = np.clip(length / 2 - 0.25, 0, 1) * (0.45 + 0.55 * length / reach)
        np.maximum(ink, _coverage(_arrow(along, aside, length, pixels)) * strength, out=ink)
    _blend(cells, ink, np.array(ARROW, dtype=cells.dtype))
    return cells


def _arrow(along: Floats, aside: Floats, length: Floats, pixels: int) -> Floats:
    """Return the distance to an arrow from the origin, `length` [N, 1, 1] long."""
    head = np.minimum(length * 0.5, pixels * 0.24)
    width = head * 0.68
    shaft = np.maximum(aside - np.maximum(pixels * 0.032, 0.5), -along)
    shaft = np.maximum(shaft, along - (length - head * 0.9))
    slope = width / np.maximum(head, 1e-9)
    tip = (aside - slope * (length - along)) / np.sqrt(1 + slope**2)
    distance: Floats = np.minimum(shaft, np.maximum(tip, length - head - along))
    return distance


def _local(pixels: int) -> tuple[Floats, Floats]:
    """Return the pixels' x and y from a cell's centre, each [c, c]."""
    offset = (np.arange(pixels) + 0.5 - pixels / 2).astype(np.float32)
    y, x = np.meshgrid(offset, offset, indexing="ij")
    return x, y


def _disc(x: Floats, y: Floats, radius: float) -> Floats:
    return np.hypot(x, y) - radius


def _box(x: Floats, y: Floats, half: float, corner: float) -> Floats:
    """Return the distance to a square with round corners."""
    right, down = np.abs(x) - half + corner, np.abs(y) - half + corner
    outside = np.hypot(np.maximum(right, 0), np.maximum(down, 0))
    distance: Floats = outside + np.minimum(np.maximum(right, down), 0) - corner
    return distance


def _cross(x: Floats, y: Floats, half: float) -> Floats:
    """Return the distance to a diagonal cross with round ends."""
    along, aside = (np.abs(x) + np.abs(y)) / np.sqrt(2), (np.abs(x) - np.abs(y)) / np.sqrt(2)
    distance: Floats = np.hypot(np.maximum(along - half * 0.5, 0), aside) - half * 0.12
    return distance


def _star(x: Floats, y: Floats, radius: float) -> Floats:
    """Return (nearly) the distance to a five-pointed star, one point up."""
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    reach = np.hypot(x, y)
    inner = 0.45 * radius
    # The edge from the point (radius at angle 0) to the notch (inner at half a sector).
    notch = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
    edge = notch[0] - radius, notch[1]
    scale = float(np.hypot(*edge))
    forward, sideways = reach * np.cos(angle) - radius, reach * np.sin(angle)
    distance: Floats = (sideways * -edge[0] + forward * edge[1]) / scale
    return distance


def _coverage(distance: Floats) -> Floats:
    return np.clip(0.5 - distance, 0, 1)


def _blend(cells: Floats, coverage: Floats, colour: Floats) -> None:
    """Paint `colour` over `cells` where `coverage` [..., c, c] is above 0, in place."""
    cells += coverage[..., None] * (colour - cells)


def _mark(cells: Floats, chosen: NDArray[np.int64], distance: Floats, colour: Colour) -> None:
    """Paint a shape [c, c] over the chosen cells, in place."""
    painted = cells[chosen]
    _blend(painted, _coverage(distance), np.array(colour, dtype=np.float32))
    cells[chosen] = painted
