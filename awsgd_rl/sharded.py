"""A table of scores split over the processes of `torch.distributed`: each draws from its own shard.

Each of R ranks owns a shard of the N examples and draws its part of the batch from there, by its
own table q_r. All ranks together draw from q(i) = q_r(i) / R, r the rank that owns i, in R strata.
With w = p / q = R / (N q_r(i)) rank r's mean of w ∇ℓ has the expectation R/N Σ_{i in r} ∇ℓ_i. The
mean of these over the ranks, which is what DistributedDataParallel takes, is that of all examples,
whatever the sizes of shards and batches.

Nothing is sent for it, but mass cannot move from one shard to another. Where examples are drawn in
proportion to their gradients' norms, of which the shards hold T_r, the mean's second moment is
R Σ T_r² / (Σ T_r)² times that of one table: 1 for shards that are alike, R at most. Examples are
therefore dealt out in turn, so that shards are alike even of sorted data; `split_cost` measures it.
(A share of the batch in proportion to T_r would cost a message before every draw, and batches of
random sizes: the ranks of small ones would wait for the others.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import Dataset, Subset

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.loader import ImportanceLoader, uniform_log_target
from awsgd_rl.shards import (
    Shard,
    all_gather,
    check_shards,
    merge_shards,
    merge_states,
    rank_and_world_size,
    shard_of,
)
from awsgd_rl.table import TableProposal
from awsgd_rl.validation import require_integer

__all__ = ["ShardedLoader", "ShardedTableProposal", "merge_states"]


class ShardedTableProposal(Proposal):
    """A rank's shard of a `TableProposal` over N examples, numbered as in the whole.

    The log q of a draw is that of all ranks together, log q_r − log R: with log p = −log N
    (`uniform_log_target`) the weight is right for the mean over ranks. With one rank it is a
    `TableProposal`. Where a rank and R are left out, all ranks must make it at the same time: they
    compare what they were given, once.

        table = ShardedTableProposal(len(dataset), uniform_share=0.2)
        adaptation = TableAdaptation(table.table)
        ...
        adaptation.update(table.to_local(draw), signal)

    Args:
      scores: [N] scores of all examples, of which the rank's own are copied; or N: scores of 1.
      rank: this process; None asks `torch.distributed`.
      world_size: number of ranks R; None asks.
      sizes: as for `shard_of`; the same on all ranks.
      group: the processes to ask; None is all of them.
      **options: as for `TableProposal`.

    Attributes:
      n: number of examples N.
      rank: this process.
      world_size: number of ranks R.
      shard: the rank's own examples, `shard.items`.
      table: their scores, by their place in the shard: for `TableAdaptation`.

    Raises:
      ValueError: as `shard_of` and `TableProposal`; if there is no process group to ask; if ranks
        were given several N or sizes, or one of them failed.
    """

    def __init__(
        self,
        scores: Tensor | int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        sizes: Sequence[int] | None = None,
        group: "dist.ProcessGroup | None" = None,
        **options: Any,
    ) -> None:
        super().__init__()
        together = False
        if rank is None and world_size is None:
            rank, world_size = rank_and_world_size(group)
            together = True
        elif rank is None or world_size is None:
            raise ValueError(
                f"rank is {rank} and world_size is {world_size}, expected both or neither"
            )
        self.rank, self.world_size = rank, world_size
        self.n = scores if isinstance(scores, int) else scores.numel()
        try:
            self.shard = shard_of(self.n, rank, world_size, sizes)
            own = len(self.shard.items) if isinstance(scores, int) else scores[self.shard.slice]
            self.table = TableProposal(own, **options)
        except (TypeError, ValueError):
            if together:  # or the others would wait for this rank
                all_gather(torch.full((4,), -1), group)
            raise
        if together:
            check_shards(all_gather(self.shard.to_tensor(), group), sizes)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability among the draws of all ranks, log q_r − log R; no gradient.

        Reads the items to check them, so on a CUDA device it waits for them.

        Raises:
          ValueError: if an item is another rank's, whose scores are not known here.
        """
        self._check_given(len(items), given)
        return self.table.log_prob(self._places(items)) - math.log(self.world_size)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        return self.to_global(self.table.draw(count, generator=generator))

    def set_scores(self, items: Tensor, scores: Tensor) -> None:
        """Writes scores of the rank's own examples; of several for the same item the last stays.

        Args:
          items: [B] long, of the shard.
          scores: [B] finite and non-negative.

        Raises:
          ValueError: if an item is another rank's; and as `TableProposal.set_scores`. Nothing is
            written then.
        """
        self.table.set_scores(self._places(items), scores)

    def to_local(self, draw: Draw) -> Draw:
        """The draw as one of `table`: places in the shard, and log q_r.

        Raises:
          ValueError: if an item is another rank's.
        """
        return Draw(self._places(draw.items), draw.log_q + math.log(self.world_size))

    def to_global(self, draw: Draw) -> Draw:
        """A draw of `table` as one among those of all ranks."""
        items = draw.items * self.shard.items.step + self.shard.items.start
        return Draw(items, draw.log_q - math.log(self.world_size))

    def make_generator(self, seed: int) -> torch.Generator:
        """A generator of the rank's own, from a seed that all ranks may share.

        With equal generators the ranks would draw at equal places of their shards: still unbiased,
        but not independent.
        """
        seeds = np.random.SeedSequence([require_integer("seed", seed, 0), self.rank])
        own = int(seeds.generate_state(1, np.uint64)[0]) >> 1
        return torch.Generator(self.table.scores.device).manual_seed(own)

    def full_scores(self, group: "dist.ProcessGroup | None" = None) -> Tensor:
        """[N] float64 scores of all examples, on every rank; all ranks must ask for them.

        To go on with another number of ranks make a new table from them.

        Raises:
          ValueError: if there is no process group, or the ranks' shards are not N examples.
        """
        shards = [Shard.from_tensor(x) for x in all_gather(self.shard.to_tensor(), group)]
        padded = torch.zeros(max(len(shard.items) for shard in shards), dtype=torch.float64)
        padded[: len(self.shard.items)] = self.table.scores
        return merge_shards(shards, all_gather(padded, group))

    def split_cost(self, group: "dist.ProcessGroup | None" = None) -> float:
        """R Σ T_r² / (Σ T_r)², T_r the sum of a rank's scores; all ranks must ask for it.

        By how much the second moment of the mean gradient exceeds that of one table, if the scores
        are the gradients' norms and drawn in proportion: from 1, where nothing is lost, to R.

        Raises:
          ValueError: if there is no process group.
        """
        totals = torch.cat(all_gather(self.table.scores.sum().reshape(1), group))
        shares = totals / totals.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return max(1.0, len(shares) * shares.square().sum().item())

    def get_extra_state(self) -> Tensor:
        """[4] N, start, stop and step of the shard: what a saved state is of."""
        return self.shard.to_tensor()

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: the shard stays, and `load_state_dict` refuses the state of another one."""

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        saved = state.get(prefix + "_extra_state")
        if saved is not None and (saved := Shard.from_tensor(saved)) != self.shard:
            raise ValueError(
                f"the state is of {saved}, expected {self.shard}: for other ranks make a new table "
                "from `full_scores()` or `merge_states(...)`"
            )

    def _places(self, items: Tensor) -> Tensor:
        """[B] places in the shard of items [B]."""
        if items.dtype != torch.long or items.dim() != 1:
            raise ValueError(
                f"items has shape {tuple(items.shape)} and type {items.dtype}, expected long [B]"
            )
        own = self.shard.items
        places = torch.div(items - own.start, own.step, rounding_mode="floor")
        foreign = (places < 0) | (places >= len(own)) | (places * own.step + own.start != items)
        if bool(foreign.any()):
            row = int(foreign.nonzero()[0])
            raise ValueError(
                f"row {row} is item {int(items[row])}, expected one of rank {self.rank}'s own, "
                f"{self.shard}: pass the items that this rank drew"
            )
        return places


class ShardedLoader:
    """An `ImportanceLoader` on each rank over its shard: iterates over `(batch, draw)`.

        loader = ShardedLoader((x, y), table, batch_size=50, generator=0)
        for (x_batch, y_batch), draw in loader:
            weights = importance_weights(loader.log_p(draw), draw.log_q)

    Args:
      data: as for `ImportanceLoader`: all N examples, of which the rank reads its own; or its own
        alone, in the order of `proposal.shard.items`.
      proposal: the rank's shard.
      batch_size: examples per batch of this rank.
      batches: batches per epoch, as many on all ranks: DistributedDataParallel waits for the rank
        with the fewest for ever. None is N // (R · batch_size), and at least 1.
      generator: a seed, from which each rank makes a generator of its own, or the rank's generator.
        None takes a seed from PyTorch's own generator.
      **options: as for `ImportanceLoader`; simulated seconds are of the rank's own examples.

    Raises:
      ValueError: if data has neither N examples nor as many as the shard; and as
        `ImportanceLoader`.
    """

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...] | Dataset[Any] | Sequence[Any],
        proposal: ShardedTableProposal,
        batch_size: int,
        *,
        batches: int | None = None,
        generator: torch.Generator | int | None = None,
        **options: Any,
    ) -> None:
        require_integer("batch_size", batch_size)
        if batches is None:
            batches = max(1, proposal.n // (proposal.world_size * batch_size))
        if not isinstance(generator, torch.Generator):
            seed = int(torch.randint(2**63 - 1, ())) if generator is None else generator
            generator = proposal.make_generator(seed)
        self.proposal = proposal
        self._loader = ImportanceLoader(
            _own_part(data, proposal),
            proposal.table,
            batch_size,
            batches=batches,
            generator=generator,
            **options,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch, draw, *seconds in self._loader:
            yield batch, self.proposal.to_global(draw), *seconds

    def log_p(self, draw: Draw) -> Tensor:
        """[B] log density of each draw under the uniform target over all N examples."""
        return uniform_log_target(draw, self.proposal.n)

    @property
    def epoch(self) -> int:
        """Epochs that are over, or were left early."""
        return self._loader.epoch

    def state_dict(self) -> dict[str, Any]:
        """As `ImportanceLoader.state_dict`, of this rank."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `ImportanceLoader.load_state_dict`."""
        self._loader.load_state_dict(state)


def _own_part(data: Any, proposal: ShardedTableProposal) -> Any:
    tensors = (data,) if isinstance(data, Tensor) else data
    plain = isinstance(tensors, tuple) and all(isinstance(x, Tensor) for x in tensors)
    if not plain and not hasattr(data, "__len__"):
        return data  # the loader says what is wrong
    lengths = {len(x) if x.dim() else 0 for x in tensors} if plain else {len(data)}
    if lengths == {len(proposal.shard.items)}:
        return data
    if lengths != {proposal.n}:
        raise ValueError(
            f"data has {sorted(lengths)} examples, expected all {proposal.n} or the "
            f"{len(proposal.shard.items)} of rank {proposal.rank}"
        )
    if not plain:
        return Subset(data, proposal.shard.items)
    own = tuple(x[proposal.shard.slice] for x in tensors)  # views: nothing is copied
    return own[0] if isinstance(data, Tensor) else own
