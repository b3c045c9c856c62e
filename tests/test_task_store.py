"""The store of finished results: what comes back, what is damaged, how tasks are named."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from awsgd_rl.benchmarks.compare import CompareConfig
from awsgd_rl.benchmarks.task_store import TaskStore, decode, encode, known_types
from awsgd_rl.benchmarks.trial import BINS, PolicyMap, Task, Trial, run_task
from awsgd_rl.benchmarks.workers import execution, run_tasks


class Point(NamedTuple):
    x: float
    y: Any


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Point | None = None


class Other(NamedTuple):
    x: float
    y: Any


TYPES = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (Point, Pair)}

dtypes = st.one_of(
    *(kind() for kind in (arrays.boolean_dtypes, arrays.integer_dtypes, arrays.floating_dtypes)),
    arrays.complex_number_dtypes(),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    dtypes.flatmap(arrays.from_dtype),
)
keys = st.one_of(st.text(), st.integers(), st.none(), st.tuples(st.booleans(), st.text()))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.builds(Point, st.floats(), inner),
        st.builds(Pair, inner, st.none() | st.builds(Point, st.floats(), inner)),
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal bit for bit, types included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float | complex | np.ndarray | np.generic):
        ours, theirs = np.asarray(left), np.asarray(right)
        alike = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if not alike or ours.dtype.kind not in "fc":
            return alike and np.array_equal(ours, theirs)
        signs = (np.signbit(ours.real) == np.signbit(theirs.real)) | np.isnan(ours.real)
        return np.array_equal(ours, theirs, equal_nan=True) and bool(signs.all())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, Pair):
        return same((left.left, left.right), (right.left, right.right))
    return bool(left == right)


@given(values)
def test_every_value_comes_back(value: Any) -> None:
    text = json.dumps(encode(value, TYPES), allow_nan=False)
    assert same(decode(json.loads(text), TYPES), value)


def test_a_trial_comes_back() -> None:
    rng = np.random.default_rng(0)
    target = PolicyMap(rng.random((9, 4)), rng.random(9), 0.5)
    curve = rng.random(BINS)
    trial = Trial("awsgd", 3, "success", 0.9, math.nan, 7, 0.1, curve, curve, target)
    types = known_types(run_task)
    assert set(types.values()) == {Trial, PolicyMap}
    found = decode(json.loads(json.dumps(encode(trial, types))), types)
    for field in dataclasses.fields(Trial):
        ours, theirs = getattr(found, field.name), getattr(trial, field.name)
        if isinstance(theirs, PolicyMap):
            np.testing.assert_array_equal(ours.policy, theirs.policy)
            np.testing.assert_array_equal(ours.visits, theirs.visits)
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert found.curve.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        lambda: 1,
        np.array([None]),
        b"x",
        Other(1.0, 2),
        np.zeros(2, "i4,f8"),
        [1j],
    ],
)
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is no plain data"):
        encode([value], TYPES)


@pytest.mark.parametrize(
    "value",
    [
        {"$record": ["posix.system", {"command": "true"}]},
        {"$record": ["subprocess.Popen", {"args": "true"}]},
        {"$record": [f"{Other.__module__}.Other", {"x": 1, "y": 2}]},
        {"$array": ["|O8", [1], "AAAAAAAAAAA="]},
        {"$array": ["<f8", [2], "AAAAAAAAAAA="]},
        {"$array": ["<f8", [-1, -1], "AAAAAAAAAAA="]},
        {"$array": ["<U0", [10**12], ""]},
        {"$array": ["(100000,100000)f8", [1], ""]},
        {"$float": "1e3"},
        {"$unknown": 1},
        {"$tuple": [], "more": 1},
    ],
)
def test_foreign_data_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        decode(value, TYPES)


# Names

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.builds(Point, st.just(1.0), inner)
        | st.builds(Other, st.just(1.0), inner)
    ),
    max_leaves=6,
)


def first(task: Any, _send: Any) -> Any:
    return task


def second(task: Any, _send: Any) -> Any:
    return task


@given(plain, plain)
def test_two_different_tasks_never_share_a_name(one: Any, two: Any) -> None:
    store = TaskStore("anywhere")
    assert (store.path(first, one) == store.path(first, two)) == equal_tasks(one, two)
    assert store.path(first, one) != store.path(second, one)


def equal_tasks(one: Any, two: Any) -> bool:
    """Equal, types included; mappings in any order."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal_tasks(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal_tasks, one, two))
    return same(one, two)


