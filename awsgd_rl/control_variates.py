"""Control variates: what is known of the gradient is integrated exactly, the rest is sampled.

With h(x; ψ) of known mean, `d = w (∇f − h) + E_p[h]`, w = p / q, is an unbiased gradient for every
ψ, and exact for h = ∇f. Bouchard (2015, §2) learn ψ beside τ. Draws of q make the covariance

    Σ(τ, ψ) = E_q‖w (∇f − h)‖² − ‖E_p[∇f] − E_p[h]‖²    (its trace, for one draw)
    ∇_τ Σ = −E_q[ ‖w (∇f − h)‖² ∇_τ log q ]
    ∇_ψ Σ = −2 E_q[ w² (∇f − h)ᵀ ∂h ] + 2 (E_p[∇f] − E_p[h])ᵀ ∂E_p[h]

so the signal that moves τ is ‖∇f − h‖, with any adaptation, and ψ descends `control_variate_loss`.
The estimate itself, with its standard error, is `estimators.control_variate_estimate`.

They pay where gradients share a part that can be told in advance, and ‖∇f − h‖ costs little:
means by class or cluster for few parameters, a snapshot of the model for convex problems. For
deep networks snapshots are out of date too soon (Defazio & Bottou 2019).
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from awsgd_rl.estimators import weighted_mean
from awsgd_rl.validation import require_positive
from awsgd_rl.weights import importance_weights

__all__ = ["LinearControlVariate", "SnapshotControlVariate", "control_variate_loss", "group_means"]


def control_variate_loss(
    values: Tensor, controls: Tensor, control_mean: Tensor, log_p: Tensor, log_q: Tensor
) -> Tensor:
    """A loss whose gradient in ψ is, in expectation, that of the variance of one draw.

    `mean_b [ ‖w_b (f_b − h_b)‖² + 2 w_b (f_b − h_b)ᵀ E_p[h] ]`, with no gradient through the
    second (f_b − h_b): its mean is the unknown E_p[f] − E_p[h], and ∂E_p[h] is known, so that
    single draws suffice. The value of the loss means nothing.

    Args:
      values: [B] or [B, ...] f of each draw.
      controls: as values, h of each draw, differentiable in ψ.
      control_mean: [] or [...] the exact E_p[h], differentiable in ψ.
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.

    Returns:
      [] float64.

    Raises:
      ValueError: if shapes differ.
    """
    if controls.shape != values.shape or control_mean.shape != values.shape[1:]:
        raise ValueError(
            f"controls has shape {tuple(controls.shape)} and their mean "
            f"{tuple(control_mean.shape)}, expected {tuple(values.shape)} and "
            f"{tuple(values.shape[1:])}, as the values"
        )
    weights = importance_weights(log_p, log_q).reshape(-1, *[1] * (values.dim() - 1))
    rest = weights * (values.detach() - controls)
    linear = 2.0 * (rest.detach().mean(0) * control_mean).sum()
    return rest.square().sum() / len(values) + linear


class LinearControlVariate(nn.Module):
    """h(x; ψ) = ψᵀ φ(x), with the exact mean ψᵀ E_p[φ] over a finite data set.

    With φ the one-hot class or cluster of an item, ψ is a stored mean gradient per group, as SAGA
    stores one per example (Defazio 2014): see `group_means`. ψ is learned from earlier draws, by
    any optimizer on `control_variate_loss` or by `fit`; with a ψ fitted to the draws that it then
    corrects, the estimate would be biased by O(1/B).

    Args:
      feature_mean: [K] E_p[φ], for a uniform target `features.mean(0)` over the data set.
      shape: shape [...] of f for one item; () for numbers.

    Raises:
      ValueError: if feature_mean is not a vector of finite numbers.
    """

    feature_mean: Tensor

    def __init__(self, feature_mean: Tensor, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        if feature_mean.dim() != 1 or not bool(feature_mean.isfinite().all()):
            raise ValueError(
                f"feature_mean has shape {tuple(feature_mean.shape)}, expected a vector of finite "
                "numbers: the mean of the features over the data set"
            )
        mean = feature_mean.detach().to(torch.float64)
        self.register_buffer("feature_mean", mean.clone())
        self.psi = nn.Parameter(torch.zeros(len(mean), *shape, dtype=torch.float64).to(mean.device))

    def forward(self, features: Tensor) -> Tensor:
        """[B, ...] float64, h of items with the features φ [B, K]; differentiable in ψ."""
        if features.dim() != 2 or features.shape[1] != len(self.psi):
            raise ValueError(
                f"features has shape {tuple(features.shape)}, expected [B, {len(self.psi)}]"
            )
        values: Tensor = torch.tensordot(features.to(torch.float64), self.psi, 1)
        return values

    def mean(self) -> Tensor:
        """[...] float64, the exact E_p[h]; differentiable in ψ."""
        mean: Tensor = torch.tensordot(self.feature_mean, self.psi, 1)
        return mean

    @torch.no_grad()
    def fit(
        self,
        values: Tensor,
        features: Tensor,
        log_p: Tensor,
        log_q: Tensor,
        *,
        ridge: float = 1e-3,
    ) -> None:
        """Sets ψ to what would have made earlier draws vary least.

        Least squares of w f on w φ − E_p[φ], which has the mean 0, each less its own mean.

        Args:
          values: [B, ...] f of each earlier draw.
          features: [B, K] φ of each.
          log_p: [B] log density of each under the target.
          log_q: [B] log density of each under the proposal, as it was when it was drawn.
          ridge: added to the normal equations, relative to their mean diagonal; positive.

        Raises:
          ValueError: if shapes do not fit, ridge is not positive, or there are fewer than two
            draws. ψ does not move then.
        """
        require_positive("ridge", ridge)
        if values.shape != (len(features), *self.psi.shape[1:]) or len(features) < 2:
            raise ValueError(
                f"values has shape {tuple(values.shape)}, expected "
                f"{(len(features), *self.psi.shape[1:])} with 2 or more draws"
            )
        self(features[:1])
        weights = importance_weights(log_p, log_q).unsqueeze(1)
        controls = weights * features.to(torch.float64) - self.feature_mean
        targets = weights * values.detach().to(torch.float64).reshape(len(values), -1)
        controls, targets = controls - controls.mean(0), targets - targets.mean(0)
        normal = controls.T @ controls
        # One-hot features under a uniform q leave the normal equations singular without it.
        diagonal = ridge * normal.diagonal().mean()
        normal.diagonal().add_(diagonal.clamp_min(torch.finfo(torch.float64).tiny))
        psi = torch.linalg.solve(normal, controls.T @ targets)
        self.psi.copy_(psi.reshape(self.psi.shape))


def group_means(values: Tensor, groups: Tensor, old: Tensor, *, decay: float = 0.9) -> Tensor:
    """Running mean of f by group: ψ of a `LinearControlVariate` with one-hot features.

    Of the groups that occur, c_k ← decay c_k + (1 − decay) mean of f over the group's draws. The
    draws of a group must be uniform in it, as `ClassProposal`'s are; else weight the values.

    Args:
      values: [B, ...] f of each draw.
      groups: [B] long, from 0 to K − 1.
      old: [K, ...] the means so far.
      decay: how much of the old mean stays, in [0, 1).

    Returns:
      [K, ...] the new means, in the type of the old ones.

    Raises:
      ValueError: if shapes differ, a group is out of range, or decay is.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}, expected at least 0 and below 1")
    if groups.shape != values.shape[:1] or old.shape[1:] != values.shape[1:]:
        raise ValueError(
            f"values has shape {tuple(values.shape)}, groups {tuple(groups.shape)} and old "
            f"{tuple(old.shape)}, expected [B, ...], [B] and [K, ...]"
        )
    low, high = (int(bound) for bound in torch.aminmax(groups))
    if low < 0 or high >= len(old):
        raise ValueError(f"groups range from {low} to {high}, expected 0 to {len(old) - 1}")
    sums = torch.zeros_like(old).index_add_(0, groups, values.detach().to(old))
    counts = torch.bincount(groups, minlength=len(old)).to(old)
    counts = counts.reshape(-1, *[1] * (old.dim() - 1))
    new = decay * old + (1.0 - decay) * sums / counts.clamp_min(1.0)
    return torch.where(counts > 0.0, new, old)


