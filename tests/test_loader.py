import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from awsgd_rl.adaptation import ScoreFunctionAdaptation, TableAdaptation
from awsgd_rl.loader import ImportanceLoader, ProposalBatchSampler, uniform_log_target
from awsgd_rl.proposals import (
    ClassProposal,
    MixtureProposal,
    PolicyProposal,
    ProductProposal,
    Proposal,
    SoftmaxProposal,
    TableProposal,
    UniformProposal,
)
from awsgd_rl.weights import importance_weights

N, B = 30, 4
X = torch.arange(N, dtype=torch.float32).unsqueeze(1) * 10.0
Y = torch.arange(N)
LABELS = (torch.arange(N) % 3 == 0).long()

# Forked workers beside the threads of torch are what every user of a DataLoader has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


class Squares(Dataset[tuple[Tensor, int]]):
    """Whoever gets the example sees which one it is."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return X[item], int(Y[item])


class Slow(Squares):
    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        if item >= N // 2:
            time.sleep(0.002)
        return super().__getitem__(item)


class Ticking:
    """A clock that is one second later at every look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def table(seed: int = 0) -> TableProposal:
    generator = torch.Generator().manual_seed(seed)
    return TableProposal(torch.rand(N, generator=generator) + 0.1)


def loader_of(kind: str, proposal: Proposal | None, **options: Any) -> ImportanceLoader:
    data = {"tensors": (X, Y)}.get(kind, Squares())
    workers = {"tensors": {}, "dataset": {}, "workers": {"num_workers": 2}}.get(
        kind, {"num_workers": 2, "persistent_workers": True}
    )
    return ImportanceLoader(data, proposal, B, **{"generator": 0, **workers, **options})


KINDS = ["tensors", "dataset", "workers", "persistent"]


def assert_paired(batch: Any, draw: Any) -> None:
    assert batch[1].tolist() == draw.items.tolist()
    assert batch[0].tolist() == X[draw.items].tolist()


class TestPairs:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_batch_has_its_draw_with_log_q_of_its_own_time(self, kind: str) -> None:
        proposal = table()
        adaptation = TableAdaptation(proposal)
        loader = loader_of(kind, proposal, batches=9)
        made: dict[tuple[int, ...], list[float]] = {}
        original = proposal._draw

        def recording(count: int, generator: Any, given: Any) -> Any:
            draw = original(count, generator, given)
            made.setdefault(tuple(draw.items.tolist()), draw.log_q.tolist())
            return draw

        proposal._draw = recording  # type: ignore[method-assign]
        moved = 0
        for step, (batch, draw) in enumerate(loader):
            assert_paired(batch, draw)
            assert draw.log_q.tolist() == made[tuple(draw.items.tolist())]
            moved += draw.log_q.tolist() != proposal.log_prob(draw.items).tolist()
            adaptation.update(draw, torch.rand(B) + step + 1.0)
        # With workers, what was drawn ahead keeps the density of its own time, not today's.
        assert moved == 0 if kind in {"tensors", "dataset"} else moved > 0
        assert len(loader) == 9
        assert loader.epoch == 1

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("baseline", [False, True])
    def test_a_loop_left_early_does_not_shift_the_next(self, kind: str, baseline: bool) -> None:
        loader = loader_of(kind, None if baseline else table())
        for leave_after in (1, 3, 99):
            count, seen = 0, []
            for batch, draw in loader:
                assert_paired(batch, draw)
                count += 1
                seen += draw.items.tolist()
                if count == leave_after:
                    break
        assert count == len(loader)
        # A new epoch is a new permutation, not the rest of the one that was left.
        assert not baseline or len(set(seen)) == len(seen)
        assert loader.epoch == 3

    @pytest.mark.parametrize("kind", ["tensors", "dataset", "workers"])
    def test_two_loops_at_once(self, kind: str) -> None:
        loader = loader_of(kind, table(), batches=3)
        for (batch, draw), (other_batch, other_draw) in zip(loader, loader, strict=False):
            assert_paired(batch, draw)
            assert_paired(other_batch, other_draw)
            assert draw.items.tolist() != other_draw.items.tolist()

    @pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
    def test_with_a_loader_of_ones_own(self, workers: int, persistent: bool) -> None:
        sampler = ProposalBatchSampler(table(), N, B, generator=0)
        loader = DataLoader(
            Squares(),
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent,
        )
        assert len(loader) == len(sampler) == N // B
        for leave_after in (2, 1, 99):
            for count, (batch, draw) in enumerate(sampler.paired(loader)):
                assert_paired(batch, draw)
                if count == leave_after:
                    break
        # A loop that leaves the draws alone does no harm to the next.
        for _ in loader:
            break
        for batch, draw in sampler.paired(loader):
            assert_paired(batch, draw)

    def test_a_foreign_loader_is_refused(self) -> None:
        sampler = ProposalBatchSampler(table(), N, B)
        with pytest.raises(ValueError, match="another batch_sampler"):
            next(sampler.paired(DataLoader(Squares(), batch_size=B)))

    def test_a_loader_out_of_order_is_refused(self) -> None:
        sampler = ProposalBatchSampler(table(), N, B)
        try:
            loader = DataLoader(Squares(), batch_sampler=sampler, num_workers=2, in_order=False)
        except TypeError:
            pytest.skip("this PyTorch always keeps the order")
        with pytest.raises(ValueError, match="in_order"):
            next(sampler.paired(loader))

    def test_tensors_and_a_dataset_give_the_same(self) -> None:
        first, second = loader_of("tensors", table()), loader_of("workers", table())
        for (batch, draw), (other_batch, other) in zip(first, second, strict=True):
            assert draw.items.equal(other.items)
            assert draw.log_q.equal(other.log_q)
            assert batch[0].equal(other_batch[0])

    def test_one_tensor_is_no_tuple(self) -> None:
        batch, draw = next(iter(ImportanceLoader(X, table(), B)))
        assert batch.equal(X[draw.items])

    def test_collate_fn(self) -> None:
        loader = loader_of("workers", table(), collate_fn=_sum_of_labels)
        for total, draw in loader:
            assert total == draw.items.sum().item()

    def test_class_proposal_and_log_target_are_unbiased(self) -> None:
        """E_q[w f] is the mean of f over the data, within five standard errors."""
        proposal = ClassProposal(LABELS, 2)
        loader = ImportanceLoader((X, Y), proposal, 50, batches=200, generator=1)
        values = []
        for (x, _), draw in loader:
            weights = importance_weights(loader.log_p(draw), draw.log_q)
            values.append(weights * x[:, 0])
        estimate = torch.cat(values)
        error = estimate.std() / math.sqrt(len(estimate))
        assert abs(estimate.mean() - X.mean()) < 5.0 * error

    def test_moves_under_adaptation(self) -> None:
        proposal = ClassProposal(LABELS, 2)
        optimizer = torch.optim.SGD(proposal.parameters(), lr=0.5)
        adaptation = ScoreFunctionAdaptation(proposal, optimizer)
        loader = ImportanceLoader((X, Y), proposal, 20, batches=50, generator=0)
        for (_, y), draw in loader:
            adaptation.update(draw, 1.0 + 9.0 * LABELS[y], loader.log_p(draw))
        assert proposal.tau[1] > proposal.tau[0]


