"""Proposals between the class bias and the table: a few τ, and more detail than a class.

- Clusters inside each class: `ClassProposal(cluster_labels(features, labels, 8), ...)`.
- A softmax linear in features of the items: `FeatureSoftmaxProposal`. With bins of the model's own
  confidence (`signal_bins`, `bin_features`) it holds q ∝ signal, the best proposal but for
  staleness and rounding, at τ = (1, 0, ...); and τ learns how far the signal can be trusted.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.sampling import (
    check_scores,
    cumulative_scores,
    draw_uniforms,
    sample_from_cumulative,
)

__all__ = ["FeatureSoftmaxProposal", "bin_features", "cluster_labels", "signal_bins"]


class FeatureSoftmaxProposal(Proposal):
    """A softmax over items, linear in features that items of one group share.

    q(i) = (1 − u) exp(τ·φ_g(i)) / Σ_h n_h exp(τ·φ_h) + u / N, with n_h items in group h. τ = 0 is
    uniform over the items; weights for a uniform target stay below 1 / u.

    A draw and a density of B items cost O(G D + B log G) for G groups. With a group for each item
    that is O(N D): bin the features where N is large.

    Args:
      features: [G, D] finite features φ of each group. Copied.
      groups: [N] long, the group of each item, some may be empty; None: a group for each item, in
        order, N = G. Copied.
      uniform_share: u, the share of uniform draws.
      tau: [D] first τ; None is zeros.

    Raises:
      ValueError: if a shape or type is wrong, a feature or τ is not finite, a group is out of
        range, or the share is not between 0 and 1.
    """

    features: Tensor
    groups: Tensor
    _members: Tensor
    _first: Tensor
    _sizes: Tensor

    def __init__(
        self,
        features: Tensor,
        groups: Tensor | None = None,
        *,
        uniform_share: float = 0.0,
        tau: Tensor | None = None,
    ) -> None:
        super().__init__()
        features = features.detach().to(torch.float64, copy=True)
        if features.dim() != 2 or features.numel() == 0:
            raise ValueError(f"features has shape {tuple(features.shape)}, expected [G, D]")
        finite = features.isfinite().all(1)
        if not bool(finite.all()):
            row = int(finite.long().argmin())
            raise ValueError(f"features of group {row} are {features[row].tolist()}, not finite")
        if not 0.0 <= uniform_share <= 1.0:
            raise ValueError(f"uniform_share is {uniform_share}, expected between 0 and 1")
        d = features.shape[1]
        tau = torch.zeros(d) if tau is None else tau.detach()
        if tau.shape != (d,) or not bool(tau.isfinite().all()):
            raise ValueError(f"tau is {tau.tolist()}, expected {d} finite numbers, one per feature")
        if groups is None:
            groups = torch.arange(len(features), device=features.device)
        self.uniform_share = uniform_share
        self.tau = nn.Parameter(tau.to(features.device, torch.float64, copy=True))
        self.register_buffer("features", features)
        self.register_buffer("groups", _check_groups(groups, len(features)).clone())
        for name in ("_members", "_first", "_sizes"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._sort()

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        super()._check_state(state, prefix)
        groups = state.get(prefix + "groups")
        if isinstance(groups, Tensor) and groups.shape == self.groups.shape:
            _check_groups(groups.to(self.groups.dtype), len(self.features))

    def _follow_state(self) -> None:
        self._sort()

    def set_groups(self, groups: Tensor) -> None:
        """Moves items to other groups, for features that change as the model learns.

        O(N log N), so do it once in many batches. Draws keep their own density.

        Args:
          groups: [N] long.

        Raises:
          ValueError: if the shape or type is wrong, or a group is out of range. Nothing is moved
            then.
        """
        if groups.shape != self.groups.shape:
            raise ValueError(
                f"groups has shape {tuple(groups.shape)}, expected {tuple(self.groups.shape)}"
            )
        self.groups.copy_(_check_groups(groups, len(self.features)))
        self._sort()

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log q of the items, differentiable in τ."""
        self._check_given(len(items), given)
        return self._log_item_density().index_select(0, self.groups.index_select(0, items))

    def _log_item_density(self) -> Tensor:
        """[G] log q of each of the items in a group."""
        logits = self.features @ self.tau
        log_q = logits - (logits + self._sizes.log()).logsumexp(0)
        if self.uniform_share == 0.0:
            return log_q
        # As a tensor: log 0, at u = 1, is -inf and not an error.
        rest = torch.full_like(log_q, 1.0 - self.uniform_share).log()
        uniform = torch.full_like(log_q, self.uniform_share / len(self.groups)).log()
        return torch.logaddexp(log_q + rest, uniform)

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        log_q = self._log_item_density()
        # q is constant inside a group, the uniform share included.
        cumulative = cumulative_scores(torch.where(self._sizes > 0, log_q.exp() * self._sizes, 0.0))
        uniforms = draw_uniforms(2 * count, device=cumulative.device, generator=generator)
        groups = sample_from_cumulative(cumulative, uniforms[:count])
        sizes = self._sizes.index_select(0, groups)
        within = (uniforms[count:] * sizes).floor().minimum(sizes - 1.0).long()
        items = self._members.index_select(0, self._first.index_select(0, groups) + within)
        return Draw(items, log_q.index_select(0, groups))

    def _sort(self) -> None:
        sizes = torch.bincount(self.groups, minlength=len(self.features))
        self._members = torch.argsort(self.groups, stable=True)
        self._first = sizes.cumsum(0) - sizes
        self._sizes = sizes.to(torch.float64)


