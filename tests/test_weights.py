import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awsgd_rl.weights import (
    annealed_weights,
    balance_heuristic,
    effective_sample_size,
    importance_weights,
    log_effective_sample_size,
    log_importance_weights,
    normalise_by_max,
    normalise_by_mean,
    self_normalised_weights,
    truncated_weights,
)

P = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
F = torch.tensor([2.0, -1.0, 5.0, 7.0], dtype=torch.float64)
log_densities = st.lists(st.floats(-2000.0, 0.0), min_size=1, max_size=20)
positive = st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=20)


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestImportanceWeights:
    def test_expectation_under_q_is_the_expectation_under_p(self) -> None:
        weights = importance_weights(P.log(), Q.log())
        torch.testing.assert_close((Q * weights * F).sum(), (P * F).sum())
        assert weights[3].item() == 0.0

    def test_no_gradient_and_float64(self) -> None:
        log_p = torch.zeros(3, requires_grad=True)
        weights = importance_weights(log_p, torch.ones(3))
        assert not weights.requires_grad
        assert weights.dtype == torch.float64

    @given(log_densities)
    def test_of_the_same_densities_are_one(self, log_q: list[float]) -> None:
        assert (importance_weights(tensor(log_q), tensor(log_q)) == 1.0).all()

    @pytest.mark.parametrize(
        "function", [log_importance_weights, importance_weights, self_normalised_weights]
    )
    def test_other_shapes_are_refused(self, function: object) -> None:
        assert callable(function)
        with pytest.raises(ValueError, match="expected the same"):
            function(torch.zeros(3), torch.zeros(1))


class TestTruncatedWeights:
    def test_bias_is_the_part_above_the_maximum(self) -> None:
        weights = truncated_weights(P.log(), Q.log(), 2.0)
        assert weights.max() <= 2.0
        missing = (P / Q - 2.0).clamp_min(0.0)
        torch.testing.assert_close((Q * weights * F).sum(), (P * F).sum() - (Q * missing * F).sum())

    def test_an_overflowing_ratio_is_cut(self) -> None:
        assert truncated_weights(tensor([0.0]), tensor([-2000.0]), 2.0).item() == 2.0

    @pytest.mark.parametrize("maximum", [0.0, -1.0, math.nan])
    def test_bad_maximum_is_refused(self, maximum: float) -> None:
        with pytest.raises(ValueError, match="maximum is"):
            truncated_weights(P.log(), Q.log(), maximum)


class TestSelfNormalisedWeights:
    @given(log_densities, st.floats(-3000.0, 3000.0))
    def test_sum_to_one_and_ignore_constants(self, log_p: list[float], shift: float) -> None:
        weights = self_normalised_weights(tensor(log_p), torch.zeros(len(log_p)))
        assert weights.sum().item() == pytest.approx(1.0)
        shifted = self_normalised_weights(tensor(log_p) + shift, torch.zeros(len(log_p)))
        torch.testing.assert_close(weights, shifted, rtol=1e-8, atol=1e-8)

    def test_is_the_weight_over_the_sum(self) -> None:
        weights = importance_weights(P.log(), Q.log())
        torch.testing.assert_close(
            self_normalised_weights(P.log(), Q.log()), weights / weights.sum()
        )


class TestBalanceHeuristic:
    COMPONENTS = torch.stack((P, Q), 1).log()
    SHARES = torch.tensor([0.25, 0.75])

    def test_is_the_weight_of_the_mixture(self) -> None:
        mixture = 0.25 * P + 0.75 * Q
        weights = balance_heuristic(P.log(), self.COMPONENTS, self.SHARES)
        torch.testing.assert_close((mixture * weights * F).sum(), (P * F).sum())
        by_index = balance_heuristic(0, self.COMPONENTS, self.SHARES)
        assert torch.equal(by_index, weights)

    @given(st.floats(0.05, 0.95), st.lists(st.tuples(*[st.floats(-3000.0, 0.0)] * 2), min_size=1))
    def test_is_bounded_by_the_share_of_the_target(
        self, share: float, logs: list[tuple[float, float]]
    ) -> None:
        shares = tensor([share, 1.0 - share])
        weights = balance_heuristic(0, torch.tensor(logs, dtype=torch.float64), shares)
        assert (weights <= (1.0 + 1e-9) / share).all()

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected \[B, K\] and \[K\]"):
            balance_heuristic(0, self.COMPONENTS, torch.ones(3))


