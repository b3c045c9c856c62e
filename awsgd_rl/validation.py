"""Checks of arguments at the package's boundary, with messages that say how to put it right.

Every function raises `ValueError` with one line: what was got, what was expected and, where it
helps, the nearest valid name. Those that check a number return it as a plain Python number.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Sequence

_MOST_NAMES_LISTED = 20


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that is most like `name`, or None when none is close.

    Letter case and the choice between `_` and `-` are not counted as differences.
    """
    candidates = {_fold(candidate): candidate for candidate in names}
    matches = difflib.get_close_matches(_fold(name), candidates, n=1, cutoff=0.6)
    return candidates[matches[0]] if matches else None


def require_name(kind: str, name: object, names: Iterable[str]) -> str:
    """Return `name` when it is one of `names`.

    Args:
        kind: What is named, as it should read in the message ("algorithm", "preset").
        name: The name that was given.
        names: All valid names.

    Raises:
        ValueError: If the name is not valid; the message suggests the nearest valid one.
    """
    valid = list(names)
    if isinstance(name, str) and name in valid:
        return name
    close = nearest(name, valid) if isinstance(name, str) else None
    raise ValueError(f"unknown {kind} {name!r}: {_expectation(close, valid)}")


def require_finite(name: str, value: object) -> float:
    """Return `value` as a float when it is a finite real number.

    Raises:
        ValueError: If it is not a real number, or is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {value!r}, expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, expected a finite number")
    return number


def require_positive(name: str, value: object) -> float:
    """Return `value` as a float when it is finite and above 0.

    Raises:
        ValueError: Otherwise.
    """
    number = require_finite(name, value)
    if number <= 0.0:
        raise ValueError(f"{name} is {value}, expected a number above 0")
    return number


def require_non_negative(name: str, value: object) -> float:
    """Return `value` as a float when it is finite and 0 or more.

    Raises:
        ValueError: Otherwise.
    """
    number = require_finite(name, value)
    if number < 0.0:
        raise ValueError(f"{name} is {value}, expected 0 or more")
    return number


def require_fraction(name: str, value: object) -> float:
    """Return `value` as a float when it lies in [0, 1), as a mixture's share must.

    Raises:
        ValueError: Otherwise.
    """
    number = require_finite(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} is {value}, expected 0 or more and below 1")
    return number


def require_probability(name: str, value: object) -> float:
    """Return `value` as a float when it lies in [0, 1].

    Raises:
        ValueError: Otherwise.
    """
    number = require_finite(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {value}, expected a probability between 0 and 1")
    return number


def require_integer(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int when it is a whole number of `minimum` or more.

    Raises:
        ValueError: If it is below `minimum`, or not an integer (a float such as 2.0 is not).
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected a whole number") from None
    if number < minimum:
        raise ValueError(f"{name} is {number}, expected {minimum} or more")
    return number


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def _expectation(close: str | None, valid: Sequence[str]) -> str:
    if not valid:
        return "there are none to choose from"
    suggestion = "" if close is None else f"did you mean {close!r}?"
    # A list of a thousand environments would bury the suggestion.
    if len(valid) > _MOST_NAMES_LISTED:
        return suggestion or f"it is none of the {len(valid)} known names"
    listed = "expected " + ("one of " if len(valid) > 1 else "") + ", ".join(valid)
    return f"{suggestion} ({listed})" if suggestion else listed
