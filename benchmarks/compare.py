"""Agents side by side on the same maps: what `awsgd-rl compare` computes.

Each algorithm learns on each map (on an environment that has no maps: from each seed) for so many
episodes, and its target policy's success is averaged over all of them. Intervals are over maps;
ratios pair what was done on the same map.

Importing this module is cheap: PyTorch, numba and Matplotlib come with the first computation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.trial import ALGORITHMS, BINS, Task, Trial, run_task
from awsgd_rl.benchmarks.workers import run_tasks
from awsgd_rl.statistics import Band, mean_band, mean_interval, ratio_interval
from awsgd_rl.validation import require_integer, require_name

if TYPE_CHECKING:
    import gymnasium as gym

    from awsgd_rl.plots_maps import PolicyPanel

FloatArray = NDArray[np.float64]

_STARTS = np.unique(np.geomspace(1, BINS, 24, endpoint=False).astype(int)) - 1
WIDE_BINS = np.diff(_STARTS, append=BINS)
"""The rarer failures are, the more episodes it takes to see them: wider and wider bins, in bins."""
WIDE_MIDDLES = _STARTS + WIDE_BINS / 2
"""Where each of them lies, in bins."""


@dataclass(frozen=True)
class CompareConfig:
    """Which agents, on which task, for how long.

    Raises:
        ValueError: a setting is out of range, unknown, or contradicts another.
    """

    preset: str | None = None
    """A named map size, such as 15/9 (`awsgd-rl list` shows all). Default: 15x15 with 9 traps."""
    size: int | None = None
    """Cells on a side of the grid, in place of a preset."""
    traps: int | None = None
    """Number of traps, with `size`. Default: one for 25 cells."""
    slip: float | None = None
    """Probability that a move slips to one of the two sides. Default: 0."""
    env: str | None = None
    """Any other Gymnasium environment by its id, in place of a preset or a size."""
    algos: tuple[str, ...] = ("awsgd", "reinforce", "reinforce-equal")
    """What is compared: awsgd, reinforce (on-policy, one update a batch), reinforce-equal (as many
    updates a batch as awsgd); awsgd's variants awsgd-mixture and awsgd-paper; awsgd with a part
    taken out: uniform-replay (uniform draws of past trajectories), awsgd-returns (no critic),
    on-policy-critic (no past trajectories); Stable-Baselines3's a2c, ppo, dqn, sac, td3; and with
    prioritized replay prioritized-dqn, prioritized-sac, prioritized-td3."""
    regime: Literal["strong", "paper"] = "strong"
    """strong: returns to go, learned state values. paper: raw returns, no state values, batches of
    4 episodes, as in Bouchard et al. (2015)."""
    maps: int = 10
    """Number of maps; for `env`, of seeds."""
    episodes: int = 20_000
    """Trials (episodes) on each map."""
    steps: int | None = None
    """Environment steps on each map, in place of a number of episodes."""
    seed: int = 0
    """The maps are seed, seed + 1, ...; each is its agents' seed too."""
    jobs: int | None = None
    """Processes; the result is the same for any number. Default: one for each core."""

    def __post_init__(self) -> None:
        grid = {"size": self.size, "traps": self.traps, "slip": self.slip}
        given = [name for name, value in grid.items() if value is not None]
        tasks = {"preset": self.preset, "env": self.env, " and ".join(given): given or None}
        chosen = [name for name, value in tasks.items() if value]
        if len(chosen) > 1:
            raise ValueError(f"got {' and '.join(chosen)}, expected one task: leave out the others")
        if not self.algos:
            raise ValueError(f"no algorithm to compare: choose from {', '.join(ALGORITHMS)}")
        for label in self.algos:
            require_name("algorithm", label, ALGORITHMS)
        if len(set(self.algos)) < len(self.algos):
            raise ValueError(f"algos names an algorithm twice: {' '.join(self.algos)}")
        require_name("regime", self.regime, ("strong", "paper"))
        require_integer("maps", self.maps)
        require_integer("episodes", self.episodes)
        require_integer("seed", self.seed, minimum=0)
        for name in ("steps", "jobs"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name))

    @property
    def task(self) -> str:
        """What is learned, in words."""
        if self.env is not None:
            return self.env
        if self.preset is not None:
            return f"preset {self.preset}"
        size = 15 if self.size is None else self.size
        traps = size * size // 25 if self.traps is None else self.traps
        return f"{size}×{size} grid with {traps} traps" + (
            f", slip {self.slip:g}" if self.slip else ""
        )

    @property
    def budget(self) -> int:
        """What a trial may spend: environment steps if they are limited, else episodes."""
        return self.episodes if self.steps is None else self.steps

    @property
    def length(self) -> str:
        """How long a trial is, in words."""
        return f"{self.budget:,} {'episodes' if self.steps is None else 'steps'} each"

    @property
    def unit(self) -> str:
        """What distinguishes one repetition from another: "map" or, on one map, "seed"."""
        if self.preset is not None:
            from awsgd_rl.envs import preset

            return "seed" if "desc" in preset(self.preset).kwargs else "map"
        return "map" if self.env is None else "seed"

    def make_env(self, map_: int) -> "gym.Env[Any, Any]":
        """Make the environment of one map.

        Raises:
            ValueError: there is no such environment or preset, or its arguments are not valid.
        """
        import gymnasium as gym

        import awsgd_rl.envs

        kwargs: dict[str, Any] = {}
        id_ = self.env
        if self.preset is not None:
            kwargs = dict(awsgd_rl.envs.preset(self.preset).kwargs)
        elif self.env is None:
            grid = {"size": 15 if self.size is None else self.size, "traps": self.traps}
            kwargs = {**grid, "slip": self.slip or 0.0}
        if id_ is None:
            id_ = "awsgd_rl/TrapGridworld-v0"
            if "desc" not in kwargs:
                kwargs["layout_seed"] = map_
        try:
            return gym.make(id_, **kwargs)
        except gym.error.Error as error:
            raise ValueError(str(error)) from error


