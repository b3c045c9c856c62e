"""Proposals over a finite set of items, each with the exact probability of every draw.

Densities are float64 log densities. No draw waits for the device; whatever must read values
(construction, `TableProposal.set_scores`) checks them before any state changes.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.policies import GaussianPolicyProposal, PolicyProposal
from awsgd_rl.sampling import (
    check_scores,
    cumulative_scores,
    draw_uniforms,
    sample_from_cumulative,
)

__all__ = [
    "ClassProposal",
    "Draw",
    "GaussianPolicyProposal",
    "MixtureProposal",
    "PolicyProposal",
    "ProductProposal",
    "Proposal",
    "SoftmaxProposal",
    "TableProposal",
    "UniformProposal",
]


class UniformProposal(Proposal):
    """All n items alike.

    Args:
      n: number of items.

    Raises:
      ValueError: if n is below 1.
    """

    log_density: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = _check_size(n)
        self.register_buffer("log_density", torch.tensor(-math.log(n), dtype=torch.float64))

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] −log n, and −inf outside 0 ... n − 1."""
        self._check_given(len(items), given)
        return torch.where((items >= 0) & (items < self.n), self.log_density, -math.inf)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        device = self.log_density.device
        items = torch.randint(self.n, (count,), generator=generator, device=device)
        return Draw(items, self.log_density.repeat(count))


