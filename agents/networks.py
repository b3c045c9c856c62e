"""Policies and value functions of the neural agents: multilayer perceptrons and tables.

Both families of policies share one set of methods, so the learner never asks which one it holds.
Weights are drawn on the CPU from a generator that is passed in: global randomness is not touched,
and a seed gives the same network on every device.
"""

import math
from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from awsgd_rl.policies import GaussianPolicyProposal, PolicyProposal
from awsgd_rl.sampling import sample_rows

Kind = Literal["mlp", "table"]


def check_spaces(observation_space: gym.Space[object], action_space: gym.Space[object]) -> None:
    """Refuse spaces that no policy here can act on.

    Args:
        observation_space: Space of one observation; Box and Discrete are supported.
        action_space: Space of one action; Discrete and Box (floating point) are supported.

    Raises:
        ValueError: for any other space, with its name and what to do about it.
    """
    if not isinstance(observation_space, gym.spaces.Box | gym.spaces.Discrete):
        raise ValueError(
            f"unsupported observation space {type(observation_space).__name__}: "
            f"{observation_space}; supported are Box and Discrete "
            "(wrap a Dict or Tuple with gymnasium.wrappers.FlattenObservation)"
        )
    if isinstance(action_space, gym.spaces.Discrete):
        return
    if not isinstance(action_space, gym.spaces.Box):
        raise ValueError(
            f"unsupported action space {type(action_space).__name__}: {action_space}; "
            "supported are Discrete and Box (map the actions to one of them with "
            "gymnasium.wrappers.TransformAction)"
        )
    if not np.issubdtype(action_space.dtype, np.floating):
        raise ValueError(
            f"unsupported action space of dtype {action_space.dtype}: {action_space}; "
            "a Box of actions must hold floating-point numbers"
        )


class ObservationNormaliser(nn.Module):
    """Standardises Box observations with running moments that stay frozen during a batch.

    `observe` only accumulates; what `forward` uses changes at `refresh` alone. So the probability
    of an action under the policy that drew it is the same number when it is recomputed for the
    same batch. Stored observations are raw: after a refresh their log-probabilities change as the
    policy itself does.

    Args:
        shape: Shape of one observation.
        clip: Standardised observations are clipped to plus and minus this.
    """

    count: Tensor
    running_mean: Tensor
    running_square: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("running_mean", torch.zeros(*shape, dtype=torch.float64))
        # Sum of squared deviations (Welford): no cancellation for observations far from zero.
        self.register_buffer("running_square", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def observe(self, observations: Tensor) -> None:
        """[N, *shape] Add raw observations to the running moments (Chan et al. 1979)."""
        batch = observations.to(torch.float64)
        n = batch.shape[0]
        batch_mean = batch.mean(0)
        total = self.count + n
        delta = batch_mean - self.running_mean
        self.running_square += (batch - batch_mean).square().sum(0)
        self.running_square += delta.square() * self.count * n / total
        self.running_mean += delta * n / total
        self.count.copy_(total)

    def refresh(self) -> None:
        """Take the running moments into use; before the first `observe` nothing changes."""
        if self.count > 1:
            deviation = (self.running_square / self.count).sqrt()
            self.mean.copy_(self.running_mean)
            # A constant coordinate carries no information: leave its scale alone.
            self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, observations: Tensor) -> Tensor:
        """[N, *shape] Standardised observations."""
        return ((observations - self.mean) / self.scale).clamp(-self.clip, self.clip)


