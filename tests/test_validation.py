import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl import validation


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("awsdg", "awsgd"),
        ("AWSGD", "awsgd"),
        ("reinforse", "reinforce"),
        ("reinforce_equal", "reinforce-equal"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest_finds_what_was_meant(given_name: str, expected: str | None) -> None:
    names = ["awsgd", "reinforce", "reinforce-equal", "ppo"]
    assert validation.nearest(given_name, names) == expected


def test_require_name_returns_a_valid_name() -> None:
    assert validation.require_name("algorithm", "ppo", ["awsgd", "ppo"]) == "ppo"


@pytest.mark.parametrize(
    ("name", "names", "parts"),
    [
        ("pop", ["awsgd", "ppo"], ["unknown algorithm 'pop'", "did you mean 'ppo'?", "awsgd, ppo"]),
        ("zzz", ["awsgd", "ppo"], ["unknown algorithm 'zzz'", "expected one of awsgd, ppo"]),
        ("zzz", ["only"], ["expected only"]),
        ("zzz", [], ["there are none"]),
        (3, ["3"], ["unknown algorithm 3", "expected 3"]),
        ("name-7x", [f"name-{i}" for i in range(100)], ["did you mean 'name-7"]),
        ("zzz", [f"name-{i}" for i in range(100)], ["none of the 100 known names"]),
    ],
)
def test_require_name_suggests(name: object, names: list[str], parts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        validation.require_name("algorithm", name, names)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_long_list_of_names_is_not_printed() -> None:
    with pytest.raises(ValueError) as error:
        validation.require_name("environment", "name-7x", [f"name-{i}" for i in range(1000)])
    assert len(str(error.value)) < 80


CHECKS: dict[str, tuple[Callable[[str, object], float], list[Any], list[Any]]] = {
    "finite": (validation.require_finite, [0.0, -1.5, 3], [math.nan, math.inf, "1", None, True]),
    "positive": (validation.require_positive, [0.1, 5], [0, -1.0, math.nan, math.inf, "1"]),
    "non_negative": (validation.require_non_negative, [0, 0.1], [-1e-9, math.nan, math.inf]),
    "fraction": (validation.require_fraction, [0, 0.5, 0.999], [1, 1.0, -0.1, math.nan, "a"]),
    "probability": (validation.require_probability, [0, 0.5, 1], [1.001, -0.1, math.nan]),
    "integer": (validation.require_integer, [1, 10**12, np.int32(4)], [0, -1, 2.0, "2", True]),
}


@pytest.mark.parametrize("check", CHECKS)
def test_numbers(check: str) -> None:
    require, good, bad = CHECKS[check]
    for value in good:
        result = require("step", value)
        assert result == value
        assert type(result) in (int, float)
    for value in bad:
        with pytest.raises(ValueError, match=r"^step is .*expected") as error:
            require("step", value)
        assert "\n" not in str(error.value)


def test_numpy_numbers_are_numbers() -> None:
    assert validation.require_positive("step", np.float32(0.5)) == 0.5
    with pytest.raises(ValueError, match="finite"):
        validation.require_positive("step", np.float64("nan"))


def test_integer_minimum() -> None:
    assert validation.require_integer("seed", 0, minimum=0) == 0
    with pytest.raises(ValueError, match="seed is 1, expected 2 or more"):
        validation.require_integer("seed", 1, minimum=2)


@given(st.floats())
def test_the_ranges_nest(value: float) -> None:
    def accepts(require: object) -> bool:
        try:
            require("x", value)  # type: ignore[operator]
        except ValueError:
            return False
        return True

    assert accepts(validation.require_fraction) == (0 <= value < 1)
    assert accepts(validation.require_probability) == (0 <= value <= 1)
    assert accepts(validation.require_positive) == (0 < value < math.inf)
    assert accepts(validation.require_finite) == math.isfinite(value)
