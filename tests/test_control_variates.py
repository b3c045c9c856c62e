"""Control variates, against exact enumeration; and AW-SGD around any optimizer."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awsgd_rl.adaptation import ScoreFunctionAdaptation
from awsgd_rl.control_variates import (
    LinearControlVariate,
    SnapshotControlVariate,
    control_variate_loss,
    group_means,
)
from awsgd_rl.diagnostics import second_moment
from awsgd_rl.estimators import control_variate_estimate, weighted_mean
from awsgd_rl.proposals import ClassProposal, SoftmaxProposal
from awsgd_rl.weights import importance_weights

N = 6
P = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.05, 0.2], dtype=torch.float64)
X = torch.arange(N)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


F, PHI, TAU = numbers(N, 2), numbers(N, 3, seed=2), numbers(N, seed=3)


def control() -> LinearControlVariate:
    control = LinearControlVariate((P.unsqueeze(1) * PHI).sum(0), (2,))
    with torch.no_grad():
        control.psi.copy_(numbers(3, 2, seed=4))
    return control


def proposal() -> SoftmaxProposal:
    proposal = SoftmaxProposal(N)
    with torch.no_grad():
        proposal.tau.copy_(TAU)
    return proposal


def variance(log_q: Tensor, control: LinearControlVariate) -> Tensor:
    """Trace of the covariance of one draw's estimate, from its definition."""
    q = log_q.exp()
    d = (P / q).unsqueeze(1) * (F - control(PHI)) + control.mean()
    mean = (q.unsqueeze(1) * d).sum(0)
    return (q * (d - mean).square().sum(1)).sum()


class TestGradients:
    def test_of_psi_by_enumeration(self) -> None:
        h, q = control(), proposal()
        log_q = q.log_prob(X).detach()
        (exact,) = torch.autograd.grad(variance(log_q, h), h.psi)
        expected = torch.zeros_like(exact)
        for x in range(N):
            one = slice(x, x + 1)
            loss = control_variate_loss(F[one], h(PHI[one]), h.mean(), P[one].log(), log_q[one])
            expected += log_q[x].exp() * torch.autograd.grad(loss, h.psi)[0]
        torch.testing.assert_close(expected, exact)

    def test_of_psi_as_printed(self) -> None:
        h, log_q = control(), proposal().log_prob(X).detach()
        (exact,) = torch.autograd.grad(variance(log_q, h), h.psi)
        weights = P / log_q.exp()
        rest = (F - h(PHI)).detach()
        first = (P * weights).unsqueeze(1) * rest  # E_q[w² ...] = E_p[w ...]
        second = (P.unsqueeze(1) * rest).sum(0)
        printed = -2.0 * PHI.T @ first + 2.0 * h.feature_mean.unsqueeze(1) * second
        torch.testing.assert_close(printed, exact)

    def test_of_tau_with_the_rest_as_signal(self) -> None:
        h, q = control(), proposal()
        (exact,) = torch.autograd.grad(variance(q.log_prob(X), h), q.tau)
        signal = (F - h(PHI)).detach().norm(dim=1)
        expected = torch.zeros_like(exact)
        log_q = q.log_prob(X)
        for x in range(N):
            weight = P[x] / log_q[x].detach().exp()
            (score,) = torch.autograd.grad(log_q[x], q.tau, retain_graph=True)
            expected -= log_q[x].detach().exp() * (weight * signal[x]).square() * score
        torch.testing.assert_close(expected, exact)

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ValueError, match="as the values"):
            control_variate_loss(F, F[:, :1], F[0], P.log(), P.log())


