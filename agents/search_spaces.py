"""What `awsgd-rl tune` searches: the options of each algorithm, and where their values may lie.

Most ranges are around the default, a `Factor` up and down on a log scale: one table then serves
tables, networks and every regime, and no side of a comparison is given a range of its own luck.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from awsgd_rl import validation

__all__ = ["SPACES", "Choices", "Factor", "Range", "Space", "describe", "read_spaces", "resolve"]


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; whole ones where the default is one."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly on a log scale."""

    def __str__(self) -> str:
        """The range in words."""
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


class Factor(NamedTuple):
    """Numbers from default / `by` to default × `by`, on a log scale."""

    by: float

    def __str__(self) -> str:
        """The range in short."""
        return f"×÷{self.by:g}"


class Choices(NamedTuple):
    """One of a few values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        """The choices in words."""
        return " or ".join(map(str, self.values))


Space = Mapping[str, Range | Choices]
"""Where each option's value may lie."""

_TABLES = frozenset({"value_rate"})
_NETWORKS = frozenset({"trace_decay"})

_ON_POLICY: Mapping[str, Range | Factor | Choices] = {
    "learning_rate": Factor(8),
    "batch_size": Factor(2),
    "value_rate": Factor(10),
    "trace_decay": Range(0.8, 1.0),
}
_MIXTURE = {**_ON_POLICY, "exploration_share": Range(0.0, 0.5)}
_CLIP = {"ratio_clip": Range(1.0, 10.0, log=True)}
# A batch must fit into the memory at both ends.
_REPLAY = {**_ON_POLICY, **_CLIP, "memory": Factor(2.5)}
_ACTOR_CRITIC: Mapping[str, Range | Factor | Choices] = {
    "learning_rate": Factor(10),
    "gae_lambda": Range(0.9, 1.0),
    "ent_coef": Range(0.0, 0.1),
}
_DQN: Mapping[str, Range | Factor | Choices] = {
    "learning_rate": Factor(10),
    "batch_size": Factor(4),
    "train_freq": Factor(4),
    "target_update_interval": Factor(10),
    "exploration_fraction": Range(0.05, 0.5),
}
_OFF_POLICY: Mapping[str, Range | Factor | Choices] = {
    "learning_rate": Factor(10),
    "batch_size": Factor(4),
    "tau": Factor(4),
}
_NOISE = {"action_noise": Range(0.03, 0.3, log=True)}
_PRIORITIES = {"alpha": Range(0.2, 1.0), "uniform_share": Range(0.0, 0.5)}

SPACES: Mapping[str, Mapping[str, Range | Factor | Choices]] = {
    "awsgd": {**_REPLAY, "exploration_share": Range(0.0, 0.5)},
    "awsgd-mixture": _MIXTURE,
    "awsgd-paper": {**_ON_POLICY, "exploration_learning_rate": Factor(10)},
    "awsgd-returns": {**_REPLAY, "exploration_share": Range(0.0, 0.5)},
    "on-policy-critic": {name: space for name, space in _ON_POLICY.items() if name != "batch_size"}
    | _CLIP,
    "uniform-replay": {**_REPLAY, "exploration_share": Range(0.0, 0.5)},
    "reinforce": _ON_POLICY,
    "reinforce-equal": {**_ON_POLICY, **_CLIP},
    "a2c": {**_ACTOR_CRITIC, "n_steps": Factor(4)},
    "ppo": {**_ACTOR_CRITIC, "n_epochs": Factor(2), "clip_range": Range(0.1, 0.4)},
    "dqn": _DQN,
    "sac": _OFF_POLICY,
    "td3": {**_OFF_POLICY, **_NOISE},
    "prioritized-dqn": {**_DQN, **_PRIORITIES},
    "prioritized-sac": {**_OFF_POLICY, **_PRIORITIES},
    "prioritized-td3": {**_OFF_POLICY, **_NOISE, **_PRIORITIES},
}
"""By the labels of `compare --algos`. What makes a label what it is (its number of updates, its
shares) is in none of them."""


def describe(label: str) -> str:
    """Return an algorithm's space in a line."""
    return ", ".join(f"{name} {space}" for name, space in SPACES[label].items())


