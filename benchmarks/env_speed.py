"""Environment steps a second on one core: ours, Gymnasium's FrozenLake, and installed peers.

Every measurement draws random actions inside the measured loop and goes through the interface that
a user of that package would use; the best of several repetitions counts, since everything else that
runs on a machine only ever makes a repetition slower. Peers that are not installed are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import awsgd_rl  # noqa: F401  (registers the environments)

PRESET_ID = "awsgd_rl/TrapGridworld-15-9-v0"
NUM_ENVS = 256
GYMNAX_ENVS = 4096
GYMNAX_SCAN = 256

# A burst runs some steps and returns how many.
Burst = Callable[[], int]


def run(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure everything that can run here.

    Args:
        quick: fewer and shorter repetitions.

    Returns:
        One row for each measurement (name, what it runs, copies at once, steps a second), and the
        summary: `<name>_steps_per_s`, and `vector_vs_sync`, how many times as fast our vector
        environment is as Gymnasium's synchronous one of the same single environments.
    """
    repetitions, seconds = (3, 0.15) if quick else (7, 0.5)
    rows: list[dict[str, Any]] = []
    with one_core():
        for name, what, copies, make in MEASUREMENTS:
            burst = make()
            if burst is None:
                continue
            rows.append(
                {
                    "name": name,
                    "what": what,
                    "num_envs": copies,
                    "steps_per_s": best_rate(burst, repetitions, seconds),
                }
            )
    summary = {f"{row['name']}_steps_per_s": float(row["steps_per_s"]) for row in rows}
    summary["vector_vs_sync"] = summary["vector_steps_per_s"] / summary["sync_steps_per_s"]
    return rows, summary


def best_rate(burst: Burst, repetitions: int, seconds: float) -> float:
    """Return the most steps a second of `repetitions`, each of at least `seconds`.

    One burst runs before the clock starts: it compiles, and warms the caches.
    """
    burst()
    best = 0.0
    for _ in range(repetitions):
        steps, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds:
            steps += burst()
        best = max(best, steps / elapsed)
    return best


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, its libraries' threads included, to one core (where the OS can)."""
    # XLA reads it when jax is first imported; affinity alone leaves it a pool of threads.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- The tabular engine


def engine() -> Burst | None:
    """Whole episodes of the uniform table policy in the compiled kernel."""
    if find_spec("awsgd_rl.agents.engine") is None:
        return None
    from awsgd_rl.agents import engine as kernel
    from awsgd_rl.agents.tables import make_table
    from awsgd_rl.agents.tabular import grid_of

    env: Any = gym.make(PRESET_ID).unwrapped
    grid = grid_of(env)
    table = make_table(np.zeros((env.n_states, 4)))
    room = kernel.make_room(grid, NUM_ENVS)
    seeds = iter(range(1 << 62))

    def burst() -> int:
        _, outcomes = kernel.rollout(
            grid, table, table, NUM_ENVS, 0, discount=0.999, seed=next(seeds), room=room
        )
        return int(outcomes.length.sum())

    return burst


# --- Gymnasium's interface