def test_trials_are_named_by_seed_and_configuration() -> None:
    store = TaskStore("anywhere")
    configs = [CompareConfig(), CompareConfig(slip=0.0), CompareConfig(episodes=5)]
    configs += [CompareConfig(regime="paper"), CompareConfig(preset="15/9")]
    tasks = [Task(c, a, k) for c in configs for a in ("awsgd", "reinforce") for k in (0, 1)]
    assert len({store.path(run_task, task) for task in tasks}) == len(tasks)
    again = [Task(dataclasses.replace(c), "awsgd", 0) for c in configs]
    assert {store.path(run_task, task) for task in again} <= {
        store.path(run_task, task) for task in tasks
    }


@pytest.mark.parametrize("function", [lambda task, send: task, None])
def test_a_function_without_a_name_of_its_own_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="expected a function of a module"):
        TaskStore("anywhere").path(function, 1)


# Files


def square(task: int, _send: Any) -> dict[str, Any]:
    return {"square": float(task * task), "curve": np.arange(task, dtype=np.float64)}


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    found: list[Any] = []
    with execution(store=tmp_path / "kept"):
        run_tasks(square, [1, 3], jobs=1)
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
        results = run_tasks(square, [0, 1, 2, 3], jobs=1, on_result=found.append)
    assert [result["square"] for result in results] == [0, 1, 4, 9]
    assert [result["square"] for result in found] == [1, 9, 0, 4]
    assert len(TaskStore(tmp_path / "kept")) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    run_tasks(square, [5], jobs=1)  # outside: nothing is kept
    assert len(TaskStore(tmp_path / "kept")) == 4


def test_any_damage_is_noticed(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    store.write(square, 3, square(3, None))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert len(store.read_all(square, [3])) == 1
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.warns(UserWarning, match="is damaged, 3 is run again"):
            assert store.read_all(square, [3]) == {}
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match="is damaged, 3 is run again"):
            assert store.read_all(square, [3]) == {}


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '"x"', "[" * 100_000, "\x80"])
def test_a_damaged_file_is_run_again(tmp_path: Path, content: str) -> None:
    with execution(store=tmp_path):
        run_tasks(square, [1, 2], jobs=1)
        path = TaskStore(tmp_path).path(square, 2)
        path.write_text(content, encoding="latin-1")
        with pytest.warns(UserWarning, match="is damaged, 2 is run again"):
            run_tasks(square, [1, 2], jobs=1)
        run_tasks(square, [1, 2], jobs=1)  # and it is whole again


def test_a_file_of_another_task_is_not_taken_for_this_one(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    store.write(square, 1, square(1, None))
    store.path(square, 1).rename(store.path(square, 2))
    with pytest.warns(UserWarning, match="it is of another task"):
        assert store.read_all(square, [2]) == {}


def test_what_a_crash_left_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TaskStore(tmp_path)

    def crash(self: Path, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        store.write(square, 1, square(1, None))
    assert not list(tmp_path.iterdir())
    (tmp_path / f".{store.path(square, 1).stem}.12ab.partial.json").write_text('{"half')
    assert len(store) == 0
    assert store.read_all(square, [1]) == {}


def give_function(task: int, _send: Any) -> Any:
    return square


def test_a_result_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    with (
        execution(store=tmp_path / "kept"),
        pytest.warns(UserWarning, match="the result of 1 cannot be kept: .* is no plain data"),
    ):
        assert run_tasks(give_function, [1], jobs=1) == [square]
    assert len(TaskStore(tmp_path / "kept")) == 0
