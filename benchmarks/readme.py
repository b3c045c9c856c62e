"""The tables of README.md and docs/, made from the committed results.

    python -m awsgd_rl.benchmarks.readme      (or `make readme`, from the repository's root)

What stands between `<!-- NAME -->` and `<!-- end -->` is replaced by the table of that name, so
that no figure is ever typed. A test checks that nothing would change.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from awsgd_rl.benchmarks.trial import ALGORITHMS

PAGES: Final = ("README.md", "docs/exploration.md")
RESULTS: Final = Path("benchmarks") / "results"

PRESETS: Final = {
    "15/9": "15×15, 9 traps",
    "50/10": "50×50, 10 traps",
    "50/25": "50×50, 25 traps",
    "80/40": "80×80, 40 traps",
    "seed-15": "15×15, 1 trap",
    "seed-50": "50×50, 2 traps",
    "seed-80": "80×80, 4 traps",
}
_RATIOS: Final = {
    "failure_ratio": "on-policy, one update",
    "failure_ratio_equal_updates": "on-policy, as many updates",
    "failure_ratio_uniform_replay": "uniform replay",
}
_MARKED: Final = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(root: Path = Path()) -> None:
    """Write the tables into the pages under `root`."""
    for page in PAGES:
        path = root / page
        path.write_text(filled(path.read_text(encoding="utf-8"), root), encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")


def filled(text: str, root: Path) -> str:
    """Return a page with its tables made anew.

    Raises:
        KeyError: there is no table of that name, or the results lack a number.
    """
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]](root) + "\n" + found[3], text)


def _read(root: Path, name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((root / RESULTS / name / "results.json").read_text())
    return results


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(summary: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    value, low, high = (summary[name + end] for end in ("", "_low", "_high"))
    return f"{_number(value, digits)} [{_number(low, digits)}, {_number(high, digits)}]"


def _number(value: float | None, digits: int) -> str:
    # Several digits of a small number, few of a large one.
    return "–" if value is None else f"{value:.{digits if value < 100 else 0}f}"


def _ratios(root: Path, regime: str) -> str:
    results = _read(root, "learning" if regime == "strong" else "learning-paper")
    summary = results["summary"]
    maps = {row["preset"]: row["maps"] for row in results["rows"] if row["algorithm"] == "awsgd"}
    rows = [
        [
            title,
            str(maps[preset]),
            f"{summary[f'{regime}.{preset}.awsgd.success_mean']:.3f}",
            *(_interval(summary, f"{regime}.{preset}.{name}", 2) for name in _RATIOS),
        ]
        for preset, title in PRESETS.items()
        if preset in maps
    ]
    return _table(["map", "maps", "AW-SGD's success", *_RATIOS.values()], rows)


def _successes(root: Path, number: str) -> str:
    results = _read(root, "learning")
    summary, rows, regime = results["summary"], results["rows"], "strong"
    # Stable-Baselines3's agents were given steps, not trials: `equal-steps` has them.
    labels = list(dict.fromkeys(row["algorithm"] for row in rows if row["trials"] is not None))
    table = []
    for preset, title in PRESETS.items():
        maps = [row["maps"] for row in rows if row["preset"] == preset]
        if maps:
            keys = [f"{regime}.{preset}.{label}.{number}" for label in labels]
            cells = [_interval(summary, key) if key in summary else "" for key in keys]
            table.append([title, str(maps[0]), *cells])
    return _table(["map", "maps", *(ALGORITHMS[label].title for label in labels)], table)


def _equal_steps(root: Path) -> str:
    results = _read(root, "learning")
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
                    _interval(summary, f"{key}.awsgd.success_at_equal_steps"),
                    *(_interval(summary, f"{key}.{a}.success_final") for a in ("a2c", "ppo")),
                ]
            )
    head = ["map", "steps", "maps of SB3", "AW-SGD by then", "A2C (SB3)", "PPO (SB3)"]
    return _table(head, table)


def _seconds(root: Path) -> str:
    summary = _read(root, "learning")["summary"]
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
    return _table(["map", *titles, "AW-SGD's thousand steps"], rows)


def _comparison(root: Path, name: str) -> str:
    summary = _read(root, name)["summary"]
    rows = [
        [
            algorithm.title,
            _interval(summary, f"{label}.success_mean", 4),
            _interval(summary, f"{label}.success_final", 4),
        ]
        for label, algorithm in ALGORITHMS.items()
        if f"{label}.success_mean" in summary
    ]
    return _table(["agent", "success over all trials", "at the end"], rows)


def _evaluation(root: Path) -> str:
    summary = _read(root, "evaluation")["summary"]
    rows = [
        [
            f"about {level}",
            _interval(summary, f"episode_ratio_{key}", 0),
            f"{summary[f'episodes_{key}']:.0f}",
            f"{100 * summary[f'rmse_{key}']:.1f} %",
            _interval(summary, f"coverage_{key}"),
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
    return _table(head, rows)


def _frozen(root: Path) -> str:
    summary = _read(root, "frozen-variance")["summary"]
    titles = {
        "variance_ratio": "learned from 10,000 trajectories",
        "long": "learned from 100,000",
        "fitted": "fitted to 50,000 on-policy trajectories",
        "score_function": "moved by the score function (seed's rule), 10,000",
        "headroom": "headroom: the best that any proposal could do",
    }
    rows = [
        [title, _interval(summary, f"{n}_geomean", 2), _interval(summary, f"slip.{n}_geomean", 2)]
        for n, title in titles.items()
    ]
    return _table(["on-policy variance / variance", "no slips", "slips 0.1"], rows)


def _anatomy(root: Path) -> str:
    summary = _read(root, "anatomy")["summary"]
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
    return _table(["after trials", *(f"{n:,}" for n in trials)], rows)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "ratios-strong": lambda root: _ratios(root, "strong"),
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
}
"""Every table, by name: what makes it from the results under a repository's root."""


if __name__ == "__main__":
    main()