def _vector_burst(envs: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> Burst:
    envs.action_space.seed(0)
    envs.reset(seed=0)

    def burst() -> int:
        for _ in range(steps):
            envs.step(envs.action_space.sample())
        return steps * envs.num_envs

    return burst


def vector() -> Burst:
    """Our native vector environment."""
    return _vector_burst(gym.make_vec(PRESET_ID, num_envs=NUM_ENVS), 200)


def vector_slippery() -> Burst:
    """Our native vector environment with slips of 10 %."""
    return _vector_burst(gym.make_vec(PRESET_ID, num_envs=NUM_ENVS, slip=0.1), 200)


def sync() -> Burst:
    """Our single environments in Gymnasium's synchronous vector environment."""
    envs = gym.make_vec(PRESET_ID, num_envs=NUM_ENVS, vectorization_mode="sync")
    return _vector_burst(envs, 5)


def frozenlake_sync() -> Burst:
    """Gymnasium's FrozenLake in its synchronous vector environment."""
    envs = gym.make_vec("FrozenLake-v1", num_envs=NUM_ENVS, vectorization_mode="sync")
    return _vector_burst(envs, 5)


def table_floor() -> Burst:
    """The least that NumPy can do: random actions, three look-ups, nothing of an interface."""
    env: Any = gym.make(PRESET_ID).unwrapped
    following: NDArray[np.int64] = env.next_state.copy()
    following[env.terminal] = env.start
    flat = following.ravel()
    rewards, ends = env.move_reward.ravel(), env.terminal[flat]
    rng = np.random.default_rng(0)
    state = np.full(NUM_ENVS, env.start)

    def burst() -> int:
        nonlocal state
        for _ in range(200):
            move = state * 4 + rng.integers(4, size=NUM_ENVS)
            state = flat.take(move)
            rewards.take(move)
            ends.take(move)
        return 200 * NUM_ENVS

    return burst


# --- Peers


def _installed(name: str) -> Any:
    """Return the module, or None if it cannot be imported.

    Any error counts: a peer with a broken installation must not end the bench.
    """
    try:
        return import_module(name)
    except Exception:
        return None


def minigrid() -> Burst | None:
    """MiniGrid's empty room of 8x8, in Gymnasium's synchronous vector environment."""
    if _installed("minigrid") is None:
        return None
    envs = gym.make_vec("MiniGrid-Empty-8x8-v0", num_envs=16, vectorization_mode="sync")
    # Its spaces hold texts (missions), which are slow to draw from: only the actions are drawn.
    return _vector_burst(envs, 5)


def envpool() -> Burst | None:
    """EnvPool's FrozenLake on one thread."""
    package = _installed("envpool")
    if package is None:
        return None
    envs = package.make(
        "FrozenLake-v1", env_type="gymnasium", num_envs=NUM_ENVS, num_threads=1, seed=0
    )
    envs.reset()
    rng = np.random.default_rng(0)

    def burst() -> int:
        for _ in range(200):
            envs.step(rng.integers(4, size=NUM_ENVS, dtype=np.int32))
        return 200 * NUM_ENVS

    return burst


def gymnax() -> Burst | None:
    """Gymnax's grid task with uniform actions, vectorised in a jitted scan."""
    package, jax = _installed("gymnax"), _installed("jax")
    if package is None or jax is None:
        return None

    names = [name for name in ("FrozenLake-misc", "FourRooms-misc") if name in _gymnax_names()]
    if not names:
        return None
    env, parameters = package.make(names[0])

    def one_step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        key, state = carry
        key, for_actions, for_steps = jax.random.split(key, 3)
        actions = jax.random.randint(for_actions, (GYMNAX_ENVS,), 0, env.num_actions)
        keys = jax.random.split(for_steps, GYMNAX_ENVS)
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, actions, parameters)
        return (key, step[1]), step[2].sum()

    scan = jax.jit(lambda carry: jax.lax.scan(one_step, carry, None, length=GYMNAX_SCAN))
    keys = jax.random.split(jax.random.PRNGKey(0), GYMNAX_ENVS)
    state = jax.vmap(env.reset, in_axes=(0, None))(keys, parameters)[1]
    carry = (jax.random.PRNGKey(1), state)

    def burst() -> int:
        nonlocal carry
        carry, rewards = scan(carry)
        rewards.block_until_ready()
        return GYMNAX_ENVS * GYMNAX_SCAN

    return burst


def _gymnax_names() -> list[str]:
    return list(import_module("gymnax.registration").registered_envs)


MEASUREMENTS: list[tuple[str, str, int, Callable[[], Burst | None]]] = [
    ("engine", "awsgd-rl's tabular engine, 15x15 with 9 traps", NUM_ENVS, engine),
    ("vector", "awsgd-rl's vector environment, 15x15 with 9 traps", NUM_ENVS, vector),
    ("vector_slippery", "the same with slips of 10 %", NUM_ENVS, vector_slippery),
    ("vector_floor", "bare NumPy look-ups, no interface", NUM_ENVS, table_floor),
    ("sync", "awsgd-rl's single environments, Gymnasium's SyncVectorEnv", NUM_ENVS, sync),
    ("frozenlake_sync", "FrozenLake-v1, Gymnasium's SyncVectorEnv", NUM_ENVS, frozenlake_sync),
    ("envpool", "EnvPool's FrozenLake-v1, one thread", NUM_ENVS, envpool),
    ("gymnax", "gymnax's FrozenLake-misc (or FourRooms-misc), jitted scan", GYMNAX_ENVS, gymnax),
    ("minigrid", "MiniGrid-Empty-8x8-v0, Gymnasium's SyncVectorEnv", 16, minigrid),
]
"""Name, what it runs, copies at once, and what makes the burst (or None: not installed)."""
