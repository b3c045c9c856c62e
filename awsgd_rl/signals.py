"""Signals: how large is each example's gradient? Exact, bounded, or guessed by the loss.

A signal is what an adaptation moves the proposal by: an estimate of the norm of the example's
gradient, without its importance weight. A factor common to all examples does no harm.

| signal | costs | is |
|---|---|---|
| `per_example_gradient_norms` | one more backward pass, B gradients in memory | exact |
| `*_signal(outputs, labels, features=h)` | a few operations | exact for the last layer's gradient |
| `*_signal(outputs, labels)` | a few operations | a bound up to a common factor |
| `loss_signal(losses)` | nothing | a guess: right where large losses have large gradients |

Katharopoulos & Fleuret (2018) bound the whole gradient by a constant times that of the last layer's
output, where normalisation layers keep the layers' gradients alike. Results are float64 and without
gradient. Every function reads its values to check them, so on a CUDA device it waits for them.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

_NUMBERS_AT_ONCE: Final = 1 << 24


def per_example_gradient_norms(
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """The exact norm ‖∇_w ℓ_i‖ of each example's gradient, over the parameters that require one.

    By `torch.func` (vmap of grad): about the cost of another backward pass, but a gradient per
    example of a chunk is in memory. The model must treat examples one by one: batch statistics and
    dropout are refused, so call `model.eval()` around it.

    Args:
      model: takes [1, ...] inputs; buffers are read, never written.
      loss: takes the model's output and the target of one example, both with a first axis of 1, and
        returns one number, for example `torch.nn.functional.cross_entropy`.
      inputs: [B, ...].
      targets: [B, ...].
      chunk_size: examples at a time; None keeps to 2^24 numbers.

    Returns:
      [B] float64.

    Raises:
      ValueError: if the model normalises over the batch or drops out, has no parameter that
        requires a gradient, the lengths differ, or a norm is infinite or NaN.
    """
    _check_one_by_one(model)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"got {len(inputs)} inputs and {len(targets)} targets, expected as many")
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())
    size = sum(p.numel() for p in parameters.values())
    if size == 0:
        raise ValueError("no parameter of the model requires a gradient, expected one or more")

    def loss_of_one(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        output = functional_call(model, {**parameters, **fixed}, (x.unsqueeze(0),))
        return loss(output, target.unsqueeze(0)).reshape(())

    def squared_norm(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        gradients = grad(loss_of_one)(parameters, x, target)
        # Squares leave the range of float16 and float32 long before the norm does.
        squares = [g.double().square().sum() for g in gradients.values()]
        return torch.stack(squares).sum()

    over_batch = vmap(
        squared_norm,
        in_dims=(None, 0, 0),
        chunk_size=max(1, _NUMBERS_AT_ONCE // size) if chunk_size is None else chunk_size,
    )
    try:
        norms: Tensor = over_batch(parameters, inputs.detach(), targets.detach()).sqrt()
    except RuntimeError as error:
        if "randomness" not in str(error):
            raise
        raise ValueError("the model draws random numbers: call model.eval() first") from error
    finite = norms.isfinite()
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        raise ValueError(
            f"the gradient norm of example {i} is {norms[i]:g}, expected a finite number"
        )
    return norms


def cross_entropy_signal(
    logits: Tensor, labels: Tensor, *, features: Tensor | None = None, bias: bool = True
) -> Tensor:
    """‖softmax(z) − onehot(y)‖, the gradient of the cross-entropy in the last layer's output.

    Args:
      logits: [B, K] z.
      labels: [B] integers from 0 to K − 1.
      features: [B, D] input of the last layer: then ‖∇_W ℓ‖ of that layer, which is
        ‖∇_z ℓ‖ √(‖h‖² + 1) with its bias.
      bias: whether that layer has a bias.

    Returns:
      [B] float64.

    Raises:
      ValueError: if shapes do not fit, a label is missing, no integer or out of range, or an output
        or a feature is infinite or NaN; the message names the row.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and labels {tuple(labels.shape)}, "
            "expected [B, K] and [B]"
        )
    classes = _as_classes(labels, logits.shape[1])
    others = torch.softmax(logits.detach(), 1, dtype=torch.float64)
    others = others.scatter(1, classes.unsqueeze(1), 0.0)
    # 1 − p_y as the sum of the others: a difference would be 0 long before the gradient is.
    norms = torch.hypot(torch.linalg.vector_norm(others, dim=1), others.sum(1))
    norms = _times_input(norms, features, bias)
    return _checked(norms, norms.sum(), logits=logits, features=features)


def binary_cross_entropy_signal(
    logits: Tensor, labels: Tensor, *, features: Tensor | None = None, bias: bool = True
) -> Tensor:
    """‖ς(z) − y‖, the gradient of the binary cross-entropy with logits, summed over outputs.

    Args:
      logits: [B] or [B, ...] z.
      labels: as logits, each 0 or 1, of any type.
      features: [B, D] input of the last layer, as in `cross_entropy_signal`.
      bias: whether that layer has a bias.

    Returns:
      [B] float64.

    Raises:
      ValueError: if shapes do not fit, a label is neither 0 nor 1, or an output or a feature is
        infinite or NaN; the message names the row.
    """
    _check_same("logits", logits, "labels", labels)
    if features is None and logits.dim() == 1 and logits.device.type == labels.device.type == "cpu":
        from awsgd_rl import signal_kernels

        narrow = logits.dtype in (torch.float16, torch.bfloat16)  # unknown to NumPy or numba
        made = signal_kernels.binary_cross_entropy(
            (logits.detach().float() if narrow else logits.detach()).numpy(),
            labels.detach().to(torch.float64).numpy(),
        )
        if len(made) > 0:
            return torch.from_numpy(made)
    # 1 for y = 0 and −1 for y = 1: ς(−z) is what 1 − ς(z) loses to rounding.
    signs = 1.0 - 2.0 * labels.detach().to(torch.float64)
    proper = signs.abs() == 1.0
    if not bool(proper.all()):
        i = int((~_rows(proper).all(1)).nonzero()[0])
        raise ValueError(f"label {i} is {labels[i].tolist()}, expected 0 or 1")
    margins = signs * logits.detach()
    norms = _times_input(_norm_of_rows(margins.sigmoid()), features, bias)
    # The sigmoid of an infinite logit is finite, 0 · ∞ is not.
    total = norms.sum() + (0.0 * margins).sum()
    return _checked(norms, total, logits=logits, features=features)


