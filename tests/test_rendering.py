import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from awsgd_rl.envs import TrapGridworld, draw_grid, text_grid
from awsgd_rl.envs.rendering import AGENT, FREE, GOAL, HEAT, TRAP

ID = "awsgd_rl/TrapGridworld-v0"
LEFT, DOWN, RIGHT, UP = range(4)


def policy_of(action: int, n_states: int) -> np.ndarray:
    table = np.zeros((n_states, 4))
    table[:, action] = 1.0
    return table


def cell_of(picture: np.ndarray, row: int, column: int, pixels: int) -> np.ndarray:
    return picture[row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels]


@pytest.mark.parametrize("pixels", [1, 3, 8, 16, 41])
@pytest.mark.parametrize("desc", [["SF", "HG"], ["SFFH", "FFFG", "HHHH"], ["SG"]])
def test_shape_and_kind(desc: list[str], pixels: int) -> None:
    env = TrapGridworld(desc=desc)
    uniform = np.full((env.n_states, 4), 0.25)
    heat = np.arange(env.n_states)
    picture = draw_grid(env, policy=uniform, heat=heat, agent=0, cell_pixels=pixels)
    assert picture.shape == (len(desc) * pixels, len(desc[0]) * pixels, 3)
    assert picture.dtype == np.uint8


def test_the_largest_preset_draws() -> None:
    env = gym.make("awsgd_rl/TrapGridworld-80-256-v0").unwrapped
    assert isinstance(env, TrapGridworld)
    assert draw_grid(env, policy=np.full((6400, 4), 0.25)).shape == (800, 800, 3)


def test_cells_have_their_colours() -> None:
    env = TrapGridworld(desc=["SFH", "FFG"])
    picture = draw_grid(env, agent=1, cell_pixels=40)
    near_corner = {place: cell_of(picture, *place, 40)[7, 7] for place in [(0, 2), (1, 2), (1, 0)]}
    np.testing.assert_array_equal(near_corner[0, 2], TRAP)
    np.testing.assert_array_equal(near_corner[1, 2], GOAL)
    np.testing.assert_array_equal(near_corner[1, 0], FREE)
    np.testing.assert_array_equal(cell_of(picture, 0, 1, 40)[20, 20], AGENT)


@pytest.mark.parametrize("action", [LEFT, DOWN, RIGHT, UP])
def test_arrows_point_where_the_action_goes(action: int) -> None:
    env = TrapGridworld(desc=["FFF", "FSF", "FFG"])
    pixels = 60
    plain = draw_grid(env, cell_pixels=pixels).astype(float)
    drawn = draw_grid(env, policy=policy_of(action, 9), cell_pixels=pixels)
    ink = np.abs(cell_of(plain - drawn, 0, 0, pixels)).sum(axis=2)
    # The head is the wide end: the ink's centre lies on the side that the arrow points to.
    place = np.arange(pixels) + 0.5 - pixels / 2
    x, y = (ink.sum(0) * place).sum() / ink.sum(), (ink.sum(1) * place).sum() / ink.sum()
    right, down = [(-1, 0), (0, 1), (1, 0), (0, -1)][action]
    assert x * right + y * down > 3
    assert abs(x * down) + abs(y * right) < 0.5


def test_arrows_are_as_long_as_they_are_likely() -> None:
    env = TrapGridworld(desc=["FFF", "FSF", "FFG"])
    pixels = 100

    def extent(probability: float) -> int:
        table = np.full((9, 4), (1 - probability) / 3)
        table[:, RIGHT] = probability
        plain = draw_grid(env, cell_pixels=pixels).astype(float)
        drawn = draw_grid(env, policy=table, cell_pixels=pixels)
        ink = cell_of(np.abs(plain - drawn).sum(axis=2), 0, 0, pixels)
        return int((ink > 100).any(axis=0).sum())

    # Left and right arrows together span 0.84 of the cell times their probability.
    for probability in (0.4, 0.7, 1.0):
        expected = 0.84 * pixels * (probability + (1 - probability) / 3)
        assert abs(extent(probability) - expected) < 8


