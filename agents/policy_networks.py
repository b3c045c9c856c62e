"""Policies of the neural agents: softmax for Discrete actions, Gaussian for Box actions.

Both share one set of methods, so the learner never asks which one it holds. Each is a network
inside one of the package's policy proposals, which define the densities and the draw.
"""

import math
from collections.abc import Sequence

import gymnasium as gym
import torch
from torch import Tensor, nn

from awsgd_rl.agents.networks import Body, Kind
from awsgd_rl.agents.spaces import check_spaces
from awsgd_rl.policies import GaussianPolicyProposal, PolicyProposal
from awsgd_rl.sampling import sample_rows


class CategoricalPolicy(nn.Module):
    """Softmax policy over Discrete actions; its outputs are log-probabilities [N, A] in float64.

    Args:
        body: Network with A outputs, the logits.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.proposal = PolicyProposal(body)

    @property
    def body(self) -> Body:
        """The network under the logits."""
        body = self.proposal.network
        assert isinstance(body, Body)
        return body

    def forward(self, observations: Tensor) -> Tensor:
        """[N, ...] observations to log-probabilities [N, A]."""
        return self.proposal.log_probabilities(observations)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """[N] Log-probability of actions [N] (long)."""
        return outputs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """[N] Entropy in nats."""
        return -(outputs.exp() * outputs).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """[N] KL(old, this) in nats."""
        return (old_outputs.exp() * (old_outputs - outputs)).sum(-1)

    def draw(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """[N] Actions drawn."""
        return sample_rows(outputs.exp(), generator)

    def mode(self, outputs: Tensor) -> Tensor:
        """[N] Most probable actions."""
        return outputs.argmax(-1)

    def output_score(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """[N, A] d log pi(a) / d logits = e_a - pi."""
        return torch.nn.functional.one_hot(actions, outputs.shape[-1]) - outputs.exp()


class GaussianNetwork(nn.Module):
    """Means that depend on the state, and a log standard deviation that does not.

    Args:
        body: Network with D outputs, the means.
        n_coordinates: D.
        initial_log_std: Where log sigma starts.
    """

    def __init__(self, body: Body, n_coordinates: int, initial_log_std: float) -> None:
        super().__init__()
        self.body = body
        self.log_std = nn.Parameter(torch.full((n_coordinates,), float(initial_log_std)))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ...] observations to means [N, D] and log standard deviations [D]."""
        return self.body(observations), self.log_std


class GaussianPolicy(nn.Module):
    """Gaussian policy over Box actions; its outputs are means and log sigmas [N, 2 D] in float64.

    Actions are clipped to the action space only on their way into the environment: every
    probability is that of the unclipped action.

    Args:
        network: Gives the means and log standard deviations.
    """

    def __init__(self, network: GaussianNetwork) -> None:
        super().__init__()
        self.proposal = GaussianPolicyProposal(network)

    @property
    def body(self) -> Body:
        """The network under the means."""
        network = self.proposal.network
        assert isinstance(network, GaussianNetwork)
        return network.body

    def forward(self, observations: Tensor) -> Tensor:
        """[N, ...] observations to means and log standard deviations [N, 2 D], side by side."""
        return torch.cat(self.proposal.mean_and_log_std(observations), -1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """[N] Log-density of actions [N, D]."""
        mean, log_std = outputs.chunk(2, -1)
        z = (actions - mean) * torch.exp(-log_std)
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """[N] Differential entropy in nats."""
        return (outputs.chunk(2, -1)[1] + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """[N] KL(old, this) in nats."""
        old_mean, old_log_std = old_outputs.chunk(2, -1)
        mean, log_std = outputs.chunk(2, -1)
        spread = torch.exp(2.0 * (old_log_std - log_std))
        shift = (old_mean - mean).square() * torch.exp(-2.0 * log_std)
        return (log_std - old_log_std + 0.5 * (spread + shift - 1.0)).sum(-1)

    def draw(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """[N, D] Actions drawn, without gradient."""
        mean, log_std = outputs.detach().chunk(2, -1)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def mode(self, outputs: Tensor) -> Tensor:
        """[N, D] Means."""
        return outputs.chunk(2, -1)[0]

    def output_score(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """[N, D] d log pi(a) / d mean = (a - mean) / sigma^2."""
        mean, log_std = outputs.chunk(2, -1)
        return (actions - mean) * torch.exp(-2.0 * log_std)


Policy = CategoricalPolicy | GaussianPolicy


def make_policy(
    observation_space: gym.Space[object],
    action_space: gym.Space[object],
    kind: Kind,
    hidden_sizes: Sequence[int],
    initial_log_std: float,
    generator: torch.Generator,
) -> Policy:
    """The policy that fits an action space: softmax for Discrete, Gaussian for Box.

    The last layer starts small (gain 0.01), so that the first policy is close to uniform, or
    centred on the middle of the action box.

    Args:
        observation_space: Box or Discrete.
        action_space: Discrete or Box.
        kind: "mlp" or "table".
        hidden_sizes: Widths of the hidden layers.
        initial_log_std: Initial log standard deviation for Box actions.
        generator: Source of the initial weights, on the CPU.

    Raises:
        ValueError: for an unsupported space, and a table of observations that are not Discrete.
    """
    check_spaces(observation_space, action_space)
    if isinstance(action_space, gym.spaces.Discrete):
        n_actions = int(action_space.n)
        return CategoricalPolicy(
            Body(observation_space, n_actions, kind, hidden_sizes, 0.01, generator)
        )
    shape = action_space.shape
    assert shape is not None
    n_actions = math.prod(shape)
    body = Body(observation_space, n_actions, kind, hidden_sizes, 0.01, generator)
    return GaussianPolicy(GaussianNetwork(body, n_actions, initial_log_std))
