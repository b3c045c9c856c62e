"""Policies as proposals: a network gives the distribution of the action, given the observation."""

import math

import torch
from torch import Tensor, nn

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.sampling import sample_rows


class PolicyProposal(Proposal):
    """A softmax policy over discrete actions; items are actions.

    Args:
      network: maps observations [B, ...] to logits [B, A]; its parameters are τ.
    """

    conditional = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def log_probabilities(self, given: Tensor) -> Tensor:
        """[B, A] log probability of every action, differentiable in τ.

        Args:
          given: [B, ...] observations.

        Returns:
          [B, A] float64.

        Raises:
          ValueError: if the network's output is not [B, A].
        """
        logits: Tensor = self.network(given)
        if logits.dim() != 2 or len(logits) != len(given):
            raise ValueError(
                f"the network returned shape {tuple(logits.shape)} for {len(given)} observations, "
                "expected logits [B, A]"
            )
        return logits.to(torch.float64).log_softmax(1)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability of actions [B] given observations [B, ...], differentiable in τ."""
        self._check_given(len(items), given)
        assert given is not None
        return self.log_probabilities(given).gather(1, items.unsqueeze(1)).squeeze(1)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        assert given is not None
        log_q = self.log_probabilities(given)
        items = sample_rows(log_q.exp(), generator)
        return Draw(items, log_q.gather(1, items.unsqueeze(1)).squeeze(1))


class GaussianPolicyProposal(Proposal):
    """A Gaussian policy with independent coordinates; items are actions [B, D] in float64.

    `log_q` belongs to the float64 action: one that is rounded to float32, or clipped to the bounds
    of the action space, is to be stored as it was drawn.

    Args:
      network: maps observations [B, ...] to a mean [B, D] and the log of the standard deviation,
        [B, D] or [D]; its parameters are τ.
    """

    conditional = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def mean_and_log_std(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the action, differentiable in τ.

        Args:
          given: [B, ...] observations.

        Returns:
          [B, D] and [B, D], float64.

        Raises:
          ValueError: if the network's output has another shape.
        """
        mean, log_std = self.network(given)
        if mean.dim() != 2 or len(mean) != len(given) or log_std.shape[-1:] != mean.shape[1:]:
            raise ValueError(
                f"the network returned shapes {tuple(mean.shape)} and {tuple(log_std.shape)} for "
                f"{len(given)} observations, expected [B, D] and [B, D] or [D]"
            )
        mean = mean.to(torch.float64)
        return mean, log_std.to(torch.float64).expand_as(mean)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log density of actions [B, D] given observations [B, ...], differentiable in τ."""
        self._check_given(len(items), given)
        assert given is not None
        mean, log_std = self.mean_and_log_std(given)
        if items.shape != mean.shape:
            raise ValueError(f"items has shape {tuple(items.shape)}, expected {tuple(mean.shape)}")
        return _log_normal((items - mean) * (-log_std).exp(), log_std)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        assert given is not None
        mean, log_std = self.mean_and_log_std(given)
        noise = torch.randn(
            mean.shape, generator=generator, device=mean.device, dtype=torch.float64
        )
        return Draw(mean + log_std.exp() * noise, _log_normal(noise, log_std))


def _log_normal(standardised: Tensor, log_std: Tensor) -> Tensor:
    half_log_tau = 0.5 * math.log(2.0 * math.pi)
    return -(0.5 * standardised.square() + log_std + half_log_tau).sum(1)
