"""The trap gridworld: a walk from the start to a goal, with traps that end the episode.

The task of Bouchard et al. (2015), "Online learning to sample", section 7, with everything that
the paper leaves open as an argument. Cells are numbered `row * columns + column`; actions are
FrozenLake's: 0 left, 1 down, 2 right, 3 up. A move off the grid stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import isfinite
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.envs.layouts import Layout, integer, parse_layout, random_layout

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ObservationKind: TypeAlias = Literal["discrete", "position", "one_hot"]
Observation: TypeAlias = int | NDArray[Any]
CellRewards: TypeAlias = Mapping[tuple[int, int], float] | Iterable[Sequence[float]]

N_ACTIONS = 4
DEFAULT_SIZE = 15
RENDER_MODES = ("ansi", "rgb_array", "human")


class TrapGridworld(gym.Env[Observation, np.int64 | int]):
    """Walk from the start to a goal; traps and goals end the episode.

    Registered as `awsgd_rl/TrapGridworld-v0`. `terminated` means that a goal or a trap was
    reached, `truncated` that `horizon` steps were made without reaching one. The info of the last
    step, and of no other, has `is_success` (bool) and `end` (`"goal"`, `"trap"` or `"horizon"`).

    Attributes:
        layout: the map (`Layout`); `desc` is its strings.
        rows: number of rows.
        columns: number of columns.
        n_states: S, `rows * columns`.
        start: the cell in which episodes start.
        goal_cells: [goals] int64 cells, ascending.
        trap_cells: [traps] int64 cells, ascending.
        next_state: [S, 4] int64, where a move in that direction leads; terminal cells lead to
            themselves.
        terminal: [S] bool, goals and traps.
        cell_reward: [S] float64, reward of arriving in the cell from another one.
        move_reward: [S, 4] float64, reward of a move in that direction: `cell_reward` of where it
            leads, or `step_reward` for a move off the grid; 0 in terminal cells.
        step_reward: reward of arriving in an ordinary cell, and of a move off the grid.
        slip: probability that a move goes to one of the two perpendicular directions.
        horizon: number of steps after which an episode is truncated.
        observation: kind of observation.

    All arrays are read-only.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": list(RENDER_MODES),
        "render_fps": 12,
    }

    def __init__(
        self,
        size: int | None = None,
        traps: int | None = None,
        layout_seed: int | None = None,
        desc: Sequence[str] | None = None,
        *,
        slip: float = 0.0,
        goal_reward: float = 1000.0,
        trap_reward: float = -1000.0,
        step_reward: float = -1.0,
        cell_rewards: CellRewards | None = None,
        horizon: int | None = None,
        observation: ObservationKind = "discrete",
        render_mode: str | None = None,
    ) -> None:
        """Check the arguments and make the tables.

        Args:
            size: number of rows and of columns, 2 or more; 15 without `desc`.
            traps: number of traps; without `desc`, a 25th of the cells, rounded down.
            layout_seed: number of the random map, 0 or more; 0 without `desc`.
            desc: the map as FrozenLake writes it, one string a row (`S` start, `G` goal, `H` or
                `T` trap, `F` or `.` free), in place of `size`, `traps` and `layout_seed`.
            slip: probability in [0, 1) that a move goes to one of the two perpendicular
                directions, half each (FrozenLake's `success_rate` is `1 - slip`).
            goal_reward: reward of arriving in a goal.
            trap_reward: reward of arriving in a trap.
            step_reward: reward of arriving in any other cell, and of a move off the grid.
            cell_rewards: rewards of arriving in single cells from another one, in place of the
                three above: a mapping `{(row, column): reward}`, or a list of
                `[row, column, reward]` (which `EnvSpec.to_json` can write).
            horizon: number of steps after which the episode is truncated; 10 a cell by default.
            observation: `"discrete"` (the cell's number), `"position"` (row and column) or
                `"one_hot"` ([S] float32).
            render_mode: `"ansi"`, `"rgb_array"`, `"human"` or None.

        Raises:
            ValueError: an argument is not what is written above.
        """
        self.layout = _choose_layout(size, traps, layout_seed, desc)
        self.rows, self.columns = self.layout.rows, self.layout.columns
        self.n_states = self.rows * self.columns
        self.start = self.layout.start
        self.goal_cells = _frozen(self.layout.goal_cells)
        self.trap_cells = _frozen(self.layout.trap_cells)
        self.slip = _finite("slip", slip)
        if not 0 <= self.slip < 1:
            raise ValueError(
                f"slip is {slip!r}, expected a probability in [0, 1): pass such as slip=0.1"
            )
        self.horizon = 10 * self.n_states if horizon is None else integer("horizon", horizon, 1)
        self.step_reward = _finite("step_reward", step_reward)
        reward = np.full(self.n_states, self.step_reward)
        reward[self.goal_cells] = _finite("goal_reward", goal_reward)
        reward[self.trap_cells] = _finite("trap_reward", trap_reward)
        for cell, value in _read_cell_rewards(cell_rewards, self.rows, self.columns).items():
            reward[cell] = value
        self.cell_reward = _frozen(reward)
        _check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        self.render_mode = render_mode

        terminal = np.zeros(self.n_states, dtype=bool)
        terminal[self.goal_cells] = True
        terminal[self.trap_cells] = True
        self.terminal = _frozen(terminal)
        self.next_state = _frozen(_moves(self.rows, self.columns, terminal))
        stays = self.next_state == np.arange(self.n_states)[:, None]
        move_reward = np.where(stays, self.step_reward, reward[self.next_state])
        move_reward[terminal] = 0.0
        self.move_reward = _frozen(move_reward)

        self.observation = observation
        self.observation_space = observation_space(observation, self.rows, self.columns)
        self.action_space = spaces.Discrete(N_ACTIONS)

        # Lists of Python numbers: indexing them is several times as fast as indexing arrays.
        self._next: list[list[int]] = self.next_state.tolist()
        self._reward: list[list[float]] = self.move_reward.tolist()
        self._end: dict[int, str] = dict.fromkeys(self.trap_cells.tolist(), "trap")
        self._end.update(dict.fromkeys(self.goal_cells.tolist(), "goal"))
        self._state = self.start
        self._elapsed = 0
        self._ended = True
        self._policy: NDArray[np.float32] | None = None
        self._heat: NDArray[np.float32] | None = None
        self._window: Any = None

    @property
    def desc(self) -> tuple[str, ...]:
        """The map, one string of `S`, `G`, `H`, `F` a row."""
        return self.layout.desc

    @property
    def state(self) -> int:
        """The cell the agent is in."""
        return self._state

    @property
    def elapsed(self) -> int:
        """Number of steps of the episode so far."""
        return self._elapsed

    @cached_property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:  # noqa: N802
        """The transitions as FrozenLake writes them.

        `P[state][action]` is a list of (probability, next state, reward, terminated). A terminal
        cell leads to itself with reward 0.
        """
        table: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = {}
        for state, moves in enumerate(self._next):
            if state in self._end:
                table[state] = {action: [(1.0, state, 0.0, True)] for action in range(N_ACTIONS)}
                continue
            rewards = self._reward[state]
            arrivals = [
                (cell, reward, cell in self._end)
                for cell, reward in zip(moves, rewards, strict=True)
            ]
            table[state] = {
                action: [
                    (probability, *arrivals[(action + turn) % N_ACTIONS])
                    for turn, probability in self._turns()
                ]
                for action in range(N_ACTIONS)
            }
        return table

    def transition_matrix(self) -> csr_array[np.float64, tuple[int, int]]:
        """Return the transition probabilities, [S * 4, S], sparse.

        Row `state * 4 + action` sums to 1, or to 0 for a terminal cell: the episode has ended.
        """
        from scipy.sparse import csr_array

        live = np.flatnonzero(~self.terminal)
        actions = np.arange(N_ACTIONS)
        row = (live[:, None] * N_ACTIONS + actions).ravel()
        turns = self._turns()
        rows = np.concatenate([row for _ in turns])
        columns = np.concatenate(
            [self.next_state[live][:, (actions + turn) % N_ACTIONS].ravel() for turn, _ in turns]
        )
        values = np.repeat([probability for _, probability in turns], row.size)
        shape = (self.n_states * N_ACTIONS, self.n_states)
        # Two turns may lead to one cell (at an edge): csr_array adds their probabilities.
        return csr_array((values, (rows, columns)), shape=shape)

    def reward_table(self) -> NDArray[np.float64]:
        """Return the expected reward of each action, [S, 4] float64; 0 in terminal cells."""
        actions = np.arange(N_ACTIONS)
        expected = np.zeros((self.n_states, N_ACTIONS))
        for turn, probability in self._turns():
            expected += probability * self.move_reward[:, (actions + turn) % N_ACTIONS]
        return expected

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in the start cell; `options` are not used."""
        super().reset(seed=seed)
        if self.slip:
            # As FrozenLake, which draws its start state: each call of reset or step then takes
            # one number, which is what lets the vector env follow the same streams.
            self.np_random.random()
        self._state = self.start
        self._elapsed = 0
        self._ended = False
        if self.render_mode == "human":
            self.render()
        return self._observe(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move.

        Args:
            action: 0 left, 1 down, 2 right, 3 up.

        Raises:
            ValueError: `action` is none of the four.
            ResetNeeded: the episode has ended, or none has begun.
        """
        if self._ended:
            raise ResetNeeded("step was called after the episode's end: call reset first")
        direction = index(action)
        if not 0 <= direction < N_ACTIONS:
            raise ValueError(
                f"action is {action!r}, expected 0 (left), 1 (down), 2 (right) or 3 (up)"
            )
        if self.slip:
            draw = self.np_random.random()
            direction = (direction - (draw < self.slip / 2) + (draw >= 1 - self.slip / 2)) % 4
        reward = self._reward[self._state][direction]
        state = self._state = self._next[self._state][direction]
        self._elapsed += 1
        end = self._end.get(state)
        terminated = end is not None
        truncated = not terminated and self._elapsed >= self.horizon
        self._ended = terminated or truncated
        info: dict[str, Any] = {}
        if self._ended:
            info = {"is_success": end == "goal", "end": end or "horizon"}
        if self.render_mode == "human":
            self.render()
        return self._observe(), reward, terminated, truncated, info

    def set_overlay(
        self, *, policy: ArrayLike | None = None, heat: ArrayLike | None = None
    ) -> None:
        """Choose what `render` draws besides the map, until the next call.

        Args:
            policy: [S, 4] action probabilities, drawn as arrows; None for no arrows.
            heat: [S] or [rows, columns] visits or the like, 0 or more; None for no heat.

        Raises:
            ValueError: a shape is wrong, or a value is negative or not finite.
        """
        from awsgd_rl.envs.rendering import check_heat, check_policy

        checked_policy = None if policy is None else check_policy(policy, self.n_states)
        self._heat = None if heat is None else check_heat(heat, self.n_states)
        self._policy = checked_policy

    def render(self) -> Any:
        """Return the picture: a string (ansi), [H, W, 3] uint8 (rgb_array) or None (human).

        Raises:
            gymnasium.error.DependencyNotInstalled: `render_mode="human"` without pygame.
        """
        from awsgd_rl.envs.rendering import Window, draw_grid, text_grid

        if self.render_mode is None:
            gym.logger.warn(
                "render was called without a render mode: make the environment with "
                'render_mode="rgb_array", "ansi" or "human"'
            )
            return None
        if self.render_mode == "ansi":
            return text_grid(self, policy=self._policy, agent=self._state)
        picture = draw_grid(self, policy=self._policy, heat=self._heat, agent=self._state)
        if self.render_mode == "rgb_array":
            return picture
        if self._window is None:
            self._window = Window("Trap gridworld", self.metadata["render_fps"])
        self._window.show(picture)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        # A window belongs to its process; the copy opens its own.
        return {**self.__dict__, "_window": None}

    def _observe(self) -> Observation:
        if self.observation == "discrete":
            return self._state
        if self.observation == "position":
            return np.array(divmod(self._state, self.columns), dtype=np.int64)
        vector = np.zeros(self.n_states, dtype=np.float32)
        vector[self._state] = 1.0
        return vector

    def _turns(self) -> list[tuple[int, float]]:
        """Return (turn, probability) pairs in FrozenLake's order; turns count modulo 4."""
        if not self.slip:
            return [(0, 1.0)]
        return [(-1, self.slip / 2), (0, 1.0 - self.slip), (1, self.slip / 2)]


