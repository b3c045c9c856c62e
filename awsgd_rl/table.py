"""A proposal that is a table of scores, drawn and written in O(log N): see `sum_tree`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.sampling import check_scores, draw_uniforms
from awsgd_rl.sum_tree import SumTree, check_writes, last_writes


class TableProposal(Proposal):
    """A score per item: per-example gradient norms, a memory, replay priorities.

    q(i) = (1 − u) max(s_i, floor)^exponent / Σ_j max(s_j, floor)^exponent + u / n, over the n
    filled slots. Where all of these scores are 0, q is uniform. With floor = 0 and u = 0 an item
    of zero score is never drawn, and a mean that it takes part in is biased.

    A draw and a write of B items cost O(B log N), in float64; the first draw, and the first one
    on another device, O(N).

    Args:
      scores: [N] scores, or N: scores of 1. Copied.
      exponent: flattens (below 1) or sharpens the scores; 0 is uniform.
      floor: smallest score.
      uniform_share: u, the share of uniform draws: weights then stay below 1 / u.
      stratified: one draw of each of B equal parts of q, in increasing order, in place of B
        independent ones. The mean over the whole batch stays unbiased and varies less; a standard
        error computed from it is too large, and a part of the batch is no sample.

    Raises:
      ValueError: if a score is negative, infinite or NaN, or a setting is out of range.
    """

    scores: Tensor
    filled_slots: Tensor

    def __init__(
        self,
        scores: Tensor | int,
        *,
        exponent: float = 1.0,
        floor: float = 0.0,
        uniform_share: float = 0.0,
        stratified: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(scores, int):
            if scores < 1:
                raise ValueError(f"n is {scores}, expected at least 1 item")
            scores = torch.ones(scores, dtype=torch.float64)
        scores = check_scores(scores).clone()
        if not 0.0 <= exponent < math.inf:
            raise ValueError(f"exponent is {exponent}, expected a finite number of at least 0")
        # So that neither a power nor the sum leaves float64.
        self._largest = (1e300 / len(scores)) ** (1.0 / max(exponent, 1.0))
        check_scores(scores, largest=self._largest)
        if not 0.0 <= floor <= self._largest:
            raise ValueError(f"floor is {floor}, expected between 0 and {self._largest:g}")
        if not 0.0 <= uniform_share <= 1.0:
            raise ValueError(f"uniform_share is {uniform_share}, expected between 0 and 1")
        self.exponent, self.floor, self.uniform_share = exponent, floor, uniform_share
        self.stratified = stratified
        self.register_buffer("scores", scores)
        self.register_buffer("filled_slots", torch.tensor(len(scores)))
        self._filled = len(scores)
        self._tree: SumTree | None = None

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        scores, filled = state.get(prefix + "scores"), state.get(prefix + "filled_slots")
        if isinstance(scores, Tensor) and scores.shape == self.scores.shape:
            check_scores(scores.to(self.scores.dtype), "the loaded scores", self._largest)
        if isinstance(filled, Tensor) and filled.numel() == 1:
            _check_filled(int(filled), len(self.scores))

    def _follow_state(self) -> None:
        self._tree = None
        self.fill(int(self.filled_slots))

    @property
    def filled(self) -> int:
        """Number n of slots that can be drawn: the first n."""
        return self._filled

    def fill(self, filled: int) -> None:
        """Sets how many slots, from the first, can be drawn: for a memory that is filling up.

        Costs O(log N) for each slot that changes.

        Args:
          filled: from 0 (nothing can be drawn yet) to N.

        Raises:
          ValueError: if filled is out of range.
        """
        _check_filled(filled, len(self.scores))
        before, self._filled = self._filled, filled
        if filled == before:
            return
        self.filled_slots.fill_(filled)
        tree = self._built()
        if tree is not None:
            low, high = min(before, filled), max(before, filled)
            items = torch.arange(low, high, device=tree.device)
            tree.write_checked(items, self._masses(items, self.scores[low:high]))

    def set_scores(self, items: Tensor, scores: Tensor) -> None:
        """Writes scores; of several for the same item the last one stays.

        Reads the values to check them, so on a CUDA device it waits for them.

        Args:
          items: [B] long.
          scores: [B] finite and non-negative.

        Raises:
          ValueError: if shapes differ, an item is outside the table, or a score is negative,
            infinite or NaN. Nothing is written then.
        """
        scores = check_writes(items, scores, len(self.scores), self._largest)
        if self.scores.device.type == "cpu":
            # NumPy promises that the last write to an item stays, torch does not.
            self.scores.numpy()[items.numpy()] = scores.numpy()
        else:
            self.scores.index_copy_(0, items, scores[last_writes(items)])
        tree = self._built()
        if tree is not None:
            tree.write_checked(items, self._masses(items, scores))

    def probabilities(self) -> Tensor:
        """[N] float64, the probability of every item; sums to 1."""
        tree = self._current()
        q = tree.mixture(tree.scores, self.uniform_share, self._filled)
        q[self._filled :] = 0.0
        return q

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability; a table has no τ, so there is no gradient."""
        self._check_given(len(items), given)
        tree = self._current()
        masses = tree.scores.index_select(0, items)
        q = tree.mixture(masses, self.uniform_share, self._filled)
        return q.masked_fill_(items >= self._filled, 0.0).log_()

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        tree = self._current()
        uniforms = draw_uniforms(
            count, device=tree.device, generator=generator, stratified=self.stratified
        )
        return Draw(*tree.draw_mixture(uniforms, self.uniform_share, self._filled))

    def _masses(self, items: Tensor, scores: Tensor) -> Tensor:
        """[B] what the tree holds of these scores of these items."""
        if self.floor > 0.0:
            scores = scores.clamp_min(self.floor)
        if self.exponent != 1.0:
            scores = scores.pow(self.exponent)
        if self._filled < len(self.scores):
            scores = scores.masked_fill(items >= self._filled, 0.0)
        return scores

    def _current(self) -> SumTree:
        if self._filled == 0:
            raise ValueError("no slot of the table is filled: call fill(n) first")
        tree = self._built()
        if tree is None:
            scores = self.scores.to(torch.float64)
            items = torch.arange(len(scores), device=scores.device)
            tree = self._tree = SumTree(self._masses(items, scores))
        return tree

    def _built(self) -> SumTree | None:
        """The tree, unless it has yet to be built, or the scores have moved to another device."""
        if self._tree is not None and self._tree.device != self.scores.device:
            self._tree = None
        return self._tree


def _check_filled(filled: int, slots: int) -> None:
    if not 0 <= filled <= slots:
        raise ValueError(f"filled is {filled}, expected between 0 and the table's {slots} slots")