def read_spaces(text: str, labels: Iterable[str]) -> dict[str, Space]:
    """Read spaces of one's own: `{"awsgd": {"memory": {"low": 40, "high": 400, "log": true}}}`.

    Args:
        text: a JSON object from labels to objects from options to a range, as above, or to
            `{"choices": [10, 20]}`.
        labels: algorithms that may be named.

    Raises:
        ValueError: it is not, or a label is none of these.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"space is not JSON ({error})") from None
    if not isinstance(given, dict) or not all(isinstance(own, dict) for own in given.values()):
        raise ValueError(
            f"space is {text}, expected such as "
            '\'{"awsgd": {"learning_rate": {"low": 4, "high": 32, "log": true}}}\''
        )
    known = list(labels)
    for label, own in given.items():
        validation.require_name("algorithm in space", label, known)
        if not own:
            raise ValueError(f"space of {label} has no option, expected at least one")
    return {
        label: {name: _read(f"space of {label}.{name}", value) for name, value in own.items()}
        for label, own in given.items()
    }


def resolve(
    label: str, defaults: Mapping[str, Any], *, grid: bool, given: Space | None = None
) -> dict[str, Range | Choices]:
    """Return where each option may lie, given what it is by default.

    Args:
        label: the algorithm, one of `SPACES`.
        defaults: all its options.
        grid: it learns with tables on the gridworld, where some options mean nothing; elsewhere
            others do not.
        given: a space in place of the one in `SPACES`.

    Raises:
        ValueError: an option is unknown, has no number for a default, or its default lies outside.
    """
    if given is None:
        ignored = _NETWORKS if grid else _TABLES
        if not defaults.get("baseline", True):  # the paper's regime, with batches of its own
            ignored = ignored | {"batch_size", "value_rate"}
        spaces = {name: space for name, space in SPACES[label].items() if name not in ignored}
    else:
        spaces = dict(given)
    resolved: dict[str, Range | Choices] = {}
    for name, space in spaces.items():
        validation.require_name(f"option of {label}", name, defaults)
        default = defaults[name]
        if isinstance(space, Factor):
            space = _around(default, space.by)
        resolved[name] = _fitted(f"{label}.{name}", space, default)
    return resolved


def _around(default: Any, by: float) -> Range:
    if isinstance(default, int):
        return Range(max(1, round(default / by)), round(default * by), log=True)
    return Range(default / by, default * by, log=True)


def _fitted(name: str, space: Range | Choices, default: Any) -> Range | Choices:
    """Return the space with numbers of the default's type, which it must hold."""
    if isinstance(space, Range):
        if isinstance(default, bool) or not isinstance(default, int | float):
            raise ValueError(f"space of {name} is a range, but its default is {default!r}")
        kind = type(default)
        low, high = kind(space.low), kind(space.high)
        if (low, high) != (space.low, space.high):
            raise ValueError(f"space of {name} is {space}, expected whole numbers")
        space = Range(low, high, space.log)
    held = default in space.values if isinstance(space, Choices) else low <= default <= high
    if not held:
        raise ValueError(
            f"space of {name} is {space}, expected it to hold the default {default}, which is "
            "tried too"
        )
    return space


def _read(name: str, value: Any) -> Range | Choices:
    if isinstance(value, dict) and set(value) == {"choices"}:
        choices = value["choices"]
        plain = isinstance(choices, list) and all(
            isinstance(choice, str | int | float) for choice in choices
        )
        if not plain or not choices or len(set(choices)) < len(choices):
            raise ValueError(f"{name} has the choices {choices}, expected different plain values")
        return Choices(tuple(choices))
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise ValueError(f"{name} is {value}, expected low and high (and log), or choices")
    low, high = (validation.require_finite(f"{name}.{end}", value[end]) for end in ("low", "high"))
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{name}.log is {log!r}, expected true or false")
    if not low < high or (log and low <= 0):
        above = " above 0 (log scale)" if log else ""
        raise ValueError(f"{name} is {low:g} to {high:g}, expected low < high{above}")
    return Range(low, high, log)
