"""docs/supervised.md says what is so: every block of Python runs, after those before it."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "supervised.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
# Trainers that the package does not depend on, and whose own warnings are not ours.
OPTIONAL = ("lightning", "transformers")


def needs(block: str) -> str | None:
    return next((name for name in OPTIONAL if re.search(rf"(import|from) {name}\b", block)), None)


def run(block: str, namespace: dict[str, Any]) -> None:
    exec(compile(block, str(PAGE), "exec"), namespace)


def test_the_loop_has_at_most_ten_lines() -> None:
    lines = BLOCKS[0].strip().splitlines()
    assert len(lines) - next(i for i, x in enumerate(lines) if x.startswith("proposal")) <= 10


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    plain = [block for block in BLOCKS if needs(block) is None]
    assert len(plain) == 5
    for block in plain:
        run(block, namespace)
    # What the page promises of its own example.
    logged = {name.removeprefix("sampling/"): x for name, x in namespace["logged"].items()}
    assert logged["variance_ratio"] > 5.0
    assert logged["distance"] < logged["uniform_distance"]
    assert namespace["proposal"].tau.diff().item() != 0.0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", OPTIONAL)
def test_trainers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS:
        if needs(block) in {None, name}:
            run(block, namespace)
    trainer = namespace["trainer"]
    proposal = namespace["table"] if name == "lightning" else trainer.proposal
    steps = trainer.global_step if name == "lightning" else trainer.state.global_step
    assert steps == len(proposal.scores) // (100 if name == "lightning" else 8)
    assert len(proposal.scores.unique()) > 2
