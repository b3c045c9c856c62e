"""The report: everything is on the page, nothing on it runs, and damaged runs are refused."""

import base64
import json
from html.parser import HTMLParser

import pytest

from awsgd_rl.report import command_line, write_report
from awsgd_rl.runs import RunFolder

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
        self.tags, self.images, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.text += data


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
    assert "http" not in text


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
