"""The table split over ranks: exact by enumeration, and in two processes over gloo.

The file is also what the two processes run: see `worker`.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset, TensorDataset

from awsgd_rl.adaptation import TableAdaptation
from awsgd_rl.base import Draw
from awsgd_rl.loader import uniform_log_target
from awsgd_rl.proposals import TableProposal
from awsgd_rl.sharded import ShardedLoader, ShardedTableProposal, merge_states
from awsgd_rl.shards import Shard, check_shards, shard_of
from awsgd_rl.signals import squared_loss_signal
from awsgd_rl.weights import importance_weights

N, RANKS, BATCH, STEPS, SAMPLES = 37, 2, 4, 40, 600
SIZES = [30, 7]
SPLITS: list[list[int] | None] = [None, [1, 4, 2]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(n: int) -> Tensor:
    return torch.rand(n, generator=generator(3), dtype=torch.float64) + 0.05


def make(
    n: int = 7, rank: int = 0, world_size: int = 3, sizes: list[int] | None = None, **options: Any
) -> ShardedTableProposal:
    return ShardedTableProposal(
        scores(n), rank=rank, world_size=world_size, sizes=sizes, uniform_share=0.2, **options
    )


def all_ranks(sizes: list[int] | None = None, n: int = 7) -> list[ShardedTableProposal]:
    return [make(n, rank, 3, sizes) for rank in range(3)]


def items_of(proposal: ShardedTableProposal) -> Tensor:
    return torch.tensor(list(proposal.shard.items))


def gradients(n: int = 7) -> Tensor:
    return (
        torch.randn(n, 2, generator=generator(4), dtype=torch.float64)
        * torch.arange(1, n + 1)[:, None].double()
    )


class TestOneProcess:
    @pytest.mark.parametrize("sizes", SPLITS)
    def test_every_example_has_one_owner(self, sizes: list[int] | None) -> None:
        owned = [item for rank in range(3) for item in shard_of(7, rank, 3, sizes).items]
        assert sorted(owned) == list(range(7))

    @pytest.mark.parametrize("sizes", SPLITS)
    def test_mean_over_ranks_is_the_full_gradient(self, sizes: list[int] | None) -> None:
        """By enumeration of all batches of two draws on each rank."""
        mean, total = torch.zeros(2, dtype=torch.float64), 0.0
        for proposal in all_ranks(sizes):
            items = items_of(proposal)
            log_q = proposal.log_prob(items)
            total += log_q.exp().sum().item()
            chance = 3 * log_q.exp()  # of this rank's own draws
            assert chance.sum().item() == pytest.approx(1.0, abs=1e-12)
            weights = importance_weights(
                uniform_log_target(Draw(items, log_q), proposal.n), log_q
            ).unsqueeze(1)
            terms = weights * gradients()[items]
            for a, b in product(range(len(items)), repeat=2):
                mean += chance[a] * chance[b] * (terms[a] + terms[b]) / 2 / 3
        assert total == pytest.approx(1.0, abs=1e-12)
        torch.testing.assert_close(mean, gradients().mean(0), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("sizes", SPLITS)
    def test_second_moment_of_the_split(self, sizes: list[int] | None) -> None:
        """That of one table times R Σ T² / (Σ T)², where draws follow the norms (module's page)."""
        norms = gradients().norm(dim=1)
        moment, totals = 0.0, []
        for rank in range(3):
            proposal = ShardedTableProposal(norms, rank=rank, world_size=3, sizes=sizes)
            q = 3 * proposal.log_prob(items_of(proposal)).exp()
            squares = (3 * norms[items_of(proposal)] / (7 * q)).square()
            # The mean over ranks of a mean over B / 3 draws: 1 / 9 of 3 / B of it.
            moment += float((q * squares).sum()) * 3 / 9
            totals.append(float(proposal.table.scores.sum()))
        ratio = moment / (float(norms.sum()) / 7) ** 2
        assert ratio == pytest.approx(3 * sum(t * t for t in totals) / sum(totals) ** 2)
        assert 1.0 <= ratio <= 3.0

    def test_draws_are_the_ranks_own_with_their_log_q(self) -> None:
        proposal = make(rank=1)
        draw = proposal.draw(200, generator=generator())
        assert set(draw.items.tolist()) == {1, 4}
        torch.testing.assert_close(draw.log_q, proposal.log_prob(draw.items))
        again = proposal.draw(200, generator=generator())
        assert torch.equal(draw.items, again.items)
        assert torch.equal(draw.items, proposal.sample(200, generator=generator()))
        local = proposal.to_local(draw)
        torch.testing.assert_close(local.log_q, proposal.table.log_prob(local.items))
        assert torch.equal(proposal.to_global(local).items, draw.items)

    def test_one_rank_is_a_table(self) -> None:
        ours, table = make(rank=0, world_size=1), TableProposal(scores(7), uniform_share=0.2)
        assert torch.equal(ours.log_prob(torch.arange(7)), table.log_prob(torch.arange(7)))
        for one, other in zip(
            ours.draw(50, generator=generator()), table.draw(50, generator=generator()), strict=True
        ):
            assert torch.equal(one, other)

    def test_the_adaptation_writes_through_places(self) -> None:
        proposal = make(rank=2)
        draw = proposal.draw(5, generator=generator())
        before = proposal.table.scores.clone()
        TableAdaptation(proposal.table, decay=0.5).update(
            proposal.to_local(draw), torch.full((5,), 9.0)
        )
        for place, item in enumerate(proposal.shard.items):
            count = (draw.items == item).sum().item()
            expected = 0.5 * before[place].item() + 4.5 if count else before[place].item()
            assert proposal.table.scores[place].item() == pytest.approx(expected)

    def test_scores_of_other_ranks_are_refused(self) -> None:
        proposal = make(rank=1)
        before = proposal.table.scores.clone()
        for item in (2, 7, -2):
            with pytest.raises(ValueError, match=rf"row 1 is item {item}, expected one of rank 1"):
                proposal.set_scores(torch.tensor([4, item]), torch.ones(2))
            with pytest.raises(ValueError, match="row 1"):
                proposal.log_prob(torch.tensor([4, item]))
        with pytest.raises(ValueError, match="expected long"):
            proposal.set_scores(torch.tensor([1.0]), torch.ones(1))
        assert torch.equal(proposal.table.scores, before)
        proposal.set_scores(torch.tensor([4]), torch.tensor([5.0]))
        assert proposal.table.scores[1].item() == 5.0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"world_size": 8, "rank": 0}, "world_size is 8, expected at most the 7 examples"),
            ({"world_size": 3, "rank": 3}, "rank is 3, expected 0 to 2"),
            ({"world_size": 3}, "expected both or neither"),
            ({"rank": 0, "world_size": 2, "sizes": [7, 0]}, "expected 2 positive numbers"),
            ({"rank": 0, "world_size": 2, "sizes": [3, 3]}, "that sum to 7"),
            ({"rank": 0, "world_size": 2, "sizes": [7]}, "one a rank"),
            ({}, r"no process group.*init_process_group\('gloo'\)"),
            ({"rank": 0, "world_size": 2, "uniform_share": 2.0}, "uniform_share is 2.0"),
        ],
    )
    def test_bad_arguments_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ShardedTableProposal(7, **arguments)

    def test_ranks_that_disagree_are_named(self) -> None:
        def gathered(*shards: Shard) -> list[Tensor]:
            return [shard.to_tensor() for shard in shards]

        good = gathered(shard_of(7, 0, 2), shard_of(7, 1, 2))
        check_shards(good, None)
        with pytest.raises(ValueError, match="rank 1 has 9 examples and rank 0 has 7"):
            check_shards([good[0], *gathered(shard_of(9, 1, 2))], None)
        with pytest.raises(ValueError, match=r"rank 0 owns range\(0, 7, 2\), expected range\(0, 3"):
            check_shards(good, [3, 4])
        with pytest.raises(ValueError, match="rank 1 could not make its shard"):
            check_shards([good[0], torch.full((4,), -1)], None)

    def test_state_of_another_shard_is_refused(self) -> None:
        saved, other = make(rank=0), make(rank=0)
        other.set_scores(torch.tensor([0, 3]), torch.tensor([4.0, 2.0]))
        other.load_state_dict(saved.state_dict())
        assert torch.equal(other.table.scores, saved.table.scores)
        # As many examples, but not the same.
        wrong = make(n=9, rank=1)
        before = wrong.table.scores.clone()
        with pytest.raises(ValueError, match=r"the state is of range\(0, 9, 3\) of 9 examples"):
            wrong.load_state_dict(make(n=9, rank=0).state_dict())
        assert torch.equal(wrong.table.scores, before)

    @pytest.mark.parametrize("sizes", SPLITS)
    def test_states_make_a_table_for_other_ranks(self, sizes: list[int] | None) -> None:
        states = [proposal.state_dict() for proposal in all_ranks(sizes)]
        full = merge_states(reversed(states))
        assert torch.equal(full, scores(7))
        again = ShardedTableProposal(full, rank=1, world_size=2)
        assert torch.equal(again.table.scores, scores(7)[1::2])

    def test_states_that_are_no_whole_are_refused(self) -> None:
        states = [proposal.state_dict() for proposal in all_ranks()]
        with pytest.raises(ValueError, match="of all ranks of one table"):
            merge_states(states[:2])
        with pytest.raises(ValueError, match="state 0 has"):
            merge_states([{"scores": torch.ones(3)}])
        with pytest.raises(ValueError, match="of all ranks"):
            merge_states([states[0], states[1], make(n=9, rank=2).state_dict()])
        # The lengths add up, the examples do not.
        twice = [make(n=6, rank=0), make(n=6, rank=0), make(n=6, rank=2)]
        with pytest.raises(ValueError, match="none of which has example 1"):
            merge_states([proposal.state_dict() for proposal in twice])
        forged = dict(states[0], _extra_state=torch.tensor([7, -1, 7, 3]))
        with pytest.raises(ValueError, match="expected N, start, stop and step"):
            merge_states([forged])

    def test_generators_of_ranks_differ(self) -> None:
        first = [p.make_generator(5).initial_seed() for p in all_ranks()]
        assert len(set(first)) == 3
        assert first == [p.make_generator(5).initial_seed() for p in all_ranks()]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(7))


