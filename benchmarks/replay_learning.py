"""DQN with uniform replay, with priorities and with two-stage draws: what they learn, and how soon.

Stable-Baselines3's DQN beside `PrioritizedDQN`: PER (Schaul 2016: α = 0.6, β from 0.4 to 1, weights
over the batch's largest) and LaBER (Lahire 2022: 4 candidates a draw, unbiased weights), both by
|TD error|. Nothing else differs. All three have settings that were found for plain DQN (`TASKS`),
which favours it if any; PER and LaBER have those of their papers, and are not tuned.
Published evidence on whether PER helps is mixed; this tells what is seen on three small tasks.

Returns are those of training episodes, exploration included; aggregates are interquartile means
over seeds (Agarwal 2021). Time is the processor's, of learning alone: a core each, whatever else
the machine does. Breakout of MinAtar (Young & Tian 2019) is played where that package is installed:
pip install minatar.
"""

import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from awsgd_rl.benchmarks.iqm import iqm_interval
from awsgd_rl.benchmarks.summary import add_interval_if_known
from awsgd_rl.benchmarks.trial import BINS, binned
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import Band, bootstrap_interval
from awsgd_rl.validation import require_integer, require_name

ALGORITHMS: Final[Mapping[str, tuple[str, str | None]]] = {
    "dqn": ("DQN (SB3)", None),
    "per": ("PER", "priority"),
    "laber": ("LaBER", "two-stage"),
}
"""Title, and proposal."""


class Setting(NamedTuple):
    """A task, and DQN's settings for it where they are not Stable-Baselines3's defaults."""

    env_id: str
    steps: int
    options: Mapping[str, Any]
    arguments: Mapping[str, Any] = {}
    """Of `gymnasium.make`."""
    reward_scale: float = 1.0
    """Of what is learned from; returns are reported without."""


