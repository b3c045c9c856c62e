"""Draws of examples with large gradients in O(1) of their number, by hashing (LGD).

Where a gradient's norm grows with an inner product ⟨query, key⟩, examples that share a hash code
with the query tend to have large gradients, and none of them has to be looked at to find them
(Chen, Xu & Shrivastava 2019). Keys stay as they are in training, the query follows the parameters:

    proposal = HashProposal(squared_loss_keys(x, y, a))
    for ...:
        proposal.set_query(squared_loss_query(theta, a))
        draw = proposal.draw(batch_size, generator=rng)      # weights: 1 / (N q), as ever

What it gains and where it loses is in docs/hashing.md.
"""

import torch
from torch import Tensor

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.hash_kernels import draw_items, look_up, write_codes
from awsgd_rl.hash_tables import (
    MOST_BITS,
    hash_vectors,
    random_directions,
    sort_into_buckets,
)
from awsgd_rl.sampling import cumulative_scores, draw_uniforms, sample_from_cumulative
from awsgd_rl.validation import require_integer, require_positive, require_probability

__all__ = [
    "HashProposal",
    "check_keys",
    "check_query",
    "logistic_keys",
    "squared_loss_keys",
    "squared_loss_query",
]


class HashProposal(Proposal):
    """Items that share the query's bucket in one of L tables; a share is drawn uniformly.

    q(i) = (1 − u) mean_t 1[i ∈ S_t] / |S_t| + u / N, the mean over the tables t whose bucket S_t of
    the query is not empty; where all are empty, and before the first query, q is uniform. It is
    exact for the tables in use, so that weighted means are unbiased for every query, also an old
    one (the published probability of LGD averages over the draw of tables: `hash_theory`).

    A query costs O(K L D), a draw O(L), both whatever N is; memory is 5 bytes × N L (K up to 7).

    Args:
      keys: [N, D] one vector an item. Not kept.
      bits: K, the bits of a code, at most 20. More bits: smaller buckets, more of them empty.
      tables: L. More tables: weights vary less, draws cost more.
      symmetric: draw keys of large |⟨query, key⟩| (squared loss: residuals of both signs), not of
        large ⟨query, key⟩ (logistic loss).
      uniform_share: u; weights stay below 1 / u. With u = 0 means are biased.
      nonzeros: entries ±1 of a random direction, the others are 0; None takes all D. Sparse
        directions tell little where few entries of the keys say it all, as the residual's does.
      generator: a generator of the keys' device, for the directions; None takes PyTorch's own.

    Raises:
      ValueError: if keys are not a matrix of finite numbers, or a setting is out of range.
    """

    directions: Tensor
    codes: Tensor
    query_codes: Tensor
    _order: Tensor
    _first: Tensor
    _starts: Tensor
    _sizes: Tensor
    _shares: Tensor
    _densities: Tensor

    def __init__(
        self,
        keys: Tensor,
        *,
        bits: int = 6,
        tables: int = 64,
        symmetric: bool = True,
        uniform_share: float = 0.2,
        nonzeros: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        keys = check_keys(keys)
        dimension = keys.shape[1]
        bits, tables = require_integer("bits", bits), require_integer("tables", tables)
        if bits > MOST_BITS:
            raise ValueError(f"bits is {bits}, expected at most {MOST_BITS}")
        if nonzeros is None:
            nonzeros = dimension
        if require_integer("nonzeros", nonzeros) > dimension:
            raise ValueError(f"nonzeros is {nonzeros}, expected at most the keys' {dimension}")
        self.n, self.dimension, self.bits, self.tables = len(keys), dimension, bits, tables
        self.symmetric = symmetric
        self.uniform_share = require_probability("uniform_share", uniform_share)
        directions = random_directions(
            dimension, tables * bits, nonzeros, generator=generator, device=keys.device
        )
        codes = hash_vectors(keys, directions, tables, symmetric)
        self.register_buffer("directions", directions)
        self.register_buffer("codes", codes)
        # No item has the code −1: nothing is found yet.
        self.register_buffer("query_codes", torch.full_like(codes[0], -1))
        for name in ("_order", "_first", "_starts", "_sizes", "_shares", "_densities"):
            self.register_buffer(name, None, persistent=False)
        self._sort()

    def _follow_state(self) -> None:
        self._sort()

    def set_query(self, query: Tensor) -> None:
        """Look a query up in all tables; later draws go by it. Its length does not matter.

        Args:
          query: [D] of any type.

        Raises:
          ValueError: if the shape differs, or (on the CPU) an entry is NaN or infinite.
        """
        query = check_query(query, self.dimension)
        if self.directions.device.type == "cpu":
            products = self.directions @ query.to(torch.float32)
            write_codes(products.numpy(), self.symmetric, self.query_codes.numpy())
        else:
            codes = hash_vectors(query.unsqueeze(0), self.directions, self.tables, self.symmetric)
            self.query_codes.copy_(codes[0])
        self._look_up()

    @property
    def bucket_sizes(self) -> Tensor:
        """[L] long, how many items share the query's bucket in each table."""
        return self._sizes[1:].clone()

    def probabilities(self) -> Tensor:
        """[N] float64, the probability of every item, in O(N L); sums to 1."""
        return self._density(self.codes)

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability under the present query; there is no τ, so no gradient."""
        self._check_given(len(items), given)
        return self._density(self.codes.index_select(0, items)).log()

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        uniforms = draw_uniforms(2 * count, device=self.codes.device, generator=generator)
        if uniforms.device.type == "cpu":
            tables = (self._shares, self._starts, self._sizes, self._order)
            codes = (self.codes, self.query_codes, self._densities)
            items, log_q = draw_items(*[part.numpy() for part in (uniforms, *tables, *codes)])
            return Draw(torch.from_numpy(items), torch.from_numpy(log_q))
        return self._draw_tensors(count, uniforms)

    def _draw_tensors(self, count: int, uniforms: Tensor) -> Draw:
        tables = sample_from_cumulative(self._shares, uniforms[:count])
        sizes = self._sizes.index_select(0, tables)
        # A product with a number below 1 may round up to the size itself.
        within = (uniforms[count:] * sizes).long().minimum(sizes - 1)
        places = self._starts.index_select(0, tables) + within
        items = self._order.index_select(0, places).long()
        return Draw(items, self._density(self.codes.index_select(0, items)).log())

    def _density(self, codes: Tensor) -> Tensor:
        hits = (codes == self.query_codes).to(torch.float64)
        return hits @ self._densities[1:] + self._densities[0]

    def _sort(self) -> None:
        self._order, self._first = sort_into_buckets(self.codes, self.bits)
        self._look_up()

    def _look_up(self) -> None:
        """Table 0 is the uniform one: all items in one bucket."""
        if self.codes.device.type == "cpu":
            found = look_up(
                self.query_codes.numpy(),
                self._first.numpy(),
                self.bits,
                self.n,
                self.uniform_share,
            )
            self._starts, self._sizes, self._shares, self._densities = map(torch.from_numpy, found)
        else:
            self._look_up_tensors()

    def _look_up_tensors(self) -> None:
        table = torch.arange(self.tables, device=self.codes.device)
        bucket = (table * 2**self.bits + self.query_codes).clamp_min(0)
        starts = self._first.index_select(0, bucket)
        sizes = self._first.index_select(0, bucket + 1) - starts
        sizes = torch.where(self.query_codes >= 0, sizes, 0)
        pad = torch.nn.functional.pad
        self._starts, self._sizes = pad(starts, (1, 0)), pad(sizes, (1, 0), value=self.n)
        found = (sizes > 0).to(torch.float64)
        count = found.sum()
        share = found * (1.0 - self.uniform_share) / count.clamp_min(1.0)
        uniform = 1.0 - (1.0 - self.uniform_share) * (count > 0).to(torch.float64)
        shares = torch.cat((uniform.unsqueeze(0), share))
        self._shares = cumulative_scores(shares)
        self._densities = shares / self._sizes.clamp_min(1)


def squared_loss_keys(features: Tensor, targets: Tensor, feature_scale: float = 1.0) -> Tensor:
    """Keys [a x, y] of linear regression, whose inner product with the query is the residual.

    The gradient of (y − ⟨θ, x⟩)² is 2 ‖x‖ |⟨[θ / a, −1], [a x, y]⟩| long. A hash sees the angle
    alone, whose cosine is r / (‖query‖ √(a² ‖x‖² + y²)): residuals far above a ‖x‖ fall on the
    query, those far below are at a right angle to it. So take a ≈ t / rms ‖x‖, with t the residual
    from which on a gradient counts as large.

    Args:
      features: [N, d], with a column of ones if there is an intercept.
      targets: [N]; or the residuals of a reference θ₀, with θ − θ₀ in the query.
      feature_scale: a.

    Returns:
      [N, d + 1] keys, for symmetric hashing.

    Raises:
      ValueError: if the sizes do not match, or a is not positive.
    """
    _check_rows(features, targets, "targets")
    scale = require_positive("feature_scale", feature_scale)
    return torch.cat((scale * features, targets.to(features.dtype).unsqueeze(1)), 1).detach()


def squared_loss_query(weights: Tensor, feature_scale: float = 1.0) -> Tensor:
    """[d + 1] the query [θ / a, −1] that goes with `squared_loss_keys`; [d] weights."""
    return torch.nn.functional.pad(weights.detach() / feature_scale, (0, 1), value=-1.0)


def logistic_keys(features: Tensor, labels: Tensor) -> Tensor:
    """Keys y x of logistic regression with labels ±1; the query is −θ, hashing not symmetric.

    The gradient of log(1 + exp(−y ⟨θ, x⟩)) is ‖x‖ ς(⟨−θ, y x⟩) long.

    Args:
      features: [N, d].
      labels: [N] −1 or 1.

    Returns:
      [N, d].

    Raises:
      ValueError: if the sizes do not match, or a label is neither −1 nor 1.
    """
    _check_rows(features, labels, "labels")
    bad = labels.abs() != 1
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(f"label {row} is {labels[row].item()}, expected -1 or 1")
    return (features * labels.to(features.dtype).unsqueeze(1)).detach()


def check_keys(keys: Tensor) -> Tensor:
    """Return keys without gradient, if they are [N, D] of finite numbers.

    Raises:
      ValueError: otherwise, with the first row at fault.
    """
    if keys.dim() != 2 or keys.numel() == 0 or not keys.is_floating_point():
        raise ValueError(
            f"keys has shape {tuple(keys.shape)} and type {keys.dtype}, expected [N, D] of floats"
        )
    bad = ~keys.detach().isfinite().all(1)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(f"row {row} of keys has a NaN or infinite entry: mend or drop it")
    return keys.detach()


def check_query(query: Tensor, dimension: int) -> Tensor:
    """Return a query without gradient, if it is [D], and (on the CPU) of finite numbers.

    Raises:
      ValueError: otherwise.
    """
    if query.shape != (dimension,):
        raise ValueError(f"query has shape {tuple(query.shape)}, expected [{dimension}], as a key")
    query = query.detach()
    # Elsewhere the check would wait for the device; there NaN draws from some other bucket.
    if query.device.type == "cpu" and not bool(query.isfinite().all()):
        place = int((~query.isfinite()).to(torch.uint8).argmax())
        raise ValueError(f"query[{place}] is {query[place].item()}, expected finite numbers")
    return query


def _check_rows(features: Tensor, values: Tensor, name: str) -> None:
    if features.dim() != 2 or values.shape != features.shape[:1]:
        raise ValueError(
            f"features has shape {tuple(features.shape)} and {name} {tuple(values.shape)}, "
            "expected [N, d] and [N]"
        )