class TestLoader:
    @pytest.mark.parametrize("sizes", SPLITS)
    @pytest.mark.parametrize("kind", ["tensor", "tensors", "dataset", "own"])
    def test_examples_are_those_of_the_draw(self, kind: str, sizes: list[int] | None) -> None:
        x = torch.arange(7.0) * 10
        for proposal in all_ranks(sizes):
            data: Any = {
                "tensor": x,
                "tensors": (x, -x),
                "dataset": TensorDataset(x, -x),
                "own": x[items_of(proposal)],
            }[kind]
            seen = 0
            loader = ShardedLoader(data, proposal, 2, batches=4, generator=1)
            for batch, draw in loader:
                first = batch if kind in ("tensor", "own") else batch[0]
                assert torch.equal(first, 10.0 * draw.items)
                assert all(int(item) in proposal.shard.items for item in draw.items)
                torch.testing.assert_close(draw.log_q, proposal.log_prob(draw.items))
                assert loader.log_p(draw).tolist() == [-math.log(7)] * 2
                seen += 1
            assert seen == len(loader) == 4
            assert loader.epoch == 1

    def test_as_many_batches_on_every_rank(self) -> None:
        for proposal in all_ranks([1, 4, 2]):
            loader = ShardedLoader(torch.zeros(7), proposal, 1)
            assert len(list(loader)) == 2

    def test_a_resumed_epoch_goes_on(self) -> None:
        x = torch.arange(7.0)
        loader = ShardedLoader(x, make(), 2, batches=6, generator=4)
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        other = ShardedLoader(x, make(), 2, batches=6, generator=9)
        other.load_state_dict(loader.state_dict())
        rest = [draw.items.tolist() for _, draw in batches]
        assert [draw.items.tolist() for _, draw in other] == rest
        assert len(rest) == 4

    def test_wrong_data_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"data has \[6\] examples, expected all 7 or the 3"):
            ShardedLoader(torch.zeros(6), make(), 2)
        with pytest.raises(ValueError, match="a stream cannot be drawn from"):
            ShardedLoader(Stream(), make(), 2)


