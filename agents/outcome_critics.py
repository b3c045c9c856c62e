"""Critics of an outcome: what an exploration policy that aims at it is made of.

For an outcome g of an episode and the policy p, the policy q that draws episodes with the least
second moment of the weighted outcome, E_q[(w g)^2], is (by a Bellman equation for this minimum)

    q(a|s) ∝ p(a|s) G(s, a),   G(s, a) = sqrt(E_{s'}[G(s')^2]),   G(s) = sum_a p(a|s) G(s, a),

with G = |g| at the end. Where moves are deterministic G is the expectation of |g|, and the weighted
outcome is then constant: no variance is left. `TableCritic` solves the equation on the transitions
seen so far; `NetworkCritic` learns E_p|g| on observations that never come back.

An error in G costs variance and no bias: what was drawn is weighted (`evaluation.py`).
"""

from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_MOST_SWEEPS = 100  # of one fit, which goes on from where the last one ended
_CHANGE = 1e-6  # of any G in a sweep, as a share of the largest |g|, below which sweeps end


@_jit
def _solve(
    first: Ints,
    following: Ints,
    share: Floats,
    policy: Floats,
    untried: float,
    root: Floats,
    final: Floats,
    values: Floats,
    sweeps: int,
    tolerance: float,
) -> None:
    """Move `values` [S] to the solution by Gauss-Seidel sweeps; `root` [S, A] is then G(s, a).

    `following` [N] and `share` [N] are the transitions, those of pair k = s A + a from `first[k]`
    to before `first[k + 1]`; `untried` is what an action without any counts as; `final` [S] is G of
    terminal states, else -1. Sweeps go up and down the states by turns, as paths may lead either
    way.
    """
    n_states, n_actions = policy.shape
    for sweep in range(sweeps):
        moved = 0.0
        for k in range(n_states):
            s = k if sweep % 2 else n_states - 1 - k
            new = 0.0
            for a in range(n_actions):
                begin, end = first[s * n_actions + a], first[s * n_actions + a + 1]
                root[s, a] = untried
                if end > begin:
                    total = 0.0
                    for i in range(begin, end):
                        total += share[i] * values[following[i]] ** 2
                    root[s, a] = np.sqrt(total)
                new += policy[s, a] * root[s, a]
            if final[s] >= 0.0:
                new = final[s]
            moved = max(moved, abs(new - values[s]))
            values[s] = new
        if moved <= tolerance:
            break


class Solution(NamedTuple):
    """What `TableCritic.solve` found.

    Attributes:
        roots: [S, A] G, untried actions counted as the largest outcome.
        values: [S] the mean of G over the policy's actions.
        known: mean G of the first states, untried actions counted as 0. Where moves are
            deterministic, E_p|g| lies between this and `possible`.
        possible: mean G of the first states, untried actions counted as the largest outcome.
    """

    roots: Floats
    values: Floats
    known: float
    possible: float


class TableCritic:
    """G on numbered states, from the transitions counted so far (certainty equivalence).

    An action that was never tried counts as the largest outcome, so that it is tried as often as it
    could matter: p's probability of coming to it is what that adds to G on the way.

    Args:
        n_states: S.
        n_actions: A.
    """

    def __init__(self, n_states: int, n_actions: int) -> None:
        self.n_actions = n_actions
        self._pair = np.empty(0, np.int64)
        self._following = np.empty(0, np.int64)
        self._count = np.empty(0, np.int64)
        self._ends = np.zeros((n_states, 3))  # episodes, sum of f, sum of f^2, by terminal state
        self._cut = np.zeros(3)  # the same of episodes that ended at the horizon
        self._values: dict[float, Floats] = {}  # G by what untried actions count as

    def grow(self, n_states: int) -> None:
        """Make room for more states."""
        more = n_states - len(self._ends)
        self._ends = np.concatenate([self._ends, np.zeros((more, 3))])

    def add(self, states: Ints, actions: Ints, following: Ints, counts: Ints) -> None:
        """Count N transitions, `counts` [N] times each."""
        pair = np.concatenate([self._pair, states * self.n_actions + actions])
        to = np.concatenate([self._following, following])
        keys, inverse = np.unique((pair << 31) | to, return_inverse=True)
        self._count = np.bincount(
            inverse, np.concatenate([self._count, counts]), minlength=len(keys)
        ).astype(np.int64)
        self._pair, self._following = keys >> 31, keys & ((1 << 31) - 1)

    def add_ends(self, states: Ints, outcomes: Floats, terminated: NDArray[np.bool_]) -> None:
        """Add the outcomes f [N] of episodes by their last states [N]; the others were cut off."""
        moments = np.stack([np.ones_like(outcomes), outcomes, outcomes**2], 1)
        np.add.at(self._ends, states[terminated], moments[terminated])
        self._cut += moments[~terminated].sum(0)

    def solve(self, policy: Floats, starts: Ints, centre: float, largest: float) -> Solution:
        """Solve for G of g = f - `centre`.

        Args:
            policy: [S, A] probabilities of p.
            starts: first states that were seen, as often as they were.
            centre: what is subtracted from the outcomes.
            largest: the largest |g|.
        """
        final = _root_mean_square(self._ends, centre)
        (cut,) = _root_mean_square(self._cut[None], centre)
        total = np.bincount(self._pair, self._count, minlength=policy.size)
        share = self._count / np.maximum(total[self._pair], 1)
        first = np.searchsorted(self._pair, np.arange(policy.size + 1))
        if largest not in self._values:  # another scale: begin anew
            self._values = {}
        roots, means = np.empty_like(policy), []
        for untried in (0.0, largest):
            # What is not known of yet has the outcome of being cut off, as all has at the horizon.
            last = cut if cut >= 0.0 else untried
            values = np.where(final >= 0.0, final, last)
            before = self._values.get(untried, values[:0])
            values[: len(before)] = before
            _solve(
                first, self._following, share, policy, untried, roots, final, values,
                _MOST_SWEEPS, _CHANGE * largest,
            )  # fmt: skip
            self._values[untried] = values
            means.append(float(values[starts].mean()))
        return Solution(roots, values, *means)


