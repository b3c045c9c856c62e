"""Matrix factorisation: draws of rows and columns that AW-SGD learns, against uniform ones.

Three tasks of Bouchard 2015, §6:

- synthetic (Fig. 4): 100 × 100, rank 10, one random 20 × 20 block 100 times as large;
- MNIST's zeros (Fig. 5): 5,923 × 784, K = 50. With `quick` the zeros of scikit-learn's digits;
- zeros that are replaced by ones (Fig. 6): the probability of each pixel while that happens.

Both sides run the same compiled loop, with uniform draws or learned ones; the step falls as
1 / (N/2 + t) as in the seed. They are timed in turns, part of an epoch each, in one process.
Speed-ups are to the error that uniform draws end with. AdaGrad is shown with both, and on MNIST a
truncated SVD, which for a dense matrix is what one would use instead.

On MNIST's zeros the seed's 2.52 in time is not reached. The best product of row and column
probabilities has a second moment 2.1 to 2.2 times below that of uniform draws (the best column
probabilities alone 2.1; columns by 16 clusters of rows 2.25 to 2.3; the best of all proposals, one
number an entry, 3.8), and the largest stable step sets a limit of its own: about 1.6 times fewer
draws, while a draw costs about 1.15 times a uniform one (40 ns at K = 50). A random entry is a
small part of these 40 ns, so drawing more cheaply cannot give more than 1.6; a richer family could.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.crossing import first_reached
from awsgd_rl.benchmarks.data import digits, mnist
from awsgd_rl.benchmarks.summary import add_geometric_mean, geometric_mean_band
from awsgd_rl.benchmarks.workers import Progress, one_thread
from awsgd_rl.validation import require_integer

Singles = NDArray[np.float32]

LABELS: Final = {
    "uniform": "uniform draws",
    "awsgd": "AW-SGD",
    "uniform_adagrad": "AdaGrad, uniform draws",
    "awsgd_adagrad": "AdaGrad, AW-SGD",
}

# Each the best of an equal number of settings, on seeds from 1000, which are not reported: learning
# rates up to where the factors diverge and first scales; with AW-SGD fewer of these, and adaptation
# rates. On the synthetic matrix a tenth below the largest stable step, as the best is close to it.
SYNTHETIC: Final[Mapping[str, Mapping[str, Any]]] = {
    "uniform": {"learning_rate": 0.1, "init_scale": 0.1},
    "awsgd": {"learning_rate": 0.18, "init_scale": 0.1, "adaptation_rate": 0.03},
    "uniform_adagrad": {"learning_rate": 0.4, "init_scale": 0.1},
    "awsgd_adagrad": {"learning_rate": 0.4, "init_scale": 0.1, "adaptation_rate": 0.03},
}
MNIST: Final[Mapping[str, Mapping[str, Any]]] = {
    "uniform": {"learning_rate": 0.13, "init_scale": 0.01},
    "awsgd": {"learning_rate": 0.15, "init_scale": 0.01, "adaptation_rate": 0.004},
    "uniform_adagrad": {"learning_rate": 0.1, "init_scale": 0.03},
    "awsgd_adagrad": {"learning_rate": 0.1, "init_scale": 0.03, "adaptation_rate": 0.004},
}
DIGITS: Final = {name: {**settings, "init_scale": 0.1} for name, settings in MNIST.items()}
"""For `quick`: so few draws do not get away from factors of almost 0."""
SYNTHETIC_SHARED: Final = {"adapt_every": 1, "refresh": 1}
MNIST_SHARED: Final = {"adapt_every": 8, "block": 10}

FRAMES, FRAME_DRAWS, FIRST, LAST = 21, 2_000, 5, 10
"""Pictures, draws between two of them, and the pictures between which zeros become ones."""


class Task(NamedTuple):
    """One matrix, factorised by all of `LABELS` side by side."""

    name: str
    matrix: Singles
    rank: int
    seed: int
    epochs: float
    points: int
    settings: Mapping[str, Mapping[str, Any]]


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    data: Path | None = None,
    seeds: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Factorise all matrices.

    Args:
        quick: three seeds, fewer epochs, and the digits in place of MNIST.
        seed: the seeds are this one and those that follow.
        data: an `mnist.npz`. Default: as `benchmarks.data.mnist`.
        seeds: how many. Default: 10 of the synthetic matrix and 5 of MNIST; 3 with `quick`.
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a matrix, seed and method, with its losses over draws and seconds; one with the
        pictures of Fig. 6. The summary has `iteration_speedup` (synthetic), `mnist_time_speedup`,
        `mnist_iteration_speedup`, `mnist_step_cost_ratio` (seconds a draw), the same of AdaGrad
        with and without AW-SGD (`adagrad_...`), each with a 95 % interval over seeds, and seconds.
    """
    number = None if seeds is None else require_integer("seeds", seeds)
    parts = digits() if quick else mnist(data)
    images, classes = parts.x_train, parts.y_train
    zeros, ones = images[classes == 0], images[classes == 1]
    rank = 10 if quick else 50
    tasks = [
        Task("synthetic", synthetic(seed + s), 10, seed + s, 20, 80, SYNTHETIC)
        for s in range(number or (3 if quick else 10))
    ]
    tasks += [
        Task(
            "mnist",
            zeros,
            rank,
            seed + s,
            40 if quick else 6,
            20 if quick else 48,
            DIGITS if quick else MNIST,
        )
        for s in range(number or (3 if quick else 5))
    ]
    rows: list[dict[str, Any]] = []
    with one_thread():
        for k, task in enumerate(tasks):
            rows += factorise(task)
            progress((k + 1) / (len(tasks) + 1), f"{task.name}, seed {task.seed}")
        rows.append(svd(zeros, rank))
        rows.append(replace_digits(zeros, ones, rank, seed))
    return rows, summarise(rows)


