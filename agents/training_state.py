"""All that a training run needs to go on as if it had never been stopped.

A run that is restored from a state taken between two batches makes, on the CPU, the same numbers
bit for bit: P_w, Q_τ, values and critic, their optimizers and running means, the table of scores,
the memory of trajectories, every generator, those of the environments, the history, and where the
logs stand. What an environment keeps to itself is in `random_states.environment_state`.
"""

import copy
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from awsgd_rl._version import __version__
from awsgd_rl.agents.checkpoint import describe_env, spell_infinity
from awsgd_rl.agents.logging import check_position
from awsgd_rl.agents.random_states import check_torch_state
from awsgd_rl.agents.training_file import (
    Layout,
    check_layout,
    layout_of,
    named,
    names_of,
    open_tensors,
    read_about,
    tensors_of,
    write_training,
)
from awsgd_rl.runs import to_json

if TYPE_CHECKING:
    from awsgd_rl.agents.agent import Agent

_HISTORY, _LEARNER, _ROLLOUTS, _GENERATOR = "history.", "learner.", "rollouts.", "generator"
_MADE_WITH = ("algorithm", "policy", "env", "config", "device")


class Resumable(Protocol):
    """What a learner has so that its training can go on elsewhere."""

    device: torch.device

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values: all that the next batch depends on."""

    def training_layout(self, names: Collection[str]) -> Layout:
        """Return types and shapes of such tensors, given the names that there are."""

    def restore_training(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from them, or raise ValueError and change nothing."""


def save_training(agent: "Agent", path: Path) -> None:
    """Write the state that an agent's training is in, between two batches: see the module's page.

    Args:
        agent: an agent that is not within a batch: before or after `learn`, or in its callback.
        path: the folder; an older training state there is replaced.

    Raises:
        OSError: it could not be written; what was at `path` is still there.
        ValueError: `path` holds something else.
    """
    learner = cast("Resumable", agent.learner)
    tensors, values = learner.training_state()
    rollouts = agent.learner.rollouts
    older, position = ({}, None) if rollouts is None else rollouts.training_state()
    about = {
        **_made_with(agent),
        "seed": agent.seed,
        "num_timesteps": agent.num_timesteps,
        "num_episodes": agent.num_episodes,
        "version": __version__,
        "log": agent.log_position(),
        "history": list(agent.history),
        "learner": values,
        "rollouts": position,
    }
    history = {
        name: torch.tensor(column, dtype=torch.float64) for name, column in agent.history.items()
    }
    write_training(
        path,
        about,
        {
            **named(_HISTORY, history),
            **named(_LEARNER, tensors),
            **named(_ROLLOUTS, older),
            **_module_tensors(agent),
            _GENERATOR: agent.generator.get_state(),
        },
    )


def restore_training(agent: "Agent", path: Path) -> None:
    """Let an agent's training go on from what `save_training` wrote.

    Everything is checked before anything changes: the file's size, SHA-256 and header before its
    tensors take memory, their types and shapes beside the agent's.

    Args:
        agent: made with the policy, environment, options and kind of device that were saved.
        path: the folder.

    Raises:
        DamagedError: a file is missing, cut short or changed.
        ValueError: it is of a newer version, or of an agent made otherwise.
    """
    learner = cast("Resumable", agent.learner)
    about = read_about(path)
    _check_about(path, about, agent)
    rollouts = agent.learner.rollouts
    with open_tensors(path) as file:
        names = list(file.keys())
        layout = {
            **named(_LEARNER, learner.training_layout(names_of(names, _LEARNER))),
            **named(
                _ROLLOUTS,
                {} if rollouts is None else rollouts.training_layout(names_of(names, _ROLLOUTS)),
            ),
            **layout_of(_module_tensors(agent)),
            **layout_of({_GENERATOR: agent.generator.get_state()}),
            **{_HISTORY + name: (torch.float64, (None,)) for name in about["history"]},
        }
        check_layout(path, file, layout)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    history = {name: tensors[_HISTORY + name].tolist() for name in about["history"]}
    if len({len(column) for column in history.values()}) > 1:
        raise ValueError(f"{path} is damaged: the columns of its history differ in length")
    try:
        check_torch_state(tensors[_GENERATOR], learner.device)
        trials = {}
        for kind, module in agent.modules().items():
            trials[kind] = tensors_of(tensors, f"{kind}.")
            copy.deepcopy(module).load_state_dict(trials[kind])
        if rollouts is not None:
            drawn_with = tensors_of(tensors, _ROLLOUTS)
            rollouts.check_training_state(drawn_with, about["rollouts"])
        learner.restore_training(tensors_of(tensors, _LEARNER), about["learner"])
        if rollouts is not None:
            rollouts.restore_training(drawn_with, about["rollouts"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this agent: {error}") from None
    for kind, module in agent.modules().items():
        module.load_state_dict(trials[kind])
    agent.generator.set_state(tensors[_GENERATOR])
    agent.seed = about["seed"]
    agent.num_timesteps, agent.num_episodes = about["num_timesteps"], about["num_episodes"]
    agent.resume_history(history)
    agent.resume_log(about["log"])


def _made_with(agent: "Agent") -> dict[str, Any]:
    """Return what must be the same where a state is saved and restored, as JSON has it."""
    made = {
        "algorithm": agent.name,
        "policy": agent.policy,
        "env": describe_env(agent.env),
        "config": asdict(agent.config),
        "device": cast("Resumable", agent.learner).device.type,
    }
    found: dict[str, Any] = to_json(spell_infinity(made))
    return found


def check_made_with(path: Path, about: dict[str, Any], made: dict[str, Any]) -> None:
    """Check what the JSON of any agent says: how it was made, counts, history, place of the logs.

    Args:
        path: the folder, for messages.
        about: what `read_about` returned.
        made: algorithm, policy, env, config and device of the agent that is to go on.

    Raises:
        ValueError: it is damaged, or of an agent made otherwise.
    """
    for name in _MADE_WITH:
        if name == "config" and isinstance(about.get(name), dict):
            for option, value in made[name].items():
                if about[name].get(option) != value:
                    raise ValueError(
                        f"{path} was saved with {option}={about[name].get(option)!r}, expected "
                        f"{value!r} as this agent has: make the agent with the saved options"
                    )
        elif about.get(name) != made[name]:
            raise ValueError(
                f"{path} was saved with {name} {about.get(name)!r}, expected {made[name]!r} as "
                "this agent has: make the agent as the saved one was made"
            )
    for name in ("seed", "num_timesteps", "num_episodes"):
        if not isinstance(about.get(name), int) or about[name] < 0:
            raise ValueError(f"{path} is damaged: {name!r} is {about.get(name)!r}")
    columns = about.get("history")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"{path} is damaged: the columns of its history are {columns!r:.80}")
    check_position(about.get("log"))


def _check_about(path: Path, about: dict[str, Any], agent: "Agent") -> None:
    check_made_with(path, about, _made_with(agent))
    if not isinstance(about.get("learner"), dict):
        raise ValueError(f"{path} is damaged: it says nothing of the learner")
    with_workers = isinstance(about.get("rollouts"), dict)
    if with_workers != (agent.learner.rollouts is not None):
        raise ValueError(
            f"{path} was saved {'with' if with_workers else 'without'} rollout workers, and this "
            f"agent has {'none' if with_workers else 'some'}: other batches would follow"
        )


def _module_tensors(agent: "Agent") -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for kind, module in agent.modules().items()
        for name, tensor in module.state_dict().items()
    }
