"""Priorities of a ring's slots as a proposal: q ∝ priority^α, mixed with uniform draws."""

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl import replay_kernels as kernels
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.sampling import draw_uniforms
from awsgd_rl.sum_tree import SumTree
from awsgd_rl.validation import require_integer, require_non_negative, require_probability


@final
class PriorityProposal(Proposal):
    """q(i) = (1 − u) p_i^α / Σ_j p_j^α + u / n over the n filled slots (Schaul 2016, eq. 1).

    Draws and writes of B slots cost O(B log N), in float64. α is applied once, when a priority is
    written. The largest priority is exact at any time, and that of slots that are there: one that
    was lowered or overwritten leaves no trace.

    Args:
      capacity: number of slots N.
      alpha: exponent; 0 is uniform.
      uniform_share: u, the share of uniform draws: weights then stay below 1 / u.
      stratified: one draw of each of B equal parts of q, in place of B independent ones.
      device: where.
      compiled: use kernels; None does on the CPU.

    Raises:
      ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        alpha: float = 0.6,
        uniform_share: float = 0.0,
        stratified: bool = False,
        device: torch.device | str = "cpu",
        compiled: bool | None = None,
    ) -> None:
        super().__init__()
        self.capacity = require_integer("capacity", capacity)
        self.alpha = require_non_negative("alpha", alpha)
        self.uniform_share = require_probability("uniform_share", uniform_share)
        self.stratified = stratified
        # So that neither a power nor the sum leaves float64, nor a power becomes 0.
        self.largest = (1e300 / capacity) ** (1.0 / max(alpha, 1.0))
        self.smallest = 1e-300 ** (1.0 / max(alpha, 1.0))
        self.filled = 0
        zeros = torch.zeros(capacity, dtype=torch.float64, device=device)
        self._tree = SumTree(zeros, compiled=compiled)
        self._maxima = np.zeros(int(self._tree.starts[-1]) if self._tree.compiled else 0)
        self._refused = torch.zeros((), dtype=torch.bool, device=device)
        # Read without waiting: it lags behind, but is never wrong for long.
        pinned = self._refused.device.type == "cuda"
        self._refused_seen = torch.zeros((), dtype=torch.bool, pin_memory=pinned)

    @property
    def tree(self) -> SumTree:
        """The priorities^α: to be read."""
        return self._tree

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._tree.nodes.nbytes + self._maxima.nbytes

    def enter(self, slots: NDArray[np.int64], filled: int) -> None:
        """Gives new slots the largest priority of the others; 1 where there are none.

        Args:
          slots: [B] distinct, in 0 ... N − 1.
          filled: number of slots filled, with these.
        """
        tree = self._tree
        if filled != self.filled:
            self.filled = filled
        if tree.compiled:
            kernels.enter_at_maximum(
                tree.nodes.numpy(), tree.starts, self._maxima, tree.n, slots, 1.0
            )
            return
        items = torch.from_numpy(slots).to(tree.device)
        tree.scores.index_fill_(0, items, 0.0)
        largest = tree.scores.amax()
        largest = torch.where(largest > 0.0, largest, 1.0)
        tree.write_checked(items, largest.expand(len(items)))

    def update(self, slots: Tensor, signal: Tensor, epsilon: float, stamp: int, added: int) -> None:
        """Gives slots the priority |signal| + ε, unless they were overwritten; the last one stays.

        On another device than the CPU a bad signal is not waited for: no priority changes, and a
        later call raises.

        Args:
          slots: [B] long, filled ones.
          signal: [B] float32 or float64.
          epsilon: ε.
          stamp: number of transitions that had been added when the slots were drawn.
          added: that number now.

        Raises:
          ValueError: if a slot is not filled, or |signal| + ε not between `smallest` and `largest`.
        """
        tree = self._tree
        if tree.compiled:
            bad = kernels.update(
                tree.nodes.numpy(),
                tree.starts,
                self._maxima,
                tree.n,
                slots.contiguous().numpy(),
                signal.contiguous().numpy(),
                epsilon,
                self.alpha,
                (self.smallest, self.largest),
                stamp,
                added,
            )
            if bad >= 0 and not 0 <= int(slots[bad]) < self.filled:
                raise ValueError(
                    f"draw {bad} is slot {int(slots[bad])}, expected a filled one, 0 to "
                    f"{self.filled - 1}"
                )
            if bad >= 0:
                raise ValueError(
                    f"the signal of draw {bad} (slot {int(slots[bad])}) is {float(signal[bad]):g}, "
                    f"expected a finite number of at most {self.largest:g}"
                )
            return
        self.raise_refused(wait=False)
        priorities = signal.double().abs() + epsilon
        inside = (slots >= 0) & (slots < self.filled)
        good = (inside & (priorities >= self.smallest) & (priorities <= self.largest)).all()
        slots = slots.clamp(0, self.capacity - 1)
        intact = torch.remainder(slots - stamp, self.capacity) >= added - stamp
        before = tree.scores.index_select(0, slots)
        scores = torch.where(good & intact, priorities.pow(self.alpha), before)
        tree.write_checked(slots, scores)
        self._refused |= ~good
        self._refused_seen.copy_(self._refused, non_blocking=True)
        if tree.device.type == "cpu":
            self.raise_refused()

    def set(self, slots: Tensor, priorities: Tensor) -> None:
        """Writes priorities as they are; of several for the same slot the last one stays.

        Reads the values to check them, so on a CUDA device it waits for them.

        Args:
          slots: [B] long, filled ones.
          priorities: [B] positive.

        Raises:
          ValueError: if shapes differ, a slot is not filled, or a priority is not between
            `smallest` and `largest`. Nothing is written then.
        """
        if slots.dtype != torch.long or slots.shape != priorities.shape or slots.dim() != 1:
            raise ValueError(
                f"slots has shape {tuple(slots.shape)} and type {slots.dtype}, expected long of "
                f"shape {tuple(priorities.shape)}: one slot per priority"
            )
        slots = slots.to(self._tree.device)
        priorities = priorities.detach().to(self._tree.device, torch.float64)
        outside = (slots < 0) | (slots >= self.filled)
        if bool(outside.any()):
            first = int(slots[outside][0])
            raise ValueError(f"slot {first} is not filled, expected slots 0 to {self.filled - 1}")
        bad = ~((priorities >= self.smallest) & (priorities <= self.largest))
        if bool(bad.any()):
            raise ValueError(
                f"the priority of slot {int(slots[bad][0])} is {float(priorities[bad][0]):g}, "
                f"expected a positive number of at most {self.largest:g}"
            )
        self.update(slots, priorities, 0.0, self.filled, self.filled)

    def raise_refused(self, *, wait: bool = True) -> None:
        """Raises if a signal was bad, where `update` has not waited to see it.

        Args:
          wait: for the device; otherwise the last updates may still be under way.

        Raises:
          ValueError: if so; once.
        """
        if bool(self._refused if wait else self._refused_seen):
            self._refused.zero_()
            self._refused_seen.zero_()
            raise ValueError(
                "the signal of an update was NaN, infinite or too large, or its slots were not "
                f"filled ones; expected finite numbers of at most {self.largest:g}: no priority "
                "was changed"
            )

    def load(self, scores: Tensor) -> None:
        """Puts the tree into the state in which the first slots, filled, have these scores.

        Args:
          scores: [n] float64, positive: priorities^α, as `tree.scores` has them.
        """
        tree = self._tree
        everything = torch.zeros(tree.n, dtype=torch.float64, device=tree.device)
        everything[: len(scores)] = scores
        self._tree = SumTree(everything, compiled=tree.compiled)
        self.filled = len(scores)
        if tree.compiled:
            self._maxima[:] = 0.0
            kernels.raise_maxima(
                self._tree.nodes.numpy(), tree.starts, self._maxima, np.arange(len(scores))
            )

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds: the scores of the filled slots, and the α in them."""
        return {"scores": self._tree.scores[: self.filled].clone(), "alpha": self.alpha}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_extra_state` gave; `load_state_dict` has checked it."""
        self.load(state["scores"])

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        saved = state.get(prefix + "_extra_state")
        if saved is None:
            return
        # An older state does not say its α.
        scores, alpha = saved["scores"], saved.get("alpha", self.alpha)
        if alpha != self.alpha:
            raise ValueError(
                f"the state is of priorities with alpha {alpha}, expected {self.alpha}: make this "
                "one with the same alpha"
            )
        if scores.dim() != 1 or len(scores) > self.capacity:
            raise ValueError(
                f"the state's scores have shape {tuple(scores.shape)}, expected a vector of at "
                f"most {self.capacity}: make this one with the same capacity"
            )
        if not bool(((scores > 0.0) & (scores <= 1e301 / self.capacity)).all()):
            raise ValueError(
                "the state is damaged: a score is not a positive, finite number, as each filled "
                "slot's is"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = torch.empty(0, device=self._tree.device)
        if (after := fn(before).device) != before.device:
            raise ValueError(
                f"priorities cannot move from {before.device} to {after} alone, expected to stay "
                "beside their transitions: make the buffer with device="
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability; there is no τ, so there is no gradient."""
        self._check_given(len(items), given)
        tree = self._tree
        masses = tree.scores.index_select(0, items)
        q = tree.mixture(masses, self.uniform_share, self.filled)
        return q.masked_fill_(items >= self.filled, 0.0).log_()

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        tree = self._tree
        if self.filled == 0:
            raise ValueError("no slot is filled, expected at least 1: nothing can be drawn")
        uniforms = draw_uniforms(
            count, device=tree.device, generator=generator, stratified=self.stratified
        )
        return Draw(*tree.draw_mixture(uniforms, self.uniform_share, self.filled))
