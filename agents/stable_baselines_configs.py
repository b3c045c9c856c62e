"""Settings of Stable-Baselines3's algorithms, under its names and with its defaults.

`n_envs` and `reward_scale` are of the environments that they are given.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from awsgd_rl.validation import (
    require_fraction,
    require_integer,
    require_name,
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
    n_steps: int = 1
    """Steps of a return."""
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


@dataclass(frozen=True)
class ActorCriticReplayConfig:
    """What SAC and TD3 have in common, with Stable-Baselines3's defaults."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    buffer_size: int = 1_000_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 100
    """Environment steps before the first update."""
    batch_size: int = 256
    """Transitions in one update."""
    tau: float = 0.005
    """How far the target networks move in one update, in (0, 1]."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    train_freq: int = 1
    """Environment steps between two rounds of updates."""
    gradient_steps: int = 1
    """Updates in one round."""
    n_steps: int = 1
    """Steps of a return."""
    n_envs: int = 1
    """Environments that step side by side; `train_freq` is of each of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this for learning; returns are reported without."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class SACConfig(ActorCriticReplayConfig):
    """Soft actor-critic (Haarnoja et al. 2018), Stable-Baselines3's defaults."""

    ent_coef: str = "auto"
    """Weight of the entropy: a number, or auto (learned), or auto_0.1 (learned from 0.1 on)."""


@dataclass(frozen=True)
class TD3Config(ActorCriticReplayConfig):
    """Twin delayed policy gradient (Fujimoto et al. 2018), Stable-Baselines3's defaults."""

    learning_rate: float = 1e-3
    """Step size of Adam."""
    action_noise: float = 0.1
    """Standard deviation of the noise on actions, which are between -1 and 1 here. 0.1 is the
    paper's; Stable-Baselines3 has none unless it is passed."""
    policy_delay: int = 2
    """Updates of the critics for one of the policy."""
    target_policy_noise: float = 0.2
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: float = 0.5
    """Largest noise on the target policy's actions."""


@dataclass(frozen=True)
class PrioritizedReplayConfig:
    """How the prioritized algorithms draw transitions and weight them."""

    proposal: Literal["priority", "two-stage", "uniform"] = "priority"
    """priority (PER), two-stage (LaBER) or uniform."""
    signal: Literal["td-error", "gradient-norm"] = "td-error"
    """What priorities and scores are made of."""
    alpha: float = 0.6
    """Exponent of priorities, 0 or more."""
    beta: float | None = None
    """Exponent of the weights at the start, in [0, 1]; it rises to 1 over the training. Default:
    0.4 with priorities, 1 with the others."""
    uniform_share: float = 0.0
    """Share of uniform draws, in [0, 1]; below 1 with two-stage."""
    normaliser: Literal["default", "max", "mean", "none"] = "default"
    """What the weights of a batch are divided by. Default: max with priorities, else none."""


@dataclass(frozen=True)
class PrioritizedDQNConfig(PrioritizedReplayConfig, DQNConfig):
    """DQN with prioritized replay."""

    double_q: bool = False
    """Let the online network choose the next action (van Hasselt et al. 2016)."""


@dataclass(frozen=True)
class PrioritizedSACConfig(PrioritizedReplayConfig, SACConfig):
    """SAC with prioritized replay."""


@dataclass(frozen=True)
class PrioritizedTD3Config(PrioritizedReplayConfig, TD3Config):
    """TD3 with prioritized replay."""


Config = A2CConfig | PPOConfig | DQNConfig | ActorCriticReplayConfig
CONFIGS: Final[dict[str, type[Config]]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
    "dqn": DQNConfig,
    "sac": SACConfig,
    "td3": TD3Config,
    "prioritized-dqn": PrioritizedDQNConfig,
    "prioritized-sac": PrioritizedSACConfig,
    "prioritized-td3": PrioritizedTD3Config,
}

_PROBABILITIES: Final = (
    *("gamma", "gae_lambda", "exploration_final_eps", "exploration_fraction"),
    *("tau", "beta", "uniform_share"),
)
_NON_NEGATIVE: Final = (
    *("ent_coef", "vf_coef", "alpha"),
    *("action_noise", "target_policy_noise", "target_noise_clip"),
)


def _check(config: Config) -> None:
    """Check every field by its name.

    Raises:
        ValueError: If one is out of its range.
    """
    minimum = {"n_steps": 2 if isinstance(config, PPOConfig) else 1, "learning_starts": 0}
    if isinstance(config, PPOConfig):
        minimum["batch_size"] = 2
    # Not `field.type`: the command line adds to it.
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if kind is int:
            require_integer(name, value, minimum=minimum.get(name, 1))
        elif (name == "beta" and value is None) or (name == "ent_coef" and _is_learned(value)):
            continue
        elif get_origin(kind) is Literal:
            require_name(name, value, get_args(kind))
        elif name in _PROBABILITIES:
            require_probability(name, value)
        elif kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, expected True or False")
        elif name in _NON_NEGATIVE:
            require_non_negative(name, _number(value) if kind is str else value)
        elif name == "clip_range":
            require_fraction(name, value)
        else:
            require_positive(name, value)


def _is_learned(ent_coef: Any) -> bool:
    """Whether an entropy coefficient is "auto", or "auto_" and what it starts from."""
    if not isinstance(ent_coef, str) or not ent_coef.startswith("auto"):
        return False
    if ent_coef != "auto":
        require_positive("ent_coef", _number(ent_coef.removeprefix("auto_")))
    return True


def _number(text: str) -> Any:
    """The number that a text is, or the text where it is none: a check then says so."""
    try:
        return float(text)
    except ValueError:
        return text
