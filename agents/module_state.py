"""Networks and optimizers as one flat dict of tensors, as safetensors stores it, and back."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_OPTIMIZER = "_optimizer."


def flatten_state(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Tensor]:
    """All parameters, buffers and optimizer moments, copied.

    Args:
        modules: Networks by name; their tensors become `<name>.<key>`.
        optimizers: Optimizers by name; their tensors become `<name>_optimizer.<index>.<key>`.
    """
    state = {key: value.detach().clone().contiguous() for key, value in _tensors(modules).items()}
    for name, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    state[f"{name}{_OPTIMIZER}{index}.{key}"] = value.detach().clone().contiguous()
    return state


def restore_state(
    state: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Take the tensors of `flatten_state`.

    Raises:
        ValueError: if tensors are missing, left over or of another shape; nothing is changed.
    """
    expected = _tensors(modules)
    networks = {key: value for key, value in state.items() if _OPTIMIZER not in key}
    if wrong := sorted(expected.keys() ^ networks.keys()):
        raise ValueError(
            f"the saved parameters do not fit this agent: {wrong[0]!r} is on one side only; "
            "load them into an agent of the same policy, spaces and settings"
        )
    for key, value in expected.items():
        if value.shape != networks[key].shape:
            raise ValueError(
                f"the saved parameters do not fit this agent: {key!r} has shape "
                f"{tuple(networks[key].shape)}, expected {tuple(value.shape)}"
            )
    moments = {name: _moments(name, state, optimizer) for name, optimizer in optimizers.items()}
    for name, module in modules.items():
        start = len(name) + 1
        module.load_state_dict(
            {key[start:]: value for key, value in networks.items() if key.startswith(f"{name}.")}
        )
    for name, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments[name], "param_groups": groups})


def moments_after_a_step(optimizers: Mapping[str, Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Return the moments that each optimizer has once it has made a step, as `flatten_state`.

    Found by a step of a copy, so that it holds for any optimizer.
    """
    moments = {}
    for name, optimizer in optimizers.items():
        probe = copy.deepcopy(optimizer)
        for group in probe.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        probe.step()
        moments[name] = flatten_state({}, {name: probe})
    return moments


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def _moments(
    name: str, state: Mapping[str, Tensor], optimizer: Optimizer
) -> dict[int, dict[str, Tensor]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    prefix = f"{name}{_OPTIMIZER}"
    for full, value in state.items():
        if not full.startswith(prefix):
            continue
        index, _, key = full.removeprefix(prefix).partition(".")
        if not (index.isdecimal() and int(index) < len(parameters)) or (
            value.dim() > 0 and value.shape != parameters[int(index)].shape
        ):
            raise ValueError(f"the saved parameters do not fit this agent: {full!r} has no place")
        # Cloned: optimizers write into the tensors that they are given.
        entries.setdefault(int(index), {})[key] = value.clone()
    return entries