class TestLinearControlVariate:
    def test_unbiased_for_every_psi_by_enumeration(self) -> None:
        h, log_q = control(), proposal().log_prob(X).detach()
        chance = log_q.exp()
        mean = torch.zeros(2, dtype=torch.float64)
        for pair in itertools.product(range(N), repeat=2):
            x = torch.tensor(pair)
            estimate = control_variate_estimate(
                F[x], h(PHI[x]).detach(), h.mean().detach(), P[x].log(), log_q[x]
            )
            mean += chance[x].prod() * estimate.mean
        torch.testing.assert_close(mean, (P.unsqueeze(1) * F).sum(0))

    def test_fit_lowers_the_variance_and_finds_the_best(self) -> None:
        q = proposal()
        log_q = q.log_prob(X).detach()
        x = q.sample(20_000, generator=torch.Generator().manual_seed(0))
        h = LinearControlVariate((P.unsqueeze(1) * PHI).sum(0), (2,))
        nothing = variance(log_q, h)
        h.fit(F[x], PHI[x], P[x].log(), log_q[x], ridge=1e-9)
        fitted = variance(log_q, h)
        optimizer = torch.optim.LBFGS(h.parameters(), max_iter=200, tolerance_grad=1e-12)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = variance(log_q, h)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        best = variance(log_q, h)
        assert best <= fitted < 0.9 * nothing
        # The excess of a regression on B draws is about (number of coefficients) / B.
        assert (fitted - best) / best < 0.01

    def test_exact_where_f_is_linear(self) -> None:
        log_q = proposal().log_prob(X).detach()
        values = PHI @ numbers(3, seed=7)
        h = LinearControlVariate((P.unsqueeze(1) * PHI).sum(0))
        x = torch.tensor([0, 1, 2, 3, 4, 5, 0, 3])
        h.fit(values[x], PHI[x], P[x].log(), log_q[x], ridge=1e-12)
        estimate = control_variate_estimate(
            values[x], h(PHI[x]).detach(), h.mean().detach(), P[x].log(), log_q[x]
        )
        torch.testing.assert_close(estimate.mean, (P * values).sum())
        assert estimate.standard_error < 1e-9

    def test_descending_the_loss_lowers_the_variance(self) -> None:
        q, generator = proposal(), torch.Generator().manual_seed(0)
        h = LinearControlVariate((P.unsqueeze(1) * PHI).sum(0), (2,))
        log_q = q.log_prob(X).detach()
        before = variance(log_q, h).item()
        optimizer = torch.optim.SGD(h.parameters(), lr=0.02)
        for _ in range(300):
            draw = q.draw(10, generator=generator)
            x = draw.items
            loss = control_variate_loss(F[x], h(PHI[x]), h.mean(), P[x].log(), draw.log_q)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert variance(log_q, h).item() < 0.9 * before

    def test_one_hot_features_under_uniform_draws(self) -> None:
        groups = torch.tensor([0, 0, 1, 1, 2, 2])
        features = torch.nn.functional.one_hot(groups).double()
        h = LinearControlVariate(features.mean(0))
        values = 5.0 * groups.double()
        log = torch.full((N,), 1.0 / N, dtype=torch.float64).log()
        h.fit(values, features, log, log, ridge=1e-9)
        estimate = control_variate_estimate(
            values[:3], h(features[:3]).detach(), h.mean().detach(), log[:3], log[:3]
        )
        torch.testing.assert_close(estimate.mean.item(), 5.0, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"values": F[:, :1]}, "expected \\(6, 2\\)"),
            ({"features": PHI[:, :2]}, r"expected \[B, 3\]"),
            ({"ridge": 0.0}, "ridge is"),
            ({"log_q": P[:3].log()}, "expected the same"),
        ],
    )
    def test_bad_input_is_refused(self, change: dict[str, Any], message: str) -> None:
        h = control()
        before = h.psi.detach().clone()
        arguments = {"values": F, "features": PHI, "log_p": P.log(), "log_q": P.log(), **change}
        with pytest.raises(ValueError, match=message):
            h.fit(**arguments)
        assert torch.equal(h.psi, before)
        with pytest.raises(ValueError, match="a vector of finite numbers"):
            LinearControlVariate(torch.tensor([1.0, torch.nan]))


class TestGroupMeans:
    def test_means_of_the_groups_that_occur(self) -> None:
        old = torch.tensor([[1.0], [2.0], [3.0]])
        new = group_means(torch.tensor([[4.0], [6.0], [10.0]]), torch.tensor([2, 2, 0]), old)
        torch.testing.assert_close(new, torch.tensor([[0.9 + 1.0], [2.0], [2.7 + 0.5]]))

    def test_best_psi_of_one_hot_features_within_classes(self) -> None:
        """With one class per value and the class means as ψ nothing is left but their spread."""
        groups = torch.tensor([0, 0, 0, 1, 1, 1])
        means = group_means(F, groups, torch.zeros(2, 2, dtype=torch.float64), decay=0.0)
        for k in range(2):
            torch.testing.assert_close(means[k], F[groups == k].mean(0))

    def test_bad_input_is_refused(self) -> None:
        old = torch.zeros(2, 1)
        with pytest.raises(ValueError, match="groups range from 0 to 2"):
            group_means(torch.zeros(2, 1), torch.tensor([0, 2]), old)
        with pytest.raises(ValueError, match=r"expected \[B, \.\.\.\], \[B\]"):
            group_means(torch.zeros(2, 2), torch.tensor([0, 1]), old)
        with pytest.raises(ValueError, match="decay is 1"):
            group_means(torch.zeros(2, 1), torch.tensor([0, 1]), old, decay=1.0)


