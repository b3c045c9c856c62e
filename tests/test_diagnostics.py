import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.diagnostics import (
    distances_to_optimum,
    headroom,
    kl_divergence,
    largest_weight,
    second_moment,
    total_variation,
    variance_ratio,
)
from awsgd_rl.weights import importance_weights

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.2, 0.5], dtype=torch.float64)
GRADIENTS = torch.tensor([[0.1, 0.2], [-0.5, 0.0], [1.0, 1.0], [7.0, -4.0]], dtype=torch.float64)
NORMS = GRADIENTS.norm(dim=1)
scores = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12)


def probabilities(values: list[float]) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()


def drawn(count: int) -> tuple[Tensor, Tensor]:
    items = torch.multinomial(
        Q, count, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    return NORMS[items], importance_weights(P[items].log(), Q[items].log())


class TestTheorem:
    """Lahire 2023, §3.1: p between u and p^GN in every coordinate gives S(u) <= S(p) <= S(p^GN).

    S falls with the second moment H, so H(p^GN) <= H(p) <= H(u). The printed proof bounds a sum
    of terms of both signs by its largest factor, which does not hold; with a = p^GN the theorem
    follows from a²(u − p)/(p u) <= u − p in every coordinate, and Σ (u − p) = 0.
    """

    @given(scores, st.data())
    def test_between_is_between(self, norms: list[float], data: st.DataObject) -> None:
        optimum = probabilities(norms)
        uniform = torch.full_like(optimum, 1.0 / len(norms))
        shares = st.lists(st.floats(0.0, 1.0), min_size=len(norms), max_size=len(norms))
        low = torch.minimum(optimum, uniform)
        high = torch.maximum(optimum, uniform)
        p = low + torch.tensor(data.draw(shares), dtype=torch.float64) * (high - low)
        # Back to a sum of 1 without leaving the box: towards whichever corner is missing.
        corner = high if p.sum() < 1.0 else low
        gap = corner.sum() - p.sum()
        p = p if abs(gap) < 1e-12 else p + (1.0 - p.sum()) / gap * (corner - p)
        assert p.sum().item() == pytest.approx(1.0)
        moments = [second_moment(optimum, uniform, q).item() for q in (optimum, p, uniform)]
        assert moments[0] <= moments[1] * (1.0 + 1e-9)
        assert moments[1] <= moments[2] * (1.0 + 1e-9)

    def test_it_fails_outside_the_box(self) -> None:
        optimum = probabilities([1.0, 2.0, 3.0])
        uniform = torch.full_like(optimum, 1.0 / 3.0)
        beyond = probabilities([1.0, 8.0, 27.0])
        assert second_moment(optimum, uniform, beyond) > second_moment(optimum, uniform, uniform)


class TestSecondMoment:
    @given(scores, st.data())
    def test_least_at_the_optimum(self, norms: list[float], data: st.DataObject) -> None:
        n = len(norms)
        some = st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)
        target, other = probabilities(data.draw(some)), probabilities(data.draw(some))
        optimum = probabilities((target * torch.tensor(norms, dtype=torch.float64)).tolist())
        least = second_moment(torch.tensor(norms), target, optimum)
        assert least <= second_moment(torch.tensor(norms), target, other) * (1.0 + 1e-6)

    def test_infinite_without_cover_and_zero_where_nothing_is_needed(self) -> None:
        q = torch.tensor([1.0, 0.0])
        half = torch.tensor([0.5, 0.5])
        assert second_moment(torch.tensor([1.0, 1.0]), half, q).item() == math.inf
        assert second_moment(torch.tensor([1.0, 0.0]), half, q).item() == 0.25


class TestVarianceRatio:
    MEAN = (P.unsqueeze(1) * GRADIENTS).sum(0)

    def test_exact_ratio_of_traces(self) -> None:
        """A batch in which every item occurs exactly as often as q says."""
        items = torch.repeat_interleave(torch.arange(4), (10 * Q).round().long())
        weights = importance_weights(P[items].log(), Q[items].log())
        on_policy = (P.unsqueeze(1) * (GRADIENTS - self.MEAN).square()).sum()
        weighted = (P / Q).unsqueeze(1) * GRADIENTS
        achieved = (Q.unsqueeze(1) * (weighted - self.MEAN).square()).sum()
        ratio = variance_ratio(NORMS[items], weights, self.MEAN.norm())
        torch.testing.assert_close(ratio, on_policy / achieved)
        assert ratio > 1.0

    def test_on_policy_is_one(self) -> None:
        norms, _ = drawn(100)
        assert variance_ratio(norms, torch.ones(100), 0.3).item() == pytest.approx(1.0)

    def test_corners(self) -> None:
        two = torch.tensor([1.0, 4.0])
        assert variance_ratio(two, 2.0 / two, 2.0).item() == math.inf
        assert math.isnan(variance_ratio(torch.zeros(2), torch.ones(2)).item())

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"the same \[B\]"):
            variance_ratio(torch.ones(3), torch.ones(2))


