"""All that a training by Stable-Baselines3 needs to go on after it was stopped.

Networks, optimizers, entropy coefficient, counts, replay buffer, history, the place of the logs,
and the generators: PyTorch's, NumPy's and Python's global ones, from which Stable-Baselines3 draws,
those of the spaces and, within reach, of the environments. What an environment is in the middle of
cannot be saved: the episodes under way are dropped, and new ones begin. So a training that goes on
is a sound one, but not bit for bit the one that was never stopped.
"""

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from awsgd_rl._version import __version__
from awsgd_rl.agents import stable_baselines_replay
from awsgd_rl.agents.checkpoint import describe_env, spell_infinity
from awsgd_rl.agents.module_state import moments_after_a_step
from awsgd_rl.agents.prioritized_buffer import PrioritizedReplayBuffer
from awsgd_rl.agents.random_states import check_torch_state
from awsgd_rl.agents.stable_baselines_random import (
    check_random_states,
    random_states,
    set_random_states,
    set_torch_states,
    torch_states,
)
from awsgd_rl.agents.training_file import (
    REPLAY,
    Layout,
    check_layout,
    layout_of,
    named,
    open_tensors,
    read_about,
    tensors_of,
    write_training,
)
from awsgd_rl.agents.training_state import check_made_with
from awsgd_rl.runs import to_json

if TYPE_CHECKING:
    from awsgd_rl.agents.stable_baselines import StableBaselines

_HISTORY, _STATE, _RANDOM = "history.", "state.", "random."
_COUNTS: Final = ("_n_updates", "_n_calls", "_episode_num")
_NUMBERS: Final = ("_current_progress_remaining", "exploration_rate")


def save_training(agent: "StableBaselines", path: Path) -> None:
    """Write the state that an agent's training is in, between two batches: see the module's page.

    Args:
        agent: One that is before or after `learn`, or in its callback.
        path: The folder; an older training state there is replaced.

    Raises:
        OSError: It could not be written; what was at `path` is still there.
        ValueError: `path` holds something else.
    """
    model: Any = agent.model
    diagnostics = getattr(model, "diagnostics", {})
    about = {
        **_made_with(agent),
        "seed": agent.seed,
        "num_timesteps": agent.num_timesteps,
        "num_episodes": agent.num_episodes,
        "version": __version__,
        "log": agent.log_position(),
        "history": list(agent.history),
        "model": to_json({name: getattr(model, name) for name in _names(model)}),
        "diagnostics": {name: x for name, x in diagnostics.items() if math.isfinite(x)},
        "random": random_states(agent),
    }
    history = {
        name: torch.tensor(column, dtype=torch.float64) for name, column in agent.history.items()
    }
    tensors = {
        **named(_HISTORY, history),
        **named(_STATE, agent._state()),
        **named(_RANDOM, torch_states(model.device)),
    }
    write_training(path, about, tensors, _replay_writer(model))


def restore_training(agent: "StableBaselines", path: Path) -> None:
    """Let an agent's training go on from what `save_training` wrote.

    Everything is checked before anything changes. The environments are reset at the next `learn`.

    Args:
        agent: Made with the environment, options and kind of device that were saved.
        path: The folder.

    Raises:
        DamagedError: A file is missing, cut short or changed.
        ValueError: It is of a newer version, or of an agent made otherwise.
    """
    model: Any = agent.model
    about = read_about(path)
    check_made_with(path, about, _made_with(agent))
    if set(about["history"]) != set(agent.history):
        raise ValueError(f"{path} is damaged: the columns of its history are {about['history']}")
    with open_tensors(path) as file:
        names = list(file.keys())
        layout = {
            **{_HISTORY + name: (torch.float64, (None,)) for name in agent.history},
            **named(_STATE, _state_layout(agent, names)),
            **named(_RANDOM, layout_of(torch_states(model.device))),
        }
        check_layout(path, file, layout)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    history = {name: tensors[_HISTORY + name].tolist() for name in agent.history}
    if len({len(column) for column in history.values()}) > 1:
        raise ValueError(f"{path} is damaged: the columns of its history differ in length")
    generators = tensors_of(tensors, _RANDOM)
    try:
        _check_values(model, about)
        check_random_states(agent, about.get("random"))
        for kind, state in generators.items():
            check_torch_state(state, torch.device("cpu") if kind == "cpu" else model.device)
        # The last check is the buffer's own, which then takes what is in the file.
        _read_replay(model, path / REPLAY, "replay" in about)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this agent: {error}") from None
    agent._load_state(tensors_of(tensors, _STATE))
    for name, value in about["model"].items():
        setattr(model, name, value)
    if hasattr(model, "diagnostics"):
        model.diagnostics = dict(about["diagnostics"])
    agent.seed = about["seed"]
    model.num_timesteps, agent.num_episodes = about["num_timesteps"], about["num_episodes"]
    agent.history = history
    set_torch_states(generators, model.device)
    set_random_states(agent, about["random"])
    model._last_obs = None  # so that the environments are reset
    _resume_log(agent, about["log"])