class TestSnapshot:
    inputs, targets = numbers(N, 3, seed=5), numbers(N, seed=6)

    def losses(self, model: nn.Module, items: Tensor) -> Tensor:
        error: Tensor = model(self.inputs[items]).squeeze(1) - self.targets[items]
        return error.square()

    def made(self) -> tuple[nn.Module, SnapshotControlVariate]:
        model = nn.Linear(3, 1).double()
        model.bias.requires_grad_(False)
        snapshot = SnapshotControlVariate(model, self.losses)
        snapshot.refresh([X[:4], X[4:]])
        return model, snapshot

    def corrected(self, model: nn.Module, control: SnapshotControlVariate, x: int) -> Tensor:
        q = torch.full((N,), 0.1, dtype=torch.float64)
        q[0] = 0.5
        model.zero_grad()
        items = X[x : x + 1]
        weights = 1.0 / N / q[items]
        weighted_mean(self.losses(model, items), weights).backward()  # type: ignore[no-untyped-call]
        control.correct(items, weights)
        (gradient,) = (w.grad for w in model.parameters() if w.grad is not None)
        return q[x] * gradient

    def test_unbiased_by_enumeration(self) -> None:
        model, control = self.made()
        with torch.no_grad():
            next(model.parameters()).add_(0.3)
        mean = sum(self.corrected(model, control, x) for x in range(N))
        model.zero_grad()
        self.losses(model, X).mean().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(mean, next(model.parameters()).grad)

    def test_exact_at_the_snapshot(self) -> None:
        model, control = self.made()
        first = self.corrected(model, control, 0) / 0.5
        assert control.gradient is not None
        torch.testing.assert_close(first, control.gradient[0])
        torch.testing.assert_close(self.corrected(model, control, 3) / 0.1, first)

    def test_state(self) -> None:
        _, control = self.made()
        other = SnapshotControlVariate(nn.Linear(3, 1).double(), self.losses)
        other.load_state_dict(copy.deepcopy(control.state_dict()))
        assert other.gradient is not None
        assert control.gradient is not None
        assert torch.equal(other.gradient[0], control.gradient[0])
        assert torch.equal(next(other.snapshot.parameters()), next(control.snapshot.parameters()))

    def test_bad_input_is_refused(self) -> None:
        control = SnapshotControlVariate(nn.Linear(3, 1).double(), self.losses)
        with pytest.raises(ValueError, match="call refresh"):
            control.correct(X[:1], P[:1])
        with pytest.raises(ValueError, match="got no items"):
            control.refresh([])
        with torch.no_grad():
            next(control.model.parameters()).fill_(torch.nan)
        with pytest.raises(ValueError, match="a loss is infinite or NaN"):
            control.refresh([X])
        assert control.gradient is None


Optimizer = Callable[[Any], torch.optim.Optimizer]
O = torch.optim  # noqa: E741
OF_W: dict[str, Optimizer] = {
    "SGD": lambda w: O.SGD(w, lr=0.05),
    "momentum": lambda w: O.SGD(w, lr=0.01, momentum=0.9),
    "Adagrad": lambda w: O.Adagrad(w, lr=0.3),
    "Adadelta": lambda w: O.Adadelta(w, lr=10.0),
    "RMSprop": lambda w: O.RMSprop(w, lr=0.02),
    "Adam": lambda w: O.Adam(w, lr=0.05),
}
OF_TAU: dict[str, Optimizer] = {
    "SGD": lambda tau: O.SGD(tau, lr=0.1),
    "Adagrad": lambda tau: O.Adagrad(tau, lr=0.1),
    "Adam": lambda tau: O.Adam(tau, lr=0.03),
}


@pytest.mark.parametrize("of_tau", OF_TAU)
@pytest.mark.parametrize("of_w", OF_W)
def test_awsgd_wraps_any_optimizer(of_w: str, of_tau: str) -> None:
    """Least squares where one item in ten has gradients ten times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    labels = (torch.arange(200) % 10 == 0).long()
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + (0.1 + labels) * noise
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    log_p = torch.full((20,), 1.0 / 200, dtype=torch.float64).log()
    proposal = ClassProposal(labels, 2, torch.tensor([2.2, 0.0]))  # natural proportions
    optimizer = OF_W[of_w]([w])
    adaptation = ScoreFunctionAdaptation(proposal, OF_TAU[of_tau](proposal.parameters()))

    def moment(proposal: ClassProposal) -> float:
        norms = 2.0 * (x @ w.detach() - y).abs() * x.norm(dim=1)
        q = proposal.log_prob(torch.arange(200)).detach().exp()
        return second_moment(norms, torch.full_like(norms, 1.0 / 200), q).item()

    before = (x @ w.detach() - y).square().mean().item()
    for _ in range(200):
        draw = proposal.draw(20, generator=generator)
        errors = x[draw.items] @ w - y[draw.items]
        weights = importance_weights(log_p, draw.log_q)
        optimizer.zero_grad()
        weighted_mean(errors.square(), weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        signal = 2.0 * errors.detach().abs() * x[draw.items].norm(dim=1)
        adaptation.update(draw, signal, log_p)
    assert (x @ w.detach() - y).square().mean().item() < 0.1 * before
    natural = ClassProposal(labels, 2, torch.tensor([9.0, 1.0]).log())
    assert moment(proposal) < 0.6 * moment(natural)
