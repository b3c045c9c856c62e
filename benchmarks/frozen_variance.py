"""How much a learned exploration policy lowers the variance of a policy gradient that stands still.

On maps of 15×15 cells with 9 traps the on-policy agent learns with its default options, and is
saved after 1,250, 2,500, 5,000, 10,000 and 20,000 trials: from one stage to the next they double,
so that early and late learning both count. At each stage P_w and the state values are frozen, an
exploration policy is learned from 10,000 trajectories, and the variance of one trajectory's
gradient (the trace of the covariance) is compared with that of P_w's own trajectories:

- ours: the cross-entropy method of `agents/exploration.py`; and the same from 100,000 trajectories
  (long), to tell what is missing for want of data from what such a policy cannot do;
- score function: steps down the second moment (Bouchard 2015, eq. 11), the earlier rule;
- fitted: the weighted maximum likelihood `q ∝ Σ ‖g‖ n(s, a) + κ p` of 50,000 trajectories of P_w;
- headroom: `E‖g‖² / (E‖g‖)²`, what the best possible proposal would reach. It need not draw one
  action after the other, and so is no policy.

Each policy is used in the mixture with P_w, α = 0.8, weighted by p / ((1 − α) p + α q), and once
with α = 0.2, which is the share that the agent explores with. The variance of P_w's own is exact
(`awsgd_rl.exact`) unless episodes reach the horizon; that of mixtures is sampled.
"""

from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import (
    add_interval_if_known,
    exp_mean,
    geometric_mean_band,
)
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.statistics import bootstrap_interval
from awsgd_rl.validation import require_integer

SIZE, TRAPS = 15, 9
TRIALS = (1_250, 2_500, 5_000, 10_000, 20_000)
LEARN, FIT, LONG = 10_000, 50_000, 100_000  # trajectories that a proposal is learned from
MEASURE = 50_000  # fresh trajectories for each variance
CHUNK = 5_000  # of them at a time
MAPS = 12
DISCOUNT, REWARD_SCALE = 0.999, 1e-3
SHARE, AGENT_SHARE = 0.8, 0.2
SLIPS = {"": 0.0, "slip.": 0.1}
MEASURES = {
    "variance_ratio": "ours",
    "headroom": "headroom",
    "fitted": "fitted",
    "score_function": "score_function",
    "agent_share": "ours_at_agent_share",
    "long": "ours_long",
}
"""The names of the summary, and the columns of the rows that they are geometric means of."""

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """One map with or without slips, all stages."""

    map: int
    slip: float
    trials: tuple[int, ...]
    measure: int

    def __str__(self) -> str:
        return f"map {self.map}, slip {self.slip:g}"


