import dataclasses
import enum
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl import runs
from awsgd_rl.runs import RunExistsError, RunFolder


def create(path: Path, **options: Any) -> RunFolder:
    return RunFolder.create(path, name="train", config={"algo": "awsgd", "seed": 3}, **options)


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_create_writes_enough_to_run_again(tmp_path: Path) -> None:
    folder = create(tmp_path / "a" / "b")
    assert folder.path == tmp_path / "a" / "b"
    config = runs.read_config(folder.path)
    assert config["name"] == "train"
    assert config["config"] == {"algo": "awsgd", "seed": 3}
    assert {"version", "started", "python", "packages"} <= config.keys()
    assert runs.is_run(folder.path)
    assert files(folder.path).keys() == {"config.json"}


def test_results_have_the_documented_schema(tmp_path: Path) -> None:
    folder = create(tmp_path / "run")
    rows = [{"seed": 0, "success": np.float64(0.5), "curve": np.arange(3)}]
    summary = {"success": 0.5, "success_low": -math.inf, "success_high": math.nan, "n": np.int64(7)}
    path = folder.write_results(rows, summary, "cpu")
    assert path == tmp_path / "run" / "results.json"
    results = runs.read_results(tmp_path / "run")
    assert set(results) == {
        *("name", "version", "config", "device", "started", "seconds", "rows", "summary")
    }
    assert results["rows"] == [{"seed": 0, "success": 0.5, "curve": [0, 1, 2]}]
    ends = {"success_low": None, "success_high": None}
    assert results["summary"] == {"success": 0.5, **ends, "n": 7}
    assert results["device"] == "cpu"
    assert results["seconds"] >= 0
    assert results["started"].endswith("+00:00")
    assert runs.read_results(path) == results


def test_a_summary_holds_only_numbers(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with pytest.raises(ValueError, match="summary\\['best'\\]"):
        folder.write_results([], {"best": "awsgd"}, "cpu")
    assert not (tmp_path / "results.json").exists()


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, name="evaluate", config={})
    folder.write_results([], {"x": 1.0}, "cpu")
    before = files(tmp_path)
    with pytest.raises(RunExistsError, match="--overwrite") as error:
        RunFolder.create(tmp_path, name="evaluate", config={})
    assert "--resume" not in str(error.value)  # which `evaluate` does not have
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, FileExistsError)
    assert files(tmp_path) == before


def test_the_refusal_names_resume_where_there_is_one(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, name="compare", config={})
    with pytest.raises(RunExistsError, match="--resume"):
        RunFolder.create(tmp_path, name="compare", config={})
    with pytest.raises(RunExistsError) as error:  # a run of another command cannot be gone on with
        RunFolder.create(tmp_path, name="train", config={})
    assert "--resume" not in str(error.value)


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.write_results([], {"x": 1.0}, "cpu")
    for name in ["agent", "tensorboard", ".agent.0123.partial"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    for name in ["monitor.csv", "curve.png", ".a.partial.png"]:
        (tmp_path / name).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "curve.png").write_text("mine")
    RunFolder.create(tmp_path, name="compare", config={}, overwrite=True)
    assert files(tmp_path).keys() == {"config.json", "notes.txt", "data/curve.png"}
    assert not (tmp_path / "agent").exists()
    assert runs.read_config(tmp_path)["name"] == "compare"


