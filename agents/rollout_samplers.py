"""What a rollout worker does: draw a chunk of whole episodes, and tell the density it drew with.

A sampler holds no state between chunks but the parameters that it was given last: a chunk depends
on those parameters and on its own numbers, so whoever draws it, and however often, draws the same.
The learner's side is here too: the parameters as plain arrays (`snapshot`), and the chunks put
together again (`join`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.tables import COUNT, DISCOUNTED, MOVES, RETURNS, Rows

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]
"""The parameters of P_w and Q_τ, and of whatever else a draw depends on."""


class Chunk(NamedTuple):
    """A part of a batch, in numbers: all that its randomness depends on.

    Attributes:
        key: of the run (the agent's seed, and how many episodes it had run at the start).
        batch: which batch.
        number: which chunk of it.
        n_target: episodes by P_w, the first ones.
        n_exploration: episodes by Q_τ.
        share: share of the whole batch that Q_τ draws: α of the mixture.
    """

    key: tuple[int, int]
    batch: int
    number: int
    n_target: int
    n_exploration: int
    share: float

    def __str__(self) -> str:
        return f"batch {self.batch}, chunk {self.number}"

    def seeds(self, n: int) -> list[int]:
        """Return `n` seeds (64 bits each) of this chunk alone."""
        sequence = np.random.SeedSequence((*self.key, self.batch, self.number))
        return [int(seed) for seed in sequence.generate_state(n, np.uint64)]


def split(
    key: tuple[int, int], batch: int, n_target: int, n_exploration: int, size: int
) -> Iterator[Chunk]:
    """Yield the chunks of a batch, `size` episodes each (the last one may be smaller)."""
    n = n_target + n_exploration
    for number, begin in enumerate(range(0, n, size)):
        stop = min(begin + size, n)
        by_target = max(min(stop, n_target) - begin, 0)
        yield Chunk(key, batch, number, by_target, stop - begin - by_target, n_exploration / n)


class Sampler(Protocol):
    """Draws chunks; it is sent to each worker once, before its first `load`."""

    def snapshot(self, learner: Any) -> Parameters:
        """Return a copy of what a draw depends on (the learner's side)."""

    def load(self, parameters: Parameters) -> None:
        """Take parameters into use (the worker's side)."""

    def draw(self, chunk: Chunk) -> Any:
        """Return a chunk's episodes, compact, with the log density of each as drawn."""

    def join(self, learner: Any, parts: Sequence[Any], n_target: int) -> Any:
        """Return the learner's trajectories for the parts of a batch in their order."""

    def close(self) -> None:
        """Let go of environments."""


def log_mixture(log_p: Array, log_q: Array, share: float) -> Array:
    """Return [B] log((1 − α) p + α q) for log densities [B], α the share of q."""
    if share in (0.0, 1.0):
        return log_q if share else log_p
    mixed: Array = np.logaddexp(log_p + math.log1p(-share), log_q + math.log(share))
    return mixed


def compact(numbers: Array) -> Array:
    """Return whole numbers of 0 or more in the smallest type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


class GridPart(NamedTuple):
    """B episodes on the gridworld, R rows of visited states, V visited pairs of state and action.

    Attributes:
        log_drawn: [B] log density of the mixture that drew them.
        total: [B] discounted returns, in scaled reward.
        undiscounted: [B] plain returns, in scaled reward.
        length: [B] steps.
        end: [B] how each ended.
        size: [B] rows of each.
        state: [R] their states.
        visited: [R, A / 8] bits: which actions were taken there.
        counts: [V, 1] visits; where moves slip [V, 5]: then how often each direction followed.
        sums: [V, 2] sums of discount^t and of discount^t G_t.
    """

    log_drawn: Array
    total: Array
    undiscounted: Array
    length: Array
    end: Array
    size: Array
    state: Array
    visited: Array
    counts: Array
    sums: Array


@dataclass
class GridSampler:
    """Episodes of table policies in the compiled engine.

    Attributes:
        grid: the gridworld.
        discount: in (0, 1].
        reward_to_go: as `engine.rollout` takes it.
        explores: whether Q_τ is ever drawn from.
    """

    grid: engine.Grid
    discount: float
    reward_to_go: bool
    explores: bool

    def snapshot(self, learner: Any) -> Parameters:
        """Return the log-odds of both policies."""
        target = {"target": learner.target.logits.copy()}
        return target | (
            {"exploration": learner.exploration.logits.copy()} if self.explores else {}
        )

    def load(self, parameters: Parameters) -> None:
        """Derive the tables from the log-odds."""
        self._target = tables.make_table(parameters["target"])
        self._exploration = (
            tables.make_table(parameters["exploration"]) if self.explores else self._target
        )

    def draw(self, chunk: Chunk) -> GridPart:
        """Run the chunk's episodes."""
        policies = (self._target, self._exploration)
        rows, outcomes = engine.rollout(
            self.grid,
            *policies,
            chunk.n_target,
            chunk.n_exploration,
            discount=self.discount,
            seed=chunk.seeds(1)[0],
            reward_to_go=self.reward_to_go,
        )
        which = np.arange(len(rows.size))
        log_p, log_q = (tables.log_probability(rows, which, table) for table in policies)
        n_rows = int(rows.size.sum())
        sums = rows.sums[:n_rows]
        visited = sums[..., COUNT] > 0.0
        taken = sums[visited]
        return GridPart(
            log_drawn=log_mixture(log_p, log_q, chunk.share),
            total=outcomes.total,
            undiscounted=outcomes.undiscounted,
            length=compact(outcomes.length),
            end=compact(outcomes.end),
            size=compact(rows.size),
            state=compact(rows.state[:n_rows]),
            visited=np.packbits(visited, axis=1),
            counts=compact(np.delete(taken, (DISCOUNTED, RETURNS), axis=1)),
            sums=taken[:, (DISCOUNTED, RETURNS)],
        )

    def join(self, learner: Any, parts: Sequence[GridPart], n_target: int) -> Any:
        """Return `TabularTrajectories`."""
        import torch

        from awsgd_rl.agents.tabular import TabularTrajectories

        whole = GridPart(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        n_actions = self.grid.next_state.shape[1]
        n = len(whole.size)
        size = whole.size.astype(np.int64)
        sums = np.zeros((len(whole.state), n_actions, engine.sums_of(self.grid)))
        visited = np.unpackbits(whole.visited, axis=1, count=n_actions).astype(bool)
        taken = np.empty((len(whole.sums), sums.shape[2]))
        taken[:, COUNT], taken[:, MOVES:] = whole.counts[:, 0], whole.counts[:, 1:]
        taken[:, (DISCOUNTED, RETURNS)] = whole.sums
        sums[visited] = taken
        end = torch.from_numpy(whole.end.astype(np.int64))
        return TabularTrajectories(
            rows=Rows(np.cumsum(size) - size, size, whole.state.astype(np.int32), sums),
            which=np.arange(n),
            log_drawn=torch.from_numpy(whole.log_drawn),
            returns=torch.from_numpy(whole.total),
            raw_returns=torch.from_numpy(whole.undiscounted / learner.reward_scale),
            lengths=torch.from_numpy(whole.length.astype(np.int64)),
            success=(end == engine.GOAL).to(torch.float64),
            from_target=torch.arange(n) < n_target,
        )

    def close(self) -> None:
        """There is nothing to let go of."""
