"""Moments of the trajectory estimator of the policy gradient, for `awsgd_rl.exact`.

Written for unnormalised action weights, so that one derivation serves the on-policy estimator
(weights pi) and the importance-weighted one (weights pi^2 / q). `G` is the discounted return from a
step on; for a state z, `y` is the part of the gradient estimate that z has from that step on:

    G = r + gamma G'        y = [s = z] (G - b(z)) psi_a + gamma y'        psi_a = e_a - pi(.|z)

with a prime for the next step.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, eye_array
from scipy.sparse.linalg import splu

if TYPE_CHECKING:
    from awsgd_rl.exact import TabularMDP

Floats = NDArray[np.float64]

COLUMNS_AT_ONCE = 256


class Inverse:
    """`(I - discount * chain)^-1`, factorised."""

    def __init__(self, chain: csr_array, discount: float) -> None:
        system = eye_array(chain.shape[0], format="csc") - discount * csc_array(chain)
        # The diagonal dominates, so no pivoting is needed, and an ordering for symmetric patterns
        # (a grid's) has half the fill.
        self._factors = splu(
            csc_array(system),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    def solve(self, right: Floats) -> Floats:
        """Return the product with `right`, [S] or [S, n]."""
        return np.asarray(self._factors.solve(right))

    def solve_transposed(self, right: Floats) -> Floats:
        """Return the product of the transpose with `right`, [S]."""
        solution = self._factors.solve(right, trans="T")  # type: ignore[call-overload]
        return np.asarray(solution, dtype=np.float64)


class MomentStep:
    """One step of the moments of (G, y) under unnormalised action weights."""

    def __init__(self, mdp: TabularMDP, policy: Floats, weight: Floats, discount: float) -> None:
        self.mdp, self.policy, self.weight, self.discount = mdp, policy, weight, discount
        self.chain = mdp.mix(weight, mdp.transition)
        self.reward_chain = mdp.mix(weight, mdp.reward_mass)
        self.square_chain = mdp.mix(weight, mdp.reward_square_mass)

    def mixed_first(self, total: Floats) -> Floats:
        """Return the source of E[G], [S]; `total` [S] is the weight of all that follows."""
        return self.reward_chain @ total

    def mixed_second(self, total: Floats, first: Floats) -> Floats:
        """Return the source of E[G^2], [S]."""
        return self.square_chain @ total + 2 * self.discount * (self.reward_chain @ first)

    def second_moment(self, baseline: Floats, *, importance: bool) -> float:
        """Return E|g|^2 without a horizon."""
        mdp, gamma, n_actions = self.mdp, self.discount, self.mdp.n_actions
        total = np.ones(mdp.n_states)
        if importance:
            weights = self._total_weight()
            if weights is None:
                return inf
            total = weights
        inverse, inverse_square = Inverse(self.chain, gamma), Inverse(self.chain, gamma**2)
        first = inverse.solve(self.mixed_first(total))
        second = inverse_square.solve(self.mixed_second(total, first))
        u, w, own = self._sources(baseline, total, first, second)
        visits = inverse_square.solve_transposed(mdp.start)
        visited = np.flatnonzero((visits != 0) & ~mdp.terminal)
        moment = 0.0
        for begin in range(0, visited.size, COLUMNS_AT_ONCE):
            states = visited[begin : begin + COLUMNS_AT_ONCE]
            unit = np.zeros((mdp.n_states, states.size))
            unit[states, np.arange(states.size)] = 1.0
            y_column = inverse.solve(unit)
            gy_column = inverse_square.solve(unit)
            mixed_column = inverse_square.solve(self.reward_chain @ y_column)

            rows = (states[:, None] * n_actions + np.arange(n_actions)).ravel()

            def after(
                matrix: csr_array,
                column: Floats,
                rows: NDArray[np.int64] = rows,
                count: int = states.size,
            ) -> Floats:
                """Return [n, A]: each state's own column, expected after each of its actions."""
                product = (matrix[rows] @ column).reshape(count, n_actions, count)
                return np.asarray(product[np.arange(count), :, np.arange(count)])

            along_u = after(mdp.reward_mass, y_column) + gamma**2 * after(
                mdp.transition, mixed_column
            )
            along_u -= baseline[states, None] * after(mdp.transition, y_column)
            along_w = gamma * after(mdp.transition, gy_column)
            cross = along_u * self._psi_dot(u)[states] + along_w * self._psi_dot(w)[states]
            crossed = own[states] + 2 * gamma * (self.weight[states] * cross).sum(axis=1)
            moment += float(visits[states] @ crossed)
        return moment

    def finite_second_moment(self, baseline: Floats, horizon: int) -> float:
        """Return E|g|^2 of episodes that are cut off after `horizon` steps."""
        mdp, gamma, n = self.mdp, self.discount, self.mdp.n_states
        total, first, second, moment = np.ones(n), np.zeros(n), np.zeros(n), np.zeros(n)
        # E[y] and E[G y] from each state (first axis) for each z (second) and action (third).
        y, gy = np.zeros((n, n, mdp.n_actions)), np.zeros((n, n, mdp.n_actions))
        diagonal = np.arange(n)
        for _ in range(horizon):
            u, w, own = self._sources(baseline, total, first, second)
            cross = self._cross(baseline, y, gy)
            moment = own + 2 * gamma * cross + gamma**2 * (self.chain @ moment)
            flat_y, flat_gy = y.reshape(n, -1), gy.reshape(n, -1)
            gy = gamma * (self.reward_chain @ flat_y) + gamma**2 * (self.chain @ flat_gy)
            y = gamma * (self.chain @ flat_y)
            y, gy = y.reshape(n, n, -1), gy.reshape(n, n, -1)
            y[diagonal, diagonal] += u
            gy[diagonal, diagonal] += w
            second = self.mixed_second(total, first) + gamma**2 * (self.chain @ second)
            first = self.mixed_first(total) + gamma * (self.chain @ first)
            total = np.where(mdp.terminal, 1.0, self.chain @ total)
        return float(mdp.start @ moment)

    def _total_weight(self) -> Floats | None:
        """Return the expected product of all weights to come, [S], or None if it is infinite."""
        mdp = self.mdp
        live = np.flatnonzero(reaching(self.chain.T.tocsr(), mdp.start > 0) & ~mdp.terminal)
        inside = self.chain[live][:, live]
        try:
            inverse = Inverse(inside, 1.0)
        except RuntimeError:
            return None
        # For a matrix M of no negative entry, x = 1 + M x with x > 0 exists only if the spectral
        # radius of M is below 1 (Berman and Plemmons 1979, chapter 6, M-matrices).
        if not np.all(inverse.solve(np.ones(live.size)) > 0):
            return None
        total = np.ones(mdp.n_states)
        total[live] = inverse.solve((self.chain @ mdp.terminal.astype(np.float64))[live])
        return total

    def _sources(
        self, baseline: Floats, total: Floats, first: Floats, second: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return E[(G-b) psi], E[G (G-b) psi] ([S, A]) and E[(G-b)^2 |psi|^2] ([S])."""
        mdp, gamma, b = self.mdp, self.discount, baseline[:, None]
        zeroth = mdp.by_action(mdp.transition @ total)
        once = mdp.by_action(mdp.reward_mass @ total + gamma * (mdp.transition @ first))
        twice = mdp.by_action(
            mdp.reward_square_mass @ total
            + 2 * gamma * (mdp.reward_mass @ first)
            + gamma**2 * (mdp.transition @ second)
        )
        u = self._along_psi(self.weight * (once - b * zeroth))
        w = self._along_psi(self.weight * (twice - b * once))
        square = 1 - 2 * self.policy + (self.policy**2).sum(axis=1, keepdims=True)
        own = (self.weight * (twice - 2 * b * once + b**2 * zeroth) * square).sum(axis=1)
        return u, w, own

    def _cross(self, baseline: Floats, y: Floats, gy: Floats) -> Floats:
        """Return E[(G-b) psi . y'], [S], with z the state itself and y' the next step's y."""
        mdp, n, n_actions = self.mdp, self.mdp.n_states, self.mdp.n_actions
        own = np.arange(n)

        def after(matrix: csr_array, field: Floats) -> Floats:
            product = (matrix @ field.reshape(n, -1)).reshape(n, n_actions, n, n_actions)
            return np.asarray(product[own, :, own])

        expected = after(mdp.reward_mass, y) + self.discount * after(mdp.transition, gy)
        expected -= baseline[:, None, None] * after(mdp.transition, y)
        dots = np.einsum("saa->sa", expected) - np.einsum("sab,sb->sa", expected, self.policy)
        return np.asarray((self.weight * dots).sum(axis=1))

    def _along_psi(self, amount: Floats) -> Floats:
        """Return sum_a amount(s, a) psi_a, [S, A], with psi_a = e_a - pi."""
        centred: Floats = amount - self.policy * amount.sum(axis=1, keepdims=True)
        return centred

    def _psi_dot(self, vector: Floats) -> Floats:
        """Return psi_a . vector(s), [S, A]."""
        products: Floats = vector - (self.policy * vector).sum(axis=1, keepdims=True)
        return products


def reaching(chain: csr_array, target: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the states, [S] bool, from which `target` can be reached, `target` included."""
    reached = target
    while True:
        more = reached | (chain @ reached.astype(np.float64) > 0)
        if np.array_equal(more, reached):
            return reached
        reached = more
