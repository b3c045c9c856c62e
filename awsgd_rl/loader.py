"""Batches that a proposal draws, each with its draw: from tensors, or through PyTorch's DataLoader.

Every batch comes with the `Draw` that chose it, whose log q is that of its own time: a proposal
may move while workers still fetch batches that it drew before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.batch_sampler import ProposalBatchSampler, uniform_log_target

__all__ = ["Draw", "ImportanceLoader", "ProposalBatchSampler", "uniform_log_target"]

_SHORTEST: Final = 1e-9
_OURS: Final = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order"}


class ImportanceLoader:
    """Iterates over `(batch, draw)`: what a training loop needs to weight each example by p / q.

        loader = ImportanceLoader((x, y), proposal, batch_size=100)
        for (x_batch, y_batch), draw in loader:
            weights = importance_weights(loader.log_p(draw), draw.log_q)

    Tensors are indexed where they are, without a DataLoader, and every draw is made when its batch
    is asked for. A map-style Dataset goes through a DataLoader, whose workers get indices only:
    the proposal stays in the main process, which draws num_workers · prefetch_factor batches ahead.

    With a clock it iterates over `(batch, draw, seconds)`, for the cost of
    `ScoreFunctionAdaptation.update` (time-aware AW-SGD: Bouchard 2015, Algorithm 3). The time is
    taken where the example is fetched, in the worker if there are any, and collating is left out.
    Examples that are fetched together (tensors, or a Dataset with `__getitems__`) share the time.

    Args:
      data: a tensor or a tuple of tensors with one row per example, or a map-style Dataset.
      proposal: as for `ProposalBatchSampler`; None is shuffled epochs without replacement.
      batch_size: examples per batch B.
      batches: batches per epoch; None is N // B, and at least 1.
      generator: a generator of the proposal's device, or a seed; None as in `ProposalBatchSampler`.
        Workers are seeded from it too, anew in each epoch; with persistent_workers=True once, when
        they start.
      clock: a function that returns seconds, for example `time.perf_counter`; or [N] simulated
        seconds that the access to each example takes. None does not time.
      num_workers: processes that fetch from a Dataset; 0 is the main process.
      pin_memory: as for DataLoader.
      collate_fn: as for DataLoader; None is `default_collate`.
      **options: more for the DataLoader, such as persistent_workers or prefetch_factor.

    Raises:
      ValueError: if data is empty, an IterableDataset, or tensors of several lengths; if options of
        a DataLoader come with tensors, or one is given that is the loader's own; if simulated
        seconds are not N positive numbers; and as `ProposalBatchSampler`.
    """

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...] | Dataset[Any] | Sequence[Any],
        proposal: Proposal | None,
        batch_size: int,
        *,
        batches: int | None = None,
        generator: torch.Generator | int | None = None,
        clock: Callable[[], float] | Tensor | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        n, tensors = _size_and_tensors(data)
        if isinstance(clock, Tensor):
            _check_seconds(clock, n)
        device = tensors[0].device if tensors else "cpu"
        self.sampler = ProposalBatchSampler(
            proposal, n, batch_size, batches=batches, generator=generator, device=device
        )
        self.clock = clock
        self._tensors, self._single = tensors, isinstance(data, Tensor)
        if tensors:
            if num_workers or pin_memory or collate_fn or options:
                raise ValueError(
                    "got options of a DataLoader, which tensors do without: leave them out, or "
                    "wrap the tensors in a TensorDataset"
                )
            return
        if refused := _OURS & set(options):
            raise ValueError(f"got {sorted(refused)}, which the loader sets itself: leave them out")
        collate = collate_fn or default_collate
        timed = clock is not None and not isinstance(clock, Tensor)
        self._loader: DataLoader[Any] = DataLoader(
            _Timed(data, clock) if timed else data,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_CollateTimed(collate) if timed else collate,
            # Not PyTorch's own, which a resumed epoch would move once more than an unbroken one.
            generator=torch.Generator(),
            **options,
        )

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._from_tensors() if self._tensors else self._from_dataset()

    def log_p(self, draw: Draw) -> Tensor:
        """[B] log density of each draw under the uniform target over the N examples."""
        return uniform_log_target(draw, self.sampler.n)

    @property
    def epoch(self) -> int:
        """Epochs that are over, or were left early."""
        return self.sampler.epoch

    def state_dict(self) -> dict[str, Any]:
        """As `ProposalBatchSampler.state_dict`; also bit for bit with workers that draw ahead.

        The random numbers of the workers (data augmentation) start again at the beginning of an
        epoch only: save between two epochs where they matter. With persistent_workers=True they
        never start again: leave it out where a resumed run must be exact.
        """
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `ProposalBatchSampler.load_state_dict`."""
        self.sampler.load_state_dict(state)

    def _from_tensors(self) -> Iterator[tuple[Any, ...]]:
        tensors, clock = self._tensors, self.clock
        device = tensors[0].device
        for draw in self.sampler.draws():
            start = clock() if callable(clock) else 0.0
            items = draw.items.to(device)
            batch = tuple([tensor.index_select(0, items) for tensor in tensors])
            found = batch[0] if self._single else batch
            if clock is None:
                yield found, draw
            elif isinstance(clock, Tensor):
                yield found, draw, self._simulated(draw)
            else:
                share = max((clock() - start) / len(items), _SHORTEST)
                yield found, draw, torch.full_like(draw.log_q, share)

    def _from_dataset(self) -> Iterator[tuple[Any, ...]]:
        self.sampler._start()
        # A seed per epoch: augmentation in workers repeats with the seed, and differs by epoch.
        seed = (self.sampler.generator.initial_seed() + self.epoch) % 2**63
        self._loader.generator.manual_seed(seed)
        for batch, draw in self.sampler.paired(self._loader):
            if self.clock is None:
                yield batch, draw
            elif isinstance(self.clock, Tensor):
                yield batch, draw, self._simulated(draw)
            else:
                yield batch[0], draw, batch[1].to(draw.log_q.device)

    def _simulated(self, draw: Draw) -> Tensor:
        assert isinstance(self.clock, Tensor)
        seconds = self.clock.index_select(0, draw.items.to(self.clock.device))
        return seconds.to(draw.log_q)


