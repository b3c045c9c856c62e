import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.adaptation import (
    RunningScale,
    ScoreFunctionAdaptation,
    TableAdaptation,
    centred,
    leave_one_out_mean,
    score_function_coefficients,
)
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.diagnostics import second_moment
from awsgd_rl.policies import PolicyProposal
from awsgd_rl.proposals import (
    ClassProposal,
    MixtureProposal,
    SoftmaxProposal,
    TableProposal,
    UniformProposal,
)

N = 6
LABELS = torch.tensor([0, 2, 1, 2, 2, 0])
NORMS = torch.tensor([0.1, 4.0, 1.0, 0.5, 2.0, 0.2], dtype=torch.float64)
UNIFORM = torch.full((N,), 1.0 / N, dtype=torch.float64)
numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_p(count: int) -> Tensor:
    return torch.full((count,), -math.log(N), dtype=torch.float64)


class TestCentring:
    @given(numbers)
    def test_leave_one_out_mean(self, x: list[float]) -> None:
        means = leave_one_out_mean(torch.tensor(x, dtype=torch.float64))
        for i, mean in enumerate(means.tolist()):
            others = x[:i] + x[i + 1 :]
            assert mean == pytest.approx(sum(others) / len(others), abs=1e-6)

    @given(numbers)
    def test_centred_sums_to_zero(self, x: list[float]) -> None:
        assert abs(centred(torch.tensor(x, dtype=torch.float64)).sum().item()) <= 1e-6

    def test_a_single_draw_is_left_as_it_is(self) -> None:
        assert leave_one_out_mean(torch.tensor([3.0])).tolist() == [0.0]
        assert centred(torch.tensor([3.0])).tolist() == [3.0]


class TestCoefficients:
    SQUARES = torch.tensor([1.0, 4.0, 7.0])

    def test_plain_form_is_the_squared_norm(self) -> None:
        assert score_function_coefficients(self.SQUARES, centre=False).tolist() == [1.0, 4.0, 7.0]

    def test_centred_and_scaled(self) -> None:
        coefficients = score_function_coefficients(self.SQUARES, scale=0.5)
        assert coefficients.tolist() == [2.0 * (1.0 - 5.5), 0.0, 2.0 * (7.0 - 2.5)]

    def test_no_gradient(self) -> None:
        squares = self.SQUARES.clone().requires_grad_()
        assert not score_function_coefficients(squares).requires_grad


class TestRunningScale:
    def test_formula(self) -> None:
        scale = RunningScale(decay=0.5)
        assert scale.update(torch.tensor([1.0, 3.0])).item() == 2.0
        assert scale.update(torch.tensor([5.0])).item() == pytest.approx((0.5 * 2 + 5) / 1.5)

    def test_nothing_but_zeros_can_divide(self) -> None:
        scale = RunningScale().update(torch.zeros(3))
        assert (torch.zeros(3, dtype=torch.float64) / scale).tolist() == [0.0, 0.0, 0.0]

    def test_state(self) -> None:
        scale, other = RunningScale(), RunningScale()
        scale.update(torch.tensor([3.0]))
        other.load_state_dict(scale.state_dict())
        assert other.mean().item() == 3.0

    @pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
    def test_bad_decay_is_refused(self, decay: float) -> None:
        with pytest.raises(ValueError, match="decay is"):
            RunningScale(decay)


def softmax_adaptation(
    lr: float = 0.1, *, centre: bool = True, scale: bool = True
) -> tuple[SoftmaxProposal, ScoreFunctionAdaptation]:
    proposal = SoftmaxProposal(N)
    optimizer = torch.optim.SGD(proposal.parameters(), lr=lr, momentum=0.5)
    return proposal, ScoreFunctionAdaptation(proposal, optimizer, centre=centre, scale=scale)