class TestHeadroom:
    def test_is_the_best_ratio_of_second_moments(self) -> None:
        items = torch.repeat_interleave(torch.arange(4), (10 * Q).round().long())
        weights = importance_weights(P[items].log(), Q[items].log())
        best = second_moment(NORMS, P, P * NORMS / (P * NORMS).sum())
        torch.testing.assert_close(
            headroom(NORMS[items], weights), second_moment(NORMS, P, P) / best
        )

    @given(scores, st.data())
    def test_at_least_one(self, norms: list[float], data: st.DataObject) -> None:
        weights = data.draw(
            st.lists(st.floats(1e-3, 1e3), min_size=len(norms), max_size=len(norms))
        )
        assert headroom(torch.tensor(norms), torch.tensor(weights)) >= 1.0 - 1e-9

    def test_equal_norms_leave_none(self) -> None:
        assert headroom(torch.full((5,), 3.0)).item() == pytest.approx(1.0)


class TestDistances:
    @given(scores, st.data())
    def test_properties(self, first: list[float], data: st.DataObject) -> None:
        second = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(first), max_size=len(first)))
        p, q = probabilities(first), probabilities(second)
        tv, kl = total_variation(p, q).item(), kl_divergence(p, q).item()
        assert 0.0 <= tv <= 1.0
        assert tv == total_variation(q, p).item()
        assert 2.0 * tv * tv <= kl + 1e-9, "Pinsker"
        assert kl_divergence(p, p).item() == 0.0

    def test_zeros(self) -> None:
        p, q = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
        assert kl_divergence(p, q).item() == pytest.approx(math.log(2.0))
        assert kl_divergence(q, p).item() == math.inf
        assert total_variation(p, q).item() == 0.5

    @pytest.mark.parametrize("distance", ["kl", "tv"])
    def test_algorithm_1(self, distance: str) -> None:
        norms = torch.tensor([1.0, 2.0, 3.0, 4.0])
        best = distances_to_optimum(norms.log() - 7.0, norms, distance)  # type: ignore[arg-type]
        assert best.proposal.item() == pytest.approx(0.0, abs=1e-7)
        flat = distances_to_optimum(torch.zeros(4), norms, distance)  # type: ignore[arg-type]
        assert flat.proposal.item() == pytest.approx(flat.uniform.item())
        assert best.uniform == flat.uniform
        assert flat.uniform > 0.1

    def test_by_hand(self) -> None:
        log_q = torch.tensor([0.5, 0.25, 0.25]).log()
        measured = distances_to_optimum(log_q, torch.tensor([1.0, 0.0, 1.0]))
        assert measured.proposal.item() == pytest.approx(0.25)
        assert measured.uniform.item() == pytest.approx(1.0 / 3.0)

    @pytest.mark.parametrize(
        ("log_q", "norms", "distance"),
        [
            ([0.0, 0.0], [1.0, math.nan], "tv"),
            ([0.0, 0.0], [1.0, -1.0], "tv"),
            ([0.0, 0.0], [0.0, 0.0], "tv"),
            ([-math.inf, -math.inf], [1.0, 1.0], "tv"),
            ([0.0], [1.0, 1.0], "tv"),
            ([0.0, 0.0], [1.0, 1.0], "l2"),
            ([], [], "tv"),
        ],
    )
    def test_bad_input_is_refused(
        self, log_q: list[float], norms: list[float], distance: str
    ) -> None:
        with pytest.raises(ValueError, match=r"expected|nothing to compare"):
            distances_to_optimum(torch.tensor(log_q), torch.tensor(norms), distance)  # type: ignore[arg-type]


def test_largest_weight() -> None:
    _, weights = drawn(100)
    assert largest_weight(weights).item() == pytest.approx(4.0)