def squared_loss_signal(
    outputs: Tensor, targets: Tensor, *, features: Tensor | None = None, bias: bool = True
) -> Tensor:
    """2 ‖z − y‖, the gradient of the squared loss Σ_d (z_d − y_d)² in the last layer's output.

    For the mean over D outputs (`mse_loss`) it is D times the gradient: a common factor.

    Args:
      outputs: [B] or [B, ...] z.
      targets: as outputs. [B, 1] beside [B] is refused, not broadcast.
      features: [B, D] input of the last layer, as in `cross_entropy_signal`.
      bias: whether that layer has a bias.

    Returns:
      [B] float64.

    Raises:
      ValueError: if shapes do not fit, or an output, a target or a feature is infinite or NaN; the
        message names the row.
    """
    _check_same("outputs", outputs, "targets", targets)
    residuals = outputs.detach().to(torch.float64) - targets.detach()
    norms = _times_input(2.0 * _norm_of_rows(residuals), features, bias)
    return _checked(norms, norms.sum(), outputs=outputs, targets=targets, features=features)


def loss_signal(losses: Tensor) -> Tensor:
    """The loss itself, for losses of at least 0.

    Args:
      losses: [B].

    Returns:
      [B] float64.

    Raises:
      ValueError: if losses is not a vector, or one is negative, infinite or NaN.
    """
    if losses.dim() != 1 or losses.numel() == 0:
        raise ValueError(f"losses has shape {tuple(losses.shape)}, expected [B]: reduction='none'")
    signal = losses.detach().to(torch.float64)
    proper = signal.isfinite() & (signal >= 0.0)
    if not bool(proper.all()):
        i = int((~proper).nonzero()[0])
        raise ValueError(f"loss {i} is {signal[i]:g}, expected a finite number of at least 0")
    return signal


def check_labels(labels: Tensor, n_classes: int) -> Tensor:
    """Class labels as `ClassProposal` takes them, of any type that they were read as.

    Args:
      labels: [N] of an integer type, or floats that are whole numbers.
      n_classes: number of classes K.

    Returns:
      [N] long.

    Raises:
      ValueError: if labels is not a vector, or one is missing (NaN), negative, no integer or out of
        range; the message names the row.
    """
    if labels.dim() != 1 or labels.numel() == 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected a vector")
    return _as_classes(labels, n_classes)


def _as_classes(labels: Tensor, n_classes: int) -> Tensor:
    low, high = (bound.item() for bound in torch.aminmax(labels))
    whole = not labels.is_floating_point() or bool((labels == labels.floor()).all())
    if not (low >= 0 and high < n_classes and whole):
        wrong = ~((labels >= 0) & (labels < n_classes) & (labels == labels.floor()))
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {i} is {labels[i].item()}, expected an integer from 0 to {n_classes - 1}"
        )
    return labels.long()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _norm_of_rows(x: Tensor) -> Tensor:
    return x.abs() if x.dim() == 1 else torch.linalg.vector_norm(_rows(x), dim=1)


def _times_input(norms: Tensor, features: Tensor | None, bias: bool) -> Tensor:
    if features is None:
        return norms
    if features.dim() != 2 or len(features) != len(norms):
        raise ValueError(
            f"features has shape {tuple(features.shape)}, expected [{len(norms)}, D]: the input of "
            "the last layer"
        )
    # Four times as fast as in float64; but in float16 a norm overflows at 65,504.
    wide = torch.promote_types(features.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(features.detach(), dim=1, dtype=wide).to(torch.float64)
    return norms * (torch.hypot(lengths, torch.ones_like(lengths)) if bias else lengths)


def _check_same(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape != other.shape or x.dim() == 0 or x.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and {other_name} {tuple(other.shape)}, "
            "expected the same [B, ...]"
        )


def _checked(norms: Tensor, total: Tensor, **causes: Tensor | None) -> Tensor:
    """The norms, after one look at a total; which row is at fault is asked only where it is bad."""
    if math.isfinite(total.item()):
        return norms
    for name, x in causes.items():
        if x is not None and len(rows := (~_rows(x).isfinite().all(1)).nonzero()):
            raise ValueError(
                f"row {int(rows[0])} of {name} has a NaN or infinite entry, expected finite numbers"
            )
    i = int((~norms.isfinite()).nonzero()[0]) if not bool(norms.isfinite().all()) else 0
    raise ValueError(f"the signal of row {i} is {norms[i]:g}, expected a finite number: scale data")


def _check_one_by_one(model: nn.Module) -> None:
    for path, module in model.named_modules():
        kind = f"{type(module).__name__} {path}".rstrip()
        if isinstance(module, nn.modules.batchnorm._NormBase):
            over_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
            stored = module.running_mean is not None
            if (over_batch and not stored) or (module.training and (over_batch or stored)):
                raise ValueError(
                    f"{kind} takes its statistics from the batch, where no example has a gradient "
                    "of its own: call model.eval() first, or normalise by GroupNorm"
                )
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{kind} drops out at random: call model.eval() first")
