"""What sampling estimates, computed exactly from the transition probabilities of a small MDP.

Values, success probability, expected length, the policy gradient, and the second moment of the
trajectory estimator of that gradient, on-policy or under an exploration policy: linear solves for
an unlimited horizon, recursions for a limited one. Policies are tables of probabilities, [S, A];
the gradient is with respect to their log-odds (softmax parameters), which have the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from awsgd_rl.exact_moments import Inverse, MomentStep, reaching

if TYPE_CHECKING:
    from awsgd_rl.envs.gridworld import TrapGridworld

Floats = NDArray[np.float64]
Transitions = Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]]

# Live probability below which the rest of a long horizon cannot change a float64 result.
NEGLIGIBLE = 1e-15


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite episodic MDP; an episode ends on arrival in a terminal state."""

    transition: csr_array
    """[S * A, S] probabilities; the rows `s * A + a` of terminal states are zero."""
    reward_mass: csr_array
    """[S * A, S] probability times reward, for each next state."""
    reward_square_mass: csr_array
    """[S * A, S] probability times squared reward, for each next state."""
    start: Floats
    """[S] distribution of the first state."""
    goal: NDArray[np.bool_]
    """[S] terminal states that count as success."""
    terminal: NDArray[np.bool_]
    """[S] states that end the episode."""

    @classmethod
    def from_gridworld(cls, env: TrapGridworld) -> TabularMDP:
        """Read a trap gridworld (`env.unwrapped` of a wrapped one)."""
        start = np.zeros(env.n_states)
        start[env.start] = 1.0
        goal = np.zeros(env.n_states, dtype=bool)
        goal[env.goal_cells] = True
        return cls.from_table(env.P, start, goal)

    @classmethod
    def from_table(
        cls, table: Transitions, start: ArrayLike, goal: ArrayLike | None = None
    ) -> TabularMDP:
        """Read the tables of Gymnasium's toy-text environments.

        Args:
            table: `P[state][action]`, a list of (probability, next state, reward, terminated).
            start: [S] distribution of the first state (`env.unwrapped.initial_state_distrib`).
            goal: [S] bool; by default the terminal states that are entered with a reward above 0.

        Raises:
            ValueError: a state is entered both with and without the episode's end.
        """
        n_states, n_actions = len(table), len(table[0])
        rows, columns, probabilities, rewards, ends = (
            np.array(values)
            for values in zip(
                *(
                    (state * n_actions + action, following, probability, reward, terminated)
                    for state in range(n_states)
                    for action in range(n_actions)
                    for probability, following, reward, terminated in table[state][action]
                ),
                strict=True,
            )
        )
        terminal = np.zeros(n_states, dtype=bool)
        terminal[columns[ends]] = True
        # A terminal state's own rows say nothing: the episode is over.
        live = ~terminal[rows // n_actions]
        mixed = np.unique(columns[live & ~ends & terminal[columns]])
        if mixed.size:
            raise ValueError(
                f"the states {mixed.tolist()} are entered both with and without the episode's end, "
                "expected one or the other: give each of them a second number for the end"
            )
        entered_well = np.zeros(n_states, dtype=bool)
        entered_well[columns[live & ends & (rewards > 0)]] = True
        shape = (n_states * n_actions, n_states)
        index = (rows[live], columns[live])
        mass = probabilities[live].astype(np.float64)
        reward = rewards[live].astype(np.float64)
        return cls(
            transition=csr_array((mass, index), shape=shape),
            reward_mass=csr_array((mass * reward, index), shape=shape),
            reward_square_mass=csr_array((mass * reward**2, index), shape=shape),
            start=np.asarray(start, dtype=np.float64),
            goal=entered_well if goal is None else np.asarray(goal, dtype=bool),
            terminal=terminal,
        )

    @property
    def n_states(self) -> int:
        """S."""
        return int(self.transition.shape[1])

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.transition.shape[0]) // self.n_states

    @property
    def reward(self) -> Floats:
        """[S, A] expected reward; 0 in terminal states."""
        return self.by_action(self.reward_mass.sum(axis=1))

    def state_values(
        self, policy: ArrayLike, discount: float, horizon: int | None = None
    ) -> Floats:
        """Return the expected discounted return from each state, [S].

        Args:
            policy: [S, A] action probabilities.
            discount: in [0, 1].
            horizon: number of steps left; None for no limit.

        Raises:
            ValueError: an argument is out of range, or the value is infinite or undefined: the
                discount is 1, there is no horizon, and the policy never ends from some state.
        """
        table = self._policy(policy)
        _check_range(discount, horizon)
        chain, reward = self.mix(table, self.transition), (table * self.reward).sum(axis=1)
        if horizon is None:
            self._check_ends(chain, discount)
            return Inverse(chain, discount).solve(reward)
        values = np.zeros(self.n_states)
        for _ in range(horizon):
            values = reward + discount * (chain @ values)
        return values

    def action_values(
        self, policy: ArrayLike, discount: float, horizon: int | None = None
    ) -> Floats:
        """Return the expected discounted return after each action, [S, A]; see `state_values`."""
        following = self.state_values(
            policy, discount, None if horizon is None else max(horizon - 1, 0)
        )
        if horizon == 0:
            return np.zeros((self.n_states, self.n_actions))
        return self.reward + discount * self.by_action(self.transition @ following)

    def success_probability(self, policy: ArrayLike, horizon: int | None = None) -> float:
        """Return the probability that an episode ends in a goal.

        Args:
            policy: [S, A] action probabilities.
            horizon: number of steps after which the episode is cut off; None for no limit.

        Raises:
            ValueError: `policy` or `horizon` is out of range.
        """
        table = self._policy(policy)
        _check_range(1.0, horizon)
        chain = self.mix(table, self.transition)
        if horizon is not None:
            return float(sum(mass[self.goal].sum() for mass in self._flow(chain, horizon)))
        # Elsewhere the probability is 0, and the system may be singular (an endless loop).
        hopeful = np.flatnonzero(reaching(chain, self.goal) & ~self.terminal)
        if not hopeful.size:
            return 0.0
        arrival = (chain @ self.goal.astype(np.float64))[hopeful]
        inside = chain[hopeful][:, hopeful]
        return float(self.start[hopeful] @ Inverse(inside, 1.0).solve(arrival))

    def expected_length(self, policy: ArrayLike, horizon: int | None = None) -> float:
        """Return the expected number of steps of an episode; inf if it may never end.

        Args:
            policy: [S, A] action probabilities.
            horizon: number of steps after which the episode is cut off; None for no limit.

        Raises:
            ValueError: `policy` or `horizon` is out of range.
        """
        table = self._policy(policy)
        _check_range(1.0, horizon)
        chain = self.mix(table, self.transition)
        if horizon is not None:
            live = self.start[~self.terminal].sum() if horizon else 0.0
            flow = self._flow(chain, max(horizon - 1, 0))
            return float(live + sum(mass[~self.terminal].sum() for mass in flow))
        visited = np.flatnonzero(reaching(chain.T.tocsr(), self.start > 0) & ~self.terminal)
        if np.any(~reaching(chain, self.terminal)[visited]):
            return inf
        inverse = Inverse(chain[visited][:, visited], 1.0)
        return float(self.start[visited] @ inverse.solve(np.ones(visited.size)))

    def expected_return(
        self, policy: ArrayLike, discount: float, horizon: int | None = None
    ) -> float:
        """Return the expected discounted return of an episode; see `state_values`."""
        return float(self.start @ self.state_values(policy, discount, horizon))

    def return_variance(
        self, policy: ArrayLike, discount: float, horizon: int | None = None
    ) -> float:
        """Return the variance of the discounted return of an episode; see `state_values`.

        Sobel (1982): the second moment has its own Bellman equation, with the squared discount.
        """
        table = self._policy(policy)
        _check_range(discount, horizon)
        step = MomentStep(self, table, table, discount)
        ones = np.ones(self.n_states)
        if horizon is None:
            self._check_ends(step.chain, discount)
            first = Inverse(step.chain, discount).solve(step.mixed_first(ones))
            second = Inverse(step.chain, discount**2).solve(step.mixed_second(ones, first))
        else:
            first, second = np.zeros(self.n_states), np.zeros(self.n_states)
            for _ in range(horizon):
                second = step.mixed_second(ones, first) + discount**2 * (step.chain @ second)
                first = step.mixed_first(ones) + discount * (step.chain @ first)
        return float(self.start @ second - (self.start @ first) ** 2)

    def policy_gradient(
        self, policy: ArrayLike, discount: float, horizon: int | None = None
    ) -> Floats:
        """Return the gradient of the expected discounted return by the log-odds, [S, A].

        `sum_t discount^t P(s_t = s) pi(a|s) (Q(s, a) - V(s))` (Sutton et al. 2000, theorem 1, with
        the discount of the visits kept).

        Args:
            policy: [S, A] action probabilities, the softmax of the log-odds.
            discount: in [0, 1].
            horizon: number of steps after which the episode is cut off; None for no limit.

        Raises:
            ValueError: as `state_values`.
        """
        table = self._policy(policy)
        _check_range(discount, horizon)
        chain = self.mix(table, self.transition)
        if horizon is not None:
            return self._finite_gradient(table, chain, discount, horizon)
        self._check_ends(chain, discount)
        inverse = Inverse(chain, discount)
        values = inverse.solve((table * self.reward).sum(axis=1))
        visits = inverse.solve_transposed(self.start)
        return visits[:, None] * self._advantage(table, values, values, discount)

    def gradient_second_moment(
        self,
        policy: ArrayLike,
        discount: float,
        *,
        baseline: ArrayLike | None = None,
        exploration: ArrayLike | None = None,
        horizon: int | None = None,
    ) -> float:
        """Return `E |g|^2` of the trajectory estimator of the policy gradient.

        `g = W sum_t discount^t (G_t - b(s_t)) grad log pi(a_t|s_t)`, with `G_t` the discounted
        return from step t on and `W` 1, or, under an exploration policy q, the importance weight
        of the whole trajectory, `prod_t pi(a_t|s_t) / q(a_t|s_t)`. The expectation of `W^2 f` is
        that of f with the step weights `pi^2 / q` in place of probabilities.

        For each state z, with `y_t` the part of g that z has from step t on, the moments `E[y]`,
        `E[G y]`, `E|y|^2` follow linear recursions whose sources are at z alone. So the whole is
        `sum_z n(z) s(z)` with n the visits discounted by the squared discount, and three columns of
        inverses for each z give s(z).

        Args:
            policy: [S, A] action probabilities, the softmax of the log-odds.
            discount: in [0, 1].
            baseline: [S] b; None for 0.
            exploration: [S, A] action probabilities q; None for the policy itself.
            horizon: number of steps after which the episode is cut off; None for no limit. With a
                horizon, memory is 16 S^2 A bytes.

        Returns:
            The second moment; inf if the weights' own second moment is infinite (no limit on the
            length, and `pi^2 / q` of spectral radius 1 or more).

        Raises:
            ValueError: as `state_values`, or q is 0 where the policy is not.
        """
        table = self._policy(policy)
        _check_range(discount, horizon)
        weight = table if exploration is None else _squared_ratio(table, self._policy(exploration))
        step = MomentStep(self, table, weight, discount)
        b = np.zeros(self.n_states) if baseline is None else np.asarray(baseline, np.float64)
        if b.shape != (self.n_states,) or not np.all(np.isfinite(b)):
            raise ValueError(
                f"baseline has shape {b.shape}, expected ({self.n_states},) finite numbers: "
                "pass one value for each state"
            )
        if horizon is not None:
            return step.finite_second_moment(b, horizon)
        if exploration is None:
            self._check_ends(step.chain, discount)
        return step.second_moment(b, importance=exploration is not None)

    def gradient_variance(
        self,
        policy: ArrayLike,
        discount: float,
        *,
        baseline: ArrayLike | None = None,
        exploration: ArrayLike | None = None,
        horizon: int | None = None,
    ) -> float:
        """Return the trace of the covariance of the estimator of `gradient_second_moment`."""
        second = self.gradient_second_moment(
            policy, discount, baseline=baseline, exploration=exploration, horizon=horizon
        )
        return second - float(np.sum(self.policy_gradient(policy, discount, horizon) ** 2))

    def _policy(self, policy: ArrayLike) -> Floats:
        table = np.asarray(policy, dtype=np.float64)
        shape = (self.n_states, self.n_actions)
        if table.shape != shape:
            raise ValueError(
                f"policy has shape {table.shape}, expected {shape}: "
                "pass the action probabilities of every state"
            )
        if not (np.all(table >= 0) and np.allclose(table.sum(axis=1), 1.0, atol=1e-6)):
            raise ValueError(
                "policy has rows that are no distributions, expected values of 0 or more that "
                "sum to 1: pass probabilities, not log-odds"
            )
        return table

    def by_action(self, flat: ArrayLike) -> Floats:
        """Return [S * A] numbers as [S, A]."""
        return np.asarray(flat, dtype=np.float64).reshape(self.n_states, self.n_actions)

    def mix(self, weight: Floats, matrix: csr_array) -> csr_array:
        """Return [S, S], the rows `s * A + a` of `matrix` added up with `weight` [S, A]."""
        pairs = np.arange(weight.size)
        rows = csr_array((weight.ravel(), (pairs // self.n_actions, pairs)))
        return csr_array(rows @ matrix)

    def _check_ends(self, chain: csr_array, discount: float) -> None:
        if discount < 1:
            return
        endless = np.flatnonzero(~reaching(chain, self.terminal))
        if endless.size:
            raise ValueError(
                f"policy never ends from {endless.size} states, such as {endless[0]}, expected an "
                "end from all of them: pass a discount below 1 or a horizon"
            )

    def _flow(self, chain: csr_array, horizon: int) -> Any:
        """Yield the distribution over states, [S], after each of `horizon` steps."""
        backwards = chain.T.tocsr()
        mass = self.start
        for _ in range(horizon):
            mass = backwards @ mass
            yield mass
            if mass[~self.terminal].sum() < NEGLIGIBLE:
                return

    def _advantage(
        self, table: Floats, values: Floats, following: Floats, discount: float
    ) -> Floats:
        """Return pi(a|s) (Q(s, a) - V(s)), [S, A]."""
        action_values = self.reward + discount * self.by_action(self.transition @ following)
        return table * (action_values - values[:, None])

    def _finite_gradient(
        self, table: Floats, chain: csr_array, discount: float, horizon: int
    ) -> Floats:
        # Visits go forward and values backward in time. Keeping every isqrt(horizon)-th of the
        # visits and making the others again costs one more pass, and little memory.
        stride = max(isqrt(horizon), 1)
        backwards = chain.T.tocsr()
        kept = [self.start]
        mass = self.start
        for time in range(1, horizon):
            mass = backwards @ mass
            if time % stride == 0:
                kept.append(mass)
        gradient = np.zeros((self.n_states, self.n_actions))
        reward = (table * self.reward).sum(axis=1)
        values = np.zeros(self.n_states)
        for block in range(len(kept) - 1, -1, -1):
            first = block * stride
            visits = [kept[block]]
            while first + len(visits) < min(first + stride, horizon):
                visits.append(backwards @ visits[-1])
            for time in range(first + len(visits) - 1, first - 1, -1):
                following, values = values, reward + discount * (chain @ values)
                scale = discount**time * visits[time - first][:, None]
                gradient += scale * self._advantage(table, values, following, discount)
        return gradient if horizon else np.zeros_like(gradient)


def _squared_ratio(policy: Floats, exploration: Floats) -> Floats:
    if np.any((exploration == 0) & (policy > 0)):
        raise ValueError(
            "exploration is 0 where the policy is not, expected more than 0 there: "
            "mix some of the policy into it"
        )
    return np.divide(policy**2, exploration, out=np.zeros_like(policy), where=policy > 0)


def _check_range(discount: float, horizon: int | None) -> None:
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount!r}, expected 0 to 1: pass such as discount=0.99")
    if horizon is not None and horizon < 0:
        raise ValueError(
            f"horizon is {horizon!r}, expected 0 or more steps: pass None for no limit"
        )