def synthetic(seed: int) -> Singles:
    """Return the matrix of Fig. 4, all of it divided by 100."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(100, 10)) @ rng.normal(size=(10, 100))
    block = np.ix_(rng.permutation(100)[:20], rng.permutation(100)[:20])
    matrix[block] *= 100.0
    return (matrix / 100.0).astype(np.float32)


def factorise(task: Task) -> list[dict[str, Any]]:
    """Run all methods in turns, and return a row for each."""
    from awsgd_rl.factorisation import MatrixFactorisation

    def make(name: str) -> Any:
        shared = SYNTHETIC_SHARED if task.name == "synthetic" else MNIST_SHARED
        settings = {"adaptation_rate": 0.0, **shared, **task.settings[name]}
        adagrad = name.endswith("adagrad")
        return MatrixFactorisation(task.rank, seed=task.seed, adagrad=adagrad, **settings)

    for name in task.settings:
        make(name).fit(task.matrix[:200], 0.1)  # compiles
    models = {name: make(name) for name in task.settings}
    seconds = dict.fromkeys(models, 0.0)
    curves: dict[str, list[list[float]]] = {name: [] for name in models}
    for _ in range(task.points):
        for name, model in models.items():
            start = time.perf_counter()
            try:
                model.fit(task.matrix, task.epochs / task.points)
                seconds[name] += time.perf_counter() - start
                loss = model.loss(task.matrix)
            except ValueError:  # diverged: it stays where it was, and gets no lower
                loss = curves[name][-1][1] if curves[name] else float(np.mean(task.matrix**2))
            curves[name].append([model.draws, loss])
    return [
        {
            "task": task.name,
            "method": name,
            "seed": task.seed,
            "seconds": seconds[name],
            "loss": curve[-1][1],
            "draws_a_epoch": task.matrix.size,
            "draws": [int(point[0]) for point in curve],
            "losses": [float(f"{point[1]:.5g}") for point in curve],
        }
        for name, curve in curves.items()
    ]


def svd(matrix: Singles, rank: int) -> dict[str, Any]:
    """Return the row of the truncated SVD, to which no factorisation of a dense matrix comes up."""
    from sklearn.decomposition import TruncatedSVD

    start = time.perf_counter()
    model = TruncatedSVD(rank, random_state=0)
    scores = model.fit_transform(matrix)
    seconds = time.perf_counter() - start
    loss = float(np.mean(np.square(matrix - scores @ model.components_)))
    return {"task": "mnist", "method": "svd", "seconds": seconds, "loss": loss}


def replace_digits(zeros: Singles, ones: Singles, rank: int, seed: int) -> dict[str, Any]:
    """Replace zeros by ones while learning goes on, and return the pictures in between."""
    from awsgd_rl.factorisation import MatrixFactorisation

    n = min(len(zeros), len(ones), 1_000)
    side = int(np.sqrt(zeros.shape[1]))
    model = MatrixFactorisation(
        rank,
        learning_rate=0.03,
        adaptation_rate=0.1,
        adapt_every=1,
        refresh=1,
        init_scale=0.1,
        seed=seed,
    )
    frames = []
    for frame in range(FRAMES):
        replaced = round(n * min(max((frame + 1 - FIRST) / (LAST - FIRST), 0.0), 1.0))
        matrix = np.concatenate((ones[:replaced], zeros[replaced:n]))
        model.fit(matrix, FRAME_DRAWS / matrix.size)
        frames.append([float(f"{p:.3g}") for p in model.column_probabilities])
    return {"task": "digits", "method": "awsgd", "seed": seed, "side": side, "frames": frames}


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return speed-ups as geometric means over seeds, with intervals."""
    summary: dict[str, float] = {}
    for task, prefix in (("synthetic", ""), ("mnist", "mnist_")):
        for optimizer, before in (("", ""), ("_adagrad", "adagrad_")):
            pairs = zip(
                _rows(rows, task, f"uniform{optimizer}"),
                _rows(rows, task, f"awsgd{optimizer}"),
                strict=True,
            )
            values: dict[str, list[float]] = {"iteration": [], "time": [], "cost": []}
            for uniform, learned in pairs:
                target = uniform["losses"][-1]
                iterations = draws_to(uniform, target) / draws_to(learned, target)
                cost = learned["seconds"] / uniform["seconds"]
                values["iteration"].append(iterations)
                values["cost"].append(cost)
                values["time"].append(iterations / cost)
            names = {"iteration": "iteration_speedup"}
            if task == "mnist":
                names |= {"time": "time_speedup", "cost": "step_cost_ratio"}
            for key, name in names.items():
                full = f"{prefix}{before}{name}"
                add_geometric_mean(summary, full, values[key])
    for method in ("uniform", "awsgd", "svd"):
        own = _rows(rows, "mnist", method)
        summary[f"mnist_{method}_seconds"] = float(np.mean([row["seconds"] for row in own]))
        summary[f"mnist_{method}_loss"] = float(np.mean([row["loss"] for row in own]))
    return summary


