"""Importance weights p/q, computed from log densities. Pure functions, always float64.

A weight is a number: all results are without gradient. A weight that is differentiated through
turns the step into one along another gradient (Lahire 2023, §4).
"""

import math
from typing import Literal

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny


def _log_densities(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"log_p has shape {tuple(log_p.shape)} and log_q {tuple(log_q.shape)}, "
            "expected the same: one log density of each kind per draw"
        )
    return log_p.detach().to(torch.float64), log_q.detach().to(torch.float64)


def log_importance_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The log importance weight, log p − log q.

    Args:
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.

    Returns:
      [B] float64; −inf where the target has no mass.

    Raises:
      ValueError: if the shapes differ.
    """
    log_p, log_q = _log_densities(log_p, log_q)
    return log_p - log_q


def importance_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The importance weight p / q: `E_q[w f] = E_p[f]` wherever q covers p (Bouchard 2015, eq. 3).

    Args:
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.

    Returns:
      [B] float64.

    Raises:
      ValueError: if the shapes differ.
    """
    return log_importance_weights(log_p, log_q).exp()


def truncated_weights(log_p: Tensor, log_q: Tensor, maximum: float) -> Tensor:
    """min(p / q, maximum) (Ionides 2008, Truncated Importance Sampling).

    Biased: the mean of w·f misses `E_q[(p/q − maximum)₊ f]`, the part of the target where it is
    more than `maximum` times the proposal. Weights are bounded in exchange.

    Args:
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.
      maximum: largest weight, positive.

    Returns:
      [B] float64, in [0, maximum].

    Raises:
      ValueError: if the shapes differ or maximum is not positive.
    """
    if not maximum > 0:
        raise ValueError(f"maximum is {maximum}, expected a positive number")
    return importance_weights(log_p, log_q).clamp_max(maximum)


def self_normalised_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    """w_b / Σ w: weights that sum to 1, for densities known up to a constant factor.

    Biased by O(1/B), because the sum is itself estimated from the draws. Computed as a softmax, so
    densities that underflow (long trajectories) do no harm.

    Args:
      log_p: [B] log density of each draw under the target, up to a constant.
      log_q: [B] log density of each draw under the proposal, up to a constant.

    Returns:
      [B] float64, sums to 1.

    Raises:
      ValueError: if the shapes differ.
    """
    return log_importance_weights(log_p, log_q).softmax(-1)


def balance_heuristic(log_p: Tensor | int, log_components: Tensor, shares: Tensor) -> Tensor:
    """The weight p / Σ_k share_k q_k of a draw from a mixture (Veach & Guibas 1995).

    Where the target is itself component k, the weight is at most 1 / share_k: that is what makes
    a defensive mixture safe.

    Args:
      log_p: [B] log density of each draw under the target; or an integer, the component that is
        the target.
      log_components: [B, K] log density of each draw under each component.
      shares: [K] probability of each component, sums to 1.

    Returns:
      [B] float64.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if log_components.dim() != 2 or shares.shape != log_components.shape[1:]:
        raise ValueError(
            f"log_components has shape {tuple(log_components.shape)} and shares "
            f"{tuple(shares.shape)}, expected [B, K] and [K]"
        )
    log_p = log_components[:, log_p] if isinstance(log_p, int) else log_p
    log_q = (log_components.to(torch.float64) + shares.to(torch.float64).log()).logsumexp(1)
    return importance_weights(log_p, log_q)


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w² (Kish 1965): how many equally weighted draws the weighted ones are worth.

    Args:
      weights: [B] non-negative, on any scale.

    Returns:
      [] float64 between 1 (one weight has it all) and B (all equal); 0 if all weights are 0.
    """
    weights = weights.detach().to(torch.float64)
    # By the largest first: the squares of the weights of long trajectories leave float64.
    weights = weights / weights.amax().clamp_min(_TINY)
    return weights.sum().square() / weights.square().sum().clamp_min(_TINY)


def log_effective_sample_size(log_weights: Tensor) -> Tensor:
    """`effective_sample_size` from log weights, which may be too large or small to exponentiate.

    Args:
      log_weights: [B] up to a common constant.

    Returns:
      [] float64, between 1 and B.
    """
    log_weights = log_weights.detach().to(torch.float64)
    return (2.0 * log_weights.logsumexp(0) - (2.0 * log_weights).logsumexp(0)).exp()


def normalise_by_max(weights: Tensor) -> Tensor:
    """Weights divided by the largest of the batch, as prioritized replay does (Schaul 2016).

    Biased: the scale of the step then depends on the batch.

    Args:
      weights: [B] non-negative, one or more positive.

    Returns:
      [B] float64, at most 1.
    """
    weights = weights.detach().to(torch.float64)
    return weights / weights.amax()


def normalise_by_mean(weights: Tensor) -> Tensor:
    """Weights divided by the mean of the batch: self-normalised weights of mean 1.

    Biased by O(1/B).

    Args:
      weights: [B] non-negative, one or more positive.

    Returns:
      [B] float64, mean 1.
    """
    weights = weights.detach().to(torch.float64)
    return weights / weights.mean()


def annealed_weights(
    log_q: Tensor, n: int, beta: float, normaliser: Literal["max", "mean"] | None = "max"
) -> Tensor:
    """(n q)^−β: the weights of prioritized replay (Schaul 2016, §3.4).

    At β = 1 and without a normaliser these are the exact weights for a uniform target over n
    items; below 1 the correction is partial and the estimate biased; at 0 all weights are 1.

    Args:
      log_q: [B] log probability of each draw, as it was when it was drawn.
      n: number of items with mass (filled slots).
      beta: exponent, in [0, 1].
      normaliser: divide by the largest weight or the mean weight of the batch, or do not.

    Returns:
      [B] float64.

    Raises:
      ValueError: if n is below 1, beta outside [0, 1], or the normaliser unknown.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1: the number of items with mass")
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is {beta}, expected a number between 0 and 1")
    if normaliser not in ("max", "mean", None):
        raise ValueError(f"normaliser is {normaliser!r}, expected 'max', 'mean' or None")
    log_q = log_q.detach().to(torch.float64)
    if log_q.is_cpu and log_q.dim() == 1:
        from awsgd_rl import weight_kernels

        made = weight_kernels.annealed(
            # A kernel would be compiled anew for strides.
            *(log_q.contiguous().numpy(), n, float(beta)),
            *(normaliser == "max", normaliser == "mean"),
        )
        return torch.from_numpy(made)
    return _annealed_by_tensors(log_q, n, beta, normaliser)


def _annealed_by_tensors(log_q: Tensor, n: int, beta: float, normaliser: str | None) -> Tensor:
    log_weights = -beta * (log_q + math.log(n))
    if normaliser is None:
        return log_weights.exp()
    weights = (log_weights - log_weights.amax()).exp()
    return weights if normaliser == "max" else normalise_by_mean(weights)