def test_heat_is_ordered_and_leaves_traps_alone() -> None:
    env = TrapGridworld(desc=["SFF", "FHG"])
    picture = draw_grid(env, heat=[9, 4, 0, 1, 9, 9], cell_pixels=40)
    corner = {cell: cell_of(picture, *divmod(cell, 3), 40)[7, 7].astype(int) for cell in range(6)}
    np.testing.assert_array_equal(corner[0], HEAT[-1])
    np.testing.assert_array_equal(corner[2], HEAT[0])
    assert corner[0][2] < corner[1][2] < corner[3][2] < corner[2][2]
    np.testing.assert_array_equal(corner[4], TRAP)
    no_visits = draw_grid(env, heat=np.zeros((2, 3)), cell_pixels=40)
    np.testing.assert_array_equal(no_visits, draw_grid(env, cell_pixels=40))


def test_text() -> None:
    env = TrapGridworld(desc=["SFH", "FFG"])
    text = text_grid(env)
    plain = text.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert plain == "S.H\n..G\n"
    arrows = text_grid(env, policy=policy_of(DOWN, 6))
    assert arrows.count("↓") == 4
    assert text_grid(env, agent=1).count("\x1b[44m") == 1


def test_render_modes_and_overlay() -> None:
    env = gym.make(ID, size=4, traps=2, render_mode="rgb_array")
    env.reset()
    grid = env.unwrapped
    assert isinstance(grid, TrapGridworld)
    plain = env.render()
    np.testing.assert_array_equal(plain, draw_grid(grid, agent=0))
    table, heat = policy_of(RIGHT, 16), np.arange(16.0)
    grid.set_overlay(policy=table, heat=heat)
    np.testing.assert_array_equal(env.render(), draw_grid(grid, policy=table, heat=heat, agent=0))
    with pytest.raises(ValueError, match="heat has negative"):
        grid.set_overlay(heat=-heat)
    np.testing.assert_array_equal(env.render(), draw_grid(grid, policy=table, heat=heat, agent=0))
    grid.set_overlay()
    np.testing.assert_array_equal(env.render(), plain)
    text = gym.make(ID, size=4, traps=2, render_mode="ansi")
    text.reset()
    assert text.render() == text_grid(grid, agent=0)


def test_human_mode_shows_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(TrapGridworld.metadata, "render_fps", 1000)
    env = gym.make(ID, size=3, traps=1, render_mode="human")
    env.reset(seed=0)
    env.step(1)
    grid: Any = env.unwrapped
    shown = grid._window._pygame.surfarray.array3d(grid._window._surface).swapaxes(0, 1)
    np.testing.assert_array_equal(shown, draw_grid(grid, agent=grid.state))
    env.close()
    env.close()


def test_human_mode_without_pygame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = gym.make(ID, render_mode="human")
    with pytest.raises(DependencyNotInstalled, match=r'pip install "awsgd-rl\[human\]"'):
        env.reset()


def test_render_without_a_mode_warns() -> None:
    env = TrapGridworld()
    env.reset()
    with pytest.warns(UserWarning, match="render mode"):
        assert env.render() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": np.ones((3, 4))}, r"policy has shape \(3, 4\), expected \(4, 4\)"),
        ({"policy": np.zeros((4, 4))}, "log-odds"),
        ({"policy": np.full((4, 4), np.nan)}, "log-odds"),
        ({"heat": np.ones(3)}, r"heat has shape \(3,\)"),
        ({"heat": [1, 2, 3, np.inf]}, "not finite"),
        ({"cell_pixels": 0}, "cell_pixels is 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw_grid(TrapGridworld(desc=["SF", "HG"]), **arguments)
    assert "\n" not in str(caught.value)
