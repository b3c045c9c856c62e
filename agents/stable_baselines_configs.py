"""Settings of Stable-Baselines3's algorithms, under its names and with its defaults.

`n_envs` and `reward_scale` are of the environments that they are given.
"""

from dataclasses import dataclass, fields
from typing import Final

from awsgd_rl.validation import (
    require_fraction,
    require_integer,
    require_non_negative,
    require_positive,
    require_probability,
)


@dataclass(frozen=True)
class A2CConfig:
    """Advantage actor-critic (Mnih et al. 2016), Stable-Baselines3's defaults."""

    learning_rate: float = 7e-4
    """Step size of RMSProp."""
    n_steps: int = 5
    """Environment steps between two updates."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    gae_lambda: float = 1.0
    """Bias against variance of the advantage, in [0, 1]."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient."""
    n_envs: int = 1
    """Environments that step side by side; `n_steps` is of each of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this for learning; returns are reported without."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017), Stable-Baselines3's defaults."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    n_steps: int = 2048
    """Environment steps between two rounds of updates, 2 or more."""
    batch_size: int = 64
    """Steps in one update, 2 or more; a divisor of `n_steps` times `n_envs`."""
    n_epochs: int = 10
    """Passes over the steps in one round of updates."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    gae_lambda: float = 0.95
    """Bias against variance of the advantage, in [0, 1]."""
    clip_range: float = 0.2
    """How far a probability ratio may leave 1 before its gradient is cut."""
    normalize_advantage: bool = True
    """Standardise the advantages of each update."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient."""
    n_envs: int = 1
    """Environments that step side by side; `n_steps` is of each of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this for learning; returns are reported without."""

    def __post_init__(self) -> None:
        _check(self)
        steps = self.n_steps * self.n_envs
        if steps % self.batch_size:
            name = "n_steps" if self.n_envs == 1 else "n_steps * n_envs"
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a divisor of {name} = {steps}"
            )


@dataclass(frozen=True)
class DQNConfig:
    """Deep Q-learning (Mnih et al. 2015), Stable-Baselines3's defaults."""

    learning_rate: float = 1e-4
    """Step size of Adam."""
    buffer_size: int = 1_000_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 100
    """Environment steps before the first update."""
    batch_size: int = 32
    """Transitions in one update."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    train_freq: int = 4
    """Environment steps between two updates."""
    target_update_interval: int = 10_000
    """Environment steps between two copies to the target network."""
    exploration_fraction: float = 0.1
    """Part of the training over which the share of random actions falls, in (0, 1]."""
    exploration_final_eps: float = 0.05
    """Share of random actions from then on, in [0, 1]."""
    max_grad_norm: float = 10.0
    """Largest norm of the gradient."""
    n_envs: int = 1
    """Environments that step side by side; `train_freq` is of each of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this for learning; returns are reported without."""

    def __post_init__(self) -> None:
        _check(self)


Config = A2CConfig | PPOConfig | DQNConfig
CONFIGS: Final[dict[str, type[Config]]] = {"a2c": A2CConfig, "ppo": PPOConfig, "dqn": DQNConfig}


def _check(config: Config) -> None:
    """Check every field by its name.

    Raises:
        ValueError: If one is out of its range.
    """
    minimum = {"n_steps": 2 if isinstance(config, PPOConfig) else 1, "learning_starts": 0}
    if isinstance(config, PPOConfig):
        minimum["batch_size"] = 2
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if field.type is int:
            require_integer(name, value, minimum=minimum.get(name, 1))
        elif name in ("gamma", "gae_lambda", "exploration_final_eps", "exploration_fraction"):
            require_probability(name, value)
        elif field.type is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, expected True or False")
        elif name in ("ent_coef", "vf_coef"):
            require_non_negative(name, value)
        elif name == "clip_range":
            require_fraction(name, value)
        else:
            require_positive(name, value)
