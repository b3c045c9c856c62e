"""The sum tree: compiled kernels and tensor operations, and the faults of trees elsewhere."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.sampling import cumulative_scores, draw_uniforms, sample_from_cumulative
from awsgd_rl.sum_tree import SumTree, last_writes

SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 1000, 4097]
BOTH = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "tensors"])
ENDS = torch.tensor([0.0, 2**-60, 0.5, 1.0 - 2**-53, 1.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_scores(n: int, seed: int = 0, zeros: float = 0.3) -> Tensor:
    """[n] of very different size, some of them 0, but not all."""
    rng = generator(seed)
    scores = (6.0 * torch.randn(n, generator=rng, dtype=torch.float64)).exp()
    scores[torch.rand(n, generator=rng) < zeros] = 0.0
    scores[n // 2] = 1.0
    return scores


@BOTH
class TestDraw:
    @pytest.mark.parametrize("n", SIZES)
    def test_is_the_inverse_of_the_running_total(self, n: int, compiled: bool) -> None:
        scores = torch.randint(0, 4, (n,), generator=generator(n)).double()
        scores[0] = 1.0
        # Whole numbers add without rounding: the same item at every boundary too.
        boundaries = torch.arange(int(scores.sum()), dtype=torch.float64) / scores.sum()
        uniforms = torch.cat((boundaries, draw_uniforms(50, generator=generator())))
        expected = sample_from_cumulative(cumulative_scores(scores), uniforms)
        same = SumTree(scores, compiled=compiled).draw(uniforms) == expected
        # A boundary itself may fall on either side, as k / total times total is not always k.
        assert same[len(boundaries) :].all()
        assert same.double().mean() > 0.9

    def test_frequencies(self, compiled: bool) -> None:
        scores = torch.tensor([3.0, 0.0, 1.0, 4.0, 0.0] * 7)
        tree, count = SumTree(scores, compiled=compiled), 40_000
        drawn = tree.draw(draw_uniforms(count, generator=generator()))
        probabilities = scores / scores.sum()
        error = (probabilities * (1 - probabilities) / count).sqrt()
        frequencies = torch.bincount(drawn, minlength=35) / count
        assert ((frequencies - probabilities).abs() <= 5 * error).all()

    @pytest.mark.parametrize("n", SIZES)
    def test_stratified_draws(self, n: int, compiled: bool) -> None:
        uniforms = draw_uniforms(n, generator=generator(), stratified=True)
        drawn = SumTree(torch.ones(n), compiled=compiled).draw(uniforms)
        assert drawn.tolist() == list(range(n))

    def test_reproducible(self, compiled: bool) -> None:
        tree = SumTree(random_scores(1000), compiled=compiled)
        drawn = [tree.draw(draw_uniforms(100, generator=generator(3))) for _ in range(2)]
        assert torch.equal(drawn[0], drawn[1])

    def test_one_outlier_takes_all_but_never_the_zeros(self, compiled: bool) -> None:
        scores = torch.ones(1000, dtype=torch.float64)
        scores[500:] = 0.0
        scores[7] = 1e30
        tree = SumTree(scores, compiled=compiled)
        uniforms = torch.cat((draw_uniforms(500, generator=generator()), ENDS))
        assert set(tree.draw(uniforms).tolist()) <= {0, 7, 499}

    def test_float32_would_lose_leaves(self, compiled: bool) -> None:
        """Elsewhere, at 2^22 items, 6 % of the leaves of a float32 tree are never drawn."""
        n = 2**22
        tree = SumTree(torch.ones(n), compiled=compiled)
        some = torch.randint(n, (5_000,), generator=generator())
        assert torch.equal(tree.draw((some.double() + 0.5) / n), some)
        assert tree.nodes.dtype == torch.float64


@given(
    scores=st.lists(
        st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=300
    ).filter(any),
    seed=st.integers(0, 2**32),
)
def test_no_item_of_zero_score_is_drawn(scores: list[float], seed: int) -> None:
    tensor = torch.tensor(scores, dtype=torch.float64)
    uniforms = torch.cat((ENDS, draw_uniforms(20, generator=generator(seed))))
    uniforms[3] = 1.0 - 2**-53
    drawn = [SumTree(tensor, compiled=compiled).draw(uniforms) for compiled in (True, False)]
    assert torch.equal(drawn[0], drawn[1])
    assert (tensor[drawn[0]] > 0).all()


@pytest.mark.parametrize("n", SIZES)
def test_nodes_are_the_sums_of_their_children(n: int) -> None:
    """The documented layout: level after level, each from `starts` on, 16 children a node."""
    tree = SumTree(random_scores(n))
    starts = [*tree.starts.tolist(), len(tree.nodes)]
    levels = [tree.nodes[a:b] for a, b in pairwise(starts)]
    for above, below in pairwise(levels):
        sums = below.view(-1, 16).sum(1)
        torch.testing.assert_close(above[: len(sums)], sums)
        assert (above[len(sums) :] == 0.0).all()
    assert torch.equal(levels[-1][:n], tree.scores)


@BOTH
class TestCorners:
    def test_ends(self, compiled: bool) -> None:
        scores = torch.zeros(300)
        scores[[20, 270]] = 2.0
        tree = SumTree(scores, compiled=compiled)
        drawn = tree.draw(
            torch.tensor([0.0, 0.5 - 2**-54, 0.5, 1.0 - 2**-53, 1.0], dtype=torch.float64)
        )
        assert drawn.tolist() == [20, 20, 270, 270, 270]

    def test_a_uniform_number_rounded_up_to_the_total(self, compiled: bool) -> None:
        """0.1 a thousand times: sums in other orders differ, and the last leaves are zero."""
        scores = torch.cat((torch.full((1000,), 0.1), torch.zeros(600))).double()
        tree = SumTree(scores, compiled=compiled)
        near = 1.0 - torch.arange(200, dtype=torch.float64) * 2**-53
        assert (tree.draw(near) == 999).all()

    @pytest.mark.parametrize("n", [1, 40])
    def test_all_zero_stays_in_range(self, n: int, compiled: bool) -> None:
        tree = SumTree(torch.zeros(n), compiled=compiled)
        assert tree.draw(ENDS).tolist() == [0] * len(ENDS)

    def test_smallest_and_largest_numbers(self, compiled: bool) -> None:
        scores = torch.tensor([5e-324, 0.0, 1e300, 5e-324], dtype=torch.float64)
        tree = SumTree(scores, compiled=compiled)
        assert set(tree.draw(ENDS).tolist()) <= {0, 2}
        tree.write(torch.tensor([2]), torch.zeros(1))
        assert tree.draw(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [0, 3]


@BOTH
class TestWrite:
    @pytest.mark.parametrize("n", SIZES)
    def test_equals_a_new_tree_bit_for_bit(self, n: int, compiled: bool) -> None:
        """However many writes: nothing drifts, and what was repaired leaves no trace."""
        tree, scores = SumTree(random_scores(n), compiled=compiled), random_scores(n)
        for seed in range(30):
            rng = generator(seed)
            items = torch.randint(n, (1 + seed,), generator=rng)
            written = random_scores(1 + seed, seed) * (1e30 if seed % 3 == 0 else 1.0)
            tree.write(items, written)
            for item, score in zip(items.tolist(), written.tolist(), strict=True):
                scores[item] = score
        assert torch.equal(tree.scores, scores)
        assert torch.equal(tree.nodes, SumTree(scores, compiled=compiled).nodes)
        assert torch.equal(tree.nodes, SumTree(scores, compiled=not compiled).nodes)

    def test_parents_of_zeros_are_zero(self, compiled: bool) -> None:
        tree = SumTree(torch.full((5000,), 0.1), compiled=compiled)
        for items in torch.randperm(5000, generator=generator()).split(37):
            tree.write(items, torch.zeros(len(items)))
        assert (tree.nodes == 0.0).all()

    def test_last_of_several_writes_stays(self, compiled: bool) -> None:
        tree = SumTree(torch.ones(500), compiled=compiled)
        tree.write(torch.tensor([3, 1, 3, 499, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        assert tree.scores[[1, 3, 499]].tolist() == [2.0, 5.0, 4.0]
        assert tree.total.item() == 497.0 + 11.0

    @pytest.mark.parametrize(
        ("items", "scores", "message"),
        [
            ([0, 1], [1.0, math.nan], "scores ranges from nan"),
            ([0, 1], [1.0, math.inf], "scores ranges from 1 to inf"),
            ([0, 1], [1.0, -1e-9], "scores ranges from -1e-09"),
            ([0, 40], [1.0, 1.0], "items range from 0 to 40, expected 0 to 39"),
            ([0, -1], [1.0, 1.0], "items range from -1"),
            ([0], [1.0, 1.0], "one item per score"),
            ([], [], "a vector of one or more"),
            ([[0]], [[1.0]], "a vector of one or more"),
        ],
    )
    def test_bad_writes_change_nothing(
        self, items: list[int], scores: list[float], message: str, compiled: bool
    ) -> None:
        tree = SumTree(random_scores(40), compiled=compiled)
        before = tree.nodes.clone()
        with pytest.raises(ValueError, match=message):
            tree.write(torch.tensor(items, dtype=torch.long), torch.tensor(scores))
        assert torch.equal(tree.nodes, before)

    def test_items_of_another_type_are_refused(self, compiled: bool) -> None:
        with pytest.raises(ValueError, match=r"type torch\.int32, expected long"):
            SumTree(torch.ones(3), compiled=compiled).write(torch.tensor([0]).int(), torch.ones(1))

    def test_slices_and_float32_are_taken(self, compiled: bool) -> None:
        tree = SumTree(torch.ones(6), compiled=compiled)
        tree.write(torch.arange(6)[::2], torch.arange(12.0).view(6, 2)[:3, 1])
        assert tree.scores.tolist() == [1.0, 1.0, 3.0, 1.0, 5.0, 1.0]
        drawn = tree.draw(torch.tensor([[0.0, 9.0], [0.99, 9.0]], dtype=torch.float64)[:, 0])
        assert drawn.tolist() == [0, 5]


@BOTH
class TestMixture:
    def test_density_and_frequencies(self, compiled: bool) -> None:
        scores = torch.tensor([0.0, 1.0, 3.0, 0.0, 0.0], dtype=torch.float64)
        tree, count = SumTree(scores, compiled=compiled), 40_000
        items, log_q = tree.draw_mixture(draw_uniforms(count, generator=generator()), 0.4, 3)
        q = tree.mixture(tree.scores[:3], 0.4, 3)
        torch.testing.assert_close(q, 0.6 * scores[:3] / 4.0 + 0.4 / 3)
        torch.testing.assert_close(log_q, q.log()[items])
        error = (q * (1 - q) / count).sqrt()
        frequencies = torch.bincount(items, minlength=3) / count
        assert ((frequencies - q).abs() <= 5 * error).all()

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("scores", [[0.0, 0.0], [0.0, 2.0]])
    def test_ends(self, scores: list[float], share: float, compiled: bool) -> None:
        tree = SumTree(torch.tensor(scores), compiled=compiled)
        uniforms = torch.tensor([0.0, 0.3 - 2**-54, 0.3, 1.0 - 2**-53], dtype=torch.float64)
        items, log_q = tree.draw_mixture(uniforms, share, 2)
        assert log_q.isfinite().all()
        if share == 0.0 and sum(scores) > 0.0:
            assert items.tolist() == [1, 1, 1, 1]
        else:
            assert items[0] == 0

    def test_both_ways_draw_alike(self, compiled: bool) -> None:
        scores, uniforms = random_scores(3000), draw_uniforms(500, generator=generator())
        items, log_q = SumTree(scores, compiled=compiled).draw_mixture(uniforms, 0.2, 3000)
        others, log_others = SumTree(scores, compiled=not compiled).draw_mixture(
            uniforms, 0.2, 3000
        )
        assert torch.equal(items, others)
        torch.testing.assert_close(log_q, log_others, rtol=1e-13, atol=1e-13)


class TestTree:
    @pytest.mark.parametrize("scores", [[], [1.0, -1.0], [math.nan], [math.inf], [[1.0]]])
    def test_bad_scores_are_refused(self, scores: list[float]) -> None:
        with pytest.raises(ValueError, match="expected"):
            SumTree(torch.tensor(scores))

    def test_an_infinite_sum_is_refused(self) -> None:
        with pytest.raises(ValueError, match="sum to infinity"):
            SumTree(torch.full((2,), 1e308, dtype=torch.float64))

    def test_kernels_are_for_the_cpu(self) -> None:
        with pytest.raises(ValueError, match="expected cpu"):
            SumTree(torch.ones(3, device="meta"), compiled=True)

    def test_what_is_given_is_copied(self) -> None:
        scores = torch.ones(3, dtype=torch.float64)
        tree = SumTree(scores)
        scores[0] = 7.0
        assert tree.scores.tolist() == [1.0, 1.0, 1.0]

    def test_a_deep_copy_is_independent(self) -> None:
        tree = SumTree(torch.ones(40))
        twin = copy.deepcopy(tree)
        twin.write(torch.tensor([3]), torch.tensor([9.0]))
        assert tree.total.item() == 40.0
        assert twin.total.item() == 48.0

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def test_last_writes(self, items: list[int]) -> None:
        expected = [len(items) - 1 - items[::-1].index(item) for item in items]
        assert last_writes(torch.tensor(items)).tolist() == expected


@pytest.mark.slow
def test_beyond_2_to_24_items() -> None:
    """Elsewhere, at 2^25 items, float32 trees draw even and odd slots 3 : 1."""
    n = 2**25 + 3
    tree = SumTree(torch.ones(n, dtype=torch.float64))
    some = torch.randint(n, (20_000,), generator=generator())
    some[:2] = torch.tensor([n - 1, n - 2])
    assert torch.equal(tree.draw((some.double() + 0.5) / n), some)
    tree.write(some, torch.zeros(len(some)))
    drawn = tree.draw(draw_uniforms(20_000, generator=generator(1)))
    assert (tree.scores[drawn] == 1.0).all()
    odd = (drawn % 2).double().mean().item()
    assert abs(odd - 0.5) <= 5 * 0.5 / 20_000**0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
class TestCuda:
    def test_equals_the_cpu_without_waiting(self) -> None:
        scores, rng = random_scores(10**5), generator()
        tree, other = SumTree(scores), SumTree(scores.cuda())
        uniforms = draw_uniforms(2000, generator=rng)
        items = torch.randint(10**5, (500,), generator=rng)
        written = random_scores(500, 1)
        on_device = items.cuda(), written.cuda(), uniforms.cuda()
        other.draw_mixture(on_device[2], 0.1, 10**5)
        torch.cuda.set_sync_debug_mode("error")
        try:
            other.write_checked(*on_device[:2])
            drawn, log_q = other.draw_mixture(on_device[2], 0.1, 10**5)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        tree.write(items, written)
        assert torch.equal(other.nodes.cpu(), tree.nodes)
        expected, log_expected = tree.draw_mixture(uniforms, 0.1, 10**5)
        assert (drawn.cpu() == expected).double().mean() > 0.999  # but for rounding in the scan
        same = drawn.cpu() == expected
        torch.testing.assert_close(log_q.cpu()[same], log_expected[same])

    def test_no_zero_is_drawn(self) -> None:
        scores = random_scores(5000)
        tree = SumTree(scores.cuda())
        uniforms = torch.cat((ENDS, draw_uniforms(10_000)))
        assert (scores[tree.draw(uniforms.cuda()).cpu()] > 0).all()
