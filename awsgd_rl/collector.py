"""One place to log how well a proposal does, and to be warned where it cannot do well."""

import warnings
from collections.abc import MutableMapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from awsgd_rl.base import Draw
from awsgd_rl.diagnostics import largest_weight
from awsgd_rl.validation import require_fraction, require_integer
from awsgd_rl.weights import effective_sample_size

LIGHT_TAIL: Final = 1.1
"""Below this headroom the best of all proposals saves less than a tenth of the draws."""
COLLAPSED: Final = 0.1
"""Below this share of the batch a tenth of the draws has all the weight."""
HARMFUL: Final = 0.9
"""Below this variance ratio uniform draws are better; it leaves room for noise."""

_TINY: Final = torch.finfo(torch.float64).tiny
_FIRST_LOOK: Final = 10
_BLOCK: Final = 100
_NOT_UNIFORM: Final = 0.999
_OTHER_OPTIMUM: Final = ("adam", "rmsprop")
_NAMES: Final = (
    "effective_sample_size",
    "largest_weight",
    "variance_ratio",
    "headroom",
    "distance",
    "uniform_distance",
)


class SamplingWarning(UserWarning):
    """Theory or the measurements say that the proposal will not help."""


class ScalarWriter(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter` has."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> Any:
        """Logs one number."""


class Collector:
    """Running means and a history of how well the draws do: call `update` in every step.

    All is measured from the weighted draws themselves. With w = p/q and the signal g:

    - `effective_sample_size`: (Σ w)² / (B Σ w²), as a share of the batch (Kish 1965);
    - `largest_weight` of the batch;
    - `variance_ratio`: E_q[w g²] / E_q[w² g²], the second moment of on-policy draws over that of
      these ones: above 1 the proposal pays. The mean gradient is taken as 0;
    - `headroom`: E_p[g²] / (E_p g)², what the best proposal would reach;
    - `distance` and `uniform_distance`: total variation of q, and of the target, from the best
      proposal; the first should be the smaller one (Lahire 2023). Estimated over the whole data by
      ½ E_q|1 − w g / E_q[w g]| and ½ E_q[w |1 − g / E_q[w g]|]; biased by O(1/√B). The paper's
      Algorithm 1 to the letter needs uniform draws: `diagnostics.distances_to_optimum`.

    Ratios are those of running means, not means of ratios. All of it is blind to what is never
    drawn. Values stay on the device until they are asked for; the warnings look at them once in a
    hundred measured steps. Each warning is given once.

    Args:
      optimizer: the model's, to be warned of one that norm-proportional draws do not suit.
      every: measures only one step in so many, since measuring costs about as much as drawing.
      decay: how much of the running means is kept per measured step, in [0, 1).

    Raises:
      ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 10,
        decay: float = 0.99,
    ) -> None:
        self.every = require_integer("every", every)
        self.decay = require_fraction("decay", decay)
        self.steps = 0
        """Calls of `update`."""
        self._unsuited = None if optimizer is None else _unsuited_name(optimizer)
        self._total: Tensor | None = None
        self._weight = 0.0
        self._blocks: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._given: set[str] = set()

    def update(self, draw: Draw, weights: Tensor, signal: Tensor) -> None:
        """Takes in one step.

        Args:
          draw: the draw.
          weights: [B] p/q of each draw.
          signal: [B] norm of each example's gradient, without its weight.

        Raises:
          ValueError: if shapes differ. Nothing is taken in then.
        """
        if not draw.log_q.shape == weights.shape == signal.shape:
            raise ValueError(
                f"weights has shape {tuple(weights.shape)} and signal {tuple(signal.shape)}, "
                f"expected {tuple(draw.log_q.shape)}: one of each per draw"
            )
        self.steps += 1
        if (self.steps - 1) % self.every:
            return
        row = _measure(weights, signal)
        # A restored total is on the CPU.
        total = torch.zeros_like(row) if self._total is None else self._total.to(row.device)
        self._total = total.mul_(self.decay).add_(row)
        self._weight = self.decay * self._weight + 1.0
        self._rows.append(row)
        if len(self._rows) == _BLOCK:
            self._blocks.append(torch.stack(self._rows))
            self._rows = []
        elif self._blocks or len(self._rows) != _FIRST_LOOK:
            return
        self._warn(self.summary())

    def summary(self) -> dict[str, float]:
        """The running means by name; empty before the first step. Waits for the device."""
        if self._total is None:
            return {}
        return dict(zip(_NAMES, _derive(self._total / self._weight).tolist(), strict=True))

    def history(self) -> dict[str, Tensor]:
        """[T] of each measured step by itself, by name, and the `step` it was. On the CPU."""
        rows = self._measured()
        steps = torch.arange(len(rows)) * self.every
        return {"step": steps, **dict(zip(_NAMES, _derive(rows).unbind(-1), strict=True))}

    def log_to(
        self,
        writer: ScalarWriter | MutableMapping[str, Any],
        step: int | None = None,
        *,
        prefix: str = "sampling/",
    ) -> None:
        """Writes the running means, and gives the warnings that are due. Waits for the device.

        Args:
          writer: what has TensorBoard's `add_scalar`, or a dictionary to put them into.
          step: the step to write at; None counts the calls of `update`. A dictionary has none.
          prefix: goes before each name.
        """
        means = self.summary()
        self._warn(means)
        for name, value in means.items():
            if isinstance(writer, MutableMapping):
                writer[prefix + name] = value
            else:
                writer.add_scalar(prefix + name, value, self.steps if step is None else step)

    def state_dict(self) -> dict[str, Any]:
        """Running means, history, and which warnings were given."""
        return {
            "every": self.every,
            "steps": self.steps,
            "total": None if self._total is None else self._total.to("cpu", copy=True),
            "weight": self._weight,
            "history": self._measured(),
            "given": sorted(self._given),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a collector with the same `every`.

        Raises:
          ValueError: if `every` differs.
        """
        if state["every"] != self.every:
            raise ValueError(f"the state has every={state['every']}, expected {self.every}")
        total = state["total"]
        self.steps, self._weight = state["steps"], state["weight"]
        self._total = None if total is None else total.clone()
        rows = state["history"].clone()
        self._blocks, self._rows = ([rows] if len(rows) else []), []
        self._given = set(state["given"])

    def _measured(self) -> Tensor:
        """[T, ...] the raw rows of all measured steps, on the CPU."""
        rows = [torch.stack(self._rows)] if self._rows else []
        none = torch.empty(0, 8, dtype=torch.float64)
        return torch.cat([none, *(block.cpu() for block in (*self._blocks, *rows))])

    def _warn(self, means: dict[str, float]) -> None:
        for name, message in _faults(means, self._unsuited).items():
            if name not in self._given:
                self._given.add(name)
                warnings.warn(message, SamplingWarning, stacklevel=3)


def _measure(weights: Tensor, signal: Tensor) -> Tensor:
    """[8] the means over one batch from which all else is derived."""
    w, g = weights.detach().to(torch.float64), signal.detach().to(torch.float64)
    wg = w * g
    mean = wg.mean().clamp_min(_TINY)
    return torch.stack(
        (
            effective_sample_size(w) / len(w),
            largest_weight(w),
            w.mean(),
            wg.mean(),
            (wg * g).mean(),
            wg.square().mean(),
            0.5 * (1.0 - wg / mean).abs().mean(),
            0.5 * (w * (1.0 - g / mean).abs()).mean(),
        )
    )


def _derive(rows: Tensor) -> Tensor:
    """[..., 6] in the order of `_NAMES`, from [..., 8]."""
    share, largest, w, wg, wgg, wgwg, distance, uniform_distance = rows.unbind(-1)
    return torch.stack(
        (share, largest, wgg / wgwg, w * wgg / wg.square(), distance, uniform_distance), -1
    )


def _faults(means: dict[str, float], unsuited: str | None) -> dict[str, str]:
    """What is to be warned of, by name."""
    faults: dict[str, str] = {}
    if not means:
        return faults
    share, ratio = means["effective_sample_size"], means["variance_ratio"]
    headroom = means["headroom"]
    if unsuited is not None and share < _NOT_UNIFORM:
        faults["optimizer"] = (
            f"the model's optimizer is {unsuited}: draws proportional to gradient norms are the "
            "best for SGD, with momentum too, but not for Adam and RMSProp, where nothing says "
            "that they beat uniform draws (Lahire 2023, section 3.2): use SGD with them"
        )
    # From collapsed weights the headroom is that of the few draws that have them.
    if headroom < LIGHT_TAIL and share >= COLLAPSED:
        faults["light tail"] = (
            "gradient norms are light-tailed: the best of all proposals would lower the second "
            f"moment by a factor of {headroom:.2f} only, so that neither hashing nor a table "
            "repays its cost: draw uniformly"
        )
    if share < COLLAPSED:
        faults["collapse"] = (
            f"the effective sample size is {share:.1%} of the batch, a few draws make the step "
            f"(variance ratio {ratio:.2g}, blind to what is never drawn): mix the proposal with "
            "uniform draws, by uniform_share or MixtureProposal"
        )
    if ratio < HARMFUL and share < _NOT_UNIFORM:
        faults["variance"] = (
            f"these draws vary more than uniform ones would (variance ratio {ratio:.2g}), the "
            "proposal is far from the gradient norms: mix it with uniform draws, or move it slower"
        )
    return faults


def _unsuited_name(optimizer: torch.optim.Optimizer) -> str | None:
    # By name, so that optimizers of other packages count too.
    names = [kind.__name__.lower() for kind in type(optimizer).__mro__]
    if any(part in name for name in names for part in _OTHER_OPTIMUM):
        return type(optimizer).__name__
    return None
