"""The protocol of every proposal: draw items, keep their densities.

A proposal q covers a target p where q > 0 wherever p > 0; only then are weighted means unbiased.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Draw(NamedTuple):
    """What was drawn, with its density at that time.

    Weights always use this `log_q`, never a recomputed one: the proposal may have moved since.
    """

    items: Tensor
    """[B] items, or [B, 2] pairs, or [B, D] continuous actions."""
    log_q: Tensor
    """[B] float64 log density of each item when it was drawn, without gradient."""


class Proposal(nn.Module, ABC):
    """A distribution to draw items from; τ are its parameters.

    To add one, write `log_prob` and `_draw`, and a row in the table of `tests/test_proposals.py`.
    """

    conditional: bool = False
    """Whether a draw is conditioned on `given`. Others refuse `given`."""

    def __init__(self) -> None:
        super().__init__()
        # Functions of the module, not bound methods: a deep copy must check and follow itself.
        # The first is public only from torch 2.5 on.
        self._register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _before_loading, with_module=True
        )
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        """Refuses a damaged state of this proposal alone, before anything is loaded.

        What is missing or of another shape is PyTorch's to refuse.

        Raises:
          ValueError: if it is damaged.
        """
        # A network of a user's may have infinite buffers, a mask.
        for name in (*dict(self.named_parameters()), *self._buffers):
            saved = state.get(prefix + name)
            if isinstance(saved, Tensor) and not bool(saved.isfinite().all()):
                raise ValueError(
                    f"the state is damaged: {prefix}{name} has a NaN or infinite entry, expected "
                    "finite numbers"
                )

    def _follow_state(self) -> None:
        """Computes anew what follows from a state that has been loaded, and is not in it."""

    @abstractmethod
    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """Log density of items under the proposal as it is now, differentiable in τ.

        Args:
          items: [B] or [B, D], as drawn.
          given: [B, ...] what each draw was conditioned on, if the proposal is conditional.

        Returns:
          [B] float64; −inf for items without mass.
        """

    @abstractmethod
    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        """Draws, with arguments already checked, and gradients off."""

    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
    ) -> Draw:
        """Draws items with replacement, and keeps their log densities.

        Args:
          count: number of draws B, at least 1; for a conditional proposal the length of `given`.
          generator: a generator of the proposal's device; None takes PyTorch's own.
          given: [B, ...] what each draw is conditioned on, if the proposal is conditional.

        Returns:
          The draw, without gradient.

        Raises:
          ValueError: if count is below 1, or `given` is missing, not wanted, or of another length.
        """
        if count < 1:
            raise ValueError(f"count is {count}, expected at least 1")
        self._check_given(count, given)
        with torch.no_grad():
            return self._draw(count, generator, given)

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """The items of `draw`, for use where no weight is needed.

        Args:
          count: number of draws B.
          generator: as in `draw`.
          given: as in `draw`.

        Returns:
          [B] or [B, D] items.

        Raises:
          ValueError: as `draw`.
        """
        return self.draw(count, generator=generator, given=given).items

    def _check_given(self, count: int, given: Tensor | None) -> None:
        name = type(self).__name__
        if not self.conditional:
            if given is not None:
                raise ValueError(f"{name} is not conditional: leave `given` out")
        elif given is None:
            raise ValueError(f"{name} is conditional: pass `given`, what each draw depends on")
        elif given.dim() == 0 or len(given) != count:
            raise ValueError(
                f"{name} got {count} items and `given` of shape {tuple(given.shape)}, "
                "expected one entry of `given` per item"
            )


def _before_loading(proposal: Proposal, state: dict[str, Any], prefix: str, *_: Any) -> None:
    # The outermost comes first, and checks those within too: of a damaged state nothing is loaded.
    for path, part in proposal.named_modules():
        if isinstance(part, Proposal):
            part._check_state(state, f"{prefix}{path}." if path else prefix)


def _after_loading(proposal: Proposal, _incompatible_keys: Any) -> None:
    proposal._follow_state()
