"""What a replay buffer gives: transitions, and where they came from."""

from typing import Any, NamedTuple

from torch import Tensor

from awsgd_rl.base import Draw
from awsgd_rl.two_stage import chain


class ReplaySample(NamedTuple):
    """B transitions drawn from a buffer, on its device. With a Dict space a dict of tensors."""

    observations: Any
    """[B, ...]"""
    actions: Any
    """[B, ...]; of a Discrete or MultiDiscrete space long."""
    rewards: Tensor
    """[B] float32, Σ_j discount^j r_j over the k ≤ n steps of the return."""
    next_observations: Any
    """[B, ...] after those k steps; where an episode ended its final observation."""
    discounts: Tensor
    """[B] float32, discount^k; 0 where the episode terminated (not where it was truncated).
    The target is `rewards + discounts * value(next_observations)`."""
    draw: Draw
    """The slots [B], and the log probability [B] of each as it was drawn."""
    stamp: int
    """Number of transitions that had been added when this was drawn."""


def pick(candidates: ReplaySample, second: Draw) -> ReplaySample:
    """The sample of two stages: some of the candidates, with the probability of both stages.

    Args:
      candidates: of the first stage.
      second: [B] positions among them, from `two_stage.two_stage_draw`.

    Returns:
      The B of them.
    """

    def rows(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: rows(part) for key, part in given.items()}
        return given.index_select(0, second.items)

    return ReplaySample(
        rows(candidates.observations),
        rows(candidates.actions),
        rows(candidates.rewards),
        rows(candidates.next_observations),
        rows(candidates.discounts),
        chain(candidates.draw, second),
        candidates.stamp,
    )