class SnapshotControlVariate:
    """SVRG (Johnson & Zhang 2013): h is the gradient at an earlier copy of the model.

        control.refresh(chunks)                                 # now and then, over all the data
        weighted_mean(losses, weights).backward()
        control.correct(items, weights)                         # ∇f − h + E_p[h], into .grad
        optimizer.step()

    The target is uniform over the items of `refresh`. It takes a second backward pass a step, and
    one over all data a refresh. The signal is the norm of the difference of both gradients, or of
    a bound of both, like the difference of the outputs' gradients.

    Args:
      model: its parameters are w. A model with dropout or batch normalisation is no function of
        w and x alone, and is corrected for another one.
      losses: model and [B] items to [B] losses.
    """

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Tensor]) -> None:
        self.model, self.losses = model, losses
        self.snapshot = copy.deepcopy(model)
        self.gradient: list[Tensor] | None = None
        """The exact E_p[h], one entry a parameter; None before the first refresh."""

    def refresh(self, chunks: Iterable[Any]) -> None:
        """Copies the model, and computes the gradient over all items.

        Args:
          chunks: the items of the whole data set, in chunks of any sizes.

        Raises:
          ValueError: if there are no items, or a loss is not finite. Nothing changes then.
        """
        snapshot = copy.deepcopy(self.model)
        sums = [torch.zeros_like(w) for w in _trained(snapshot)]
        count = 0
        for items in chunks:
            losses = self.losses(snapshot, items)
            if not bool(losses.isfinite().all()):
                raise ValueError("a loss is infinite or NaN, expected finite ones: mend the model")
            count += len(losses)
            for total, part in zip(sums, _gradients(losses.sum(), snapshot), strict=True):
                total += part
        if count == 0:
            raise ValueError("got no items, expected the whole data set in chunks")
        self.snapshot, self.gradient = snapshot, [total / count for total in sums]

    def correct(self, items: Any, weights: Tensor) -> None:
        """Adds E_p[h] − mean_b w_b h(x_b) to the gradients that the model's parameters hold.

        Args:
          items: [B] what was drawn.
          weights: [B] importance weights.

        Raises:
          ValueError: before the first refresh.
        """
        if self.gradient is None:
            raise ValueError("there is no snapshot yet: call refresh() first")
        loss = weighted_mean(self.losses(self.snapshot, items), weights)
        for w, drawn, exact in zip(
            _trained(self.model), _gradients(loss, self.snapshot), self.gradient, strict=True
        ):
            w.grad = exact - drawn if w.grad is None else w.grad + (exact - drawn)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the snapshot and its gradient."""
        state = {"snapshot": self.snapshot.state_dict(), "gradient": self.gradient}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a control variate of the same model.
        """
        self.snapshot.load_state_dict(state["snapshot"])
        self.gradient = copy.deepcopy(state["gradient"])


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [w for w in model.parameters() if w.requires_grad]


def _gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = _trained(model)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(w) if gradient is None else gradient
        for w, gradient in zip(parameters, gradients, strict=True)
    ]
