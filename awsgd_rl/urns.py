"""Urns: softmax proposals of one axis that compiled loops draw from with one look-up.

An urn holds tickets, each with the number of an item; a draw takes one ticket. An item's
probability is its share of the tickets, exactly: softmax(τ) is rounded once, when the urn is filled
never when a weight is computed. The ticket that every item keeps bounds all weights.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


class Urn(NamedTuple):
    """The proposal of one axis, rows or columns, with n items."""

    tau: Floats
    """[n]"""
    share: Floats
    """[n] what the target draws of each item, sums to 1; items of share 0 are never drawn."""
    weight: NDArray[np.float32]
    """[n] share / q of the tickets in use: what an item weighs; 0 where the share is 0."""
    tickets: NDArray[Any]
    """[(per_item + 3) n] items; the first `size` are in the urn."""
    size: NDArray[np.uint64]
    """[1]"""
    per_item: NDArray[np.int64]
    """[1] tickets per item: no density relative to the target's falls much below 1 / per_item."""


def make_urn(share: Floats, tau: Floats | None = None, *, per_item: int = 8) -> Urn:
    """Return a filled urn.

    Args:
        share: [n] what the target draws of each item, finite and non-negative, sums to 1.
        tau: [n] finite; None is zeros.
        per_item: tickets per item.
    """
    n = len(share)
    urn = Urn(
        np.zeros(n) if tau is None else np.array(tau, np.float64),
        np.asarray(share, np.float64),
        np.empty(n, np.float32),
        # Half the memory where it does: the tickets should stay in a near cache.
        np.empty((per_item + 3) * n, np.uint16 if n <= 2**16 else np.uint32),
        np.empty(1, np.uint64),
        np.full(1, per_item),
    )
    fill(urn)
    return urn


def probabilities(urn: Urn) -> Floats:
    """Return [n] the probability of each item, of the tickets in use."""
    tickets = np.bincount(urn.tickets[: int(urn.size[0])], minlength=len(urn.tau))
    return np.asarray(tickets / tickets.sum())


@_jit
def fill(urn: Urn) -> None:
    """Fill the urn from τ: tickets in proportion to share * exp(τ), at least one per item.

    What the urn cannot express, τ does not keep: it is moved up to a relative density of
    1 / per_item, so that an item that was of no use for long is soon back.
    """
    tau, share, weight, tickets, size, per_item = urn
    most = per_item[0]
    n = tau.shape[0]
    top = -np.inf
    for i in range(n):
        if share[i] > 0.0:
            top = max(top, tau[i])
    total = 0.0
    for i in range(n):
        weight[i] = 0.0
        if share[i] > 0.0:
            tau[i] -= top
            weight[i] = np.exp(tau[i])
            total += share[i] * weight[i]
    lowest = np.log(total / most)
    place = 0
    for i in range(n):
        if share[i] > 0.0:
            if tau[i] < lowest:
                tau[i] = lowest
                weight[i] = total / most
            # All together at most 1 + 1 / most times most * n, and one more for each.
            count = max(1, int(most * n * share[i] * weight[i] / total + 0.5))
            weight[i] = share[i] / count
            tickets[place : place + count] = i
            place += count
    size[0] = place
    for i in range(n):
        weight[i] *= place


@_jit
def random_bits(state: NDArray[np.uint64]) -> Any:
    """Return 64 random bits, and move the [1] state on (splitmix64, Steele 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_jit
def below(bits: Any, n: Any) -> Any:
    """Return one of 0 ... n - 1, n < 2^32, from 32 random bits."""
    return (bits * np.uint64(n)) >> np.uint64(32)