def _check_groups(groups: Tensor, n_groups: int) -> Tensor:
    if groups.dim() != 1 or groups.numel() == 0 or groups.dtype != torch.long:
        raise ValueError(
            f"groups has shape {tuple(groups.shape)} and type {groups.dtype}, "
            "expected a non-empty vector of long"
        )
    outside = (groups < 0) | (groups >= n_groups)
    if bool(outside.any()):
        item = int(outside.long().argmax())
        raise ValueError(
            f"item {item} is in group {int(groups[item])}, expected 0 to {n_groups - 1}"
        )
    return groups


def signal_bins(signal: Tensor, n_bins: int, largest: float = 1.0) -> Tensor:
    """The binary order of magnitude of each signal: bin k has 2^−(k+1) < signal / largest ≤ 2^−k.

    The first bin takes what is larger, the last one what is smaller, 0 too.

    Args:
      signal: [N] finite and non-negative: the output gradient, |probability − label|, for one.
      n_bins: number of bins K.
      largest: the largest signal expected.

    Returns:
      [N] long, 0 to K − 1.

    Raises:
      ValueError: if a signal is negative, infinite or NaN, or a number is not positive.
    """
    if n_bins < 1 or not 0.0 < largest < math.inf:
        raise ValueError(f"n_bins is {n_bins} and largest {largest}, expected positive numbers")
    # Exactly, where a logarithm would round: signal = mantissa 2^exponent, 1/2 <= mantissa < 1.
    mantissa, exponent = torch.frexp(check_scores(signal, "signal") / largest)
    bins = torch.where(mantissa == 0.5, 1 - exponent, -exponent)
    return torch.where(mantissa == 0.0, n_bins - 1, bins.clamp(0, n_bins - 1)).long()


def bin_features(n_bins: int, n_classes: int = 1) -> Tensor:
    """Features of the groups `class · K + bin`: the log signal of the bin, and the class.

    Args:
      n_bins: number of bins K of `signal_bins`.
      n_classes: number of classes C; class 0 is the one that the others are compared with.

    Returns:
      [C · K, C] float64: column 0 is −bin log 2, column c ≥ 1 is 1 for class c and 0 elsewhere.

    Raises:
      ValueError: if a number is below 1.
    """
    if n_bins < 1 or n_classes < 1:
        raise ValueError(f"n_bins is {n_bins} and n_classes {n_classes}, expected at least 1")
    log_signal = -math.log(2.0) * torch.arange(n_bins, dtype=torch.float64).repeat(n_classes)
    classes = torch.arange(n_classes).repeat_interleave(n_bins)
    return torch.cat((log_signal.unsqueeze(1), one_hot(classes, n_classes)[:, 1:].double()), 1)


def cluster_labels(
    features: Tensor, labels: Tensor, clusters_per_class: int, *, seed: int = 0
) -> Tensor:
    """Clusters inside each class by k-means: labels for `ClassProposal`, which learns a τ for each.

    Args:
      features: [N, D] finite features to cluster by: of the examples, or of a layer of the model.
      labels: [N] long, classes from 0; each has an item.
      clusters_per_class: number of clusters in each class; a class of fewer different items has
        as many as it can.
      seed: of the k-means.

    Returns:
      [N] long, on the device of the labels: clusters numbered from 0, those of class 0 first, none
      empty.

    Raises:
      ValueError: if a shape or type is wrong, a feature is not finite, a label is negative, a
        class is empty, or there is less than one cluster.
    """
    from sklearn.cluster import MiniBatchKMeans

    if features.dim() != 2 or labels.shape != features.shape[:1] or clusters_per_class < 1:
        raise ValueError(
            f"features has shape {tuple(features.shape)}, labels {tuple(labels.shape)} and "
            f"clusters_per_class is {clusters_per_class}, expected [N, D], [N] and at least 1"
        )
    finite = features.isfinite().all(1)
    if not bool(finite.all()):
        row = int(finite.long().argmin())
        raise ValueError(f"features of item {row} are not finite, expected numbers")
    _check_groups(labels, int(labels.max()) + 1 if labels.numel() else 0)
    x, y = features.detach().cpu().numpy(), labels.cpu()
    clusters, total = torch.empty_like(y), 0
    for label in range(int(y.max()) + 1):
        members = torch.nonzero(y == label).squeeze(1)
        if len(members) == 0:
            raise ValueError(f"class {label} has no items, expected one or more in each class")
        means = MiniBatchKMeans(
            min(clusters_per_class, len(members)), random_state=seed, batch_size=1024, n_init=1
        )
        found = torch.from_numpy(means.fit_predict(x[members.numpy()])).long()
        # Numbered anew, as k-means may leave a cluster without items.
        numbers = (torch.bincount(found) > 0).cumsum(0) - 1
        clusters[members] = total + numbers[found]
        total += int(numbers[-1]) + 1
    return clusters.to(labels.device)
