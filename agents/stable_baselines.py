"""Stable-Baselines3's algorithms behind the interface of this package's agents.

So that `awsgd-rl train --algo ppo` and `awsgd-rl compare --algos awsgd ppo` run the reference
implementations on the same environments, with the same logs and files; and `prioritized-dqn` and
its like, which are in `agents.prioritized`. Nothing of the algorithms is here. Stable-Baselines3
seeds PyTorch's and NumPy's global generators, and draws from them.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from awsgd_rl._version import __version__
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
            timesteps so far, updates so far, and the mean success and return of the batch's
            episodes (success is nan where the environment reports none). Of the importance-sampling
            columns of this package's own agents, prioritized algorithms have `ess` and `max_weight`
            (over the mean weight), of their last update; the others are nan.
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
            algorithm: One of `CONFIGS`.
            policy: "MlpPolicy"; a Discrete observation is one-hot encoded.
            env: The environment or its id.
            seed: Seed of Stable-Baselines3's global generators, 0 or more.
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
        self.config = config_class(**options)
        self.seed = require_integer("seed", seed, minimum=0)
        self.env = gym.make(env) if isinstance(env, str) else env
        _check_spaces(algorithm, self.env)
        self._tensorboard_log = None if tensorboard_log is None else str(tensorboard_log)
        self._log_dir = None if log_dir is None else Path(log_dir)
        self.model = self._make_model(_checked_device(device))
        self.num_episodes = 0
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
            callback: Called with the agent after each entry of the history; False stops.
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
        monitor = None if self._log_dir is None else self._log_dir / "monitor.csv"
        listener = _make_listener(self, total_episodes, callback, monitor)
        try:
            self.model.learn(
                # Without a limit in steps the listener stops at the last episode.
                2**62 if total_timesteps is None else total_timesteps,
                callback=listener,
                tb_log_name=self.algorithm,
                # Only this makes a new folder in `tensorboard_log`.
                reset_num_timesteps=self.num_timesteps == 0,
                progress_bar=progress_bar,
            )
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
        writer: ResultsWriter | None = None

        def _on_training_start(self) -> None:
            self.returns: list[float] = []
            self.successes: list[float] = []
            self.going = True
            self.started = False
            self.first_episode = agent.num_episodes
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

        def close(self) -> None:
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
            if not self.returns:
                return
            entry = dict.fromkeys(HISTORY, math.nan)
            entry["episodes"] = agent.num_episodes
            entry["timesteps"] = agent.num_timesteps
            entry["updates"] = self.model._n_updates
            entry["success"] = float(np.mean(self.successes))
            entry["return"] = float(np.mean(self.returns))
            entry |= getattr(self.model, "diagnostics", {})
            for name, value in entry.items():
                agent.history[name].append(value)
            self.returns, self.successes = [], []
            if callback is not None and callback(agent) is False:
                self.going = False

        def _all_episodes_done(self) -> bool:
            done = agent.num_episodes - self.first_episode
            return total_episodes is not None and done >= total_episodes

    return Listener()


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
