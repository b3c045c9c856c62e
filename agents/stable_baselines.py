"""Stable-Baselines3's A2C, PPO and DQN behind the interface of this package's agents.

So that `awsgd-rl train --algo ppo` and `awsgd-rl compare --algos awsgd ppo` run the reference
implementations on the same environments, with the same logs and files. Nothing of the algorithms
is here. Stable-Baselines3 seeds PyTorch's and NumPy's global generators, and draws from them.
"""

import json
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from awsgd_rl._version import __version__
from awsgd_rl.runs import atomic_path
from awsgd_rl.validation import (
    require_fraction,
    require_integer,
    require_name,
    require_non_negative,
    require_positive,
    require_probability,
)

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

SCHEMA: Final = "awsgd_rl/stable-baselines/1"
HISTORY: Final = (
    *("episodes", "timesteps", "updates", "success", "return"),
    *("ess", "max_weight", "variance_ratio", "headroom"),
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
    """Steps in one update, 2 or more; a divisor of `n_steps`."""
    n_epochs: int = 10
    """Passes over the steps in one round of updates."""
    gamma: float = 0.99
    """Discount in [0, 1]."""
    gae_lambda: float = 0.95
    """Bias against variance of the advantage, in [0, 1]."""
    clip_range: float = 0.2
    """How far a probability ratio may leave 1 before its gradient is cut."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        _check(self)
        if self.n_steps % self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a divisor of n_steps = {self.n_steps}"
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

    def __post_init__(self) -> None:
        _check(self)


Config = A2CConfig | PPOConfig | DQNConfig
CONFIGS: Final[dict[str, type[Config]]] = {"a2c": A2CConfig, "ppo": PPOConfig, "dqn": DQNConfig}


@final
class StableBaselines:
    """An algorithm of Stable-Baselines3 with this package's `learn`, `predict`, `save`, `load`.

    Attributes:
        algorithm: "a2c", "ppo" or "dqn".
        config: Its settings.
        env: The environment, as it was given.
        model: Stable-Baselines3's own object.
        history: One entry a batch of environment steps in which an episode ended: episodes and
            timesteps so far, updates so far, and the mean success and return of the batch's
            episodes (success is nan where the environment reports none). The importance-sampling
            columns of this package's own agents are nan.
    """

    def __init__(
        self,
        algorithm: str,
        policy: str,
        env: "str | gym.Env[Any, Any]",
        *,
        seed: int = 0,
        device: str = "auto",
        tensorboard_log: str | Path | None = None,
        log_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Make the networks; nothing is written before `learn`.

        Args:
            algorithm: "a2c", "ppo" or "dqn".
            policy: "MlpPolicy"; a Discrete observation is one-hot encoded.
            env: The environment or its id.
            seed: Seed of Stable-Baselines3's global generators, 0 or more.
            device: "auto", "cpu" or "cuda".
            tensorboard_log: Folder for TensorBoard's events.
            log_dir: Folder for `monitor.csv`.
            **options: Fields of the algorithm's config.

        Raises:
            ValueError: If an argument, or a space of the environment, is not supported.
        """
        require_name("Stable-Baselines3 algorithm", algorithm, CONFIGS)
        require_name(f"policy of {algorithm}", policy, ["MlpPolicy"])
        config_class = CONFIGS[algorithm]
        names = [field.name for field in fields(config_class)]
        for name in options:
            require_name(f"option of {algorithm}", name, names)
        self.algorithm = algorithm
        self.config = config_class(**options)
        self.seed = require_integer("seed", seed, minimum=0)
        self.env = gym.make(env) if isinstance(env, str) else env
        _check_spaces(algorithm, self.env)
        self._tensorboard_log = None if tensorboard_log is None else Path(tensorboard_log)
        self._log_dir = None if log_dir is None else Path(log_dir)
        self.model = self._make_model(_checked_device(device))
        self.num_episodes = 0
        self.history: dict[str, list[float]] = {name: [] for name in HISTORY}

    def _make_model(self, device: str) -> "BaseAlgorithm":
        import stable_baselines3
        from stable_baselines3.common.monitor import Monitor

        algorithm = getattr(stable_baselines3, self.algorithm.upper())
        model: BaseAlgorithm = algorithm(
            "MlpPolicy",
            # Monitor's own file would be opened here, before anything is learned.
            Monitor(self.env),
            seed=self.seed,
            device=device,
            **asdict(self.config),
        )
        return model

    @property
    def num_timesteps(self) -> int:
        """Environment steps so far."""
        return self.model.num_timesteps

    def learn(
        self,
        total_timesteps: int | None = None,
        total_episodes: int | None = None,
        callback: "Callable[[StableBaselines], bool | None] | None" = None,
        progress_bar: bool = False,
    ) -> "StableBaselines":
        """Learn for that many more environment steps or episodes.

        Args:
            total_timesteps: Environment steps; rounded up to whole batches.
            total_episodes: Episodes, met exactly; the unfinished batch at the end is not used.
            callback: Called with the agent after each batch; returning False stops.
            progress_bar: Show Stable-Baselines3's own bar (needs tqdm).

        Raises:
            ValueError: Unless exactly one of the two totals is given, as a positive number.
        """
        if (total_timesteps is None) == (total_episodes is None):
            raise ValueError("give one of total_timesteps and total_episodes")
        if total_timesteps is not None:
            require_integer("total_timesteps", total_timesteps)
        if total_episodes is not None:
            require_integer("total_episodes", total_episodes)
        if self._tensorboard_log is not None:
            from stable_baselines3.common.logger import configure

            self.model.set_logger(configure(str(self._tensorboard_log), ["tensorboard"]))
        monitor = None if self._log_dir is None else self._log_dir / "monitor.csv"
        listener = _make_listener(self, total_episodes, callback, monitor)
        self.model.learn(
            # Without a limit in steps the listener stops at the last episode.
            2**62 if total_timesteps is None else total_timesteps,
            callback=listener,
            reset_num_timesteps=False,
            progress_bar=progress_bar,
        )
        return self

    def predict(
        self,
        observation: NDArray[Any] | int,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions for observations, as every Stable-Baselines3 model does."""
        return self.model.predict(np.asarray(observation), state, episode_start, deterministic)

    def save(self, path: str | Path) -> None:
        """Write the folder `path`: `agent.json`, and `model.zip` in Stable-Baselines3's format.

        `stable_baselines3.PPO.load` reads that `model.zip` too, but unpickles parts of it: use it
        only on files that you trust. `StableBaselines.load` reads numbers alone.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        with atomic_path(path / "model.zip") as partial:
            self.model.save(partial)
        spec = self.env.spec
        description = {
            "schema": SCHEMA,
            "version": __version__,
            "algorithm": self.algorithm,
            "policy": "MlpPolicy",
            "config": asdict(self.config),
            "env": None if spec is None else {"id": spec.id, "kwargs": spec.kwargs},
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "num_episodes": self.num_episodes,
        }
        with atomic_path(path / "agent.json") as partial:
            partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: "str | gym.Env[Any, Any] | None" = None,
        device: str = "auto",
    ) -> "StableBaselines":
        """Read an agent that `save` wrote.

        Args:
            path: The folder.
            env: The environment; when None, made from its id and arguments as saved.
            device: "auto", "cpu" or "cuda".

        Raises:
            ValueError: If the folder holds no such agent, or it is damaged or does not fit `env`.
        """
        path = Path(path)
        description = _read_description(path / "agent.json")
        if env is None:
            if description["env"] is None:
                raise ValueError(f"{str(path)!r} does not say its environment: pass env")
            env = gym.make(description["env"]["id"], **description["env"]["kwargs"])
        agent = cls(
            description["algorithm"],
            description["policy"],
            env,
            seed=description["seed"],
            device=device,
            **description["config"],
        )
        model = path / "model.zip"
        try:
            # Unlike `load`, this unpickles nothing: a foreign file can do no harm.
            agent.model.set_parameters(str(model), device=agent.model.device)
        except FileNotFoundError:
            raise ValueError(f"{str(path)!r} holds no model.zip: it is damaged") from None
        except (ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(_damage(model, error)) from None
        except pickle.UnpicklingError:
            raise ValueError(f"{str(model)!r} is damaged: expected numbers only") from None
        agent.model.num_timesteps = description["num_timesteps"]
        agent.num_episodes = description["num_episodes"]
        return agent


def _make_listener(
    agent: StableBaselines,
    total_episodes: int | None,
    callback: Callable[[StableBaselines], bool | None] | None,
    monitor: Path | None,
) -> Any:
    """Return the callback that counts episodes, keeps the history and writes `monitor.csv`."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import ResultsWriter

    class Listener(BaseCallback):
        def _on_training_start(self) -> None:
            self.returns: list[float] = []
            self.successes: list[float] = []
            self.going = True
            self.started = False
            self.first_episode = agent.num_episodes
            self.writer = None
            if monitor is not None:
                env_id = agent.env.spec.id if agent.env.spec else type(agent.env).__name__
                header: dict[str, float | str] = {"t_start": time.time(), "env_id": env_id}
                # One wrapper's file has no column for a success that not every env reports.
                self.writer = ResultsWriter(str(monitor), header, extra_keys=("is_success",))

        def _on_rollout_start(self) -> None:
            # The updates of the last batch have been made by now.
            if self.started:
                self._end_batch()
            self.started = True

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self._end_episode(info)
            return self.going and not self._all_episodes_done()

        def _on_training_end(self) -> None:
            self._end_batch()
            if self.writer is not None:
                self.writer.close()

        def _end_episode(self, info: dict[str, Any]) -> None:
            agent.num_episodes += 1
            success = float(info.get("is_success", math.nan))
            self.returns.append(info["episode"]["r"])
            self.successes.append(success)
            if self.writer is not None:
                self.writer.write_row({**info["episode"], "is_success": success})
            if total_episodes is not None:
                # Schedules run over the training, whose length in steps is not known: so that
                # their progress is the share of the episodes, the length is estimated anew.
                done = agent.num_episodes - self.first_episode
                self.model._total_timesteps = max(1, self.num_timesteps * total_episodes // done)

        def _end_batch(self) -> None:
            if self.returns:
                entry = dict.fromkeys(HISTORY, math.nan)
                entry["episodes"] = agent.num_episodes
                entry["timesteps"] = agent.num_timesteps
                entry["updates"] = self.model._n_updates
                entry["success"] = float(np.mean(self.successes))
                entry["return"] = float(np.mean(self.returns))
                for name, value in entry.items():
                    agent.history[name].append(value)
                self.returns, self.successes = [], []
            if callback is not None and callback(agent) is False:
                self.going = False

        def _all_episodes_done(self) -> bool:
            done = agent.num_episodes - self.first_episode
            return total_episodes is not None and done >= total_episodes

    return Listener()


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
        elif name in ("ent_coef", "vf_coef"):
            require_non_negative(name, value)
        elif name == "clip_range":
            require_fraction(name, value)
        else:
            require_positive(name, value)


def _check_spaces(algorithm: str, env: object) -> None:
    if not isinstance(env, gym.Env):
        raise ValueError(f"env is a {type(env).__name__}, expected one Gymnasium environment")
    if not isinstance(env.observation_space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"observation space is {env.observation_space}, expected Box or Discrete for MlpPolicy"
        )
    actions = (spaces.Discrete,) if algorithm == "dqn" else (spaces.Discrete, spaces.Box)
    if not isinstance(env.action_space, actions):
        expected = " or ".join(space.__name__ for space in actions)
        raise ValueError(f"action space is {env.action_space}, expected {expected} for {algorithm}")


def _checked_device(device: str) -> str:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but there is no CUDA device: use 'cpu' or 'auto'")
    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError:
            raise ValueError(f"device is {device!r}, expected auto, cpu or cuda") from None
    return device


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{str(path.parent)!r} holds no agent: agent.json is not there") from None
    except ValueError as error:
        raise ValueError(_damage(path, error)) from None
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise ValueError(f"{str(path)!r} describes no agent of Stable-Baselines3")
    keys = {"algorithm", "policy", "config", "env", "seed", "num_timesteps", "num_episodes"}
    if missing := sorted(keys - description.keys()):
        raise ValueError(_damage(path, f"it lacks {', '.join(missing)}"))
    return description


def _damage(path: str | os.PathLike[str], why: object) -> str:
    return f"{str(path)!r} is damaged or not of this agent: {' '.join(str(why).split())}"
