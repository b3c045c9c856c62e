"""Clusters inside classes, and softmax proposals that are linear in features."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awsgd_rl.adaptation import ScoreFunctionAdaptation
from awsgd_rl.feature_proposals import (
    FeatureSoftmaxProposal,
    bin_features,
    cluster_labels,
    signal_bins,
)
from awsgd_rl.proposals import ClassProposal

FEATURES = torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [-1.0, 0.0]], dtype=torch.float64)
GROUPS = torch.tensor([2, 0, 2, 3, 3, 3, 0])  # none in group 1
TAU = torch.tensor([0.8, -0.4], dtype=torch.float64)
ITEMS = torch.arange(len(GROUPS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestFeatureSoftmax:
    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_density_is_a_softmax_over_items_mixed_with_uniform(self, share: float) -> None:
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, uniform_share=share, tau=TAU)
        expected = (1 - share) * (FEATURES[GROUPS] @ TAU).softmax(0) + share / len(GROUPS)
        torch.testing.assert_close(proposal.log_prob(ITEMS).exp(), expected)

    def test_each_item_its_own_group(self) -> None:
        by_item = FeatureSoftmaxProposal(FEATURES[GROUPS], tau=TAU)
        by_group = FeatureSoftmaxProposal(FEATURES, GROUPS, tau=TAU)
        torch.testing.assert_close(by_item.log_prob(ITEMS), by_group.log_prob(ITEMS))

    def test_score_in_closed_form(self) -> None:
        share = 0.25
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, uniform_share=share, tau=TAU)
        log_q = proposal.log_prob(ITEMS)
        softmax = (FEATURES[GROUPS] @ TAU).softmax(0)
        mean = softmax @ FEATURES[GROUPS]
        for i in range(len(GROUPS)):
            (score,) = torch.autograd.grad(log_q[i], proposal.tau, retain_graph=True)
            trust = (1 - share) * softmax[i] / log_q[i].detach().exp()
            torch.testing.assert_close(score, trust * (FEATURES[GROUPS[i]] - mean))

    def test_huge_tau_stays_finite(self) -> None:
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, uniform_share=0.1, tau=1e4 * TAU)
        log_q = proposal.log_prob(ITEMS)
        assert log_q.isfinite().all()
        log_q.sum().backward()
        assert proposal.tau.grad is not None
        assert proposal.tau.grad.isfinite().all()

    def test_items_move_between_groups(self) -> None:
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, tau=TAU)
        moved = torch.tensor([1, 1, 1, 0, 3, 3, 2])
        proposal.set_groups(moved)
        expected = (FEATURES[moved] @ TAU).softmax(0)
        torch.testing.assert_close(proposal.log_prob(ITEMS).exp(), expected)
        count = 20_000
        frequencies = torch.bincount(proposal.sample(count, generator=generator())) / count
        error = (expected * (1 - expected) / count).sqrt()
        assert ((frequencies - expected).abs() < 5 * error).all()

    def test_groups_are_saved_and_restored(self) -> None:
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, tau=TAU)
        moved = GROUPS.flip(0)
        proposal.set_groups(moved)
        other = copy.deepcopy(FeatureSoftmaxProposal(FEATURES, GROUPS))
        other.load_state_dict(proposal.state_dict())
        torch.testing.assert_close(other.log_prob(ITEMS), proposal.log_prob(ITEMS))
        assert torch.equal(
            other.sample(50, generator=generator()), proposal.sample(50, generator=generator())
        )

    def test_a_damaged_state_changes_nothing(self) -> None:
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS)
        state = FeatureSoftmaxProposal(FEATURES, GROUPS, tau=TAU).state_dict()
        with pytest.raises(ValueError, match="item 0 is in group 4"):
            proposal.load_state_dict({**state, "groups": GROUPS + 2})
        assert torch.equal(proposal.groups, GROUPS)
        assert proposal.tau.tolist() == [0.0, 0.0]

    def test_bad_arguments(self) -> None:
        bad_features = FEATURES.clone()
        bad_features[2, 1] = math.nan
        for kwargs, match in (
            ({"features": torch.zeros(3)}, r"shape \(3,\)"),
            ({"features": bad_features}, "features of group 2"),
            ({"groups": GROUPS + 2}, "item 0 is in group 4, expected 0 to 3"),
            ({"groups": GROUPS.double()}, "vector of long"),
            ({"groups": GROUPS[:0]}, "non-empty"),
            ({"uniform_share": 1.5}, "uniform_share is 1.5"),
            ({"tau": torch.zeros(3)}, "expected 2 finite numbers"),
        ):
            arguments = {"features": FEATURES, "groups": GROUPS, **kwargs}
            with pytest.raises(ValueError, match=match):
                FeatureSoftmaxProposal(**arguments)
        proposal = FeatureSoftmaxProposal(FEATURES, GROUPS, tau=TAU)
        for groups, match in ((GROUPS[1:], "shape"), (GROUPS - 1, "item 1 is in group -1")):
            with pytest.raises(ValueError, match=match):
                proposal.set_groups(groups)
        assert torch.equal(proposal.groups, GROUPS)

    def test_it_learns_to_trust_the_signal(self) -> None:
        """With q ∝ signal in its family, AW-SGD finds τ near (1, 0)."""
        rng = generator(3)
        norms = torch.exp(-4.0 * torch.rand(400, generator=rng, dtype=torch.float64))
        labels = (torch.rand(400, generator=rng) < 0.2).long()
        groups = labels * 12 + signal_bins(norms, 12)
        proposal = FeatureSoftmaxProposal(bin_features(12, 2), groups, uniform_share=0.05)
        optimizer = torch.optim.Adagrad(proposal.parameters(), lr=0.1)
        adaptation = ScoreFunctionAdaptation(proposal, optimizer)
        log_p = torch.full((100,), -math.log(400), dtype=torch.float64)
        for _ in range(500):
            drawn = proposal.draw(100, generator=rng)
            adaptation.update(drawn, norms[drawn.items], log_p)
        assert proposal.tau.tolist() == pytest.approx([1.0, 0.0], abs=0.2)


class TestSignalBins:
    def test_edges(self) -> None:
        signal = torch.tensor([3.0, 1.0, 0.75, 0.5, 0.4999, 0.25, 0.125, 1e-9, 0.0])
        assert signal_bins(signal, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
        assert signal_bins(10 * signal, 4, largest=10.0).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]

    @given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20), st.integers(1, 30))
    def test_a_bin_holds_its_power_of_two(self, values: list[float], n_bins: int) -> None:
        signal = torch.tensor(values, dtype=torch.float64)
        bins = signal_bins(signal, n_bins)
        for value, k in zip(values, bins.tolist(), strict=True):
            assert value <= 2.0**-k
            assert value > 2.0 ** -(k + 1) or k == n_bins - 1

    def test_features_of_the_bins(self) -> None:
        features = bin_features(3, 2)
        halves = [0.0, -math.log(2), -2 * math.log(2)]
        assert features[:, 0].tolist() == pytest.approx(halves + halves)
        assert features[:, 1].tolist() == [0, 0, 0, 1, 1, 1]
        assert bin_features(3).shape == (3, 1)

    def test_bad_arguments(self) -> None:
        for signal in ([-0.1], [math.nan], [math.inf], []):
            with pytest.raises(ValueError, match="signal"):
                signal_bins(torch.tensor(signal), 4)
        with pytest.raises(ValueError, match="n_bins is 0"):
            signal_bins(torch.ones(1), 0)
        with pytest.raises(ValueError, match="n_classes 0"):
            bin_features(2, 0)


def blobs() -> tuple[Tensor, Tensor, Tensor]:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    blob = torch.arange(4).repeat(30)
    x = centres[blob] + 0.1 * torch.randn(120, 2, generator=generator())
    return x, blob // 2, blob


class TestClusterLabels:
    def test_clusters_lie_inside_classes(self) -> None:
        x, labels, blob = blobs()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clusters = cluster_labels(x, labels, 2)
        assert torch.equal(clusters // 2, labels)
        pairs = torch.stack((clusters, blob), 1).unique(dim=0)
        assert len(pairs) == 4, "each blob is a cluster"
        assert torch.equal(clusters, cluster_labels(x, labels, 2))
        ClassProposal(clusters, int(clusters.max()) + 1)

    def test_fewer_items_than_clusters(self) -> None:
        x = torch.tensor([[0.0], [5.0], [6.0], [9.0]])
        clusters = cluster_labels(x, torch.tensor([1, 0, 1, 1]), 3)
        assert sorted(clusters.tolist()) == [0, 1, 2, 3]
        assert clusters[1] == 0

    def test_bad_arguments(self) -> None:
        x, labels, _ = blobs()
        with pytest.raises(ValueError, match="class 0 has no items"):
            cluster_labels(x, labels + 1, 2)
        with pytest.raises(ValueError, match="item 0 is in group -1"):
            cluster_labels(x, labels - 1, 2)
        with pytest.raises(ValueError, match="labels"):
            cluster_labels(x, labels[1:], 2)
        with pytest.raises(ValueError, match="clusters_per_class is 0"):
            cluster_labels(x, labels, 0)
        with pytest.raises(ValueError, match="vector of long"):
            cluster_labels(x[:0], labels[:0], 2)
        x[7, 1] = math.inf
        with pytest.raises(ValueError, match="item 7"):
            cluster_labels(x, labels, 2)
