"""What hashing does to the variance, by formula: docs/hashing.md derives and shows it.

Also the probability that LGD was published with, for comparison alone: it is biased.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "class_bound",
    "collision_probability",
    "conditional_bucket_share",
    "published_probability",
    "second_moment_factor",
]

Floats = NDArray[np.float64]


def collision_probability(cosines: ArrayLike, bits: int, symmetric: bool) -> Floats:
    """Probability that a key shares the query's code (Goemans & Williamson 1995).

    With φ the angle, `(1 − φ/π)^K`; symmetric, the key or its negative: `+ (φ/π)^K`. Exact for
    Gaussian directions, and close for sparse ones where no few entries dominate.

    Args:
      cosines: [...] of the angle between key and query.
      bits: K.
      symmetric: as in `HashProposal`.

    Returns:
      [...]
    """
    share = 1.0 - np.arccos(np.clip(cosines, -1.0, 1.0)) / np.pi
    return np.asarray(share**bits + (1.0 - share) ** bits if symmetric else share**bits)


def published_probability(
    one_bit: Tensor,
    bits: int,
    probed: int | Tensor,
    bucket_size: int | Tensor,
    *,
    geometric: bool = False,
) -> Tensor:
    """LGD's probability of an item (Chen, Xu & Shrivastava 2019, Algorithm 1). Biased.

    `(1 − (1 − c^K)^l) / |S|`, or in the geometric form `c^K (1 − c^K)^(l − 1) / |S|`: of an item
    whose collision probability per bit is c, found in the first bucket S that is not empty, at the
    l-th table. It averages over draws of the tables, but training keeps its tables: an item that no
    bucket holds is never drawn, and nothing makes up for it. Not for use: `HashProposal`.

    Args:
      one_bit: [...] c.
      bits: K.
      probed: [...] l, from 1.
      bucket_size: [...] |S|.
      geometric: the second form.

    Returns:
      [...]
    """
    hit = one_bit**bits
    if geometric:
        return hit * (1.0 - hit) ** (probed - 1) / bucket_size
    return (1.0 - (1.0 - hit) ** probed) / bucket_size


def second_moment_factor(
    hit: ArrayLike, boost: ArrayLike, tables: int, uniform_share: float
) -> Floats:
    """Upper bound of E[1 / (N q(i))] over the draw of tables, for one item.

    `E[1 / (u + (1 − u) b n / L)]` with n ~ Binomial(L, p): docs/hashing.md, (3). The second moment
    of the weighted gradient is at most the mean of ‖∇ℓ_i‖² times this.

    Args:
      hit: [M] p, the probability that item i shares the query's code in one table.
      boost: [M] b = N / m, with m the expected size of a bucket that holds the query and i.
      tables: L.
      uniform_share: u, above 0.

    Returns:
      [M]
    """
    from scipy.stats import binom

    hit, boost = np.asarray(hit, np.float64), np.asarray(boost, np.float64)
    counts = np.arange(tables + 1)
    chances = binom.pmf(counts, tables, hit[..., None])
    inverse = uniform_share + (1.0 - uniform_share) * boost[..., None] * counts / tables
    return np.asarray((chances / inverse).sum(-1))


def class_bound(
    shares: tuple[float, float, float],
    moments: tuple[float, float, float],
    p1: float,
    p2: float,
    *,
    bits: int,
    tables: int,
    uniform_share: float,
    n: int,
    closed: bool = False,
) -> float:
    """Upper bound of the second moment through the hash family alone: docs/hashing.md, (5), (6).

    Items are in three classes by gradient norm: [t, ∞), (ct, t) and [0, ct].

    Args:
      shares: of the items in each class, largest gradients first; sum to 1.
      moments: what each class adds to mean ‖∇ℓ_i‖².
      p1: one-bit collision probability of any item of the first class is at least this, and of
        any other class at most.
      p2: of any item of the last class at most this, and of any other class at least.
      bits: K.
      tables: L.
      uniform_share: u.
      n: N.
      closed: the simpler and weaker form (6).

    Returns:
      The bound, in the unit of the moments.

    Raises:
      ValueError: if p2 > p1, or p1 is 0.
    """
    if not 0.0 <= p2 <= p1 <= 1.0 or p1 == 0.0:
        raise ValueError(f"p1 is {p1} and p2 {p2}, expected 0 <= p2 <= p1 <= 1 and p1 > 0")
    bucket = min(1.0, 1.0 / n + shares[0] + shares[1] + shares[2] * (p2 / p1) ** bits)
    hits = (p1**bits, p2**bits)
    boosts = (1.0 / bucket, 1.0)
    if closed:
        factors = [
            closed_factor(hit, boost, tables, uniform_share)
            for hit, boost in zip(hits, boosts, strict=True)
        ]
    else:
        factors = second_moment_factor(hits, boosts, tables, uniform_share).tolist()
    return moments[0] * factors[0] + moments[1] * factors[1] + moments[2] / uniform_share


def closed_factor(hit: float, boost: float, tables: int, uniform_share: float) -> float:
    """`min(1/u, max(1 / ((1 − u) b), 1 / (u L)) / p)`, above `second_moment_factor`: (4)."""
    if hit == 0.0:
        return 1.0 / uniform_share
    reach = math.inf if uniform_share == 1.0 else 1.0 / ((1.0 - uniform_share) * boost)
    return min(1.0 / uniform_share, max(reach, 1.0 / (uniform_share * tables)) / hit)


def conditional_bucket_share(
    keys: Tensor, query: Tensor, items: Tensor, bits: int, symmetric: bool, others: Tensor
) -> Floats:
    """Expected size of a bucket that holds the query and an item, m, as a share m / N of all.

    Three vectors are on one side of a random plane with probability `1 − (α + β + γ) / 2π`, with
    the angles between them. Symmetric, the item and the other may each be negative.

    Args:
      keys: [N, D].
      query: [D].
      items: [M] long, the items.
      bits: K.
      symmetric: as in `HashProposal`.
      others: [J] long, a uniform sample of the items, or all.

    Returns:
      [M] estimates (exact if `others` are all items, and for Gaussian directions).
    """
    unit = torch.nn.functional.normalize(keys.to(torch.float64), dim=1)
    to_query = unit @ torch.nn.functional.normalize(query.to(torch.float64), dim=0)
    one, two = to_query[items].numpy(), to_query[others].numpy()
    both = (unit[items] @ unit[others].T).numpy()
    joint = np.zeros_like(both)
    for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)) if symmetric else ((1, 1),):
        angles = [np.arccos(np.clip(c, -1, 1)) for c in (a * one[:, None], b * two, a * b * both)]
        joint += np.clip(1.0 - (angles[0] + angles[1] + angles[2]) / (2 * np.pi), 0, 1) ** bits
    hit = collision_probability(one, bits, symmetric)
    n = len(keys)
    # The item itself is in its bucket for certain, and may not be among the others.
    share = joint.mean(1) / np.maximum(hit, np.finfo(float).tiny)
    return np.asarray(np.clip(share + 1.0 / n, 1.0 / n, 1.0))
