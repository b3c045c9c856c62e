import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl.sampling import (
    _flatten,
    check_scores,
    cumulative_scores,
    draw_uniforms,
    sample_from_cumulative,
    sample_from_scores,
    sample_rows,
)

BEYOND = 2**24 + 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_frequencies(items: torch.Tensor, probabilities: torch.Tensor) -> None:
    count = items.numel()
    frequencies = torch.bincount(items.flatten(), minlength=len(probabilities)) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * error).all()


class TestScores:
    def test_frequencies_follow_the_scores(self) -> None:
        scores = torch.tensor([3.0, 0.0, 1.0, 4.0, 0.0])
        assert_frequencies(
            sample_from_scores(scores, 40_000, generator=generator()), scores.double() / 8
        )

    @given(
        scores=st.lists(
            st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=40
        ).filter(any),
        seed=st.integers(0, 2**32),
    )
    def test_no_item_of_zero_score_is_drawn(self, scores: list[float], seed: int) -> None:
        tensor = torch.tensor(scores, dtype=torch.float64)
        uniforms = torch.cat(
            (
                torch.tensor([0.0, 1.0 - 2**-53, 1.0], dtype=torch.float64),
                draw_uniforms(20, generator=generator(seed)),
            )
        )
        items = sample_from_cumulative(cumulative_scores(tensor), uniforms)
        assert (tensor[items] > 0).all()

    def test_corners_of_the_uniform_numbers(self) -> None:
        cumulative = cumulative_scores(torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0]))
        uniforms = torch.tensor([0.0, 0.5 - 2**-54, 0.5, 1.0 - 2**-53, 1.0], dtype=torch.float64)
        assert sample_from_cumulative(cumulative, uniforms).tolist() == [1, 1, 3, 3, 3]

    def test_a_uniform_number_rounded_up_to_the_total_returns_the_last_positive_item(self) -> None:
        scores = torch.cat((torch.full((1000,), 0.1), torch.zeros(5))).double()
        one = torch.ones(1, dtype=torch.float64)
        assert sample_from_cumulative(cumulative_scores(scores), one).item() == 999

    def test_float32_scores_are_added_in_float64(self) -> None:
        scores = torch.ones(BEYOND)
        assert cumulative_scores(scores)[-1].item() == BEYOND

    def test_same_generator_same_items(self) -> None:
        scores = torch.rand(50, generator=generator())
        first = sample_from_scores(scores, 100, generator=generator(3))
        assert torch.equal(first, sample_from_scores(scores, 100, generator=generator(3)))
        assert not torch.equal(first, sample_from_scores(scores, 100, generator=generator(4)))

    @pytest.mark.parametrize(
        "scores",
        [[], [0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [1.0, float("inf")], [[1.0]]],
    )
    def test_bad_scores_are_refused(self, scores: list[float]) -> None:
        with pytest.raises(ValueError, match="expected"):
            sample_from_scores(torch.tensor(scores), 3, generator=generator())

    def test_bad_count_is_refused(self) -> None:
        with pytest.raises(ValueError, match="count is 0"):
            sample_from_scores(torch.ones(3), 0, generator=generator())

    def test_scores_above_the_largest_are_refused(self) -> None:
        with pytest.raises(ValueError, match="from 0 to 5"):
            check_scores(torch.tensor([1.0, 6.0]), largest=5.0)


class TestBeyondTwoToTheTwentyFour:
    def test_all_mass_on_the_last_items(self) -> None:
        scores = torch.zeros(BEYOND)
        scores[-2:] = 1.0
        items = sample_from_scores(scores, 4000, generator=generator())
        assert_frequencies(items - (BEYOND - 2), torch.full((2,), 0.5, dtype=torch.float64))

    def test_even_and_odd_items_are_drawn_alike(self) -> None:
        items = sample_from_scores(torch.ones(BEYOND), 40_000, generator=generator())
        assert_frequencies(items % 2, torch.full((2,), 0.5, dtype=torch.float64))
        assert items.max() > 2**24 - 4000

    def test_sequential_sum_is_flat_at_zero_scores(self) -> None:
        scores = torch.rand(2**20, generator=generator(), dtype=torch.float64)
        scores[::3] = 0.0
        steps = cumulative_scores(scores).diff()
        assert (steps >= 0).all()
        assert (steps[scores[1:] == 0] == 0).all()


class TestParallelSum:
    """A GPU adds in another order: its rounding is put on by hand."""

    def test_zero_scores_become_flat_and_the_sum_monotone(self) -> None:
        scores = torch.tensor([0.0, 1.0, 0.0, 0.0, 1e-17, 1.0, 0.0], dtype=torch.float64)
        wavering = torch.tensor([1e-300, 1.0, 1.0 + 2**-52, 1.0 - 2**-53, 1.0 - 2**-53, 2.0, 2.1])
        flat = _flatten(scores, wavering.double())
        assert flat.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0]

    def test_of_an_exact_sum_it_changes_nothing(self) -> None:
        scores = torch.rand(3, 1000, generator=generator(), dtype=torch.float64)
        scores[:, ::4] = 0.0
        assert torch.equal(_flatten(scores, scores.cumsum(-1)), cumulative_scores(scores))