class Body(nn.Module):
    """Maps observations to outputs: a tanh perceptron, or one row of a table per state.

    Args:
        observation_space: Box (flattened) or Discrete (one-hot, through an embedding).
        n_outputs: Outputs per observation.
        kind: "mlp", or "table" (Discrete observations only; starts at zero).
        hidden_sizes: Widths of the hidden layers of an mlp.
        output_gain: Gain of the last layer's orthogonal initialisation.
        generator: Source of the initial weights, on the CPU.

    Raises:
        ValueError: if a table is asked for observations that are not Discrete.
    """

    def __init__(
        self,
        observation_space: gym.Space[object],
        n_outputs: int,
        kind: Kind,
        hidden_sizes: Sequence[int],
        output_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if isinstance(observation_space, gym.spaces.Discrete):
            n_states = int(observation_space.n)
            if kind == "table":
                table = nn.Embedding(n_states, n_outputs, device="meta").to_empty(device="cpu")
                nn.init.zeros_(table.weight)
                layers.append(table)
            else:
                # A linear layer on one-hot rows, without the one-hot rows. A row holds a single
                # 1, so unit normal weights give every hidden unit an input of order 1.
                width = hidden_sizes[0]
                embedding = nn.Embedding(n_states, width, device="meta").to_empty(device="cpu")
                nn.init.normal_(embedding.weight, generator=generator)
                layers += [embedding, nn.Tanh()]
                layers += _perceptron(hidden_sizes, n_outputs, output_gain, generator)
        else:
            if kind == "table":
                raise ValueError(
                    f"a table needs Discrete observations, got {observation_space}; "
                    'use the "MlpPolicy" instead'
                )
            shape = observation_space.shape
            assert shape is not None
            sizes = (math.prod(shape), *hidden_sizes)
            layers.append(nn.Flatten())
            layers += _perceptron(sizes, n_outputs, output_gain, generator)
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: Tensor) -> Tensor:
        """[N, ...] observations (long [N] state numbers, or float) to outputs [N, n_outputs]."""
        outputs: Tensor = self.layers(observations)
        return outputs

    @property
    def head(self) -> nn.Linear | nn.Embedding:
        """The last layer: a linear one, or the whole table."""
        head = self.layers[-1]
        assert isinstance(head, nn.Linear | nn.Embedding)
        return head

    def head_gradients(self, observations: Tensor, gradients: Tensor) -> Tensor:
        """Gradient by the last layer's parameters, for each of B sums over T steps.

        Args:
            observations: [T, B, ...] Where the network was evaluated.
            gradients: [T, B, K] Gradients by its outputs there; zero at steps that do not count.

        Returns:
            [B, ...] Gradients by weights (and bias) of the last layer.
        """
        n_steps, count, n_outputs = gradients.shape
        head = self.head
        if isinstance(head, nn.Embedding):
            sums = gradients.new_zeros(count * head.num_embeddings, n_outputs)
            offsets = head.num_embeddings * torch.arange(count, device=gradients.device)
            sums.index_add_(0, (observations + offsets).flatten(), gradients.flatten(0, 1))
            return sums.view(count, -1, n_outputs)
        hidden = self.layers[:-1](observations.flatten(0, 1))
        hidden = torch.cat((hidden, hidden.new_ones(len(hidden), 1)), 1)
        inputs = hidden.view(n_steps, count, -1).to(gradients.dtype)
        return torch.einsum("tbk,tbh->bkh", gradients, inputs)


def _perceptron(
    sizes: Sequence[int], n_outputs: int, output_gain: float, generator: torch.Generator
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    # Made on the meta device: a layer's own initialisation would draw from global randomness.
    gains = [math.sqrt(2.0)] * (len(sizes) - 1) + [output_gain]
    for n_in, n_out, gain in zip(sizes, (*sizes[1:], n_outputs), gains, strict=True):
        linear = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
        nn.init.orthogonal_(linear.weight, gain, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return layers[:-1]


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
        """[N, D] Actions drawn."""
        mean, log_std = outputs.chunk(2, -1)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def mode(self, outputs: Tensor) -> Tensor:
        """[N, D] Means."""
        return outputs.chunk(2, -1)[0]

    def output_score(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """[N, D] d log pi(a) / d mean = (a - mean) / sigma^2."""
        mean, log_std = outputs.chunk(2, -1)
        return (actions - mean) * torch.exp(-2.0 * log_std)


class ValueFunction(nn.Module):
    """State values, learned in standardised units and given in those of the rewards.

    The network's output is of order 1 whatever the rewards' size; `rescale` moves the units
    and corrects the last layer so that no value changes (Pop-Art, van Hasselt et al. 2016).

    Args:
        body: Network with one output.
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, observations: Tensor) -> Tensor:
        """[N, ...] observations to values [N]."""
        outputs: Tensor = self.body(observations)
        return outputs.squeeze(-1) * self.scale + self.mean

    @torch.no_grad()
    def rescale(self, targets: Tensor, rate: float = 0.1) -> None:
        """Move the units towards the moments of new targets, without changing any value.

        The first time they are taken over as they are, and values move: they knew nothing yet.

        Args:
            targets: [N] Values to be learned.
            rate: How far to move, in (0, 1].
        """
        mean, scale = targets.mean().to(self.mean), targets.std(correction=0).to(self.scale)
        if not self.fitted:
            self.fitted.fill_(True)
            self.mean.copy_(mean)
            self.scale.copy_(torch.where(scale > 1e-6, scale, 1.0))
            return
        mean = torch.lerp(self.mean, mean, rate)
        # Targets that are all alike say nothing of the scale.
        scale = torch.where(scale > 1e-6, torch.lerp(self.scale, scale, rate), self.scale)
        ratio, shift = self.scale / scale, (self.mean - mean) / scale
        head = self.body.head
        head.weight.mul_(ratio)
        bias = head.weight if isinstance(head, nn.Embedding) else head.bias
        bias.add_(shift)
        self.mean.copy_(mean)
        self.scale.copy_(scale)


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
