"""Stable-Baselines3's algorithms behind the interface of this package's agents.

So that `awsgd-rl train --algo ppo` and `awsgd-rl compare --algos awsgd ppo` run the reference
implementations on the same environments, with the same logs and files; and `prioritized-dqn` and
its like, which are in `agents.prioritized`. Nothing of the algorithms is here. Stable-Baselines3
seeds PyTorch's and NumPy's global generators, and draws from them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from awsgd_rl._version import __version__
from awsgd_rl.agents.config import choose_seed, plain
from awsgd_rl.agents.stable_baselines_configs import CONFIGS
from awsgd_rl.validation import require_integer, require_name

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from torch import Tensor
    from torch.optim import Optimizer

HISTORY: Final = (
    *("episodes", "timesteps", "updates", "success", "return"),
    *("ess", "max_weight", "variance_ratio", "headroom"),
)


@final
class StableBaselines:
    """An algorithm of Stable-Baselines3 with this package's `learn`, `predict`, `save`, `load`.

    Attributes:
        algorithm: One of `CONFIGS`: "ppo", "dqn", "prioritized-dqn", ...
        config: Its settings.
        env: The environment, as it was given.
        model: Stable-Baselines3's own object.
        history: One entry a batch of environment steps in which an episode ended: episodes and
            timesteps so far, updates since the entry before, and the mean success and return of the
            batch's episodes (success is nan where the environment reports none). Of the columns of
            this package's own agents for importance sampling, prioritized algorithms have `ess` and
            `max_weight` (over the mean weight), of their last update; the others are nan. In a very
            long training neighbours become one entry.
        monitor_rows: Episodes that `monitor.csv` has; the next `learn` goes on after them.
    """

    def __init__(
        self,
        algorithm: str,
        policy: str,
        env: "str | gym.Env[Any, Any]",
        *,
        seed: int | None = None,
        device: str = "auto",
        tensorboard_log: str | Path | None = None,
        log_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Make the networks; nothing is written before `learn`.

        Args:
            algorithm: One of `CONFIGS`.
            policy: "MlpPolicy"; a Discrete observation is one-hot encoded.
            env: The environment or its id.
            seed: Seed of Stable-Baselines3's global generators, 0 or more; None draws one, which
                `agent.seed` then tells.
            device: "auto", "cpu" or "cuda".
            tensorboard_log: Folder for TensorBoard's events, in a folder of their own there.
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
        self.config = config_class(**plain(options))
        self.seed = choose_seed(seed)
        self.env = gym.make(env) if isinstance(env, str) else env
        _check_spaces(algorithm, self.env)
        self._tensorboard_log = None if tensorboard_log is None else str(tensorboard_log)
        self._log_dir = None if log_dir is None else Path(log_dir)
        self.model = self._make_model(_checked_device(device))
        self.num_episodes = 0
        self.monitor_rows = 0
        self._continues_board = False
        self.history: dict[str, list[float]] = {name: [] for name in HISTORY}

    def _make_model(self, device: str) -> "BaseAlgorithm":
        from stable_baselines3.common.logger import Logger

        from awsgd_rl.agents.sb3_vec_env import make_vec_env

        algorithm = _algorithm_class(self.algorithm)
        settings = asdict(self.config)
        envs = make_vec_env(self.env, settings.pop("n_envs"), settings.pop("reward_scale"))
        if "action_noise" in settings:
            settings["action_noise"] = _make_noise(envs.action_space, settings["action_noise"])
        model: BaseAlgorithm = algorithm(
            "MlpPolicy",
            envs,
            seed=self.seed,
            device=device,
            tensorboard_log=self._tensorboard_log,
            **settings,
        )
        if self._tensorboard_log is None:
            # Its own choice leaves an empty folder behind in the temporary directory.
            model.set_logger(Logger(folder=None, output_formats=[]))
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
            total_episodes: Episodes, met exactly with one environment (with several, those that
                end in the same step count too); the unfinished batch at the end is not used.
            callback: Called with the agent after each entry of the history, between two batches;
                False stops there.
            progress_bar: Show Stable-Baselines3's own bar (needs tqdm).

        Raises:
            ValueError: Unless exactly one of the two totals is given, as a positive number.
        """
        from stable_baselines3.common.callbacks import CallbackList, ProgressBarCallback

        from awsgd_rl.agents.stable_baselines_listener import (
            Listener,
            StopLearning,
            continued_logger,
        )

        if (total_timesteps is None) == (total_episodes is None):
            raise ValueError("give one of total_timesteps and total_episodes")
        if total_timesteps is not None:
            require_integer("total_timesteps", total_timesteps)
        if total_episodes is not None:
            require_integer("total_episodes", total_episodes)
        listener = Listener(self, total_episodes, callback, self._monitor_path())
        # Not by its own option: it would not be closed where the callback stops.
        callbacks = CallbackList([listener, *([ProgressBarCallback()] if progress_bar else [])])
        if self._continues_board and self._tensorboard_log is not None:
            board = Path(self._tensorboard_log)
            self.model.set_logger(continued_logger(board, self.algorithm, self.num_timesteps))
        self._continues_board = False
        try:
            self.model.learn(
                # Without a limit in steps the listener stops at the last episode.
                2**62 if total_timesteps is None else total_timesteps,
                callback=callbacks,
                tb_log_name=self.algorithm,
                # Only this makes a new folder in `tensorboard_log`.
                reset_num_timesteps=self.num_timesteps == 0,
            )
            if total_episodes is not None:
                self._drop_last_step()
        except StopLearning:
            callbacks.on_training_end()
        finally:
            listener.close()
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

    def policy_table(self) -> NDArray[np.float64]:
        """Return [S, A] the action probabilities in every state of a Discrete observation space.

        Raises:
            ValueError: If the observations or actions are not Discrete, or the algorithm has no
                stochastic policy (DQN).
        """
        import torch

        observed, actions = self.env.observation_space, self.env.action_space
        policy: Any = self.model.policy
        if not (
            isinstance(observed, spaces.Discrete)
            and isinstance(actions, spaces.Discrete)
            and hasattr(policy, "get_distribution")
        ):
            raise ValueError(
                f"{self.algorithm} on {observed} and {actions} has no table of action "
                "probabilities, expected a2c or ppo on Discrete spaces"
            )
        table = np.empty((int(observed.n), int(actions.n)))
        with torch.no_grad():
            # One-hot vectors of many states at once would take as much memory as states squared.
            for states in np.array_split(np.arange(observed.n), -(-observed.n // 512)):
                batch = torch.as_tensor(states + observed.start, device=policy.device)
                logits = policy.get_distribution(batch).distribution.logits.double()
                table[states] = logits.softmax(-1).cpu().numpy()
        return table

    def save(self, path: str | Path) -> None:
        """Write the agent into the folder `path`: agent.json and parameters.safetensors.

        Numbers only, as all agents of this package are saved. `agent.model.save(file)` writes
        Stable-Baselines3's own format, whose loading unpickles: load it from people you trust.
        """
        from awsgd_rl.agents.checkpoint import describe_env, write_checkpoint

        write_checkpoint(
            Path(path),
            {
                "algorithm": self.algorithm,
                "policy": "MlpPolicy",
                "config": asdict(self.config),
                "env": describe_env(self.env),
                "seed": self.seed,
                "num_timesteps": self.num_timesteps,
                "num_episodes": self.num_episodes,
                "version": __version__,
            },
            self._state(),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: "str | gym.Env[Any, Any] | None" = None,
        device: str = "auto",
        seed: int | None = None,
    ) -> "StableBaselines":
        """Read an agent that `save` wrote.

        Args:
            path: The folder.
            env: The environment; None makes the one that the folder names.
            device: "auto", "cpu" or "cuda".
            seed: Seed of all further draws; None takes the saved agent's.

        Raises:
            ValueError: If the folder holds no such agent, or it is damaged or does not fit `env`.
        """
        from awsgd_rl.agents.checkpoint import make_described_env, read_checkpoint

        about, state = read_checkpoint(Path(path))
        require_name("Stable-Baselines3 algorithm", about["algorithm"], CONFIGS)
        env = make_described_env(about["env"]) if env is None else env
        agent = cls(
            about["algorithm"],
            about["policy"],
            env,
            seed=about["seed"] if seed is None else seed,
            device=device,
            **about["config"],
        )
        try:
            agent._load_state(state)
        except (KeyError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{str(path)!r} does not fit {agent.algorithm}: {why}") from None
        agent.model.num_timesteps = about["num_timesteps"]
        agent.num_episodes = about["num_episodes"]
        return agent

    def save_training(self, path: str | Path) -> None:
        """Write all that this training needs to go on elsewhere into the folder `path`.

        Call it before or after `learn`, or in its callback; a `Checkpoints`
        (`awsgd_rl.agents.checkpoints`) is such a callback, and keeps the last few. It is numbers
        only, and holds the replay buffer, where there is one. `save` writes the agent alone, to be
        used or shared.

        Raises:
            OSError: If it could not be written (a full disk); what was at `path` is still there.
            ValueError: If `path` holds something that is no training state.
        """
        from awsgd_rl.agents.stable_baselines_training import save_training

        save_training(self, Path(path))

    def restore_training(self, path: str | Path) -> None:
        """Go on from what `save_training` wrote; `learn` then appends to the logs as they were.

        The episodes that were under way are dropped: the environments are reset. So the training
        does not end bit for bit as if it had never been stopped. The global generators of PyTorch,
        NumPy and Python go on from where they were.

        The agent must have been made with the same environment and options.

        Raises:
            ValueError: If it is damaged, of a newer version, or of an agent made otherwise; nothing
                has changed then.
        """
        from awsgd_rl.agents.stable_baselines_training import restore_training

        restore_training(self, Path(path))

    def log_position(self) -> dict[str, Any]:
        """Return where the logs stand, as `RunLogger.position`; what they say is on the disk."""
        monitor = self._monitor_path()
        if monitor is not None and monitor.exists():
            with monitor.open("rb+") as file:
                os.fsync(file.fileno())
        recent: Any = self.model.ep_info_buffer or []
        return {
            "timesteps": self.num_timesteps,
            "monitor_rows": self.monitor_rows,
            "evaluations": 0,
            "rewards": [float(episode["r"]) for episode in recent],
            "lengths": [int(episode["l"]) for episode in recent],
            "successes": [float(success) for success in self.model.ep_success_buffer or []],
        }

    def resume_log(self, monitor_rows: int) -> None:
        """Let the next `learn` append to the logs from where they stood then."""
        self.monitor_rows, self._continues_board = monitor_rows, True

    def _drop_last_step(self) -> None:
        """Let the next `learn` begin new episodes: of the last step it would know the half."""
        from awsgd_rl.agents.stable_baselines_replay import interrupt

        # Stable-Baselines3 stops before it takes the step in, which has reset the environment.
        self.model._last_obs = None
        buffer = getattr(self.model, "replay_buffer", None)
        if buffer is not None:
            interrupt(buffer)

    def _monitor_path(self) -> Path | None:
        return None if self._log_dir is None else self._log_dir / "monitor.csv"

    def _state(self) -> dict[str, "Tensor"]:
        """Return the tensors of the networks and of the optimizers."""
        tensors = {f"policy.{name}": x for name, x in self.model.policy.state_dict().items()}
        for kind, optimizer in self._optimizers().items():
            for number, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{kind}.{number}.{name}": value for name, value in moments.items()}
        if (learned := getattr(self.model, "log_ent_coef", None)) is not None:
            tensors["log_ent_coef.value"] = learned
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def _load_state(self, state: Mapping[str, "Tensor"]) -> None:
        networks: dict[str, Tensor] = {}
        optimizers = self._optimizers()
        moments: dict[str, dict[int, dict[str, Tensor]]] = {kind: {} for kind in optimizers}
        learned: Tensor | None = None
        for key, value in state.items():
            kind, name = key.split(".", 1)
            if kind == "policy":
                networks[name] = value
            elif kind == "log_ent_coef":
                learned = value
            else:
                number, name = name.split(".")
                moments[kind].setdefault(int(number), {})[name] = value
        self.model.policy.load_state_dict(networks)
        for kind, optimizer in optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[kind], "param_groups": groups})
        own = getattr(self.model, "log_ent_coef", None)
        if own is not None and learned is not None:
            own.data.copy_(learned)

    def _optimizers(self) -> dict[str, "Optimizer"]:
        """Return the optimizers: one, or those of actor, critic and entropy coefficient."""
        model: Any = self.model
        if hasattr(model.policy, "optimizer"):
            return {"optimizer": model.policy.optimizer}
        found = {
            "actor_optimizer": model.actor.optimizer,
            "critic_optimizer": model.critic.optimizer,
            "ent_coef_optimizer": getattr(model, "ent_coef_optimizer", None),
        }
        return {kind: optimizer for kind, optimizer in found.items() if optimizer is not None}


def _algorithm_class(algorithm: str) -> Any:
    if algorithm.startswith("prioritized-"):
        from awsgd_rl.agents import prioritized

        name = f"Prioritized{algorithm.removeprefix('prioritized-').upper()}"
        return getattr(prioritized, name)
    import stable_baselines3

    return getattr(stable_baselines3, algorithm.upper())


def _make_noise(space: Any, deviation: float) -> Any:
    from stable_baselines3.common.noise import NormalActionNoise

    if deviation == 0.0:
        return None
    return NormalActionNoise(np.zeros(space.shape), np.full(space.shape, deviation))


def _check_spaces(algorithm: str, env: object) -> None:
    if not isinstance(env, gym.Env):
        raise ValueError(f"env is a {type(env).__name__}, expected one Gymnasium environment")
    if not isinstance(env.observation_space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"observation space is {env.observation_space}, expected Box or Discrete for MlpPolicy"
        )
    kinds = {"dqn": (spaces.Discrete,), "sac": (spaces.Box,), "td3": (spaces.Box,)}
    actions: tuple[type[spaces.Space[Any]], ...]
    actions = kinds.get(algorithm.removeprefix("prioritized-"), (spaces.Discrete, spaces.Box))
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
