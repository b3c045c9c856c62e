"""Finished results of tasks, one file each, so that a run goes on with only what is missing.

A file is named by a hash of the function's name and of the task, holds plain data (JSON; arrays
as base64) and never code, and appears whole or not at all. Beside it a task that is under way may
have a folder. What was made of a result comes back
equal, types included: what `decode(encode(value))` returns.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import re
import shutil
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from awsgd_rl.runs import atomic_path

_SCHEMA: Final = "awsgd_rl/task/1"
_ARRAY_KINDS: Final = "biufcUS"
_ARRAY_DTYPE: Final = re.compile(r"[<>|][biufcUS][1-9]\d{0,8}")
Function = Callable[..., Any]


@final
class TaskStore:
    """A folder of finished results.

    Attributes:
        folder: where they are; made by the first `write`, if not before.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __len__(self) -> int:
        # A name with a dot in front is what a crash left of a file being written.
        return sum(not path.name.startswith(".") for path in self.folder.glob("*.json"))

    def path(self, function: Function, task: object) -> Path:
        """Return the file of a task: no other task of any function has it.

        Raises:
            ValueError: the function has no name of its own, or the task is not plain data.
        """
        name = _name(function)
        text = json.dumps([name, encode(task)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.folder / f"{name.rpartition('.')[2]}-{digest}.json"

    def scratch(self, function: Function, task: object) -> Path:
        """Return the folder for what a task keeps while it is under way.

        It is not made here, and removed when the result is kept.
        """
        return self.path(function, task).with_suffix(".running")

    def write(self, function: Function, task: object, result: object) -> None:
        """Keep a result; one that is no plain data is not kept, with a warning.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.path(function, task)
        try:
            encoded = encode(result, known_types(function))
            digest = _digest(encoded)
        except ValueError as error:
            warnings.warn(f"the result of {task} cannot be kept: {error}", stacklevel=2)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": _SCHEMA,
            "function": _name(function),
            "task": encode(task),
            "result": encoded,
            "sha256": digest,
        }
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        shutil.rmtree(self.scratch(function, task), ignore_errors=True)

    def read_all(self, function: Function, tasks: Sequence[Any]) -> dict[int, Any]:
        """Return the results that are here, by the number of their task, in that order.

        A damaged file counts as missing, with a warning.
        """
        results = {}
        types = known_types(function)
        for index, task in enumerate(tasks):
            path = self.path(function, task)
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["schema"] != _SCHEMA or content["sha256"] != _digest(content["result"]):
                    raise ValueError("its content is not what was written")
                if [content["function"], content["task"]] != [_name(function), encode(task)]:
                    raise ValueError("it is of another task")
                results[index] = decode(content["result"], types)
                # There still is one if the process was killed after it had kept the result.
                shutil.rmtree(self.scratch(function, task), ignore_errors=True)
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
                warnings.warn(f"{path} is damaged, {task} is run again: {error}", stacklevel=3)
        return results


def encode(value: Any, types: Mapping[str, type] | None = None) -> Any:
    """Return a value as JSON's own values, from which `decode` makes an equal one.

    Args:
        value: None, booleans, numbers, strings, lists, tuples, mappings, NumPy arrays and scalars,
            paths, and NamedTuples and dataclasses of these.
        types: the NamedTuples and dataclasses that it may hold, by name; all when None.

    Raises:
        ValueError: it holds something else.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _ARRAY_KINDS:
        return {"$array" if isinstance(value, np.ndarray) else "$scalar": _encode_array(value)}
    if kind is list:
        return [encode(item, types) for item in value]
    if kind is tuple:
        return {"$tuple": [encode(item, types) for item in value]}
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(item, types) for key, item in value.items()}
        return {"$dict": [[encode(key, types), encode(item, types)] for key, item in value.items()]}
    if isinstance(value, Path):
        return {"$path": str(value)}
    fields = _fields(kind)
    if fields is not None and (types is None or types.get(_type_name(kind)) is kind):
        contents = {name: encode(getattr(value, name), types) for name in fields}
        return {"$record": [_type_name(kind), contents]}
    raise ValueError(
        f"{_type_name(kind)} is no plain data: expected numbers, strings, lists, tuples, mappings, "
        "arrays, or NamedTuples and dataclasses that the return annotation names"
    )


def decode(value: Any, types: Mapping[str, type] | None = None) -> Any:
    """Return the value of which `encode` made these JSON values; nothing in them is executed.

    Args:
        value: what `encode` returned.
        types: the NamedTuples and dataclasses that it may hold, by name.

    Raises:
        ValueError: it is not what `encode` returns.
    """
    if isinstance(value, list):
        return [decode(item, types) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, types) for key, item in value.items()}
    content = value[tag]
    if len(value) == 1:
        if tag == "$float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "$tuple":
            return tuple(decode(item, types) for item in content)
        if tag == "$dict":
            return {decode(key, types): decode(item, types) for key, item in content}
        if tag == "$array":
            return _decode_array(content)
        if tag == "$scalar":
            return _decode_array(content)[()]
        if tag == "$path":
            return Path(content)
        if tag == "$record" and content[0] in (types or {}):
            fields = {name: decode(item, types) for name, item in content[1].items()}
            return (types or {})[content[0]](**fields)
    raise ValueError(f"{tag} of {str(content)[:50]!r} is not known here")


def known_types(function: Function) -> dict[str, type]:
    """Return the NamedTuples and dataclasses in the return annotation of a function, by name."""
    found: dict[str, type] = {}

    def look(hint: Any) -> None:
        for part in typing.get_args(hint):
            look(part)
        if isinstance(hint, type) and _fields(hint) is not None and _type_name(hint) not in found:
            found[_type_name(hint)] = hint
            for field in _hints(hint).values():
                look(field)

    look(_hints(function).get("return"))
    return found


def _hints(annotated: Any) -> dict[str, Any]:
    # A name that only type checkers import is nothing that could be looked up.
    with contextlib.suppress(NameError, TypeError, AttributeError):
        return typing.get_type_hints(annotated)
    return {}


def _fields(kind: type) -> tuple[str, ...] | None:
    """Return what the constructor of a NamedTuple or dataclass takes; None for another type."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple(kind._fields)
    return None


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(function: Function) -> str:
    name = getattr(function, "__qualname__", "<nameless>")
    if "<" in name:  # <lambda>, <locals>: several may share it
        raise ValueError(f"{name} has no name of its own: expected a function of a module")
    return f"{function.__module__}.{name}"


def _digest(encoded: Any) -> str:
    return hashlib.sha256(json.dumps(encoded).encode()).hexdigest()


def _encode_array(value: Any) -> list[Any]:
    array = np.asarray(value)
    return [array.dtype.str, list(array.shape), base64.b64encode(array.tobytes()).decode()]


def _decode_array(content: Any) -> Any:
    name, shape, text = content
    # Of a name that is not checked NumPy could make anything, Python objects among them.
    if not _ARRAY_DTYPE.fullmatch(name):
        raise ValueError(f"dtype {name!r} is not that of an array of numbers or strings")
    dtype, data = np.dtype(name), base64.b64decode(text, validate=True)
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no array of shape {shape} of {name}")
    return np.frombuffer(data, dtype).reshape(shape).copy()
