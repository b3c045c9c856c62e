"""Rules that move a proposal so that the weighted gradient varies less.

A rule takes a draw, the *signal* (an estimate of each item's unweighted gradient norm) and the log
density of the target. The weight is made here, from the density that the draw kept.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.proposals import ClassProposal, SoftmaxProposal, TableProposal
from awsgd_rl.sampling import check_scores
from awsgd_rl.weights import importance_weights

_TINY = torch.finfo(torch.float64).tiny


def leave_one_out_mean(x: Tensor) -> Tensor:
    """For each entry the mean of the others.

    Args:
      x: [B].

    Returns:
      [B] float64; 0 for B = 1, where there are no others.
    """
    x = x.to(torch.float64)
    return (x.sum() - x) / max(len(x) - 1, 1)


def centred(x: Tensor) -> Tensor:
    """Each entry less the mean of the others.

    In a score-function estimate this lowers the variance and keeps the expectation:
    the mean of the others is independent of the draw, and `E_q[∇ log q] = 0`.

    Args:
      x: [B], one number per independent draw.

    Returns:
      [B] float64, sums to 0; x itself for B = 1.
    """
    return x.to(torch.float64) - leave_one_out_mean(x)


def score_function_coefficients(
    squared_norms: Tensor, *, scale: Tensor | float = 1.0, centre: bool = True
) -> Tensor:
    """The c_b with which τ += η mean_b c_b ∇_τ log q(x_b) lowers E_q‖w ∇f‖².

    `∇_τ E_q‖w ∇f‖² = −E_q[‖w ∇f‖² ∇_τ log q]` (Bouchard 2015, eq. 11), so c_b is ‖w_b ∇f(x_b)‖²,
    centred, and divided by a scale. With scale = 1 the expectation of the step is exact, centred
    or not.

    Args:
      squared_norms: [B] ‖w ∇f‖², squared norms of the weighted gradients; for Algorithm 3 each
        divided by the time that it took to get the item.
      scale: positive divisor, since ‖w ∇f‖² changes by orders of magnitude during training.
      centre: subtract the mean of the others; draws must be independent.

    Returns:
      [B] float64, without gradient.
    """
    coefficients = squared_norms.detach().to(torch.float64)
    if centre:
        coefficients = centred(coefficients)
    return coefficients / scale


class RunningScale(nn.Module):
    """Running mean of the batches' means, of unit weight from the first batch on.

    mean_t = Σ_s decay^(t − s) m_s / Σ_s decay^(t − s), with m_s the mean of batch s.

    Args:
      decay: how much of the past is kept per batch, in [0, 1).

    Raises:
      ValueError: if decay is out of range.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay}, expected at least 0 and below 1")
        self.decay = decay
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def update(self, x: Tensor) -> Tensor:
        """Takes in a batch and returns the new mean.

        Args:
          x: [B] non-negative.

        Returns:
          [] float64, positive.
        """
        self.total.mul_(self.decay).add_(x.detach().to(self.total).mean())
        self.weight.mul_(self.decay).add_(1.0)
        return self.mean()

    def mean(self) -> Tensor:
        """[] the mean of what was taken in; positive, so that it can divide."""
        return (self.total / self.weight.clamp_min(1.0)).clamp_min(_TINY)


