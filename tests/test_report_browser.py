"""The report in a real browser: it loads without an error, and its slider moves the map."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

import gymnasium as gym
import pytest

import awsgd_rl.envs  # noqa: F401 (registers the gridworld)
from awsgd_rl.agents import make_agent
from awsgd_rl.agents.snapshots import SnapshotRecorder, write_history
from awsgd_rl.report import write_report
from awsgd_rl.runs import RunFolder, read_results

CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH"),
]
SECONDS = 120.0
# The DevTools protocol is spoken on the descriptors 3 and 4.
LAUNCH = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ours[0], 3), os.dup2(ours[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
ENABLED = ("Runtime.enable", "Log.enable", "Page.enable", "Network.enable")


class Browser:
    """A headless browser with one page, driven by the DevTools protocol over a pipe."""

    def __init__(self, profile):
        here_read, there_write = os.pipe()
        there_read, here_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += [
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--window-size=1300,1000",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(there_read), str(there_write), CHROMIUM, *flags],
            pass_fds=(there_read, there_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there_read)
        os.close(there_write)
        self.read, self.write = here_read, here_write
        self.events, self.buffer, self.count, self.session = [], b"", 0, None

    def attach(self):
        target = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for method in ENABLED:
            self.send(method)

    def send(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda m: m.get("id") == self.count)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, wanted):
        deadline = time.monotonic() + SECONDS
        while True:
            while b"\0" not in self.buffer:
                ready, _, _ = select.select([self.read], [], [], deadline - time.monotonic())
                assert ready, "the browser does not answer"
                self.buffer += os.read(self.read, 1 << 20)
            text, _, self.buffer = self.buffer.partition(b"\0")
            message = json.loads(text)
            self.events.append(message)
            if wanted(message):
                return message

    def open(self, path):
        """Load a page; return once it is drawn."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        if not any(m.get("method") == "Page.loadEventFired" for m in self.events):
            self.wait(lambda m: m.get("method") == "Page.loadEventFired")
        self.settle()

    def run(self, expression):
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def settle(self):
        self.run("new Promise(done => setTimeout(() => requestAnimationFrame(done), 300))")

    def press(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)
        self.settle()

    def complaints(self):
        """Return all errors and warnings of the page so far."""
        errors = [m for m in self.events if m.get("method") == "Runtime.exceptionThrown"]
        for message in self.events:
            params = message.get("params", {})
            logged = message.get("method") == "Log.entryAdded"
            called = message.get("method") == "Runtime.consoleAPICalled"
            if (logged and params["entry"]["level"] in ("error", "warning")) or (
                called and params["type"] in ("error", "warning", "assert")
            ):
                errors.append(message)
        return errors

    def requests(self):
        sent = [m for m in self.events if m.get("method") == "Network.requestWillBeSent"]
        return {m["params"]["request"]["url"].partition(":")[0] for m in sent}

    def screenshot(self, path):
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.send(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.attach()
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def trained(browser, tmp_path_factory):
    """The browser, with the report on an agent that has learned in it."""
    path = tmp_path_factory.mktemp("runs") / "a </script><script>throw 1</script> name".replace(
        "/", "∕"
    )
    config = {"algo": "awsgd", "note": "</script><script>throw 2</script>", "batch_size": 10}
    folder = RunFolder.create(path, name="train", config=config)
    env = gym.make("awsgd_rl/TrapGridworld-v0", size=6, traps=3)
    agent = make_agent("awsgd", "TablePolicy", env, seed=0, device="cpu")
    recorder = SnapshotRecorder(path, agent, total=400, unit="episodes")
    agent.learn(total_episodes=400, callback=recorder.record)
    write_history(path, agent.history)
    rows = [
        {"algorithm": name, "map": k, "success_mean": 0.5, "curve": [0.1 * k, 0.5, 0.9]}
        for name in ("awsgd", "<img src=x onerror=alert(1)>")
        for k in (1, 2, 3)
    ]
    folder.config["episodes"] = 300
    folder.write_results(rows, {"awsgd.success_mean": 0.5}, "cpu")
    browser.open(write_report(path))
    return browser


CANVASES = "[...document.querySelectorAll('canvas')].map(c => c.toDataURL())"
SLIDER = "document.querySelector('input[type=range]')"
STATUS = "document.querySelector('.controls output').textContent"


def test_the_slider_moves_the_map(trained):
    browser = trained
    last = browser.run(f"Number({SLIDER}.max)")
    assert last > 10
    end = browser.run(CANVASES)
    assert len(end) == len(set(end)) == 3
    assert browser.run(STATUS).startswith("after 390 episodes")
    failures = "document.querySelector('figcaption span').textContent"
    learned = browser.run(failures)
    browser.run(f"{SLIDER}.focus()")
    browser.press("Home", 36)
    start = browser.run(CANVASES)
    assert all(a != b for a, b in zip(start, end, strict=True))
    assert browser.run(STATUS).startswith("after 0 episodes")
    assert browser.run(failures) != learned
    browser.press("ArrowRight", 39)
    assert browser.run(f"Number({SLIDER}.value)") == 1
    assert browser.run(STATUS).startswith("after 10 episodes")
    assert browser.run(CANVASES)[2] != start[2]
    browser.press("End", 35)
    assert browser.run(CANVASES) == end
    assert browser.complaints() == []


def test_trajectories_are_listed_by_weight_and_marked(trained):
    browser = trained
    browser.run("document.querySelector('.recording details').open = true")
    browser.settle()  # the page may get a scroll bar, and the maps another size
    cells = "[...document.querySelectorAll('.drawn tbody tr')].map(r => r.children[1].textContent)"
    weights = [float(weight) for weight in browser.run(cells)]
    assert len(weights) == 10
    assert weights == sorted(weights, reverse=True)
    before = browser.run(CANVASES)
    browser.run("document.querySelector('.drawn tbody tr').focus()")
    marked = browser.run(CANVASES)
    assert marked[:2] == before[:2]
    assert marked[2] != before[2]
    browser.run("document.querySelector('.recording').style.width = '900px'")
    browser.settle()
    row = "document.querySelector('.drawn tbody tr')"
    assert browser.run(f"document.activeElement === {row}")
    resized = browser.run(CANVASES)
    browser.run(f"{row}.blur()")
    assert browser.run(CANVASES)[2] != resized[2]
    browser.run("document.querySelector('.recording').style.width = ''")
    browser.settle()


def test_play_goes_through_all_moments(trained):
    browser = trained
    browser.run("document.querySelector('.controls button').click()")
    assert browser.run("document.querySelector('.controls button').textContent") == "Pause"
    assert browser.run(STATUS).startswith("after 0 episodes")
    browser.run(
        "new Promise(done => { const check = setInterval(() => {"
        f" if (Number({SLIDER}.value) >= 2) {{ clearInterval(check); done(); }} }}, 50); }})"
    )
    browser.run("document.querySelector('.controls button').click()")
    assert browser.run("document.querySelector('.controls button').textContent") == "Play"
    assert browser.complaints() == []


def test_the_curves_are_drawn_and_nothing_is_fetched(trained):
    browser = trained
    plots = browser.run("document.querySelectorAll('.plot').length")
    assert plots == 7
    drawn = (
        "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.js-line').length)"
    )
    assert all(count >= 1 for count in browser.run(drawn))
    # Two curves with the two ends of their bands.
    assert browser.run("document.querySelectorAll('#curve0-0 .scatterlayer .js-line').length") == 6
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.requests() <= {"file", "data", "blob"}
    title = "document.querySelector('#curve0-0 .ytitle').textContent"
    assert browser.run(title) == "success probability"
    browser.run("[...document.querySelectorAll('.failures input')].pop().click()")
    browser.settle()
    assert browser.run(title) == "failure probability, log scale"
    assert browser.complaints() == []


def test_a_click_on_a_curve_moves_the_slider(trained):
    browser = trained
    browser.run("document.querySelector('#training0-0').emit('plotly_click', {points: [{x: 10}]})")
    assert browser.run(f"Number({SLIDER}.value)") == 1
    browser.settle()
    lines = "document.querySelectorAll('#training0-0 .shapelayer path').length"
    assert browser.run(lines) == 1
    assert browser.complaints() == []


@pytest.mark.parametrize("bench", ["learning", "control", "replay"])
def test_a_bench_is_shown(browser, bench, tmp_path):
    path = write_report(f"benchmarks/results/{bench}", tmp_path / "page")
    browser.open(path)
    rows = read_results(f"benchmarks/results/{bench}")["rows"]
    # One for each preset or environment that has curves.
    plots = {(row.get("preset"), row.get("env")) for row in rows if "curve" in row}
    assert bool(plots) == (bench != "replay")
    assert browser.run("document.querySelectorAll('.plot .js-line').length > 0") == bool(plots)
    assert browser.run("document.querySelectorAll('.plot').length") == len(plots)
    wide = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.run(wide)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.complaints() == []
