"""What a learned exploration policy and a learned draw are worth: failures while learning.

Both regimes of `compare` on all presets: AW-SGD beside uniform replay of the same buffer, and
on-policy learning with one update a batch (the baseline of Bouchard et al. 2015) and with as many.
Stable-Baselines3's A2C and PPO get as many environment steps as AW-SGD took on average in the
regime "strong", but at most `MOST_STEPS`, on the first `STABLE_BASELINES_MAPS` maps: their rows say
how many. They subtract learned values too, so they stand with that regime.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.compare import (
    WIDE_BINS,
    WIDE_MIDDLES,
    CompareConfig,
    Comparison,
    compare,
    pooled_failures,
)
from awsgd_rl.benchmarks.iqm import iqm_interval
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.trial import ALGORITHMS as TITLES
from awsgd_rl.benchmarks.trial import BINS, Trial
from awsgd_rl.benchmarks.workers import Progress
from awsgd_rl.exact import TabularMDP
from awsgd_rl.statistics import Band, Interval, mean_band, mean_interval
from awsgd_rl.validation import require_name

MAPS: Final = {
    "strong": {
        "15/9": 40,
        "50/10": 10,
        "50/25": 20,
        "80/40": 8,
        "seed-15": 10,
        "seed-50": 8,
        "seed-80": 6,
        "50/50": 10,
        "full-50": 6,
        "full-80": 3,
    },
    "paper": {
        "15/9": 12,
        "50/10": 3,
        "50/25": 4,
        "80/40": 2,
        "seed-15": 4,
        "seed-50": 3,
        "seed-80": 2,
    },
}
"""How many maps each preset gets, by regime: more where they tell more, so that all is done in an
hour on two cores. The last three of "strong" are those where an on-policy agent with one update a
batch never succeeds."""

EPISODES: Final = 20_000
DISCOUNT: Final = 0.999
"""Of all agents here."""
ALGORITHMS: Final = ("awsgd", "uniform-replay", "reinforce", "reinforce-equal")
STABLE_BASELINES: Final = ("a2c", "ppo")
STABLE_BASELINES_MAPS: Final = 2
MOST_STEPS: Final = {
    "15/9": 400_000,
    "50/10": 120_000,
    "50/25": 120_000,
    "80/40": 50_000,
    "seed-15": 200_000,
    "seed-50": 120_000,
    "seed-80": 50_000,
    "50/50": 120_000,
    "full-50": 120_000,
    "full-80": 50_000,
}
"""Environment steps of Stable-Baselines3's agents at the most: about a minute on one core."""
QUICK: Final = {"maps": 2, "episodes": 500, "steps": 8192}
Regime = Literal["strong", "paper"]
REGIMES: Final[tuple[Regime, ...]] = ("strong", "paper")

RATIOS: Final = {
    "failure_ratio_uniform_replay": "uniform-replay",
    "failure_ratio": "reinforce",
    "failure_ratio_equal_updates": "reinforce-equal",
}
"""Whose failures are divided by those of AW-SGD."""

ENDS: Final = ("", "_low", "_high")


