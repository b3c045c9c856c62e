"""The interactive curves of a report: what a run's rows or its history say, as Plotly figures.

A chart is made from numbers alone (`Chart`), so that charts of several runs can be laid over each
other; `plotly_figure` turns one into the JSON that Plotly draws. Plotly itself is only embedded.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.report_snapshots import History, is_number
from awsgd_rl.statistics import mean_band

Floats = NDArray[np.float64]

PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07A00", "#3A9BD0", "#000000")
"""That of the static figures, its two lightest colours darkened to be read on white."""
_DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash")
_LABELS: Final = ("algorithm", "method", "name")
_PANELS: Final = ("regime", "preset", "env", "task", "data")
_TASK: Final = ("env", "env_kwargs", "preset", "size", "traps", "slip")
_SMOOTHING_BINS: Final = 60

Kind = Literal["success", "number", "ratio"]


class Series(NamedTuple):
    """One curve: [K] places and values, and the ends of its band where it has one."""

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


class Chart(NamedTuple):
    """Curves on the same axes.

    Attributes:
        title: what stands over it; charts of other runs with this title and these axes share it.
        xlabel: the quantity across, with its unit.
        ylabel: the quantity upwards.
        kind: "success" is a probability, "ratio" is drawn on a log scale with a line at 1.
        band: what the bands are, for the caption.
        series: the curves.
    """

    title: str
    xlabel: str
    ylabel: str
    kind: Kind
    band: str
    series: list[Series]


def result_charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return the learning curves in a run's rows (`curve`), one chart a task.

    A row's own `curve_low` and `curve_high` are its band; rows that differ only in their map or
    seed become one curve, their mean with its 95% interval.
    """
    rows = [row for row in results["rows"] if isinstance(row, dict) and _is_curve(row.get("curve"))]
    groups: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    config = results["config"] if isinstance(results["config"], dict) else {}
    for row in rows:
        label = next((str(row[name]) for name in _LABELS if row.get(name) is not None), "curve")
        total, unit = _extent(row, config)
        metric = "success" if "success_mean" in row else "return"
        panel = tuple(str(row[name]) for name in _PANELS if row.get(name) is not None)
        groups.setdefault((panel, metric, total, unit), {}).setdefault(label, []).append(row)
    charts = []
    for (panel, metric, total, unit), curves in groups.items():
        # Rows without a known extent were not given the same trials: they fit no axis.
        if total is None:
            continue
        task = ", ".join(panel)
        charts.append(
            Chart(
                title=f"{metric} while learning" + (f": {task}" if task else ""),
                xlabel=f"{unit} learned from",
                ylabel="success probability" if metric == "success" else "return of an episode",
                kind="success" if metric == "success" else "number",
                band="95% intervals",
                series=[_series(label, same, total, metric) for label, same in curves.items()],
            )
        )
    return charts


def history_charts(history: History, batch_size: int | None) -> list[Chart]:
    """Return what an agent measured over training as charts.

    A curve is the mean (of ratios, which single batches throw far off, the median) of the batches
    between two points, its band the range of four fifths of them.

    Args:
        history: [K] a batch, or some, under each name, `episodes` among them.
        batch_size: episodes of a batch, the largest effective sample size; None if not known.
    """
    if batch_size is not None and "ess" in history:
        history = {**history, "ess": history["ess"] / batch_size}
    share, of = ("share of the batch", " / batch size") if batch_size else ("episodes", "")
    wanted: list[tuple[str, str, str, Kind]] = [
        ("success", "success of P_w", "success probability", "success"),
        ("return", "return", "return of an episode", "number"),
        ("variance_ratio", "variance of on-policy draws / ours", "variance ratio", "ratio"),
        ("headroom", "headroom: on-policy / best second moment", "headroom", "ratio"),
        ("ess", f"effective sample size{of}", share, "number"),
        ("max_weight", "largest importance weight of a batch", "weight p/q", "number"),
    ]
    charts = []
    for name, title, ylabel, kind in wanted:
        values = history.get(name)
        known = np.isfinite(values) if values is not None else np.zeros(0, dtype=bool)
        if values is None or known.sum() < 2:
            continue
        series = _smooth(ylabel, history["episodes"][known], values[known], median=kind == "ratio")
        charts.append(
            Chart(
                title=title,
                xlabel="episodes learned from",
                ylabel=ylabel,
                kind=kind,
                band="the middle four fifths of the batches",
                series=[series],
            )
        )
    return charts


def task_of(config: Mapping[str, Any]) -> str:
    """Return what a run's curves are of: runs on another task have none in common with it."""
    return repr([config.get(name) for name in _TASK])


