"""What both agents share: their common options, the training loop, saving and loading.

An algorithm (`reinforce.py`, `awsgd.py`) is a page that says what one batch does; a `Learner`
(`tabular.py`, `neural.py`) is a policy class with everything that an algorithm asks of it.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl import diagnostics, validation
from awsgd_rl._version import __version__
from awsgd_rl.agents.checkpoint import read_checkpoint, write_checkpoint
from awsgd_rl.agents.logging import RunLogger
from awsgd_rl.agents.progress import track
from awsgd_rl.weights import effective_sample_size

POLICIES = ("TablePolicy", "MlpPolicy")


@dataclass(frozen=True)
class AgentConfig:
    """Options of every agent. `None` stands for a default that depends on the policy."""

    batch_size: int | None = None
    """Episodes a batch. Default: 20 with tables, 8 with networks."""
    updates: int | None = None
    """Gradient steps a batch. Default: depends on algorithm and policy."""
    learning_rate: float | None = None
    """Step size ρ of the target policy. Default: depends on algorithm and policy."""
    discount: float | None = None
    """Discount γ in (0, 1]. Default: 0.999 with tables, 0.99 with networks."""
    ratio_clip: float = 2.0
    """Largest ratio p_now / p_drawn of data that is used again (whole trajectories with tables,
    single steps with networks). The truncation is the only bias; infinity removes it."""
    reward_to_go: bool = True
    """Weight each action by the return from it on. False: by the whole episode's (seed 001)."""
    baseline: bool = True
    """Subtract learned state values from the returns."""
    value_rate: float = 0.03
    """Tables: share of the way that one visit moves a state's value to the batch's mean return."""
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
    """Networks: gradients are scaled down to this norm."""
    normalise_observations: bool = True
    """Networks: subtract the running mean of the observations, divide by their deviation."""


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
        """Step w along mean_b weights_b g_b, τ with it; return the norm of that mean."""

    def ascend_exploration(self, trajectories: Any, coefficients: Tensor) -> None:
        """Step τ along mean_b coefficients_b ∇ log q_τ, and keep it near w."""

    def fit_values(self, trajectories: Any, weights: Tensor) -> None:
        """Fit the state values to fresh trajectories."""

    def predict(self, observation: Any, deterministic: bool) -> NDArray[Any]:
        """Return actions of P_w."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all parameters by name."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over parameters, or raise ValueError and change nothing."""


History = dict[str, list[float]]
"""One entry a batch under each name: episodes, timesteps, success, return, ess, max_weight,
variance_ratio, headroom, updates."""


