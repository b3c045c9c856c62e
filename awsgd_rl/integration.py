"""Integrals and sums by importance sampling that improves while it samples (Bouchard 2015, §3).

For `E_p[f]` of any function, under any target whose density is known, from any proposal.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.estimators import Estimate
from awsgd_rl.validation import require_integer, require_non_negative
from awsgd_rl.weights import importance_weights

__all__ = ["Adaptation", "Integrator", "integrate"]

Function = Callable[[Tensor], Tensor]


class Adaptation(Protocol):
    """What moves a proposal after each batch: `ScoreFunctionAdaptation`, `TableAdaptation`."""

    def update(self, draw: Draw, signal: Tensor, log_p: Tensor) -> None:
        """Moves the proposal, by a draw and the norm of f at each item."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as a copy."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Integrator:
    """Minimal-variance importance sampling (Bouchard 2015, Algorithm 1).

    The estimate is the mean of f p / q, with each q as it was when the item was drawn. Given the
    past each term has the mean E_p[f] wherever q covers p, and terms are uncorrelated: so the mean
    is unbiased although q moves, and the square of the standard error as well, since
    `E Σ (X_t − X̄)² = (1 − 1/T) Σ Var X_t` needs no more than that (the martingale of Delyon &
    Portier 2018; Owen & Zhou 2020, §2). What the proposal never drew it knows nothing about.

    With `weight_exponent` = ½ batch k counts √k times (Owen & Zhou 2020: the square root rule):
    late batches, of a better proposal, count more. If the variance falls as k^−y, with any y in
    [0, 1], this is at most 9/8 of the best weighting's; for one that stands still 0 is best. The
    estimate stays unbiased; its standard error is then so up to O(1/T) and consistent.

    Args:
      function: [B] items to f, [B] or [B, ...], finite.
      log_target: [B] items to [B] log p; −inf where the target has no mass.
      proposal: q; it must cover p f.
      adaptation: what moves the proposal, by the norm of f; None leaves it as it is.
      weight_exponent: batch k counts k^weight_exponent; not negative.

    Raises:
      ValueError: if weight_exponent is negative, infinite or NaN; or the proposal is conditional.
    """

    def __init__(
        self,
        function: Function,
        log_target: Function,
        proposal: Proposal,
        adaptation: Adaptation | None = None,
        *,
        weight_exponent: float = 0.0,
    ) -> None:
        if proposal.conditional:
            raise ValueError(
                f"{type(proposal).__name__} is conditional, expected a proposal that depends on "
                "nothing: wrap it in one that passes `given` itself"
            )
        self.function, self.log_target = function, log_target
        self.proposal, self.adaptation = proposal, adaptation
        self.weight_exponent = require_non_negative("weight_exponent", weight_exponent)
        self.draws = 0
        """Number of items drawn so far."""
        self.batches = 0
        """Number of batches drawn so far."""
        # Sums of a_t, a_t², a_t X_t, a_t² X_t, a_t² X_t², where a_t is what term t counts, and X_t
        # is less the first batch's mean: their differences would lose digits otherwise.
        self._sums: list[Tensor] = []
        self._centre: Tensor | None = None

    @torch.no_grad()
    def step(self, batch_size: int = 1, *, generator: torch.Generator | None = None) -> None:
        """Draws a batch, adds it to the estimate, and moves the proposal.

        Args:
          batch_size: number of draws B from the same q; Algorithm 1 has 1.
          generator: a generator of the proposal's device; None takes PyTorch's own.

        Raises:
          ValueError: if the function or the target returns another shape, or something that is
            not finite. Neither the estimate nor the proposal moves then.
        """
        draw = self.proposal.draw(batch_size, generator=generator)
        values = self.function(draw.items).detach().to(torch.float64)
        log_p = self.log_target(draw.items).detach().to(torch.float64)
        self._check(draw, values, log_p)
        if self.adaptation is not None:
            signal = values.flatten(1).norm(dim=1) if values.dim() > 1 else values.abs()
            with torch.enable_grad():
                self.adaptation.update(draw, signal, log_p)
        weights = importance_weights(log_p, draw.log_q)
        self._add(weights.reshape(-1, *[1] * (values.dim() - 1)) * values)

    @property
    def estimate(self) -> Estimate:
        """Mean [...] and standard error [...], float64; the error of a single draw is NaN.

        Raises:
          ValueError: if nothing was drawn yet.
        """
        if self._centre is None:
            raise ValueError("nothing was drawn yet: call step() first")
        total, squares, first, second_linear, second = self._sums
        shift = first / total
        spread = second - 2.0 * shift * second_linear + shift.square() * squares
        variance = spread.clamp_min(0.0) / (total.square() - squares)
        return Estimate(self._centre + shift, variance.sqrt())

    def state_dict(self) -> dict[str, Any]:
        """A copy of all state, the proposal's and the adaptation's included."""
        return copy.deepcopy(
            {
                "draws": self.draws,
                "batches": self.batches,
                "sums": self._sums,
                "centre": self._centre,
                "proposal": self.proposal.state_dict(),
                "adaptation": None if self.adaptation is None else self.adaptation.state_dict(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; generators are the caller's.

        Args:
          state: of an integrator of the same function, proposal and adaptation.

        Raises:
          ValueError: if one of the two has an adaptation and the other has not.
        """
        if (state["adaptation"] is None) != (self.adaptation is None):
            raise ValueError(
                "one of the state and this integrator has an adaptation and the other has not, "
                "expected both or none"
            )
        state = copy.deepcopy(state)
        self.proposal.load_state_dict(state["proposal"])
        if self.adaptation is not None:
            self.adaptation.load_state_dict(state["adaptation"])
        self.draws, self.batches = state["draws"], state["batches"]
        self._sums, self._centre = state["sums"], state["centre"]

    def _add(self, terms: Tensor) -> None:
        if self._centre is None:
            self._centre = terms.mean(0)
            self._sums = [torch.zeros_like(self._centre) for _ in range(5)]
        self.draws += len(terms)
        self.batches += 1
        counts = float(self.batches) ** self.weight_exponent
        rest = terms - self._centre
        first, second = rest.sum(0), rest.square().sum(0)
        for total, more in zip(
            self._sums,
            (
                counts * len(terms),
                counts**2 * len(terms),
                counts * first,
                counts**2 * first,
                counts**2 * second,
            ),
            strict=True,
        ):
            total += more

    def _check(self, draw: Draw, values: Tensor, log_p: Tensor) -> None:
        count = len(draw.log_q)
        if values.shape[:1] != (count,) or log_p.shape != (count,):
            raise ValueError(
                f"the function returned shape {tuple(values.shape)} and the target "
                f"{tuple(log_p.shape)} for {count} items, expected [{count}, ...] and [{count}]"
            )
        if self._centre is not None and values.shape[1:] != self._centre.shape:
            raise ValueError(
                f"the function returned shape {tuple(values.shape)}, expected "
                f"[{count}, ...] with {tuple(self._centre.shape)} as before"
            )
        bad = ~values.flatten(1).isfinite().all(1) if values.dim() > 1 else ~values.isfinite()
        bad |= log_p.isnan() | (log_p == torch.inf)
        if bool(bad.any()):
            k = int(bad.long().argmax())
            raise ValueError(
                f"item {draw.items[k].tolist()} has f = {values[k].tolist()} and log p = "
                f"{log_p[k].item():g}, expected finite f, and log p finite or -inf"
            )


def integrate(
    function: Function,
    log_target: Function,
    proposal: Proposal,
    adaptation: Adaptation | None = None,
    *,
    draws: int,
    batch_size: int = 1,
    weight_exponent: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Callable[[int, Estimate], None] | None = None,
) -> Estimate:
    """E_p[f] from a number of draws, with its standard error: `Integrator` in one call.

    Args:
      function: [B] items to f, [B] or [B, ...], finite.
      log_target: [B] items to [B] log p.
      proposal: q; it must cover p f. It is moved.
      adaptation: what moves the proposal; None leaves it as it is.
      draws: number of items to draw, at least 2.
      batch_size: draws between two moves of the proposal; the last batch may be smaller.
      weight_exponent: as in `Integrator`.
      generator: a generator of the proposal's device; None takes PyTorch's own.
      progress: called after each batch with the draws so far and their estimate.

    Returns:
      The mean and its standard error, float64.

    Raises:
      ValueError: if a count is too small, or as `Integrator` and its `step`.
    """
    require_integer("draws", draws, minimum=2)
    require_integer("batch_size", batch_size)
    integrator = Integrator(
        function, log_target, proposal, adaptation, weight_exponent=weight_exponent
    )
    while integrator.draws < draws:
        integrator.step(min(batch_size, draws - integrator.draws), generator=generator)
        if progress is not None:
            progress(integrator.draws, integrator.estimate)
    return integrator.estimate
