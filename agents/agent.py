"""What both agents share: their common options, the training loop, saving and loading.

An algorithm (`reinforce.py`, `awsgd.py`) is a page that says what one batch does; a `Learner`
(`tabular.py`, `neural.py`) is a policy class with everything that an algorithm asks of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from awsgd_rl import diagnostics, validation
from awsgd_rl._version import __version__
from awsgd_rl.agents.checkpoint import (
    describe_env,
    make_described_env,
    read_checkpoint,
    write_checkpoint,
)
from awsgd_rl.agents.config import AgentConfig, check_common, choose_seed, plain
from awsgd_rl.agents.history import History, record
from awsgd_rl.agents.learner import Learner, make_learner
from awsgd_rl.agents.logging import NOTHING, RunLogger
from awsgd_rl.agents.progress import track
from awsgd_rl.weights import effective_sample_size

POLICIES = ("TablePolicy", "MlpPolicy")


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
        history: what was measured, one entry a batch: see `history.py`.
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
        self.env = gym.make(env) if isinstance(env, str) and policy == "TablePolicy" else env
        self.config = self._resolve(self.config_class(**plain(options)))
        self.check(self.config)
        self.seed = choose_seed(seed)
        self.device = device
        self.learner: Learner = make_learner(self)
        self.generator = torch.Generator(self.learner.device).manual_seed(self.seed)
        self.history: History = {}
        self._updates_done = 0.0
        self.num_timesteps = 0
        self.num_episodes = 0
        self._log_dirs = (log_dir, tensorboard_log)
        self._log: RunLogger | None = None
        self._log_position: dict[str, Any] | None = None

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
    def exploration_follows(self) -> bool:
        """Whether Q_τ makes each step of P_w too."""
        return True

    @property
    def uses_critic(self) -> bool:
        """Whether gradients are those of a critic (tables on the gridworld)."""
        return False

    @property
    def memory_size(self) -> int:
        """Trajectories that the learner keeps."""
        return 0

    def modules(self) -> dict[str, nn.Module]:
        """Return what the algorithm itself has learned, beside the learner."""
        return {}

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
        if total_episodes is None:
            unit, total = "total_timesteps", total_timesteps
        else:
            unit, total = "total_episodes", total_episodes
        total = validation.require_integer(unit, total)

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
                resume=self._log_position,
            ) as log,
            track(total, unit.removeprefix("total_"), progress_bar) as advance,
        ):
            log.resume_from(self.num_timesteps)
            self._log, self._log_position = log, None
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
                "env": describe_env(self.env),
                "seed": self.seed,
                "num_timesteps": self.num_timesteps,
                "num_episodes": self.num_episodes,
                "version": __version__,
            },
            self.learner.state_dict(),
        )

    @classmethod
    def load(
        cls, path: str | Path, env: Any = None, device: str = "auto", seed: int | None = None
    ) -> Self:
        """Read an agent from the folder `path`.

        Args:
            path: what `save` wrote.
            env: the environment; None makes the one that the folder names.
            device: as for the constructor.
            seed: of all further draws; None takes the saved agent's.

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
        env = make_described_env(about["env"]) if env is None else env
        known = {field.name for field in fields(cls.config_class)}
        options = {name: value for name, value in about["config"].items() if name in known}
        if "hidden_sizes" in options:
            options["hidden_sizes"] = tuple(options["hidden_sizes"])
        agent = cls(
            about["policy"],
            env,
            seed=about["seed"] if seed is None else seed,
            device=device,
            **options,
        )
        agent.learner.load_state_dict(parameters)
        agent.num_timesteps = about["num_timesteps"]
        agent.num_episodes = about["num_episodes"]
        return agent

    def save_training(self, path: str | Path) -> None:
        """Write all that this training needs to go on elsewhere into the folder `path`.

        With it, `restore_training` and what is left to learn end, on the CPU, bit for bit as if
        nothing had happened. Call it before or after `learn`, or in its callback; a `Checkpoints`
        (`awsgd_rl.agents.checkpoints`) is such a callback, and keeps the last few. `save` writes
        the agent alone, to be used or shared. What cannot be saved of an environment is said at
        `EpisodeCollector.training_state`.

        Raises:
            OSError: it could not be written (a full disk); what was at `path` is still there.
            ValueError: `path` holds something that is no training state.
        """
        from awsgd_rl.agents.training_state import save_training

        save_training(self, Path(path))

    def restore_training(self, path: str | Path) -> None:
        """Go on from what `save_training` wrote; `learn` then appends to the logs as they were.

        The agent must have been made with the same policy, environment and options.

        Raises:
            ValueError: it is damaged, of a newer version, or of an agent made otherwise; nothing
                has changed then.
        """
        from awsgd_rl.agents.training_state import restore_training

        restore_training(self, Path(path))

    def log_position(self) -> dict[str, Any] | None:
        """Return where the logs stand, as `RunLogger.position`; None where it is not known."""
        if self._log is not None:
            return self._log.position()
        if self._log_position is None and self.num_episodes == 0:
            return dict(NOTHING)
        return self._log_position

    def resume_history(self, history: History) -> None:
        """Let the history go on from this one."""
        self.history = history
        self._updates_done = sum(history.get("updates", []))

    def resume_log(self, position: dict[str, Any] | None) -> None:
        """Let the next `learn` append to the logs from where they stood then."""
        self._log, self._log_position = None, position

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
        check_common(config)

    def _resolve(self, config: AgentConfig) -> AgentConfig:
        defaults = self.defaults(self.policy, config)
        return replace(
            config,
            **{name: value for name, value in defaults.items() if getattr(config, name) is None},
        )

    def _batch(self, n: int, log: Any) -> None:
        measured = self.update(n)
        fresh = self._fresh
        self.num_episodes += len(fresh)
        self.num_timesteps += int(fresh.lengths.sum())
        row = {"episodes": self.num_episodes, "timesteps": self.num_timesteps, **measured}
        record(self.history, row)
        self._updates_done += measured["updates"]
        log.episodes(fresh.raw_returns.tolist(), fresh.lengths.tolist(), fresh.success.tolist())
        log.scalars(
            self.num_timesteps,
            {
                "n_updates": self._updates_done,
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