def draws_to(row: Mapping[str, Any], target: float) -> float:
    """Return the draws after which the loss reaches a target, between points on the log scale.

    Infinity if it does not.
    """
    return float(first_reached(row["draws"], np.log(row["losses"]), np.log(target)))


def _rows(rows: list[dict[str, Any]], task: str, method: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["task"], row["method"]) == (task, method)]


def write_figures(
    rows: list[dict[str, Any]], summary: dict[str, float], folder: str | Path
) -> list[Path]:
    """Draw losses over epochs, pixels as pictures and as an animation; return the paths."""
    from awsgd_rl import plots, plots_factorisation
    from awsgd_rl.plots_panels import Curve

    panels: dict[str, dict[str, Curve]] = {}
    for task, title in (("synthetic", "synthetic, block × 100"), ("mnist", "zeros")):
        panels[title] = {}
        for method, label in LABELS.items():
            own = _rows(rows, task, method)
            epochs = np.asarray(own[0]["draws"]) / own[0]["draws_a_epoch"]
            band = geometric_mean_band([row["losses"] for row in own])
            panels[title][label] = Curve(epochs, band)
    figure = plots_factorisation.log_panels(
        panels,
        title="Matrix factorisation with learned draws of rows and columns",
        subtitle=f"to the error that uniform draws end with: {summary['iteration_speedup']:.1f} "
        f"times fewer draws; zeros {summary['mnist_iteration_speedup']:.1f} times fewer, "
        f"{summary['mnist_time_speedup']:.1f} times less time",
        xlabels=["epochs", "epochs"],
        ylabels=["mean squared error, log scale", ""],
    )
    paths = plots.save_figure(figure, folder, "matrix-factorisation")
    [shown] = [row for row in rows if row["task"] == "digits"]
    frames = np.reshape(shown["frames"], (-1, shown["side"], shown["side"]))
    names = [f"{(k + 1) * FRAME_DRAWS:,} draws" for k in range(len(frames))]
    figure = plots_factorisation.pixel_maps(
        frames,
        names,
        title="Which pixels are drawn while zeros become ones",
        subtitle=f"probability of each pixel; the images change from {FIRST * FRAME_DRAWS:,} to "
        f"{LAST * FRAME_DRAWS:,} draws",
    )
    paths += plots.save_figure(figure, folder, "matrix-factorisation-digits")
    paths.append(
        plots_factorisation.pixel_animation(frames, names, folder, "matrix-factorisation-digits")
    )
    return paths
