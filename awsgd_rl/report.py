"""One page for one or more run folders: figures, tables, settings, and how to run it again.

The page is a single file that needs nothing else: its curves are drawn by a copy of plotly.js in it
(5 MB), its maps by a script of its own, figures are embedded as images. Every text that comes from
a folder is escaped, its numbers travel as JSON that cannot end the element it stands in, and the
page's security policy lets nothing run but those scripts and nothing be fetched.
"""

import base64
import hashlib
import json
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from awsgd_rl.report_curves import (
    Chart,
    history_charts,
    overlays,
    plotly_figure,
    result_charts,
    task_of,
)
from awsgd_rl.report_maps import LINEAR_WEIGHTS, recording_data
from awsgd_rl.report_script import SCRIPT
from awsgd_rl.report_snapshots import Recording, read_history, read_recording
from awsgd_rl.report_style import STYLE
from awsgd_rl.report_tables import (
    command_line,
    details,
    rows_table,
    summary_tables,
    text,
    value_table,
)
from awsgd_rl.runs import RESULTS_FILE, atomic_path, is_run, read_config, read_results

__all__ = ["command_line", "report_path", "write_report"]

_DEFAULT_NAME: Final = "report.html"
_MOST_OVERLAID: Final = 12
_UNFINISHED: Final[dict[str, Any]] = {
    **dict.fromkeys(("name", "version", "started", "device"), "unknown"),
    "seconds": None,
    "rows": [],
    "summary": {},
}


class _Run(NamedTuple):
    """What a folder holds, read and checked."""

    folder: Path
    name: str
    results: dict[str, Any]
    charts: list[Chart]
    training: list[Chart]
    recording: Recording | None
    finished: bool


class _Data:
    """The numbers that the page's script draws, by the id of their element."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.recordings: dict[str, Any] = {}


def write_report(folders: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one HTML page about runs; return its path.

    Args:
        folders: run folders, one or several, shown in this order.
        out: the file to write, as `report_path` takes it.

    Raises:
        ValueError: no folder is given, or one holds no results or damaged ones; nothing is written.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(f) for f in folders]
    target = report_path(paths, out)
    runs = [_read(path) for path in paths]
    if not target.parent.is_dir():
        raise ValueError(
            f"no folder {str(target.parent)!r} to write the report into: make it first"
        )
    page = _page(runs)
    with atomic_path(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def report_path(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Return the file that a report about these folders is written to.

    Args:
        folders: the run folders, at least one.
        out: a file, which gets the suffix .html if it has no such one, or a folder that is there.
            Default: the first run folder.

    Raises:
        ValueError: no folder is given.
    """
    if not folders:
        raise ValueError("got no run folder, expected at least one to report on")
    path = Path(folders[0]) if out is None else Path(out)
    if out is None or path.is_dir():
        return path / _DEFAULT_NAME
    known = path.suffix.lower() in (".html", ".htm")
    return path if known else path.with_name(f"{path.name}.html")


def _read(folder: Path) -> _Run:
    history = read_history(folder) if folder.is_dir() else None
    finished = history is None or (folder / RESULTS_FILE).exists() or not is_run(folder)
    # What Ctrl-C left can be looked at too.
    results = read_results(folder) if finished else {**_UNFINISHED, **read_config(folder)}
    return _Run(
        folder,
        folder.resolve().name,
        results,
        result_charts(results),
        [] if history is None else history_charts(history, _batch_size(results)),
        read_recording(folder),
        finished,
    )


def _batch_size(results: Mapping[str, Any]) -> int | None:
    config = results["config"]
    size = config.get("batch_size") if isinstance(config, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _page(runs: Sequence[_Run]) -> str:
    data = _Data()
    names = _distinct([run.name for run in runs])
    colors: dict[str, int] = {}
    named = list(zip(runs, names, strict=True))
    sections = [_section(run, name, k, data, colors) for k, (run, name) in enumerate(named)]
    shared = overlays(
        [(name, task_of(_config(run)), [*run.charts, *run.training]) for run, name in named]
    )
    top = ""
    if len(runs) > 1:
        links = (f'<li><a href="#run{k}">{text(name)}</a></li>' for k, name in enumerate(names))
        top = f'<nav aria-label="runs"><ul>{"".join(links)}</ul></nav>'
    if shared:
        plots = _plots(shared[:_MOST_OVERLAID], "shared", data, {})
        top += f"<section><h2>All runs together</h2>{plots}</section>\n"
    title = "awsgd-rl: " + ", ".join(names)
    scripts = _scripts(data)
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    elements = "".join(f"<script>{script}</script>\n" for script in scripts)
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src {allowed}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{top}{''.join(sections)}"
        f"{_embedded('figure-data', data.figures)}{_embedded('recording-data', data.recordings)}"
        f"{elements}</body>\n</html>\n"
    )


def _config(run: _Run) -> dict[str, Any]:
    config = run.results["config"]
    return config if isinstance(config, dict) else {}


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that occur twice with a number."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


