"""Neural policies on two classic tasks: how good both agents get, with their default options.

CartPole-v1 counts as solved at a mean return of 475 over 100 episodes. Pendulum-v1 has a Box
action, and its mean return is about -1200 at random and about -150 at best.
"""

from itertools import count
from typing import Any, NamedTuple

import numpy as np

from awsgd_rl.benchmarks.workers import Progress, Send, available_cores, one_thread, run_tasks
from awsgd_rl.statistics import mean_interval

STEPS = {"CartPole-v1": 100_000, "Pendulum-v1": 80_000}
ALGORITHMS = ("awsgd", "reinforce")
SEEDS = 5
EVALUATION_EPISODES = 100


class Task(NamedTuple):
    """One agent on one environment."""

    env_id: str
    algorithm: str
    seed: int
    steps: int


def run(
    quick: bool = False, seed: int = 0, *, progress: Progress = lambda share, text: None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train and evaluate each agent on each task.

    Args:
        quick: one seed and a tenth of the steps.
        seed: the seeds are this one and those that follow.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a run, and the mean returns before and after with their 95 % intervals.
    """
    seeds, share = (1, 10) if quick else (SEEDS, 1)
    tasks = [
        Task(env_id, algorithm, seed + s, steps // share)
        for env_id, steps in STEPS.items()
        for algorithm in ALGORITHMS
        for s in range(seeds)
    ]
    done = count(1)
    rows = run_tasks(
        train,
        tasks,
        jobs=available_cores(),
        on_result=lambda row: progress(
            next(done) / len(tasks), f"return {row['return_after']:.0f}"
        ),
    )
    summary: dict[str, float] = {}
    for env_id in STEPS:
        for algorithm in ALGORITHMS:
            own = [r for r in rows if r["env"] == env_id and r["algorithm"] == algorithm]
            for name in ("return_before", "return_after"):
                mean, low, high = mean_interval([row[name] for row in own])
                key = f"{env_id}.{algorithm}.{name}"
                summary[key] = mean
                if seeds > 1:
                    summary.update({f"{key}_low": low, f"{key}_high": high})
    return rows, summary


def train(task: Task, _send: Send) -> dict[str, Any]:
    """Train one agent; evaluate it before and after by its most probable actions."""
    import gymnasium as gym
    from stable_baselines3.common.evaluation import evaluate_policy

    from awsgd_rl.agents import make_agent

    with one_thread():
        agent = make_agent(task.algorithm, "MlpPolicy", task.env_id, task.seed, device="cpu")
        env = gym.make(task.env_id)
        env.reset(seed=1_000_000 + task.seed)
        returns = []
        for steps in (0, task.steps):
            if steps:
                agent.learn(steps)
            mean, _ = evaluate_policy(agent, env, EVALUATION_EPISODES, warn=False)
            returns.append(float(np.mean(mean)))
    return {
        "env": task.env_id,
        "algorithm": task.algorithm,
        "seed": task.seed,
        "return_before": returns[0],
        "return_after": returns[1],
        "steps": agent.num_timesteps,
    }
