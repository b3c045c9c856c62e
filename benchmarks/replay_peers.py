"""Replay buffers of this package and of others, filled alike, behind the same two calls.

Each is used as its own documentation has it, in the layout that is fastest there: cpprb and
tianshou return NumPy arrays, which a user still turns into tensors. What a library gives with a
sample is what every prioritized one here gives: observations, actions, rewards, next observations,
ends, slots, and the weights (n q)^-0.4.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import cycle
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

ALPHA, BETA = 0.6, 0.4
OBSERVATIONS, ACTIONS = 8, 4
SPACES: Final = (
    spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32),
    spaces.Discrete(ACTIONS),
)


class Calls(NamedTuple):
    """What is timed of a full buffer."""

    step: Callable[[int], object]
    """Draws a batch of that size, gathers it, and writes fresh priorities."""
    add: Callable[[], object] | None = None
    """Adds the next row, a transition of each environment; None where that is not measured."""
    unweighted: Callable[[int], object] | None = None
    """`step` without weights, where they are computed apart."""
    bytes_per_transition: float = float("nan")


class Transitions(NamedTuple):
    """T rows of E environments' transitions; the last row is followed by the first."""

    observations: NDArray[np.float32]
    """[T, E, 8]"""
    actions: NDArray[np.int64]
    """[T, E]"""
    rewards: NDArray[np.float32]
    """[T, E]"""
    next_observations: NDArray[np.float32]
    """[T, E, 8]; the next row's observations, but where an episode ended."""
    terminated: NDArray[np.bool_]
    """[T, E]; of one step in 200."""
    truncated: NDArray[np.bool_]
    """[T, E]; of none."""

    def rows(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """The rows, again and again."""
        return cycle(list(zip(*self, strict=True)))

    def first(self, n: int) -> list[NDArray[Any]]:
        """[n, ...] of each, in the order in which they are added; repeated where they end."""
        flat = [field.reshape(-1, *field.shape[2:]) for field in self]
        order = np.arange(n) % len(flat[0])
        return [field[order] for field in flat]


def make_transitions(n_envs: int, seed: int, rows: int = 1_024) -> Transitions:
    """Random transitions of `n_envs` environments."""
    rng = np.random.default_rng(seed)
    shape = (rows, n_envs)
    observations = rng.standard_normal((*shape, OBSERVATIONS), np.float32)
    terminated = rng.random(shape) < 0.005
    final = rng.standard_normal(observations.shape, np.float32)
    following = np.where(terminated[..., None], final, np.roll(observations, -1, axis=0))
    actions, rewards = rng.integers(ACTIONS, size=shape), rng.standard_normal(shape, np.float32)
    return Transitions(
        observations, actions, rewards, following, terminated, np.zeros(shape, np.bool_)
    )


class Errors:
    """TD errors that a buffer has not just seen: cpprb skips a priority that is there already."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        rng = np.random.default_rng(seed)
        self.array = np.abs(rng.standard_normal(1 << 20, np.float32)) + np.float32(1e-3)
        self.tensor = torch.from_numpy(self.array).to(device)
        self._at = 0

    def next_slice(self, count: int) -> slice:
        """The place of `count` errors, others than last time."""
        self._at = (self._at + 4_099) % (len(self.array) - count)
        return slice(self._at, self._at + count)

    def for_all(self, count: int) -> NDArray[np.float32]:
        """[count] errors to begin with."""
        return np.resize(self.array, count)


def ours(capacity: int, given: Transitions, seed: int, device: str = "cpu") -> Calls:
    """This package's buffer; `step` computes the weights, since the others' samples have them."""
    from awsgd_rl.replay import ReplayBuffer
    from awsgd_rl.weights import annealed_weights

    n_envs = given.rewards.shape[1]
    buffer = ReplayBuffer(capacity, *SPACES, n_envs=n_envs, alpha=ALPHA, seed=seed, device=device)
    rows, errors = given.rows(), Errors(seed, device)

    def step(batch_size: int) -> None:
        sample = buffer.sample(batch_size)
        annealed_weights(sample.draw.log_q, buffer.size, BETA)
        buffer.update(sample, errors.tensor[errors.next_slice(batch_size)])

    def unweighted(batch_size: int) -> None:
        sample = buffer.sample(batch_size)
        buffer.update(sample, errors.tensor[errors.next_slice(batch_size)])

    def add() -> None:
        buffer.add(*next(rows))

    while buffer.size < capacity:
        add()
    everything = torch.arange(capacity, device=device)
    buffer.set_priorities(everything, torch.from_numpy(errors.for_all(capacity)).to(device))
    return Calls(step, add, unweighted, buffer.nbytes / capacity)


def sb3_uniform(capacity: int, given: Transitions, seed: int) -> Calls:
    """Stable-Baselines3's buffer: uniform draws, and so no weights and no priorities."""
    from stable_baselines3.common.buffers import ReplayBuffer

    n_envs = given.rewards.shape[1]
    buffer = ReplayBuffer(capacity, *SPACES, device="cpu", n_envs=n_envs)
    rows = given.rows()
    infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]

    def add() -> None:
        observations, actions, rewards, next_observations, terminated, _ = next(rows)
        buffer.add(observations, next_observations, actions, rewards, terminated, infos)

    while not buffer.full:
        add()
    return Calls(buffer.sample, add)


