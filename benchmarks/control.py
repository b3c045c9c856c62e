"""Neural policies on classic tasks: AW-SGD, on-policy learning and PPO at equal environment steps.

Each with the best of a few settings on seeds 1000 to 1003, which are not reported, by the mean
return over 30,000 steps. CartPole-v1: twelve settings of AW-SGD, ten of on-policy learning with
several updates a batch, three with one. Acrobot-v1: two, two and one, near those. Of updates a
batch, step size, batch size and AW-SGD's memory. Stable-Baselines3's PPO as RL Baselines3 Zoo has
tuned it for each task (https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml). An
episode's return is at most 500 in CartPole-v1, at least -500 in Acrobot-v1.

On-policy learning with one update a batch and a large step was the best of all on CartPole-v1:
neither more updates nor past trajectories pay there. With one update AW-SGD is on-policy learning,
and is given at least two here.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from awsgd_rl.benchmarks.iqm import iqm_interval
from awsgd_rl.benchmarks.resumable import learn
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.trial import BINS, binned
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import Band, bootstrap_interval, mean_band, mean_interval
from awsgd_rl.validation import require_name

STEPS: Final = {"CartPole-v1": 30_000, "Acrobot-v1": 30_000}
"""Environment steps of each task."""

ALGORITHMS: Final = {
    "awsgd": "AW-SGD",
    "reinforce-equal": "on-policy, several updates",
    "reinforce": "on-policy, one update",
    "ppo": "PPO (SB3)",
}

_SHARED: Final = {"batch_size": 4, "n_envs": 4}
TUNED: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "CartPole-v1": {
        "awsgd": {**_SHARED, "updates": 32, "learning_rate": 3e-3, "memory": 16},
        "reinforce-equal": {**_SHARED, "updates": 16, "learning_rate": 1e-3},
        "reinforce": {**_SHARED, "updates": 1, "learning_rate": 1e-2},
    },
    "Acrobot-v1": {
        "awsgd": {**_SHARED, "updates": 8, "learning_rate": 3e-3, "memory": 16},
        "reinforce-equal": {**_SHARED, "updates": 16, "learning_rate": 1e-3},
        "reinforce": {**_SHARED, "updates": 1, "learning_rate": 1e-2},
    },
}
"""Options of this package's agents on each task."""

ZOO: Final[Mapping[str, Mapping[str, Any]]] = {
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "gae_lambda": 0.8,
    },
    "Acrobot-v1": {"n_envs": 16, "n_steps": 256, "n_epochs": 4, "gae_lambda": 0.94},
}
"""PPO's tuned settings, where they are not Stable-Baselines3's defaults. Two things are left out:
the learning rate and clip range of CartPole-v1 stay constant there, and the observations of
Acrobot-v1 are not standardised."""

SEEDS: Final = 20
EVALUATION_EPISODES: Final = 50
QUICK_EPISODES: Final = 10


class Task(NamedTuple):
    """One agent on one environment."""

    env_id: str
    algorithm: str
    seed: int
    steps: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.env_id}, seed {self.seed}"


