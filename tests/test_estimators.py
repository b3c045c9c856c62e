import itertools

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from awsgd_rl.estimators import (
    control_variate_estimate,
    importance_estimate,
    reward_to_go,
    vtrace,
    weighted_mean,
)

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
F = torch.tensor([[2.0, 1.0], [-1.0, 0.0], [5.0, 3.0], [7.0, -4.0]], dtype=torch.float64)
H = torch.tensor([[1.5, 0.5], [-0.5, 0.2], [4.0, 3.0], [1.0, -3.0]], dtype=torch.float64)
PAIRS = torch.tensor(list(itertools.product(range(4), repeat=2)))


def over_all_pairs(values: Tensor) -> Tensor:
    """Expectation of a statistic of two draws: values [16, ...]."""
    chance = Q[PAIRS].prod(1)
    return (chance.reshape(-1, *[1] * (values.dim() - 1)) * values).sum(0)


class TestWeightedMean:
    def test_gradient_flows_through_values_only(self) -> None:
        values = torch.tensor([1.0, 2.0], requires_grad=True)
        weights = torch.tensor([3.0, 5.0], requires_grad=True)
        mean = weighted_mean(values, weights)
        assert mean.item() == 6.5
        (gradient,) = torch.autograd.grad(mean, values)
        assert gradient.tolist() == [1.5, 2.5]

    def test_trailing_shape(self) -> None:
        torch.testing.assert_close(weighted_mean(F, P), (P.unsqueeze(1) * F).mean(0))

    @pytest.mark.parametrize(("values", "weights"), [((3,), (2,)), ((3,), (3, 1)), ((0,), (0,))])
    def test_bad_shapes_are_refused(
        self, values: tuple[int, ...], weights: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="one weight per draw"):
            weighted_mean(torch.zeros(values), torch.zeros(weights))


class TestImportanceEstimate:
    def test_mean_and_variance_are_unbiased(self) -> None:
        estimates = [importance_estimate(F[x], P[x].log(), Q[x].log()) for x in PAIRS]
        means = torch.stack([estimate.mean for estimate in estimates])
        exact = (P.unsqueeze(1) * F).sum(0)
        torch.testing.assert_close(over_all_pairs(means), exact)
        variances = torch.stack([estimate.standard_error.square() for estimate in estimates])
        torch.testing.assert_close(
            over_all_pairs(variances), over_all_pairs((means - exact).square())
        )

    def test_one_draw_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 2"):
            importance_estimate(torch.ones(1), torch.zeros(1), torch.zeros(1))


class TestControlVariate:
    """With h(x; ψ) of known mean: d = (f − h)/q + E_p h, q relative to p."""

    def estimates(self, h: Tensor) -> Tensor:
        mean = (P.unsqueeze(1) * h).sum(0)
        return torch.stack(
            [control_variate_estimate(F[x], h[x], mean, P[x].log(), Q[x].log()).mean for x in PAIRS]
        )

    @pytest.mark.parametrize("psi", [0.0, 0.3, 1.0, -2.0])
    def test_unbiased_for_every_control(self, psi: float) -> None:
        exact = (P.unsqueeze(1) * F).sum(0)
        torch.testing.assert_close(over_all_pairs(self.estimates(psi * H)), exact)

    def test_exact_where_the_control_is_the_function(self) -> None:
        exact = (P.unsqueeze(1) * F).sum(0)
        torch.testing.assert_close(self.estimates(F), exact.expand(16, 2))

    @staticmethod
    def variance(log_q: Tensor, psi: Tensor) -> Tensor:
        """Trace of the covariance of one draw's d, by enumeration."""
        p, q = P.unsqueeze(1), log_q.exp().unsqueeze(1)
        d = p / q * (F - psi * H) + (p * psi * H).sum(0)
        return (q * (d - (p * F).sum(0)).square()).sum()

    def test_gradient_in_tau(self) -> None:
        tau = Q.log().requires_grad_()
        psi = torch.tensor(0.7, dtype=torch.float64)
        log_q = tau.log_softmax(0)
        (exact,) = torch.autograd.grad(self.variance(log_q, psi), tau)
        log_q = tau.log_softmax(0)
        squares = ((P / log_q.detach().exp()).unsqueeze(1) * (F - psi * H)).square().sum(1)
        (form,) = torch.autograd.grad(-(Q * squares * log_q).sum(), tau)
        torch.testing.assert_close(form, exact)

    def test_gradient_in_psi(self) -> None:
        psi = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        (exact,) = torch.autograd.grad(self.variance(Q.log(), psi), psi)
        relative = (Q / P).unsqueeze(1)
        rest = (F - psi.detach() * H) / relative.square()
        mean_f, mean_h = (P.unsqueeze(1) * F).sum(0), (P.unsqueeze(1) * H).sum(0)
        first = -2.0 * (Q.unsqueeze(1) * rest * H).sum()
        second = 2.0 * ((mean_f - psi.detach() * mean_h) * mean_h).sum()
        torch.testing.assert_close(first + second, exact)

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="as the values"):
            control_variate_estimate(F, H, torch.zeros(()), P.log(), Q.log())


