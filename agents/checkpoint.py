"""A saved agent: a folder of `agent.json` and `parameters.safetensors`, data without code."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from awsgd_rl.runs import atomic_folder, atomic_path, to_json

SCHEMA = 1
"""Version of the layout of `agent.json`."""

ABOUT, PARAMETERS = "agent.json", "parameters.safetensors"
_REQUIRED = {
    "algorithm": str,
    "policy": str,
    "config": dict,
    "env": dict,
    "seed": int,
    "num_timesteps": int,
    "num_episodes": int,
}


def write_checkpoint(path: Path, about: dict[str, Any], parameters: dict[str, Tensor]) -> None:
    """Write a saved agent; the folder appears whole, in place of an older one, or not at all.

    Raises:
        ValueError: if `path` holds something that is not a saved agent.
    """
    if path.exists() and not (path / ABOUT).is_file():
        raise ValueError(f"{path} exists and is no saved agent: choose another folder")
    for leftover in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with atomic_folder(path) as partial:
        with atomic_path(partial / PARAMETERS) as file:
            save_file(parameters, file)
        with atomic_path(partial / ABOUT) as file:
            text = json.dumps(to_json({"schema": SCHEMA, **spell_infinity(about)}), indent=2)
            file.write_text(text + "\n", encoding="utf-8")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write_checkpoint` wrote.

    Raises:
        ValueError: if there is no saved agent at `path`, it is damaged, or of a newer version.
    """
    if not (path / ABOUT).is_file():
        raise ValueError(f"{path} holds no saved agent: expected a folder with {ABOUT}")
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / ABOUT} is damaged: {error}") from None
    if not isinstance(about, dict) or not isinstance(about.get("schema"), int):
        raise ValueError(f"{path / ABOUT} is damaged: expected an object with a schema number")
    if about["schema"] > SCHEMA:
        raise ValueError(
            f"{path} was written by a newer awsgd-rl (schema {about['schema']}, this one reads "
            f"{SCHEMA}): upgrade with pip install -U awsgd-rl"
        )
    for name, kind in _REQUIRED.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(f"{path / ABOUT} is damaged: {name!r} is {about.get(name)!r}")
    try:
        parameters = load_file(path / PARAMETERS)
    except FileNotFoundError:
        raise ValueError(f"{path} is damaged: {PARAMETERS} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"{path / PARAMETERS} is no whole safetensors file: {error}") from None
    about["config"] = {
        name: float("inf") if value == "inf" else value for name, value in about["config"].items()
    }
    return about, parameters


def describe_env(env: Any) -> dict[str, Any]:
    """Return an environment's id and arguments; nothing where those would not make it again."""
    # The module of "module:id" has been imported by now.
    spec = gym.spec(env.rpartition(":")[2]) if isinstance(env, str) else getattr(env, "spec", None)
    if spec is None or spec.additional_wrappers:
        return {}
    arguments = (
        {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    )
    try:
        return {"id": spec.id, "kwargs": to_json({**spec.kwargs, **arguments})}
    except ValueError:  # an argument has no JSON form
        return {}


def make_described_env(description: dict[str, Any]) -> Any:
    """Make the environment that `describe_env` described.

    Raises:
        ValueError: if there is none, or it cannot be made.
    """
    env_id, kwargs = description.get("id"), description.get("kwargs", {})
    # "module:id" would import a module that the file names.
    if not isinstance(env_id, str) or ":" in env_id or not isinstance(kwargs, dict):
        raise ValueError("the saved agent does not say its environment: pass env")
    try:
        return gym.make(env_id, **kwargs)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"{env_id} cannot be made: {error}; pass env") from None


def spell_infinity(about: dict[str, Any]) -> dict[str, Any]:
    """Return what describes an agent with infinite options (no clipping) as JSON can hold them."""
    config = {k: "inf" if v == float("inf") else v for k, v in about["config"].items()}
    return {**about, "config": config}
