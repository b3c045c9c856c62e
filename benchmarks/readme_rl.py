"""Tables of the results of learned exploration."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from awsgd_rl.benchmarks.readme_tables import markdown_table, read_results, with_interval
from awsgd_rl.benchmarks.trial import ALGORITHMS

PRESETS: Final = {
    "15/9": "15×15, 9 traps",
    "50/10": "50×50, 10 traps",
    "50/25": "50×50, 25 traps",
    "80/40": "80×80, 40 traps",
    "seed-15": "15×15, 1 trap",
    "seed-50": "50×50, 2 traps",
    "seed-80": "80×80, 4 traps",
    "50/50": "50×50, 50 traps",
    "full-50": "50×50, 100 traps",
    "full-80": "80×80, 256 traps",
}
_RATIOS: Final = {
    "failure_ratio": "on-policy, one update",
    "failure_ratio_equal_updates": "on-policy, as many updates",
    "failure_ratio_uniform_replay": "uniform replay",
}


def _ratios(root: Path, regime: str) -> str:
    results = read_results(root, "learning" if regime == "strong" else "learning-paper")
    summary = results["summary"]
    maps = {row["preset"]: row["maps"] for row in results["rows"] if row["algorithm"] == "awsgd"}
    rows = [
        [
            title,
            str(maps[preset]),
            f"{summary[f'{regime}.{preset}.awsgd.success_mean']:.3f}",
            *(with_interval(summary, f"{regime}.{preset}.{name}", 2) for name in _RATIOS),
        ]
        for preset, title in PRESETS.items()
        if preset in maps
    ]
    return markdown_table(["map", "maps", "AW-SGD's success", *_RATIOS.values()], rows)


def _successes(root: Path, number: str) -> str:
    results = read_results(root, "learning")
    summary, rows, regime = results["summary"], results["rows"], "strong"
    # Stable-Baselines3's agents were given steps, not trials: `equal-steps` has them.
    labels = list(dict.fromkeys(row["algorithm"] for row in rows if row["trials"] is not None))
    table = []
    for preset, title in PRESETS.items():
        maps = [row["maps"] for row in rows if row["preset"] == preset]
        if maps:
            keys = [f"{regime}.{preset}.{label}.{number}" for label in labels]
            cells = [with_interval(summary, key) if key in summary else "" for key in keys]
            table.append([title, str(maps[0]), *cells])
    return markdown_table(["map", "maps", *(ALGORITHMS[label].title for label in labels)], table)


def _before_learning(root: Path) -> str:
    summary = read_results(root, "learning-paper")["summary"]
    rows = []
    for preset, title in PRESETS.items():
        key = f"paper.{preset}.before_learning"
        if f"{key}.success" in summary:
            success, spread = (summary[f"{key}.{name}"] for name in ("success", "return_std"))
            rows.append([title, f"{success:.2g}", f"{spread:.{0 if spread >= 10 else 1}f}"])
    return markdown_table(["map", "success", "standard deviation of the return"], rows)


def _equal_steps(root: Path) -> str:
    results = read_results(root, "learning")
    summary = results["summary"]
    table = []
    for row in results["rows"]:
        if row["algorithm"] == "a2c":
            key = f"strong.{row['preset']}"
            table.append(
                [
                    PRESETS[row["preset"]],
                    f"{row['steps']:,}",
                    str(row["maps"]),
                    with_interval(summary, f"{key}.awsgd.success_at_equal_steps"),
                    *(with_interval(summary, f"{key}.{a}.success_final") for a in ("a2c", "ppo")),
                ]
            )
    head = ["map", "steps", "maps of SB3", "AW-SGD by then", "A2C (SB3)", "PPO (SB3)"]
    return markdown_table(head, table)


def _seconds(root: Path) -> str:
    summary = read_results(root, "learning")["summary"]
    labels = ("awsgd", "uniform-replay", "reinforce", "reinforce-equal")
    rows = [
        [
            title,
            *(f"{summary[f'strong.{preset}.{label}.seconds_mean']:.1f}" for label in labels),
            f"{summary[f'strong.{preset}.awsgd.steps_mean'] / 1e3:,.0f}",
        ]
        for preset, title in PRESETS.items()
        if f"strong.{preset}.failure_ratio" in summary
    ]
    titles = [f"{ALGORITHMS[label].title}, s" for label in labels]
    return markdown_table(["map", *titles, "AW-SGD's thousand steps"], rows)


def _comparison(root: Path, name: str) -> str:
    summary = read_results(root, name)["summary"]
    rows = [
        [
            algorithm.title,
            with_interval(summary, f"{label}.success_mean", 4),
            with_interval(summary, f"{label}.success_final", 4),
        ]
        for label, algorithm in ALGORITHMS.items()
        if f"{label}.success_mean" in summary
    ]
    return markdown_table(["agent", "success over all trials", "at the end"], rows)


def _evaluation(root: Path) -> str:
    summary = read_results(root, "evaluation")["summary"]
    rows = [
        [
            f"about {level}",
            with_interval(summary, f"episode_ratio_{key}", 0),
            f"{summary[f'episodes_{key}']:.0f}",
            f"{100 * summary[f'rmse_{key}']:.1f} %",
            with_interval(summary, f"coverage_{key}"),
        ]
        for level, key in (("0.01", "1e2"), ("0.001", "1e3"), ("0.0001", "1e4"))
    ]
    head = [
        "failure probability",
        "episodes, plain / ours",
        "ours",
        "true relative error",
        "coverage of the 95 % interval",
    ]
    return markdown_table(head, rows)


def _frozen(root: Path) -> str:
    summary = read_results(root, "frozen-variance")["summary"]
    titles = {
        "variance_ratio": "learned from 10,000 trajectories",
        "long": "learned from 100,000",
        "fitted": "fitted to 50,000 on-policy trajectories",
        "score_function": "moved by the score function (seed's rule), 10,000",
        "headroom": "headroom: the best that any proposal could do",
    }
    rows = [
        [
            title,
            with_interval(summary, f"{n}_geomean", 2),
            with_interval(summary, f"slip.{n}_geomean", 2),
        ]
        for n, title in titles.items()
    ]
    return markdown_table(["on-policy variance / variance", "no slips", "slips 0.1"], rows)


def _anatomy(root: Path) -> str:
    summary = read_results(root, "anatomy")["summary"]
    trials = (50, 100, 200, 400, 800, 1600, 3200)
    titles = {
        "variance_ratio": "on-policy variance / mixture's",
        "headroom": "headroom",
        "bias": "bias of the critic's gradient / gradient",
        "cosine": "cosine with the exact gradient",
        "noise": "noise of a fresh batch / gradient",
        "noise_returns": "the same of the returns' gradient",
        "effective_draws": "trajectories drawn, in effect",
    }
    rows = [
        [title, *(f"{summary[f'{name}_{n}']:.3g}" for n in trials)]
        for name, title in titles.items()
    ]
    return markdown_table(["after trials", *(f"{n:,}" for n in trials)], rows)


def _control(root: Path) -> str:
    from awsgd_rl.benchmarks.control import ALGORITHMS as AGENTS
    from awsgd_rl.benchmarks.control import STEPS

    summary = read_results(root, "control")["summary"]
    rows = [
        [
            env_id,
            title,
            *(
                with_interval(summary, f"{env_id}.{algorithm}.{name}", 0)
                for name in ("return_mean", "return_final")
            ),
            f"{summary[f'{env_id}.{algorithm}.seconds_mean']:.0f}",
        ]
        for env_id in STEPS
        for algorithm, title in AGENTS.items()
        if f"{env_id}.{algorithm}.return_mean" in summary
    ]
    return markdown_table(["task", "agent", "return, all training", "at the end", "s"], rows)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "ratios-strong": lambda root: _ratios(root, "strong"),
    "before-learning": _before_learning,
    "ratios-paper": lambda root: _ratios(root, "paper"),
    "success-strong": lambda root: _successes(root, "success_mean"),
    "final-strong": lambda root: _successes(root, "success_final"),
    "iqm-strong": lambda root: _successes(root, "success_iqm"),
    "equal-steps": _equal_steps,
    "seconds": _seconds,
    "parts-15-9": lambda root: _comparison(root, "parts-15-9"),
    "parts-50-25": lambda root: _comparison(root, "parts-50-25"),
    "variants": lambda root: _comparison(root, "compare-15-9-variants"),
    "evaluation": _evaluation,
    "frozen-variance": _frozen,
    "anatomy": _anatomy,
    "control": _control,
}
