"""The bench of overheads: its names, its loops, its figure; no time is asserted."""

import json
import math
from pathlib import Path

import pytest
import torch

from awsgd_rl.benchmarks import overhead
from awsgd_rl.benchmarks.overhead import interleaved
from awsgd_rl.runs import to_json


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "FEATURES", {4_096: 50, 16_384: 40})
    monkeypatch.setattr(overhead, "IMAGES", 64)
    monkeypatch.setattr(overhead, "TABLE_BATCH", 4)


@pytest.mark.usefixtures("tiny")
def test_names_and_figure(tmp_path: Path) -> None:
    told: list[float] = []
    rows, summary = overhead.run(True, seeds=3, progress=lambda share, text: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1.0
    for name in (
        "class_bias_overhead_percent",
        "class_bias_each_overhead_percent",
        "table_overhead_percent",
        "table_overhead_percent_1e6",
        "class_bias_extra_us",
        "draw_update_us_1e3",
        "draw_update_us_1e6",
        "draw_update_growth",
    ):
        assert math.isfinite(summary[name])
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    held = json.loads(json.dumps(to_json({"rows": rows, "summary": summary})))
    written = overhead.write_figures(held["rows"], held["summary"], tmp_path)
    assert {path.name for path in written} == {"overhead.png", "overhead.svg"}


def test_loops_are_measured_by_turns() -> None:
    calls: list[str] = []
    pairs = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 3, 1, 2)
    assert len(pairs) == 3
    assert "".join(calls) == "aabb" + "bba" + "abb" + "bba"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("block", [1, 5])
def test_the_class_bias_is_that_of_the_package(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """τ moves once a block, by every draw of it, with its weight."""
    from awsgd_rl.adaptation import ScoreFunctionAdaptation

    seen = []
    update = ScoreFunctionAdaptation.update

    def spy(self, draw, signal, log_p):  # type: ignore[no-untyped-def]
        update(self, draw, signal, log_p)
        seen.append((len(draw.items), self.proposal.tau.detach().clone()))

    monkeypatch.setattr(ScoreFunctionAdaptation, "update", spy)
    _, ours = overhead.class_bias(30, 50, block, 0)
    ours()
    ours()
    assert [count for count, _ in seen] == [block * overhead.CLASS_BATCH] * 2
    assert not torch.equal(seen[0][1], seen[1][1])
