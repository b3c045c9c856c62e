"""Many trap gridworlds at once, in NumPy: what `gym.make_vec` makes by default.

A step is a handful of table look-ups, whatever the number of environments. The autoreset of
Gymnasium's default mode is in the tables too: a state that ended leads to the start with reward 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from awsgd_rl.envs.gridworld import N_ACTIONS, CellRewards, ObservationKind, TrapGridworld
from awsgd_rl.envs.layouts import integer

Array = NDArray[Any]

BLOCK = 512


class TrapGridworldVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` copies of one trap gridworld, stepped together.

    Equal, step for step, to `gymnasium.vector.SyncVectorEnv` of the single environments with the
    same seeds and actions, slips, infos and autoresets included. `reset(seed=k)` seeds environment
    i with k + i.

    Attributes:
        gridworld: the single environment with the tables that all copies share.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": TrapGridworld.metadata["render_fps"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
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
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Check the arguments and make the tables.

        Args:
            num_envs: B, number of copies.
            size: see `TrapGridworld`, as for all arguments that are not named below.
            traps: see `TrapGridworld`.
            layout_seed: see `TrapGridworld`.
            desc: see `TrapGridworld`.
            slip: see `TrapGridworld`.
            goal_reward: see `TrapGridworld`.
            trap_reward: see `TrapGridworld`.
            step_reward: see `TrapGridworld`.
            cell_rewards: see `TrapGridworld`.
            horizon: see `TrapGridworld`.
            observation: see `TrapGridworld`.
            render_mode: `"ansi"`, `"rgb_array"` or None.
            max_episode_steps: a shorter horizon, as `gym.make` takes it; None or -1 for none.
            autoreset_mode: `AutoresetMode.NEXT_STEP` (the step after an episode's end ignores its
                action and returns the start with reward 0) or `SAME_STEP` (the last step returns
                the start; the last observation and info are in `final_obs`, `final_info`).

        Raises:
            ValueError: an argument is not what is written above.
        """
        self.num_envs = integer("num_envs", num_envs, 1)
        if render_mode == "human":
            raise ValueError(
                "render_mode is 'human', expected 'ansi', 'rgb_array' or None for many "
                "environments: pass one of them, or gym.make a single environment"
            )
        self.gridworld = TrapGridworld(
            size,
            traps,
            layout_seed,
            desc,
            slip=slip,
            goal_reward=goal_reward,
            trap_reward=trap_reward,
            step_reward=step_reward,
            cell_rewards=cell_rewards,
            horizon=horizon,
            observation=observation,
            render_mode=render_mode,
        )
        self.horizon = self.gridworld.horizon
        if max_episode_steps is not None and max_episode_steps != -1:
            self.horizon = min(self.horizon, integer("max_episode_steps", max_episode_steps, 1))
        try:
            mode = AutoresetMode(autoreset_mode)
        except ValueError:
            mode = AutoresetMode.DISABLED
        if mode is AutoresetMode.DISABLED:
            raise ValueError(
                f"autoreset_mode is {autoreset_mode!r}, expected AutoresetMode.NEXT_STEP or "
                "SAME_STEP: pass one of them"
            )
        self._same_step = mode is AutoresetMode.SAME_STEP
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}  # type: ignore[misc]
        self.render_mode = render_mode
        self.single_observation_space = self.gridworld.observation_space
        self.single_action_space = self.gridworld.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._make_tables()
        self._generators: list[np.random.Generator] | None = None
        self._steps: int | None = None

    def _make_tables(self) -> None:
        grid = self.gridworld
        # State S stands for "truncated": like a terminal state, it leads to the start.
        self._truncated_state = grid.n_states
        ended = np.append(grid.terminal, True)
        following = np.append(grid.next_state, np.zeros((1, N_ACTIONS), np.int64), axis=0)
        following[ended] = grid.start
        reward = np.append(grid.move_reward, np.zeros((1, N_ACTIONS)), axis=0)
        self._next = following.ravel()
        self._reward = reward.ravel()
        self._terminates = ended[self._next]
        is_goal = np.zeros(grid.n_states, dtype=bool)
        is_goal[grid.goal_cells] = True
        self._is_goal = is_goal
        names = np.full(grid.n_states, "horizon", dtype=object)
        names[grid.trap_cells] = "trap"
        names[grid.goal_cells] = "goal"
        self._end_name = names
        self._columns = np.arange(self.num_envs) * BLOCK

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """[B] the seed of each environment (-1 before the first reset)."""
        return self._seeds if self._generators is not None else (-1,) * self.num_envs

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: None, one seed (environment i is seeded with `seed + i`) or [B] seeds.
            options: not used.

        Returns:
            [B, ...] observations and an empty dict.

        Raises:
            ValueError: the number of seeds is not B.
        """
        seeds = _spread(seed, self.num_envs)
        self._seed(seeds)
        self._state = np.full(self.num_envs, self.gridworld.start, dtype=np.int64)
        self._cell = self._state
        self._steps = 0
        # The clock's reading at which an environment's episode is truncated.
        self._deadline = np.full(self.num_envs, self.horizon, dtype=np.int64)
        if self.gridworld.slip:
            self._draw()
        return self._observe(self._cell), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Move in every environment.

        Args:
            actions: [B] integers 0 to 3.

        Returns:
            [B, ...] observations, [B] float64 rewards, [B] terminations, [B] truncations, and the
            infos of the environments whose episode ended (an empty dict if none did).

        Raises:
            ValueError: `actions` has a wrong shape or dtype, or a value outside 0 to 3.
            ResetNeeded: `reset` was never called.
        """
        if self._steps is None:
            raise ResetNeeded("step was called before reset: call reset first")
        actions = self._check(actions)
        if self.gridworld.slip:
            draw, slip = self._draw(), self.gridworld.slip
            actions = (actions - (draw < slip / 2) + (draw >= 1 - slip / 2)) % N_ACTIONS
        move = self._state * N_ACTIONS + actions
        cell = self._next.take(move)
        rewards = self._reward.take(move)
        self._steps += 1
        terminations = self._terminates.take(move)
        truncations = self._deadline == self._steps
        ended = terminations | truncations
        self._state = self._cell = cell
        if not ended.any():
            return self._observe(cell), rewards, terminations, truncations, {}
        truncations &= ~terminations
        infos = self._ending(cell, ended)
        if self._same_step:
            infos = self._final(cell, ended, infos)
            self._cell = self._state = np.where(ended, self.gridworld.start, cell)
            self._deadline[ended] = self._steps + self.horizon
            if self.gridworld.slip:
                self._skip_draws(ended)
        else:
            self._state = np.where(truncations, self._truncated_state, cell)
            # The next step is the reset, and is not counted.
            self._deadline[ended] = self._steps + 1 + self.horizon
        return self._observe(self._cell), rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """Return [B] pictures (strings, or [H, W, 3] uint8), or None without a render mode."""
        from awsgd_rl.envs.rendering import draw_grid, text_grid

        if self.render_mode is None:
            gym.logger.warn(
                "render was called without a render mode: make the environments with "
                'render_mode="rgb_array" or "ansi"'
            )
            return None
        if self._steps is None:
            raise ResetNeeded("render was called before reset: call reset first")
        draw = text_grid if self.render_mode == "ansi" else draw_grid
        return tuple(draw(self.gridworld, agent=cell) for cell in self._cell.tolist())

    def _check(self, actions: Array) -> Array:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions have shape {actions.shape} and dtype {actions.dtype}, expected "
                f"({self.num_envs},) integers: pass one action for each environment"
            )
        # One pass: the union of all bits is 0 to 3 only if every action is.
        if int(np.bitwise_or.reduce(actions)) & ~3:
            wrong = actions[(actions < 0) | (actions >= N_ACTIONS)][0]
            raise ValueError(
                f"actions contain {wrong}, expected 0 (left), 1 (down), 2 (right) or 3 (up)"
            )
        return actions.astype(np.int64, copy=False)

    def _observe(self, cell: Array) -> Array:
        kind = self.gridworld.observation
        if kind == "discrete":
            return cell.copy()
        if kind == "position":
            return np.stack(np.divmod(cell, self.gridworld.columns), axis=1)
        vectors = np.zeros((self.num_envs, self.gridworld.n_states), dtype=np.float32)
        vectors[np.arange(self.num_envs), cell] = 1.0
        return vectors

    def _ending(self, cell: Array, ended: Array) -> dict[str, Any]:
        """Return the infos of the environments that ended, as Gymnasium merges single infos."""
        name = self._end_name.take(cell)
        name[~ended] = None
        return {
            "is_success": self._is_goal.take(cell) & ended,
            "_is_success": ended,
            "end": name,
            "_end": ended.copy(),
        }

    def _final(self, cell: Array, ended: Array, infos: dict[str, Any]) -> dict[str, Any]:
        observations = np.full(self.num_envs, None, dtype=object)
        last = self._observe(cell)
        for environment in np.flatnonzero(ended).tolist():
            observation = last[environment]
            scalar = observation.ndim == 0
            observations[environment] = int(observation) if scalar else observation.copy()
        return {
            "final_obs": observations,
            "_final_obs": ended.copy(),
            "final_info": infos,
            "_final_info": ended.copy(),
        }

    def _seed(self, seeds: list[int | None]) -> None:
        """Make the generators anew where a seed is given, and everywhere at the first reset."""
        if self._generators is None:
            made = [gym.utils.seeding.np_random(seed) for seed in seeds]
            self._generators = [generator for generator, _ in made]
            self._seeds = tuple(used for _, used in made)
            self._draws = np.empty((self.num_envs, BLOCK))
            # All blocks are used up: the first draw fills them.
            self._cursor = np.full(self.num_envs, BLOCK, dtype=np.int64)
            self._drawn = BLOCK
            return
        used_seeds = list(self._seeds)
        for environment, seed in enumerate(seeds):
            if seed is not None:
                generator, used = gym.utils.seeding.np_random(seed)
                self._generators[environment] = generator
                used_seeds[environment] = used
                self._cursor[environment] = BLOCK
                self._drawn = BLOCK
        self._seeds = tuple(used_seeds)

    def _draw(self) -> Array:
        """Return [B] the next number of each environment's own stream.

        A Generator's numbers are the same in blocks as one by one. Blocks make the per-environment
        streams, which the single environments have, cost next to nothing.
        """
        if self._drawn >= BLOCK:
            self._fill()
        draw: Array = self._draws.take(self._columns + self._cursor)
        self._cursor += 1
        self._drawn += 1
        return draw

    def _skip_draws(self, ended: Array) -> None:
        """Take the number that a single environment takes at its reset."""
        if self._drawn >= BLOCK:
            self._fill()
        self._cursor += ended
        # An upper bound of all cursors is enough to know when to fill, and is a plain int.
        self._drawn += 1

    def _fill(self) -> None:
        assert self._generators is not None
        for block, used, generator in zip(
            self._draws, self._cursor.tolist(), self._generators, strict=True
        ):
            left = BLOCK - used
            block[:left] = block[used:]
            block[left:] = generator.random(used)
        self._cursor[:] = 0
        self._drawn = 0


def _spread(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + environment for environment in range(num_envs)]
    seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(
            f"seed has {len(seeds)} values, expected {num_envs}: pass one for each environment, "
            "or one int"
        )
    return seeds
