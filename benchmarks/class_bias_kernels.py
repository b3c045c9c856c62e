"""Logistic regression by AdaGrad on drawn examples, compiled: one loop for all the proposals.

What `ClassProposal`, `FeatureSoftmaxProposal` and `TableProposal` with their adaptations do, at the
cost of the arithmetic alone, so that a comparison in time compares methods. The tests hold these
loops against those classes, density by density and τ step by τ step.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from awsgd_rl import sum_tree_kernels

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_jit_fast = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}
)

SCALE_DECAY = 0.99
_TINY = 1e-10  # as torch.optim.Adagrad


class Examples(NamedTuple):
    """A binary task."""

    x: Floats32
    """[N, D] features, one of them constant."""
    signs: Floats32
    """[N] 1 or −1."""
    norms: Floats32
    """[N] norm of each row of x."""


class Model(NamedTuple):
    """Weights of the logistic regression, with AdaGrad's sums."""

    w: Floats32
    """[D]"""
    squares: Floats32
    """[D]"""
    residuals: Floats32
    """[N] 1 − probability of the label, as last seen; 0.5 before (at w = 0 that is exact)."""


class Groups(NamedTuple):
    """A proposal that is constant inside groups: softmax(features τ [+ log size])."""

    features: Floats
    """[G, d]; empty where τ has a number for each group."""
    tau: Floats
    """[d], or [G]"""
    squares: Floats
    """[d] AdaGrad's sums of τ."""
    scale: Floats
    """[2] numerator and denominator of the running mean that squared norms are divided by."""
    groups: Ints
    """[N] group of each item."""
    members: Ints
    """[N] items, sorted by group."""
    first: Ints
    """[G + 1] where the members of each group start."""


def make_model(examples: Examples) -> Model:
    """Return a model at w = 0."""
    n, d = examples.x.shape
    return Model(
        np.zeros(d, np.float32), np.zeros(d, np.float32), np.full(n, 0.5, dtype=np.float32)
    )


def make_groups(features: Floats | int, groups: Ints) -> Groups:
    """Return the proposal at τ = 0; in place of features [G, d] G stands for a τ of each group."""
    if isinstance(features, int):
        g = d = features
        features = np.zeros((0, 0))
    else:
        g, d = features.shape
    made = Groups(
        np.ascontiguousarray(features, np.float64),
        *(np.zeros(d), np.zeros(d), np.zeros(2)),
        groups.astype(np.int64),
        *(np.zeros(len(groups), np.int64), np.zeros(g + 1, np.int64)),
    )
    sort_groups(made)
    return made


@_jit
def sort_groups(proposal: Any) -> None:
    """Sort the members by group, in O(N)."""
    groups, members, first = proposal.groups, proposal.members, proposal.first
    first[:] = 0
    for i in range(len(groups)):
        first[groups[i] + 1] += 1
    for g in range(1, len(first)):
        first[g] += first[g - 1]
    at = first.copy()
    for i in range(len(groups)):
        members[at[groups[i]]] = i
        at[groups[i]] += 1


@_jit
def group_shares(proposal: Any, by_size: bool, uniform_share: float) -> tuple[Floats, Floats]:
    """Return the softmax over groups [G], and what it becomes with a uniform share [G]."""
    n, n_groups = len(proposal.groups), len(proposal.first) - 1
    logits = np.zeros(n_groups)
    largest = -np.inf
    for g in range(n_groups):
        if len(proposal.features) == 0:
            logits[g] = proposal.tau[g]
        else:
            for d in range(len(proposal.tau)):
                logits[g] += proposal.features[g, d] * proposal.tau[d]
        if proposal.first[g + 1] > proposal.first[g]:
            largest = max(largest, logits[g])
    softmax = np.zeros(n_groups)
    for g in range(n_groups):
        size = proposal.first[g + 1] - proposal.first[g]
        if size > 0:
            softmax[g] = np.exp(logits[g] - largest) * (size if by_size else 1)
    softmax /= softmax.sum()
    shares = (1.0 - uniform_share) * softmax
    for g in range(n_groups):
        shares[g] += uniform_share * (proposal.first[g + 1] - proposal.first[g]) / n
    return softmax, shares


@_jit_fast
def _descend(
    examples: Any, model: Any, items: Ints, weights: Floats, gradient: Floats32, rho: float
) -> None:
    """One AdaGrad step along the weighted mean gradient; keeps the residuals of the items."""
    x, w, squares = examples.x, model.w, model.squares
    gradient[:] = 0.0
    for b in range(len(items)):
        row = x[items[b]]
        margin = np.float32(0.0)
        for d in range(len(w)):
            margin += row[d] * w[d]
        sign = examples.signs[items[b]]
        residual = np.float32(1.0 / (1.0 + np.exp(np.float64(sign * margin))))
        model.residuals[items[b]] = residual
        factor = np.float32(-weights[b] * sign * residual / len(items))
        for d in range(len(w)):
            gradient[d] += factor * row[d]
    rate, tiny = np.float32(rho), np.float32(_TINY)
    for d in range(len(w)):
        squares[d] += gradient[d] * gradient[d]
        w[d] -= rate * gradient[d] / (np.sqrt(squares[d]) + tiny)