def rollout(seed: int, steps: int = 30, batch: int = 4) -> dict[str, Tensor]:
    """Episodes that end in all ways; V(x_{t+1}) is V of the next row within an episode."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.rand(steps, batch, generator=rng)
    values = torch.randn(steps + 1, batch, generator=rng, dtype=torch.float64)
    terminated, boundary = kind < 0.1, kind < 0.25
    final = torch.randn(steps, batch, generator=rng, dtype=torch.float64)
    return {
        "rewards": torch.randn(steps, batch, generator=rng, dtype=torch.float64),
        "values": values[:-1],
        "next_values": torch.where(boundary, final, values[1:]),
        "terminated": terminated,
        "boundary": boundary,
        "ratios": torch.rand(steps, batch, generator=rng, dtype=torch.float64) * 2.0,
    }


def vtrace_by_definition(
    data: dict[str, Tensor], discount: float, trace_decay: float
) -> tuple[Tensor, Tensor]:
    """Espeholt 2018, eq. 1, as the double sum that is printed there."""
    rewards, values, following = data["rewards"], data["values"], data["next_values"]
    steps, batch = rewards.shape
    targets = values.clone()
    for b in range(batch):
        for s in range(steps):
            product = 1.0
            for t in range(s, steps):
                bootstrap = 0.0 if data["terminated"][t, b] else discount * following[t, b].item()
                error = rewards[t, b].item() + bootstrap - values[t, b].item()
                targets[s, b] += product * data["ratios"][t, b].item() * error
                if data["boundary"][t, b]:
                    break
                product *= discount * trace_decay * data["ratios"][t, b].item()
    advantages = torch.empty_like(values)
    for b in range(batch):
        for s in range(steps):
            ahead = following[s, b].item()
            if s + 1 < steps and not data["boundary"][s, b]:
                ahead = trace_decay * targets[s + 1, b].item() + (1.0 - trace_decay) * ahead
            ahead = 0.0 if data["terminated"][s, b] else discount * ahead
            advantages[s, b] = rewards[s, b] + ahead - values[s, b]
    return targets, advantages


settings = pytest.mark.parametrize(
    ("discount", "trace_decay"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)]
)


class TestVtrace:
    @settings
    def test_definition(self, discount: float, trace_decay: float) -> None:
        data = rollout(0)
        targets, advantages = vtrace(**data, discount=discount, trace_decay=trace_decay)
        expected = vtrace_by_definition(data, discount, trace_decay)
        torch.testing.assert_close(targets, expected[0])
        torch.testing.assert_close(advantages, expected[1])

    @settings
    def test_on_policy_it_is_gae_of_stable_baselines3(
        self, discount: float, trace_decay: float
    ) -> None:
        data = rollout(1)
        steps, batch = data["rewards"].shape
        buffer = RolloutBuffer(
            steps,
            Box(-1.0, 1.0, (1,)),
            Discrete(2),
            gamma=discount,
            gae_lambda=trace_decay,
            n_envs=batch,
        )
        # Stable-Baselines3 adds the bootstrap of a truncated episode to its last reward.
        truncated = data["boundary"] & ~data["terminated"]
        rewards = data["rewards"] + discount * truncated * data["next_values"]
        starts = np.zeros(batch)
        for t in range(steps):
            buffer.add(
                np.zeros((batch, 1)),
                np.zeros((batch, 1)),
                rewards[t].numpy(),
                starts,
                data["values"][t],
                torch.zeros(batch),
            )
            starts = data["boundary"][t].numpy().astype(np.float64)
        buffer.compute_returns_and_advantage(data["next_values"][-1], starts)
        data["ratios"] = torch.ones_like(data["rewards"])
        targets, advantages = vtrace(**data, discount=discount, trace_decay=trace_decay)
        expected = torch.from_numpy(buffer.advantages).double()
        torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(targets - data["values"], advantages)

    def test_exact_values_of_a_finite_episode_are_a_fixed_point(self) -> None:
        rewards = torch.tensor([[1.0], [2.0], [3.0]])
        end = torch.tensor([[False], [False], [True]])
        values = reward_to_go(rewards, 0.5, end)
        following = torch.cat((values[1:], torch.zeros(1, 1)))
        ratios = torch.tensor([[0.3], [1.0], [0.8]])
        targets, advantages = vtrace(rewards, values, following, end, end, ratios, 0.5, 0.9)
        torch.testing.assert_close(targets, values)
        torch.testing.assert_close(advantages, torch.zeros_like(values))

    def test_nothing_leaks_over_a_boundary(self) -> None:
        data = rollout(2)
        data["boundary"][10] = True
        before, _ = vtrace(**data, discount=0.9, trace_decay=0.9)
        data["rewards"][11:] += 100.0
        after, _ = vtrace(**data, discount=0.9, trace_decay=0.9)
        assert torch.equal(before[:11], after[:11])

    def test_bad_input_is_refused(self) -> None:
        data = rollout(0)
        with pytest.raises(ValueError, match=r"trace_decay is 1\.5"):
            vtrace(**data, discount=0.9, trace_decay=1.5)
        with pytest.raises(ValueError, match="discount is -1"):
            vtrace(**data, discount=-1.0, trace_decay=0.5)
        with pytest.raises(ValueError, match="expected bool"):
            vtrace(**{**data, "boundary": data["rewards"]}, discount=0.9, trace_decay=0.5)
        with pytest.raises(ValueError, match=r"the same \[T, B\]"):
            vtrace(**{**data, "values": data["values"][1:]}, discount=0.9, trace_decay=0.5)


class TestRewardToGo:
    @given(st.integers(0, 1000), st.floats(0.0, 1.0))
    def test_definition(self, seed: int, discount: float) -> None:
        data = rollout(seed, steps=6, batch=2)
        returns = reward_to_go(data["rewards"], discount, data["boundary"])
        for b in range(2):
            total = 0.0
            for t in range(5, -1, -1):
                total = 0.0 if data["boundary"][t, b] else total
                total = data["rewards"][t, b].item() + discount * total
                assert returns[t, b].item() == pytest.approx(total, abs=1e-9)