class TestEffectiveSampleSize:
    def test_formula(self) -> None:
        assert effective_sample_size(tensor([1.0, 2.0, 3.0])).item() == pytest.approx(36 / 14)

    @given(positive, st.floats(1e-100, 1e100))
    def test_between_one_and_the_number_on_any_scale(
        self, weights: list[float], scale: float
    ) -> None:
        size = effective_sample_size(tensor(weights))
        assert 1.0 - 1e-9 <= size <= len(weights) + 1e-9
        torch.testing.assert_close(effective_sample_size(tensor(weights) * scale), size)
        torch.testing.assert_close(log_effective_sample_size(tensor(weights).log()), size)

    def test_corners(self) -> None:
        assert effective_sample_size(torch.zeros(4)).item() == 0.0
        assert effective_sample_size(torch.full((4,), 7.0)).item() == pytest.approx(4.0)
        assert effective_sample_size(tensor([0.0, 3.0, 0.0])).item() == 1.0
        assert log_effective_sample_size(tensor([5000.0, 5000.0])).item() == pytest.approx(2.0)


class TestReplayWeights:
    LOG_Q = tensor([0.5, 0.25, 0.1, 0.15]).log()

    def test_full_correction_is_the_weight_of_a_uniform_target(self) -> None:
        uniform = torch.full((4,), -math.log(4), dtype=torch.float64)
        torch.testing.assert_close(
            annealed_weights(self.LOG_Q, 4, 1.0, None), importance_weights(uniform, self.LOG_Q)
        )

    def test_no_correction_is_one(self) -> None:
        assert (annealed_weights(self.LOG_Q, 4, 0.0, None) == 1.0).all()

    @pytest.mark.parametrize("normaliser", ["max", "mean", None])
    @pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
    def test_the_kernel_computes_what_the_tensors_do(
        self, beta: float, normaliser: Literal["max", "mean"] | None
    ) -> None:
        """A row goes by tensors, a vector by the kernel; strides and NaN too."""
        bad = torch.tensor([0.5, math.nan, 0.25], dtype=torch.float64).log()
        for log_q in (self.LOG_Q, self.LOG_Q.repeat(2)[::2], bad, self.LOG_Q.float()):
            by_tensors = annealed_weights(log_q[None], 4, beta, normaliser)[0]
            by_kernel = annealed_weights(log_q, 4, beta, normaliser)
            torch.testing.assert_close(by_kernel, by_tensors, equal_nan=True)

    def test_normalisers(self) -> None:
        raw = (4 * self.LOG_Q.exp()).pow(-0.4)
        torch.testing.assert_close(annealed_weights(self.LOG_Q, 4, 0.4), raw / raw.max())
        torch.testing.assert_close(annealed_weights(self.LOG_Q, 4, 0.4, "mean"), raw / raw.mean())
        torch.testing.assert_close(normalise_by_max(raw), raw / raw.max())
        torch.testing.assert_close(normalise_by_mean(raw), raw / raw.mean())

    @pytest.mark.parametrize(
        ("n", "beta", "normaliser"),
        [(0, 0.5, "max"), (4, -0.1, "max"), (4, 1.1, "max"), (4, math.nan, None), (4, 1.0, "sum")],
    )
    def test_bad_settings_are_refused(self, n: int, beta: float, normaliser: str | None) -> None:
        with pytest.raises(ValueError, match="expected"):
            annealed_weights(self.LOG_Q, n, beta, normaliser)  # type: ignore[arg-type]