def check(preset: str | None = None, regime: str | None = None) -> None:
    """Raise ValueError if there is no such preset or regime in this bench."""
    if regime is not None:
        require_name("regime", regime, REGIMES)
    if preset is not None:
        require_name("preset of this bench", preset, MAPS[regime or "strong"])


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    preset: str | None = None,
    regime: str | None = None,
    maps: int | None = None,
    jobs: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Let every algorithm learn on every map of every preset.

    Args:
        quick: the preset 15/9 alone, on few maps and for few episodes.
        seed: the maps are this one and those that follow.
        preset: this preset alone.
        regime: this regime alone; "paper" goes without Stable-Baselines3.
        maps: number of maps, in place of `MAPS`.
        jobs: processes; None for one a core.
        progress: called with the share that is done, and what is being done.

    Returns:
        One row for each regime, preset and algorithm: means over maps with their curves, and each
        map's own numbers as lists. The summary has `<regime>.<preset>.<name>` with the names of
        `compare`, and for each algorithm `seconds_mean` and the IQM over maps `success_iqm`;
        `<regime>.<algorithm>.success_iqm` is over all presets, with equally many maps of each;
        `before_learning` has the success of a uniform policy and its return's standard deviation;
        `success_at_equal_steps` is what the policy was after as many environment steps as
        Stable-Baselines3's agents were given, to be compared with their `success_final`.

    Raises:
        ValueError: there is no such preset or regime in this bench.
    """
    check(preset, regime)
    presets = [preset] if preset is not None else ["15/9"] if quick else list(MAPS["strong"])
    regimes: list[Regime] = [name for name in REGIMES if regime in (None, name)]
    cells = [(name, chosen) for name in presets for chosen in regimes if name in MAPS[chosen]]
    parts = len(cells) + sum(chosen == "strong" for _, chosen in cells)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    means: dict[tuple[str, str], list[list[float]]] = {}
    done = 0

    def measure(config: CompareConfig, words: str) -> Comparison:
        nonlocal done
        comparison = compare(
            config,
            progress=lambda p: progress(
                (done + p.done / p.total) / parts, f"{words} {config.preset}: {p.task}"
            ),
        )
        done += 1
        return comparison

    for name, chosen in cells:
        count = maps or (QUICK["maps"] if quick else MAPS[chosen][name])
        comparisons = [
            measure(
                CompareConfig(
                    preset=name,
                    algos=ALGORITHMS,
                    regime=chosen,
                    maps=count,
                    episodes=QUICK["episodes"] if quick else EPISODES,
                    seed=seed,
                    jobs=jobs,
                ),
                chosen,
            )
        ]
        if chosen == "paper":
            for key, interval in _before_learning(comparisons[0].config).items():
                add_interval(summary, f"{chosen}.{name}.before_learning.{key}", interval)
        if chosen == "strong":
            taken = int(np.mean([trial.steps for trial in comparisons[0].of("awsgd")]))
            steps = min(taken, QUICK["steps"] if quick else MOST_STEPS[name])
            fewer = min(count, STABLE_BASELINES_MAPS)
            config = CompareConfig(
                preset=name,
                algos=STABLE_BASELINES,
                maps=fewer,
                steps=steps,
                seed=seed,
                jobs=jobs,
            )
            comparisons.append(measure(config, "Stable-Baselines3"))
            for label in ALGORITHMS:
                reached = [
                    float(np.interp(steps, trial.curve_steps, trial.curve))
                    for trial in comparisons[0].of(label)
                ]
                key = f"{chosen}.{name}.{label}.success_at_equal_steps"
                add_interval(summary, key, mean_interval(reached, bounds=(0, 1)))
        for comparison in comparisons:
            numbers = comparison.summary()
            summary.update({f"{chosen}.{name}.{key}": numbers[key] for key in numbers})
            for label in comparison.config.algos:
                trials = comparison.of(label)
                rows.append(_row(chosen, comparison.config, label, trials))
                scores = [trial.mean for trial in trials]
                means.setdefault((chosen, label), []).append(scores)
                rng = np.random.default_rng(seed)
                key = f"{chosen}.{name}.{label}"
                iqm = iqm_interval(np.array(scores)[:, None], rng=rng)
                add_interval(summary, f"{key}.success_iqm", iqm)
                seconds = mean_interval([trial.seconds for trial in trials], bounds=(0, np.inf))
                add_interval(summary, f"{key}.seconds_mean", seconds)
    for (name, label), scores_of in means.items():
        least = min(len(scores) for scores in scores_of)
        table = np.array([scores[:least] for scores in scores_of]).T
        iqm = iqm_interval(table, rng=np.random.default_rng(seed))
        add_interval(summary, f"{name}.{label}.success_iqm", iqm)
    return rows, summary


def _before_learning(config: CompareConfig) -> dict[str, Interval]:
    """Return, exactly, how often a uniform policy succeeds, and its return's standard deviation."""
    success, spread = [], []
    for number in range(config.seed, config.seed + config.maps):
        grid: Any = config.make_env(number).unwrapped
        mdp = TabularMDP.from_gridworld(grid)
        uniform = np.full((mdp.n_states, mdp.n_actions), 1.0 / mdp.n_actions)
        success.append(mdp.success_probability(uniform))
        spread.append(math.sqrt(mdp.return_variance(uniform, DISCOUNT)))
    return {
        "success": mean_interval(success, bounds=(0, 1)),
        "return_std": mean_interval(spread, bounds=(0, np.inf)),
    }