def run(
    quick: bool = False,
    seed: int = 0,
    maps: int | None = None,
    jobs: int | None = None,
    *,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure all stages of all maps.

    Args:
        quick: fewer maps, and a fifth of the trajectories that variances are measured on.
        seed: the maps are this one and those that follow.
        maps: how many. Default: 12, or 2 with `quick`.
        jobs: processes; the result is the same for any number. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a stage of a map, and the geometric means over stages and maps, with 95 % bootstrap
        intervals over maps: `variance_ratio_geomean` and so on, and the same with slips.
    """
    maps = (2 if quick else MAPS) if maps is None else require_integer("maps", maps)
    measure = MEASURE // 5 if quick else MEASURE
    tasks = [Task(seed + m, slip, TRIALS, measure) for slip in SLIPS.values() for m in range(maps)]
    done = count(1)
    results = run_tasks(
        measure_map,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks), f"map {rows[0]['map']}: {rows[-1]['ours']:.1f} times"
        ),
    )
    rows = [row for stages in results for row in stages]
    summary: dict[str, float] = {}
    for prefix, slip in SLIPS.items():
        for name, column in MEASURES.items():
            own = [stages for stages in results if stages[0]["slip"] == slip]
            logs = np.log([[row[column] for row in stages] for stages in own])
            interval = bootstrap_interval(
                exp_mean, logs.mean(axis=1), rng=np.random.default_rng(seed)
            )
            add_interval_if_known(summary, f"{prefix}{name}_geomean", interval)
    return rows, summary


def measure_map(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train on one map, and return a row for each stage."""
    import gymnasium as gym

    from awsgd_rl.agents import Reinforce

    env = gym.make(
        "awsgd_rl/TrapGridworld-v0",
        size=SIZE,
        traps=TRAPS,
        layout_seed=task.map,
        slip=task.slip,
    )
    rows = []
    with one_thread():
        agent = Reinforce("TablePolicy", env, seed=task.map, discount=DISCOUNT)
        for trials in task.trials:
            agent.learn(total_episodes=trials - agent.num_episodes)
            stage = Stage(env.unwrapped, agent.learner, task.measure)
            rows.append(
                {"map": task.map, "slip": task.slip, "trials": trials, **stage.row(task.map)}
            )
    return rows


class Stage:
    """A frozen target policy with its state values, and what its gradient's variance is.

    Args:
        env: the gridworld.
        learner: the agent's tables.
        measure: trajectories that a variance is measured on.
    """

    def __init__(self, env: Any, learner: Any, measure: int) -> None:
        from awsgd_rl.agents import tables
        from awsgd_rl.agents.tabular import grid_of
        from awsgd_rl.exact import TabularMDP

        self.mdp = TabularMDP.from_gridworld(env)
        self.grid = grid_of(env, REWARD_SCALE)
        self.target = tables.make_table(learner.target.logits)
        self.values = learner.values.copy()
        self.measure = measure
        policy = self.target.probability
        gradient = REWARD_SCALE * self.mdp.policy_gradient(policy, DISCOUNT)
        self.squared_mean = float(np.sum(gradient**2))

    def row(self, seed: int) -> dict[str, Any]:
        """Return the stage's row, but for its name."""
        from awsgd_rl.agents.exploration import learn_exploration

        streams = [int(s) for s in np.random.SeedSequence(seed).generate_state(7, np.uint64)]
        norm, second, cut = self.moments(self.target, 0.0, streams[0])
        variance = second - self.squared_mean
        if cut == 0.0:  # the horizon changes nothing: the closed form without one holds
            variance = REWARD_SCALE**2 * self.mdp.gradient_variance(
                self.target.probability, DISCOUNT, baseline=self.values / REWARD_SCALE
            )
        ours, long = (
            learn_exploration(
                self.grid,
                self.target,
                self.values,
                episodes=episodes,
                discount=DISCOUNT,
                seed=streams[1],
                share=SHARE,
                batch_size=episodes // 50,
            )
            for episodes in (LEARN, LONG)
        )
        policies = {
            "ours": (ours, SHARE),
            "ours_at_agent_share": (ours, AGENT_SHARE),
            "ours_long": (long, SHARE),
            "fitted": (self.fit(streams[2]), SHARE),
            "score_function": (self.follow_score(streams[3]), 0.5),
        }
        ratios = {
            name: variance / (self.moments(policy, share, streams[4])[1] - self.squared_mean)
            for name, (policy, share) in policies.items()
        }
        return {
            "success": self.mdp.success_probability(self.target.probability),
            "headroom": (variance + self.squared_mean) / norm**2,
            **ratios,
            "variance": variance,
            "cut_off": cut,
        }

    def draw(self, exploration: Any, share: float, n: int, seed: int) -> tuple[Any, ...]:
        """Draw from the mixture; return rows, numbers [n], weights [n], norms [n], cut-off [n]."""
        from awsgd_rl.agents import engine, tables
        from awsgd_rl.agents.exploration import mixture_weights

        explored = round(share * n)
        rows, outcomes = engine.rollout(
            self.grid,
            self.target,
            exploration,
            n - explored,
            explored,
            discount=DISCOUNT,
            seed=seed,
        )
        which = np.arange(n)
        weights = mixture_weights(rows, which, self.target, exploration, explored / n)
        norms = tables.gradient_norms(rows, which, self.target, self.values)
        return rows, which, weights, norms, outcomes.end == engine.HORIZON

    def moments(self, exploration: Any, share: float, seed: int) -> tuple[float, float, float]:
        """Return the means of W ‖g‖ and (W ‖g‖)², and the share that the horizon cut off."""
        totals = np.zeros(3)
        for chunk in range(self.measure // CHUNK):
            _, _, weights, norms, cut = self.draw(exploration, share, CHUNK, seed + chunk)
            scores = weights * norms
            totals += [scores.mean(), np.square(scores).mean(), cut.mean()]
        mean, second, cut_off = totals / (self.measure // CHUNK)
        return float(mean), float(second), float(cut_off)

    def fit(self, seed: int, prior: float = 0.01) -> Any:
        """Return the maximum likelihood from `FIT` trajectories of P_w, `prior` (κ) of P_w."""
        from awsgd_rl.agents import tables
        from awsgd_rl.agents.exploration import add_visits

        visits = np.zeros_like(self.target.logits)
        unused = np.zeros(len(visits))
        total = 0.0
        for chunk in range(FIT // CHUNK):
            rows, which, _, norms, _ = self.draw(self.target, 0.0, CHUNK, seed + chunk)
            add_visits(rows, which, norms, visits, unused)
            total += norms.sum()
        return tables.make_table(np.log(visits / total + prior * self.target.probability))

    def follow_score(self, seed: int, batch_size: int = 20, step: float = 0.03) -> Any:
        """Return what steps down the second moment make of P_w: the agent's earlier rule."""
        from awsgd_rl.adaptation import RunningScale, score_function_coefficients
        from awsgd_rl.agents import tables

        exploration = tables.make_table(self.target.logits)
        scratch = np.zeros((len(self.values), exploration.logits.shape[1] + 1))
        scale, share = RunningScale(), 0.5
        for batch in range(LEARN // batch_size):
            rows, which, weights, norms, _ = self.draw(exploration, share, batch_size, seed + batch)
            squared = torch.from_numpy(np.square(weights * norms))
            coefficients = score_function_coefficients(squared, scale=scale.update(squared))
            # α q / m = 1 − (1 − α) p / m
            coefficients *= torch.from_numpy(1.0 - (1.0 - share) * weights) / batch_size
            touched = tables.add_log_gradients(
                rows, which, coefficients.numpy(), exploration, scratch
            )
            tables.apply(exploration, touched, scratch, step)
            centre = self.target.logits
            exploration.logits[:] = exploration.logits.clip(centre - 3.0, centre + 3.0)
            tables.refresh(exploration)
            tables.clear(touched, scratch)
        return exploration


def write_figures(
    rows: list[dict[str, Any]], summary: dict[str, float], folder: str | Path
) -> list[Path]:
    """Draw the ratios over the stages, and return the paths written."""
    from awsgd_rl import plots

    labels = {
        "ours": "learned from 10,000 trajectories",
        "headroom": "headroom: best possible",
        "ours_long": "the same from 100,000",
        "fitted": "maximum likelihood, 50,000 trajectories",
        "score_function": "score function, 10,000 trajectories",
    }
    own = [row for row in rows if row["slip"] == 0.0]
    trials = sorted({row["trials"] for row in own})
    curves = {}
    for column, label in labels.items():
        values = np.transpose([[r[column] for r in own if r["trials"] == t] for t in trials])
        curves[label] = geometric_mean_band(values)
    maps = len({row["map"] for row in own})
    figure = plots.ratio_curves(
        trials,
        curves,
        title="How many times less the policy gradient varies",
        subtitle=f"{SIZE}×{SIZE} grid with {TRAPS} traps, {maps} maps; "
        "geometric means; bands: 95% intervals",
        ylabel="on-policy variance / mixture's, log scale",
    )
    return plots.save_figure(figure, folder, "variance-ratio")
