"""Batches of indices that a proposal draws, for PyTorch's DataLoader, each with its draw."""

import math
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.proposals import ProductProposal, SoftmaxProposal
from awsgd_rl.validation import require_integer

_Batch = TypeVar("_Batch")
_CHUNK: Final = 1 << 16


def uniform_log_target(draw: Draw, n: int) -> Tensor:
    """Log density −log n of each draw under the uniform target over n examples.

    Args:
      draw: the draw.
      n: number of examples.

    Returns:
      [B] float64.
    """
    return torch.full_like(draw.log_q, -math.log(n))


class ProposalBatchSampler(Sampler[list[int]]):
    """A `batch_sampler` for your own DataLoader; `paired` gives each of its batches the draw.

        sampler = ProposalBatchSampler(proposal, len(dataset), batch_size=100)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2)
        for (x, y), draw in sampler.paired(loader): ...

    Draws are made in the main process when the DataLoader asks for them, which is
    num_workers · prefetch_factor batches ahead: an adaptation shows in the draws that much later.

    Args:
      proposal: what to draw with; None is the plain baseline: shuffled epochs without replacement,
        in which every draw has log q = −log n, so that all weights are 1.
      n: number of examples N.
      batch_size: examples per batch B.
      batches: batches per epoch; None is N // B, and at least 1. What is left of a shuffled epoch
        (fewer than B) is dropped, and a longer one is shuffled again.
      generator: a generator of the proposal's device, or a seed to make one; None takes a seed from
        PyTorch's own generator.
      device: where draws are made if there is neither a proposal nor a generator to say so.

    Raises:
      ValueError: if a number is below 1, there are fewer than B examples to shuffle, the proposal
        is conditional or is not one over n items, or an example can never be drawn as it is now: a
        mean that it takes part in would be biased.
    """

    def __init__(
        self,
        proposal: Proposal | None,
        n: int,
        batch_size: int,
        *,
        batches: int | None = None,
        generator: torch.Generator | int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n = require_integer("n", n)
        self.batch_size = require_integer("batch_size", batch_size)
        self.batches = require_integer(
            "batches", max(1, n // batch_size) if batches is None else batches
        )
        if proposal is None:
            if batch_size > n:
                raise ValueError(
                    f"batch_size is {batch_size}, expected at most {n} without a proposal"
                )
            given = generator.device if isinstance(generator, torch.Generator) else device
            self._device = torch.device(given)
        else:
            _check_support(proposal, n)
            self._device = _device_of(proposal)
        self.proposal = proposal
        self.generator = _as_generator(generator, self._device)
        self.epoch = 0
        """Epochs that are over, or were left early."""
        self.position = 0
        """Batches of the present epoch that were given out, with their draws."""
        self._ahead: deque[Draw] = deque()
        self._restored: deque[Draw] = deque()
        self._resumes = False
        self._order = torch.empty(0, dtype=torch.long, device=self._device)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        # Each iteration has a queue of its own, so that what an earlier one left behind, or one
        # that runs at the same time, cannot be taken for its draws.
        self._ahead = deque()
        return self._indices(self._ahead)

    def paired(self, loader: "DataLoader[_Batch]") -> Iterator[tuple[_Batch, Draw]]:
        """One epoch of the loader's batches, each with its draw.

        Args:
          loader: a DataLoader with this sampler as its `batch_sampler`.

        Yields:
          A batch, as the loader collates it, and its draw.

        Raises:
          ValueError: if the loader has another batch sampler, or gives batches out of order.
        """
        if loader.batch_sampler is not self:
            raise ValueError("the loader has another batch_sampler, expected this one")
        if not getattr(loader, "in_order", True):
            raise ValueError("the loader has in_order=False, expected True: draws come in order")
        self._start()
        batches: Iterator[_Batch] = iter(loader)
        ahead = self._ahead
        for batch in batches:
            draw = ahead.popleft()
            self._count()
            yield batch, draw

    def draws(self) -> Iterator[Draw]:
        """One epoch of draws, each made when it is asked for."""
        self._start()
        self._ahead = deque()
        for draw in self._epoch():
            self._count()
            yield draw

    def state_dict(self) -> dict[str, Any]:
        """The generator, the place in the epoch, and what was drawn ahead; not the proposal.

        Counts what `paired` and `draws` gave out. After `load_state_dict` the next iteration goes
        on where this one is, bit for bit, if the proposal's own state is restored too.
        """
        return {
            "settings": self._settings(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "position": self.position,
            "ahead": [
                (draw.items.clone(), draw.log_q.clone())
                for draw in chain(self._ahead, self._restored)
            ],
            "order": self._order.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a sampler with the same settings.

        Raises:
          ValueError: if the sizes differ.
        """
        if state["settings"] != self._settings():
            raise ValueError(
                f"the state is of a sampler with {state['settings']}, expected {self._settings()}"
            )
        self.generator.set_state(state["generator"].cpu())
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = state["order"].to(self._device, copy=True)
        ahead = [Draw(*(x.to(self._device, copy=True) for x in pair)) for pair in state["ahead"]]
        self._resumes = self.position > 0
        self._restored, self._ahead = deque(ahead if self._resumes else ()), deque()

    def _settings(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "batch_size": self.batch_size,
            "batches": self.batches,
            "proposal": None if self.proposal is None else type(self.proposal).__name__,
        }

    def _start(self) -> None:
        if not self._resumes:
            self.epoch += self.position > 0
            self.position = 0
            self._order = self._order[:0]
            self._restored = deque()

    def _indices(self, ahead: deque[Draw]) -> Iterator[list[int]]:
        for draw in self._epoch():
            ahead.append(draw)
            yield draw.items.tolist()

    def _epoch(self) -> Iterator[Draw]:
        drawn, self._resumes = self._restored, False
        first = self.position + len(drawn)
        # One at a time: a state that is saved meanwhile holds those that are left.
        while drawn:
            yield drawn.popleft()
        for _ in range(first, self.batches):
            yield self._draw()

    def _draw(self) -> Draw:
        if self.proposal is not None:
            return self.proposal.draw(self.batch_size, generator=self.generator)
        if len(self._order) < self.batch_size:
            self._order = torch.randperm(self.n, generator=self.generator, device=self._device)
        items, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        log_q = torch.full(items.shape, -math.log(self.n), dtype=torch.float64, device=self._device)
        return Draw(items, log_q)

    def _count(self) -> None:
        self.position += 1
        if self.position == self.batches:
            self.epoch, self.position = self.epoch + 1, 0


def _check_support(proposal: Proposal, n: int) -> None:
    """Refuses what is not a proposal over the items 0 ... n − 1 with mass on each of them."""
    name = type(proposal).__name__
    if proposal.conditional:
        raise ValueError(f"{name} is conditional, expected a proposal that draws by itself")
    if any(isinstance(part, ProductProposal) for part in proposal.modules()):
        raise ValueError(
            f"{name} draws pairs, expected one over examples: index the pairs yourself"
        )
    for part in proposal.modules():
        size = _size_of(part) if isinstance(part, Proposal) else None
        if size is not None and size != n:
            raise ValueError(f"{type(part).__name__} is over {size} items, expected the data's {n}")
    device, total = _device_of(proposal), 0.0
    for start in range(0, n, _CHUNK):
        items = torch.arange(start, min(start + _CHUNK, n), device=device)
        try:
            with torch.no_grad():
                log_q = proposal.log_prob(items)
        except IndexError as error:
            raise ValueError(f"{name} has fewer than the {n} items of the data: {error}") from error
        massless = (log_q == -math.inf).nonzero()
        if len(massless):
            raise ValueError(
                f"item {start + int(massless[0])} can never be drawn by the {name}, expected mass "
                f"on all {n}: mix with uniform draws (uniform_share, floor or MixtureProposal)"
            )
        total += float(log_q.exp().sum())
    if not abs(total - 1.0) < 1e-6:
        raise ValueError(
            f"the {name}'s probabilities of items 0 to {n - 1} sum to {total:g}, expected 1: "
            "is it over another number of items than the data?"
        )


def _size_of(part: Proposal) -> int | None:
    """Its number of items, where it is plain: to ask for one item more stops a CUDA device."""
    if isinstance(part, SoftmaxProposal):
        return len(part.tau)
    for name in ("n", "scores", "labels", "groups"):
        size = getattr(part, name, None)
        if size is not None:
            return size if isinstance(size, int) else len(size)
    return None


def _device_of(proposal: Proposal) -> torch.device:
    for tensor in chain(proposal.parameters(), proposal.buffers()):
        return tensor.device
    return torch.device("cpu")


def _as_generator(generator: torch.Generator | int | None, device: torch.device) -> torch.Generator:
    if isinstance(generator, torch.Generator):
        if generator.device.type != device.type:
            raise ValueError(
                f"the generator is of {generator.device}, expected one of the proposal's {device}"
            )
        return generator
    if generator is None:
        generator = int(torch.randint(2**63 - 1, ()))
    return torch.Generator(device).manual_seed(require_integer("generator", generator, minimum=0))
