"""The tables and the texts of a report, as HTML; whatever comes from a folder is escaped."""

import html
import math
import numbers
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

_MOST_ROWS: Final = 40  # of a table that is shown in full
_POSITIONAL: Final = ("directory",)
SWITCHED_OFF: Final = (
    "baseline",
    "critic",
    "normalise_observations",
    "normalize_advantage",
    "reward_to_go",
)
"""Options that are switched off by `--no-...`; all others that are true or false are off unless
they are given."""


def command_line(name: str, config: Mapping[str, Any]) -> str:
    """Return the command that makes a run again, from the name and config that its folder holds.

    Args:
        name: the command, such as "compare" or "bench env-speed".
        config: its settings; what is None is left at its default.
    """
    words = ["awsgd-rl", *name.split()]
    for key, value in config.items():
        if value is None or (value is False and key not in SWITCHED_OFF):
            continue
        if key not in _POSITIONAL:
            words.append(f"--{'no-' if value is False else ''}{key.replace('_', '-')}")
        if isinstance(value, bool):
            continue
        words.extend(str(item) for item in (value if isinstance(value, list) else [value]))
    return shlex.join(words)


def summary_tables(summary: Mapping[str, Any]) -> str:
    """Return names `<group>.<quantity>` as a table with a row a group, the others as a list."""
    ends = {f"{name}{end}" for name in summary for end in ("_low", "_high")}
    groups: dict[str, dict[str, str]] = {}
    alone = []
    for name in summary:
        if name in ends:
            continue
        group, _, quantity = name.rpartition(".")
        if group:
            groups.setdefault(group, {})[quantity] = _interval(summary, name)
        else:
            alone.append((text(name), _interval(summary, name)))
    tables = []
    if groups:
        quantities = list(dict.fromkeys(name for row in groups.values() for name in row))
        rows = [
            [text(group), *(row.get(name, "") for name in quantities)]
            for group, row in groups.items()
        ]
        tables.append(html_table(["", *(name.replace("_", " ") for name in quantities)], rows))
    if alone:
        tables.append(html_table(["", "value"], alone))
    intervals = " In brackets: 95% intervals." if ends & set(summary) else ""
    return "".join(tables) + (f'<p class="about">{intervals}</p>' if intervals else "")


def _interval(summary: Mapping[str, Any], name: str) -> str:
    value = f"<b>{number(summary[name])}</b>"
    low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
    if low is None and high is None:
        return value
    return f'{value} <span class="interval">[{number(low)}, {number(high)}]</span>'


def rows_table(rows: Sequence[Any]) -> str:
    """Return the rows' numbers and texts; curves and nested settings are left to the file."""
    records = [row for row in rows if isinstance(row, dict)]
    columns = [
        name
        for name in dict.fromkeys(name for row in records for name in row)
        if not any(isinstance(row.get(name), list | dict) for row in records)
    ]
    return value_table(columns, [[row.get(name) for name in columns] for row in records])


def value_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of values from a folder, of any kind."""
    return html_table(columns, [[number(value) for value in row] for row in rows])


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the columns' names are plain text."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    tall = " tall" if len(rows) > _MOST_ROWS else ""
    return (
        f'<div class="wide{tall}" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """Return HTML that is folded away under a title."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def number(value: object) -> str:
    """Return a value as text for HTML: numbers with as many digits as a reader wants."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return text(" ".join(map(str, value)) if isinstance(value, list) else value)
    real = float(value)
    if math.isfinite(real) and (abs(real) >= 1000 or (real.is_integer() and real)):
        return f"{real:,.0f}"
    if 0.99 < real < 1:  # what tells two good agents apart is how far they are from 1
        digits = f"{real:.{min(2 - math.floor(math.log10(1 - real)), 9)}f}"
        return digits.rstrip("0").rstrip(".")
    return f"{real:.4g}"


def text(value: object) -> str:
    """Return any value as text that HTML shows as it is."""
    return html.escape(str(value), quote=True)
