"""The README says what is so: its Python runs, and its figures are those of the results files."""

import json
import re
import statistics
from pathlib import Path

import pytest

from awsgd_rl.benchmarks.trial import ALGORITHMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_every_python_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def interval(summary, name, digits):
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(
        *(summary[name + end] for end in ("", "_low", "_high")), d=digits
    )


def comparison_table(folder):
    """The README's table of one committed comparison."""
    summary = json.loads((folder / "results.json").read_text())["summary"]
    lines = ["| agent | success over all trials | at the end |", "|---|---|---|"]
    lines += [
        f"| {algorithm.title} | {interval(summary, f'{label}.success_mean', 3)} "
        f"| {interval(summary, f'{label}.success_final', 3)} |"
        for label, algorithm in ALGORITHMS.items()
        if f"{label}.success_mean" in summary
    ]
    return "\n".join(lines)


def control_table():
    """The README's table of the bench `control`."""
    summary = json.loads((RESULTS / "control" / "results.json").read_text())["summary"]
    lines = ["| environment | agent | before | after |", "|---|---|---|---|"]
    for key in summary:
        if key.endswith(".return_after"):
            run = key.removesuffix(".return_after")
            env_id, label = run.split(".")
            before, after = (
                interval(summary, f"{run}.{name}", 0) for name in ("return_before", "return_after")
            )
            lines.append(f"| {env_id} | {ALGORITHMS[label].title} | {before} | {after} |")
    # What "reinforce" does with one update a batch is no part of its name here.
    return "\n".join(lines).replace(ALGORITHMS["reinforce"].title, "on-policy")


def test_the_control_table_is_the_committed_result():
    assert control_table() in README


@pytest.mark.parametrize("name", ["compare-15-9", "compare-15-9-paper"])
def test_the_comparison_table_is_the_committed_result(name):
    assert comparison_table(RESULTS / name) in README


@pytest.mark.parametrize("name", ["compare-15-9", "compare-15-9-paper"])
@pytest.mark.parametrize("ratio", ["failure_ratio", "failure_ratio_equal_updates"])
def test_the_ratios_are_the_committed_results(name, ratio):
    summary = json.loads((RESULTS / name / "results.json").read_text())["summary"]
    assert interval(summary, ratio, 2) in README


def test_the_time_a_map_takes_is_the_committed_result():
    rows = json.loads((RESULTS / "compare-15-9" / "results.json").read_text())["rows"]
    ours, theirs = (
        statistics.mean(row["seconds"] for row in rows if row["algorithm"] == label)
        for label in ("awsgd", "reinforce-equal")
    )
    assert f"{ours:.1f} s a map against {theirs:.1f} s" in README


def test_the_variants_are_the_committed_result():
    results = json.loads((RESULTS / "compare-15-9-variants" / "results.json").read_text())
    for label in ("awsgd-paper", "awsgd-mixture"):
        assert interval(results["summary"], f"{label}.success_mean", 3) in README


def test_the_speeds_are_the_committed_result():
    results = json.loads((RESULTS / "env-speed" / "results.json").read_text())
    for name in ("engine_steps_per_s", "vector_steps_per_s"):
        assert f"{results['summary'][name] / 1e6:.1f} million" in README
    assert f"{results['summary']['vector_vs_sync']:.0f} times" in README


def test_every_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()