def overlays(runs: Sequence[tuple[str, str, Sequence[Chart]]]) -> list[Chart]:
    """Return the charts that two or more runs have, their curves on the same axes.

    Args:
        runs: each run's name, its task, and its charts.
    """
    shared: dict[tuple[str, ...], list[tuple[str, Chart]]] = {}
    for name, task, charts in runs:
        for chart in charts:
            key = (task, chart.title, chart.xlabel, chart.ylabel)
            shared.setdefault(key, []).append((name, chart))
    return [
        found[0][1]._replace(
            series=[
                # A run's single curve is named by the run.
                series._replace(name=name if len(chart.series) == 1 else f"{series.name} · {name}")
                for name, chart in found
                for series in chart.series
            ]
        )
        for found in shared.values()
        if len(found) > 1
    ]


def plotly_figure(chart: Chart, colors: dict[str, int]) -> dict[str, Any]:
    """Return a chart as Plotly's traces and layout.

    Args:
        chart: what to draw.
        colors: number of each curve's colour by its name; names that are new are added.
    """
    traces: list[dict[str, Any]] = []
    for series in chart.series:
        number = colors.setdefault(series.name, len(colors))
        color = PALETTE[number % len(PALETTE)]
        dash = _DASHES[number // len(PALETTE) % len(_DASHES)]
        common = {"x": _rounded(series.x), "legendgroup": series.name, "mode": "lines"}
        if series.low is not None and series.high is not None:
            edge = {**common, "showlegend": False, "hoverinfo": "skip", "line": {"width": 0}}
            traces.append({**edge, "y": _rounded(series.low), "meta": "low"})
            fill = {"fill": "tonexty", "fillcolor": f"{color}26"}
            traces.append({**edge, **fill, "y": _rounded(series.high), "meta": "high"})
        line = {"color": color, "width": 2, "dash": dash}
        traces.append(
            {**common, "name": _plain(series.name), "y": _rounded(series.y), "line": line}
        )
    grid = {"gridcolor": "#E4E4E4", "zeroline": False, "linecolor": "#8A8A8A", "ticks": "outside"}
    yaxis: dict[str, Any] = {**grid, "automargin": True, "title": {"text": _plain(chart.ylabel)}}
    shapes = []
    if chart.kind == "success":
        yaxis |= {"range": [0, 1.01], "tickformat": ".0%", "hoverformat": ".2%"}
    elif chart.kind == "ratio":
        yaxis |= {"type": "log", "hoverformat": ".3g", "tickformat": "~g", "dtick": "D2"}
        line = {"color": "#555555", "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1})
        shapes[-1]["line"] = line
    title = _plain(chart.title[:1].upper() + chart.title[1:])
    xlabel = _plain(f"{chart.xlabel}, log scale")
    layout = {
        "title": {"text": title, "x": 0, "xref": "paper"},
        "xaxis": {**grid, "type": "log", "dtick": "D2", "title": {"text": xlabel}},
        "yaxis": yaxis,
        "shapes": shapes,
        "showlegend": len(chart.series) > 1,
    }
    return {"kind": chart.kind, "traces": traces, "layout": layout}


def _series(label: str, rows: list[Mapping[str, Any]], total: float, metric: str) -> Series:
    curves = [np.asarray(row["curve"], dtype=np.float64) for row in rows]
    length = min(len(curve) for curve in curves)
    x = total * (np.arange(length) + 0.5) / length
    low, high = rows[0].get("curve_low"), rows[0].get("curve_high")
    if len(rows) > 1:
        bounds = (0.0, 1.0) if metric == "success" else (-np.inf, np.inf)
        band = mean_band(np.stack([curve[:length] for curve in curves]), bounds=bounds)
        return Series(label, x, *band)
    if _is_curve(low) and _is_curve(high) and len(low) == len(high) == length:
        return Series(label, x, curves[0], np.asarray(low, float), np.asarray(high, float))
    return Series(label, x, curves[0])


def _extent(row: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return how much a curve's last point has learned from, and the unit; None if not told."""
    for source, name, unit in (
        (row, "trials", "episodes"),
        (row, "limit", "environment steps"),
        (config, "steps", "environment steps"),
        (config, "episodes", "episodes"),
    ):
        value = source.get(name)
        if is_number(value) and value > 0:
            return float(value), unit
        if name in source and source is row:
            return None, unit
    return None, "episodes"


def _smooth(name: str, x: Floats, y: Floats, *, median: bool) -> Series:
    """Return [K] values in bins that widen as the log scale does, with the spread in each."""
    edges = np.unique(np.geomspace(1, len(x), _SMOOTHING_BINS).astype(np.int64))
    begins = np.concatenate([[0], edges[:-1]])
    parts = [y[begin:end] for begin, end in zip(begins, edges, strict=True)]
    middle = np.median if median else np.mean
    low, high = (np.array([np.quantile(part, at) for part in parts]) for at in (0.1, 0.9))
    return Series(name, x[edges - 1], np.array([middle(part) for part in parts]), low, high)


def _is_curve(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) > 1 and all(is_number(v) for v in value)


def _plain(name: str) -> str:
    # Plotly reads tags in its texts, links among them.
    return html.escape(name, quote=False)


def _rounded(values: Floats) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