@_jit
def _adapt(
    proposal: Any, squared: Floats, groups: Ints, softmax: Floats, trust: Floats, eta: float
) -> None:
    """The τ step of `ScoreFunctionAdaptation` with AdaGrad, in closed form."""
    b_total, total = len(squared), squared.sum()
    proposal.scale[0] = SCALE_DECAY * proposal.scale[0] + total / b_total
    proposal.scale[1] = SCALE_DECAY * proposal.scale[1] + 1.0
    scale = max(proposal.scale[0] / proposal.scale[1], 1e-300)
    pull, everything = np.zeros(len(softmax)), 0.0
    for b in range(b_total):
        # Less the mean of the others, which keeps the expectation.
        centred = squared[b] - (total - squared[b]) / max(b_total - 1, 1)
        pull[groups[b]] += centred * trust[b] / (b_total * scale)
        everything += centred * trust[b] / (b_total * scale)
    for g in range(len(softmax)):
        pull[g] -= everything * softmax[g]
    for d in range(len(proposal.tau)):
        step = 0.0
        if len(proposal.features) == 0:
            step = pull[d]
        else:
            for g in range(len(softmax)):
                step += pull[g] * proposal.features[g, d]
        proposal.squares[d] += step * step
        proposal.tau[d] += eta * step / (np.sqrt(proposal.squares[d]) + _TINY)


@_jit
def train_groups(
    examples: Any,
    model: Any,
    proposal: Any,
    rng: Any,
    iterations: int,
    batch: int,
    rho: float,
    eta: float,
    weighted: bool,
    by_size: bool,
    uniform_share: float,
    bins: int,
    refresh: int,
) -> None:
    """Draw, step along the gradient, move τ: `iterations` times.

    Args:
        examples: the task.
        model: what learns; changed.
        proposal: what is drawn from; changed.
        rng: NumPy's generator.
        iterations: how many batches.
        batch: examples in each.
        rho: AdaGrad's step of w.
        eta: AdaGrad's step of τ; 0 leaves τ alone.
        weighted: weight by p / q; else by 1, as people do.
        by_size: q(g) ∝ size exp(τ·φ): uniform over items at τ = 0; else uniform over groups.
        uniform_share: share of uniform draws.
        bins: 0, or the number of bins of the last residual: groups are then class · bins + bin,
            remade every `refresh` batches.
        refresh: as above.
    """
    n = len(examples.signs)
    items, groups = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    weights, trust, squared = np.ones(batch), np.ones(batch), np.zeros(batch)
    gradient = np.zeros(len(model.w), np.float32)
    softmax, shares = group_shares(proposal, by_size, uniform_share)
    for t in range(iterations):
        if bins > 0 and t % refresh == 0:
            regroup(examples, model, proposal, bins)
        if eta > 0.0 or bins > 0:
            softmax, shares = group_shares(proposal, by_size, uniform_share)
        for b in range(batch):
            target, g = rng.random(), 0
            while g < len(shares) - 1 and target >= shares[g]:
                target -= shares[g]
                g += 1
            while shares[g] == 0.0:  # rounding
                g -= 1
            size = proposal.first[g + 1] - proposal.first[g]
            within = min(int(rng.random() * size), size - 1)
            items[b], groups[b] = proposal.members[proposal.first[g] + within], g
            if weighted:
                weights[b] = size / (n * shares[g])
            trust[b] = (1.0 - uniform_share) * softmax[g] / shares[g]
        _descend(examples, model, items, weights, gradient, rho)
        if eta > 0.0:
            for b in range(batch):
                norm = weights[b] * model.residuals[items[b]] * examples.norms[items[b]]
                squared[b] = norm * norm
            _adapt(proposal, squared, groups, softmax, trust, eta)


@_jit
def regroup(examples: Any, model: Any, proposal: Any, bins: int) -> None:
    """Put each item into the group of its class and of its last residual's power of two."""
    for i in range(len(examples.signs)):
        power = -np.log2(max(np.float64(model.residuals[i]), 1e-300))
        positive = 1 if examples.signs[i] > 0 else 0
        proposal.groups[i] = positive * bins + min(int(power), bins - 1)
    sort_groups(proposal)


@_jit
def table_scores(examples: Any, model: Any, floor: float, items: Ints) -> Floats:
    """Return the [B] bounds of the gradient's norm as last seen; `floor` keeps them positive."""
    scores = np.zeros(len(items))
    for b in range(len(items)):
        scores[b] = (model.residuals[items[b]] + floor) * examples.norms[items[b]]
    return scores


@_jit
def train_table(
    examples: Any,
    model: Any,
    nodes: Floats,
    starts: Ints,
    rng: Any,
    iterations: int,
    batch: int,
    rho: float,
    floor: float,
    uniform_share: float,
) -> None:
    """As `train_groups`, from a sum tree of `table_scores`; O(log N) for each example."""
    n = len(examples.signs)
    items, weights = np.zeros(batch, np.int64), np.ones(batch)
    gradient = np.zeros(len(model.w), np.float32)
    for _ in range(iterations):
        uniforms = rng.random(batch)
        drawn = sum_tree_kernels.draw(nodes, starts, uniforms)
        for b in range(batch):
            if rng.random() < uniform_share:
                items[b] = min(int(rng.random() * n), n - 1)
            else:
                items[b] = drawn[b]
            share = nodes[starts[-1] + items[b]] / nodes[0]
            weights[b] = 1.0 / (uniform_share + (1.0 - uniform_share) * n * share)
        _descend(examples, model, items, weights, gradient, rho)
        scores = table_scores(examples, model, floor, items)
        sum_tree_kernels.write(nodes, starts, n, items, scores)
