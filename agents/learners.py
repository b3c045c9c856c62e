"""Which learner serves which policy and environment."""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from awsgd_rl.agents.neural import NeuralLearner
from awsgd_rl.agents.tabular import TabularLearner
from awsgd_rl.envs.gridworld import TrapGridworld

if TYPE_CHECKING:
    from awsgd_rl.agents.agent import Agent, Learner

# What `gym.make` itself wraps around an environment, none of which changes what happens in it.
_TRANSPARENT = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)


def make_learner(agent: "Agent") -> "Learner":
    """Return the learner for an agent's policy and environment.

    A table on the gridworld runs in the compiled engine; everything else through Gymnasium's
    vector environments, tables on other Discrete observations included.

    Raises:
        ValueError: if the policy does not fit the environment's spaces.
    """
    config = agent.config
    grid = _gridworld(agent.env) if agent.policy == "TablePolicy" else None
    if grid is not None and config.horizon in (None, grid.horizon):
        return TabularLearner(
            grid,
            seed=agent.seed,
            learning_rate=config.learning_rate,
            exploration_learning_rate=getattr(config, "exploration_learning_rate", 0.0),
            exploration_bound=getattr(config, "exploration_bound", 0.0),
            value_rate=config.value_rate,
            discount=config.discount,
            reward_scale=config.reward_scale,
            reward_to_go=config.reward_to_go,
            baseline=config.baseline,
            memory=agent.memory_size,
        )
    return NeuralLearner(
        agent.env,
        kind="table" if agent.policy == "TablePolicy" else "mlp",
        seed=agent.seed,
        device=agent.device,
        n_envs=config.n_envs,
        horizon=config.horizon,
        hidden_sizes=config.hidden_sizes,
        learning_rate=config.learning_rate,
        exploration_learning_rate=getattr(config, "exploration_learning_rate", 0.0),
        exploration_bound=getattr(config, "exploration_bound", 0.0),
        discount=config.discount,
        reward_scale=1.0 if config.reward_scale is None else config.reward_scale,
        trace_decay=config.trace_decay,
        entropy_coefficient=config.entropy_coefficient,
        max_gradient_norm=config.max_gradient_norm,
        normalise_observations=config.normalise_observations,
        memory=agent.memory_size,
    )


def _gridworld(env: Any) -> TrapGridworld | None:
    while isinstance(env, _TRANSPARENT):
        env = env.env
    if isinstance(env, TrapGridworld) and isinstance(env.observation_space, gym.spaces.Discrete):
        return env
    return None
