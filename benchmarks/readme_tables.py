"""What the tables of README.md and docs/ are made of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path("benchmarks") / "results"


def read_results(root: Path, name: str) -> dict[str, Any]:
    """Return the results of a bench, as they are committed."""
    results: dict[str, Any] = json.loads((root / RESULTS / name / "results.json").read_text())
    return results


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(summary: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """Return an estimate with its 95 % interval."""
    value, low, high = (summary[name + end] for end in ("", "_low", "_high"))
    return f"{rounded(value, digits)} [{rounded(low, digits)}, {rounded(high, digits)}]"


def rounded(value: float | None, digits: int) -> str:
    """Return a number; a dash where there is none."""
    # Several digits of a small number, few of a large one.
    return "–" if value is None else f"{value:.{digits if value < 100 else 0}f}"
