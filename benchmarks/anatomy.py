"""What the default AW-SGD agent does while it learns: its variance, its draw, its bias.

On maps of 15×15 cells with 9 traps a table agent learns with its default options. Now and then its
tables are looked at as they are (nothing that it draws or learns changes by that):

- *variance*: the variance of one trajectory's gradient (the trace of the covariance) with
  trajectories of P_w, over that with the agent's mixture (1 − α) P_w + α Q_τ, its weights
  W = p / ((1 − α) p + α q) included; beside it the headroom `E‖g‖² / (E‖g‖)²`. Once with the
  critic's gradient, which the agent follows; once with that of the returns, with the critic's state
  values V = Σ p Q as the baseline, which has no bias. The moments, `E_p‖g‖²` and `E_p W ‖g‖²`, are
  means over one draw of fresh trajectories, half of them of Q_τ: what failures of P_w are too rare
  to be met by it still decide them.
- *bias*: the mean of the critic's gradient is computed from the exact visits d(s) of P_w, as
  `d(s) p(a|s) (Q(s, a) − V(s))`, and compared with the exact gradient; nothing is sampled. (The
  truncation of old ratios comes on top of it.)
- *noise*: the standard error of the mean of one fresh batch, as a share of the exact gradient's
  norm: what the bias stands against.
- *draw*: for each batch since the last look, where the table of scores lies as the replay draws
  from it: by age, by how the trajectory ended, by which policy drew it, and the effective number
  of trajectories, 1 / Σ q².
"""

from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.agents import AWSGD, engine, tables
from awsgd_rl.agents import critic as critic_module
from awsgd_rl.agents.exploration import mixture_weights
from awsgd_rl.benchmarks.summary import geometric_mean_band
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.exact import TabularMDP
from awsgd_rl.statistics import Band, mean_band
from awsgd_rl.validation import require_integer

SIZE, TRAPS = 15, 9
TRIALS = (50, 60, 70, 100, 140, 200, 400, 800, 1_600, 3_200)
MEASURE = 60_000  # fresh trajectories for the moments
MEASURE_SHARE = 0.5  # of them that Q_τ draws: rare failures decide, and it finds them
CHUNK = 5_000  # of them at a time
MAPS = 10
DRAWN_SUCCESS = 0.9  # success of the policies that are drawn
ENDS: Final = ("goal", "trap", "horizon")
"""How a trajectory ends, in the order of the engine's numbers."""
GEOMETRIC: Final = (
    "variance_ratio",
    "headroom",
    "variance_ratio_returns",
    "headroom_returns",
    "bias",
    "noise",
    "noise_returns",
)
"""Columns of the rows that are summed up by their geometric means over maps."""
PLAIN: Final = (
    "success",
    "cosine",
    "effective_draws",
    "fresh_draws",
    "failure_draws",
    "failures",
    "explored_draws",
    "explored",
)
"""Columns of the rows that are summed up by their means over maps."""

Floats = NDArray[np.float64]


class Task(NamedTuple):
    """One map, all looks."""

    map: int
    trials: tuple[int, ...]
    measure: int

    def __str__(self) -> str:
        return f"map {self.map}"


