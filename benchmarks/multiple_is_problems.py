"""What the bench `multiple-is` learns: a polynomial, digits, the colours of an image, points."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from awsgd_rl.benchmarks import data as datasets

ORDER: Final = 6
COEFFICIENTS: Final = (1.0, -0.5, 1.5, 0.5, -1.0, 0.5, 1.0)
CHOSEN: Final = (0, 3, 6)
"""The orders of the Legendre polynomials whose coefficients have a proposal each."""


class Problem(NamedTuple):
    """Data, a network, a loss, and what the proposals are made from."""

    x: Tensor
    """[N, D] inputs."""
    y: Tensor
    """[N, K] values, or [N] classes."""
    reference: Tensor
    """What the reported loss is computed against: y, or without its noise."""
    network: Callable[[], nn.Module]
    batch: int
    steps: int
    optimizer: Callable[..., torch.optim.Optimizer]
    per_coefficient: bool = False
    """A proposal for each of a few coefficients, not for each output."""

    @property
    def nodes(self) -> int:
        """Number J of proposals."""
        if self.per_coefficient:
            return len(CHOSEN)
        return self.y.shape[1] if self.y.dim() == 2 else int(self.y.max()) + 1

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """[B] cross-entropy, or squared error, mean over the K outputs."""
        if y.dim() == 1:
            return functional.cross_entropy(outputs, y, reduction="none")
        squared: Tensor = (outputs - y).square()
        return squared.mean(1)

    def node_gradients(self, outputs: Tensor, items: Tensor) -> Tensor:
        """[B, J] signed gradient of each loss in each output, or in each chosen coefficient."""
        y = self.y[items]
        if y.dim() == 1:
            return outputs.detach().softmax(1) - functional.one_hot(y, outputs.shape[1])
        gradients = outputs.detach().sub(y).mul(2.0 / y.shape[1])
        return gradients * self.x[items][:, list(CHOSEN)] if self.per_coefficient else gradients

    def norms(self, outputs: Tensor, items: Tensor) -> Tensor:
        """[B] norm of each loss's gradient in the outputs; of a polynomial, in all coefficients."""
        gradients = self.node_gradients(outputs, items)
        if self.per_coefficient:
            residuals = outputs.detach() - self.y[items]
            gradients = 2.0 * residuals * self.x[items]
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
        return norms


def make_problem(name: str, *, quick: bool, data: Path | None, seed: int) -> Problem:
    """One of the four tasks, small if `quick`; `seed` is that of noise and points."""
    share = 20 if quick else 1
    if name == "polynomial":
        return _polynomial(2_000, 3_000 // share, seed)
    if name == "mnist":
        return _digits(datasets.digits() if quick else datasets.mnist(data), 3_000 // share)
    if name == "image":
        return _image(16 if quick else 5, 2_000 // share)
    return _torus(1_000 if quick else 8_000, 2_000 // share, seed)


def _polynomial(n: int, steps: int, seed: int) -> Problem:
    """A polynomial of order 6 on [-2, 2] with noise, in Legendre polynomials of unit mean square.

    The reported loss is the squared distance to the least-squares fit, that is the excess loss.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(-2.0, 2.0, n)
    basis = np.polynomial.legendre.legvander(x / 2.0, ORDER) * np.sqrt(2 * np.arange(ORDER + 1) + 1)
    y = basis @ COEFFICIENTS + rng.normal(0.0, 0.3, n)
    fit = basis @ np.linalg.lstsq(basis, y)[0]

    def network() -> nn.Module:
        return nn.Linear(ORDER + 1, 1, bias=False)

    features, values, best = (
        torch.tensor(part, dtype=torch.float32) for part in (basis, y[:, None], fit[:, None])
    )
    return Problem(features, values, best, network, 30, steps, torch.optim.SGD, True)


def _digits(labelled: datasets.Labelled, steps: int) -> Problem:
    """Ten classes of handwritten digits, and a network of one hidden layer."""
    x, y = torch.from_numpy(labelled.x_train), torch.from_numpy(labelled.y_train)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))

    return Problem(x, y, y, network, 60, steps, torch.optim.SGD)


def _image(scale: int, steps: int) -> Problem:
    """The colours R, G and B of scikit-learn's `china.jpg` at each pixel, scaled down."""
    from sklearn.datasets import load_sample_image

    pixels = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None].float()
    small = functional.avg_pool2d(pixels / 255.0, scale)[0]
    rows, columns = small.shape[1:]
    grid = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
    colours = small.flatten(1).T.contiguous()
    return Problem(grid, colours, colours, lambda: _siren(2, 3, 20.0), 240, steps, torch.optim.Adam)


def _torus(n: int, steps: int, seed: int) -> Problem:
    """Signed distance and normal of a torus at points around it, most of them near: 4 outputs.

    Radii 0.6 and 0.2; the points are the surface's, moved along the normal by up to 0.2, and the
    farther the rarer.
    """
    rng = np.random.default_rng(seed)
    around, across = rng.uniform(0.0, 2.0 * np.pi, (2, n))
    distance = 0.2 * rng.uniform(-1.0, 1.0, n) ** 3
    outwards = np.stack([np.cos(around), np.sin(around), np.zeros(n)], 1)
    normal = outwards * np.cos(across)[:, None] + np.sin(across)[:, None] * [0.0, 0.0, 1.0]
    points = 0.6 * outwards + (0.2 + distance)[:, None] * normal
    # In units in which the distance varies about as much as a normal's entry.
    values = torch.tensor(np.column_stack([5.0 * distance, normal]), dtype=torch.float32)
    x = torch.tensor(points, dtype=torch.float32)
    return Problem(x, values, values, lambda: _siren(3, 4, 5.0), 160, steps, torch.optim.Adam)


class Sine(nn.Module):
    """sin(ω x), the activation of a SIREN (Sitzmann 2020)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """[...] as x."""
        return (self.frequency * x).sin()


def _siren(inputs: int, outputs: int, frequency: float, width: int = 64) -> nn.Module:
    """Two hidden layers of sines, with the first parameters of Sitzmann 2020, section 3.2."""
    layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
    for k, layer in enumerate(layers):
        bound = 1.0 / inputs if k == 0 else (6.0 / width) ** 0.5 / frequency
        nn.init.uniform_(layer.weight, -bound, bound)
    sine = Sine(frequency)
    return nn.Sequential(layers[0], sine, layers[1], sine, layers[2])
