"""Estimates from weighted draws, and the returns of reinforcement learning. Pure functions."""

from typing import NamedTuple

import torch
from torch import Tensor

from awsgd_rl.weights import importance_weights


class Estimate(NamedTuple):
    """A mean and how far it may be from the truth."""

    mean: Tensor
    """[...] the mean over draws."""
    standard_error: Tensor
    """[...] its standard error, estimated from the spread of the draws."""


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """mean_b w_b v_b, the loss or gradient to step along; differentiable in the values.

    Args:
      values: [B] or [B, ...], for example the loss of each draw.
      weights: [B] importance weights.

    Returns:
      [] or [...], in the wider of both types.

    Raises:
      ValueError: if there is not one weight per value.
    """
    if weights.dim() != 1 or values.shape[:1] != weights.shape or len(weights) == 0:
        raise ValueError(
            f"values has shape {tuple(values.shape)} and weights {tuple(weights.shape)}, "
            "expected [B, ...] and [B]: one weight per draw"
        )
    return (_column(weights.detach(), values) * values).mean(0)


def importance_estimate(values: Tensor, log_p: Tensor, log_q: Tensor) -> Estimate:
    """Unbiased estimate of E_p[f] from draws of q (Bouchard 2015, eq. 3).

    Args:
      values: [B] or [B, ...] f of each draw.
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.

    Returns:
      Mean and standard error, float64, of shape [] or [...].

    Raises:
      ValueError: if shapes differ or there are fewer than two draws.
    """
    return _estimate(values, importance_weights(log_p, log_q))


def control_variate_estimate(
    values: Tensor, controls: Tensor, control_mean: Tensor, log_p: Tensor, log_q: Tensor
) -> Estimate:
    """mean_b w_b (f_b − h_b) + E_p[h]: unbiased for every h of known mean, exact for h = f.

    The best proposal is then proportional to p ‖f − h‖, so that ‖f − h‖ is the signal to adapt by.

    Args:
      values: [B] or [B, ...] f of each draw.
      controls: as values, h of each draw.
      control_mean: [] or [...] the exact E_p[h].
      log_p: [B] log density of each draw under the target.
      log_q: [B] log density of each draw under the proposal, as it was when it was drawn.

    Returns:
      Mean and standard error, float64, of shape [] or [...].

    Raises:
      ValueError: if shapes differ or there are fewer than two draws.
    """
    if controls.shape != values.shape or control_mean.shape != values.shape[1:]:
        raise ValueError(
            f"controls has shape {tuple(controls.shape)} and their mean "
            f"{tuple(control_mean.shape)}, expected {tuple(values.shape)} and "
            f"{tuple(values.shape[1:])}, as the values"
        )
    rest = _estimate(values - controls, importance_weights(log_p, log_q))
    return Estimate(rest.mean + control_mean, rest.standard_error)


def _estimate(values: Tensor, weights: Tensor) -> Estimate:
    mean = weighted_mean(values.to(torch.float64), weights)
    count = len(weights)
    if count < 2:
        raise ValueError("got 1 draw, expected at least 2: one has no standard error")
    terms = _column(weights, values) * values.to(torch.float64)
    variance = (terms - mean).square().sum(0) / (count - 1)
    return Estimate(mean, (variance / count).sqrt())


def _column(weights: Tensor, values: Tensor) -> Tensor:
    return weights.reshape(-1, *[1] * (values.dim() - 1))


def reward_to_go(rewards: Tensor, discount: float, boundary: Tensor) -> Tensor:
    """G_t = r_t + discount · G_{t+1} within an episode, r_t at its last step.

    Args:
      rewards: [T, B].
      discount: in [0, 1].
      boundary: [T, B] bool, true at the last step of an episode, whatever ended it.

    Returns:
      [T, B] float64.

    Raises:
      ValueError: if shapes differ or the discount is out of range.
    """
    _check_steps(discount, rewards=rewards, boundary=boundary)
    going_on = discount * (~boundary).to(torch.float64)
    return _accumulate(rewards.detach().to(torch.float64), going_on)


def vtrace(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    boundary: Tensor,
    ratios: Tensor,
    discount: float,
    trace_decay: float,
) -> tuple[Tensor, Tensor]:
    """V-trace targets and advantages (Espeholt 2018, eq. 1 and remark 2).

    With ρ_t the ratio: `δ_t = ρ_t (r_t + γ V(x_{t+1}) − V(x_t))`,
    `v_t = V(x_t) + δ_t + γ λ ρ_t (v_{t+1} − V(x_{t+1}))`, and the advantage
    `r_t + γ (λ v_{t+1} + (1 − λ) V(x_{t+1})) − V(x_t)`, which is the paper's at λ = 1, and
    GAE(λ) where all ratios are 1. The paper's policy gradient multiplies it by ρ_t; so must you.

    Args:
      rewards: [T, B].
      values: [T, B] V(x_t).
      next_values: [T, B] V(x_{t+1}): of the episode's own last observation, not of the one that
        an automatic reset put in its place.
      terminated: [T, B] bool, the state after step t is terminal: no bootstrap.
      boundary: [T, B] bool, the trace is cut after step t: terminated, truncated, or the end of
        padding. Where not terminated, next_values still bootstraps.
      ratios: [T, B] π(a_t|x_t) / μ(a_t|x_t), truncated as you like (the paper: at 1); 1 on-policy.
      discount: γ in [0, 1].
      trace_decay: λ in [0, 1].

    Returns:
      Targets [T, B] and advantages [T, B], float64, without gradient.

    Raises:
      ValueError: if shapes differ, or the discount or the trace decay is out of range.
    """
    _check_steps(
        discount,
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=terminated,
        boundary=boundary,
        ratios=ratios,
    )
    if not 0.0 <= trace_decay <= 1.0:
        raise ValueError(f"trace_decay is {trace_decay}, expected between 0 and 1")
    rewards, values, next_values, ratios = (
        x.detach().to(torch.float64) for x in (rewards, values, next_values, ratios)
    )
    errors = rewards + discount * torch.where(terminated, 0.0, next_values) - values
    going_on = discount * trace_decay * (~boundary).to(torch.float64)
    corrections = _accumulate(ratios * errors, going_on * ratios)
    following = torch.cat((corrections[1:], torch.zeros_like(corrections[:1])))
    return values + corrections, errors + going_on * following


def _accumulate(terms: Tensor, factors: Tensor) -> Tensor:
    """[T, B] of y_t = terms_t + factors_t y_{t+1}."""
    results = torch.empty_like(terms)
    total = torch.zeros_like(terms[0])
    for t in range(len(terms) - 1, -1, -1):
        total = terms[t] + factors[t] * total
        results[t] = total
    return results


def _check_steps(discount: float, **tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(shapes["rewards"]) != 2 or 0 in shapes["rewards"]:
        raise ValueError(f"got shapes {shapes}, expected the same [T, B] for all")
    for name in ("terminated", "boundary"):
        if name in tensors and tensors[name].dtype != torch.bool:
            raise ValueError(f"{name} has type {tensors[name].dtype}, expected bool")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount is {discount}, expected between 0 and 1")