def run(
    quick: bool = False,
    seed: int = 0,
    maps: int | None = None,
    jobs: int | None = None,
    *,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure one agent a map.

    Args:
        quick: fewer maps, and a fifth of the trajectories that variances are measured on.
        seed: the maps are this one and those that follow.
        maps: how many. Default: 10, or 2 with `quick`.
        jobs: processes; the result is the same for any number. Default: one for each core.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a look at a map's agent, and the means over maps with 95 % intervals, each named
        with the trials that the agent had learned from: `variance_ratio_400`, `bias_400` and so on.
    """
    maps = (2 if quick else MAPS) if maps is None else require_integer("maps", maps)
    measure = MEASURE // 5 if quick else MEASURE
    tasks = [Task(seed + m, TRIALS, measure) for m in range(maps)]
    done = count(1)
    results = run_tasks(
        measure_map,
        tasks,
        jobs=jobs,
        on_result=lambda rows: progress(
            next(done) / len(tasks), f"map {rows[0]['map']}: success {rows[-1]['success']:.3f}"
        ),
    )
    rows = [row for looks in results for row in looks]
    first = results[0]  # the map that is drawn: when it has learned about half, and at the end
    drawn = (min(first, key=lambda row: abs(row["success"] - DRAWN_SUCCESS)), first[-1])
    for row in rows:
        if not any(row is kept for kept in drawn):
            del row["policies"]
    summary: dict[str, float] = {}
    for name in (*GEOMETRIC, *PLAIN):
        band = band_of(rows, name)
        for trials, mean, low, high in zip(TRIALS, *band, strict=True):
            summary[f"{name}_{trials}"] = float(mean)
            if maps > 1:
                summary[f"{name}_{trials}_low"] = float(low)
                summary[f"{name}_{trials}_high"] = float(high)
    return rows, summary


def band_of(rows: list[dict[str, Any]], name: str) -> Band:
    """Return a column's mean over maps at each look, with its 95 % interval (Student's t)."""
    trials = sorted({row["trials"] for row in rows})
    by_map = np.array([[row[name] for row in rows if row["trials"] == t] for t in trials]).T
    if name in GEOMETRIC:
        return geometric_mean_band(by_map)
    return mean_band(by_map, bounds=(0.0, np.inf if name in ("effective_draws", "stored") else 1.0))


def measure_map(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Train on one map, and return a row for each look."""
    import gymnasium as gym

    env = gym.make("awsgd_rl/TrapGridworld-v0", size=SIZE, traps=TRAPS, layout_seed=task.map)
    streams = np.random.SeedSequence(task.map).generate_state(len(task.trials), np.uint64)
    rows = []
    with one_thread():
        agent = WatchedAWSGD("TablePolicy", env, seed=task.map)
        for trials, stream in zip(task.trials, streams, strict=True):
            agent.learn(total_episodes=trials - agent.num_episodes)
            look = Look(agent)
            rows.append(
                {
                    "map": task.map,
                    "trials": trials,
                    "success": look.success,
                    **look.bias(),
                    **look.moments(task.measure, int(stream)),
                    **agent.watch.summary(),
                    "policies": look.policies(),
                }
            )
            agent.watch.clear()
    return rows


class WatchedAWSGD(AWSGD):
    """The agent, and what its replay draws from at each batch. It learns as it would unwatched."""

    def __init__(self, policy: str, env: Any, **arguments: Any) -> None:
        super().__init__(policy, env, **arguments)
        self.watch = Watch(self.memory_size, self.config.batch_size)

    def replay(self, n: int, updates: int) -> None:
        """Record the table, then draw from it."""
        fresh = self._fresh
        cut = fresh.lengths.numpy() >= self.learner.grid.horizon  # type: ignore[attr-defined]
        failed = np.where(cut, engine.HORIZON, engine.TRAP)
        end = np.where(fresh.success.numpy() > 0, engine.GOAL, failed)
        self.watch.append(end, ~fresh.from_target.numpy())
        self.watch.record(self.table.probabilities().numpy()[: self.table.filled])
        super().replay(n, updates)