class TestScoreFunction:
    """The expected step is compared with enumeration in test_proposals.py, for all proposals."""

    def test_first_step_is_algorithm_2(self) -> None:
        """Bouchard 2015: τ += η ‖d‖² ∇_τ log q with d = ∇f/q, q relative to p."""
        proposal = SoftmaxProposal(N)
        optimizer = torch.optim.SGD(proposal.parameters(), lr=0.3)
        adaptation = ScoreFunctionAdaptation(proposal, optimizer, scale=False)
        draw = proposal.draw(1, generator=generator())
        adaptation.update(draw, NORMS[draw.items], log_p(1))
        one_hot = torch.zeros(N, dtype=torch.float64)
        one_hot[draw.items] = 1.0
        expected = 0.3 * NORMS[draw.items].square() * (one_hot - UNIFORM)
        torch.testing.assert_close(proposal.tau.detach(), expected)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam])
    def test_learns_the_optimum(self, optimizer: type[torch.optim.Optimizer]) -> None:
        proposal = SoftmaxProposal(N)
        adaptation = ScoreFunctionAdaptation(
            proposal,
            optimizer(proposal.parameters(), lr=0.05),  # type: ignore[call-arg]
        )
        rng = generator()
        for _ in range(600):
            draw = proposal.draw(32, generator=rng)
            adaptation.update(draw, NORMS[draw.items], log_p(32))
        learned = second_moment(NORMS, UNIFORM, proposal.tau.detach().softmax(0))
        best = second_moment(NORMS, UNIFORM, NORMS / NORMS.sum())
        assert learned < 1.1 * best
        assert second_moment(NORMS, UNIFORM, UNIFORM) > 2.0 * best

    def test_centring_leaves_tau_where_all_norms_are_equal(self) -> None:
        for centre in (True, False):
            proposal, adaptation = softmax_adaptation(centre=centre)
            draw = proposal.draw(4, generator=generator())
            adaptation.update(draw, torch.ones(4), log_p(4))
            assert (proposal.tau.abs().max().item() < 1e-12) == centre

    def test_cost_moves_draws_to_what_is_fast(self) -> None:
        """Bouchard 2015, Algorithm 3: equal norms, unequal access times."""
        proposal, adaptation = softmax_adaptation()
        time = torch.tensor([1.0, 1.0, 1.0, 100.0, 100.0, 100.0])
        rng = generator()
        for _ in range(300):
            draw = proposal.draw(32, generator=rng)
            cost = time[draw.items]
            adaptation.update(draw, torch.ones(32), log_p(32), cost=cost)
        q = proposal.tau.detach().softmax(0)
        assert q[:3].min() > 5.0 * q[3:].max()

    def test_weight_is_that_of_the_draw(self) -> None:
        proposal, adaptation = softmax_adaptation(scale=False, centre=False)
        draw = proposal.draw(1, generator=generator())
        halved = Draw(draw.items, draw.log_q - math.log(2.0))
        adaptation.update(halved, torch.ones(1), log_p(1))
        expected = 0.1 * 4.0 * (1.0 - 1.0 / N)
        assert proposal.tau[draw.items].item() == pytest.approx(expected)

    def test_other_gradients_are_left_alone(self) -> None:
        table, tau = torch.nn.Embedding(1, 3), torch.nn.Linear(3, N)
        proposal = PolicyProposal(torch.nn.Sequential(table, torch.nn.Flatten(), tau))
        adaptation = ScoreFunctionAdaptation(proposal, torch.optim.SGD(tau.parameters(), lr=0.1))
        table.weight.grad = torch.full((1, 3), 7.0)
        observations = torch.zeros(4, 1, dtype=torch.long)
        # Unlike items: four equal ones would have equal norms, and centring would leave τ as it is.
        items = torch.arange(4)
        draw = Draw(items, proposal.log_prob(items, given=observations).detach())
        before = tau.bias.detach().clone()
        adaptation.update(draw, NORMS[draw.items], log_p(4), given=observations)
        assert (table.weight.grad == 7.0).all()
        assert not torch.equal(tau.bias.detach(), before)

    @pytest.mark.parametrize(
        ("signal", "log_target"),
        [
            ([1.0, math.nan], [0.0, 0.0]),
            ([1.0, math.inf], [0.0, 0.0]),
            ([1.0, -1.0], [0.0, 0.0]),
            ([1.0], [0.0, 0.0]),
            ([[1.0, 1.0]], [0.0, 0.0]),
            ([1.0, 1.0], [0.0]),
            ([1.0, 1.0], [0.0, math.nan]),
            ([1.0, 1.0], [0.0, 1000.0]),
        ],
    )
    def test_bad_input_moves_nothing(self, signal: list[float], log_target: list[float]) -> None:
        proposal, adaptation = softmax_adaptation()
        draw = proposal.draw(2, generator=generator())
        with pytest.raises(ValueError, match="expected"):
            adaptation.update(draw, torch.tensor(signal), torch.tensor(log_target))
        assert (proposal.tau == 0.0).all()
        assert adaptation.scale is not None
        assert adaptation.scale.weight.item() == 0.0

    @pytest.mark.parametrize("cost", [[1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0]])
    def test_bad_cost_moves_nothing(self, cost: list[float]) -> None:
        proposal, adaptation = softmax_adaptation()
        draw = proposal.draw(2, generator=generator())
        with pytest.raises(ValueError, match="positive times"):
            adaptation.update(draw, torch.ones(2), log_p(2), cost=torch.tensor(cost))
        assert (proposal.tau == 0.0).all()

    @pytest.mark.parametrize("centre", [True, False])
    @pytest.mark.parametrize("scale", [True, False])
    @pytest.mark.parametrize("with_cost", [True, False])
    @pytest.mark.parametrize("count", [1, 8])
    def test_the_kernel_computes_what_the_tensors_do(
        self, centre: bool, scale: bool, with_cost: bool, count: int
    ) -> None:
        _, compiled = softmax_adaptation(centre=centre, scale=scale)
        proposal, plain = softmax_adaptation(centre=centre, scale=scale)
        rng = generator()
        for _ in range(3):
            draw = proposal.draw(count, generator=rng)
            signal = torch.rand(count, generator=rng).requires_grad_()
            cost = 1.0 + torch.rand(count, generator=rng) if with_cost else None
            made = compiled._compiled_coefficients(draw, signal, log_p(count), cost)
            expected = plain._coefficients(draw, signal, log_p(count), cost)
            assert made is not None
            torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
            if scale:
                assert compiled.scale is not None
                assert plain.scale is not None
                torch.testing.assert_close(compiled.scale.mean(), plain.scale.mean())

    def test_optimizer_of_other_parameters_is_refused(self) -> None:
        other = SoftmaxProposal(N)
        for proposal in (SoftmaxProposal(N), UniformProposal(N)):
            with pytest.raises(ValueError, match=r"expected an optimizer over proposal"):
                ScoreFunctionAdaptation(proposal, torch.optim.SGD(other.parameters(), lr=0.1))

    def test_resumes_bit_for_bit(self) -> None:
        def steps(adaptation: ScoreFunctionAdaptation, rng: torch.Generator) -> None:
            for _ in range(5):
                draw = adaptation.proposal.draw(8, generator=rng)
                adaptation.update(draw, NORMS[draw.items], log_p(8))

        proposal, adaptation = softmax_adaptation()
        rng = generator()
        steps(adaptation, rng)
        twin, resumed = softmax_adaptation()
        twin.load_state_dict(proposal.state_dict())
        resumed.load_state_dict(adaptation.state_dict())
        rng_twin = torch.Generator()
        rng_twin.set_state(rng.get_state())
        steps(adaptation, rng)
        steps(resumed, rng_twin)
        assert torch.equal(twin.tau, proposal.tau)

    def test_state_of_another_setting_is_refused(self) -> None:
        _, with_scale = softmax_adaptation()
        _, without = softmax_adaptation(scale=False)
        with pytest.raises(ValueError, match="another setting"):
            without.load_state_dict(with_scale.state_dict())

    @pytest.mark.parametrize("make", [SoftmaxProposal, lambda n: ClassProposal(LABELS, 3)])
    def test_closed_form_is_the_gradient(self, make: Callable[[int], Proposal]) -> None:
        """What spares autograd ends where autograd does."""
        taus = []
        for closed in (True, False):
            proposal = make(N)
            (tau,) = proposal.parameters()
            tau.data = 0.5 * torch.randn(tau.shape, generator=generator(2), dtype=tau.dtype)
            # A mixture of one component is the same proposal, and has no closed form.
            held = proposal if closed else MixtureProposal([proposal], [1.0])
            adaptation = ScoreFunctionAdaptation(
                held, torch.optim.Adagrad([tau], lr=0.1), centre=False
            )
            rng = generator()
            for _ in range(5):
                draw = proposal.draw(8, generator=rng)
                adaptation.update(draw, NORMS[draw.items], log_p(8))
            taus.append(tau.detach())
            assert tau.grad is None
        torch.testing.assert_close(taus[0], taus[1], rtol=1e-12, atol=1e-12)
        assert taus[0].abs().max() > 0.1