def _row(regime: str, config: CompareConfig, label: str, trials: Sequence[Trial]) -> dict[str, Any]:
    curves = np.stack([trial.curve for trial in trials])
    band, failures = mean_band(curves, bounds=(0, 1)), pooled_failures(curves)
    steps = np.mean([trial.curve_steps for trial in trials], axis=0)
    return {
        "regime": regime,
        "preset": config.preset,
        "algorithm": label,
        "maps": config.maps,
        "trials": config.episodes if config.steps is None else None,
        "steps": config.steps,
        "success_mean": float(np.mean([trial.mean for trial in trials])),
        "success_final": float(np.mean([trial.final for trial in trials])),
        "seconds": float(np.mean([trial.seconds for trial in trials])),
        "success_mean_by_map": _rounded([trial.mean for trial in trials]),
        "success_final_by_map": _rounded([trial.final for trial in trials]),
        "steps_by_map": [trial.steps for trial in trials],
        "curve": _rounded(band.estimate),
        "curve_low": _rounded(band.low),
        "curve_high": _rounded(band.high),
        "failures": _rounded(failures.estimate),
        "failures_low": _rounded(failures.low),
        "failures_high": _rounded(failures.high),
        "curve_steps": [round(value) for value in steps.tolist()],
    }


def _rounded(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    # Results are committed: six digits are more than they are known to.
    return [float(f"{value:.6g}") for value in values]


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw what `run` returned (or what `results.json` holds of it); return the paths written.

    For each regime `learning-<regime>` and, on a log scale, `failures-<regime>` over the trials,
    `steps-<regime>` over environment steps; and `ratios`, every failure ratio.
    """
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import ratio_forest

    figures: dict[str, Any] = {}
    groups = {}
    for chosen in REGIMES:
        own = [row for row in rows if row["regime"] == chosen]
        if own:
            figures.update(_curve_figures(own, chosen))
    for regime, preset in dict.fromkeys((row["regime"], row["preset"]) for row in rows):
        key = f"{regime}.{preset}"
        groups[f"{preset}, {regime}"] = {
            TITLES[label].title: Interval(*(_number(summary[f"{key}.{name}{end}"]) for end in ENDS))
            for name, label in RATIOS.items()
        }
    figures["ratios"] = ratio_forest(
        groups,
        title="How many times as often the others fail while they learn",
        subtitle="failures over all trials, divided by those of AW-SGD; 95% intervals over maps",
        xlabel="failures / failures of AW-SGD, log scale",
        first_color=1,  # AW-SGD has the first one in the curves
    )
    return [
        path for name, figure in figures.items() for path in plots.save_figure(figure, folder, name)
    ]


def _curve_figures(rows: Sequence[Mapping[str, Any]], regime: str) -> dict[str, Any]:
    from awsgd_rl.plots_panels import Curve, curve_panels

    success: dict[str, dict[str, Curve]] = {}
    failure: dict[str, dict[str, Curve]] = {}
    by_steps: dict[str, dict[str, Curve]] = {}
    maps = {row["preset"]: row["maps"] for row in rows if row["algorithm"] == "awsgd"}
    floor = 0.1
    for row in rows:
        panel = f"{row['preset']} ({maps[row['preset']]} maps)"
        label = TITLES[row["algorithm"]].title
        band = _band(row, "curve")
        steps = np.array(row["curve_steps"], dtype=np.float64)
        by_steps.setdefault(panel, {})[label] = Curve(steps, band)
        if row["trials"] is not None:  # Stable-Baselines3's agents were given steps
            width = row["trials"] / BINS
            middles = width * (np.arange(BINS) + 0.5)
            success.setdefault(panel, {})[label] = Curve(middles, band)
            failed = Curve(width * WIDE_MIDDLES, _band(row, "failures"))
            failure.setdefault(panel, {})[label] = failed
            floor = min(floor, 0.5 / (row["maps"] * width * WIDE_BINS[-1]))
    common: dict[str, Any] = {"subtitle": f"regime {regime}; bands: 95% intervals over maps"}
    return {
        f"learning-{regime}": curve_panels(
            success,
            title="Success of the target policy while it learns",
            xlabel="trials learned from",
            ylabel="success probability",
            **common,
        ),
        f"failures-{regime}": curve_panels(
            failure,
            title="Failure probability of the target policy while it learns",
            xlabel="trials learned from, log scale",
            ylabel="failure probability, log scale",
            floor=floor,
            log_x=True,
            **common,
        ),
        f"steps-{regime}": curve_panels(
            by_steps,
            title="Success over environment steps",
            xlabel="environment steps, log scale (mean over maps)",
            ylabel="success probability",
            log_x=True,
            **common,
        ),
    }


def _band(row: Mapping[str, Any], name: str) -> Band:
    return Band(*(np.array([_number(value) for value in row[f"{name}{end}"]]) for end in ENDS))


def _number(value: float | None) -> float:
    return np.nan if value is None else value  # JSON has no NaN