def _sum_of_labels(examples: list[tuple[Tensor, int]]) -> int:
    return sum(label for _, label in examples)


class TestBaseline:
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_epoch_is_a_permutation(self, kind: str) -> None:
        loader = loader_of(kind, None)
        orders = []
        for _ in range(2):
            seen = []
            for _batch, draw in loader:
                weights = importance_weights(loader.log_p(draw), draw.log_q)
                assert weights.tolist() == [1.0] * B
                seen += draw.items.tolist()
            assert len(set(seen)) == len(seen) == N // B * B
            orders.append(seen)
        assert orders[0] != orders[1]

    def test_a_longer_epoch_is_shuffled_again(self) -> None:
        loader = ImportanceLoader(X[:8], None, 4, batches=4, generator=0)
        seen = [draw.items.tolist() for _, draw in loader]
        assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8))

    def test_a_batch_of_more_than_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="batch_size is 31, expected at most 30"):
            ImportanceLoader(X, None, N + 1)


class TestState:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("baseline", [False, True])
    @pytest.mark.parametrize("stop", [5, N // B, N // B + 2])
    def test_a_run_resumes_bit_for_bit(self, kind: str, baseline: bool, stop: int) -> None:
        """With an adaptation that moves the proposal in every step, and draws made ahead."""

        def parts() -> tuple[TableProposal, ImportanceLoader]:
            proposal = table()
            return proposal, loader_of(kind, None if baseline else proposal)

        def run(
            proposal: TableProposal, loader: ImportanceLoader, step: int, steps: int
        ) -> list[list[float]]:
            trace = []
            while True:
                for batch, draw in loader:
                    assert_paired(batch, draw)
                    trace.append([*draw.items.tolist(), *draw.log_q.tolist()])
                    TableAdaptation(proposal).update(draw, draw.items * 0.5 + step)
                    step += 1
                    if step == steps:
                        states.append(copy.deepcopy((loader.state_dict(), proposal.state_dict())))
                        return trace

        states: list[Any] = []
        whole = run(*parts(), 0, 2 * (N // B) + 3)
        first = run(*parts(), 0, stop)
        proposal, loader = parts()
        loader.load_state_dict(states[1][0])
        proposal.load_state_dict(states[1][1])
        assert loader.epoch == stop // (N // B)
        rest = run(proposal, loader, stop, 2 * (N // B) + 3)
        assert first + rest == whole

    def test_a_second_state_holds_what_is_left_of_the_first(self) -> None:
        """A resumed epoch that draws fewer ahead than there were restored."""
        whole = [draw.items.tolist() for _, draw in loader_of("workers", table())]
        loader = loader_of("workers", table())
        trace = []
        for kind in ("dataset", "tensors", "dataset"):
            _, draw = next(iter(loader))
            trace.append(draw.items.tolist())
            state = loader.state_dict()
            loader = loader_of(kind, table())
            loader.load_state_dict(state)
        rest = [draw.items.tolist() for _, draw in loader]
        assert trace + rest == whole

    def test_a_resumed_epoch_that_is_left_does_not_go_on(self) -> None:
        loader = loader_of("workers", table())
        next(iter(loader))
        resumed = loader_of("dataset", table())
        resumed.load_state_dict(loader.state_dict())
        next(iter(resumed))
        assert len(list(resumed)) == N // B
        assert resumed.epoch == 2
        assert resumed.state_dict()["ahead"] == []

    def test_global_randomness_is_left_alone(self) -> None:
        loader = loader_of("workers", table())
        before = torch.get_rng_state()
        list(loader)
        assert torch.get_rng_state().equal(before)

    def test_unseeded_loaders_follow_the_global_seed(self) -> None:
        first, second, other = (
            [draw.items.tolist() for _, draw in _seeded(seed)] for seed in (3, 3, 4)
        )
        assert first == second != other

    def test_another_size_is_refused_before_anything_changes(self) -> None:
        loader, other = loader_of("tensors", table()), ImportanceLoader(X, table(), B + 1)
        before = str(loader.state_dict())
        with pytest.raises(ValueError, match="'batch_size': 5"):
            loader.load_state_dict(other.state_dict())
        assert str(loader.state_dict()) == before


def _seeded(seed: int) -> ImportanceLoader:
    torch.manual_seed(seed)
    return ImportanceLoader(X, table(), B)


class TestTime:
    def test_simulated_seconds(self) -> None:
        seconds = torch.linspace(1.0, 2.0, N)
        for kind in ("tensors", "workers"):
            for batch, draw, cost in loader_of(kind, table(), clock=seconds):
                assert_paired(batch, draw)
                assert cost.equal(seconds[draw.items].double())

    def test_a_clock_around_each_access(self) -> None:
        for batch, draw, cost in loader_of("dataset", table(), clock=Ticking()):
            assert_paired(batch, draw)
            assert cost.tolist() == [1.0] * B
        for _, _, cost in loader_of("tensors", table(), clock=Ticking()):
            assert cost.tolist() == [1.0 / B] * B

    def test_examples_fetched_together_share_the_time(self) -> None:
        class Together(Squares):
            def __getitems__(self, items: list[int]) -> list[Any]:
                return [self[item] for item in items]

        for data in (Together(), Subset(Together(), range(N))):
            for batch, draw, cost in ImportanceLoader(data, table(), B, clock=Ticking()):
                assert_paired(batch, draw)
                assert cost.tolist() == [1.0 / B] * B

    def test_examples_of_a_subset_have_times_of_their_own(self) -> None:
        data = Subset(Subset(Squares(), range(N)), range(N))
        for batch, draw, cost in ImportanceLoader(data, table(), B, clock=Ticking()):
            assert_paired(batch, draw)
            assert cost.tolist() == [1.0] * B

    @pytest.mark.parametrize("workers", [0, 2])
    def test_slow_examples_cost_more(self, workers: int) -> None:
        loader = ImportanceLoader(
            Slow(), table(), B, batches=5, clock=time.perf_counter, num_workers=workers, generator=0
        )
        for batch, draw, cost in loader:
            assert_paired(batch, draw)
            assert bool((cost > 0.0).all())
            assert bool((cost[draw.items >= N // 2] >= 0.002).all())

    def test_a_clock_that_stands_still_costs_something(self) -> None:
        for kind in ("tensors", "dataset"):
            for _, _, cost in loader_of(kind, table(), clock=lambda: 0.0):
                assert bool((cost > 0.0).all())

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_bad_seconds_are_refused(self, bad: float) -> None:
        seconds = torch.ones(N)
        seconds[7] = bad
        with pytest.raises(ValueError, match=r"clock\[7\]"):
            ImportanceLoader(X, table(), B, clock=seconds)
        with pytest.raises(ValueError, match="one per example"):
            ImportanceLoader(X, table(), B, clock=torch.ones(N + 1))


class TestBadInput:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (torch.empty(0, 3), "empty"),
            ((X, Y[:-1]), r"\[30, 29\] rows"),
            (torch.tensor(1.0), "empty"),
            (TensorDataset(torch.empty(0, 3)), "empty"),
            (iter([1]), "map-style"),
        ],
    )
    def test_data(self, data: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ImportanceLoader(data, UniformProposal(N), B)

    def test_a_stream(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                return iter([1])

        with pytest.raises(ValueError, match="a stream cannot be drawn from"):
            ImportanceLoader(Stream(), UniformProposal(N), B)

    @pytest.mark.parametrize("size", [N - 1, N + 1])
    @pytest.mark.parametrize("kind", [UniformProposal, SoftmaxProposal, TableProposal])
    def test_a_proposal_of_another_size(self, kind: Any, size: int) -> None:
        message = f"{kind.__name__} is over {size} items, expected the data's 30"
        with pytest.raises(ValueError, match=message):
            ImportanceLoader(X, kind(size), B)
        mixture = MixtureProposal([UniformProposal(size), kind(size)], [0.5, 0.5])
        with pytest.raises(ValueError, match=f"is over {size} items"):
            ImportanceLoader(X, mixture, B)

    @pytest.mark.parametrize("size", [N - 1, N + 1])
    def test_a_proposal_of_ones_own_of_another_size(self, size: int) -> None:
        class Own(Proposal):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("log_density", torch.full((size,), -math.log(size)).double())

            def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
                return self.log_density.index_select(0, items)

            def _draw(self, count: int, generator: Any, given: Any) -> Any:
                raise NotImplementedError

        with pytest.raises(ValueError, match=r"fewer than the 30|sum to 0\.96"):
            ImportanceLoader(X, Own(), B)

    def test_numbers_of_a_layer_are_no_number_of_items(self) -> None:
        class Own(UniformProposal):
            def __init__(self) -> None:
                super().__init__(N)
                self.layer = torch.nn.Conv2d(1, 1, 3)

        assert Own().layer.groups == 1
        ImportanceLoader(X, Own(), B)

    def test_a_conditional_proposal(self) -> None:
        with pytest.raises(ValueError, match="PolicyProposal is conditional"):
            ImportanceLoader(X, PolicyProposal(torch.nn.Linear(2, N)), B)

    def test_an_example_that_is_never_drawn(self) -> None:
        scores = torch.ones(N)
        scores[11] = 0.0
        bare = TableProposal(scores)
        with pytest.raises(ValueError, match="item 11 can never be drawn by the TableProposal"):
            ImportanceLoader(X, bare, B)
        ImportanceLoader(X, TableProposal(scores, uniform_share=0.1), B)
        ImportanceLoader(X, MixtureProposal([bare, UniformProposal(N)], [0.9, 0.1]), B)

    def test_pairs_are_no_examples(self) -> None:
        proposal = ProductProposal(UniformProposal(5), UniformProposal(6))
        with pytest.raises(ValueError, match="draws pairs"):
            ImportanceLoader(X, proposal, B)

    @pytest.mark.parametrize(
        "settings", [{"batch_size": 0}, {"batch_size": 4, "batches": 0}, {"batch_size": 2.5}]
    )
    def test_sizes(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="batch"):
            ImportanceLoader(X, table(), **settings)

    def test_options_of_a_data_loader(self) -> None:
        with pytest.raises(ValueError, match="TensorDataset"):
            ImportanceLoader(X, table(), B, num_workers=2)
        with pytest.raises(ValueError, match=r"\['shuffle'\]"):
            ImportanceLoader(Squares(), table(), B, shuffle=True)


def test_uniform_log_target() -> None:
    draw = table().draw(5)
    assert uniform_log_target(draw, 8).tolist() == pytest.approx([-math.log(8)] * 5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    def test_tensors_stay_on_the_device(self) -> None:
        for proposal in (TableProposal(torch.ones(N)).cuda(), None):
            loader = ImportanceLoader((X.cuda(), Y.cuda()), proposal, B, generator=0)
            for (x, y), draw in loader:
                assert x.is_cuda
                assert draw.log_q.is_cuda
                assert y.equal(draw.items)

    def test_resumes_with_workers_and_pinned_memory(self) -> None:
        def loader() -> ImportanceLoader:
            proposal = TableProposal(torch.ones(N)).cuda()
            return ImportanceLoader(
                Squares(), proposal, B, generator=0, num_workers=2, pin_memory=True
            )

        first, second = loader(), loader()
        trace = []
        for step, (batch, draw) in enumerate(first):
            assert batch[0].is_pinned()
            assert batch[1].tolist() == draw.items.tolist()
            if step == 1:
                state = first.state_dict()
            if step > 1:
                trace.append(draw.items.tolist())
        second.load_state_dict(state)
        assert [draw.items.tolist() for _, draw in second] == trace
