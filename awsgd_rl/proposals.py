"""Proposals over a finite set of items, each with the exact probability of every draw.

Densities are float64 log densities. No draw waits for the device; whatever must read values
(construction, `TableProposal.set_scores`) checks them before any state changes.
"""

import math
from collections.abc import Mapping, Sequence
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
from awsgd_rl.table import TableProposal

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

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        super()._check_state(state, prefix)
        saved, log_density = state.get(prefix + "log_density"), -math.log(self.n)
        if not isinstance(saved, Tensor) or saved.numel() != 1:
            return
        if not math.isclose(float(saved), log_density, rel_tol=1e-14):
            raise ValueError(
                f"the state has log density {float(saved):.6g}, expected {log_density:.6g}: it is "
                f"of another number of items than {self.n}"
            )

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] −log n, and −inf outside 0 ... n − 1."""
        self._check_given(len(items), given)
        return torch.where((items >= 0) & (items < self.n), self.log_density, -math.inf)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        device = self.log_density.device
        items = torch.randint(self.n, (count,), generator=generator, device=device)
        return Draw(items, self.log_density.repeat(count))


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

    def score_sum(self, items: Tensor, coefficients: Tensor) -> Tensor:
        """[n] Σ_b c_b ∇_τ log q(x_b) in closed form, as `ClassProposal.score_sum`."""
        q = self.tau.detach().softmax(0)
        return (q * -coefficients.sum()).index_add_(0, items, coefficients)

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
        sizes = _class_sizes(labels, n_classes)
        tau = torch.zeros(n_classes) if tau is None else tau.detach()
        if tau.shape != (n_classes,) or not bool(tau.isfinite().all()):
            raise ValueError(f"tau is {tau.tolist()}, expected {n_classes} finite numbers")
        self.tau = nn.Parameter(tau.to(labels.device, torch.float64, copy=True))
        self.register_buffer("labels", labels.clone())
        for name in ("_members", "_first", "_sizes"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._sort(sizes)

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        super()._check_state(state, prefix)
        labels = state.get(prefix + "labels")
        if isinstance(labels, Tensor) and labels.shape == self.labels.shape:
            _class_sizes(labels.to(self.labels.dtype), len(self.tau))

    def _follow_state(self) -> None:
        self._sort(_class_sizes(self.labels, len(self.tau)))

    def _sort(self, sizes: Tensor) -> None:
        self._members = torch.argsort(self.labels, stable=True)
        self._first, self._sizes = sizes.cumsum(0) - sizes, sizes

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log softmax(τ) of the item's class, less the log of its size; differentiable in τ."""
        self._check_given(len(items), given)
        log_q = self.tau.log_softmax(0) - self._sizes.to(torch.float64).log()
        return log_q.index_select(0, self.labels.index_select(0, items))

    def score_sum(self, items: Tensor, coefficients: Tensor) -> Tensor:
        """Σ_b c_b ∇_τ log q(x_b) in closed form: per class Σ c_b less softmax(τ) times the total.

        Args:
          items: [B].
          coefficients: [B] float64 c.

        Returns:
          [K].
        """
        tau = self.tau.detach()
        if tau.device.type == "cpu":
            from awsgd_rl import class_kernels

            arrays = (x.numpy() for x in (tau, self.labels, items, coefficients))
            return torch.from_numpy(class_kernels.score_sum(*arrays))
        classes = self.labels.index_select(0, items)
        return (tau.softmax(0) * -coefficients.sum()).index_add_(0, classes, coefficients)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        device = self.tau.device
        return self._draw_of(draw_uniforms(2 * count, device=device, generator=generator))

    def _draw_of(self, uniforms: Tensor) -> Draw:
        tau = self.tau.detach()
        if tau.device.type != "cpu" or tau.dtype != torch.float64:
            return self._draw_by_tensors(uniforms)
        from awsgd_rl import class_kernels

        arrays = (x.numpy() for x in (tau, self._members, self._first, self._sizes, uniforms))
        return Draw(*map(torch.from_numpy, class_kernels.draw(*arrays)))

    def _draw_by_tensors(self, uniforms: Tensor) -> Draw:
        count = len(uniforms) // 2
        cumulative = cumulative_scores(self.tau.softmax(0))
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
        if _is_stratified(self.rows) and _is_stratified(self.columns):
            # Row b and column b are both of stratum b: only in another order are they independent.
            device = columns.items.device
            order = torch.randperm(count, generator=generator, device=device)
            columns = Draw(*(x.index_select(0, order) for x in columns))
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
        values = _check_shares(torch.tensor(list(shares), dtype=torch.float64))
        self.components = nn.ModuleList(components)
        self.conditional = any(component.conditional for component in components)
        self.register_buffer("shares", values)

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        super()._check_state(state, prefix)
        shares = state.get(prefix + "shares")
        if isinstance(shares, Tensor) and shares.shape == self.shares.shape:
            _check_shares(shares.to(self.shares.dtype))

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


def _is_stratified(proposal: Proposal) -> bool:
    return any(getattr(part, "stratified", False) for part in proposal.modules())


def _check_shares(shares: Tensor) -> Tensor:
    check_scores(shares, "shares")
    if abs(shares.sum().item() - 1.0) > 1e-9:
        raise ValueError(f"shares sum to {shares.sum().item():g}, expected 1")
    return shares


def _check_size(n: int) -> int:
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1 item")
    return n


def _class_sizes(labels: Tensor, n_classes: int) -> Tensor:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        raise ValueError(f"labels range from {low} to {high}, expected 0 to {n_classes - 1}")
    sizes = torch.bincount(labels, minlength=n_classes)
    if int(sizes.min()) == 0:
        raise ValueError(
            f"class {int(sizes.argmin())} has no items, expected one or more in each of the "
            f"{n_classes}: number the classes that occur from 0"
        )
    return sizes