TASKS: Final[Mapping[str, Setting]] = {
    # RL Baselines3 Zoo's (https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml).
    "CartPole-v1": Setting(
        "CartPole-v1",
        50_000,
        {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    # A map of 8x8 with two traps: of 15x15, the smallest preset, DQN finds no goal in 50,000 steps.
    # Set for DQN, by seed 1000: with `compare`'s discount, 0.999, it learns nothing, since actions
    # then differ by less than the network's error.
    "TrapGridworld-8-2": Setting(
        "awsgd_rl/TrapGridworld-v0",
        20_000,
        {
            "learning_rate": 1e-3,
            "batch_size": 64,
            "buffer_size": 50_000,
            "learning_starts": 1_000,
            "gamma": 0.95,
            "target_update_interval": 500,
            "exploration_fraction": 0.3,
            "exploration_final_eps": 0.05,
        },
        {"size": 8, "traps": 2},
        reward_scale=1e-3,
    ),
    # After Young & Tian 2019, but for Adam, one update every four frames, exploration that falls
    # over half of the frames, and 50,000 of them: theirs are 5 million.
    "MinAtar/Breakout-v1": Setting(
        "MinAtar/Breakout-v1",
        50_000,
        {
            "learning_rate": 2.5e-4,
            "batch_size": 32,
            "buffer_size": 100_000,
            "learning_starts": 2_500,
            "gamma": 0.99,
            "target_update_interval": 1_000,
            "exploration_fraction": 0.5,
            "exploration_final_eps": 0.1,
        },
        # An episode has no end there for who plays well.
        {"max_episode_steps": 2_500},
    ),
}

SEEDS: Final = 10
EVALUATION_EPISODES: Final = 10
QUICK_SHARE: Final = 30
"""Long enough for an episode of the gridworld to end, of 640 steps at most."""


class Task(NamedTuple):
    """One algorithm on one task."""

    name: str
    algorithm: str
    seed: int
    steps: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.name}, seed {self.seed}"


def check(env: str | None = None) -> None:
    """Raise ValueError if there is no such environment in this bench."""
    if env is not None:
        require_name("environment of this bench", env, TASKS)


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    env: str | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train and evaluate each algorithm on each task.

    Args:
        quick: two seeds and a thirtieth of the steps.
        seed: the seeds are this one and those that follow.
        env: this task alone, one of `TASKS`.
        seeds: how many seeds, in place of `SEEDS`.
        jobs: processes; None for one a core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, with its learning curve. The summary has for each task and algorithm
        `<task>.<algorithm>.return_iqm`, the mean over all steps of training,
        `.return_iqm_equal_time`, that over as many seconds as DQN takes, `.return_final_iqm`, of
        the greedy policy afterwards, and `.seconds`, the mean; and `<task>.per_gain`,
        `.per_gain_equal_time`, `.per_gain_final`, the differences of these from DQN's, with `laber`
        the same. All with 95 % intervals over seeds.
    """
    check(env)
    names = list(TASKS) if env is None else [env]
    if "MinAtar/Breakout-v1" in names and find_spec("minatar") is None:
        names.remove("MinAtar/Breakout-v1")
        progress(0.0, "MinAtar is left out, it is not installed: pip install minatar")
    number = (2 if quick else SEEDS) if seeds is None else require_integer("seeds", seeds)
    share = QUICK_SHARE if quick else 1
    tasks = [
        Task(name, algorithm, seed + s, TASKS[name].steps // share)
        for name in names
        for s in range(number)
        for algorithm in ALGORITHMS
    ]
    done = count(1)
    rows = run_tasks(
        train,
        tasks,
        jobs=jobs,
        on_result=lambda row: progress(
            next(done) / len(tasks),
            f"{row['algorithm']}, {row['env']}: {row['return_mean']:.4g} in {row['seconds']:.0f} s",
        ),
    )
    return rows, summarise(rows, seed)


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, float]:
    """Interquartile means over seeds, and their differences from DQN's."""
    from scipy.stats import trim_mean

    def difference(ours: Any, plain: Any, axis: int) -> Any:
        return trim_mean(ours, 0.25, axis) - trim_mean(plain, 0.25, axis)

    summary: dict[str, float] = {}
    for name in dict.fromkeys(row["env"] for row in rows):
        own = {a: [r for r in rows if (r["env"], r["algorithm"]) == (name, a)] for a in ALGORITHMS}
        limit = time_limit(own["dqn"])
        values = {
            algorithm: {
                "": [run["return_mean"] for run in runs],
                "_equal_time": [float(over_time(run, limit).mean()) for run in runs],
                "_final": [run["return_final"] for run in runs],
            }
            for algorithm, runs in own.items()
        }
        for algorithm, runs in own.items():
            for what, samples in values[algorithm].items():
                rng = np.random.default_rng(seed)
                key = f"return{what}_iqm" if what == "_final" else f"return_iqm{what}"
                interval = iqm_interval(np.array(samples)[:, None], rng=rng)
                add_interval_if_known(summary, f"{name}.{algorithm}.{key}", interval)
                if algorithm != "dqn":
                    gain = bootstrap_interval(
                        difference, samples, values["dqn"][what], rng=np.random.default_rng(seed)
                    )
                    add_interval_if_known(summary, f"{name}.{algorithm}_gain{what}", gain)
            seconds = [run["seconds"] for run in runs]
            mean = bootstrap_interval(np.mean, seconds, rng=np.random.default_rng(seed))
            add_interval_if_known(summary, f"{name}.{algorithm}.seconds", mean)
    return summary


def time_limit(runs: Sequence[Mapping[str, Any]]) -> float:
    """Mean of the seconds that runs took."""
    return float(np.mean([run["seconds"] for run in runs]))


def over_time(run: Mapping[str, Any], limit: float) -> Any:
    """[BINS] the return over equal shares of the first `limit` seconds of a run."""
    return binned(np.array(run["seconds_at"]) * (BINS / limit), run["curve"], BINS)


def train(task: Task, _send: Send) -> dict[str, Any]:
    """Train one algorithm, and evaluate its greedy policy."""
    from stable_baselines3.common.evaluation import evaluate_policy

    with one_thread():
        _warm_up(task.algorithm)
        model = make_model(task.name, task.algorithm, task.seed)
        model.learning_starts = min(model.learning_starts, task.steps // 4)
        at, seconds, returns = _learn(model, task.steps)
        env = make_env(task.name)
        env.reset(seed=1_000_000 + task.seed)
        episodes = EVALUATION_EPISODES if task.steps == TASKS[task.name].steps else 2
        final, _ = evaluate_policy(model, env, episodes, warn=False)
        env.close()
    curve = binned(at, returns, task.steps)
    edges = np.linspace(0.0, task.steps, BINS + 1)[1:]
    seconds_at = np.interp(edges, [0, *at], [0.0, *seconds])
    return {
        "env": task.name,
        "algorithm": task.algorithm,
        "seed": task.seed,
        "return_mean": float(curve.mean()),
        "return_final": float(np.mean(final)),
        "seconds": seconds[-1],
        "steps": task.steps,
        "curve": [float(f"{value:.6g}") for value in curve],
        "seconds_at": [float(f"{value:.6g}") for value in seconds_at],
    }


def make_env(name: str) -> Any:
    """Return a task's environment, monitored, with the rewards that are learned from."""
    import gymnasium as gym
    from gymnasium.wrappers import TransformReward
    from stable_baselines3.common.monitor import Monitor

    import awsgd_rl  # noqa: F401  (registers the environments)

    setting = TASKS[name]
    if name.startswith("MinAtar") and setting.env_id not in gym.registry:
        import_module("minatar.gym").register_envs()
    env = Monitor(gym.make(setting.env_id, **setting.arguments))
    if setting.reward_scale == 1.0:
        return env
    return TransformReward(env, lambda reward: setting.reward_scale * float(reward))


def make_model(name: str, algorithm: str, seed: int) -> Any:
    """Return DQN, or DQN with other draws, for a task."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.logger import Logger

    from awsgd_rl.agents.prioritized import PrioritizedDQN

    options: dict[str, Any] = {"seed": seed, "device": "cpu", **TASKS[name].options}
    if name.startswith("MinAtar"):
        options["policy_kwargs"] = _minatar_network()
    proposal: Any = ALGORITHMS[algorithm][1]
    if proposal is not None:
        model: Any = PrioritizedDQN("MlpPolicy", make_env(name), proposal=proposal, **options)
    else:
        model = DQN("MlpPolicy", make_env(name), **options)
    # Its own choice leaves an empty folder behind in the temporary directory.
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def _minatar_network() -> dict[str, Any]:
    """The network of Young & Tian 2019: 16 filters of 3x3, then 128 units."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor, nn

    class Planes(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            rows, columns, planes = space.shape
            super().__init__(space, 16 * (rows - 2) * (columns - 2))
            self.layers = nn.Sequential(nn.Conv2d(planes, 16, 3), nn.ReLU(), nn.Flatten())

        def forward(self, observations: Tensor) -> Tensor:
            return self.layers(observations.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    return {"features_extractor_class": Planes, "net_arch": [128]}


def _learn(model: Any, steps: int) -> tuple[list[int], list[float], list[float]]:
    """Train; return steps and seconds at the end of each episode and of all, and the returns."""
    from stable_baselines3.common.callbacks import BaseCallback

    at: list[int] = []
    seconds: list[float] = []
    returns: list[float] = []
    begin = time.process_time()

    class Listener(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    at.append(self.num_timesteps)
                    seconds.append(time.process_time() - begin)
                    returns.append(float(info["episode"]["r"]))
            return True

    model.learn(steps, callback=Listener())
    # The last, unfinished episode counts for as much as the one before.
    at.append(model.num_timesteps)
    seconds.append(time.process_time() - begin)
    returns.append(np.nan)
    return at, seconds, returns


@cache
def _warm_up(algorithm: str) -> None:
    """Compile what an algorithm needs, once a process."""
    model = make_model("CartPole-v1", algorithm, 0)
    model.learning_starts = 64
    model.learn(256)


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `replay-learning-steps` and `replay-learning-seconds`, a panel a task."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    shares = (np.arange(BINS) + 0.5) / BINS
    written: list[Path] = []
    for axis, label in (("steps", "environment steps"), ("seconds", "seconds of learning")):
        panels: dict[str, dict[str, Curve]] = {}
        for name in dict.fromkeys(row["env"] for row in rows):
            own = [row for row in rows if row["env"] == name]
            runs = {a: [row for row in own if row["algorithm"] == a] for a in ALGORITHMS}
            panel = panels.setdefault(name, {})
            for algorithm, (title, _) in ALGORITHMS.items():
                limit = time_limit(runs[algorithm]) if axis == "seconds" else own[0]["steps"]
                curves = [
                    row["curve"] if axis == "steps" else over_time(row, limit)
                    for row in runs[algorithm]
                ]
                panel[title] = Curve(limit * shares, _iqm_band(curves))
        figure = curve_panels(
            panels,
            title=f"DQN with three kinds of replay, over {axis}",
            subtitle=f"training episodes; IQM of {len(runs['dqn'])} seeds, bands: 95% intervals",
            xlabel=label,
            ylabel="return",
            percent=False,
        )
        written += plots.save_figure(figure, folder, f"replay-learning-{axis}")
    return written


def _iqm_band(curves: ArrayLike) -> Band:
    """The interquartile mean of [N, K] curves at each point; whole curves are resampled."""
    from scipy.stats import trim_mean

    values = np.asarray(curves, dtype=np.float64)
    estimate = np.asarray(trim_mean(values, 0.25, axis=0))
    if len(values) == 1:
        return Band(estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan))
    drawn = np.random.default_rng(0).integers(len(values), size=(1_999, len(values)))
    resampled = trim_mean(values[drawn], 0.25, axis=1)
    return Band(estimate, *np.quantile(resampled, [0.025, 0.975], axis=0))
