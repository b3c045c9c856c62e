"""The report: everything is on the page, nothing on it runs, and damaged runs are refused."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from awsgd_rl import cli_report, cli_train
from awsgd_rl.agents import AWSGDConfig, ReinforceConfig
from awsgd_rl.agents.snapshots import write_history
from awsgd_rl.agents.stable_baselines_configs import CONFIGS
from awsgd_rl.cli_common import UsageError
from awsgd_rl.report import command_line, report_path, write_report
from awsgd_rl.report_curves import history_charts, overlays, plotly_figure, result_charts
from awsgd_rl.report_tables import SWITCHED_OFF, number
from awsgd_rl.runs import RunFolder
from awsgd_rl.statistics import mean_interval

SUMMARY = {
    "awsgd.success_mean": 0.984,
    "awsgd.success_mean_low": 0.981,
    "awsgd.success_mean_high": 0.987,
    "reinforce.success_mean": 0.919,
    "failure_ratio": 5.06,
    "failure_ratio_low": None,
    "failure_ratio_high": float("nan"),
}
ROWS = [{"algorithm": "awsgd", "map": 3, "steps": 1_234_567, "curve": [0.111222, 0.5]}]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text, self.ids, self.scripts = [], [], "", [], []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag
        self.ids.append(dict(attributes).get("id"))
        if tag == "script":
            self.scripts.append([dict(attributes), ""])
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1][1] += data
        elif self.inside != "style":
            self.text += data

    def data(self, name):
        """What the page's script reads under that id."""
        (content,) = (text for about, text in self.scripts if about.get("id") == name)
        return json.loads(content)


LEARNED = [
    {"algorithm": name, "map": k, "success_mean": 0.5, "curve": [0.1 * k, 0.6, 1.0]}
    for name in ("awsgd", "reinforce")
    for k in (1, 2, 3)
]


def make_run(path, name="compare", config=None, rows=ROWS, summary=SUMMARY):
    folder = RunFolder.create(path, name=name, config=config or {"maps": 2, "algos": ["awsgd"]})
    folder.write_results(rows, summary, "cpu")
    return path


def test_a_run_is_shown_whole(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "learning.png").write_bytes(b"png")
    (run / "learning.svg").write_bytes(b"<svg/>")
    (run / "only.png").write_bytes(b"other")
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for expected in ("0.984 [0.981, 0.987]", "0.919", "5.06", "1,234,567", "success mean"):
        assert expected in " ".join(page.text.split()).replace(" ]", "]")
    assert "awsgd-rl compare --maps 2 --algos awsgd" in page.text
    assert "0.111222" not in page.text
    assert [image["alt"] for image in page.images] == ["learning", "only"]
    prefix, _, data = page.images[0]["src"].partition(",")
    assert prefix == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == b"<svg/>"


def test_the_page_needs_nothing_else(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    text = write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("section") == 2
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http:" not in text
    assert "https:" not in text
    assert "script-src 'none'" in text


def test_text_from_a_run_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    run = make_run(
        tmp_path / "<b>run",
        name=evil,
        config={evil: evil},
        rows=[{evil: evil}],
        summary={f"{evil}.{evil}": 1.0, evil: 2.0},
    )
    (run / 'a"onload="x.svg').write_bytes(b"<svg onload='alert(1)'/>")
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<b>run" not in text
    assert all(set(image) == {"alt", "src"} for image in page.images)
    assert page.text.count("alert(1)") >= 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no results.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"name": "compare"}', "it lacks"),
    ],
)
def test_damaged_runs_are_refused(tmp_path, content, message):
    good, bad = make_run(tmp_path / "good"), tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        write_report([good, bad])
    assert "\n" not in str(error.value)
    assert not (good / "report.html").exists()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="got no run folder"):
        write_report([])
    with pytest.raises(ValueError, match="make it first"):
        write_report(make_run(tmp_path / "run"), tmp_path / "absent" / "page.html")


def test_a_run_of_odd_values_is_still_shown(tmp_path):
    run = make_run(tmp_path / "run", rows=[], summary={})
    results = json.loads((run / "results.json").read_text())
    results.update(config=None, seconds=None, rows=["text", 3])
    (run / "results.json").write_text(json.dumps(results))
    assert "unknown time" in write_report(str(run)).read_text(encoding="utf-8")


def test_command_line_is_quoted():
    config = {"env_kwargs": '{"size": 4}', "quick": True, "debug": False, "out": None, "maps": 3}
    line = command_line("bench env-speed", config)
    assert line == """awsgd-rl bench env-speed --env-kwargs '{"size": 4}' --quick --maps 3"""


