"""How often does a trained agent fail? Episodes by learned exploration beside plain rollouts.

Agents are trained until the exact failure probability p of their stochastic policy is about 1e-2,
1e-3, 1e-4. Then `estimate_outcome` asks for a standard error of 10 %, many times over with other
seeds: how many episodes does it take, learning included, how large is its true error, how often
does its 95 % interval cover p? Plain rollouts need (1 - p) / (p 0.1^2) episodes for that error; a
true error above 10 % is held against ours, one below is not counted in its favour.
"""

from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import add_interval_if_known, geometric_mean_interval
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import mean_interval, proportion_interval

LEVELS: Final = {"1e2": 1e-2, "1e3": 1e-3, "1e4": 1e-4}
"""Failure probabilities, by the end of the summary's names."""
GOAL: Final = 0.1
"""Relative standard error that is asked for."""
SMALL: Final = 200
"""A budget too small for it, to see the interval there."""

_EPISODES = 20_000  # of training, at most
_EVERY = 100  # episodes between two looks at p
_CURVE = (200, 300, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Task(NamedTuple):
    """One map: the agents of all levels, each evaluated so many times.

    Attributes:
        kind: "table", "slip" (moves slip with probability 0.1) or "mlp" (8×8 with 5 traps).
        map: number of the map, and seed of the agent.
        repetitions: of each evaluation.
        curve: whether to make the data of the figure.
    """

    kind: str
    map: int
    repetitions: int
    curve: bool = False


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train and evaluate.

    Args:
        quick: two maps, a tenth of the repetitions.
        seed: the maps are this one and those that follow.
        jobs: processes. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row for each agent and budget, and the figures over all agents: `episode_ratio_<level>`
        (plain / ours; geometric mean over maps), `coverage`, `coverage_<level>`, `rmse_<level>`
        and `bias_<level>` (relative to p), `coverage_small` at a budget of 200 episodes, and the
        same for the rows "slip" and "mlp".
    """
    maps, repetitions = (2, 20) if quick else (4, 200)
    tasks = [Task("table", seed + k, repetitions, curve=k == 0) for k in range(maps)]
    tasks += [
        Task("mlp", seed, repetitions // 4),
        Task("slip", seed, repetitions // 4),
    ]
    done = count(1)
    results = run_tasks(
        evaluate,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks),
            f"{rows[0]['kind']} on map {rows[0]['map']}: {rows[0]['episode_ratio']:.1f} times "
            "fewer episodes",
        ),
    )
    rows = [row for result in results for row in result]
    return rows, summarise(rows)


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers of `results.json`."""
    summary: dict[str, float] = {}

    tables = [row for row in rows if row["kind"] == "table" and row["budget"] is None]
    for level in LEVELS:
        own = [row for row in tables if row["level"] == level]
        ratio = geometric_mean_interval([row["episode_ratio"] for row in own])
        add_interval_if_known(summary, f"episode_ratio_{level}", ratio)
    groups = {"coverage": tables}
    groups |= {f"coverage_{level}": [r for r in tables if r["level"] == level] for level in LEVELS}
    groups["coverage_small"] = [r for r in rows if r["kind"] == "table" and r["budget"]]
    for name, own in groups.items():
        covered, trials = sum(r["covered"] for r in own), sum(r["repetitions"] for r in own)
        add_interval_if_known(summary, name, proportion_interval(covered, trials))
    for level in LEVELS:
        own = [row for row in tables if row["level"] == level]
        squares = [row["rmse"] ** 2 for row in own]
        summary[f"rmse_{level}"] = float(np.sqrt(np.mean(squares)))
        bias = mean_interval([row["bias"] for row in own])
        add_interval_if_known(summary, f"bias_{level}", bias)
        summary[f"episodes_{level}"] = float(np.mean([row["episodes"] for row in own]))
    for kind in ("mlp", "slip"):
        for row in rows:
            if row["kind"] == kind:
                summary[f"{kind}.episode_ratio"] = row["episode_ratio"]
                covered = proportion_interval(row["covered"], row["repetitions"])
                add_interval_if_known(summary, f"{kind}.coverage", covered)
    return summary


def evaluate(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train on one map, and evaluate the agents of all levels."""
    with one_thread():
        rows = []
        for level, p, agent in train(task):
            for budget in (None, SMALL) if task.kind == "table" else (None,):
                rows.append(_repeat(task, level, p, agent, budget))
            if task.curve and level == "1e3":
                rows[-2]["curve"] = _curve(p, agent, task.map)
        return rows


def train(task: Task) -> list[tuple[str, float, Any]]:
    """Return (level, exact failure probability, agent) for each level that the kind has."""
    import gymnasium as gym

    import awsgd_rl.envs  # noqa: F401
    from awsgd_rl.agents import AWSGD
    from awsgd_rl.exact import TabularMDP

    size: dict[str, Any] = {"size": 15, "traps": 9}
    levels = dict(LEVELS)
    policy = "TablePolicy"
    if task.kind == "slip":
        size["slip"] = 0.1
        levels = {"slip": 5e-3}  # what fails are the slips
    if task.kind == "mlp":
        size = {"size": 8, "traps": 5, "observation": "one_hot"}
        policy = "MlpPolicy"
        levels = {"1e3": 1e-3}
    env: Any = gym.make("awsgd_rl/TrapGridworld-v0", **size, layout_seed=task.map)
    mdp, horizon = TabularMDP.from_gridworld(env.unwrapped), env.unwrapped.horizon
    agent = AWSGD(policy, env, seed=task.map, device="cpu")
    best: dict[str, tuple[float, float, Any]] = {}
    most = _EPISODES if task.kind == "table" else 3_000

    def look(agent: Any) -> bool:
        if task.kind != "mlp" and agent.num_episodes % _EVERY:
            return True
        p = 1.0 - mdp.success_probability(policy_table(agent, env.unwrapped.n_states), horizon)
        for level, wanted in levels.items():
            off = abs(np.log(max(p, 1e-12) / max(wanted, 1e-12)))
            if level not in best or off < best[level][0]:
                state = {name: t.clone() for name, t in agent.learner.state_dict().items()}
                best[level] = off, p, state
        return p > 0.5 * min(levels.values())

    agent.learn(total_episodes=most, callback=look)
    found = []
    for level, (_, p, state) in best.items():
        trained = AWSGD(policy, env, seed=task.map, device="cpu")
        trained.learner.load_state_dict(state)
        found.append((level, p, trained))
    return found


def policy_table(agent: Any, n_states: int) -> NDArray[np.float64]:
    """Return P_w as probabilities [S, 4], of an MLP on one-hot observations too."""
    import torch

    if agent.policy == "TablePolicy":
        table: NDArray[np.float64] = agent.policy_table()
        return table
    learner = agent.learner
    observations = torch.eye(n_states)
    if learner.normaliser is not None:
        observations = learner.normaliser(observations)
    with torch.no_grad():
        probabilities: NDArray[np.float64] = learner.policy(observations).exp().numpy()
    return probabilities


def _repeat(task: Task, level: str, p: float, agent: Any, budget: int | None) -> dict[str, Any]:
    from awsgd_rl.agents.evaluation import estimate_outcome

    goal: dict[str, Any] = (
        {"relative_error": GOAL} if budget is None else {"relative_error": None, "episodes": budget}
    )
    repetitions = task.repetitions if budget is None else task.repetitions // 2
    found = [estimate_outcome(agent, seed=seed, **goal) for seed in range(repetitions)]
    estimates = np.array([each.estimate for each in found]) / p
    errors = np.array([each.standard_error for each in found]) / p
    episodes = float(np.mean([each.episodes for each in found]))
    rmse = float(np.sqrt(np.mean((estimates - 1.0) ** 2)))
    plain = (1.0 - p) / (p * max(rmse, GOAL if budget is None else rmse) ** 2)
    return {
        "kind": task.kind,
        "map": task.map,
        "level": level,
        "budget": budget,
        "p": p,
        "episodes": episodes,
        "plain_episodes": plain,
        "episode_ratio": plain / episodes,
        "rmse": rmse,
        "standard_error": float(np.sqrt(np.nanmean(errors**2))),
        "bias": float(estimates.mean() - 1.0),
        "covered": int(sum(each.low <= p <= each.high for each in found)),
        "repetitions": repetitions,
        "learning_episodes": float(np.mean([each.learning_episodes for each in found])),
        "bound_only": sum(each.bound_only for each in found),
    }


def _curve(p: float, agent: Any, seed: int) -> dict[str, list[float]]:
    """Estimates with intervals after so many episodes: ours, and plain rollouts."""
    from awsgd_rl.agents import engine
    from awsgd_rl.agents.evaluation import estimate_outcome

    learner = agent.learner
    both = (learner.target, learner.target)
    _, outcomes = engine.rollout(
        learner.grid, *both, _CURVE[-1], 0, discount=1.0, seed=seed, threads=1
    )
    failed = (outcomes.end != engine.GOAL).cumsum()
    curve: dict[str, list[float]] = {"p": [p], "episodes": list(map(float, _CURVE))}
    for n in _CURVE:
        plain = proportion_interval(int(failed[n - 1]), n)
        found = estimate_outcome(agent, episodes=n, relative_error=None, seed=seed)
        ours = (found.estimate, found.low, found.high)
        for name, interval in (("plain", plain), ("ours", ours)):
            for end, value in zip(("", "_low", "_high"), interval, strict=True):
                curve.setdefault(name + end, []).append(float(value))
    return curve


def write_figures(
    rows: list[dict[str, Any]], summary: dict[str, float], folder: str | Path
) -> list[Path]:
    """Draw `evaluation` into an existing folder; return the paths written.

    Left: one agent's failure probability with its interval against the episodes spent, plain and
    ours. Right: episodes that plain rollouts and ours take for 10 %, for every agent.
    """
    from awsgd_rl.plots import save_figure
    from awsgd_rl.plots_evaluation import evaluation_figure

    return save_figure(evaluation_figure(rows, summary), folder, "evaluation")