class TableProposal(Proposal):
    """A score per item: per-example gradient norms, a memory, replay priorities.

    q(i) = (1 − u) max(s_i, floor)^exponent / Σ_j max(s_j, floor)^exponent + u / n, over the n
    filled slots. Where all of these scores are 0, q is uniform. With floor = 0 and u = 0 an item
    of zero score is never drawn, and a mean that it takes part in is biased.

    A draw costs O(log N), the first one after a change of the scores O(N).

    Args:
      scores: [N] scores, or N: scores of 1. Copied.
      exponent: flattens (below 1) or sharpens the scores; 0 is uniform.
      floor: smallest score.
      uniform_share: u, the share of uniform draws: weights then stay below 1 / u.

    Raises:
      ValueError: if a score is negative, infinite or NaN, or a setting is out of range.
    """

    scores: Tensor
    filled_slots: Tensor
    _table: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        scores: Tensor | int,
        *,
        exponent: float = 1.0,
        floor: float = 0.0,
        uniform_share: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(scores, int):
            scores = torch.ones(_check_size(scores), dtype=torch.float64)
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
        self.register_buffer("scores", scores)
        self.register_buffer("filled_slots", torch.tensor(len(scores)))
        self.register_load_state_dict_post_hook(_reload_table)  # type: ignore[no-untyped-call]
        self._filled = len(scores)
        self._table = None

    @property
    def filled(self) -> int:
        """Number n of slots that can be drawn: the first n."""
        return self._filled

    def fill(self, filled: int) -> None:
        """Sets how many slots, from the first, can be drawn: for a memory that is filling up.

        Args:
          filled: from 0 (nothing can be drawn yet) to N.

        Raises:
          ValueError: if filled is out of range.
        """
        if not 0 <= filled <= len(self.scores):
            raise ValueError(
                f"filled is {filled}, expected between 0 and the table's {len(self.scores)} slots"
            )
        self.filled_slots.fill_(filled)
        self._filled = filled
        self._table = None

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
        scores = check_scores(scores, largest=self._largest)
        if items.shape != scores.shape or items.dtype != torch.long:
            raise ValueError(
                f"items has shape {tuple(items.shape)} and type {items.dtype}, "
                f"expected long of shape {tuple(scores.shape)}: one item per score"
            )
        low, high = (bound.item() for bound in torch.aminmax(items))
        if low < 0 or high >= len(self.scores):
            raise ValueError(
                f"items range from {low} to {high}, expected 0 to {len(self.scores) - 1}"
            )
        if self.scores.device.type == "cpu":
            # NumPy promises that the last write to an item stays, torch does not.
            self.scores.numpy()[items.numpy()] = scores.numpy()
        else:
            self.scores.index_copy_(0, items, scores[_last_write(items)])
        self._table = None

    def probabilities(self) -> Tensor:
        """[N] float64, the probability of every item; sums to 1."""
        return self._current()[0].clone()

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability; a table has no τ, so there is no gradient."""
        self._check_given(len(items), given)
        return self._current()[0].index_select(0, items).log()

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        probabilities, cumulative = self._current()
        uniforms = draw_uniforms(count, device=cumulative.device, generator=generator)
        items = sample_from_cumulative(cumulative, uniforms)
        return Draw(items, probabilities.index_select(0, items).log())

    def _current(self) -> tuple[Tensor, Tensor]:
        scores, n = self.scores, self._filled
        if self._table is not None and self._table[0].device == scores.device:
            return self._table
        if n == 0:
            raise ValueError("no slot of the table is filled: call fill(n) first")
        slots = len(scores)
        scores = scores[:n] if n < slots else scores
        if self.floor > 0.0:
            scores = scores.clamp_min(self.floor)
        if self.exponent != 1.0:
            scores = scores.pow(self.exponent)
        # 0/0 only where all scores are 0.
        probabilities = (scores / scores.sum()).nan_to_num_(nan=1.0 / n)
        if self.uniform_share > 0.0:
            probabilities.mul_(1.0 - self.uniform_share).add_(self.uniform_share / n)
        if n < slots:
            probabilities = nn.functional.pad(probabilities, (0, slots - n))
        self._table = probabilities, cumulative_scores(probabilities)
        return self._table


def _last_write(items: Tensor) -> Tensor:
    """[B] for each write, the position of the last write to the same item."""
    ordered, order = torch.sort(items, stable=True)
    return order[torch.searchsorted(ordered, items, right=True) - 1]


def _reload_table(module: Any, _incompatible_keys: Any) -> None:
    # A function of the module, not a closure over one: a deep copy must reload itself.
    check_scores(module.scores, "the loaded scores", module._largest)
    module.fill(int(module.filled_slots))


class SoftmaxProposal(Proposal):
    """q = softmax(τ), a number per item (Bouchard 2015, eq. 17), at first uniform.

    Args:
      n: number of items.

    Raises:
      ValueError: if n is below 1.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(_check_size(n), dtype=torch.float64))

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log softmax(τ) at the items, differentiable in τ."""
        self._check_given(len(items), given)
        return self.tau.log_softmax(0).index_select(0, items)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        log_q = self.tau.log_softmax(0)
        uniforms = draw_uniforms(count, device=log_q.device, generator=generator)
        items = sample_from_cumulative(cumulative_scores(log_q.exp()), uniforms)
        return Draw(items, log_q.index_select(0, items))


class ClassProposal(Proposal):
    """A class by softmax(τ), then an item of that class uniformly: q(i) = softmax(τ)_y(i) / n_y(i).

    τ = 0 draws all classes equally often. With two classes and τ = (0, t) it is the form of
    Bouchard 2015, eq. 12 (a density relative to the uniform one): n q(i) = n / n(y) ς(y t).

    Args:
      labels: [N] long, the class of each item. Copied.
      n_classes: number of classes K, each with one or more items.
      tau: [K] first τ; None is zeros.

    Raises:
      ValueError: if labels is not a non-empty vector, a label is out of range, a class is empty,
        or τ has another shape or a NaN or infinite entry.
    """

    labels: Tensor
    _members: Tensor
    _first: Tensor
    _sizes: Tensor

    def __init__(self, labels: Tensor, n_classes: int, tau: Tensor | None = None) -> None:
        super().__init__()
        if labels.dim() != 1 or labels.numel() == 0 or labels.dtype != torch.long:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and type {labels.dtype}, "
                "expected a vector of long"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"labels range from {low} to {high}, expected 0 to {n_classes - 1}")
        sizes = torch.bincount(labels, minlength=n_classes)
        if int(sizes.min()) == 0:
            raise ValueError(
                f"class {int(sizes.argmin())} has no items, expected one or more in each of the "
                f"{n_classes}: number the classes that occur from 0"
            )
        tau = torch.zeros(n_classes) if tau is None else tau.detach()
        if tau.shape != (n_classes,) or not bool(tau.isfinite().all()):
            raise ValueError(f"tau is {tau.tolist()}, expected {n_classes} finite numbers")
        self.tau = nn.Parameter(tau.to(labels.device, torch.float64, copy=True))
        self.register_buffer("labels", labels.clone())
        self.register_buffer("_members", torch.argsort(labels, stable=True), persistent=False)
        self.register_buffer("_first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("_sizes", sizes, persistent=False)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log softmax(τ) of the item's class, less the log of its size; differentiable in τ."""
        self._check_given(len(items), given)
        log_q = self.tau.log_softmax(0) - self._sizes.to(torch.float64).log()
        return log_q.index_select(0, self.labels.index_select(0, items))

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        cumulative = cumulative_scores(self.tau.softmax(0))
        uniforms = draw_uniforms(2 * count, device=cumulative.device, generator=generator)
        classes = sample_from_cumulative(cumulative, uniforms[:count])
        sizes = self._sizes.index_select(0, classes)
        within = (uniforms[count:] * sizes).long().minimum(sizes - 1)
        items = self._members.index_select(0, self._first.index_select(0, classes) + within)
        return Draw(items, self.log_prob(items))