class TestRows:
    def test_frequencies_of_each_row(self) -> None:
        rows = torch.tensor([[0.2, 0.0, 0.8], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
        many = rows.repeat_interleave(20_000, 0)
        items = sample_rows(many, generator()).reshape(3, -1)
        for row, drawn in zip(rows.double(), items, strict=True):
            assert_frequencies(drawn, row / row.sum())

    def test_non_contiguous_rows(self) -> None:
        rows = torch.eye(4)[:, [2, 0, 1, 3]].T
        assert sample_rows(rows.T, generator()).tolist() == [1, 2, 0, 3]

    def test_bad_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected \[B, A\]"):
            sample_rows(torch.ones(3))

    @pytest.mark.parametrize("entry", [float("nan"), float("inf"), 0.0])
    def test_a_row_that_cannot_be_drawn_from_is_refused(self, entry: float) -> None:
        rows = torch.tensor([[0.2, 0.8], [0.0, entry], [1.0, 0.0]])
        with pytest.raises(ValueError, match=f"row 1 of probabilities sums to {entry:g}"):
            sample_rows(rows, generator())

    def test_no_row(self) -> None:
        assert sample_rows(torch.ones(0, 3)).shape == (0,)


class TestStratified:
    def test_one_draw_in_each_stratum(self) -> None:
        uniforms = draw_uniforms(100, generator=generator(), stratified=True)
        assert torch.equal((uniforms * 100).floor(), torch.arange(100.0, dtype=torch.float64))

    def test_counts_are_within_one_of_their_expectation(self) -> None:
        scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        items = sample_from_scores(scores, 1003, generator=generator(), stratified=True)
        counts = torch.bincount(items, minlength=4)
        assert ((counts - 1003 * scores / 10).abs() <= 1.0).all()

    def test_mean_is_unbiased(self) -> None:
        scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        rng = generator()
        means = torch.stack(
            [
                sample_from_scores(scores, 7, generator=rng, stratified=True).double().mean()
                for _ in range(2000)
            ]
        )
        assert abs(means.mean() - 2.0) <= 5 * means.std() / 2000**0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_item_of_zero_score_is_drawn_on_cuda() -> None:
    scores = torch.rand(10**6, device="cuda", dtype=torch.float64)
    scores[::2] = 0.0
    items = sample_from_scores(scores, 10**6, generator=torch.Generator("cuda").manual_seed(0))
    assert (items % 2 == 1).all()
    steps = cumulative_scores(scores).diff()
    assert (steps >= 0).all()
    assert (steps[scores[1:] == 0] == 0).all()
