"""Several proposals at once: fixed counts, balance heuristic, optimal weights, output nodes."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.estimators import weighted_mean
from awsgd_rl.multiple import (
    OptimalCombination,
    OutputNodeAdaptation,
    combination_coefficients,
    draw_from_each,
    gradient_rows,
    optimal_weights,
    raise_scores,
    responsibilities,
)
from awsgd_rl.proposals import MixtureProposal, TableProposal, UniformProposal
from awsgd_rl.weights import balance_heuristic, importance_weights

N = 4
SCORES = torch.tensor([[1.0, 2.0, 5.0, 2.0], [6.0, 1.0, 1.0, 2.0]], dtype=torch.float64) / 10
VALUES = torch.tensor([0.7, -1.0, 2.0, 0.4], dtype=torch.float64)
LOG_P = torch.full((N,), -math.log(N), dtype=torch.float64)
LOG_Q = SCORES.T.log()  # [N, J]
TRUTH = VALUES.mean().item()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(scores: Tensor = SCORES) -> MixtureProposal:
    shares = [1 / len(scores)] * len(scores)
    return MixtureProposal([TableProposal(row) for row in scores], shares)


def exact_matrix(counts: Tensor) -> Tensor:
    """E[Σ_b V_b V_bᵀ], from S(x) V V^T summed over the items."""
    shares = responsibilities(LOG_Q, counts)
    return shares.T @ (shares * (SCORES.T @ counts).unsqueeze(1))


def every_batch(counts: list[int]) -> list[tuple[float, Tensor]]:
    """All batches with fixed counts, and their probabilities."""
    techniques = [j for j, count in enumerate(counts) for _ in range(count)]
    batches = []
    for items in itertools.product(range(N), repeat=len(techniques)):
        chance = math.prod(SCORES[j, i].item() for j, i in zip(techniques, items, strict=True))
        batches.append((chance, torch.tensor(items)))
    return batches


def optimal_estimate(items: Tensor, counts: Tensor, ridge: float = 1e-9) -> float:
    weights = optimal_weights(LOG_P[items], LOG_Q[items], counts, ridge=ridge)
    return weighted_mean(VALUES[items], weights).item()


class TestDrawFromEach:
    def test_counts_order_and_density(self) -> None:
        lone = mixture(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0]]))
        draw, log_components = draw_from_each(lone, [3, 2], generator=generator())
        assert (draw.items[:3] < 2).all()
        assert (draw.items[3:] >= 2).all()
        densities = lone.log_components(torch.arange(4)).exp()
        expected = (3 * densities[:, 0] + 2 * densities[:, 1]) / 5
        torch.testing.assert_close(draw.log_q.exp(), expected[draw.items])
        assert torch.equal(log_components, lone.log_components(draw.items))

    def test_a_proposal_may_have_no_draw(self) -> None:
        draw, _ = draw_from_each(mixture(), [0, 5], generator=generator())
        torch.testing.assert_close(draw.log_q.exp(), SCORES[1, draw.items])

    @pytest.mark.parametrize("counts", [[3], [3, -1], [0, 0], [1, 1, 1]])
    def test_bad_counts_are_refused(self, counts: list[int]) -> None:
        with pytest.raises(ValueError, match="one for each component"):
            draw_from_each(mixture(), counts)

    @pytest.mark.parametrize("counts", [[1, 1], [2, 1], [0, 2]])
    def test_balance_heuristic_is_unbiased(self, counts: list[int]) -> None:
        n = torch.tensor(counts, dtype=torch.float64)
        expectation = 0.0
        for chance, items in every_batch(counts):
            weights = balance_heuristic(LOG_P[items], LOG_Q[items], n / n.sum())
            expectation += chance * weighted_mean(VALUES[items], weights).item()
        assert expectation == pytest.approx(TRUTH, abs=1e-12)

    def test_its_weights_are_those_of_the_draw(self) -> None:
        draw, logs = draw_from_each(mixture(), [4, 2], generator=generator())
        log_p = LOG_P[draw.items]
        shares = torch.tensor([4.0, 2.0]) / 6
        torch.testing.assert_close(
            importance_weights(log_p, draw.log_q), balance_heuristic(log_p, logs, shares)
        )

    def test_varies_less_than_random_counts(self) -> None:
        """By enumeration of both, for two draws."""
        n = torch.tensor([1.0, 1.0], dtype=torch.float64)
        weights = balance_heuristic(LOG_P, LOG_Q, n / 2)
        terms = weights * VALUES / 2
        fixed = sum(
            chance * (terms[items].sum() - TRUTH).square() for chance, items in every_batch([1, 1])
        )
        q = SCORES.mean(0)
        random = 2 * ((q * terms.square()).sum() - (q * terms).sum().square())
        assert fixed < random


class TestOptimalWeights:
    @pytest.mark.parametrize("counts", [[2, 2], [3, 1]])
    def test_exact_matrix_is_the_balance_heuristic_draw_by_draw(self, counts: list[int]) -> None:
        """Found: A 1 = n for the exact A, so c = 1 and the weights are the same, not the mean."""
        n = torch.tensor(counts, dtype=torch.float64)
        matrix = exact_matrix(n)
        torch.testing.assert_close(matrix.sum(1), n)
        coefficients = combination_coefficients(matrix, n, 1e-9)
        torch.testing.assert_close(coefficients, torch.ones_like(n))
        shares = responsibilities(LOG_Q, n)
        balance = balance_heuristic(LOG_P, LOG_Q, n / n.sum())
        torch.testing.assert_close(balance * (shares @ coefficients), balance)

    def test_exact_matrix_is_the_expectation_of_the_batches(self) -> None:
        expectation = torch.zeros(2, 2, dtype=torch.float64)
        n = torch.tensor([2.0, 1.0], dtype=torch.float64)
        for chance, items in every_batch([2, 1]):
            shares = responsibilities(LOG_Q[items], n)
            expectation += chance * shares.T @ shares
        torch.testing.assert_close(expectation, exact_matrix(n))

    def test_as_printed_it_is_one_nth_too_small(self) -> None:
        """Found: with W_k = n_k p_k / S, b of f / S and Σ α_j, where all n_j = n = 3."""
        items = torch.tensor([0, 2, 3, 1, 0, 2])
        n = torch.tensor([3.0, 3.0], dtype=torch.float64)
        shares = responsibilities(LOG_Q[items], n)
        s = SCORES.T[items] @ n
        integrand = VALUES[items] * LOG_P[items].exp()
        alpha = torch.linalg.solve(shares.T @ shares, shares.T @ (integrand / s))
        assert alpha.sum().item() == pytest.approx(optimal_estimate(items, n) / 3)
        assert (n @ alpha).item() == pytest.approx(optimal_estimate(items, n))
        w = SCORES.T[items] / s.unsqueeze(1)
        other = torch.linalg.solve(w.T @ w, w.T @ (integrand / s))
        assert other.sum().item() == pytest.approx(optimal_estimate(items, n))

    def test_exact_on_the_span_of_the_proposals(self) -> None:
        items = torch.tensor([0, 2, 3, 1])
        n = torch.tensor([2.0, 2.0])
        values = (3.0 * SCORES[0] - 1.5 * SCORES[1]) * N
        weights = optimal_weights(LOG_P[items], LOG_Q[items], n, ridge=1e-12)
        assert weighted_mean(values[items], weights).item() == pytest.approx(1.5)
        balance = balance_heuristic(LOG_P[items], LOG_Q[items], n / 4)
        assert abs(weighted_mean(values[items], balance).item() - 1.5) > 0.01

    def test_its_bias_by_enumeration(self) -> None:
        """Biased, because A and b are of the same draws; it falls as batches grow."""
        errors = []
        for count in (1, 2, 3):
            n = torch.tensor([count, count], dtype=torch.float64)
            expectation = sum(
                chance * optimal_estimate(items, n, ridge=1e-3)
                for chance, items in every_batch([count, count])
            )
            errors.append(abs(expectation - TRUTH))
        assert errors[0] > 0.02
        assert errors[0] > errors[1] > errors[2]

    def test_it_is_consistent(self) -> None:
        n = torch.tensor([50_000.0, 50_000.0])
        draw, logs = draw_from_each(mixture(), [50_000, 50_000], generator=generator())
        weights = optimal_weights(LOG_P[draw.items], logs, n)
        terms = weights * VALUES[draw.items]
        error = terms.std() / math.sqrt(len(terms))
        assert abs(terms.mean() - TRUTH) < 5 * error

    def test_fewer_draws_than_proposals(self) -> None:
        scores = torch.rand(5, N, generator=generator(), dtype=torch.float64) + 0.1
        many = mixture(scores)
        draw = many.draw(2, generator=generator(1))
        weights = optimal_weights(
            LOG_P[draw.items], many.log_components(draw.items), torch.full((5,), 0.4)
        )
        assert weights.isfinite().all()
        assert weights.abs().max() < 20

    def test_equal_proposals_are_one(self) -> None:
        items = torch.tensor([0, 1, 2])
        twins = LOG_Q[items][:, [0, 0]]
        weights = optimal_weights(LOG_P[items], twins, torch.tensor([2.0, 1.0]))
        torch.testing.assert_close(weights, importance_weights(LOG_P[items], twins[:, 0]))

    def test_a_large_ridge_is_the_balance_heuristic(self) -> None:
        items = torch.tensor([0, 2, 2, 1])
        n = torch.tensor([1.0, 3.0])
        weights = optimal_weights(LOG_P[items], LOG_Q[items], n, ridge=1e9)
        torch.testing.assert_close(weights, balance_heuristic(LOG_P[items], LOG_Q[items], n / 4))

    @given(
        st.lists(st.integers(0, N - 1), min_size=1, max_size=8),
        st.floats(0.1, 0.9),
        st.floats(0.1, 10.0),
    )
    def test_only_the_proportions_of_the_counts_count(
        self, items: list[int], share: float, factor: float
    ) -> None:
        n = torch.tensor([share, 1 - share], dtype=torch.float64)
        logs, log_p = LOG_Q[items], LOG_P[items]
        torch.testing.assert_close(
            optimal_weights(log_p, logs, n), optimal_weights(log_p, logs, factor * n)
        )

    @pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan])
    def test_bad_ridge_is_refused(self, ridge: float) -> None:
        with pytest.raises(ValueError, match="positive"):
            optimal_weights(LOG_P, LOG_Q, torch.ones(2), ridge=ridge)

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected \[B, J\] and \[J\]"):
            optimal_weights(LOG_P, LOG_Q, torch.ones(3))
        with pytest.raises(ValueError, match=r"\[J, J\]"):
            combination_coefficients(torch.ones(2, 3), torch.ones(2))


def losses_and_parameters() -> tuple[Tensor, list[Tensor]]:
    """[N] losses of a small model whose gradients differ in every item."""
    rng = generator(3)
    x = torch.randn(N, 2, generator=rng, dtype=torch.float64)
    weight = torch.randn(2, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=rng, dtype=torch.float64, requires_grad=True)
    return (x @ weight + bias).tanh().square().sum(1), [weight, bias]


def exact_gradient() -> list[Tensor]:
    losses, parameters = losses_and_parameters()
    return list(torch.autograd.grad(losses.mean(), parameters))


def batch_rows(items: Tensor, counts: Tensor) -> tuple[Tensor, list[Tensor]]:
    losses, parameters = losses_and_parameters()
    shares = responsibilities(LOG_Q[items], counts)
    weights = balance_heuristic(LOG_P[items], LOG_Q[items], counts / counts.sum())
    return shares, gradient_rows(losses[items], weights, shares, parameters)


class TestGradients:
    COUNTS = torch.tensor([2.0, 1.0], dtype=torch.float64)

    def test_rows_are_the_gradients_one_by_one(self) -> None:
        items = torch.tensor([0, 3, 2])
        shares, rows = batch_rows(items, self.COUNTS)
        weights = balance_heuristic(LOG_P[items], LOG_Q[items], self.COUNTS / 3)
        for j in range(2):
            losses, parameters = losses_and_parameters()
            loss = weighted_mean(losses[items], weights * shares[:, j])
            for row, one in zip(rows, torch.autograd.grad(loss, parameters), strict=True):
                torch.testing.assert_close(row[j], one)

    def test_without_memory_it_is_the_optimal_weights(self) -> None:
        items = torch.tensor([0, 3, 2])
        shares, rows = batch_rows(items, self.COUNTS)
        combination = OptimalCombination(self.COUNTS, beta=0.0)
        combination.update(*batch_rows(torch.tensor([1, 1, 0]), self.COUNTS))
        gradient = combination.update(shares, rows)
        losses, parameters = losses_and_parameters()
        weights = optimal_weights(LOG_P[items], LOG_Q[items], self.COUNTS)
        loss = weighted_mean(losses[items], weights)
        for one, other in zip(gradient, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(one, other)

    def test_running_sums_are_those_of_all_batches(self) -> None:
        """With β near 1 the estimate is that of one batch of all draws."""
        batches = [torch.tensor(items) for items in ([0, 3, 2], [1, 2, 0], [2, 2, 3])]
        combination = OptimalCombination(self.COUNTS, beta=1 - 1e-9)
        for items in batches:
            gradient = combination.update(*batch_rows(items, self.COUNTS))
        everything = torch.cat(batches)
        losses, parameters = losses_and_parameters()
        weights = optimal_weights(LOG_P[everything], LOG_Q[everything], self.COUNTS)
        loss = weighted_mean(losses[everything], weights)
        for one, other in zip(gradient, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)

    def test_control_variate_of_the_past_is_unbiased(self) -> None:
        """By enumeration, whatever the past was; the running sums are not."""
        exact = exact_gradient()
        far = []
        for unbiased in (True, False):
            combination = OptimalCombination(self.COUNTS, unbiased=unbiased)
            combination.update(*batch_rows(torch.tensor([0, 2, 1]), self.COUNTS))
            past = combination.state_dict()
            expectation = [torch.zeros_like(row) for row in exact]
            for chance, items in every_batch([2, 1]):
                combination.load_state_dict(past)
                gradient = combination.update(*batch_rows(items, self.COUNTS))
                for total, row in zip(expectation, gradient, strict=True):
                    total += chance * row
            gaps = [(a - b).abs().max() for a, b in zip(expectation, exact, strict=True)]
            far.append(float(max(gaps)))
        assert far[0] < 1e-12
        assert far[1] > 1e-3

    def test_the_control_variate_lowers_the_variance(self) -> None:
        """On gradients in the span of the proposals nothing is left, from the second batch on."""
        counts = torch.tensor([2.0, 2.0], dtype=torch.float64)
        slope = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        losses = slope * (3.0 * SCORES[0] - 1.5 * SCORES[1]) * N
        combination = OptimalCombination(counts, ridge=1e-12, unbiased=True)
        gradients = []
        for seed in range(3):
            draw, logs = draw_from_each(mixture(), [2, 2], generator=generator(seed))
            weights = importance_weights(LOG_P[draw.items], draw.log_q)
            shares = responsibilities(logs, counts)
            rows = gradient_rows(losses[draw.items], weights, shares, [slope])
            gradients.append(combination.update(shares, rows)[0].item())
            losses = slope * (3.0 * SCORES[0] - 1.5 * SCORES[1]) * N
        assert abs(gradients[0] - 1.5) > 0.01
        assert gradients[1:] == pytest.approx([1.5, 1.5])

    def test_state_round_trip_and_bad_input(self) -> None:
        first, second = (OptimalCombination(self.COUNTS) for _ in range(2))
        first.update(*batch_rows(torch.tensor([0, 2, 1]), self.COUNTS))
        state = first.state_dict()
        second.load_state_dict(state)
        items = torch.tensor([3, 1, 1])
        one = first.update(*batch_rows(items, self.COUNTS))
        for a, b in zip(one, second.update(*batch_rows(items, self.COUNTS)), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(OptimalCombination(self.COUNTS).matrix, torch.zeros(2, 2).double())
        with pytest.raises(ValueError, match="3 proposals"):
            second.load_state_dict({**state, "matrix": torch.zeros(3, 3)})
        shares, rows = batch_rows(items, self.COUNTS)
        before = first.matrix.clone()
        with pytest.raises(ValueError, match="expected"):
            first.update(shares, rows[:1])
        with pytest.raises(ValueError, match="expected"):
            first.update(shares[:, :1], rows)
        assert torch.equal(first.matrix, before)
        losses, parameters = losses_and_parameters()
        with pytest.raises(ValueError, match=r"expected \[B\], \[B\] and \[B, J\]"):
            gradient_rows(losses, torch.ones(3), torch.ones(3, 2), parameters)

    @pytest.mark.parametrize("settings", [{"beta": 1.0}, {"beta": -0.1}, {"ridge": 0.0}])
    def test_bad_settings_are_refused(self, settings: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="expected"):
            OptimalCombination(self.COUNTS, **settings)


class TestOutputNodes:
    def test_magnitudes_of_signed_gradients(self) -> None:
        proposal = mixture(torch.ones(2, N))
        adaptation = OutputNodeAdaptation(proposal, decay=0.25)
        draw = proposal.draw(2, generator=generator())
        draw = draw._replace(items=torch.tensor([3, 1]))
        adaptation.update(draw, torch.tensor([[-2.0, 1.0], [3.0, -4.0]]))
        first, second = proposal.components
        assert isinstance(first, TableProposal)
        assert isinstance(second, TableProposal)
        assert first.scores.tolist() == [1.0, 2.5, 1.0, 1.75]
        assert second.scores.tolist() == [1.0, 3.25, 1.0, 1.0]

    @pytest.mark.parametrize("bad", [[[1.0, math.nan]], [[math.inf, 1.0]], [[1.0]], [[1.0] * 3]])
    def test_bad_gradients_change_nothing(self, bad: list[list[float]]) -> None:
        proposal = mixture()
        before = proposal.log_components(torch.arange(N))
        with pytest.raises(ValueError, match="output_gradients"):
            OutputNodeAdaptation(proposal).update(
                proposal.draw(1, generator=generator()), torch.tensor(bad)
            )
        assert torch.equal(proposal.log_components(torch.arange(N)), before)

    def test_only_tables(self) -> None:
        with pytest.raises(ValueError, match="component 1 is a UniformProposal"):
            OutputNodeAdaptation(
                MixtureProposal([TableProposal(N), UniformProposal(N)], [0.5, 0.5])
            )

    def test_what_is_never_drawn_comes_back(self) -> None:
        table = TableProposal(torch.tensor([1.0, 0.0, 3.0]))
        raise_scores(table, 0.5)
        assert table.scores.tolist() == [1.5, 0.5, 3.5]
        assert table.probabilities()[1] > 0
        for epsilon in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="epsilon"):
                raise_scores(table, epsilon)
        assert table.scores.tolist() == [1.5, 0.5, 3.5]