class Agent(ABC):
    """A policy that learns by one algorithm. Feels like Stable-Baselines3.

    Args:
        policy: "TablePolicy" (Discrete observations) or "MlpPolicy".
        env: an id, an environment or a vector environment.
        seed: of all draws; None draws one, which `agent.seed` then tells.
        device: "cpu", "cuda", or "auto".
        log_dir: folder for `monitor.csv`; none without it.
        tensorboard_log: folder for TensorBoard's events; none without it.
        options: fields of the algorithm's config.

    Attributes:
        history: what was measured, one entry a batch.
        num_timesteps: steps taken in the environment so far.
        num_episodes: episodes run so far.

    Raises:
        ValueError: an option is unknown or out of range, or the policy does not fit the spaces.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    config: Any
    """The options, no `None` left where a default depends on the policy."""

    def __init__(
        self,
        policy: str,
        env: Any,
        *,
        seed: int | None = None,
        device: str = "auto",
        log_dir: str | Path | None = None,
        tensorboard_log: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.policy = validation.require_name("policy", policy, POLICIES)
        known = [field.name for field in fields(self.config_class)]
        for option in options:
            validation.require_name(f"option of {self.name}", option, known)
        self.config = self._resolve(self.config_class(**options))
        self.check(self.config)
        self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0]) if seed is None else seed
        self.device = device
        self.env = gym.make(env) if isinstance(env, str) and policy == "TablePolicy" else env
        self.generator = torch.Generator().manual_seed(self.seed)
        self.learner: Learner = self._make_learner()
        self.history: History = {}
        self.num_timesteps = 0
        self.num_episodes = 0
        self._log_dirs = (log_dir, tensorboard_log)

    @classmethod
    @abstractmethod
    def defaults(cls, policy: str, config: Any) -> dict[str, Any]:
        """Return what `None` options stand for, given the policy and the other options."""

    @abstractmethod
    def update(self, n: int) -> dict[str, float]:
        """Collect `n` episodes, learn from them, and return this batch's measurements."""

    @property
    def exploration_share(self) -> float:
        """Share of each batch that Q_τ draws."""
        return 0.0

    @property
    def memory_size(self) -> int:
        """Trajectories that the learner keeps."""
        return 0

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        total_episodes: int | None = None,
        callback: Callable[[Self], bool | None] | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Train until that many more steps or episodes are done.

        Args:
            total_timesteps: environment steps; the batch that passes it is finished.
            total_episodes: episodes, met exactly.
            callback: called with the agent after each batch; False stops.
            progress_bar: show one.

        Raises:
            ValueError: unless exactly one of the two totals is given, as a positive number.
        """
        if (total_timesteps is None) == (total_episodes is None):
            raise ValueError("give one of total_timesteps and total_episodes")
        unit = "total_timesteps" if total_episodes is None else "total_episodes"
        total = validation.require_integer(unit, total_timesteps or total_episodes)

        def done() -> int:
            return self.num_timesteps if total_episodes is None else self.num_episodes

        stop = done() + total
        log_dir, tensorboard_log = self._log_dirs
        with (
            RunLogger(
                log_dir,
                tensorboard_log,
                env_id=self.env_id,
                run_name=self.name,
                append=self.num_episodes > 0,
            ) as log,
            track(total, unit.removeprefix("total_"), progress_bar) as advance,
        ):
            log.resume_from(self.num_timesteps)
            while done() < stop:
                before = done()
                n = self.config.batch_size
                self._batch(n if total_episodes is None else min(n, stop - before), log)
                advance(done() - before, self._summary())
                if callback is not None and callback(self) is False:
                    break
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], None]:
        """Return the actions of P_w for one observation or a batch of them, and None (no state)."""
        return self.learner.predict(observation, deterministic), None

    def policy_table(self) -> NDArray[np.float64]:
        """Return P_w as probabilities [S, A] (table policies)."""
        return self._table("policy_table")

    def exploration_table(self) -> NDArray[np.float64]:
        """Return Q_τ as probabilities [S, A] (table policies)."""
        return self._table("exploration_table")

    def save(self, path: str | Path) -> None:
        """Write the agent into the folder `path`: agent.json and parameters.safetensors."""
        write_checkpoint(
            Path(path),
            {
                "algorithm": self.name,
                "policy": self.policy,
                "config": asdict(self.config),
                "env": self._env_description(),
                "seed": self.seed,
                "num_timesteps": self.num_timesteps,
                "num_episodes": self.num_episodes,
                "version": __version__,
            },
            self.learner.state_dict(),
        )

    @classmethod
    def load(cls, path: str | Path, env: Any = None, device: str = "auto") -> Self:
        """Read an agent from the folder `path`.

        Args:
            path: what `save` wrote.
            env: the environment; None makes the one that the folder names.
            device: as for the constructor.

        Raises:
            ValueError: the folder holds no agent, another algorithm's, a damaged one, or one of
                another environment.
        """
        about, parameters = read_checkpoint(Path(path))
        if about.get("algorithm") != cls.name:
            raise ValueError(
                f"{path} holds an agent of {about.get('algorithm')!r}, expected {cls.name!r}: "
                "load it with its own class, or awsgd_rl.agents.load_agent"
            )
        if env is None:
            env = gym.make(gym.envs.registration.EnvSpec.from_json(json.dumps(about["env"])))
        known = {field.name for field in fields(cls.config_class)}
        options = {name: value for name, value in about["config"].items() if name in known}
        if "hidden_sizes" in options:
            options["hidden_sizes"] = tuple(options["hidden_sizes"])
        agent = cls(about["policy"], env, seed=about["seed"], device=device, **options)
        agent.learner.load_state_dict(parameters)
        agent.num_timesteps = about["num_timesteps"]
        agent.num_episodes = about["num_episodes"]
        return agent

    @property
    def env_id(self) -> str:
        """The environment's id, or its class's name."""
        if isinstance(self.env, str):
            return self.env
        spec = getattr(self.env, "spec", None)
        return spec.id if spec is not None else type(self.env).__name__

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse options that are out of range.

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

    def _resolve(self, config: AgentConfig) -> AgentConfig:
        defaults = self.defaults(self.policy, config)
        return replace(
            config,
            **{name: value for name, value in defaults.items() if getattr(config, name) is None},
        )

    def _make_learner(self) -> Learner:
        from awsgd_rl.agents.learners import make_learner

        return make_learner(self)

    def _batch(self, n: int, log: Any) -> None:
        measured = self.update(n)
        fresh = self._fresh
        self.num_episodes += len(fresh)
        self.num_timesteps += int(fresh.lengths.sum())
        row = {"episodes": self.num_episodes, "timesteps": self.num_timesteps, **measured}
        for name, value in row.items():
            self.history.setdefault(name, []).append(float(value))
        log.episodes(fresh.raw_returns.tolist(), fresh.lengths.tolist(), fresh.success.tolist())
        log.scalars(
            self.num_timesteps,
            {
                "n_updates": sum(self.history["updates"]),
                "variance_ratio": measured["variance_ratio"],
                "headroom": measured["headroom"],
                "effective_sample_size": measured["ess"],
                "largest_weight": measured["max_weight"],
                **getattr(self.learner, "metrics", {}),
            },
        )

    def _summary(self) -> str:
        """Return the last batches in a few words."""
        success = [x for x in self.history["success"][-10:] if x == x]
        if success:
            return f"success {sum(success) / len(success):.2f}"
        returns = self.history["return"][-10:]
        return f"return {sum(returns) / len(returns):.1f}"

    def measure(
        self, fresh: Any, weights: Tensor, signal: Tensor, gradient_norm: float
    ) -> dict[str, float]:
        """Return the usual measurements of one fresh batch.

        Args:
            fresh: the B trajectories.
            weights: [B] their importance weights.
            signal: [B] their gradient norms, before the step.
            gradient_norm: norm of the weighted mean gradient.
        """
        self._fresh = fresh
        target = fresh.from_target
        return {
            "success": float(fresh.success[target].mean()) if bool(target.any()) else float("nan"),
            "return": float((weights * fresh.raw_returns).mean()),
            "ess": float(effective_sample_size(weights)),
            "max_weight": float(weights.max()),
            "variance_ratio": float(diagnostics.variance_ratio(signal, weights, gradient_norm)),
            "headroom": float(diagnostics.headroom(signal, weights)),
            "updates": self.config.updates,
        }

    def _table(self, which: str) -> NDArray[np.float64]:
        if self.policy != "TablePolicy":
            raise ValueError(f"an agent with {self.policy!r} has no table, only 'TablePolicy' has")
        table: NDArray[np.float64] = getattr(self.learner, which)()
        return table

    def _env_description(self) -> Any:
        env = gym.make(self.env) if isinstance(self.env, str) else self.env
        spec = getattr(env, "spec", None)
        return json.loads(spec.to_json()) if spec is not None else None