def _section(run: _Run, name: str, k: int, data: _Data, colors: dict[str, int]) -> str:
    results = run.results
    seconds = results["seconds"]
    took = f"took {seconds:,.1f} s" if isinstance(seconds, numbers.Real) else "took unknown time"
    about = (
        f"{results['name']}, version {results['version']}, on {results['device']}, "
        f"started {results['started']}, {took}"
    )
    stopped = "" if run.finished else " <b>This run was stopped before its end.</b>"
    config = _config(run)
    command = command_line(str(results["name"]), config)
    parts = [
        f'<section id="run{k}"><h2>{text(name)}</h2>',
        f'<p class="about">{text(about)}{stopped}</p>',
        f'<p class="about">To run it again:</p><pre>{text(command)}</pre>',
        summary_tables(results["summary"]) if results["summary"] else "",
    ]
    if run.recording is not None:
        parts.append(_recording(run.recording, f"recording{k}", data))
    if run.training:
        plots = _plots(run.training, f"training{k}", data, dict(colors), training=True)
        parts.append(f"<h3>Over training</h3>{plots}")
    if run.charts:
        parts.append(f"<h3>Learning curves</h3>{_plots(run.charts, f'curve{k}', data, colors)}")
    figures = _figures(run.folder)
    if figures:
        parts.append("<h3>Figures</h3>")
        parts.extend(_figure(path) for path in figures)
    if results["rows"]:
        parts.append(details("Every row", rows_table(results["rows"])))
    parts.append(details("Settings", value_table(["setting", "value"], list(config.items()))))
    return "\n".join([*parts, "</section>\n"])


def _plots(
    charts: Sequence[Chart],
    prefix: str,
    data: _Data,
    colors: dict[str, int],
    *,
    training: bool = False,
) -> str:
    """Return the places of charts, and put what is drawn there into `data`."""
    figures = []
    for k, chart in enumerate(charts):
        name = f"{prefix}-{k}"
        data.figures[name] = plotly_figure(chart, colors)
        linked = ' data-training=""' if training else ""
        curves = ", ".join(series.name for series in chart.series)
        label = f"{chart.ylabel} over {chart.xlabel}: {curves}"
        figures.append(
            f'<figure><div class="plot" id="{name}" role="img" aria-label="{text(label)}"{linked}>'
            "</div></figure>"
        )
    bands = sorted({chart.band for chart in charts if any(s.low is not None for s in chart.series)})
    note = f"Bands: {'; '.join(bands)}. " if bands else ""
    note += "Drag to zoom, double-click to go back; click a name to hide its curve."
    box = (
        '<p class="failures"><label><input type="checkbox"> failures, on a log scale, in place of '
        "success</label></p>"
        if any(chart.kind == "success" for chart in charts)
        else ""
    )
    return (
        f'<div class="curves">{box}<div class="plots">{"".join(figures)}</div>'
        f'<p class="about">{text(note)}</p></div>'
    )


def _recording(recording: Recording, name: str, data: _Data) -> str:
    """Return the maps' places and controls, and put what is drawn there into `data`."""
    content = recording_data(recording)
    data.recordings[name] = content
    last = len(content["frames"]) - 1
    maps = [("P_w", "target policy"), ("Q_τ", "exploration policy")]
    maps = maps[: max(len(frame["policies"]) for frame in content["frames"])]
    figures = [
        f"<figure><figcaption><b>{short}</b>, {what}<br><span></span></figcaption>"
        f'<canvas role="img" data-name="{short}"></canvas></figure>'
        for short, what in [*maps, ("Trajectories", "coloured by weight")]
    ]
    heaviest = content["weight"]
    lightest = "0" if heaviest <= LINEAR_WEIGHTS else "0.001, log scale,"
    return f"""<h3>The policies while they learned</h3>
<div class="recording" id="{name}">
<div class="controls"><button type="button">Play</button>
<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="moment of training">
<output></output></div>
<div class="maps">{"".join(figures)}</div>
<p class="readout"></p>
<div class="scales"><span>visits an episode: 0.01 <span class="bar heat"></span> 10</span>
<span>importance weight p/q: {lightest} <span class="bar weight"></span> {heaviest:.3g}</span>
<span>▢ start, <b>★</b> goal, <b>×</b> trap; arrows: the mean move</span></div>
<p class="about">Move the slider by mouse or by the arrow keys; a click on a curve below moves it
too. Failure is the probability to end elsewhere than in a goal, computed from the policy.</p>
<details><summary>The trajectories one by one</summary><div class="wide">
<table class="drawn"><thead><tr><th></th><th>weight</th><th>drawn by</th><th>steps</th><th>end</th>
</tr></thead><tbody></tbody></table></div></details>
</div>"""


def _scripts(data: _Data) -> list[str]:
    if not data.figures and not data.recordings:
        return []
    scripts = [SCRIPT]
    if data.figures:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    return scripts


def _embedded(name: str, content: Mapping[str, Any]) -> str:
    if not content:
        return ""
    written = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":  # "</script>" or "<!--" in a name would end or change the element
        written = written.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{written}</script>\n'


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


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
    return f'<img alt="{text(path.stem)}" src="data:image/{kind};base64,{data}">'