def observation_space(kind: ObservationKind, rows: int, columns: int) -> spaces.Space[Any]:
    """Return the space of the observations of one environment.

    Raises:
        ValueError: `kind` is unknown.
    """
    _check_choice("observation", kind, get_args(ObservationKind))
    if kind == "discrete":
        return spaces.Discrete(rows * columns)
    if kind == "position":
        return spaces.MultiDiscrete([rows, columns])
    return spaces.Box(0.0, 1.0, shape=(rows * columns,), dtype=np.float32)


def _choose_layout(
    size: int | None, traps: int | None, layout_seed: int | None, desc: Sequence[str] | None
) -> Layout:
    if desc is None:
        size = DEFAULT_SIZE if size is None else integer("size", size, 2)
        traps = size * size // 25 if traps is None else traps
        return random_layout(size, size, traps, 0 if layout_seed is None else layout_seed)
    given = {"size": size, "traps": traps, "layout_seed": layout_seed}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"got both desc and {name}={value!r}, expected one or the other: "
                f"leave out {name}, the map already says it, or leave out desc"
            )
    return parse_layout(desc)


def _read_cell_rewards(given: CellRewards | None, rows: int, columns: int) -> dict[int, float]:
    expected = "expected {(row, column): reward} or a list of [row, column, reward]"
    if given is None:
        return {}
    rewards = {}
    try:
        if isinstance(given, Mapping):
            entries = [(row, column, value) for (row, column), value in given.items()]
        else:
            entries = [(row, column, value) for row, column, value in given]
        places = [(index(row), index(column), value) for row, column, value in entries]
    except (TypeError, ValueError):
        raise ValueError(f"cell_rewards is {given!r}, {expected}: pass one of them") from None
    for row, column, value in places:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"cell_rewards has the cell ({row}, {column}), expected rows 0 to {rows - 1} and "
                f"columns 0 to {columns - 1}: leave it out, or make the map larger"
            )
        rewards[row * columns + column] = _finite("cell_rewards", value)
    return rewards


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not isfinite(number):
        raise ValueError(
            f"{name} is {value!r}, expected a finite number: pass such as {name}={-1.0}"
        )
    return number


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(
            f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}: "
            "pass one of them"
        )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _moves(rows: int, columns: int, terminal: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where each direction leads, [S, 4]: left, down, right, up; terminal cells stay."""
    cells = np.arange(rows * columns, dtype=np.int64)
    row, column = np.divmod(cells, columns)
    moves = np.stack(
        [
            row * columns + np.maximum(column - 1, 0),
            np.minimum(row + 1, rows - 1) * columns + column,
            row * columns + np.minimum(column + 1, columns - 1),
            np.maximum(row - 1, 0) * columns + column,
        ],
        axis=1,
    )
    moves[terminal] = cells[terminal, None]
    return moves
