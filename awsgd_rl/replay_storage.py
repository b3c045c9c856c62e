"""The ring in which transitions lie: linked slots, and next observations that are stored once.

Slots are taken in order of arrival, whatever the environment. Each has a link: to the slot of the
same environment's following transition, whose observation is then its next observation; or, where
there is none (an episode ended, or the transition is the newest), to a place aside. n-step returns
follow the links, so none crosses an episode's end, the write pointer, or goes to another
environment; and since older slots are overwritten first, no link dangles.

A transition is one row of bytes, so that reading one touches memory in one place; its fields are
views of it (`TransitionRing.row`).
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl import replay_kernels as kernels
from awsgd_rl.replay_fields import Field, fields_of


class Rows(NamedTuple):
    """What `TransitionRing.read` gathers of B transitions; one tensor per field of a space."""

    observations: list[Tensor]
    actions: list[Tensor]
    returns: Tensor
    next_observations: list[Tensor]
    discounts: Tensor


class Plan(NamedTuple):
    """Where the fields of a sample of a number of transitions lie in one array of bytes."""

    length: int
    begins: NDArray[np.int64]
    size: int
    blocks: list[tuple[tuple[int, ...], np.dtype[Any], np.dtype[Any], int]]
    """Of each: shape, dtype, dtype of the sample, first byte."""


@final
class TransitionRing:
    """Transitions of one or more environments.

    Args:
      capacity: number of slots N.
      observation_space: of one environment.
      action_space: of one environment.
      n_envs: number of environments E.
      device: where.
      compiled: use the kernels; for the CPU.

    Attributes:
      row: the structured type of a transition; observations come first.
      memory: [N, R] uint8, the transitions.
      aside: [P, A] uint8, next observations that are no slot's observation. The first E places are
        for each environment's newest transition.
      links: [N] int32 on the host: the following transition's slot, or −1 − the place aside.
      newest: [E] each environment's newest transition, if it may be followed; else −1.
      free: places aside that are free: the first `free_count` of these.
      added: number of transitions ever added.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        n_envs: int,
        device: torch.device,
        compiled: bool,
    ) -> None:
        self.capacity, self.n_envs, self.device, self.compiled = capacity, n_envs, device, compiled
        self.observation_fields = fields_of("observation", observation_space)
        self.action_fields = fields_of("action", action_space)
        self.fields = (*self.observation_fields, *self.action_fields)
        aside_row = np.dtype([_entry(field) for field in self.observation_fields], align=True)
        others = [_entry(field) for field in self.action_fields]
        for name, dtype in (("reward", np.float32), ("link", np.int32), ("terminated", np.bool_)):
            others.append((name, np.dtype(dtype), ()))
        others.sort(key=lambda entry: -entry[1].itemsize)  # so that less is lost to alignment
        # The observation is a structure within, so that it ends where the one aside does.
        self.row = np.dtype([("observation", aside_row), *others], align=True)
        self.aside_row = aside_row
        self.added = 0
        self.memory = torch.zeros(capacity, self.row.itemsize, dtype=torch.uint8, device=device)
        self.aside = torch.zeros(4 * n_envs, aside_row.itemsize, dtype=torch.uint8, device=device)
        self.newest = np.full(n_envs, -1)
        self.free = np.arange(4 * n_envs - 1, n_envs - 1, -1, dtype=np.int32)
        self.free_count = len(self.free)
        # Zeroed once: what pads the fields stays 0, and rows can be compared by their bytes.
        self._rows = np.zeros(n_envs, self.row)
        self._next_rows = np.zeros(n_envs, aside_row)
        self._kept = _bytes(np.zeros(n_envs, aside_row))
        self._begins = np.array([self.offset(field.name) for field in self.fields])
        self._widths = np.array([_width(field) for field in self.fields])
        self._plan = _plan(self.fields, self.observation_fields, 0)
        self.links = np.zeros(capacity, np.int32)
        self._views()

    @property
    def size(self) -> int:
        """Number of slots that are filled: the first ones."""
        return min(self.added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of memory on the device."""
        return self.memory.nbytes + self.aside.nbytes

    def pack(
        self,
        observations: list[NDArray[Any]],
        actions: list[NDArray[Any]],
        rewards: NDArray[Any],
        next_observations: list[NDArray[Any]],
        terminated: NDArray[np.bool_],
    ) -> None:
        """Puts a row of transitions, all checked, into the form in which `write` stores them."""
        given = [*observations, *actions, rewards, terminated, *next_observations]
        for column, values in zip(self._row_columns, given, strict=True):
            column[...] = values

    def write(self, ended: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Adds the row of transitions that was packed.

        Args:
          ended: [E] whether the episode ends with it.
          valid: [E] which to add.

        Returns:
          [E] the slot of each, or −1 where it is not valid.
        """
        if self.free_count < 2 * self.n_envs:
            self._grow()
        before = self.newest if self.compiled else self.newest.copy()
        slots, places, moves, self.free_count = kernels.link(
            self.links,
            self.newest,
            self.free,
            self.free_count,
            self.added,
            self._aside_bytes if self.compiled else self._kept,
            self._row_bytes,
            ended,
            valid,
        )
        if self.compiled:
            kernels.store(
                self._memory_bytes,
                self._aside_bytes,
                self.links,
                self._row_bytes,
                self._next_bytes,
                slots,
                places,
                moves,
            )
        else:
            self._rows["link"] = -1 - places
            _put(self.aside, self.aside[: self.n_envs], moves)
            _put(self.aside, torch.from_numpy(self._next_bytes), places)
            _put(self.memory, torch.from_numpy(self._row_bytes), slots)
            _put(self._links, torch.from_numpy(self.links[before]), before)
            self._kept[valid] = self._next_bytes[valid]
        self.added += int(np.count_nonzero(valid))
        return slots

    def interrupt(self, envs: NDArray[np.int64]) -> None:
        """Ends the links of these environments: what they add next does not follow."""
        if self.free_count < self.n_envs:
            self._grow()
        for env in envs:
            slot = int(self.newest[env])
            if slot >= 0:
                self.free_count -= 1
                place = int(self.free[self.free_count])
                self.aside[place] = self.aside[env]
                self._links[slot] = -1 - place
                self.links[slot] = -1 - place
                self.newest[env] = -1

    def restore(
        self,
        added: int,
        newest: NDArray[np.int64],
        free: NDArray[np.int32],
        aside: Tensor,
        pieces: Iterable[tuple[int, Tensor]],
    ) -> None:
        """Puts the ring into another state, all checked.

        Args:
          added: number of transitions ever added.
          newest: [E] as the attribute.
          free: places aside that are free.
          aside: [P, A] as the attribute.
          pieces: rows of transitions, and the slots at which they begin.
        """
        self.added = added
        self.newest = newest.copy()
        self.aside = aside.to(self.device, copy=True)
        self.free, self.free_count = np.zeros(len(aside), np.int32), len(free)
        self.free[: len(free)] = free
        for first, piece in pieces:
            self.memory[first : first + len(piece)] = piece.to(self.device)
        self.memory[self.size :] = 0
        self._views()
        if not self.compiled:
            self.links[:] = self._links.cpu().numpy()
            self._kept[:] = aside[: self.n_envs].cpu().numpy()

    def read(self, slots: Tensor, n_step: int, discount: float) -> Rows:
        """Gathers transitions.

        Args:
          slots: [B] long, filled ones.
          n_step: largest number of steps of a return.
          discount: per step.

        Returns:
          The rows: `returns` [B] over k ≤ n steps, the observations after these, and `discounts`
          [B], discount^k, or 0 where the episode terminated.
        """
        if not self.compiled:
            return self._read_tensors(slots, n_step, discount)
        items = slots.contiguous().numpy()
        count = len(items)
        if count != self._plan.length:
            self._plan = _plan(self.fields, self.observation_fields, count)
        plan = self._plan
        out = np.empty(plan.size, np.uint8)
        returns, discounts = np.empty(count, np.float32), np.empty(count, np.float32)
        kernels.read(
            self._memory_bytes,
            self._aside_bytes,
            *self._columns,
            items,
            n_step,
            discount,
            self._begins,
            self._widths,
            len(self.observation_fields),
            returns,
            discounts,
            out,
            plan.begins,
        )
        tensors = []
        for shape, dtype, returned, begin in plan.blocks:
            values: NDArray[Any] = np.ndarray(shape, dtype, out, begin)
            if returned != dtype:
                values = values.astype(returned)
            tensors.append(torch.from_numpy(values))
        return self._as_rows(tensors, torch.from_numpy(returns), torch.from_numpy(discounts))

    def _read_tensors(self, slots: Tensor, n_step: int, discount: float) -> Rows:
        rows = self.memory.index_select(0, slots)
        returns = self._rewards.index_select(0, slots).double()
        factor = torch.full_like(returns, discount)
        last, links = slots, self._links.index_select(0, slots).long()
        for _ in range(n_step - 1):
            goes_on = links >= 0
            last = torch.where(goes_on, links, last)
            reward = self._rewards.index_select(0, last).double()
            returns = torch.where(goes_on, returns + factor * reward, returns)
            factor = torch.where(goes_on, factor * discount, factor)
            links = self._links.index_select(0, last).long()
        factor = factor.masked_fill(self._terminated.index_select(0, last), 0.0)
        following = self.memory.index_select(0, links.clamp_min(0))[:, : self.aside.shape[1]]
        aside = self.aside.index_select(0, (-1 - links).clamp_min(0))
        next_rows = torch.where((links >= 0).unsqueeze(1), following, aside)
        tensors = [_field_of(rows, field, self.offset(field.name)) for field in self.fields]
        tensors += [
            _field_of(next_rows, field, self.offset(field.name))
            for field in self.observation_fields
        ]
        return self._as_rows(tensors, returns.float(), factor.float())

    def _as_rows(self, tensors: list[Tensor], returns: Tensor, discounts: Tensor) -> Rows:
        first, last = len(self.observation_fields), len(self.fields)
        return Rows(tensors[:first], tensors[first:last], returns, tensors[last:], discounts)

    def _grow(self) -> None:
        """Doubles the places aside: a place in use belongs to a slot, so N + 3 E are enough."""
        before = len(self.aside)
        after = min(2 * before, self.capacity + 3 * self.n_envs)
        aside = self.aside.new_zeros(after, self.aside.shape[1])
        aside[:before] = self.aside
        self.aside = aside
        new = np.arange(after - 1, before - 1, -1, dtype=np.int32)
        self.free = np.concatenate([self.free[: self.free_count], new, self.free])[:after]
        self.free_count += len(new)
        self._views()

    def _views(self) -> None:
        """Makes what reads and writes the memory by field."""
        self._rewards = self.memory.view(torch.float32)[:, self.offset("reward") // 4]
        self._links = self.memory.view(torch.int32)[:, self.offset("link") // 4]
        self._terminated = self.memory.view(torch.bool)[:, self.offset("terminated")]
        self._row_bytes, self._next_bytes = _bytes(self._rows), _bytes(self._next_rows)
        now, following = self._rows["observation"], self._next_rows
        self._row_columns = [
            *(now[field.name] for field in self.observation_fields),
            *(self._rows[field.name] for field in self.action_fields),
            *(self._rows["reward"], self._rows["terminated"]),
            *(following[field.name] for field in self.observation_fields),
        ]
        if self.compiled:
            self._memory_bytes, self._aside_bytes = self.memory.numpy(), self.aside.numpy()
            self.links = self._links.numpy()
            self._columns = (self.links, self._rewards.numpy(), self._terminated.numpy())

    def __getstate__(self) -> dict[str, Any]:
        # A copy must view its own memory.
        return {name: value for name, value in vars(self).items() if name not in _VIEWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._views()

    def offset(self, name: str) -> int:
        """The byte at which a field begins in a row."""
        if name in (self.aside_row.names or ()):
            return _begin(self.aside_row, name)
        return _begin(self.row, name)


_VIEWS = (
    "_row_columns",
    *("_rewards", "_links", "_terminated", "_row_bytes", "_next_bytes"),
    *("_memory_bytes", "_aside_bytes", "_columns"),
)


def _begin(row: np.dtype[Any], name: str) -> int:
    return 0 if row.fields is None else int(row.fields[name][1])


def _entry(field: Field) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    return field.name, field.dtype, field.shape


def _width(field: Field) -> int:
    return field.dtype.itemsize * math.prod(field.shape)


def _plan(fields: tuple[Field, ...], next_fields: tuple[Field, ...], count: int) -> Plan:
    blocks, begin = [], 0
    for field in (*fields, *next_fields):
        blocks.append(((count, *field.shape), field.dtype, field.returned, begin))
        # At multiples of 8 bytes, so that any dtype can be viewed there.
        begin += (_width(field) * count + 7) // 8 * 8
    return Plan(count, np.array([block[-1] for block in blocks]), begin, blocks)


def _bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """[n, W] the bytes of [n] structures, in their memory."""
    return rows.view(np.uint8).reshape(len(rows), -1)


def _put(target: Tensor, rows: Tensor, to: NDArray[np.int64]) -> None:
    """Copies rows to the rows `to` of `target`, but for those at −1."""
    chosen = np.flatnonzero(to >= 0)
    if len(chosen):
        source = rows[torch.from_numpy(chosen).to(rows.device)].to(target.device)
        target[torch.from_numpy(to[chosen]).to(target.device)] = source


def _field_of(rows: Tensor, field: Field, begin: int) -> Tensor:
    """[B, *shape] a field of [B, W] rows of bytes."""
    dtype, returned = (
        torch.from_numpy(np.empty(0, dtype)).dtype for dtype in (field.dtype, field.returned)
    )
    values = rows[:, begin : begin + _width(field)].contiguous().view(dtype)
    return values.view(-1, *field.shape).to(returned)