class _Timed(Dataset[Any]):
    """A dataset whose examples come with the seconds that it took to fetch them."""

    def __init__(self, dataset: Any, clock: Callable[[], float]) -> None:
        self.dataset, self.clock = dataset, clock

    def __getitems__(self, items: list[int]) -> list[tuple[Any, float]]:
        if _fetches_together(self.dataset):
            start = self.clock()
            examples = self.dataset.__getitems__(items)
            share = (self.clock() - start) / len(items)
            return [(example, share) for example in examples]
        timed = []
        for item in items:
            start = self.clock()
            example = self.dataset[item]
            timed.append((example, self.clock() - start))
        return timed

    def __getitem__(self, item: int) -> tuple[Any, float]:
        return self.__getitems__([item])[0]


def _fetches_together(dataset: Any) -> bool:
    # A Subset has `__getitems__` whatever it is of, which may fetch one example after the other.
    if type(dataset) is Subset:
        return _fetches_together(dataset.dataset)
    return getattr(dataset, "__getitems__", None) is not None


class _CollateTimed:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, timed: list[tuple[Any, float]]) -> tuple[Any, Tensor]:
        seconds = torch.tensor([seconds for _, seconds in timed], dtype=torch.float64)
        # A coarse clock may show no time at all, and a cost of 0 would be refused.
        return self.collate([example for example, _ in timed]), seconds.clamp_min(_SHORTEST)


def _size_and_tensors(data: Any) -> tuple[int, tuple[Tensor, ...]]:
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple) and data and all(isinstance(x, Tensor) for x in data):
        lengths = [len(x) if x.dim() else 0 for x in data]
        if len(set(lengths)) != 1 or len({x.device for x in data}) != 1:
            devices = [str(x.device) for x in data]
            raise ValueError(
                f"tensors have {lengths} rows on {devices}, expected as many rows in each, "
                "one per example, on one device"
            )
        n = lengths[0]
    elif isinstance(data, IterableDataset) or not all(
        hasattr(data, name) for name in ("__getitem__", "__len__")
    ):
        raise ValueError(
            f"data is a {type(data).__name__}, expected tensors or a map-style Dataset, with "
            "__getitem__ and __len__: a stream cannot be drawn from"
        )
    else:
        n, data = len(data), ()
    if n == 0:
        raise ValueError("data is empty, expected one or more examples")
    return n, data


def _check_seconds(seconds: Tensor, n: int) -> None:
    if seconds.shape != (n,):
        raise ValueError(
            f"clock has shape {tuple(seconds.shape)}, expected {(n,)}: one per example"
        )
    bad = (~((seconds > 0.0) & seconds.isfinite())).nonzero()
    if len(bad):
        item = int(bad[0])
        raise ValueError(f"clock[{item}] is {seconds[item].item():g}, expected positive seconds")
