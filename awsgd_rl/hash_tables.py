"""Tables of sign hashes (SimHash, Charikar 2002): codes, and their buckets as one sorted list.

A code has a bit a random direction: the side on which a vector lies. Vectors at a small angle
share a code often. Directions have entries ±1, all of them or few.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MOST_BITS = 20
"""Every table has a place for each code: 2^bits of them."""

_CHUNK = 2**22  # projections at a time, when all keys are hashed


class Buckets(NamedTuple):
    """Items by code: those of code c in table t lie from `first[t, c]` to `first[t, c + 1]`."""

    order: Tensor
    """[(L + 1) N] int32: all items as they are, then for each table sorted by their code."""
    first: Tensor
    """[L 2^K + 1] long, places in `order`; row-major over tables and codes."""


def random_directions(
    dimension: int,
    count: int,
    nonzeros: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Directions with s entries of fair signs, at random places (Li, Hastie & Church 2006).

    Args:
      dimension: D of the keys.
      count: how many.
      nonzeros: s, at most D.
      generator: a generator of the device; None takes PyTorch's own.
      device: where.

    Returns:
      [count, D] float32 of −1, 0 and 1.
    """
    shape = (count, dimension)
    places = torch.rand(shape, generator=generator, device=device).argsort(-1)[:, :nonzeros]
    coins = torch.rand((count, nonzeros), generator=generator, device=device)
    signs = torch.where(coins < 0.5, -1.0, 1.0)
    return torch.zeros(shape, device=device).scatter_(1, places, signs)


def hash_vectors(vectors: Tensor, directions: Tensor, tables: int, symmetric: bool) -> Tensor:
    """The code of each vector in each table, in O(K L D) a vector.

    Args:
      vectors: [M, D].
      directions: [L K, D].
      tables: L.
      symmetric: z and −z get the same code.

    Returns:
      [M, L] from 0 to 2^K − 1, of the smallest signed type: a draw reads L of them an item.
    """
    bits = len(directions) // tables
    powers = 2 ** torch.arange(bits, device=vectors.device, dtype=torch.int32)
    dtype = torch.int8 if bits < 8 else torch.int16 if bits < 16 else torch.int32
    parts = []
    chunk = max(1, _CHUNK // len(directions))
    vectors = vectors.to(torch.float32)
    for start in range(0, len(vectors), chunk):
        products = vectors[start : start + chunk] @ directions.T
        sides = (products > 0).view(-1, tables, bits)
        if symmetric:
            # The codes of z and −z are complements: of both the one whose first bit is 0 stays.
            sides = sides ^ sides[..., :1]
        parts.append((sides * powers).sum(-1).to(dtype))
    return torch.cat(parts)


def sort_into_buckets(codes: Tensor, bits: int) -> Buckets:
    """Lay the items of every table out by their code.

    Args:
      codes: [N, L], from 0 to 2^bits − 1.
      bits: K.
    """
    n, tables = codes.shape
    order = torch.empty((tables + 1, n), dtype=torch.int32, device=codes.device)
    order[0] = torch.arange(n, device=codes.device)
    sizes = torch.empty((tables, 2**bits), dtype=torch.long, device=codes.device)
    for table in range(tables):
        column = codes[:, table]
        order[table + 1] = column.sort(stable=True).indices
        sizes[table] = torch.bincount(column, minlength=2**bits)
    first = n + torch.nn.functional.pad(sizes.flatten().cumsum(0), (1, 0))
    return Buckets(order.flatten(), first)