def _made_with(agent: "StableBaselines") -> dict[str, Any]:
    """Return what must be the same where a state is saved and restored, as JSON has it."""
    made: dict[str, Any] = {
        "algorithm": agent.algorithm,
        "policy": "MlpPolicy",
        "env": describe_env(agent.env),
        "config": asdict(agent.config),
        "device": agent.model.device.type,
    }
    found: dict[str, Any] = to_json(spell_infinity(made))
    return found


def _names(model: Any) -> list[str]:
    """Return the names of the counts and numbers that a model has."""
    return [name for name in (*_COUNTS, *_NUMBERS) if hasattr(model, name)]


def _check_values(model: Any, about: dict[str, Any]) -> None:
    values = about.get("model")
    if not isinstance(values, dict) or values.keys() != set(_names(model)):
        raise ValueError(f"got {values!r:.80} for the model's counts, expected {_names(model)}")
    for name, value in values.items():
        if name in _COUNTS and (type(value) is not int or value < 0):
            raise ValueError(f"{name} is {value!r:.20}, expected a count")
        # What remains is below 0 once the last batch has gone beyond the total.
        if name in _NUMBERS and not (isinstance(value, int | float) and -math.inf < value <= 1):
            raise ValueError(f"{name} is {value!r:.20}, expected a number up to 1")
    known = about.get("diagnostics")
    columns = set(about["history"])
    if not isinstance(known, dict) or not known.keys() <= columns:
        raise ValueError(f"got {known!r:.80} for the last diagnostics")
    if not all(isinstance(value, int | float) for value in known.values()):
        raise ValueError("the last diagnostics are no numbers")


def _state_layout(agent: "StableBaselines", names: Collection[str]) -> Layout:
    """Return types and shapes of such a state: an optimizer without a step has no moments."""
    optimizers = agent._optimizers()
    kinds = tuple(f"{kind}." for kind in optimizers)
    now = agent._state()
    layout = layout_of({name: x for name, x in now.items() if not name.startswith(kinds)})
    for kind, optimizer in optimizers.items():
        if any(name.startswith(f"{_STATE}{kind}.") for name in names):
            moments = moments_after_a_step({"": optimizer})[""]
            layout |= named(kind, layout_of(tensors_of(moments, "_optimizer")))
    return layout


def _replay_writer(model: Any) -> Callable[[Path], None] | None:
    """Return what writes a model's replay buffer; None where it has none."""
    if not isinstance(model, OffPolicyAlgorithm):
        return None
    if isinstance(model.replay_buffer, PrioritizedReplayBuffer):
        return model.replay_buffer.save
    assert model.replay_buffer is not None
    return partial(stable_baselines_replay.write, model.replay_buffer)


def _read_replay(model: Any, path: Path, is_there: bool) -> None:
    if is_there != isinstance(model, OffPolicyAlgorithm):
        raise ValueError(f"{path.name} is on one side only")
    if not is_there:
        return
    if isinstance(model.replay_buffer, PrioritizedReplayBuffer):
        model.replay_buffer.restore(path)
    else:
        stable_baselines_replay.read(model.replay_buffer, path)


def _resume_log(agent: "StableBaselines", position: dict[str, Any] | None) -> None:
    if position is None:
        return
    model = agent.model
    episodes = zip(position["rewards"], position["lengths"], strict=False)
    window = model._stats_window_size
    model.ep_info_buffer = deque(({"r": r, "l": n, "t": 0.0} for r, n in episodes), window)
    model.ep_success_buffer = deque(position["successes"], window)
    agent.resume_log(position["monitor_rows"])
