"""Integrals by importance sampling: unbiased while the proposal moves, and the error too."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from awsgd_rl.adaptation import ScoreFunctionAdaptation, TableAdaptation
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.estimators import importance_estimate
from awsgd_rl.integration import Integrator, integrate
from awsgd_rl.policies import GaussianPolicyProposal
from awsgd_rl.proposals import SoftmaxProposal, TableProposal, UniformProposal

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
F = torch.tensor([1.0, -2.0, 6.0], dtype=torch.float64)
EXACT = (P * F).sum().item()


class Scripted(Proposal):
    """A softmax whose draws are given, to enumerate all that can happen."""

    def __init__(self, script: tuple[int, ...]) -> None:
        super().__init__()
        self.softmax = SoftmaxProposal(3)
        self.script = list(script)
        self.chance = 1.0

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        return self.softmax.log_prob(items, given=given)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        items = torch.tensor([self.script.pop(0) for _ in range(count)])
        log_q = self.log_prob(items)
        self.chance *= log_q.sum().exp().item()
        return Draw(items, log_q)


def awsgd(proposal: Proposal, lr: float, **settings: Any) -> ScoreFunctionAdaptation:
    return ScoreFunctionAdaptation(
        proposal, torch.optim.SGD(proposal.parameters(), lr=lr), **settings
    )


def enumerated(batch_size: int, exponent: float = 0.0) -> tuple[float, float, float]:
    """Expectations of the estimate, its square, and its squared error, over all four draws."""
    mean = square = error = total = 0.0
    for script in itertools.product(range(3), repeat=4):
        q = Scripted(script)
        estimate = integrate(
            F.__getitem__,
            P.log().__getitem__,
            q,
            awsgd(q, 0.01, scale=False),
            draws=4,
            batch_size=batch_size,
            weight_exponent=exponent,
        )
        total += q.chance
        mean += q.chance * estimate.mean.item()
        square += q.chance * estimate.mean.item() ** 2
        error += q.chance * estimate.standard_error.item() ** 2
    assert total == pytest.approx(1.0)
    return mean, square, error


class TestUnbiased:
    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    def test_mean_and_squared_error_while_q_moves(self, batch_size: int) -> None:
        mean, square, error = enumerated(batch_size)
        assert mean == pytest.approx(EXACT)
        assert error == pytest.approx(square - EXACT**2)

    @pytest.mark.parametrize("exponent", [0.5, 2.0])
    def test_mean_with_the_square_root_rule(self, exponent: float) -> None:
        assert enumerated(1, exponent)[0] == pytest.approx(EXACT)

    def test_within_five_standard_errors(self) -> None:
        """A stream of runs, each with a proposal that learns: the errors are as large as stated."""
        generator = torch.Generator().manual_seed(3)
        for exponent in (0.0, 0.5):
            scores = []
            for _ in range(60):
                q = SoftmaxProposal(3)
                mean, error = integrate(
                    F.__getitem__,
                    P.log().__getitem__,
                    q,
                    awsgd(q, 0.05),
                    draws=400,
                    batch_size=10,
                    weight_exponent=exponent,
                    generator=generator,
                )
                scores.append((mean.item() - EXACT) / error.item())
            squares = torch.tensor(scores).square()
            assert max(abs(score) for score in scores) < 5.0
            assert abs(squares.mean() - 1.0) < 5.0 * squares.std() / math.sqrt(60)


class TestAdaptation:
    def test_learns_to_draw_in_proportion_to_p_f(self) -> None:
        q = SoftmaxProposal(3)
        integrate(
            F.__getitem__,
            P.log().__getitem__,
            q,
            awsgd(q, 0.02),
            draws=20_000,
            batch_size=20,
            generator=torch.Generator().manual_seed(0),
        )
        best = (P * F.abs()) / (P * F.abs()).sum()
        torch.testing.assert_close(q.tau.detach().softmax(0), best, atol=0.03, rtol=0)

    def test_a_table_makes_the_error_vanish(self) -> None:
        values = torch.tensor([1.0, 4.0, 9.0, 2.0], dtype=torch.float64)
        q = TableProposal(4)
        integrator = Integrator(
            values.__getitem__, lambda x: torch.full((len(x),), -math.log(4.0)).double(), q,
            TableAdaptation(q),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            integrator.step(4, generator=generator)
        late = Integrator(integrator.function, integrator.log_target, q)
        late.step(10, generator=generator)
        torch.testing.assert_close(late.estimate.mean, values.mean())
        assert late.estimate.standard_error < 1e-9

    def test_a_failed_step_moves_nothing(self) -> None:
        q = SoftmaxProposal(3)
        integrator = Integrator(
            torch.tensor([1.0, torch.nan, 2.0]).__getitem__, P.log().__getitem__, q, awsgd(q, 0.1)
        )
        with pytest.raises(ValueError, match=r"item 1 has f = nan and log p = -1\.20397"):
            integrator.step(50, generator=torch.Generator().manual_seed(0))
        assert integrator.draws == 0
        assert not q.tau.any()
        with pytest.raises(ValueError, match="nothing was drawn yet"):
            _ = integrator.estimate


class Wrapped(Proposal):
    """A normal distribution that depends on nothing: `GaussianPolicyProposal` wrapped."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.parameters_of = nn.Parameter(torch.tensor([0.0, math.log(std)], dtype=torch.float64))
        self.gaussian = GaussianPolicyProposal(_Constant(self.parameters_of))

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        self._check_given(len(items), given)
        return self.gaussian.log_prob(items, given=torch.zeros(len(items), 1))

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        return self.gaussian.draw(count, generator=generator, given=torch.zeros(count, 1))


