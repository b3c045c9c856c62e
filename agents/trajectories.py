"""Batches of whole trajectories, and the memory of past ones."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Episode(NamedTuple):
    """One whole episode of L steps.

    Attributes:
        observations: [L + 1, ...] Observations; the last one is the final observation.
        actions: [L, ...] Actions in the policy's units.
        rewards: [L] Rewards as the environment gave them.
        terminated: Whether the environment ended it; False if it was cut off (truncated).
        success: `info["is_success"]` of the last step as 0 or 1, nan if there was none.
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[np.float64]
    terminated: bool
    success: float


@dataclass
class Trajectories:
    """B whole episodes, padded to the longest, T steps.

    Attributes:
        observations: [T + 1, B, ...] Raw observations (long [T + 1, B] if Discrete), the final
            one at row `lengths[b]`; zero beyond.
        actions: [T, B] long, or [T, B, A] float in the policy's units.
        rewards: [T, B] Rewards as the environment gave them; zero beyond the end.
        mask: [T, B] True at the steps that happened.
        step_log_drawn: [T, B] Log-probability of each action under the policy that drew it.
        terminated: [B] True if the environment ended the episode, False if it was truncated.
        lengths: [B] Steps, long.
        returns: [B] Discounted sums of rewards, float64.
        success: [B] 1 or 0, nan if unknown, float64.
        from_target: [B] True if P_w drew it, False if Q_tau did.
        log_drawn: [B] Log-density that the trajectory was drawn with, float64. It starts as that
            of the policy that drew it; an agent whose density is another (a mixture) replaces it.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    step_log_drawn: Tensor
    terminated: Tensor
    lengths: Tensor
    returns: Tensor
    success: Tensor
    from_target: Tensor
    log_drawn: Tensor

    def __len__(self) -> int:
        return self.lengths.shape[0]

    @property
    def raw_returns(self) -> Tensor:
        """[B] Undiscounted sums of rewards, float64: SB3's episode reward."""
        return self.rewards.sum(0, dtype=torch.float64)

    @property
    def visited(self) -> Tensor:
        """[T + 1, B] True at observations that happened, the final ones included."""
        steps = torch.arange(self.observations.shape[0], device=self.lengths.device)
        return steps.unsqueeze(1) <= self.lengths

    def rows(self) -> list["Trajectories"]:
        """The B trajectories one by one, without padding, in memory of their own."""
        return [
            Trajectories(
                **{
                    field.name: getattr(self, field.name)[
                        : length + (field.name == "observations"), b : b + 1
                    ].clone()
                    if field.name in _STEPWISE
                    else getattr(self, field.name)[b : b + 1].clone()
                    for field in fields(self)
                }
            )
            for b, length in enumerate(self.lengths.tolist())
        ]

    @staticmethod
    def stack(rows: Sequence["Trajectories"]) -> "Trajectories":
        """Join batches (of any size) into one padded batch.

        Args:
            rows: Batches, at least one.
        """
        joined = {}
        for field in fields(Trajectories):
            parts = [getattr(row, field.name) for row in rows]
            if field.name in _STEPWISE:
                longest = max(part.shape[0] for part in parts)
                width = sum(part.shape[1] for part in parts)
                padded = parts[0].new_zeros((longest, width, *parts[0].shape[2:]))
                column = 0
                for part in parts:
                    padded[: part.shape[0], column : column + part.shape[1]] = part
                    column += part.shape[1]
                joined[field.name] = padded
            else:
                joined[field.name] = torch.cat(parts)
        return Trajectories(**joined)


_STEPWISE = frozenset({"observations", "actions", "rewards", "mask", "step_log_drawn"})


class TrajectoryMemory:
    """A ring of the last trajectories.

    Args:
        size: Trajectories that it holds.
    """

    def __init__(self, size: int) -> None:
        self._rows: list[Trajectories | None] = [None] * size
        self._next = 0

    def remember(self, trajectories: Trajectories) -> Tensor:
        """Store trajectories in place of the oldest.

        Args:
            trajectories: B trajectories, at most as many as the memory holds.

        Returns:
            [B] long: the slots that hold them now.

        Raises:
            ValueError: if they do not fit.
        """
        size = len(self._rows)
        if len(trajectories) > size:
            raise ValueError(
                f"{len(trajectories)} trajectories do not fit into a memory of {size}: "
                "raise `memory` or collect fewer at a time"
            )
        slots = [(self._next + b) % size for b in range(len(trajectories))]
        for slot, row in zip(slots, trajectories.rows(), strict=True):
            self._rows[slot] = row
        self._next = (self._next + len(trajectories)) % size
        return torch.tensor(slots, device=trajectories.lengths.device)

    def recall(self, slots: Tensor) -> Trajectories:
        """Give back the trajectories in slots [B] (repeats allowed), as they were stored.

        Raises:
            ValueError: if a slot is empty or not there.
        """
        rows = []
        for slot in slots.tolist():
            row = self._rows[slot] if 0 <= slot < len(self._rows) else None
            if row is None:
                raise ValueError(f"slot {slot} of the memory holds no trajectory")
            rows.append(row)
        return Trajectories.stack(rows)


def pad_episodes(
    episodes: Sequence[Episode],
    explore: npt.NDArray[np.bool_],
    discount: float,
    device: torch.device,
) -> Trajectories:
    """Make one padded batch of episodes, with all log-probabilities still zero.

    Args:
        episodes: B episodes, their observations already in the units that are learned with.
        explore: [B] Whether Q_tau ran it.
        discount: Discount of `returns`.
        device: Where the tensors go.

    Raises:
        ValueError: if a reward or an observation is not finite.
    """
    lengths = np.array([len(episode.rewards) for episode in episodes])
    longest, count = int(lengths.max()), len(episodes)
    seen, acted = episodes[0].observations, episodes[0].actions
    observations = np.zeros((longest + 1, count, *seen.shape[1:]), seen.dtype)
    actions = np.zeros((longest, count, *acted.shape[1:]), acted.dtype)
    rewards = np.zeros((longest, count))
    for b, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        observations[: length + 1, b] = episode.observations
        actions[:length, b] = episode.actions
        rewards[:length, b] = episode.rewards
    if not (np.isfinite(rewards).all() and np.isfinite(observations).all()):
        raise ValueError(
            "the environment gave a reward or an observation that is not finite: "
            "repair it, nothing can be learned from such an episode"
        )

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Trajectories(
        observations=tensor(observations),
        actions=tensor(actions),
        rewards=tensor(rewards.astype(np.float32)),
        mask=tensor(np.arange(longest)[:, None] < lengths),
        step_log_drawn=torch.zeros(longest, count, dtype=torch.float64, device=device),
        terminated=tensor(np.array([episode.terminated for episode in episodes])),
        lengths=tensor(lengths),
        returns=tensor(discount ** np.arange(longest) @ rewards),
        success=tensor(np.array([episode.success for episode in episodes])),
        from_target=tensor(~explore),
        log_drawn=torch.zeros(count, dtype=torch.float64, device=device),
    )