class Watch:
    """Where a draw lies among the stored trajectories, summed up over batches.

    Args:
        capacity: trajectories that are stored, the oldest making way.
        batch_size: of them that come at a time; a divisor of the capacity.

    Attributes:
        end: [capacity] how each ended.
        born: [capacity] the batch that each came with.
        explored: [capacity] whether Q_τ drew it.
    """

    def __init__(self, capacity: int, batch_size: int) -> None:
        self.end = np.zeros(capacity, np.int64)
        self.born = np.zeros(capacity, np.int64)
        self.explored = np.zeros(capacity, np.bool_)
        self.n_ages = -(-capacity // batch_size)
        self._seen = 0
        self._batch = 0
        self.clear()

    def clear(self) -> None:
        """Forget the batches recorded, not what is stored."""
        self.batches = 0
        self.stored = 0
        self.effective = 0.0
        # Summed over batches: the draw's share, the uniform draw's; for ages the batches that knew
        # such an old one too.
        self.by_age = np.zeros((3, self.n_ages))
        self.by_end = np.zeros((2, len(ENDS)))
        self.by_exploration = np.zeros(2)

    def append(self, end: NDArray[np.int64], explored: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Take in how a batch [B] ended, and which of it Q_τ drew; return their slots [B]."""
        slots = (self._seen + np.arange(len(end))) % len(self.end)
        self._seen += len(end)
        self._batch += 1
        self.end[slots], self.explored[slots], self.born[slots] = end, explored, self._batch
        return slots

    def record(self, probabilities: Floats) -> None:
        """Take in the probabilities [N] of the stored trajectories, the memory's first N slots."""
        n = len(probabilities)
        uniform = np.full(n, 1.0 / n)
        ages = self._batch - self.born[:n]
        for k, weights in enumerate((probabilities, uniform)):
            self.by_age[k] += np.bincount(ages, weights, self.n_ages)
            self.by_end[k] += np.bincount(self.end[:n], weights, len(ENDS))
            self.by_exploration[k] += weights[self.explored[:n]].sum()
        self.by_age[2] += np.bincount(ages, minlength=self.n_ages) > 0
        self.effective += 1.0 / float(np.square(probabilities).sum())
        self.stored += n
        self.batches += 1

    def summary(self) -> dict[str, Any]:
        """Return the means over the batches recorded.

        `effective_draws`; `draw_by_end` and `uniform_by_end`, shares of all draws; `draw_by_age`
        [ages], newest first, in multiples of what a uniform draw gives that age, None where there
        was none so old; the draw's share of the newest, of failures and of what Q_τ drew, and what
        a uniform draw gives these two.
        """
        draw, uniform = self.by_end / self.batches
        share, even, known = self.by_age
        return {
            "effective_draws": self.effective / self.batches,
            "fresh_draws": float(share[0] / self.batches),
            "failure_draws": float(draw[engine.TRAP] + draw[engine.HORIZON]),
            "failures": float(uniform[engine.TRAP] + uniform[engine.HORIZON]),
            "explored_draws": float(self.by_exploration[0] / self.batches),
            "explored": float(self.by_exploration[1] / self.batches),
            "stored": self.stored / self.batches,
            "draw_by_end": draw.tolist(),
            "uniform_by_end": uniform.tolist(),
            "draw_by_age": [
                float(s / e) if k else None for s, e, k in zip(share, even, known, strict=True)
            ],
        }


class Look:
    """An agent's tables at one moment.

    Args:
        agent: of a table policy on the gridworld, with a critic.
    """

    def __init__(self, agent: AWSGD) -> None:
        learner: Any = agent.learner
        self.env = learner.env
        self.mdp = TabularMDP.from_gridworld(self.env)
        self.grid, self.discount = learner.grid, learner.discount
        learner.exploration_table()  # what was learned is written down before the next batch only
        self.target, self.exploration = learner.target, learner.exploration
        self.q = learner.critic.q
        self.share, self.batch_size = agent.exploration_share, agent.config.batch_size
        policy, horizon = self.target.probability, self.grid.horizon
        self.success = self.mdp.success_probability(policy, horizon)
        self.exact = learner.reward_scale * self.mdp.policy_gradient(policy, self.discount, horizon)
        visits = expected_visits(self.mdp, policy, self.discount, horizon)
        self.mean = critic_gradient(visits, policy, self.q)

    def bias(self) -> dict[str, float]:
        """Return the critic's gradient's relative error and its cosine with the exact one."""
        return compare_gradients(self.mean, self.exact)

    def moments(self, measure: int, seed: int) -> dict[str, float]:
        """Return variance ratios, headrooms and noise, from `measure` fresh trajectories."""
        policy = self.target.probability
        values = (policy * self.q).sum(axis=1)
        room = engine.make_room(self.grid, min(CHUNK, measure))
        totals = np.zeros((2, 3))  # E_p of ‖g‖, ‖g‖² and W ‖g‖²: the critic's, the returns'
        rng = np.random.default_rng(seed)
        for begin in range(0, measure, CHUNK):
            n = min(CHUNK, measure - begin)
            explored = round(MEASURE_SHARE * n)
            rows, _ = engine.rollout(
                self.grid,
                self.target,
                self.exploration,
                n - explored,
                explored,
                discount=self.discount,
                seed=int(rng.integers(2**63)),
                room=room,
            )
            which = np.arange(n)
            drawn, weights = (  # p over what drew here, and over the agent's mixture
                mixture_weights(rows, which, self.target, self.exploration, share)
                for share in (explored / n, self.share)
            )
            for k, norms in enumerate(
                (
                    critic_module.gradient_norms(rows, which, self.target, self.q),
                    tables.gradient_norms(rows, which, self.target, values),
                )
            ):
                squares = drawn * norms**2
                totals[k] += [drawn @ norms, squares.sum(), weights @ squares]
        exact_norm = float(np.linalg.norm(self.exact))
        out = {}
        for suffix, mean, (norm, own, mixed) in zip(
            ("", "_returns"), (self.mean, self.exact), totals / measure, strict=True
        ):
            squared_mean = float(np.sum(mean**2))
            variance = mixed - squared_mean
            out[f"variance_ratio{suffix}"] = float((own - squared_mean) / variance)
            out[f"headroom{suffix}"] = float(own / norm**2)
            out[f"noise{suffix}"] = float(np.sqrt(variance / self.batch_size) / exact_norm)
        return out

    def policies(self) -> dict[str, Any]:
        """Return P_w and Q_τ with their visits an episode, and the map, to be drawn."""
        out: dict[str, Any] = {
            "start": int(self.env.start),
            "goals": np.asarray(self.env.goal_cells).tolist(),
            "traps": np.asarray(self.env.trap_cells).tolist(),
        }
        for name, table in (("target", self.target), ("exploration", self.exploration)):
            visits = expected_visits(self.mdp, table.probability, 1.0, self.grid.horizon)
            out[name] = table.probability.round(4).tolist()
            out[f"{name}_visits"] = visits.round(5).tolist()
            out[f"{name}_success"] = self.mdp.success_probability(
                table.probability, self.grid.horizon
            )
        return out


def expected_visits(mdp: TabularMDP, policy: Floats, discount: float, horizon: int) -> Floats:
    """Return [S] sum_t discount^t P(s_t = s) over the first `horizon` steps, 0 in terminal ones."""
    backwards = mdp.mix(policy, mdp.transition).T.tocsr()
    mass, visits = mdp.start, np.zeros(mdp.n_states)
    for _ in range(horizon):
        visits += mass
        mass = discount * (backwards @ mass)
    return np.where(mdp.terminal, 0.0, visits)


def critic_gradient(visits: Floats, policy: Floats, q: Floats) -> Floats:
    """Return [S, A] d(s) p(a|s) (Q(s, a) − V(s)), V = sum_a p Q: the mean of the critic's gradient.

    Args:
        visits: [S] discounted visits of the policy.
        policy: [S, A] its probabilities.
        q: [S, A] what the critic says.
    """
    values = (policy * q).sum(axis=1, keepdims=True)
    gradient: Floats = visits[:, None] * policy * (q - values)
    return gradient


def compare_gradients(estimate: Floats, exact: Floats) -> dict[str, float]:
    """Return `bias` = ‖estimate − exact‖ / ‖exact‖, and `cosine` of the angle between the two."""
    norms = np.linalg.norm(estimate), np.linalg.norm(exact)
    return {
        "bias": float(np.linalg.norm(estimate - exact) / norms[1]),
        "cosine": float(np.sum(estimate * exact) / (norms[0] * norms[1])),
    }


def write_figures(
    rows: list[dict[str, Any]], summary: dict[str, float], folder: str | Path
) -> list[Path]:
    """Draw variance, draw, policies and bias, and return the paths written."""
    from awsgd_rl import plots, plots_anatomy

    trials = np.array(sorted({row["trials"] for row in rows}), dtype=np.float64)
    maps = len({row["map"] for row in rows})
    about = f"{SIZE}×{SIZE} grid with {TRAPS} traps, {maps} maps"
    means = "geometric means, bands: 95% intervals"
    figures = {
        "variance": plots_anatomy.curve_row(
            trials,
            [
                plots_anatomy.Panel(
                    title,
                    {
                        "on-policy variance / the mixture's": band_of(rows, f"variance_ratio{of}"),
                        "headroom: the best possible": band_of(rows, f"headroom{of}"),
                    },
                    "times, log scale",
                )
                for title, of in (
                    ("the critic's gradient, as the agent uses it", ""),
                    ("the gradient of the returns, same baseline", "_returns"),
                )
            ],
            title="How many times less the agent's own gradient varies while it learns",
            subtitle=f"{about}; {means}",
            share_y=True,
        ),
        "bias": plots_anatomy.curve_row(
            trials,
            [
                plots_anatomy.Panel(
                    "error, as a share of the exact gradient's norm",
                    {
                        "bias of the critic's gradient": band_of(rows, "bias"),
                        "noise of a fresh batch, critic": band_of(rows, "noise"),
                        "noise of a fresh batch, returns": band_of(rows, "noise_returns"),
                    },
                    "relative error, log scale",
                ),
                plots_anatomy.Panel(
                    "cosine with the exact gradient",
                    {"bias of the critic's gradient": band_of(rows, "cosine")},
                    "cosine",
                    log=False,
                ),
            ],
            title="The critic's gradient beside the exact one",
            subtitle=f"{about}; left {means}; right means",
        ),
        "draw": plots_anatomy.draw_figure(
            [
                plots_anatomy.DrawnFrom(
                    int(t),
                    _mean_lift([row["draw_by_age"] for row in own]),
                    np.mean([row["draw_by_end"] for row in own], axis=0),
                    np.mean([row["uniform_by_end"] for row in own], axis=0),
                )
                for t in trials
                for own in [[row for row in rows if row["trials"] == t]]
            ],
            {
                "drawn": band_of(rows, "explored_draws"),
                "stored": band_of(rows, "explored"),
            },
            {
                "drawn, 1 / Σ q²": band_of(rows, "effective_draws"),
                "stored": band_of(rows, "stored"),
            },
            ends=ENDS,
            title="Where the replay's draw lies among the stored trajectories",
            subtitle=f"{about}; means over the batches since the point before; "
            "bands: 95% intervals",
        ),
    }
    drawn = [row for row in rows if "policies" in row]
    for name, row in zip(("policies", "policies-late"), (drawn[0], drawn[-1]), strict=True):
        figures[name] = _policies(row)
    return [
        path for name, figure in figures.items() for path in plots.save_figure(figure, folder, name)
    ]


def _policies(row: dict[str, Any]) -> Any:
    from awsgd_rl.plots_maps import PolicyPanel, policy_maps

    held = row["policies"]
    return policy_maps(
        [
            PolicyPanel(
                f"{label}: fails {_percent(1.0 - held[f'{name}_success'])}",
                np.array(held[name]),
                np.array(held[f"{name}_visits"]),
            )
            for name, label in (
                ("target", "P_w, which is learned"),
                ("exploration", "Q_τ, which explores"),
            )
        ],
        columns=SIZE,
        start=held["start"],
        goals=held["goals"],
        traps=held["traps"],
        title=f"Target and exploration policy after {row['trials']:,} trials",
        subtitle=f"{SIZE}×{SIZE} grid with {TRAPS} traps, map {row['map']}; arrows: mean move",
    )


def _percent(probability: float) -> str:
    return f"{100 * probability:.2g}%"


def _mean_lift(by_map: list[list[float | None]]) -> Floats:
    lifts = np.array(by_map, dtype=np.float64)  # None becomes NaN
    return np.asarray(lifts.mean(axis=0))
