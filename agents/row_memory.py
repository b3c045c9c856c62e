"""The memory of past trajectories in compressed form."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl.agents import tables

if TYPE_CHECKING:
    from awsgd_rl.agents.tabular import TabularTrajectories


class RowMemory:
    """The last `capacity` trajectories, their rows in one growing array.

    Rows are appended; when the array is full, those of trajectories that are gone are squeezed out
    into an array twice the size of what is left: O(1) a row in the long run, and memory in
    proportion to what the stored trajectories hold.
    """

    def __init__(self, capacity: int, n_actions: int, n_sums: int = 3) -> None:
        self.capacity = capacity
        self.stored = 0  # trajectories held, at most `capacity`
        self._next = 0
        self._end = 0
        self.rows = tables.Rows(
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
            np.empty(1024, np.int32),
            np.empty((1024, n_actions, n_sums)),
        )
        self.log_drawn = torch.zeros(capacity, dtype=torch.float64)

    def append(self, trajectories: "TabularTrajectories") -> NDArray[np.int64]:
        """Store trajectories [B], the oldest making way; return their slots [B].

        Raises:
            ValueError: if there are more of them than the memory holds.
        """
        n = len(trajectories)
        if n > self.capacity:
            raise ValueError(
                f"got a batch of {n} trajectories for a memory of {self.capacity}: make it larger"
            )
        slots = (self._next + np.arange(n)) % self.capacity
        self.rows.size[slots] = 0  # before making room, so that what is replaced is squeezed out
        sizes = trajectories.rows.size[trajectories.which]
        self._make_room(int(sizes.sum()))
        tables.copy_rows(trajectories.rows, trajectories.which, self.rows, slots, self._end)
        self._end += int(sizes.sum())
        self.log_drawn[torch.from_numpy(slots)] = trajectories.log_drawn
        self._next = int((self._next + n) % self.capacity)
        self.stored = min(self.stored + n, self.capacity)
        return slots

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the trajectories, slot by slot without what is between them, and where it goes on.

        Tensors: `size` [N], `state` [R], `sums` [R, A, ...] and `log_drawn` [N].
        """
        rows = self._squeezed(int(self.rows.size.sum()))
        tensors = {
            "size": torch.from_numpy(rows.size),
            "state": torch.from_numpy(rows.state),
            "sums": torch.from_numpy(rows.sums),
            "log_drawn": self.log_drawn.clone(),
        }
        return tensors, {"stored": self.stored, "next": self._next}

    def check_training_state(self, tensors: dict[str, Tensor], values: Any, n_states: int) -> None:
        """Check what is to be given to `restore_training`; nothing changes.

        Raises:
            ValueError: a number in it would lead out of the memory, or the state space.
        """
        size, state = tensors["size"], tensors["state"]
        places = isinstance(values, dict) and all(
            isinstance(values.get(name), int) and 0 <= values[name] < self.capacity + extra
            for name, extra in (("stored", 1), ("next", 0))
        )
        if not (
            places
            and len(state) == len(tensors["sums"])
            and bool(((size >= 0) & (size <= len(state))).all())
            and int(size.sum()) == len(state)
            and bool(((state >= 0) & (state < n_states)).all())
        ):
            raise ValueError("the trajectories of the memory do not fit together: it is damaged")

    def restore_training(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `training_state` returned, after `check_training_state`."""
        size = tensors["size"].numpy().copy()
        self.rows = tables.Rows(
            np.cumsum(size) - size,
            size,
            tensors["state"].numpy().copy(),
            tensors["sums"].numpy().copy(),
        )
        self.log_drawn = tensors["log_drawn"].clone()
        self.stored, self._next = values["stored"], values["next"]
        self._end = len(self.rows.state)

    def _make_room(self, n_rows: int) -> None:
        if self._end + n_rows <= len(self.rows.state):
            return
        live = int(self.rows.size.sum())
        self.rows, self._end = self._squeezed(max(1024, 2 * (live + n_rows))), live

    def _squeezed(self, room: int) -> tables.Rows:
        """Return a copy in slot order, without rows of trajectories that are gone."""
        new = tables.Rows(
            np.zeros_like(self.rows.first),
            np.zeros_like(self.rows.size),
            np.empty(room, np.int32),
            np.empty((room, *self.rows.sums.shape[1:])),
        )
        everything = np.arange(self.capacity)
        tables.copy_rows(self.rows, everything, new, everything, 0)
        return new