# --- Two processes


def problem() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, 3, generator=generator(1), dtype=torch.float64)
    # Sorted, heavy at the end: blocks are as unlike as can be.
    x *= torch.linspace(0.2, 4.0, N, dtype=torch.float64).unsqueeze(1)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1, dtype=torch.float64)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def refusal(make_one: Any) -> str:
    try:
        make_one()
    except ValueError as error:
        return str(error)
    return ""


def trained(sizes: list[int] | None) -> dict[str, Any]:
    """What a rank sees. Its network ends here: PyTorch can hang where it outlives its group."""
    x, y = problem()
    network = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    table = ShardedTableProposal(N, sizes=sizes, uniform_share=0.2)
    adaptation = TableAdaptation(table.table, decay=0.5)
    loader = ShardedLoader((x, y), table, BATCH, batches=STEPS + SAMPLES, generator=0)
    start = flat(network)
    samples, drawn = [], []
    for step, ((x_batch, y_batch), draw) in enumerate(loader):
        weights = importance_weights(loader.log_p(draw), draw.log_q)
        output = network(x_batch).squeeze(1)
        optimizer.zero_grad()
        (weights * mse_loss(output, y_batch, reduction="none")).mean().backward()
        signal = squared_loss_signal(output, y_batch, features=x_batch)
        adaptation.update(table.to_local(draw), signal)
        drawn.append(draw.items.tolist())
        if step < STEPS:
            optimizer.step()
        else:
            samples.append(torch.cat([p.grad.flatten() for p in network.parameters()]).tolist())
    return {
        "moved": float((flat(network) - start).norm()),
        "parameters": flat(network).tolist(),
        "samples": samples,
        "drawn": drawn[:20],
        "own": list(table.shard.items),
        "scores": table.table.scores.tolist(),
        "full": table.full_scores().tolist(),
        "cost": table.split_cost(),
    }