def test_overwrite_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("mine")
    create(tmp_path / "run")
    (tmp_path / "run" / "agent").symlink_to(other)
    create(tmp_path / "run", overwrite=True)
    assert (other / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", ['{"name": "my project"}', "not json", "[1]"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_other_programs_are_kept(
    tmp_path: Path, name: str, content: str, overwrite: bool
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunExistsError, match="--out"):
        create(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {name: content.encode()}


def test_a_folder_with_other_files_can_hold_a_run(tmp_path: Path) -> None:
    """There is no run to overwrite, so nothing is removed."""
    names = {"notes.txt", "photo.png", "study.db", "monitor.csv"}
    for name in names:
        (tmp_path / name).write_text("mine")
    create(tmp_path, overwrite=True)
    assert files(tmp_path).keys() == {"config.json"} | names


@pytest.mark.parametrize("name", ["agent", "checkpoints", "trials", "tensorboard"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_other_programs_are_kept(tmp_path: Path, name: str, overwrite: bool) -> None:
    """A run of its own would write into them, and remove what it has not written."""
    (tmp_path / name / "1000").mkdir(parents=True)
    (tmp_path / name / "1000" / "weights").write_text("mine")
    with pytest.raises(RunExistsError, match=f"{name} that is not of this package"):
        create(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {f"{name}/1000/weights": b"mine"}


def test_resume_keeps_the_files_and_checks_the_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        create(tmp_path, resume=True)
    started = create(tmp_path).started
    (tmp_path / "monitor.csv").write_text("old")
    before = files(tmp_path)
    again = create(tmp_path, resume=True)
    assert again.started == started
    results = json.loads(again.write_results([], {}, "cpu").read_text())
    assert results["seconds"] is None  # those before it was stopped are not known
    (tmp_path / "results.json").unlink()
    with pytest.raises(RunExistsError, match="'train'"):
        RunFolder.create(tmp_path, name="compare", config={}, resume=True)
    with pytest.raises(ValueError, match="both"):
        create(tmp_path, resume=True, overwrite=True)
    assert files(tmp_path) == before


def test_resume_warns_of_other_versions(tmp_path: Path) -> None:
    """A package of another version may end the run with other numbers."""
    create(tmp_path)
    create(tmp_path, resume=True)  # warnings are errors here: with the same versions there is none
    config = json.loads((tmp_path / "config.json").read_text())
    config["packages"]["torch"] = "1.0.0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0\.0, now [0-9.+a-z]+: it may not"):
        create(tmp_path, resume=True)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not a folder"):
        create(tmp_path / "file")


def test_a_config_without_json_form_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunFolder.create(tmp_path / "run", name="train", config={"f": object()})
    assert not (tmp_path / "run").exists()


def test_reading_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        runs.read_results(tmp_path)
    with pytest.raises(ValueError, match="not a run folder"):
        runs.read_config(tmp_path / "absent")
    create(tmp_path)
    with pytest.raises(ValueError, match="not finished"):
        runs.read_results(tmp_path)
    for content, message in [("{", "damaged"), ("[]", "damaged"), ("{}", "lacks")]:
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            runs.read_results(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"name": "x", "config": {}}')
    with pytest.raises(ValueError, match="not of this package"):
        runs.read_config(tmp_path)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    with pytest.raises(OSError, match="runs"):
        runs.new_folder("train", tmp_path / "runs")


def test_new_folders_do_not_meet(tmp_path: Path) -> None:
    paths = [runs.new_folder("train", tmp_path / "runs") for _ in range(3)]
    assert len(set(paths)) == 3
    for path in paths:
        assert path.name.startswith("train-")
        assert files(path) == {}
        create(path)


class Kind(enum.Enum):
    GRID = "grid"


@dataclasses.dataclass
class Nested:
    path: Path
    kind: Kind
    values: tuple[float, ...]


def test_to_json_of_what_configs_hold() -> None:
    nested = Nested(Path("a") / "b", Kind.GRID, (1.0, math.nan))
    assert runs.to_json({"n": nested, 3: {"z", "y"}}) == {
        "n": {"path": "a/b", "kind": "grid", "values": [1.0, None]},
        "3": ["y", "z"],
    }
    array = np.array([[1.0, math.inf]], dtype=np.float32)
    assert runs.to_json([np.bool_(True), np.float32(0.5), array]) == [True, 0.5, [[1.0, None]]]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_to_json_is_strict_json(obj: object) -> None:
    text = json.dumps(runs.to_json(obj), allow_nan=False)
    if "null" not in text:
        assert json.loads(text) == obj


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with runs.atomic_path(path) as partial:
            partial.write_text("half")
            assert partial.suffix == ".json"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files(tmp_path) == {"a.json": b"old"}


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with runs.atomic_path(tmp_path / "atomic") as partial:
        partial.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


CRASH = """
import os, sys
from pathlib import Path
from awsgd_rl.runs import RunFolder
folder = RunFolder.create(sys.argv[1], name="train", config={{}})
folder.write_results([], {{"x": 1.0}}, "cpu")
real = Path.replace, os.fsync
calls = 0
def crash(*arguments):
    global calls
    calls += 1
    if calls == {call}:
        os._exit(9)
    return real[{which}](*arguments)
{target} = crash
folder.write_results([], {{"x": 2.0}}, "cpu")
"""


@pytest.mark.parametrize(
    ("which", "target", "call", "survivor"),
    [
        (0, "Path.replace", 1, 1.0),
        (1, "os.fsync", 1, 1.0),  # of the file: written, not yet in place
        (1, "os.fsync", 2, 2.0),  # of the folder: the new file is in place
    ],
)
def test_a_crash_leaves_a_whole_file(
    tmp_path: Path, which: int, target: str, call: int, survivor: float
) -> None:
    script = CRASH.format(which=which, target=target, call=call)
    code = subprocess.run([sys.executable, "-c", script, tmp_path], env=os.environ).returncode
    assert code == 9
    assert runs.read_results(tmp_path)["summary"] == {"x": survivor}
    create(tmp_path, overwrite=True)
    assert files(tmp_path).keys() == {"config.json"}


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "folder"

    def fill(text: str, fault: bool = False) -> None:
        with runs.atomic_folder(target) as partial:
            (partial / "file").write_text(text)
            if fault:
                raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fill("first", fault=True)
    assert list(target.parent.iterdir()) == []
    fill("first")
    with pytest.raises(RuntimeError, match="in the block"):
        fill("second", fault=True)
    replace, calls = Path.replace, []

    def fails_in_the_middle(self: Path, other: Path) -> Path:
        calls.append(self.name)
        if len(calls) == 2:  # the old one is aside, the new one not yet in place
            raise OSError("no rename")
        return replace(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails_in_the_middle)
        with pytest.raises(OSError, match="no rename"):
            fill("second")
    assert (target / "file").read_text() == "first"
    fill("second")
    assert (target / "file").read_text() == "second"
    assert list(target.parent.iterdir()) == [target]