def check(env: str | None = None) -> None:
    """Raise ValueError if there is no such environment in this bench."""
    if env is not None:
        require_name("environment of this bench", env, STEPS)


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    env: str | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train and evaluate each agent on each task.

    Args:
        quick: two seeds, a tenth of the steps, and a fifth of the episodes afterwards.
        seed: the seeds are this one and those that follow.
        env: this environment alone.
        seeds: how many seeds, in place of `SEEDS`.
        jobs: processes; None for one a core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, with its learning curve over environment steps. The summary has
        `<env>.<algorithm>.return_mean`, over all training, `.return_final`, of fresh episodes of
        the policy learned, and `.seconds_mean`, with 95 % intervals over seeds; `.return_mean_iqm`
        and `.return_final_iqm`; and `<env>.return_difference`: the mean over training of AW-SGD
        less that of the seed's baseline, on-policy learning with one update a batch;
        `.return_difference_several_updates` and `.return_difference_ppo` are against the others.
    """
    check(env)
    share = 10 if quick else 1
    number = seeds or (2 if quick else SEEDS)
    envs = list(STEPS) if env is None else [env]
    tasks = [
        Task(env_id, algorithm, seed + s, STEPS[env_id] // share)
        for env_id in envs
        for s in range(number)
        for algorithm in ALGORITHMS
    ]
    done = count(1)
    rows = run_tasks(
        train,
        tasks,
        jobs=jobs,
        on_result=lambda row: progress(
            next(done) / len(tasks), f"{row['algorithm']}: return {row['return_final']:.0f}"
        ),
    )
    summary: dict[str, float] = {}
    for env_id in envs:
        values = {
            (algorithm, name): [
                row[name] for row in rows if (row["env"], row["algorithm"]) == (env_id, algorithm)
            ]
            for algorithm in ALGORITHMS
            for name in ("return_mean", "return_final", "seconds")
        }
        for algorithm in ALGORITHMS:
            key = f"{env_id}.{algorithm}"
            for name in ("return_mean", "return_final"):
                own = values[algorithm, name]
                add_interval(summary, f"{key}.{name}", mean_interval(own))
                rng = np.random.default_rng(seed)
                add_interval(
                    summary, f"{key}.{name}_iqm", iqm_interval(np.array(own)[:, None], rng=rng)
                )
            add_interval(
                summary, f"{key}.seconds_mean", mean_interval(values[algorithm, "seconds"])
            )
        for other, name in (
            ("reinforce", "difference"),
            ("reinforce-equal", "difference_several_updates"),
            ("ppo", "difference_ppo"),
        ):
            difference = bootstrap_interval(
                lambda ours, theirs, axis: np.mean(ours, axis) - np.mean(theirs, axis),
                values["awsgd", "return_mean"],
                values[other, "return_mean"],
                rng=np.random.default_rng(seed),
            )
            add_interval(summary, f"{env_id}.return_{name}", difference)
    return rows, summary


def train(task: Task, _send: Send) -> dict[str, Any]:
    """Train one agent, and evaluate it by fresh episodes of its (stochastic) policy."""
    import gymnasium as gym
    from stable_baselines3.common.evaluation import evaluate_policy

    from awsgd_rl.agents import make_agent

    with one_thread():
        ppo = task.algorithm == "ppo"
        options = dict(ZOO[task.env_id] if ppo else TUNED[task.env_id][task.algorithm])
        if ppo:  # of few steps each environment gets enough for an episode to end
            most = max(task.steps // 4, options.get("batch_size", 64)) // options["n_steps"]
            options["n_envs"] = min(options["n_envs"], max(1, most))
        agent: Any = make_agent(
            task.algorithm.removesuffix("-equal"),
            *("MlpPolicy", task.env_id, task.seed),
            device="cpu",
            **options,
        )
        seconds = learn(agent, "timesteps", task.steps)
        curve = binned(agent.history["timesteps"], agent.history["return"], task.steps)
        env = gym.make(task.env_id)
        env.reset(seed=1_000_000 + task.seed)
        episodes = EVALUATION_EPISODES if task.steps == STEPS[task.env_id] else QUICK_EPISODES
        final, _ = evaluate_policy(agent, env, episodes, deterministic=False, warn=False)
        env.close()
    return {
        "env": task.env_id,
        "algorithm": task.algorithm,
        "seed": task.seed,
        "return_mean": float(curve.mean()),
        "return_final": float(np.mean(final)),
        "steps": agent.num_timesteps,
        "limit": task.steps,
        "seconds": seconds,
        "curve": [float(f"{value:.6g}") for value in curve],
    }


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `control`: the return over environment steps, a panel a task; return the paths."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    panels: dict[str, dict[str, Curve]] = {}
    for env_id, algorithm in dict.fromkeys((row["env"], row["algorithm"]) for row in rows):
        own = [row for row in rows if (row["env"], row["algorithm"]) == (env_id, algorithm)]
        at = own[0]["limit"] * (np.arange(BINS) + 0.5) / BINS
        band: Band = mean_band([row["curve"] for row in own])
        panel = panels.setdefault(f"{env_id} ({len(own)} seeds)", {})
        panel[ALGORITHMS[algorithm]] = Curve(at, band)
    figure = curve_panels(
        panels,
        title="Neural policies: the return while they learn",
        subtitle="training episodes; bands: 95% intervals over seeds",
        xlabel="environment steps",
        ylabel="return of an episode",
        percent=False,
    )
    return plots.save_figure(figure, folder, "control")