def worker(rank: int, store: str, out: str) -> None:
    """What a rank does: the loop of the docs, and then many gradients with w at rest."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    result: dict[str, Any] = {
        "other N": refusal(lambda: ShardedTableProposal(N + rank)),
        "other sizes": refusal(lambda: ShardedTableProposal(N, sizes=[SIZES, [20, 17]][rank])),
        "one fails": refusal(lambda: ShardedTableProposal(N, floor=-1.0 if rank == 1 else 0.0)),
    }
    for name, sizes in (("dealt", None), ("blocks", SIZES)):
        result[name] = trained(sizes)
    Path(out).write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    files = [folder / f"{rank}.json" for rank in range(RANKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":  # whatever the machine calls itself
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder / "store"), str(file)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank, file in enumerate(files)
    ]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)
    return [json.loads(file.read_text()) for file in files]


def full_gradient(parameters: list[float]) -> Tensor:
    x, y = problem()
    network = model()
    nn.utils.vector_to_parameters(
        torch.tensor(parameters, dtype=torch.float64), network.parameters()
    )
    mse_loss(network(x).squeeze(1), y).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dealt", "blocks"])
class TestTwoProcesses:
    def test_parameters_stay_equal(self, ran: list[dict[str, Any]], name: str) -> None:
        first, second = (rank[name] for rank in ran)
        assert first["parameters"] == second["parameters"]
        assert first["samples"] == second["samples"]
        assert first["moved"] > 0.1

    def test_mean_gradient_is_the_full_one(self, ran: list[dict[str, Any]], name: str) -> None:
        samples = np.array(ran[0][name]["samples"])
        exact = full_gradient(ran[0][name]["parameters"]).numpy()
        error = samples.std(0, ddof=1) / len(samples) ** 0.5
        assert (np.abs(samples.mean(0) - exact) <= 5 * error).all()
        # It can fail: a mean of the shards' means is elsewhere, where shards are of unequal size.
        if name == "blocks":
            x, y = problem()
            network = model()
            nn.utils.vector_to_parameters(
                torch.tensor(ran[0][name]["parameters"], dtype=torch.float64), network.parameters()
            )
            for own in (slice(0, 30), slice(30, N)):
                (mse_loss(network(x[own]).squeeze(1), y[own]) / 2).backward()
            wrong = np.concatenate([p.grad.numpy().ravel() for p in network.parameters()])  # type: ignore[union-attr]
            assert (np.abs(samples.mean(0) - wrong) > 5 * error).any()

    def test_ranks_draw_their_own_and_apart(self, ran: list[dict[str, Any]], name: str) -> None:
        first, second = (rank[name] for rank in ran)
        assert sorted(first["own"] + second["own"]) == list(range(N))
        for rank in (first, second):
            assert {item for batch in rank["drawn"] for item in batch} <= set(rank["own"])
        places = [
            [rank["own"].index(item) for batch in rank["drawn"] for item in batch]
            for rank in (first, second)
        ]
        assert places[0] != places[1]

    def test_scores_are_gathered(self, ran: list[dict[str, Any]], name: str) -> None:
        first, second = (rank[name] for rank in ran)
        assert first["full"] == second["full"]
        for rank in (first, second):
            assert [rank["full"][item] for item in rank["own"]] == rank["scores"]
        assert len(set(first["full"])) > N // 2  # they have moved
        totals = np.array([sum(rank["scores"]) for rank in (first, second)])
        cost = 2 * (totals**2).sum() / totals.sum() ** 2
        assert first["cost"] == second["cost"] == pytest.approx(cost)
        assert cost >= 1.0

    def test_ranks_that_disagree_all_hear_of_it(self, ran: list[dict[str, Any]], name: str) -> None:
        for rank in ran:
            assert "rank 1 has 38 examples and rank 0 has 37" in rank["other N"]
            assert "pass the same sizes" in rank["other sizes"]
        assert "rank 1 could not make its shard" in ran[0]["one fails"]
        assert "floor is -1.0" in ran[1]["one fails"]


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], sys.argv[3])
