"""The options that every agent has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from awsgd_rl import validation


@dataclass(frozen=True)
class AgentConfig:
    """Options of every agent. `None` stands for a default that depends on the policy."""

    batch_size: int | None = None
    """Episodes a batch. Default: depends on algorithm and policy."""
    updates: int | None = None
    """Gradient steps a batch. Default: depends on algorithm and policy."""
    learning_rate: float | None = None
    """Step size ρ of the target policy. Default: depends on algorithm and policy."""
    discount: float | None = None
    """Discount γ in (0, 1]. Default: 0.999 with tables, 0.99 with networks."""
    ratio_clip: float = 2.0
    """Largest ratio p_now / p_drawn of data that is used again (whole trajectories with tables,
    single steps with networks). Infinity removes the bias of the truncation, not that of using the
    data again: its weights and values have been learned from it too."""
    reward_to_go: bool = True
    """Weight each action by the return from it on. False: by the whole episode's, as Bouchard et
    al. (2015); tables on the gridworld."""
    baseline: bool = True
    """Subtract learned state values from the returns. False: tables on the gridworld."""
    value_rate: float | None = None
    """Tables: share of the way that one visit moves a state's value to the batch's mean return.
    Default: 0.01, but 0.03 for on-policy learning with several updates a batch."""
    reward_scale: float | None = None
    """Rewards are multiplied by this. Default: 1 / the largest on the gridworld, else 1."""
    horizon: int | None = None
    """Longest episode in steps. Default: the environment's own limit."""
    n_envs: int = 8
    """Networks: environments that step together."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Networks: units of each hidden layer."""
    trace_decay: float = 0.95
    """Networks: λ of the advantage estimate; 1 is the plain return minus the value (no bias)."""
    entropy_coefficient: float = 0.0
    """Networks: weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """Networks with hidden layers: gradients are scaled down to this norm."""
    normalise_observations: bool = True
    """Networks: subtract the running mean of the observations, divide by their deviation."""


NETWORK_DEFAULTS: Mapping[str, float] = {
    "batch_size": 8,
    "updates": 8,
    "learning_rate": 3e-3,
    "value_rate": 0.03,
    "discount": 0.99,
}
"""What `None` stands for with networks, whatever the algorithm."""


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with NumPy's numbers as Python's.

    The checks take both; PyTorch, Stable-Baselines3 and JSON do not.
    """
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
    }


def choose_seed(seed: int | None) -> int:
    """Return the seed that was given, or one that is drawn.

    Raises:
        ValueError: it is no whole number of 0 or more.
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return validation.require_integer("seed", seed, minimum=0)


def count_explored(share: float, n: int) -> int:
    """Return how many of `n` episodes the exploration policy draws.

    P_w draws one at least, unless the share is 1: else the weights would have no bound.
    """
    return n if share == 1.0 else min(round(share * n), n - 1)


def check_common(config: Any) -> None:
    """Refuse common options that are out of range; every default is filled in.

    Raises:
        ValueError: naming the option, what was got and what was expected.
    """
    for name in ("batch_size", "updates", "n_envs"):
        validation.require_integer(name, getattr(config, name))
    for name in ("learning_rate", "ratio_clip", "max_gradient_norm"):
        if getattr(config, name) != float("inf"):
            validation.require_positive(name, getattr(config, name))
    for name in ("discount", "value_rate", "trace_decay"):
        validation.require_probability(name, getattr(config, name))
    if config.discount == 0:
        raise ValueError("discount is 0, expected a number above 0 and up to 1")
    if config.reward_scale is not None:
        validation.require_positive("reward_scale", config.reward_scale)
    validation.require_non_negative("entropy_coefficient", config.entropy_coefficient)
