"""The numbers of README and docs are those of the results files."""

import json
import re
from pathlib import Path

import pytest

from awsgd_rl.benchmarks.readme import PAGES, TABLES, filled

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert filled(text, ROOT) == text, "run `make readme`"
    for table in TABLES:
        emptied = f"<!-- {table} -->\n<!-- end -->"
        assert emptied not in text


def test_a_wrong_figure_is_noticed():
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- ratios-strong -->")[1]
    digit = re.search(r"\d\.\d", table)[0]
    wrong = "<!-- ratios-strong -->" + table.replace(digit, "9999", 1)
    assert filled(wrong, ROOT) != wrong


def test_the_speeds_are_the_committed_result():
    results = json.loads((RESULTS / "env-speed" / "results.json").read_text())
    for name in ("engine_steps_per_s", "vector_steps_per_s"):
        assert f"{results['summary'][name] / 1e6:.1f} million" in README
    assert f"{results['summary']['vector_vs_sync']:.0f} times" in README