def test_command_line_of_what_is_positional_or_switched_off():
    assert command_line("evaluate", {"directory": "runs/a", "episodes": 5}) == (
        "awsgd-rl evaluate runs/a --episodes 5"
    )
    config = {"baseline": False, "critic": False, "reward_to_go": True, "double_q": False}
    assert command_line("train", config) == (
        "awsgd-rl train --no-baseline --no-critic --reward-to-go"
    )


def test_all_options_that_can_be_switched_off_are_known():
    classes = [AWSGDConfig, ReinforceConfig, *CONFIGS.values()]
    found = {
        field.name
        for config in classes
        for field in dataclasses.fields(config)
        if "bool" in str(field.type) and field.default is not False
    }
    assert found == set(SWITCHED_OFF)


def test_learning_curves_are_means_with_their_intervals(tmp_path):
    run = make_run(tmp_path / "run", config={"episodes": 300, "steps": None}, rows=LEARNED)
    (chart,) = result_charts({"rows": LEARNED, "config": {"episodes": 300, "steps": None}})
    assert (chart.kind, chart.xlabel) == ("success", "episodes learned from")
    assert [series.name for series in chart.series] == ["awsgd", "reinforce"]
    first = chart.series[0]
    np.testing.assert_allclose(first.x, [50, 150, 250])
    interval = mean_interval([0.1, 0.2, 0.3], bounds=(0, 1))
    np.testing.assert_allclose((first.y[0], first.low[0], first.high[0]), interval)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.ids.count("curve0-0") == 1
    figure = page.data("figure-data")["curve0-0"]
    assert [trace.get("name") for trace in figure["traces"]] == [
        *(None, None, "awsgd"),
        *(None, None, "reinforce"),
    ]
    assert figure["layout"]["title"]["text"] == "Success while learning"


def test_rows_that_hold_their_bands_are_drawn_by_task(tmp_path):
    bands = {"curve_low": [0.0, 0.5], "curve_high": [0.2, 0.9]}
    rows = [
        {"preset": preset, "algorithm": "a", "trials": 40, "success_mean": 1, "curve": [0.1, 0.7]}
        for preset in ("15/9", "50/25")
    ]
    rows[0].update(bands)
    rows += [{**rows[0], "algorithm": "ppo", "trials": None}]  # was given steps: no such axis
    rows += [{"env": "CartPole-v1", "algorithm": "a", "limit": 9, "curve": [1.0, None]}]
    rows += [{"env": "CartPole-v1", "algorithm": "a", "limit": 9, "curve": [10.0, 20.0]}]
    charts = result_charts({"rows": [*rows, "text"], "config": None})
    assert [chart.title for chart in charts] == [
        "success while learning: 15/9",
        "success while learning: 50/25",
        "return while learning: CartPole-v1",
    ]
    (banded,), (bare,), (returns,) = (chart.series for chart in charts)
    np.testing.assert_array_equal(banded.low, bands["curve_low"])
    assert bare.low is None
    np.testing.assert_array_equal(returns.y, [10.0, 20.0])
    assert charts[2].xlabel == "environment steps learned from"


def test_the_history_becomes_charts():
    batches = np.arange(1, 401)
    history = {
        "episodes": 10.0 * batches,
        "success": np.minimum(batches / 200, 1.0),
        "ess": np.full(400, 8.0),
        "variance_ratio": np.where(batches % 2, 2.0, 1e9 * (batches % 10 == 0) + 2.0),
        "headroom": np.full(400, np.nan),
    }
    charts = {chart.ylabel: chart for chart in history_charts(history, 10)}
    assert list(charts) == [
        "success probability",
        "variance ratio",
        "share of the batch",
    ]
    (size,) = charts["share of the batch"].series
    np.testing.assert_allclose(size.y, 0.8)
    (ratio,) = charts["variance ratio"].series
    np.testing.assert_allclose(ratio.y[-5:], 2.0)  # a median: single batches are thrown far off
    assert ratio.x[-1] == 4000
    (success,) = charts["success probability"].series
    assert (success.low <= success.y).all()
    assert (success.y <= success.high).all()
    figure = plotly_figure(charts["variance ratio"], {})
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert len(figure["layout"]["shapes"]) == 1


def test_runs_that_share_curves_are_laid_over_each_other(tmp_path):
    config = {"episodes": 300, "steps": None}
    runs = [make_run(tmp_path / name, config=config, rows=LEARNED) for name in ("a", "b")]
    runs.append(make_run(tmp_path / "c" / "a"))
    page = Page(write_report(runs, tmp_path / "page").read_text(encoding="utf-8"))
    figures = page.data("figure-data")
    assert set(figures) == {"shared-0", "curve0-0", "curve1-0"}
    names = [trace["name"] for trace in figures["shared-0"]["traces"] if "name" in trace]
    assert names == ["awsgd · a", "reinforce · a", "awsgd · b", "reinforce · b"]
    assert page.tags.count("section") == 4
    assert "a (2)" in page.text  # the third run has the first one's name
    assert {"run0", "run1", "run2"} <= set(page.ids)
    single = [
        chart._replace(series=chart.series[:1])
        for chart in result_charts({"rows": LEARNED, "config": config})
    ]
    (both,) = overlays(
        [("x", "t", single), ("y", "t", single), ("z", "t", []), ("w", "other task", single)]
    )
    assert [series.name for series in both.series] == ["x", "y"]