class ScoreFunctionAdaptation:
    """AW-SGD (Bouchard 2015, Algorithm 2): τ descends the second moment of the weighted gradient.

    Minimising the second moment speeds up SGD, with momentum too. With RMSProp and Adam on the
    model's parameters the norm-proportional proposal is not the optimum (Lahire 2023, §3.2).

    With `scale`, the squared norms are divided by their running mean, the batch at hand included:
    no coefficient exceeds B / (1 − decay), so that one outlier cannot throw τ far; in exchange
    the mean step is not exactly along the gradient.

    Args:
      proposal: the proposal, with parameters τ.
      optimizer: any optimizer over τ, or a part of it; its learning rate is η.
      centre: subtract from each squared norm the mean of the others (`centred`).
      scale: divide by a `RunningScale`; False is Algorithm 2 to the letter.

    Raises:
      ValueError: if the optimizer holds a parameter that is not the proposal's.
    """

    def __init__(
        self,
        proposal: Proposal,
        optimizer: torch.optim.Optimizer,
        *,
        centre: bool = True,
        scale: bool = True,
    ) -> None:
        held = [tau for group in optimizer.param_groups for tau in group["params"]]
        owned = {id(tau) for tau in proposal.parameters()}
        if not held or any(id(tau) not in owned for tau in held):
            raise ValueError(
                f"the optimizer holds parameters that are not the {type(proposal).__name__}'s, "
                "expected an optimizer over proposal.parameters()"
            )
        self.proposal, self.optimizer, self.centre = proposal, optimizer, centre
        self.scale = RunningScale().to(held[0].device) if scale else None
        self._tau: list[Tensor] = held

    def update(
        self,
        draw: Draw,
        signal: Tensor,
        log_p: Tensor,
        *,
        cost: Tensor | None = None,
        given: Tensor | None = None,
    ) -> None:
        """One step of τ. Reads the signal to check it, so on a CUDA device it waits for it.

        Args:
          draw: the draw, as the proposal returned it: independent draws if `centre`.
          signal: [B] norm of each item's gradient, without the importance weight.
          log_p: [B] log density of each item under the target.
          cost: [B] access time of each draw (Algorithm 3), in any unit.
          given: [B, ...] what the draw was conditioned on.

        Raises:
          ValueError: if a shape is wrong, a signal is negative, infinite or NaN, its weighted
            square is not finite, or a cost is not positive. Neither τ nor the scale moves then.
        """
        coefficients = self._compiled_coefficients(draw, signal, log_p, cost)
        if coefficients is None:
            coefficients = self._coefficients(draw, signal, log_p, cost)
        for tau, gradient in zip(
            self._tau, self._gradients(draw.items, coefficients, given), strict=True
        ):
            tau.grad = gradient
        self.optimizer.step()
        for tau in self._tau:
            tau.grad = None

    def _coefficients(
        self, draw: Draw, signal: Tensor, log_p: Tensor, cost: Tensor | None
    ) -> Tensor:
        signal = _check_signal(signal, draw)
        squared_norms = (importance_weights(log_p, draw.log_q) * signal).square()
        check_scores(squared_norms, "the squared norm of the weighted gradient")
        if cost is not None:
            if cost.shape != signal.shape or not bool((cost > 0.0).all()):
                raise ValueError(
                    f"cost has shape {tuple(cost.shape)} and minimum {cost.min().item():g}, "
                    f"expected {tuple(signal.shape)} positive times"
                )
            squared_norms = squared_norms / cost.to(squared_norms)
        scale = 1.0 if self.scale is None else self.scale.update(squared_norms)
        return score_function_coefficients(squared_norms, scale=scale, centre=self.centre)

    def _compiled_coefficients(
        self, draw: Draw, signal: Tensor, log_p: Tensor, cost: Tensor | None
    ) -> Tensor | None:
        """As `_coefficients`; None on other devices, and for what is refused there by name."""
        log_q, costs = draw.log_q, signal[:0] if cost is None else cost
        if not (signal.is_cpu and log_p.is_cpu and log_q.is_cpu and costs.is_cpu):
            return None
        shape = signal.shape
        if signal.dim() != 1 or log_p.shape != shape or log_q.shape != shape:
            return None
        if cost is not None and cost.shape != shape:
            return None
        from awsgd_rl import adaptation_kernels

        scale = self.scale
        state = (
            (0.0, 0.0, -1.0)
            if scale is None
            else (scale.total.item(), scale.weight.item(), scale.decay)
        )
        made, total, weight = adaptation_kernels.coefficients(
            _float64(log_p), _float64(log_q), _float64(signal), _float64(costs), self.centre, state
        )
        if len(made) == 0:
            return None
        if scale is not None:
            scale.total.fill_(total)
            scale.weight.fill_(weight)
        return torch.from_numpy(made)

    def _gradients(
        self, items: Tensor, coefficients: Tensor, given: Tensor | None
    ) -> Sequence[Tensor | None]:
        """The gradients of −mean_b c_b log q(x_b) in what the optimizer holds of τ."""
        if isinstance(self.proposal, SoftmaxProposal | ClassProposal) and given is None:
            # The closed form is a fraction of the cost of autograd.
            return [self.proposal.score_sum(items, coefficients) / -len(items)]
        log_q = self.proposal.log_prob(items, given=given)
        # Not backward(): what shares a network with the proposal keeps its own gradients.
        loss = -(coefficients * log_q).mean()
        return torch.autograd.grad(loss, self._tau, allow_unused=True)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state of the optimizer and the running scale; the proposal has its own."""
        scale = None if self.scale is None else self.scale.state_dict()
        return copy.deepcopy({"optimizer": self.optimizer.state_dict(), "scale": scale})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of an adaptation with the same settings.

        Raises:
          ValueError: if one of the two has a scale and the other has not.
        """
        if (state["scale"] is None) != (self.scale is None):
            raise ValueError("the state was saved with another setting of `scale`")
        # A torch optimizer would share its tensors with the state that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])


