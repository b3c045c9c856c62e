"""How good a proposal is: variances, distances, largest weights. Pure functions, float64.

Norms are those of unweighted gradients, and weights are p/q, as everywhere.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from awsgd_rl.sampling import check_scores


def second_moment(norms: Tensor, target: Tensor, proposal: Tensor) -> Tensor:
    """Exact E_q‖w ∇f‖² = Σ p² ‖∇f‖² / q over a finite set (Bouchard 2015, eq. 10).

    Args:
      norms: [N] gradient norms.
      target: [N] probabilities p.
      proposal: [N] probabilities q.

    Returns:
      [] float64; infinite where q does not cover p ‖∇f‖.
    """
    mass = (target.to(torch.float64) * norms.to(torch.float64)).square()
    return torch.where(mass > 0.0, mass / proposal.to(torch.float64), 0.0).sum()


def variance_ratio(
    norms: Tensor, weights: Tensor, mean_gradient_norm: Tensor | float = 0.0
) -> Tensor:
    """Variance of on-policy draws over that of the weighted draws; above 1 the proposal pays.

    Both are traces of the covariance of one draw's gradient, and both are estimated from the same
    weighted draws x_b ~ q: `E_p‖g‖² = E_q[w ‖g‖²]` by mean_b w_b ‖g_b‖², and `E_q‖w g‖²` by
    mean_b w_b² ‖g_b‖²; from each the square of `mean_gradient_norm` is taken. If that is the norm
    of the batch's own mean gradient, it is too large by 1/B of the variance, in both. With 0 the
    result is the ratio of second moments, which is nearer to 1. The estimate of a ratio is biased
    by O(1/B), and blind to what the proposal never draws: read it beside the largest weight.

    Args:
      norms: [B] ‖g(x_b)‖.
      weights: [B] p/q of each draw.
      mean_gradient_norm: ‖E_p g‖, or an estimate of it.

    Returns:
      [] float64; infinite where the weighted draws do not vary, NaN where neither varies or the
      batch is too small for a positive on-policy variance.
    """
    norms, weights = _norms_and_weights(norms, weights)
    mean_squared = torch.as_tensor(mean_gradient_norm).to(norms).square()
    on_policy = (weights * norms.square()).mean() - mean_squared
    achieved = (weights * norms).square().mean() - mean_squared
    ratio = on_policy / achieved.clamp_min(0.0)
    return torch.where(on_policy > 0.0, ratio, math.nan)


def headroom(norms: Tensor, weights: Tensor | None = None) -> Tensor:
    """E_p‖g‖² / (E_p‖g‖)²: how much lower the best of all proposals makes the second moment.

    Reached by q* ∝ p ‖g‖. Estimated with self-normalised weights, hence biased by O(1/B), never
    below 1; from few draws of heavy-tailed norms it comes out too low.

    Args:
      norms: [B] ‖g(x_b)‖, one or more positive.
      weights: [B] p/q of each draw; None where they come from the target itself.

    Returns:
      [] float64, at least 1 up to rounding; NaN if all norms or all weights are 0.
    """
    norms, weights = _norms_and_weights(
        norms, torch.ones_like(norms) if weights is None else weights
    )
    weights = weights / weights.sum()
    return (weights * norms.square()).sum() / (weights * norms).sum().square()


def largest_weight(weights: Tensor) -> Tensor:
    """The largest weight of a batch: how much of the step hangs on one draw.

    Args:
      weights: [B].

    Returns:
      [] float64.
    """
    return weights.detach().to(torch.float64).amax()


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p log(p/q), in nats.

    Args:
      p: [..., N] probabilities.
      q: [..., N] probabilities.

    Returns:
      [...] float64, not negative up to rounding; infinite where q is 0 and p is not.
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    return torch.where(p > 0.0, p * (p.log() - q.log()), 0.0).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """½ Σ |p − q|: the largest difference of the probability of any event.

    Args:
      p: [..., N] probabilities.
      q: [..., N] probabilities.

    Returns:
      [...] float64, between 0 and 1.
    """
    return 0.5 * (p.to(torch.float64) - q.to(torch.float64)).abs().sum(-1)


class Distances(NamedTuple):
    """Distances to the proposal of the gradient norms; the first should be the smaller one."""

    proposal: Tensor
    """[] D(p̃, p̃ᴳᴺ)."""
    uniform: Tensor
    """[] D(ũ, p̃ᴳᴺ)."""


def distances_to_optimum(
    log_q: Tensor, norms: Tensor, distance: Literal["kl", "tv"] = "tv"
) -> Distances:
    """Is a proposal nearer to the best one than uniform draws are? (Lahire 2023, Algorithm 1).

    On M examples drawn *uniformly*, the proposal and the gradient norms are each normalised to
    sum to 1; collect the two distances along training and compare their histograms.

    Args:
      log_q: [M] log probability of each example under the proposal, up to a constant.
      norms: [M] gradient norm of each example.
      distance: total variation, or KL(· ‖ p̃ᴳᴺ), which is infinite if a norm is 0.

    Returns:
      Both distances.

    Raises:
      ValueError: if shapes differ, a norm is negative, infinite or NaN, all norms are 0 (every
        proposal is then the best), no example has mass, or the distance is unknown.
    """
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]]
    functions = {"kl": kl_divergence, "tv": total_variation}
    if distance not in functions:
        raise ValueError(f"distance is {distance!r}, expected 'kl' or 'tv'")
    norms = check_scores(norms, "norms")
    if log_q.shape != norms.shape:
        raise ValueError(
            f"log_q has shape {tuple(log_q.shape)} and norms {tuple(norms.shape)}, "
            "expected the same [M]"
        )
    proposal = log_q.detach().to(torch.float64).softmax(0)
    if not bool(norms.any()) or bool(proposal.isnan().any()):
        raise ValueError("all norms are 0, or no example has mass: there is nothing to compare")
    optimum = norms / norms.sum()
    uniform = torch.full_like(norms, 1.0 / len(norms))
    measure = functions[distance]
    return Distances(measure(proposal, optimum), measure(uniform, optimum))


def _norms_and_weights(norms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if norms.shape != weights.shape or norms.dim() != 1 or len(norms) == 0:
        raise ValueError(
            f"norms has shape {tuple(norms.shape)} and weights {tuple(weights.shape)}, "
            "expected the same [B]"
        )
    return norms.detach().to(torch.float64), weights.detach().to(torch.float64)
