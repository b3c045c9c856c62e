"""One conformance test over a table of all proposals: a new proposal is one more row."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from awsgd_rl.adaptation import ScoreFunctionAdaptation
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.estimators import importance_estimate
from awsgd_rl.feature_proposals import FeatureSoftmaxProposal
from awsgd_rl.hashing import HashProposal
from awsgd_rl.neighbours import NeighbourProposal
from awsgd_rl.policies import GaussianPolicyProposal, PolicyProposal
from awsgd_rl.proposals import (
    ClassProposal,
    MixtureProposal,
    ProductProposal,
    SoftmaxProposal,
    TableProposal,
    UniformProposal,
)
from awsgd_rl.replay_priorities import PriorityProposal
from awsgd_rl.sharded import ShardedTableProposal

LABELS = torch.tensor([0, 2, 1, 2, 2, 0])
OBSERVATION = torch.tensor([0.3, -1.2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_random_tau(proposal: Proposal, seed: int = 5) -> Proposal:
    rng = generator(seed)
    for tau in proposal.parameters():
        tau.data = 0.7 * torch.randn(tau.shape, generator=rng, dtype=tau.dtype)
    return proposal


class GaussianNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(2, 1)
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(observations), self.log_std


def table() -> TableProposal:
    return TableProposal(
        torch.tensor([0.0, 2.0, 5.0, 0.1, 3.0]), exponent=0.6, floor=0.05, uniform_share=0.1
    )


def hashing() -> HashProposal:
    keys = torch.randn(40, 3, generator=generator(1))
    proposal = HashProposal(keys, bits=4, tables=5, generator=generator(2))
    proposal.set_query(torch.tensor([1.0, 0.3, -2.0]))
    return proposal


def neighbours() -> NeighbourProposal:
    proposal = NeighbourProposal(torch.randn(40, 3, generator=generator(1)), neighbours=6)
    proposal.set_query(torch.tensor([1.0, 0.3, -2.0]))
    return proposal


def filling_table() -> TableProposal:
    proposal = TableProposal(torch.tensor([1.0, 4.0, 2.0, 9.0, 9.0]))
    proposal.fill(3)
    return proposal


def priorities() -> PriorityProposal:
    proposal = PriorityProposal(7, alpha=0.6, uniform_share=0.1)
    proposal.enter(np.arange(5), 5)
    proposal.set(torch.arange(4), torch.tensor([2.0, 5.0, 0.1, 3.0]))
    return proposal


def mixture_of_policies() -> MixtureProposal:
    return MixtureProposal(
        [PolicyProposal(nn.Linear(2, 4)), PolicyProposal(nn.Linear(2, 4)), UniformProposal(4)],
        [0.5, 0.3, 0.2],
    )


PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(4))
# The trapezoid rule over a Gaussian is exact to rounding.
LINE = torch.linspace(-14.0, 14.0, 2001, dtype=torch.float64).unsqueeze(1)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Proposal]
    support: Tensor
    cell: float = 1.0
    """What one point of the support stands for: 1, or a length for densities."""
    observation: Tensor | None = None
    moves: bool = True
    """Whether it can go to another device."""

    def given(self, count: int) -> Tensor | None:
        return None if self.observation is None else self.observation.expand(count, -1)

    def log_prob(self, proposal: Proposal) -> Tensor:
        return proposal.log_prob(self.support, given=self.given(len(self.support)))

    @property
    def continuous(self) -> bool:
        return self.support.is_floating_point()

    def target(self, items: Tensor) -> Tensor:
        """[B] log p: anything that is not the proposal, narrower where it is a density."""
        if self.continuous:
            return -0.5 * ((items[:, 0] - 0.2) / 0.3).square() - math.log(0.3 * math.sqrt(math.tau))
        place = torch.linspace(-1.0, 1.0, len(self.support), dtype=torch.float64)
        log_p = (-2.0 * place.square() + place.sin()).log_softmax(0)
        return log_p[self.position(items)]

    def values(self, items: Tensor) -> Tensor:
        """[B] f."""
        place = items[:, 0] if self.continuous else self.position(items).double()
        return 1.0 + place.cos()

    def position(self, items: Tensor) -> Tensor:
        """[B] rows of the support that were drawn."""
        same = self.support == items.unsqueeze(1)
        return (same.all(-1) if items.dim() > 1 else same).long().argmax(1)


CASES = {
    "uniform": Case(lambda: UniformProposal(6), torch.arange(6)),
    "table": Case(table, torch.arange(5)),
    "table of one": Case(lambda: TableProposal(1), torch.arange(1)),
    "table half full": Case(filling_table, torch.arange(3)),
    "priorities half full": Case(priorities, torch.arange(5), moves=False),
    # Of several ranks each has a part of the support: see `test_sharded.py`.
    "sharded table of one rank": Case(
        lambda: ShardedTableProposal(
            torch.tensor([0.0, 2.0, 5.0, 0.1, 3.0]), rank=0, world_size=1, uniform_share=0.1
        ),
        torch.arange(5),
    ),
    "softmax": Case(lambda: with_random_tau(SoftmaxProposal(5)), torch.arange(5)),
    "class": Case(lambda: with_random_tau(ClassProposal(LABELS, 3)), torch.arange(6)),
    "feature softmax": Case(
        lambda: with_random_tau(
            FeatureSoftmaxProposal(
                torch.tensor([[0.2, 1.0], [1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]]),
                torch.tensor([3, 0, 2, 2, 0]),
                uniform_share=0.1,
            )
        ),
        torch.arange(5),
    ),
    "hashing": Case(hashing, torch.arange(40)),
    "hashing without a query": Case(
        lambda: HashProposal(torch.eye(5), generator=generator()), torch.arange(5)
    ),
    "neighbours": Case(neighbours, torch.arange(40)),
    "product": Case(
        lambda: with_random_tau(ProductProposal(SoftmaxProposal(3), SoftmaxProposal(4))), PAIRS
    ),
    "product of classes and a table": Case(
        lambda: with_random_tau(
            ProductProposal(
                ClassProposal(torch.tensor([1, 0, 1]), 2), TableProposal(torch.arange(1.0, 5.0))
            )
        ),
        PAIRS,
    ),
    "mixture": Case(
        lambda: with_random_tau(
            MixtureProposal([SoftmaxProposal(5), UniformProposal(5), table()], [0.5, 0.2, 0.3])
        ),
        torch.arange(5),
    ),
    "mixture of products": Case(
        lambda: with_random_tau(
            MixtureProposal(
                [
                    ProductProposal(UniformProposal(3), UniformProposal(4)),
                    ProductProposal(SoftmaxProposal(3), SoftmaxProposal(4)),
                ],
                [0.4, 0.6],
            )
        ),
        PAIRS,
    ),
    "policy": Case(
        lambda: with_random_tau(PolicyProposal(nn.Linear(2, 4))),
        torch.arange(4),
        observation=OBSERVATION,
    ),
    "mixture of policies": Case(
        lambda: with_random_tau(mixture_of_policies()), torch.arange(4), observation=OBSERVATION
    ),
    "gaussian policy": Case(
        lambda: with_random_tau(GaussianPolicyProposal(GaussianNetwork())),
        LINE,
        cell=28.0 / 2000,
        observation=OBSERVATION,
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
learned = [name for name, case in CASES.items() if list(case.make().parameters())]
each_learned = pytest.mark.parametrize("case", [CASES[name] for name in learned], ids=learned)


def draw(case: Case, proposal: Proposal, count: int, seed: int = 0) -> Draw:
    return proposal.draw(count, generator=generator(seed), given=case.given(count))


def assert_same_state(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, entry in expected.items():
        if isinstance(entry, Tensor):
            assert torch.equal(state[name], entry), name
        else:
            assert state[name].keys() == entry.keys()
            assert torch.equal(state[name]["scores"], entry["scores"])


@each
class TestConformance:
    def test_probabilities_sum_to_one(self, case: Case) -> None:
        total = case.log_prob(case.make()).exp().sum() * case.cell
        assert abs(total.item() - 1.0) < 1e-12

    def test_shapes_and_types(self, case: Case) -> None:
        items, log_q = draw(case, case.make(), 7)
        assert items.shape == (7, *case.support.shape[1:])
        assert items.dtype == case.support.dtype
        assert log_q.shape == (7,)
        assert log_q.dtype == torch.float64

    def test_log_q_of_a_draw_is_log_prob_without_gradient(self, case: Case) -> None:
        proposal = case.make()
        items, log_q = draw(case, proposal, 50)
        assert not log_q.requires_grad
        assert not items.requires_grad
        torch.testing.assert_close(
            log_q, proposal.log_prob(items, given=case.given(50)).detach(), rtol=1e-12, atol=1e-12
        )

    def test_log_q_stays_when_the_proposal_moves(self, case: Case) -> None:
        proposal = case.make()
        log_q = draw(case, proposal, 20).log_q
        before = log_q.clone()
        with_random_tau(proposal, seed=6)
        for module in proposal.modules():
            if isinstance(module, TableProposal):
                module.set_scores(torch.tensor([0]), torch.tensor([50.0]))
            if isinstance(module, PriorityProposal):
                module.set(torch.tensor([0]), torch.tensor([50.0]))
        assert torch.equal(log_q, before)

    def test_weighted_mean_is_unbiased(self, case: Case) -> None:
        items, log_q = draw(case, case.make(), 20_000)
        estimate = importance_estimate(case.values(items), case.target(items), log_q)
        p = case.target(case.support).exp() * case.cell
        exact = (p * case.values(case.support)).sum() / p.sum()
        assert abs(estimate.mean - exact) <= 5 * estimate.standard_error + 1e-12

    def test_draws_follow_the_probabilities(self, case: Case) -> None:
        if case.continuous:
            pytest.skip("see the unbiased mean")
        proposal, count = case.make(), 20_000
        probabilities = case.log_prob(proposal).detach().exp()
        drawn = case.position(draw(case, proposal, count, seed=1).items)
        frequencies = torch.bincount(drawn, minlength=len(case.support)) / count
        error = (probabilities * (1 - probabilities) / count).sqrt()
        assert ((frequencies - probabilities).abs() <= 5 * error + 1e-12).all()

    def test_same_generator_same_items(self, case: Case) -> None:
        proposal = case.make()
        first, again = draw(case, proposal, 30), draw(case, proposal, 30)
        assert torch.equal(first.items, again.items)
        assert torch.equal(first.log_q, again.log_q)
        if len(case.support) > 1:
            assert not torch.equal(first.items, draw(case, proposal, 30, seed=9).items)

    def test_sample_returns_the_items_of_draw(self, case: Case) -> None:
        proposal = case.make()
        items = proposal.sample(30, generator=generator(), given=case.given(30))
        assert torch.equal(items, draw(case, proposal, 30).items)

    def test_global_randomness_is_left_alone(self, case: Case) -> None:
        proposal = case.make()
        before = torch.random.get_rng_state()
        draw(case, proposal, 10)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_state_dict_round_trip(self, case: Case) -> None:
        proposal, other = case.make(), with_random_tau(case.make(), seed=8)
        for module in other.modules():
            if isinstance(module, TableProposal):
                module.set_scores(torch.tensor([0]), torch.tensor([0.5]))
                module.fill(1)
            if isinstance(module, PriorityProposal):
                module.set(torch.tensor([0]), torch.tensor([0.5]))
        draw(case, other, 1)
        other.load_state_dict(proposal.state_dict())
        assert torch.equal(case.log_prob(other), case.log_prob(proposal))
        assert torch.equal(draw(case, other, 20).items, draw(case, proposal, 20).items)

    def test_deep_copy_is_independent(self, case: Case) -> None:
        proposal = case.make()
        draw(case, proposal, 1)
        twin = copy.deepcopy(proposal)
        assert torch.equal(draw(case, twin, 20).items, draw(case, proposal, 20).items)
        before = case.log_prob(proposal).detach()
        with_random_tau(twin, seed=6)
        for module in twin.modules():
            if isinstance(module, TableProposal) and len(module.scores) > 1:
                module.set_scores(torch.tensor([0]), torch.tensor([50.0]))
            if isinstance(module, PriorityProposal):
                module.set(torch.tensor([0]), torch.tensor([50.0]))
        assert torch.equal(case.log_prob(proposal).detach(), before)
        moves = any(True for _ in twin.parameters()) or isinstance(
            twin, TableProposal | PriorityProposal
        )
        if moves and len(case.support) > 1:
            assert not torch.equal(case.log_prob(twin).detach(), before)

    def test_bad_count_and_given_are_refused(self, case: Case) -> None:
        proposal = case.make()
        with pytest.raises(ValueError, match="count is 0"):
            proposal.draw(0, given=case.given(0))
        wrong = torch.zeros(3, 2) if case.observation is None else None
        with pytest.raises(ValueError, match="given"):
            proposal.draw(3, given=wrong)
        with pytest.raises(ValueError, match="given"):
            proposal.log_prob(case.support, given=None if wrong is None else torch.zeros(1, 2))
        if case.observation is not None:
            with pytest.raises(ValueError, match="one entry of `given` per item"):
                proposal.draw(3, given=case.given(2))

    def test_a_draw_reads_no_value_back(self, case: Case) -> None:
        """Tensors without data raise wherever a GPU would have to wait; and are not on the CPU."""
        if not case.moves:
            with pytest.raises(ValueError, match="make the buffer with device="):
                case.make().to("meta")
            return
        given = case.given(5)
        given = None if given is None else given.to("meta")
        drawn = case.make().to("meta").draw(5, given=given)
        assert drawn.items.shape == (5, *case.support.shape[1:])
        assert drawn.log_q.device.type == drawn.items.device.type == "meta"

    @pytest.mark.cuda
    @pytest.mark.parametrize("within", [False, True])
    def test_of_a_damaged_state_nothing_is_loaded(self, case: Case, within: bool) -> None:
        proposal = case.make()
        before = copy.deepcopy(proposal.state_dict())
        other = {name: copy.deepcopy(entry) for name, entry in before.items()}
        for name, _ in proposal.named_parameters():
            other[name] += 1.0
        floats = [
            name
            for name, entry in other.items()
            if isinstance(entry, Tensor) and entry.is_floating_point()
        ]
        module = nn.ModuleDict({"q": proposal}) if within else proposal
        for name in floats:
            bad = {**other, name: torch.full_like(other[name], math.nan)}
            with pytest.raises(ValueError, match=r"NaN|nan"):
                module.load_state_dict({f"q.{k}": v for k, v in bad.items()} if within else bad)
            if not within:  # another module loads part after part
                assert_same_state(proposal.state_dict(), before)
        proposal.load_state_dict(other)
        assert_same_state(proposal.state_dict(), other)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_on_cuda_without_waiting(self, case: Case) -> None:
        if not case.moves:
            pytest.skip("see the tests of the replay buffer")
        proposal, count = case.make().to("cuda"), 2000
        given = case.given(count)
        given = None if given is None else given.to("cuda")
        rng = torch.Generator("cuda").manual_seed(0)
        proposal.draw(count, generator=rng, given=given)
        torch.cuda.set_sync_debug_mode("error")
        try:
            drawn = proposal.draw(count, generator=rng, given=given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        on_cpu = case.make().log_prob(drawn.items.cpu(), given=case.given(count))
        torch.testing.assert_close(drawn.log_q.cpu(), on_cpu.detach(), rtol=1e-5, atol=1e-5)


def exact_second_moment(case: Case, proposal: Proposal) -> Tensor:
    """M(τ) = E_q[(w f)²] by enumeration, differentiable in τ."""
    log_moment = 2.0 * case.target(case.support) - case.log_prob(proposal)
    return (log_moment.exp() * case.values(case.support).square()).sum() * case.cell


@each_learned
class TestGradientOfTheSecondMoment:
    def test_score_function_form_is_its_gradient(self, case: Case) -> None:
        proposal = case.make()
        tau = list(proposal.parameters())
        exact = torch.autograd.grad(-exact_second_moment(case, proposal), tau)
        log_q = case.log_prob(proposal)
        moments = 2.0 * case.target(case.support) - log_q.detach()
        moments = moments.exp() * case.values(case.support).square()
        form = torch.autograd.grad((moments * log_q).sum() * case.cell, tau)
        for one, other in zip(exact, form, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)

    def test_expected_step_of_the_adaptation(self, case: Case) -> None:
        """A centred step, averaged over all batches of two draws, is along the exact gradient."""
        if case.continuous:
            pytest.skip("its batches cannot be enumerated")
        proposal = case.make()
        tau = list(proposal.parameters())
        start = [x.detach().clone() for x in tau]
        exact = torch.autograd.grad(-exact_second_moment(case, proposal), tau)
        log_q = case.log_prob(proposal).detach()
        log_p, values = case.target(case.support), case.values(case.support)
        expected = [torch.zeros_like(x) for x in tau]
        adaptation = ScoreFunctionAdaptation(
            proposal, torch.optim.SGD(tau, lr=1.0), centre=True, scale=False
        )
        for i in range(len(log_q)):
            for j in range(len(log_q)):
                pair = torch.tensor([i, j])
                adaptation.update(
                    Draw(case.support[pair], log_q[pair]),
                    values[pair],
                    log_p[pair],
                    given=case.given(2),
                )
                chance = (log_q[i] + log_q[j]).exp()
                with torch.no_grad():
                    for total, now, before in zip(expected, tau, start, strict=True):
                        total += chance * (now - before)
                        now.copy_(before)
        for one, other in zip(exact, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class TestUniform:
    def test_no_mass_outside(self) -> None:
        log_q = UniformProposal(3).log_prob(torch.tensor([-1, 0, 3]))
        assert log_q.tolist() == [-math.inf, -math.log(3), -math.inf]

    def test_empty_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n is 0"):
            UniformProposal(0)

    def test_the_state_of_another_number_of_items_is_refused(self) -> None:
        proposal = UniformProposal(3)
        with pytest.raises(ValueError, match="of another number of items than 3"):
            proposal.load_state_dict(UniformProposal(4).state_dict())
        assert proposal.log_density.item() == -math.log(3)


class TestClass:
    @pytest.mark.parametrize("tau", [-1.3, 0.0, 0.4, 2.0])
    def test_two_classes_are_the_binary_form(self, tau: float) -> None:
        """Bouchard 2015, eq. 12 and 15: q = n/n(y) ς(yτ) relative to uniform draws."""
        labels = torch.tensor([0, 1, 0, 0, 1])
        y = 2.0 * labels.double() - 1.0
        bias = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        proposal = ClassProposal(labels, 2)
        proposal.tau.data[1] = tau
        log_q = proposal.log_prob(torch.arange(5))
        n_y = torch.tensor([3.0, 2.0])[labels].double()
        binary = 5 / n_y * torch.sigmoid(y * bias)
        torch.testing.assert_close(5 * log_q.exp(), binary)
        for item in range(5):
            (gradient,) = torch.autograd.grad(log_q[item], proposal.tau, retain_graph=True)
            expected = y[item] * (1.0 - torch.sigmoid(y[item] * bias.detach()))
            torch.testing.assert_close(gradient[1], expected)
            torch.testing.assert_close(gradient[0], -expected)

    @pytest.mark.parametrize("tau", [[0.3, -1.0, 0.7], [0.0, 800.0, 0.0], [-800.0, 0.0, 1e-3]])
    def test_the_kernel_draws_as_the_tensors_do(self, tau: list[float]) -> None:
        proposal = ClassProposal(LABELS, 3, torch.tensor(tau))
        uniforms = torch.rand(400, generator=generator(), dtype=torch.float64)
        uniforms[:3] = uniforms[200:203] = torch.tensor([0.0, 0.5, 1.0 - 2**-53])
        kernel = proposal._draw_of(uniforms)
        with torch.no_grad():
            tensors = proposal._draw_by_tensors(uniforms)
        assert torch.equal(kernel.items, tensors.items)
        torch.testing.assert_close(kernel.log_q, tensors.log_q, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("tau", [[0.3, -1.0, 0.7], [0.0, 800.0, 0.0]])
    def test_the_kernel_of_the_score_sums_as_autograd_does(self, tau: list[float]) -> None:
        proposal = ClassProposal(LABELS, 3, torch.tensor(tau))
        items = torch.tensor([5, 0, 3, 3])
        c = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
        (expected,) = torch.autograd.grad((c * proposal.log_prob(items)).sum(), proposal.tau)
        torch.testing.assert_close(proposal.score_sum(items, c), expected)

    def test_a_restored_one_draws_the_items_of_its_classes(self) -> None:
        saved = ClassProposal(torch.tensor([0, 0, 0, 1, 2, 0]), 3, torch.tensor([1.0, 0.0, 0.0]))
        restored = ClassProposal(LABELS, 3)
        restored.load_state_dict(saved.state_dict())
        drawn = restored.draw(200, generator=generator())
        assert torch.equal(drawn.items, saved.draw(200, generator=generator()).items)
        with torch.no_grad():
            torch.testing.assert_close(drawn.log_q, restored.log_prob(drawn.items))

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_damaged_state_changes_nothing(self, label: int) -> None:
        proposal = ClassProposal(LABELS, 3)
        state = ClassProposal(LABELS, 3, torch.ones(3)).state_dict()
        state["labels"] = torch.tensor([0, 2, 1, 2, 2, label])
        for damaged in (proposal, copy.deepcopy(proposal)):
            with pytest.raises(ValueError, match="expected 0 to 2"):
                damaged.load_state_dict(state)
            assert torch.equal(damaged.labels, LABELS)
            assert damaged.tau.tolist() == [0.0, 0.0, 0.0]

    def test_zero_tau_draws_all_classes_alike(self) -> None:
        q = ClassProposal(LABELS, 3).log_prob(torch.arange(6)).exp()
        for label in range(3):
            assert abs(q[label == LABELS].sum().item() - 1 / 3) < 1e-12

    @pytest.mark.parametrize(
        ("labels", "n_classes", "message"),
        [
            ([], 1, "expected a vector of long"),
            ([0, 2], 2, "labels range"),
            ([-1, 0], 2, "labels range"),
            ([0, 2], 3, "class 1 has no items"),
        ],
    )
    def test_bad_labels_are_refused(self, labels: list[int], n_classes: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ClassProposal(torch.tensor(labels, dtype=torch.long), n_classes)

    @pytest.mark.parametrize("tau", [[0.0], [0.0, math.nan], [0.0, math.inf]])
    def test_bad_tau_is_refused(self, tau: list[float]) -> None:
        with pytest.raises(ValueError, match="tau is"):
            ClassProposal(torch.tensor([0, 1]), 2, torch.tensor(tau))


class TestComposites:
    def test_mixture_is_the_sum_of_its_components(self) -> None:
        first, second = with_random_tau(SoftmaxProposal(4)), UniformProposal(4)
        items = torch.arange(4)
        q = MixtureProposal([first, second], [0.25, 0.75]).log_prob(items).exp()
        torch.testing.assert_close(q, 0.25 * first.log_prob(items).exp() + 0.75 / 4)

    @pytest.mark.parametrize("mixed", [False, True])
    def test_product_of_stratified_tables_is_unbiased(self, mixed: bool) -> None:
        def side() -> Proposal:
            table = TableProposal(2, stratified=True)
            return MixtureProposal([table], [1.0]) if mixed else table

        proposal, rng = ProductProposal(side(), side()), generator()
        pairs = torch.cat([proposal.draw(2, generator=rng).items for _ in range(4000)])
        frequencies = torch.bincount(2 * pairs[:, 0] + pairs[:, 1], minlength=4) / len(pairs)
        assert ((frequencies - 0.25).abs() <= 5 * (0.25 * 0.75 / 4000) ** 0.5).all()

    def test_a_state_with_other_than_shares_is_refused(self) -> None:
        mixture = MixtureProposal([SoftmaxProposal(2), UniformProposal(2)], [0.4, 0.6])
        for shares, message in (([0.5, 0.6], "sum to 1.1"), ([1.5, -0.5], "shares")):
            state = with_random_tau(copy.deepcopy(mixture)).state_dict()
            state["shares"] = torch.tensor(shares, dtype=torch.float64)
            with pytest.raises(ValueError, match=message):
                mixture.load_state_dict(state)
            assert mixture.shares.tolist() == [0.4, 0.6]
            assert next(mixture.parameters()).tolist() == [0.0, 0.0]

    def test_component_without_mass_at_an_item(self) -> None:
        mixture = MixtureProposal(
            [TableProposal(torch.tensor([0.0, 1.0])), SoftmaxProposal(2)], [0.5, 0.5]
        )
        log_q = mixture.log_prob(torch.tensor([0, 1]))
        assert log_q.exp().tolist() == pytest.approx([0.25, 0.75])
        (gradient,) = torch.autograd.grad(log_q.sum(), list(mixture.parameters()))
        assert gradient.isfinite().all()

    @pytest.mark.parametrize(
        "shares", [[0.5], [0.5, 0.6], [1.5, -0.5], [math.nan, 0.5], [math.inf, 0.0]]
    )
    def test_bad_shares_are_refused(self, shares: list[float]) -> None:
        with pytest.raises(ValueError, match="shares"):
            MixtureProposal([UniformProposal(2), UniformProposal(2)], shares)

    def test_empty_mixture_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one or more components"):
            MixtureProposal([], [])

    def test_product_refuses_conditional_proposals_and_single_items(self) -> None:
        with pytest.raises(ValueError, match="must not be conditional"):
            ProductProposal(UniformProposal(2), PolicyProposal(nn.Linear(2, 4)))
        with pytest.raises(ValueError, match=r"expected \[B, 2\]"):
            ProductProposal(UniformProposal(2), UniformProposal(2)).log_prob(torch.arange(2))


class TestPolicies:
    def test_each_action_follows_its_own_observation(self) -> None:
        network = nn.Linear(2, 2, bias=False)
        network.weight.data = 50.0 * torch.eye(2)
        observations = torch.eye(2)[[1, 0, 0, 1]]
        actions = PolicyProposal(network).sample(4, generator=generator(), given=observations)
        assert actions.tolist() == [1, 0, 0, 1]

    def test_gaussian_log_density_is_torchs(self) -> None:
        proposal = with_random_tau(GaussianPolicyProposal(GaussianNetwork()))
        assert isinstance(proposal, GaussianPolicyProposal)
        observations = torch.randn(9, 2, generator=generator())
        actions, log_q = proposal.draw(9, generator=generator(), given=observations)
        mean, log_std = proposal.mean_and_log_std(observations)
        normal = torch.distributions.Normal(mean, log_std.exp())
        expected = normal.log_prob(actions).sum(1)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(log_q, expected.detach())

    def test_wrong_output_of_the_network_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected logits"):
            PolicyProposal(nn.Flatten(0)).draw(3, given=torch.zeros(3, 2))
        gaussian = GaussianPolicyProposal(GaussianNetwork())
        with pytest.raises(ValueError, match="items has shape"):
            gaussian.log_prob(torch.zeros(3, 2), given=torch.zeros(3, 2))


@pytest.mark.parametrize("make", [SoftmaxProposal, TableProposal])
def test_large_tables_beyond_2_to_24(make: Callable[[int], Proposal]) -> None:
    n = 2**24 + 3
    items, log_q = make(n).draw(2000, generator=generator())
    assert items.max() > 2**24 - 2**16
    torch.testing.assert_close(log_q, torch.full((2000,), -math.log(n), dtype=torch.float64))
    odd = (items % 2).double().mean()
    assert abs(odd - 0.5) <= 5 * 0.5 / 2000**0.5
