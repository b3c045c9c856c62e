"""A sum tree: draws in proportion to scores, and writes of scores, in O(log N) each.

Float64 throughout, any number of items, on any device. A parent is always the sum of its children
as they are, never moved by a difference: nothing drifts, and what was repaired leaves no trace.
"""

import functools
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from awsgd_rl.sampling import check_scores, cumulative_scores

WIDTH = 16
"""Children of a node: two cache lines. 8 and 32 were slower. (Numba's cache of the kernels does not
see a change here: remove it then.)"""
BITS = WIDTH.bit_length() - 1
"""So that the parent of child i is i >> BITS."""


class SumTree:
    """N scores, drawn by the inverse of their cumulative sum.

    Every node has 16 children. On the CPU compiled kernels walk down and up; elsewhere a few
    tensor operations a level do, without waiting for the device. Both add in the same order.

    All levels lie in one tensor, the root first, each level filled up with zeros: the children of
    node i of a level are the entries 16 i to 16 i + 15 of the next one.

    Args:
      scores: [N] finite and non-negative. Copied.
      compiled: use the kernels; None does on the CPU.

    Raises:
      ValueError: if the scores are not a non-empty vector, one is negative, infinite or NaN, or
        their sum is infinite; for kernels on another device than the CPU.
    """

    def __init__(self, scores: Tensor, *, compiled: bool | None = None) -> None:
        if scores.device.type != "meta":
            scores = check_scores(scores)
        on_cpu = scores.device.type == "cpu"
        if compiled and not on_cpu:
            raise ValueError(f"got compiled kernels and scores on {scores.device}, expected cpu")
        self.compiled = on_cpu if compiled is None else compiled
        self.n = len(scores)
        sizes = [self.n]
        while sizes[0] > 1:
            sizes.insert(0, -(-sizes[0] // WIDTH))
        if len(sizes) == 1:
            sizes.insert(0, 1)
        padded = [-(-size // WIDTH) * WIDTH for size in sizes]
        self._starts = np.cumsum([0, *padded[:-1]])
        self._nodes = torch.zeros(sum(padded), dtype=torch.float64, device=scores.device)
        self.scores.copy_(scores)
        for level in range(len(sizes) - 2, -1, -1):
            self._level(level)[: padded[level + 1] // WIDTH] = _row_sums(self._rows(level + 1))
        if on_cpu and not bool(self.total.isfinite()):
            raise ValueError("the scores sum to infinity, expected a finite sum: scale them down")

    @property
    def device(self) -> torch.device:
        """Where the tree lies."""
        return self._nodes.device

    @property
    def nodes(self) -> Tensor:
        """[M] float64, all levels one after the other: the tree itself, in its own memory.

        To be read, or handed to the kernels of `sum_tree_kernels`, which keep the sums right.
        """
        return self._nodes

    @property
    def starts(self) -> NDArray[np.int64]:
        """[L] where each level starts in `nodes`, the root's first and the scores' last."""
        return self._starts

    @property
    def total(self) -> Tensor:
        """[] float64, the sum of all scores: a view, to be read."""
        return self._nodes[0]

    @property
    def scores(self) -> Tensor:
        """[N] float64, the scores: a view, to be read."""
        start = int(self._starts[-1])
        return self._nodes[start : start + self.n]

    def draw(self, uniforms: Tensor) -> Tensor:
        """The items where the running total of the scores first exceeds `uniforms` times the sum.

        An item of zero score is never returned: not at a uniform of exactly 0, and not at 1, which
        returns the last item that adds to the total. For stratified draws give stratified uniforms
        (`sampling.draw_uniforms`).

        Args:
          uniforms: [B] float64 numbers in [0, 1].

        Returns:
          [B] long. Where all scores are 0: item 0, which means nothing.
        """
        if self.compiled:
            kernels = _kernels()
            return torch.from_numpy(
                kernels.draw(self._nodes.numpy(), self._starts, uniforms.contiguous().numpy())
            )
        items = torch.zeros(len(uniforms), dtype=torch.long, device=self.device)
        targets = uniforms * self.total
        for level in range(1, len(self._starts)):
            cumulative = cumulative_scores(self._rows(level).index_select(0, items))
            child = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True)
            # Rounding, or a uniform number of 1: the last that adds something, here and below.
            last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
            before = pad(cumulative, (1, 0)).gather(1, child).squeeze(1)
            beyond = (child > last).squeeze(1)
            targets = (targets - before).masked_fill(beyond, torch.inf)
            items = items * WIDTH + torch.minimum(child, last).squeeze(1)
        return items

    def draw_mixture(
        self, uniforms: Tensor, uniform_share: float, filled: int
    ) -> tuple[Tensor, Tensor]:
        """Draws among the first `filled` items, a share of the draws uniformly.

        One number decides between the uniform part and the tree, and is stretched to the place
        within: strata are then strata of the mixture, and no draw waits for the device.

        Args:
          uniforms: [B] float64 numbers in [0, 1].
          uniform_share: share of uniform draws, in [0, 1]; where all scores are 0 it is 1.
          filled: from 1 to N; later items have scores of 0.

        Returns:
          [B] long items, and [B] their float64 log probabilities.
        """
        if self.compiled:
            items, log_q = _kernels().draw_mixture(
                self._nodes.numpy(),
                self._starts,
                uniforms.contiguous().numpy(),
                uniform_share,
                filled,
            )
            return torch.from_numpy(items), torch.from_numpy(log_q)
        share = self._share(uniform_share)
        low = uniforms < share
        places = torch.where(low, uniforms / share, (uniforms - share) / (1.0 - share))
        uniform = (places * filled).long().clamp_max_(filled - 1)
        drawn = torch.where(low, uniform, self.draw(places))
        masses = self.scores.index_select(0, drawn)
        return drawn, self.mixture(masses, uniform_share, filled).log_()

    def mixture(self, scores: Tensor, uniform_share: float, filled: int) -> Tensor:
        """The probabilities that `draw_mixture` gives items of these scores.

        Args:
          scores: [B] scores in the tree, of items that are filled.
          uniform_share: as in `draw_mixture`.
          filled: as in `draw_mixture`.

        Returns:
          [B] float64.
        """
        share = self._share(uniform_share)
        from_tree = scores / self.total.masked_fill(self.total == 0.0, 1.0)
        return from_tree.mul_(1.0 - share).add_(share / filled)

    def write(self, items: Tensor, scores: Tensor) -> None:
        """Writes scores; of several for the same item the last one stays.

        Reads the values to check them, so on a CUDA device it waits for them.

        Args:
          items: [B] long.
          scores: [B] finite and non-negative; their sum with the others must be finite.

        Raises:
          ValueError: if shapes differ, an item is outside the tree, or a score is negative,
            infinite or NaN. Nothing is written then.
        """
        self.write_checked(items, check_writes(items, scores, self.n))

    def write_checked(self, items: Tensor, scores: Tensor) -> None:
        """`write` of float64 scores that have passed `check_writes`: waits for no device."""
        if self.compiled:
            _kernels().write(
                self._nodes.numpy(),
                self._starts,
                self.n,
                # A kernel would be compiled anew for strides.
                items.contiguous().numpy(),
                scores.contiguous().numpy(),
            )
            return
        self.scores.index_copy_(0, items, scores[last_writes(items)])
        for level in range(len(self._starts) - 2, -1, -1):
            rows, above = self._rows(level + 1), self._level(level)
            if len(rows) <= len(items):
                above[: len(rows)] = _row_sums(rows)
            else:
                items = items >> BITS
                above.index_copy_(0, items, _row_sums(rows.index_select(0, items)))

    def _share(self, uniform_share: float) -> Tensor:
        return torch.full_like(self.total, uniform_share).masked_fill_(self.total == 0.0, 1.0)

    def _level(self, level: int) -> Tensor:
        start = int(self._starts[level])
        last = level + 1 == len(self._starts)
        return self._nodes[start : None if last else int(self._starts[level + 1])]

    def _rows(self, level: int) -> Tensor:
        return self._level(level).view(-1, WIDTH)


_LARGEST = torch.finfo(torch.float64).max


def check_writes(items: Tensor, scores: Tensor, n: int, largest: float = torch.inf) -> Tensor:
    """Checks what is to be written into a table of n items; waits for the device.

    Args:
      items: [B] long, 0 ... n − 1.
      scores: [B] finite and non-negative, at most `largest`.
      n: number of items.
      largest: largest score allowed.

    Returns:
      [B] float64, the scores without gradient.

    Raises:
      ValueError: if shapes differ, an item is outside 0 ... n − 1, or a score is out of range.
    """
    scores = scores.detach().to(torch.float64)
    same = items.shape == scores.shape and items.dtype == torch.long and scores.dim() == 1
    if same and len(items) > 0 and items.device.type == scores.device.type == "cpu":
        values = scores.contiguous().numpy()
        if _kernels().are_writes(n, min(largest, _LARGEST), items.contiguous().numpy(), values):
            return scores
    # Elsewhere; and here to say what is wrong.
    scores = check_scores(scores, largest=largest)
    if not same:
        raise ValueError(
            f"items has shape {tuple(items.shape)} and type {items.dtype}, "
            f"expected long of shape {tuple(scores.shape)}: one item per score"
        )
    low, high = (bound.item() for bound in torch.aminmax(items))
    if low < 0 or high >= n:
        raise ValueError(f"items range from {low} to {high}, expected 0 to {n - 1}")
    return scores


def last_writes(items: Tensor) -> Tensor:
    """For each write the position of the last write to the same item.

    Args:
      items: [B] long.

    Returns:
      [B] long, positions in 0 ... B − 1.
    """
    items = items.contiguous()
    ordered, order = torch.sort(items, stable=True)
    return order[torch.searchsorted(ordered, items, right=True) - 1]


def _row_sums(rows: Tensor) -> Tensor:
    """[M] sums of [M, 16], in one order on every device: that of `_sum_of_children`."""
    quarters = rows.view(-1, WIDTH // 4, 4)
    parts = quarters[:, 0] + quarters[:, 1] + quarters[:, 2] + quarters[:, 3]
    return (parts[:, 0] + parts[:, 2]) + (parts[:, 1] + parts[:, 3])


@functools.cache
def _kernels() -> ModuleType:
    from awsgd_rl import sum_tree_kernels

    return sum_tree_kernels