class TableAdaptation:
    """A table that remembers each item's gradient norm: s_i ← decay s_i + (1 − decay) signal.

    For a uniform target the best proposal is proportional to the norms (Needell 2014; Lahire 2023,
    §2.1), and the table is a noisy, outdated copy of them (Salaün 2025). Replay priorities are the
    same rule with another signal.

    Args:
      proposal: the table. A floor or a uniform share keeps items of small signal in play.
      decay: how much of the old score stays, in [0, 1).

    Raises:
      ValueError: if decay is out of range.
    """

    def __init__(self, proposal: TableProposal, *, decay: float = 0.0) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay}, expected at least 0 and below 1")
        self.proposal, self.decay = proposal, decay

    def update(self, draw: Draw, signal: Tensor, log_p: Tensor | None = None) -> None:
        """Writes the scores of the drawn items; of several for one item the last stays.

        Args:
          draw: the draw, as the table returned it.
          signal: [B] norm of each item's gradient, without the importance weight.
          log_p: [B] log density of each item under the target, which must be uniform over the
            table. For another target pass p ‖∇f‖, up to a constant, as the signal.

        Raises:
          ValueError: if a shape is wrong, a signal is negative, infinite or NaN, or log_p is not
            constant. Nothing is written then.
        """
        _check_shape(signal, draw)
        if log_p is not None:
            low, high = (bound.item() for bound in torch.aminmax(log_p))
            if not high - low <= 1e-6:
                raise ValueError(
                    f"log_p ranges from {low:g} to {high:g}, expected a uniform target: "
                    "for another pass p times the norm as the signal, and leave log_p out"
                )
        if self.decay > 0.0:
            signal = check_scores(signal, "signal")
            old = self.proposal.scores.index_select(0, draw.items)
            signal = self.decay * old + (1.0 - self.decay) * signal
        self.proposal.set_scores(draw.items, signal)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the scores are the table's own state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: an empty dictionary.

        Raises:
          ValueError: if it is not empty.
        """
        if state:
            raise ValueError(f"got a state with {sorted(state)}, expected an empty one")


def _float64(x: Tensor) -> Any:
    return x.detach().to(torch.float64).numpy()


def _check_signal(signal: Tensor, draw: Draw) -> Tensor:
    _check_shape(signal, draw)
    return check_scores(signal, "signal")


def _check_shape(signal: Tensor, draw: Draw) -> None:
    if signal.shape != draw.log_q.shape:
        raise ValueError(
            f"signal has shape {tuple(signal.shape)}, expected {tuple(draw.log_q.shape)}: "
            "one norm per draw"
        )