class TestTable:
    def test_formula(self) -> None:
        table = TableProposal(torch.tensor([1.0, 2.0, 3.0]))
        draw = Draw(torch.tensor([0, 2, 0]), torch.zeros(3, dtype=torch.float64))
        TableAdaptation(table, decay=0.25).update(draw, torch.tensor([5.0, 7.0, 9.0]))
        assert table.scores.tolist() == [0.25 + 0.75 * 9.0, 2.0, 0.75 + 0.75 * 7.0]

    def test_finds_the_optimum_where_norms_stand_still(self) -> None:
        table = TableProposal(N)
        adaptation, rng = TableAdaptation(table), generator()
        for _ in range(200):
            draw = table.draw(4, generator=rng)
            adaptation.update(draw, NORMS[draw.items], log_p(4))
        torch.testing.assert_close(table.probabilities(), NORMS / NORMS.sum())

    @pytest.mark.parametrize("signal", [[1.0, math.nan], [1.0, math.inf], [1.0, -1.0], [1.0]])
    def test_bad_signal_changes_nothing(self, signal: list[float]) -> None:
        table = TableProposal(N)
        with pytest.raises(ValueError, match="expected"):
            TableAdaptation(table).update(table.draw(2), torch.tensor(signal))
        assert (table.scores == 1.0).all()

    @pytest.mark.parametrize("log_target", [[0.0, -1.0], [0.0, math.nan], [0.0, -math.inf]])
    def test_target_that_is_not_uniform_is_refused(self, log_target: list[float]) -> None:
        table = TableProposal(N)
        with pytest.raises(ValueError, match="expected a uniform target"):
            TableAdaptation(table).update(
                table.draw(2), torch.ones(2) * 3.0, torch.tensor(log_target)
            )
        assert (table.scores == 1.0).all()

    def test_settings_and_state(self) -> None:
        with pytest.raises(ValueError, match=r"decay is 1\.0"):
            TableAdaptation(TableProposal(2), decay=1.0)
        adaptation = TableAdaptation(TableProposal(2))
        adaptation.load_state_dict(adaptation.state_dict())
        with pytest.raises(ValueError, match="expected an empty one"):
            adaptation.load_state_dict({"scores": 1})
