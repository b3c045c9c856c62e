"""The bench of replay buffers: its names, its sides, its figure; no time is asserted."""

import json
import math
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awsgd_rl.benchmarks import replay, replay_peers
from awsgd_rl.runs import to_json


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CAPACITIES", {"10k": 128, "100k": 256, "1m": 512, "10m": 1_024})
    monkeypatch.setattr(replay, "BATCHES", (4, 256))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("tiny")
def test_names_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "find_spec", lambda name: None)
    told: list[tuple[float, str]] = []
    rows, summary = replay.run(
        True, seeds=3, progress=lambda share, text: told.append((share, text))
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for peer in replay.PEERS:
        assert any(f"pip install {peer}" in text for _, text in told)
        assert not any(peer in name for name in summary)
    for name in (
        "cpu_add_us_1",
        "cpu_add_us_64",
        "cpu_sample_update_us_256_1m",
        "cpu_sample_update_us_4_10k_weighted",
        "cpu_sample_update_us_256_1m_sb3_uniform",
        "cpu_vs_sb3_uniform",
        "cpu_vs_sb3_uniform_256_1m",
        "cpu_weighted_vs_sb3_uniform",
    ):
        assert math.isfinite(summary[name])
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert summary["bytes_per_transition"] > 37
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = replay.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"replay.png", "replay.svg"}


def test_a_ratio_says_which_side_it_favours() -> None:
    about = {"what": "step", "device": "cpu", "batch": 256, "capacity": "1m"}
    us = {"ours_us": 80.0, "weighted_us": 100.0, "sb3_uniform_us": 160.0, "cpprb_us": 400.0}
    rows = [about | us, about | us, about | us]
    summary = replay.summarise(rows, 0)
    assert summary["cpu_vs_sb3_uniform"] == summary["cpu_vs_sb3_uniform_256_1m"] == 0.5
    assert summary["cpu_weighted_vs_sb3_uniform"] == 0.625
    assert summary["cpu_vs_cpprb"] == summary["cpu_vs_cpprb_256_1m_high"] == 4.0
    assert summary["cpu_unweighted_vs_cpprb"] == 5.0
    assert summary["cpu_sample_update_us_256_1m"] == 80.0
    assert "cpu_vs_torchrl" not in summary


def test_sides_take_turns() -> None:
    calls: list[str] = []

    def timer(loop: Any, count: int) -> float:
        for _ in range(count):
            loop()
        return float(len(calls))

    loops = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = replay.by_turns(loops, 3, 2, timer)
    assert "".join(calls) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert times["a"].tolist() == [8.0, 18.0, 22.0]


def test_a_peer_that_does_not_work_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("undefined symbol\nand more")

    told: list[str] = []
    monkeypatch.setattr(replay, "find_spec", lambda name: object() if name == "torchrl" else None)
    monkeypatch.setattr(replay_peers, "torchrl", broken)
    assert replay._usable("cpu", lambda share, text: told.append(text)) == []
    assert "undefined symbol" in told[-1]
    assert "and more" not in told[-1]


def test_transitions_follow_each_other() -> None:
    given = replay_peers.make_transitions(3, 0, rows=400)
    rows = list(islice(given.rows(), 401))
    for (*_, following, ended, truncated), (observations, *_) in pairwise(rows):
        same = (following == observations).all(1)
        np.testing.assert_array_equal(same, ~ended)
        assert not truncated.any()
    assert 0 < given.terminated.mean() < 0.02
    firsts = given.first(1_500)
    np.testing.assert_array_equal(firsts[0][1_200:], given.observations.reshape(-1, 8)[:300])


def test_no_error_is_given_twice_in_a_row() -> None:
    errors = replay_peers.Errors(0)
    slices = [errors.next_slice(4_096) for _ in range(600)]
    assert all(a.stop <= b.start or b.stop <= a.start for a, b in pairwise(slices))
    assert all(len(errors.array[one]) == 4_096 for one in slices)
    assert (errors.array > 0).all()


@pytest.mark.parametrize("name", ["ours", "sb3_uniform", *replay.PEERS])
def test_every_side_fills_draws_and_adds(name: str) -> None:
    if name in replay.PEERS:
        pytest.importorskip(name)
    given = replay_peers.make_transitions(4, 0, rows=16)
    calls = getattr(replay_peers, name)(128, given, 0)
    for batch in (1, 32, 256):
        calls.step(batch)
    if calls.add is not None:
        calls.add()
        calls.step(32)


def test_ours_writes_new_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    from awsgd_rl.replay import ReplayBuffer

    seen = []
    update = ReplayBuffer.update

    def spy(self: ReplayBuffer, sample: Any, signal: Any) -> None:
        assert self.size == self.capacity
        seen.append(signal.clone())
        update(self, sample, signal)

    monkeypatch.setattr(ReplayBuffer, "update", spy)
    calls = replay_peers.ours(64, replay_peers.make_transitions(4, 0, rows=16), 0)
    calls.step(16)
    assert calls.unweighted is not None
    calls.unweighted(16)
    assert [len(signal) for signal in seen] == [16, 16]
    assert not (seen[0] == seen[1]).any()
