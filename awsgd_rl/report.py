"""One page for one or more run folders: figures, tables, settings, and how to run it again.

The page is a single file that needs nothing else and runs nothing: figures are embedded as images,
and every text that comes from a folder is escaped.
"""

import base64
import html
import numbers
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awsgd_rl.runs import atomic_path, read_results

__all__ = ["command_line", "write_report"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .interval { color: #666; font-size: .88em; }
img { max-width: 100%; height: auto; display: block; margin: 1.5rem 0; }
pre { background: #f5f5f5; padding: .7rem 1rem; overflow-x: auto; border-radius: 4px; }
summary { cursor: pointer; } .about { color: #555; }
"""


def write_report(folders: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one HTML page about runs; return its path.

    Args:
        folders: run folders, one or several, shown in this order.
        out: the file to write. Default: `report.html` in the first folder.

    Raises:
        ValueError: no folder is given, or one holds no results or damaged ones; nothing is written.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(f) for f in folders]
    if not paths:
        raise ValueError("got no run folder, expected at least one to report on")
    sections = [_section(path, read_results(path)) for path in paths]
    target = paths[0] / "report.html" if out is None else Path(out)
    if not target.parent.is_dir():
        raise ValueError(
            f"no folder {str(target.parent)!r} to write the report into: make it first"
        )
    title = "awsgd-rl: " + ", ".join(path.resolve().name for path in paths)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )
    with atomic_path(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def command_line(name: str, config: Mapping[str, Any]) -> str:
    """Return the command that makes a run again, from the name and config that its folder holds.

    Args:
        name: the command, such as "compare" or "bench env-speed".
        config: its settings; what is None or false is left at its default.
    """
    words = ["awsgd-rl", *name.split()]
    for key, value in config.items():
        if value is None or value is False:
            continue
        words.append(f"--{key.replace('_', '-')}")
        if value is True:
            continue
        words.extend(str(item) for item in (value if isinstance(value, list) else [value]))
    return shlex.join(words)


def _section(folder: Path, results: Mapping[str, Any]) -> str:
    seconds = results["seconds"]
    took = f"{seconds:,.1f} s" if isinstance(seconds, numbers.Real) else "unknown time"
    about = (
        f"{results['name']}, version {results['version']}, on {results['device']}, "
        f"started {results['started']}, took {took}"
    )
    config = results["config"] if isinstance(results["config"], dict) else {}
    return "\n".join(
        [
            f"<section><h2>{_text(folder.resolve().name)}</h2>",
            f'<p class="about">{_text(about)}</p>',
            f"<pre>{_text(command_line(str(results['name']), config))}</pre>",
            _summary_tables(results["summary"]),
            *(_figure(path) for path in _figures(folder)),
            _details("Every row", _rows_table(results["rows"])),
            _details("Settings", _table(["setting", "value"], list(config.items()))),
            "</section>\n",
        ]
    )


def _summary_tables(summary: Mapping[str, Any]) -> str:
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
            alone.append((_text(name), _interval(summary, name)))
    tables = []
    if groups:
        quantities = list(dict.fromkeys(name for row in groups.values() for name in row))
        rows = [
            [_text(group), *(row.get(name, "") for name in quantities)]
            for group, row in groups.items()
        ]
        tables.append(_html_table(["", *(name.replace("_", " ") for name in quantities)], rows))
    if alone:
        tables.append(_html_table(["", "value"], alone))
    intervals = " In brackets: 95% intervals." if ends & set(summary) else ""
    return "".join(tables) + (f'<p class="about">{intervals}</p>' if intervals else "")


def _interval(summary: Mapping[str, Any], name: str) -> str:
    value = f"<b>{_number(summary[name])}</b>"
    low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
    if low is None and high is None:
        return value
    return f'{value} <span class="interval">[{_number(low)}, {_number(high)}]</span>'


def _rows_table(rows: Sequence[Any]) -> str:
    """Return the rows' numbers and texts; curves and nested settings are left to the file."""
    records = [row for row in rows if isinstance(row, dict)]
    columns = [
        name
        for name in dict.fromkeys(name for row in records for name in row)
        if not any(isinstance(row.get(name), list | dict) for row in records)
    ]
    return _table(columns, [[row.get(name) for name in columns] for row in records])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return _html_table(columns, [[_number(value) for value in row] for row in rows])


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _figures(folder: Path) -> list[Path]:
    """Return the folder's figures by name, each once: as SVG where there is one."""
    found = sorted(
        [*folder.glob("*.png"), *folder.glob("*.svg"), *folder.glob("figures/*.[ps][nv]g")]
    )
    return list({path.with_suffix(""): path for path in found if path.is_file()}.values())


def _figure(path: Path) -> str:
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    # Inside <img>, unlike inline, an SVG cannot run anything.
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{_text(path.stem)}" src="data:image/{kind};base64,{data}">'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return _text(" ".join(map(str, value)) if isinstance(value, list) else value)
    number = float(value)
    return f"{number:,.0f}" if number.is_integer() and abs(number) >= 1 else f"{number:,.4g}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
