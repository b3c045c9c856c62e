"""How examples are dealt out to the ranks of `torch.distributed`, and gathered again."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch import distributed as dist

from awsgd_rl.validation import require_integer

__all__ = ["Shard", "all_gather", "check_shards", "merge_shards", "merge_states", "shard_of"]


class Shard(NamedTuple):
    """The examples that a rank owns."""

    n: int
    """Number of all examples N."""
    items: range
    """The rank's own."""

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> Self:
        """Reads what `to_tensor` made.

        Raises:
          ValueError: if it is no shard.
        """
        values = numbers.tolist()
        if numbers.shape != (4,) or not 0 <= values[1] < values[2] <= values[0] or values[3] < 1:
            raise ValueError(f"got {values}, expected N, start, stop and step of a shard")
        n, start, stop, step = values
        return cls(n, range(start, stop, step))

    def to_tensor(self) -> Tensor:
        """[4] long: N, start, stop and step."""
        return torch.tensor([self.n, self.items.start, self.items.stop, self.items.step])

    @property
    def slice(self) -> slice:
        """What picks the rank's own out of all N."""
        return slice(self.items.start, self.items.stop, self.items.step)

    def __str__(self) -> str:
        return f"{self.items} of {self.n} examples"


def shard_of(n: int, rank: int, world_size: int, sizes: Sequence[int] | None = None) -> Shard:
    """The shard of a rank.

    Args:
      n: number of examples N.
      rank: from 0 to R − 1.
      world_size: number of ranks R, at most N.
      sizes: [R] examples of each rank, in blocks one after the other; None deals them out in turn:
        rank, rank + R, rank + 2 R ...

    Raises:
      ValueError: if a number is out of range, a shard would be empty, or the sizes do not add up.
    """
    n, world_size = require_integer("n", n), require_integer("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}: below world_size")
    if world_size > n:
        raise ValueError(
            f"world_size is {world_size}, expected at most the {n} examples: a rank without any "
            "has nothing to draw"
        )
    if sizes is None:
        return Shard(n, range(rank, n, world_size))
    if len(sizes) != world_size or min(sizes) < 1 or sum(sizes) != n:
        raise ValueError(
            f"sizes is {list(sizes)}, expected {world_size} positive numbers, one a rank, that "
            f"sum to {n}"
        )
    start = sum(sizes[:rank])
    return Shard(n, range(start, start + sizes[rank]))


def merge_shards(shards: Sequence[Shard], scores: Sequence[Tensor]) -> Tensor:
    """[N] float64, the scores of all examples.

    Args:
      shards: [R] of one table, in any order.
      scores: [R] the scores of each, with or without more behind them.

    Raises:
      ValueError: if they are of several N, or an example is missing or there twice.
    """
    n = sum(len(shard.items) for shard in shards)
    found = ", ".join(str(shard.items) for shard in shards)
    totals = sorted({shard.n for shard in shards})
    # A number that a file gives takes no memory before the scores bear it out.
    if totals != [n] or any(
        len(own) < len(shard.items) for shard, own in zip(shards, scores, strict=True)
    ):
        raise ValueError(
            f"got shards {found} of {totals} examples, expected those of all ranks of one table"
        )
    full = torch.full((n,), math.nan, dtype=torch.float64)
    for shard, own in zip(shards, scores, strict=True):
        full[shard.slice] = own[: len(shard.items)].to(full)
    missing = full.isnan().nonzero()
    if len(missing):
        raise ValueError(f"got shards {found}, none of which has example {int(missing[0])}")
    return full


def merge_states(states: Iterable[Mapping[str, Any]]) -> Tensor:
    """The scores of all examples from the states that the ranks saved.

    For a run that goes on with another number of ranks:
    `ShardedTableProposal(merge_states(states), ...)`.

    Args:
      states: what `state_dict` of each rank's `ShardedTableProposal` returned, in any order.

    Returns:
      [N] float64.

    Raises:
      ValueError: if one is no such state; and as `merge_shards`.
    """
    shards, scores = [], []
    for number, state in enumerate(states):
        if "_extra_state" not in state or "table.scores" not in state:
            raise ValueError(
                f"state {number} has {sorted(state)}, expected a ShardedTableProposal's state_dict"
            )
        shards.append(Shard.from_tensor(state["_extra_state"]))
        scores.append(state["table.scores"])
    return merge_shards(shards, scores)


def check_shards(gathered: Sequence[Tensor], sizes: Sequence[int] | None) -> None:
    """Checks that the ranks' shards are those of one table.

    Args:
      gathered: [R] from each rank `Shard.to_tensor`, or [4] negative numbers if it failed.
      sizes: as this rank has them, for `shard_of`.

    Raises:
      ValueError: if not; the message names the rank.
    """
    for rank, numbers in enumerate(gathered):
        if numbers[0] < 0:
            raise ValueError(f"rank {rank} could not make its shard: see the error there")
    shards = [Shard.from_tensor(numbers) for numbers in gathered]
    n = shards[0].n
    for rank, shard in enumerate(shards):
        if shard.n != n:
            raise ValueError(
                f"rank {rank} has {shard.n} examples and rank 0 has {n}, expected the same N on "
                "all ranks: that of the whole data"
            )
        expected = shard_of(n, rank, len(shards), sizes)
        if shard != expected:
            raise ValueError(
                f"rank {rank} owns {shard.items}, expected {expected.items}: pass the same sizes "
                "on all ranks"
            )


def rank_and_world_size(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """This process's rank in the group, and the group's size.

    Raises:
      ValueError: if there is no process group, or this process is not in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "torch.distributed has no process group, expected one: call "
            "torch.distributed.init_process_group('gloo') in each process first (torchrun starts "
            "them), or pass rank and world_size"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not in the group, expected one of its members")
    return rank, dist.get_world_size(group)


def all_gather(own: Tensor, group: "dist.ProcessGroup | None") -> list[Tensor]:
    """[R] every rank's tensor, all of one shape, on the CPU.

    Raises:
      ValueError: as `rank_and_world_size`.
    """
    _, world_size = rank_and_world_size(group)
    # NCCL moves nothing that is not on a GPU.
    own = own.to("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    parts = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(parts, own, group=group)
    return [part.cpu() for part in parts]