class _Constant(nn.Module):
    def __init__(self, parameters: Tensor) -> None:
        super().__init__()
        self.held = [parameters]

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.held[0]
        return mean.expand(len(given), 1), log_std.expand(1)


def test_a_rare_event_of_a_continuous_variable() -> None:
    """P(x > 3) of a standard normal variable: 1.35e-3."""
    q = Wrapped(2.0)
    adaptation = ScoreFunctionAdaptation(q, torch.optim.Adam(q.parameters(), lr=0.02))
    mean, error = integrate(
        lambda x: (x.squeeze(1) > 3.0).double(),
        lambda x: -0.5 * x.squeeze(1).square() - 0.5 * math.log(2.0 * math.pi),
        q,
        adaptation,
        draws=20_000,
        batch_size=50,
        weight_exponent=0.5,
        generator=torch.Generator().manual_seed(1),
    )
    exact = 0.5 * math.erfc(3.0 / math.sqrt(2.0))
    assert abs(mean.item() - exact) < 5.0 * error.item()
    plain = math.sqrt(exact * (1.0 - exact) / 20_000)
    assert error.item() < 0.1 * plain


class TestIntegrator:
    @given(st.integers(0, 2**32), st.sampled_from([1, 3, 10]), st.sampled_from([(), (2,), (2, 3)]))
    def test_standing_still_it_is_the_plain_estimate(
        self, seed: int, batch_size: int, shape: tuple[int, ...]
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        values = 1e6 + torch.randn(5, *shape, generator=generator, dtype=torch.float64)
        log_p = torch.rand(5, generator=generator, dtype=torch.float64).log_softmax(0)
        state = generator.get_state()
        got = integrate(
            values.__getitem__, log_p.__getitem__, UniformProposal(5), draws=12,
            batch_size=batch_size, generator=generator,
        )  # fmt: skip
        generator.set_state(state)
        counts = [batch_size] * (12 // batch_size) + [12 % batch_size]
        draws = [UniformProposal(5).draw(n, generator=generator) for n in counts if n]
        x = torch.cat([draw.items for draw in draws])
        log_q = torch.cat([draw.log_q for draw in draws])
        torch.testing.assert_close(got, importance_estimate(values[x], log_p[x], log_q))

    def test_the_square_root_rule_weighs_batches(self) -> None:
        q = Scripted((2, 0, 1))
        integrator = Integrator(F.__getitem__, P.log().__getitem__, q, weight_exponent=0.5)
        for _ in range(3):
            integrator.step()
        terms = 3.0 * (P * F)[torch.tensor([2, 0, 1])]
        weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sqrt()
        weights = weights / weights.sum()
        torch.testing.assert_close(integrator.estimate.mean, (weights * terms).sum())

    def test_progress_and_the_number_of_draws(self) -> None:
        seen: list[int] = []
        integrate(
            F.__getitem__, P.log().__getitem__, UniformProposal(3), draws=10, batch_size=4,
            progress=lambda done, estimate: seen.append(done),
        )  # fmt: skip
        assert seen == [4, 8, 10]

    def test_the_state_goes_on_where_it_was(self) -> None:
        def made() -> Integrator:
            q = SoftmaxProposal(3)
            return Integrator(
                F.__getitem__, P.log().__getitem__, q, awsgd(q, 0.1), weight_exponent=0.5
            )

        generator = torch.Generator().manual_seed(0)
        one, two = made(), made()
        for _ in range(5):
            one.step(4, generator=generator)
        two.load_state_dict(one.state_dict())
        state = generator.get_state()
        for integrator in (one, two):
            generator.set_state(state)
            for _ in range(5):
                integrator.step(4, generator=generator)
        assert (one.draws, one.batches) == (two.draws, two.batches) == (40, 10)
        assert torch.equal(one.estimate.mean, two.estimate.mean)
        assert torch.equal(one.estimate.standard_error, two.estimate.standard_error)
        plain = Integrator(F.__getitem__, P.log().__getitem__, SoftmaxProposal(3))
        with pytest.raises(ValueError, match="expected both or none"):
            plain.load_state_dict(one.state_dict())

    def test_one_draw_has_no_error(self) -> None:
        integrator = Integrator(F.__getitem__, P.log().__getitem__, UniformProposal(3))
        integrator.step()
        assert integrator.estimate.standard_error.isnan()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"draws": 1}, "draws is 1"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"weight_exponent": -0.5}, "weight_exponent is -0.5"),
            ({"function": lambda x: F}, "the function returned shape"),
            ({"log_target": lambda x: torch.zeros(1)}, "for 4 items"),
            ({"log_target": lambda x: torch.full((len(x),), torch.inf)}, "log p = inf"),
            ({"function": lambda x: torch.full((len(x), 2), torch.inf)}, "expected finite f"),
            ({"proposal": GaussianPolicyProposal(nn.Identity())}, "is conditional"),
        ],
    )
    def test_bad_input_is_refused(self, change: dict[str, Any], message: str) -> None:
        arguments: dict[str, Any] = {
            "function": F.__getitem__,
            "log_target": P.log().__getitem__,
            "proposal": UniformProposal(3),
            "draws": 10,
            "batch_size": 4,
            **change,
        }
        with pytest.raises(ValueError, match=message):
            integrate(**arguments)

    def test_f_of_another_shape_than_before_is_refused(self) -> None:
        shapes = iter([(4,), (4, 2)])
        integrator = Integrator(
            lambda x: torch.ones(next(shapes)), P.log().__getitem__, UniformProposal(3)
        )
        integrator.step(4)
        with pytest.raises(ValueError, match="as before"):
            integrator.step(4)