def _root_mean_square(moments: Floats, centre: float) -> Floats:
    """Return [N] sqrt(mean (f - centre)^2) from [N, 3] counts and sums of f, f^2; -1 of none."""
    n, first, second = moments.T
    squares = second - 2.0 * centre * first + n * centre**2
    root: Floats = np.where(n > 0, np.sqrt(np.maximum(squares, 0.0) / np.maximum(n, 1.0)), -1.0)
    return root


def aim(policy: Floats, roots: Floats, floor: float) -> Floats:
    """Return q(a|s) ∝ p(a|s) (G(s, a) + floor · G(s)), [S, A]; p where G is 0 throughout.

    Args:
        policy: [S, A] probabilities of p.
        roots: [S, A] G.
        floor: share of the mean that every action keeps, so that one that G underrates is drawn.
    """
    mean = (policy * roots).sum(-1, keepdims=True)
    scores = policy * (roots + floor * mean)
    total = scores.sum(-1, keepdims=True)
    proposal: Floats = np.where(total > 0.0, scores / np.where(total > 0.0, total, 1.0), policy)
    return proposal


class Steps(NamedTuple):
    """N steps of whole episodes, one after the other.

    Attributes:
        features: [N, ...] what the critic's network is given.
        actions: [N] actions.
        log_p: [N, A] log-probabilities under p.
        ratio: [N] p/q of the action taken, under what drew it.
        last: [N] True at an episode's last step.
        outcomes: [N] f of the step's episode.
    """

    features: Tensor
    actions: Tensor
    log_p: Tensor
    ratio: Floats
    last: NDArray[np.bool_]
    outcomes: Floats


@_jit
def _traced_targets(
    values: Floats, taken: Floats, ratio: Floats, last: NDArray[np.bool_], ends: Floats
) -> Floats:
    """Return [N] targets of E_p|g|: Retrace(1) backwards (Munos et al. 2016), reward at the end."""
    targets = np.empty(len(ends))
    for i in range(len(ends) - 1, -1, -1):
        if last[i]:
            targets[i] = ends[i]
        else:
            trace = min(1.0, ratio[i + 1])
            targets[i] = values[i + 1] + trace * (targets[i + 1] - taken[i + 1])
    return targets


class NetworkCritic:
    """E_p|g| after each action, by a perceptron on observations.

    Args:
        n_features: numbers in an observation.
        n_actions: A.
        seed: of the weights and of the minibatches.
    """

    rounds = 5  # times that the targets are computed anew in one fit
    updates = 80  # steps of the optimizer a round
    minibatch = 1024

    def __init__(self, n_features: int, n_actions: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        sizes = (n_features, 64, 64, n_actions)
        layers: list[nn.Module] = []
        for size, width in pairwise(sizes):
            linear = nn.Linear(size, width, device="meta").to_empty(device="cpu")
            gain = 0.01 if width == n_actions else 1.4
            nn.init.orthogonal_(linear.weight, gain, generator=self._generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        self._network = nn.Sequential(*layers[:-1])
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=2e-3)

    @torch.no_grad()
    def roots(self, features: Tensor) -> Floats:
        """Return [N, A] E_p|g| in units of the largest |g|."""
        found: Floats = self._network(features.flatten(1)).sigmoid().double().numpy()
        return found

    def fit(self, steps: Steps, centre: float, largest: float) -> None:
        """Fit to the outcomes g = f - `centre` of all steps so far."""
        inputs = steps.features.flatten(1)
        policy = steps.log_p.exp().numpy()
        ends = np.abs(steps.outcomes - centre) / largest
        for _ in range(self.rounds):
            roots = self.roots(inputs)
            taken = roots[np.arange(len(roots)), steps.actions.numpy()]
            values = (policy * roots).sum(1)
            targets = _traced_targets(values, taken, steps.ratio, steps.last, ends)
            goal = torch.from_numpy(targets.clip(0.0, 1.0)).float()
            for _ in range(self.updates):
                i = torch.randint(len(goal), (self.minibatch,), generator=self._generator)
                logits = self._network(inputs[i]).gather(1, steps.actions[i, None])[:, 0]
                # The log-likelihood tells 0.001 from 0.01, to which squared errors are blind.
                loss = nn.functional.binary_cross_entropy_with_logits(logits, goal[i])
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