class Progress(NamedTuple):
    """How far the comparison is.

    Attributes:
        task: what reports.
        recent: success (or return) of its target policy of late; NaN if it is not known.
        spent: episodes done in this task, or steps where these are limited.
        done: the same in all tasks.
        total: what all tasks may spend.
    """

    task: str
    recent: float
    spent: int
    done: int
    total: int


def _metric(trials: Sequence[Trial]) -> str:
    return "success" if all(trial.metric == "success" for trial in trials) else "return"


def _failures(trials: Sequence[Trial]) -> list[float]:
    # A mean of differences may be above 1 by rounding.
    return [max(0.0, 1.0 - trial.mean) for trial in trials]


@dataclass(frozen=True)
class Comparison:
    """All trials of a comparison, and what they say.

    Attributes:
        config: what was asked for.
        trials: algorithm by algorithm, map by map.
    """

    config: CompareConfig
    trials: tuple[Trial, ...]

    @property
    def metric(self) -> str:
        """What is compared: "success", or "return" if an algorithm does not tell success."""
        return _metric(self.trials)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a trial, for `results.json`."""
        return [trial.row for trial in self.trials]

    def of(self, algorithm: str) -> list[Trial]:
        """Return the trials of one algorithm, in the order of the maps."""
        return [trial for trial in self.trials if trial.algorithm == algorithm]

    def summary(self) -> dict[str, float]:
        """Return the numbers of `results.json`, each with the ends of its 95 % interval.

        `<algo>.success_mean`, `.success_final` (`return_…` where success is not known),
        `.steps_mean`, and `failure_ratio`, `failure_ratio_equal_updates`,
        `failure_ratio_uniform_replay`: mean failures over maps of the on-policy agent, with one
        update a batch and with as many, and of uniform replay, over those of AW-SGD.
        """
        numbers: dict[str, float] = {}
        for algorithm in self.config.algos:
            trials = self.of(algorithm)
            metric = _metric(trials)
            bounds = (0.0, 1.0) if metric == "success" else (-np.inf, np.inf)
            for name, values, limits in (
                (f"{metric}_mean", [trial.mean for trial in trials], bounds),
                (f"{metric}_final", [trial.final for trial in trials], bounds),
                ("steps_mean", [trial.steps for trial in trials], (0.0, np.inf)),
            ):
                add_interval(numbers, f"{algorithm}.{name}", mean_interval(values, bounds=limits))
        if self.metric == "success" and "awsgd" in self.config.algos:
            ours = _failures(self.of("awsgd"))
            for algorithm, name in (
                ("reinforce", "failure_ratio"),
                ("reinforce-equal", "failure_ratio_equal_updates"),
                ("uniform-replay", "failure_ratio_uniform_replay"),
            ):
                if algorithm in self.config.algos:
                    rng = np.random.default_rng(self.config.seed)
                    ratio = ratio_interval(_failures(self.of(algorithm)), ours, rng=rng)
                    add_interval(numbers, name, ratio)
        return numbers

    def curves(self) -> dict[str, FloatArray]:
        """Return the curves [maps, BINS] of each algorithm, by its title."""
        return {
            ALGORITHMS[algorithm].title: np.stack([trial.curve for trial in self.of(algorithm)])
            for algorithm in self.config.algos
        }


def compare(
    config: CompareConfig,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Comparison:
    """Let every algorithm learn on every map; `workers.execution` says where, and what is kept.

    Args:
        config: which agents, on which task.
        progress: called a few times a second with how far it is.
        on_trial: called with each trial when it is done.

    Raises:
        ValueError: the task cannot be made.
        TaskError: an agent failed; the message says which, and on which map.
        KeyboardInterrupt: Ctrl-C, after all processes have ended.
    """
    maps = range(config.seed, config.seed + config.maps)
    for map_ in maps:  # a map that cannot be made is known before anything is learned
        config.make_env(map_).close()
    # Kept results are found by their task: it must not depend on the number of processes.
    alike = dataclasses.replace(config, jobs=None)
    # Map by map, so that an early look at the trials sees every algorithm.
    tasks = [Task(alike, algorithm, map_) for map_ in maps for algorithm in config.algos]
    spent: dict[str, int] = {}

    def on_message(message: tuple[str, int, float]) -> None:
        name, count, recent = message
        spent[name] = count
        so_far, total = sum(spent.values()), len(tasks) * config.budget
        progress(Progress(name, recent, count, so_far, total))

    def on_result(trial: Trial) -> None:
        name = str(Task(config, trial.algorithm, trial.map))
        on_message((name, config.budget, float(trial.curve[-1])))
        on_trial(trial)

    trials = run_tasks(
        run_task, tasks, jobs=config.jobs, on_message=on_message, on_result=on_result
    )
    done = {(trial.algorithm, trial.map): trial for trial in trials}
    return Comparison(config, tuple(done[label, map_] for label in config.algos for map_ in maps))


def pooled_failures(curves: FloatArray) -> Band:
    """Return the failures in `WIDE_BINS` of success curves [maps, BINS], with 95 % intervals."""
    pooled = np.add.reduceat(1 - curves, _STARTS, axis=1) / WIDE_BINS
    return mean_band(pooled, bounds=(0, 1))


def write_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Draw a comparison into an existing folder; return the paths written.

    `learning`, and where success is known `failures` (log scale) and, over episodes, `regret`;
    `policies` with what was learned on the first map of a gridworld. Each as PNG and SVG.
    """
    from awsgd_rl import plots, plots_maps

    config, curves = comparison.config, comparison.curves()
    width = config.budget / BINS
    middles = width * (np.arange(BINS) + 0.5)
    interval = "; bands: 95% intervals" if config.maps > 1 else ""
    repeated = f"{config.maps} {config.unit}{'s' if config.maps > 1 else ''}"
    subtitle = f"{config.task}, {repeated}, {config.length}{interval}"
    common: dict[str, Any] = {"subtitle": subtitle, "total": config.budget}
    if comparison.metric == "return":
        figure = plots.learning_curves(
            middles,
            {title: mean_band(curve) for title, curve in curves.items()},
            title="Return of the target policy while it learns",
            ylabel="return of an episode",
            percent=False,
            **common,
        )
        _name_axis(figure, config)
        return plots.save_figure(figure, folder, "learning")
    # Half a failure in all episodes of the last bin: what is below is drawn as none.
    floor = min(0.1, 0.5 / (config.maps * width * WIDE_BINS[-1]))
    figures = {
        "learning": plots.learning_curves(
            middles,
            {title: mean_band(curve, bounds=(0, 1)) for title, curve in curves.items()},
            **common,
        ),
        "failures": plots.failure_curves(
            width * WIDE_MIDDLES,
            {title: pooled_failures(curve) for title, curve in curves.items()},
            floor=floor,
            **common,
        ),
    }
    for figure in figures.values():
        _name_axis(figure, config)
    if config.steps is None:
        failed = {
            title: mean_band(width * (1 - curve).cumsum(axis=1), bounds=(0, np.inf))
            for title, curve in curves.items()
        }
        figures["regret"] = plots.regret_curves(middles + width / 2, failed, **common)
    learner, panels = _policy_panels(comparison)
    if panels:
        grid: Any = config.make_env(config.seed).unwrapped
        figures["policies"] = plots_maps.policy_maps(
            panels,
            columns=grid.columns,
            start=grid.start,
            goals=grid.goal_cells,
            traps=grid.trap_cells,
            title=f"What {learner} learned on {config.unit} {config.seed}",
            subtitle=f"{config.task}, {config.length}; arrows: the mean move",
        )
    return [
        path for name, figure in figures.items() for path in plots.save_figure(figure, folder, name)
    ]


def _name_axis(figure: Any, config: CompareConfig) -> None:
    if config.steps is not None:
        figure.axes[0].set_xlabel("environment steps, log scale")


def _policy_panels(comparison: Comparison) -> "tuple[str, list[PolicyPanel]]":
    """P_w beside Q_τ of the first algorithm that explores; else P_w of the first two algorithms."""
    from awsgd_rl.plots_maps import PolicyPanel

    first = [comparison.of(algorithm)[0] for algorithm in comparison.config.algos]
    learner = "each agent"
    shown = [
        (ALGORITHMS[trial.algorithm].title, trial.target)
        for trial in first
        if trial.target is not None
    ][:2]
    for trial in first:
        if trial.target is not None and trial.exploration is not None:
            learner = ALGORITHMS[trial.algorithm].title
            shown = [("$P_w$, target", trial.target), ("$Q_\\tau$, exploration", trial.exploration)]
            break
    return learner, [
        PolicyPanel(f"{name}: fails {100 * (1 - made.success):.2g}%", made.policy, made.visits)
        for name, made in shown
    ]
