"""Two-stage draws: unbiased by enumeration, the variance that is claimed, and the switch."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.base import Draw
from awsgd_rl.proposals import SoftmaxProposal, TableProposal, UniformProposal
from awsgd_rl.two_stage import TwoStageSampler, chain, two_stage_draw, variance_reduction
from awsgd_rl.weights import importance_weights

Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
P = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
F = torch.tensor([1.0, -2.0, 6.0], dtype=torch.float64)
SCORES = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
scores_lists = st.lists(st.floats(0.0, 1e300), min_size=1, max_size=8)


class Clock:
    """Scoring takes `score` seconds, the rest of a step `rest`."""

    def __init__(self, score: float, rest: float) -> None:
        self.now, self.steps = 0.0, itertools.cycle([0.0, score, rest])

    def __call__(self) -> float:
        self.now += next(self.steps)
        return self.now


def second_stage(scores: Tensor, uniform_share: float) -> Tensor:
    share = scores / scores.sum() if scores.any() else torch.full_like(scores, 1 / len(scores))
    return (1 - uniform_share) * share + uniform_share / len(scores)


class TestTwoStageDraw:
    @pytest.mark.parametrize("uniform_share", [0.0, 0.3])
    def test_probabilities_and_log_q(self, uniform_share: float) -> None:
        draw = two_stage_draw(
            SCORES, 40_000, uniform_share=uniform_share, generator=torch.Generator().manual_seed(0)
        )
        r = second_stage(SCORES, uniform_share)
        torch.testing.assert_close(draw.log_q, r[draw.items].log())
        shares = torch.bincount(draw.items, minlength=3) / 40_000
        assert ((shares - r).abs() < 5.0 * (r * (1.0 - r) / 40_000).sqrt()).all()

    @pytest.mark.parametrize("uniform_share", [0.0, 0.3])
    def test_unbiased_by_enumeration(self, uniform_share: float) -> None:
        """Over all candidates (3 of q₁) and all draws among them (2 of r)."""
        mean = torch.zeros((), dtype=torch.float64)
        for candidates in itertools.product(range(3), repeat=3):
            x = torch.tensor(candidates)
            first = Draw(x, Q[x].log())
            r = second_stage(SCORES[x], uniform_share)
            for pair in itertools.product(range(3), repeat=2):
                k = torch.tensor(pair)
                draw = chain(first, Draw(k, r[k].log()))
                weights = importance_weights(P[draw.items].log(), draw.log_q)
                mean += Q[x].prod() * r[k].prod() * (weights * F[draw.items]).mean()
        torch.testing.assert_close(mean, (P * F).sum())

    def test_the_weight_of_uniform_candidates_is_mean_score_over_score(self) -> None:
        first = UniformProposal(100).draw(3, generator=torch.Generator().manual_seed(0))
        draw = two_stage_draw(SCORES, 5, generator=torch.Generator().manual_seed(0))
        weights = importance_weights(
            torch.full((5,), -math.log(100.0)).double(), chain(first, draw).log_q
        )
        torch.testing.assert_close(weights, SCORES.mean() / SCORES[draw.items])

    @given(scores_lists, st.integers(1, 5), st.sampled_from([0.0, 0.1]))
    def test_any_scores(self, scores: list[float], count: int, uniform_share: float) -> None:
        values = torch.tensor(scores, dtype=torch.float64)
        draw = two_stage_draw(
            values, count, uniform_share=uniform_share, generator=torch.Generator().manual_seed(0)
        )
        assert draw.items.shape == (count,)
        assert draw.log_q.isfinite().all()
        if uniform_share:
            assert (-draw.log_q - math.log(len(scores))).exp().max() <= 1.0 / uniform_share + 1e-9
        elif values.any():
            assert (values[draw.items] > 0.0).all()
        assert variance_reduction(values, 1, uniform_share=uniform_share) > 0.0

    def test_replay(self) -> None:
        """|TD| as the score, from prioritised candidates: p / q is one weight for both stages."""
        table = TableProposal(torch.tensor([1.0, 2.0, 5.0, 0.5]))
        generator = torch.Generator().manual_seed(2)
        errors = torch.tensor([0.3, -2.0, 1.0, 4.0], dtype=torch.float64)
        terms = []
        for _ in range(4_000):
            first = table.draw(8, generator=generator)
            weights = importance_weights(-torch.full((8,), 4.0).log(), first.log_q)
            second = two_stage_draw(
                weights * errors[first.items].abs(), 2, uniform_share=0.1, generator=generator
            )
            draw = chain(first, second)
            weights = importance_weights(-torch.full((2,), 4.0).log(), draw.log_q)
            terms.append((weights * errors[draw.items]).mean())
        mean = torch.stack(terms)
        assert abs(mean.mean() - errors.mean()) < 5.0 * mean.std() / math.sqrt(len(terms))

    @pytest.mark.parametrize(
        ("scores", "arguments", "message"),
        [
            (torch.tensor([1.0, -1.0]), {"count": 1}, "ranges from -1"),
            (torch.tensor([1.0, torch.nan]), {"count": 1}, "ranges from nan"),
            (torch.ones(2, 2), {"count": 1}, "expected a vector"),
            (torch.ones(2), {"count": 0}, "count is 0"),
            (torch.ones(2), {"count": 1, "uniform_share": 1.0}, "uniform_share is 1"),
        ],
    )
    def test_bad_input_is_refused(
        self, scores: Tensor, arguments: dict[str, Any], message: str
    ) -> None:
        for function in (two_stage_draw, variance_reduction):
            with pytest.raises(ValueError, match=message):
                function(scores, **arguments)


class TestVarianceReduction:
    @pytest.mark.parametrize("uniform_share", [0.0, 0.25])
    def test_exact_for_a_mean_of_zero_by_enumeration(self, uniform_share: float) -> None:
        """Uniform candidates, n = 4 and B = 2, of gradients that sum to 0."""
        gradients = torch.tensor([4.0, -5.0, 1.0], dtype=torch.float64)
        plain = gradients.square().mean() / 2
        variance = one = square = torch.zeros((), dtype=torch.float64)
        for candidates in itertools.product(range(3), repeat=4):
            g = gradients[list(candidates)]
            r = second_stage(g.abs(), uniform_share)
            mean = g.mean()
            # Two independent draws given the candidates: half of one draw's variance.
            within = (g.square() / (16.0 * r)).sum() - mean.square()
            variance = variance + (mean.square() + within / 2) / 81
            inverse = 1.0 / variance_reduction(g.abs(), 2, uniform_share=uniform_share)
            one = one + inverse * g.square().mean() / 81
            square = square + g.square().mean() / 81
        torch.testing.assert_close(one / square, variance / plain)

    def test_bounds(self) -> None:
        alike = variance_reduction(torch.ones(40), 10)
        assert alike == pytest.approx(1.0 / (1.0 / 4.0 + 1.0 - 1.0 / 40.0))
        single = torch.zeros(4_000)
        single[7] = 1.0
        assert 3.9 < variance_reduction(single, 1_000) < 4.01
        assert variance_reduction(torch.zeros(40), 10) == pytest.approx(alike.item())


class TestTwoStageSampler:
    heavy = torch.cat([torch.full((90,), 0.01), torch.full((10,), 10.0)])
    alike = torch.ones(100)

    def steps(
        self, sampler: TwoStageSampler, scores: Tensor, number: int = 60, seed: int = 0
    ) -> list[Draw]:
        generator = torch.Generator().manual_seed(seed)
        draws = []
        for _ in range(number):
            draws.append(sampler.draw(10, scores.__getitem__, generator=generator))
            sampler.step_done()
        return draws

    @pytest.mark.parametrize(
        ("scores", "score_seconds", "active"),
        [("heavy", 1.0, True), ("heavy", 9.0, False), ("alike", 0.1, False)],
    )
    def test_on_only_where_it_pays(self, scores: str, score_seconds: float, active: bool) -> None:
        sampler = TwoStageSampler(UniformProposal(100), clock=Clock(score_seconds, 1.0))
        self.steps(sampler, getattr(self, scores))
        assert sampler.active is active
        assert sampler.relative_cost == pytest.approx(score_seconds, rel=1e-5)
        assert sampler.speed_up == pytest.approx(sampler.reduction / (1 + score_seconds), rel=1e-5)
        # The first step that is two-stage is measured; if that pays, so are the others.
        assert sampler.two_stage_steps == (60 if active else 3)

    def test_it_goes_off_again(self) -> None:
        sampler = TwoStageSampler(UniformProposal(100), cost=4 / 3, measure_every=5)
        self.steps(sampler, self.heavy)
        assert sampler.active
        self.steps(sampler, self.alike)
        assert not sampler.active

    def test_unbiased_on_and_off(self) -> None:
        values = torch.arange(100.0, dtype=torch.float64)
        log_p = torch.full((10,), -math.log(100.0), dtype=torch.float64)
        for sampler in (
            TwoStageSampler(UniformProposal(100), cost=1.0, measure_every=3),
            TwoStageSampler(UniformProposal(100), cost=1.0, threshold=100.0, measure_every=2),
        ):
            draws = self.steps(sampler, 1.0 + self.heavy, number=3_000)
            means = torch.stack(
                [(importance_weights(log_p, d.log_q) * values[d.items]).mean() for d in draws]
            )
            assert abs(means.mean() - 49.5) < 5.0 * means.std() / math.sqrt(len(means))

    def test_a_target_that_is_not_uniform(self) -> None:
        """Scores times p / q₁ decide: with p zero on an item it is not drawn in two stages."""
        log_p = torch.tensor([0.0, 1.0, 1.0]).div(2.0).log()
        sampler = TwoStageSampler(UniformProposal(3), measure_every=1, uniform_share=0.0, cost=1.0)
        draw = sampler.draw(
            50,
            torch.ones(3).__getitem__,
            log_target=log_p.__getitem__,
            generator=torch.Generator().manual_seed(0),
        )
        assert set(draw.items.tolist()) == {1, 2}

    def test_same_seed_same_draws_with_a_given_cost(self) -> None:
        one, two = (
            self.steps(TwoStageSampler(UniformProposal(100), cost=1.0), self.heavy) for _ in "12"
        )
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.items, b.items)
            assert torch.equal(a.log_q, b.log_q)

    def test_no_gradient_in_the_scores(self) -> None:
        w = torch.ones(100, requires_grad=True)
        sampler = TwoStageSampler(SoftmaxProposal(100))
        seen = []

        def score(items: Tensor) -> Tensor:
            scores = w[items].square()
            seen.append(scores.requires_grad)
            return scores

        draw = sampler.draw(5, score)
        assert seen == [False]
        assert not draw.log_q.requires_grad

    def test_the_state_goes_on_where_it_was(self) -> None:
        one, two = (TwoStageSampler(UniformProposal(100), cost=1.0) for _ in "12")
        self.steps(one, self.heavy, number=30)
        two.load_state_dict(one.state_dict())
        for a, b in zip(
            self.steps(one, self.alike, seed=7), self.steps(two, self.alike, seed=7), strict=True
        ):
            assert torch.equal(a.items, b.items)
        assert (one.active, one.reduction) == (two.active, two.reduction)

    def test_a_step_that_is_timed_must_be_done(self) -> None:
        sampler = TwoStageSampler(UniformProposal(100))
        assert math.isnan(sampler.speed_up)
        sampler.draw(10, self.alike.__getitem__)
        with pytest.raises(ValueError, match="call step_done"):
            sampler.draw(10, self.alike.__getitem__)

    def test_bad_scores_change_nothing(self) -> None:
        sampler = TwoStageSampler(UniformProposal(100))
        for scores in (torch.full((100,), torch.nan), -self.alike):
            with pytest.raises(ValueError, match="expected finite numbers"):
                sampler.draw(10, scores.__getitem__)
        with pytest.raises(ValueError, match="one score per candidate"):
            sampler.draw(10, lambda items: torch.ones(3))
        assert sampler.steps == 0
        self.steps(sampler, self.heavy, number=1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"ratio": 1}, "ratio is 1"),
            ({"uniform_share": 1.0}, "uniform_share is 1"),
            ({"measure_every": 0}, "measure_every is 0"),
            ({"threshold": 0.0}, "threshold is 0"),
            ({"decay": 1.0}, "decay is 1"),
            ({"cost": -1.0}, "cost is -1"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TwoStageSampler(UniformProposal(3), **settings)
