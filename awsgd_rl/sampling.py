"""Draws from unnormalised scores by the inverse of the cumulative sum, in float64.

Every table, softmax and policy of this package draws through this file. `torch.multinomial` is not
used: it refuses more than 2^24 categories, and at exactly 2^24 its frequencies are wrong.

Nothing here waits for the device: values are checked on the CPU only, where that costs no wait.
"""

import math

import torch
from torch import Tensor


def check_scores(scores: Tensor, name: str = "scores", largest: float = math.inf) -> Tensor:
    """Checks unnormalised scores and returns them as float64 without gradient.

    Reads the values, so on a CUDA device it waits for them: for constructions and updates.

    Args:
      scores: [N] scores.
      name: what the message calls them.
      largest: largest score allowed.

    Returns:
      [N] float64.

    Raises:
      ValueError: if scores is not a vector, is empty, or has an entry that is negative, infinite,
        NaN or larger than `largest`.
    """
    if scores.dim() != 1 or scores.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(scores.shape)}, expected a vector of one or more entries"
        )
    scores = scores.detach().to(torch.float64)
    low, high = (bound.item() for bound in torch.aminmax(scores))
    if not (low >= 0.0 and high < math.inf and high <= largest):
        raise ValueError(
            f"{name} ranges from {low:g} to {high:g}, expected finite numbers from 0 to "
            f"{largest:g}: mend the signal that they come from"
        )
    return scores


def cumulative_scores(scores: Tensor) -> Tensor:
    """Running total of scores, in float64, exactly flat at every zero score.

    Args:
      scores: [..., N] finite and non-negative.

    Returns:
      [..., N] float64, never decreasing along the last axis.
    """
    cumulative = scores.cumsum(-1, dtype=torch.float64).contiguous()
    return cumulative if scores.device.type == "cpu" else _flatten(scores, cumulative)


def _flatten(scores: Tensor, cumulative: Tensor) -> Tensor:
    # A parallel scan adds in another order at every entry, so that a zero score may come out an
    # ulp above its neighbour, and be drawn.
    return torch.where(scores > 0, cumulative, 0.0).cummax(-1).values.contiguous()


def draw_uniforms(
    count: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    stratified: bool = False,
) -> Tensor:
    """Uniform numbers in [0, 1), in float64.

    Args:
      count: how many.
      device: where.
      generator: a generator of that device; None takes PyTorch's own.
      stratified: one number in each of `count` equal strata, in increasing order. A mean over the
        whole batch stays unbiased and varies less; but its draws are not independent, so a
        standard error computed from them is too large, and a part of the batch is not a sample.

    Returns:
      [count] float64.
    """
    uniforms = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    if not stratified:
        return uniforms
    return (torch.arange(count, device=device) + uniforms) / count


def sample_from_cumulative(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """Inverts a running total: the first entry that exceeds `uniforms` times the total.

    An item of zero score adds nothing to the total, and is never returned: not at a uniform of
    exactly 0, and not at 1, which returns the last item of positive score.

    Args:
      cumulative: [N] float64, from `cumulative_scores`, with a positive last entry.
      uniforms: [count] numbers in [0, 1].

    Returns:
      [count] long, items in 0 ... N - 1.
    """
    total = cumulative[-1:]
    items = torch.searchsorted(cumulative, uniforms * total, right=True)
    return torch.minimum(items, torch.searchsorted(cumulative, total))


def sample_from_scores(
    scores: Tensor,
    count: int,
    *,
    generator: torch.Generator | None = None,
    stratified: bool = False,
) -> Tensor:
    """Draws items with replacement, with probability scores / sum(scores).

    O(N + count log N). For many draws from the same scores keep their `cumulative_scores`.

    Args:
      scores: [N] finite, non-negative, not all zero; any number of items, beyond 2^24 too. The
        values are checked on the CPU; elsewhere that would stall the device, and is up to you.
      count: number of draws.
      generator: a generator of the scores' device; None takes PyTorch's own.
      stratified: as in `draw_uniforms`.

    Returns:
      [count] long.

    Raises:
      ValueError: if the scores are not a non-empty vector, count is below 1, or (on the CPU) a
        score is negative, infinite or NaN, or all are zero.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    if scores.device.type == "cpu":
        scores = check_scores(scores)
        if not bool(scores.any()):
            raise ValueError("all scores are 0, expected a positive one: nothing can be drawn")
    elif scores.dim() != 1 or scores.numel() == 0:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected a non-empty vector")
    uniforms = draw_uniforms(
        count, device=scores.device, generator=generator, stratified=stratified
    )
    return sample_from_cumulative(cumulative_scores(scores), uniforms)


def sample_rows(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws one column per row, with probability proportional to the row's entries.

    Args:
      probabilities: [B, A] finite, non-negative; rows need not sum to 1, but must have a positive
        entry.
      generator: a generator of the same device; None takes PyTorch's own.

    Returns:
      [B] long, columns in 0 ... A - 1.

    Raises:
      ValueError: if the shape is not [B, A] with A of at least 1, or (on the CPU) the sum of a row
        is not a finite number above 0.
    """
    if probabilities.dim() != 2 or probabilities.shape[1] == 0:
        raise ValueError(f"probabilities has shape {tuple(probabilities.shape)}, expected [B, A]")
    cumulative = cumulative_scores(probabilities.detach())
    total = cumulative[:, -1:].contiguous()
    if total.device.type == "cpu" and len(total) > 0:
        _check_totals(total)
    uniforms = draw_uniforms(len(probabilities), device=total.device, generator=generator)
    items = torch.searchsorted(cumulative, uniforms.unsqueeze(1) * total, right=True)
    return torch.minimum(items, torch.searchsorted(cumulative, total)).squeeze(1)


def _check_totals(total: Tensor) -> None:
    low, high = (bound.item() for bound in torch.aminmax(total))
    # A NaN is both bounds, and compares to nothing.
    if not (low > 0.0 and high < math.inf):
        row = int((~((total > 0.0) & (total < math.inf))).long().argmax())
        raise ValueError(
            f"row {row} of probabilities sums to {total[row].item():g}, expected a finite number "
            "above 0: mend what they come from, such as a network whose weights became NaN"
        )
