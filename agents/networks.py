"""Networks of the neural agents: multilayer perceptrons and tables, and what feeds them.

Weights are drawn on the CPU from a generator that is passed in: global randomness is not touched,
and a seed gives the same network on every device.
"""

import math
from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

Kind = Literal["mlp", "table"]


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
