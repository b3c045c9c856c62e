"""How a space becomes fields of a transition: their types in memory, and what is refused.

A Box keeps the dtype of its space (uint8 images stay uint8). Discrete and MultiDiscrete are stored
in the narrowest integer type that holds their values, and given back as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from awsgd_rl.replay_kernels import first_outside

_LARGEST = float(np.finfo(np.float32).max)
_NARROW = (np.uint8, np.int8, np.int16, np.int32, np.int64)


@dataclass(frozen=True)
class Field:
    """One array of an observation or action.

    Attributes:
        name: in memory.
        key: of the Dict space; None where the space itself is the field.
        shape: of one item.
        dtype: in memory.
        returned: dtype of samples.
        low: [*shape] smallest integer allowed; None where any number of the dtype is.
        high: [*shape] largest integer allowed.
    """

    name: str
    key: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    returned: np.dtype[Any]
    low: NDArray[np.int64] | None = None
    high: NDArray[np.int64] | None = None

    def check(self, name: str, values: Any, n: int) -> NDArray[Any]:
        """Checks one row of values.

        Args:
          name: what the message calls them.
          values: [n, *shape] array, tensor or nested list.
          n: number of environments.

        Returns:
          [n, *shape] array, not copied where it need not be.

        Raises:
          ValueError: if the shape or dtype is another, or an integer is out of range.
        """
        array = to_array(values)
        if array.shape != (n, *self.shape):
            raise ValueError(
                f"{self._called(name)} has shape {array.shape}, expected {(n, *self.shape)}: one "
                "entry per environment first"
            )
        if self.low is None or self.high is None:
            # From float64 to the space's float32 is rounding, from floats to integers is not.
            if array.dtype != self.dtype and not np.can_cast(array.dtype, self.dtype, "same_kind"):
                raise ValueError(
                    f"{self._called(name)} has dtype {array.dtype}, expected {self.dtype}"
                )
            if self.dtype.kind in "iu" and not np.can_cast(array.dtype, self.dtype):
                self._check_narrowed(name, array)
            return array
        if array.dtype.kind not in "iub":
            raise ValueError(f"{self._called(name)} has dtype {array.dtype}, expected integers")
        if self.shape:
            outside = ((array < self.low) | (array > self.high)).reshape(n, -1).any(1)
            row = int(np.argmax(outside)) if outside.any() else -1
        else:
            row = first_outside(array, float(self.low), float(self.high))
        if row >= 0:
            raise ValueError(
                f"{self._called(name)} of environment {row} is {array[row]}, expected from "
                f"{self.low} to {self.high}"
            )
        return array

    def _check_narrowed(self, name: str, array: NDArray[Any]) -> None:
        # NumPy wraps around what a narrower integer type does not hold.
        bounds = np.iinfo(self.dtype)
        outside = (array < bounds.min) | (array > bounds.max)
        if outside.any():
            raise ValueError(
                f"{self._called(name)} of environment {np.argwhere(outside)[0, 0]} has the entry "
                f"{array[outside][0]}, expected {self.dtype}, {bounds.min} to {bounds.max}: clip "
                "it, or give the space a wider dtype"
            )

    def _called(self, name: str) -> str:
        return name if self.key is None else f"{name}[{self.key!r}]"


def fields_of(name: str, space: spaces.Space[Any]) -> tuple[Field, ...]:
    """The fields of a space: one, or one for each key of a Dict.

    Args:
      name: of the space, for messages and for the fields' names.
      space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.

    Returns:
      The fields, in the space's order.

    Raises:
      ValueError: if the space is another.
    """
    if isinstance(space, spaces.Dict) and len(space.spaces) > 0:
        return tuple(_field(f"{name}.{key}", key, part) for key, part in space.spaces.items())
    return (_field(name, None, space),)


def check(name: str, fields: tuple[Field, ...], values: Any, n: int) -> list[NDArray[Any]]:
    """Checks a row of a space's values, field by field.

    Args:
      name: what the message calls them.
      fields: of the space.
      values: [n, ...], or a mapping of the Dict's keys to these.
      n: number of environments.

    Returns:
      One array per field.

    Raises:
      ValueError: as `Field.check`, or if the keys are not the space's.
    """
    if fields[0].key is None:
        return [fields[0].check(name, values, n)]
    keys = [field.key for field in fields]
    if not isinstance(values, Mapping) or set(values) != set(keys):
        got = list(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"{name} is {got}, expected a dict with the keys {keys}")
    return [field.check(name, values[field.key], n) for field in fields]


def check_rewards(rewards: Any, n: int) -> NDArray[Any]:
    """Checks a row of rewards.

    Args:
      rewards: [n] numbers.
      n: number of environments.

    Returns:
      [n] float32 or float64.

    Raises:
      ValueError: if the shape or dtype is another, or one is no finite float32.
    """
    array = to_array(rewards)
    if array.shape != (n,):
        raise ValueError(f"rewards has shape {array.shape}, expected {(n,)}: one per environment")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"rewards has dtype {array.dtype}, expected numbers")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    env = first_outside(array, -_LARGEST, _LARGEST)
    if env >= 0:
        raise ValueError(
            f"the reward of environment {env} is {array[env]}, expected a finite float32"
        )
    return array


def check_flags(name: str, flags: Any, n: int) -> NDArray[np.bool_]:
    """Checks a row of flags.

    Args:
      name: what the message calls them.
      flags: [n] bool.
      n: number of environments.

    Returns:
      [n] bool.

    Raises:
      ValueError: if the shape or dtype is another.
    """
    array = to_array(flags)
    if array.shape != (n,) or array.dtype != np.bool_:
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}, expected bool of shape {(n,)}"
        )
    return array


def join(fields: tuple[Field, ...], tensors: list[Tensor]) -> Any:
    """One tensor, or a dict of them where the space is a Dict."""
    if fields[0].key is None:
        return tensors[0]
    return {str(field.key): tensor for field, tensor in zip(fields, tensors, strict=True)}


def to_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array, list, or tensor of any device; shares memory where it can."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def _field(name: str, key: str | None, space: spaces.Space[Any]) -> Field:
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype)
        try:
            torch.from_numpy(np.empty(0, dtype))
        except TypeError:
            raise ValueError(f"{name} has dtype {dtype}, expected one that torch has") from None
        return Field(name, key, tuple(space.shape), dtype, dtype)
    if isinstance(space, spaces.Discrete):
        low = np.asarray(space.start, np.int64)
        return _integers(name, key, low, low + (int(space.n) - 1), np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        low = np.asarray(space.start, np.int64)
        return _integers(name, key, low, low + (space.nvec - 1), np.int64)
    if isinstance(space, spaces.MultiBinary):
        low = np.zeros(space.shape, np.int64)
        return _integers(name, key, low, low + 1, np.int8)
    raise ValueError(
        f"{name} is {space}, expected Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them"
    )


def _integers(
    name: str,
    key: str | None,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    returned: DTypeLike,
) -> Field:
    for dtype in _NARROW:
        bounds = np.iinfo(dtype)
        if low.min() >= bounds.min and high.max() <= bounds.max:
            break
    return Field(name, key, low.shape, np.dtype(dtype), np.dtype(returned), low, high)
