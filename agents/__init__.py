"""The agents: AW-SGD, its on-policy baseline, and Stable-Baselines3's for comparison.

Nothing heavy is imported until an agent is asked for.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awsgd_rl.validation import require_name

if __name__ != "awsgd_rl.agents":
    raise ImportError(
        f"this folder is the package 'awsgd_rl.agents', but was imported as {__name__!r}: "
        "install the project (pip install -e .) and import awsgd_rl.agents"
    )

if TYPE_CHECKING:
    from awsgd_rl.agents.agent import Agent
    from awsgd_rl.agents.awsgd import AWSGD, AWSGDConfig
    from awsgd_rl.agents.config import AgentConfig
    from awsgd_rl.agents.reinforce import Reinforce, ReinforceConfig

__all__ = [
    "ALGORITHMS",
    "AWSGD",
    "AWSGDConfig",
    "Agent",
    "AgentConfig",
    "Algorithm",
    "Reinforce",
    "ReinforceConfig",
    "load_agent",
    "make_agent",
]


@dataclass(frozen=True)
class Algorithm:
    """An entry of `ALGORITHMS`.

    Attributes:
        name: what `--algo` takes.
        description: one line.
        module: where its class lives.
        class_name: the class's name there.
        config_name: the name of its options' dataclass there; None for Stable-Baselines3's.
    """

    name: str
    description: str
    module: str
    class_name: str
    config_name: str | None = None

    @property
    def agent_class(self) -> Any:
        """The agent's class (imports it)."""
        return getattr(import_module(self.module), self.class_name)

    @property
    def config_class(self) -> Any:
        """The dataclass of its options, or None (imports it)."""
        return getattr(import_module(self.module), self.config_name) if self.config_name else None


_SB3 = "awsgd_rl.agents.stable_baselines"
ALGORITHMS = {
    entry.name: entry
    for entry in (
        Algorithm(
            "awsgd",
            "off-policy policy gradient with learned draws: exploration policy and replay",
            "awsgd_rl.agents.awsgd",
            "AWSGD",
            "AWSGDConfig",
        ),
        Algorithm(
            "reinforce",
            "on-policy policy gradient, the baseline",
            "awsgd_rl.agents.reinforce",
            "Reinforce",
            "ReinforceConfig",
        ),
        Algorithm("a2c", "A2C of Stable-Baselines3", _SB3, "StableBaselines"),
        Algorithm("ppo", "PPO of Stable-Baselines3", _SB3, "StableBaselines"),
        Algorithm("dqn", "DQN of Stable-Baselines3", _SB3, "StableBaselines"),
        Algorithm("sac", "SAC of Stable-Baselines3", _SB3, "StableBaselines"),
        Algorithm("td3", "TD3 of Stable-Baselines3", _SB3, "StableBaselines"),
        Algorithm("prioritized-dqn", "DQN with prioritized replay", _SB3, "StableBaselines"),
        Algorithm("prioritized-sac", "SAC with prioritized replay", _SB3, "StableBaselines"),
        Algorithm("prioritized-td3", "TD3 with prioritized replay", _SB3, "StableBaselines"),
    )
}
"""Every algorithm by its name."""

_HOME = {
    "AWSGD": "awsgd",
    "AWSGDConfig": "awsgd",
    "Agent": "agent",
    "AgentConfig": "config",
    "Reinforce": "reinforce",
    "ReinforceConfig": "reinforce",
}


def make_agent(name: str, policy: str, env: Any, seed: int | None = None, **options: Any) -> Any:
    """Make an agent by its algorithm's name.

    Args:
        name: one of `ALGORITHMS`.
        policy: "TablePolicy" or "MlpPolicy".
        env: an id, an environment or a vector environment.
        seed: of all draws.
        options: the other arguments of the agent.

    Raises:
        ValueError: if the name is unknown (the nearest is named) or an argument is wrong.
    """
    entry = ALGORITHMS[require_name("algorithm", name, ALGORITHMS)]
    if entry.config_name is None:
        return entry.agent_class(name, policy, env, seed=seed, **options)
    return entry.agent_class(policy, env, seed=seed, **options)


def load_agent(
    path: str | Path, env: Any = None, device: str = "auto", seed: int | None = None
) -> Any:
    """Load a saved agent, whatever its algorithm; arguments as `Agent.load`.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    from awsgd_rl.agents.checkpoint import read_checkpoint

    name = read_checkpoint(Path(path))[0]["algorithm"]
    entry = ALGORITHMS[require_name("algorithm", name, ALGORITHMS)]
    return entry.agent_class.load(path, env=env, device=device, seed=seed)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