def cpprb(capacity: int, given: Transitions, seed: int) -> Calls:
    """The `PrioritizedReplayBuffer`."""
    vector = {"shape": OBSERVATIONS, "dtype": np.float32}
    fields = {
        "obs": vector,
        "act": {"dtype": np.int64},
        "rew": {"dtype": np.float32},
        "next_obs": vector,
        "done": {"dtype": np.bool_},
    }
    buffer = import_module("cpprb").PrioritizedReplayBuffer(capacity, fields, alpha=ALPHA)
    rows, errors = given.rows(), Errors(seed)

    def step(batch_size: int) -> None:
        sample = buffer.sample(batch_size, beta=BETA)
        priorities = errors.array[errors.next_slice(batch_size)]
        buffer.update_priorities(sample["indexes"], priorities)

    def add() -> None:
        buffer.add(**dict(zip(fields, next(rows), strict=False)))

    columns = dict(zip(fields, given.first(capacity), strict=False))
    buffer.add(**columns, priorities=errors.for_all(capacity))
    return Calls(step, add)


def tianshou(capacity: int, given: Transitions, seed: int) -> Calls:
    """The `PrioritizedReplayBuffer` of one environment: that of several is slower."""
    data = import_module("tianshou.data")
    observations, actions, rewards, following, terminated, truncated = given.first(capacity)
    full = data.ReplayBuffer.from_data(
        observations, actions, rewards, terminated, truncated, terminated | truncated, following
    )
    buffer = data.PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
    buffer.update(full)
    errors = Errors(seed)
    buffer.update_weight(np.arange(capacity), errors.for_all(capacity))

    def step(batch_size: int) -> None:
        _, slots = buffer.sample(batch_size)
        buffer.update_weight(slots, errors.array[errors.next_slice(batch_size)])

    return Calls(step)


def torchrl(capacity: int, given: Transitions, seed: int, device: str = "cpu") -> Calls:
    """The `ReplayBuffer` with `LazyTensorStorage` and `PrioritizedSampler`."""
    data, tensordict = import_module("torchrl.data"), import_module("tensordict")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    samplers = import_module("torchrl.data.replay_buffers.samplers")
    buffer = data.ReplayBuffer(
        storage=data.LazyTensorStorage(capacity, device=device),
        sampler=samplers.PrioritizedSampler(
            capacity, alpha=ALPHA, beta=BETA, device=None if device == "cpu" else device
        ),
    )
    names = ("observation", "action", "reward", "next_observation", "terminated")
    rows, errors = given.rows(), Errors(seed, device)

    def pack(fields: Iterable[NDArray[Any]]) -> Any:
        columns = {
            name: torch.from_numpy(field) for name, field in zip(names, fields, strict=False)
        }
        return tensordict.TensorDict(columns, [len(columns["reward"])])

    def step(batch_size: int) -> None:
        _, about = buffer.sample(batch_size, return_info=True)
        buffer.update_priority(about["index"], errors.tensor[errors.next_slice(batch_size)])

    def add() -> None:
        buffer.extend(pack(next(rows)))

    buffer.extend(pack(given.first(capacity)).to(device))
    everything = torch.arange(capacity, device=device)
    buffer.update_priority(everything, torch.from_numpy(errors.for_all(capacity)).to(device))
    return Calls(step, add)
