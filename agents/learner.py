"""What an algorithm asks of a policy class, and which class serves which policy and environment."""

from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl.envs.gridworld import TrapGridworld

if TYPE_CHECKING:
    from awsgd_rl.agents.agent import Agent

# What `gym.make` itself wraps around an environment, none of which changes what happens in it.
_TRANSPARENT = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)


class Trajectories(Protocol):
    """B whole episodes; each learner has its own class. Every attribute is a tensor [B]."""

    log_drawn: Tensor
    """Log density that each was drawn with."""
    returns: Tensor
    raw_returns: Tensor
    lengths: Tensor
    success: Tensor
    from_target: Tensor

    def __len__(self) -> int: ...


class Learner(Protocol):
    """A policy class as an algorithm sees it: P_w, Q_τ, state values and a memory."""

    ratio: str
    """What importance ratios are of when data is used again: "trajectory" or "step"."""

    device: torch.device
    """Where the vectors [B] lie that it gives and takes."""

    rollouts: Any
    """Workers that draw in its place, or None (`distributed.py`)."""

    def collect(self, n_target: int, n_exploration: int) -> Any:
        """Run whole episodes, the first by P_w, the rest by Q_τ."""

    def remember(self, trajectories: Any) -> Tensor:
        """Store trajectories; return their slots [B]."""

    def recall(self, slots: Tensor) -> Any:
        """Return the stored trajectories of the slots [B]."""

    def log_target(self, trajectories: Any) -> Tensor:
        """Return [B] log p_w of each trajectory's actions, now."""

    def log_exploration(self, trajectories: Any) -> Tensor:
        """Return [B] log q_τ of each trajectory's actions, now."""

    def signal(self, trajectories: Any, step_clip: float | None = None) -> Tensor:
        """Return [B] the norm of each trajectory's gradient."""

    def ascend(self, trajectories: Any, weights: Tensor, step_clip: float | None = None) -> float:
        """Step w along mean_b weights_b g_b; return the norm of that mean."""

    def replay(self, slots: Tensor, weights: Tensor, clip: float) -> Tensor:
        """Take U steps on n past trajectories each, slots [U, n]; return their scores [U, n]."""

    def ascend_exploration(self, trajectories: Any, coefficients: Tensor) -> None:
        """Step τ along mean_b coefficients_b ∇ log q_τ (seed 001, eq. 11)."""

    def explore(self, trajectories: Any, norms: Tensor, ratios: Tensor) -> None:
        """Learn Q_τ from weighted gradient norms [B] and [B] share·q / mixture."""

    def fit_values(self, trajectories: Any, weights: Tensor) -> Tensor | None:
        """Fit the values to fresh trajectories; return replay scores [B] if not those of ‖W g‖."""

    def predict(self, observation: Any, deterministic: bool) -> NDArray[Any]:
        """Return actions of P_w."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all parameters by name."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over parameters, or raise ValueError and change nothing."""


def make_learner(agent: "Agent") -> Learner:
    """Return the learner for an agent's policy and environment.

    A table on the gridworld runs in the compiled engine; everything else through Gymnasium's
    vector environments, tables on other Discrete observations included.

    Raises:
        ValueError: if the policy does not fit the environment's spaces.
    """
    from awsgd_rl.agents.neural import NeuralLearner
    from awsgd_rl.agents.tabular import TabularLearner

    config = agent.config
    common = {
        "seed": agent.seed,
        "learning_rate": config.learning_rate,
        "discount": config.discount,
        "memory": agent.memory_size,
        # On-policy agents have no options for Q_τ, which then stays where w is.
        "exploration_learning_rate": getattr(config, "exploration_learning_rate", 0.0),
    }
    grid = compiled_grid(agent.policy, agent.env, config)
    if grid is not None:
        return TabularLearner(
            grid,
            value_rate=config.value_rate,
            reward_scale=config.reward_scale,
            reward_to_go=config.reward_to_go,
            baseline=config.baseline,
            critic=agent.uses_critic,
            fit_exploration=agent.exploration_follows and agent.exploration_share > 0.0,
            **common,
        )
    if not (config.reward_to_go and config.baseline):
        raise ValueError(
            "reward_to_go=False and baseline=False are for tables on the gridworld (seed 001's "
            "form): leave them at True for other policies and environments"
        )
    table = agent.policy == "TablePolicy"
    return NeuralLearner(
        agent.env,
        kind="table" if table else "mlp",
        device=agent.device,
        n_envs=config.n_envs,
        horizon=config.horizon,
        hidden_sizes=config.hidden_sizes,
        reward_scale=1.0 if config.reward_scale is None else config.reward_scale,
        trace_decay=config.trace_decay,
        entropy_coefficient=config.entropy_coefficient,
        max_gradient_norm=None if table else config.max_gradient_norm,
        normalise_observations=config.normalise_observations,
        exploration_bound=getattr(config, "exploration_bound", 0.0),
        exploration_follows=agent.exploration_follows,
        **common,
    )


def compiled_grid(policy: str, env: Any, config: Any) -> TrapGridworld | None:
    """Return the gridworld in `env` if a table learns on it in the compiled engine."""
    while isinstance(env, _TRANSPARENT):
        env = env.env
    if policy != "TablePolicy" or not isinstance(env, TrapGridworld):
        return None
    discrete = isinstance(env.observation_space, gym.spaces.Discrete)
    return env if discrete and config.horizon in (None, env.horizon) else None