class ProductProposal(Proposal):
    """Independent rows and columns: items are pairs, q(i, j) = rows(i) columns(j).

    Bouchard 2015, eq. 18, with any two proposals in place of the two softmax.

    Args:
      rows: proposal of the first entry.
      columns: proposal of the second entry.

    Raises:
      ValueError: if one of them is conditional.
    """

    def __init__(self, rows: Proposal, columns: Proposal) -> None:
        super().__init__()
        if rows.conditional or columns.conditional:
            raise ValueError("rows and columns must not be conditional proposals")
        self.rows, self.columns = rows, columns

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log density of [B, 2] pairs, differentiable in the τ of both."""
        self._check_given(len(items), given)
        if items.dim() != 2 or items.shape[1] != 2:
            raise ValueError(f"items has shape {tuple(items.shape)}, expected [B, 2]")
        return self.rows.log_prob(items[:, 0]) + self.columns.log_prob(items[:, 1])

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        rows = self.rows.draw(count, generator=generator)
        columns = self.columns.draw(count, generator=generator)
        return Draw(torch.stack((rows.items, columns.items), 1), rows.log_q + columns.log_q)


class MixtureProposal(Proposal):
    """Each draw from component k with probability share_k; its density is that of the mixture.

    The weight p / q is then the balance heuristic (Veach & Guibas 1995). Every draw takes one of
    each component and keeps one, so that no draw waits for the device.

    Args:
      components: proposals over the same items. `given` goes to the conditional ones.
      shares: probabilities of the components, sum to 1.

    Raises:
      ValueError: if there are no components, or the shares do not fit.
    """

    shares: Tensor

    def __init__(self, components: Sequence[Proposal], shares: Sequence[float]) -> None:
        super().__init__()
        if len(components) == 0 or len(shares) != len(components):
            raise ValueError(
                f"got {len(components)} components and {len(shares)} shares, "
                "expected one or more components and a share for each"
            )
        values = check_scores(torch.tensor(list(shares), dtype=torch.float64), "shares")
        if abs(values.sum().item() - 1.0) > 1e-9:
            raise ValueError(f"shares sum to {values.sum().item():g}, expected 1")
        self.components = nn.ModuleList(components)
        self.conditional = any(component.conditional for component in components)
        self.register_buffer("shares", values)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log Σ_k share_k q_k, differentiable in the τ of all components."""
        return (self.log_components(items, given=given) + self.shares.log()).logsumexp(1)

    def log_components(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B, K] log density under each component, for `weights.balance_heuristic`."""
        self._check_given(len(items), given)
        logs = [
            component.log_prob(items, given=given if component.conditional else None)
            for component in self._proposals()
        ]
        return torch.stack(logs, 1)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        uniforms = draw_uniforms(count, device=self.shares.device, generator=generator)
        chosen = sample_from_cumulative(cumulative_scores(self.shares), uniforms)
        drawn = [
            component.draw(
                count, generator=generator, given=given if component.conditional else None
            ).items
            for component in self._proposals()
        ]
        items = torch.stack(drawn)[chosen, torch.arange(count, device=chosen.device)]
        return Draw(items, self.log_prob(items, given=given))

    def _proposals(self) -> list[Proposal]:
        return [cast("Proposal", component) for component in self.components]


def _check_size(n: int) -> int:
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1 item")
    return n