def test_names_cannot_leave_the_scripts(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    rows = [{**row, "algorithm": evil, "preset": evil} for row in LEARNED]
    run = make_run(tmp_path / "run", name=evil, config={"episodes": 300, evil: evil}, rows=rows)
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert [about.get("type") for about, _ in page.scripts] == ["application/json", None, None]
    assert text.count("</script>") == 3
    name = page.data("figure-data")["curve0-0"]["traces"][-1]["name"]
    assert name == evil.replace("<", "&lt;").replace(">", "&gt;")  # Plotly reads tags
    # Nothing but the two scripts may run.
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    allowed = [
        "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"
        for _, code in page.scripts[1:]
    ]
    assert policy.endswith("script-src " + " ".join(allowed))


def test_a_run_that_was_stopped_is_shown(tmp_path):
    folder = RunFolder.create(tmp_path / "run", name="train", config={"batch_size": 10})
    with pytest.raises(ValueError, match="the run has not finished"):
        write_report(folder.path)
    names = ("episodes", "success")
    write_history(folder.path, {name: [10.0, 20.0, 30.0] for name in names})
    page = Page(write_report(folder.path).read_text(encoding="utf-8"))
    assert "This run was stopped before its end." in page.text
    assert "training0-0" in page.ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "expected an object with a schema number"),
        ('{"schema": 2}', "of a newer version"),
        ('{"schema": 1, "episodes": [1, "2"]}', "holds what is no number"),
        ('{"schema": 1, "episodes": [1], "success": [1, 2]}', "expected lists of one length"),
        ('{"schema": 1, "success": [1]}', "expected lists of one length"),
        (json.dumps({"schema": 1, "episodes": [1] * 2001}), "at most 2000"),
        (" " * (8 << 20) + "{}", "expected at most"),
    ],
)
def test_a_damaged_history_is_refused(tmp_path, content, message):
    run = make_run(tmp_path / "run")
    (run / "history.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_where_the_report_goes(tmp_path):
    run = tmp_path / "run"
    assert report_path([run]) == run / "report.html"
    assert report_path([run], tmp_path) == tmp_path / "report.html"
    assert report_path([run], tmp_path / "name") == tmp_path / "name.html"
    assert report_path([run], tmp_path / "v1.2") == tmp_path / "v1.2.html"
    assert report_path([run], tmp_path / "page.HTM") == tmp_path / "page.HTM"
    assert write_report(make_run(run), tmp_path / "name") == tmp_path / "name.html"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "True"),
        (3, "3"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (589_401.2, "589,401"),
        (0.9999931, "0.9999931"),
        (0.99612, "0.99612"),
        (0.984, "0.984"),
        (5.0613, "5.061"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (["a", "<b>"], "a &lt;b&gt;"),
    ],
)
def test_numbers_have_as_many_digits_as_a_reader_wants(value, shown):
    assert number(value) == shown


def test_what_train_leaves_is_shown_with_its_maps(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--env-kwargs", '{"size": 4, "traps": 1}', "--total-episodes", "100", "--quiet"]
    cli_train.main([*options, "--eval-episodes", "5", "--out", str(run)])
    cli_report.main([str(run), "--out", str(tmp_path / "page")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'page.html'}\n"
    with pytest.raises(UsageError, match="pass --overwrite to replace it"):
        cli_report.main([str(run), "--out", str(tmp_path / "page")])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tags.count("canvas") == 3
    frames = page.data("recording-data")["recording0"]["frames"]
    assert [frame["episodes"] for frame in frames][:3] == [0, 10, 20]
    titles = [figure["layout"]["title"]["text"] for figure in page.data("figure-data").values()]
    assert titles == [
        "Success of P_w",
        "Return",
        "Variance of on-policy draws / ours",
        "Headroom: on-policy / best second moment",
        "Effective sample size / batch size",
        "Largest importance weight of a batch",
    ]
    (run / "snapshots" / "000000000010.safetensors").write_bytes(b"\x80\x04damaged")
    with pytest.raises(UsageError, match="is no snapshot of this run"):
        cli_report.main([str(run)])
    cli_train.main([*options, "--eval-episodes", "0", "--out", str(run), "--overwrite"])
    assert write_report(run).exists()
