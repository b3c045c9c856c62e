from math import inf
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from awsgd_rl.envs import TrapGridworld
from awsgd_rl.exact import TabularMDP

GRIDS: list[tuple[dict[str, Any], int]] = [
    ({"desc": ["SF", "HG"], "slip": 0.3}, 4),
    ({"desc": ["SFG"], "cell_rewards": {(0, 1): 3.0}}, 5),
    ({"desc": ["SF", "FG"]}, 5),
]


def small(**arguments: Any) -> TrapGridworld:
    return TrapGridworld(goal_reward=7.0, trap_reward=-5.0, **arguments)


def softmax_tables(n_states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    concentration = np.full(4, 3.0)
    policy, other = rng.dirichlet(concentration, n_states), rng.dirichlet(concentration, n_states)
    return policy, 0.5 * policy + 0.5 * other, rng.normal(size=n_states)


class Enumeration:
    """All trajectories of at most `horizon` steps, one by one."""

    def __init__(
        self,
        env: TrapGridworld,
        policy: np.ndarray,
        exploration: np.ndarray,
        baseline: np.ndarray,
        discount: float,
        horizon: int,
    ) -> None:
        self.env, self.policy, self.exploration = env, policy, exploration
        self.baseline, self.discount, self.horizon = baseline, discount, horizon
        self.total = self.success = self.length = self.first = self.second = 0.0
        self.moment = 0.0
        self.gradient = np.zeros_like(policy)
        self._walk(env.start, [], 1.0)

    def _walk(self, state: int, steps: list[tuple[int, int, float]], chance: float) -> None:
        if self.env.terminal[state] or len(steps) == self.horizon:
            self._count(state, steps, chance)
            return
        for action in range(4):
            for probability, following, reward, _ in self.env.P[state][action]:
                self._walk(following, [*steps, (state, action, reward)], chance * probability)

    def _count(self, state: int, steps: list[tuple[int, int, float]], chance: float) -> None:
        p = chance * np.prod([self.policy[s, a] for s, a, _ in steps])
        q = chance * np.prod([self.exploration[s, a] for s, a, _ in steps])
        gradient, to_go = np.zeros_like(self.policy), 0.0
        for time, (s, a, reward) in reversed(list(enumerate(steps))):
            to_go = reward + self.discount * to_go
            scale = self.discount**time * (to_go - self.baseline[s])
            gradient[s] -= scale * self.policy[s]
            gradient[s, a] += scale
        self.total += p
        self.success += p * (state in self.env.goal_cells)
        self.length += p * len(steps)
        self.first += p * to_go
        self.second += p * to_go**2
        self.gradient += p * gradient
        self.moment += q * (p / q) ** 2 * (gradient**2).sum()


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("arguments", "horizon"), GRIDS)
def test_limited_horizon_equals_enumeration(
    arguments: dict[str, Any], horizon: int, discount: float
) -> None:
    env = small(**arguments)
    mdp = TabularMDP.from_gridworld(env)
    policy, exploration, baseline = softmax_tables(env.n_states)
    every = Enumeration(env, policy, exploration, baseline, discount, horizon)
    assert every.total == pytest.approx(1)
    assert mdp.success_probability(policy, horizon) == pytest.approx(every.success)
    assert mdp.expected_length(policy, horizon) == pytest.approx(every.length)
    assert mdp.expected_return(policy, discount, horizon) == pytest.approx(every.first)
    variance = every.second - every.first**2
    assert mdp.return_variance(policy, discount, horizon) == pytest.approx(variance)
    np.testing.assert_allclose(
        mdp.policy_gradient(policy, discount, horizon), every.gradient, atol=1e-12
    )
    weighted = mdp.gradient_second_moment(
        policy, discount, baseline=baseline, exploration=exploration, horizon=horizon
    )
    assert weighted == pytest.approx(every.moment)
    on_policy = Enumeration(env, policy, policy, baseline, discount, horizon)
    plain = mdp.gradient_second_moment(policy, discount, baseline=baseline, horizon=horizon)
    assert plain == pytest.approx(on_policy.moment)
    trace = plain - (every.gradient**2).sum()
    assert mdp.gradient_variance(
        policy, discount, baseline=baseline, horizon=horizon
    ) == pytest.approx(trace)


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize(("arguments", "_"), GRIDS)
def test_no_limit_is_the_limit_of_long_horizons(
    arguments: dict[str, Any], _: int, discount: float
) -> None:
    mdp = TabularMDP.from_gridworld(small(**arguments))
    policy, exploration, b = softmax_tables(mdp.n_states)
    # Nearer to the policy: its weights have a finite second moment on all of these grids.
    exploration = 0.9 * policy + 0.1 * exploration
    long = 1500
    assert mdp.success_probability(policy) == pytest.approx(mdp.success_probability(policy, long))
    assert mdp.expected_length(policy) == pytest.approx(mdp.expected_length(policy, long))
    assert mdp.return_variance(policy, discount) == pytest.approx(
        mdp.return_variance(policy, discount, long)
    )
    np.testing.assert_allclose(
        mdp.state_values(policy, discount), mdp.state_values(policy, discount, long)
    )
    np.testing.assert_allclose(
        mdp.policy_gradient(policy, discount),
        mdp.policy_gradient(policy, discount, long),
        atol=1e-10,
    )
    for q in (None, exploration):
        moments = [
            mdp.gradient_second_moment(policy, discount, baseline=b, exploration=q, horizon=horizon)
            for horizon in (None, long)
        ]
        assert np.isfinite(moments[0])
        assert moments[0] == pytest.approx(moments[1])


def test_gradient_equals_finite_differences() -> None:
    mdp = TabularMDP.from_gridworld(small(size=3, traps=2, slip=0.1))
    rng = np.random.default_rng(1)
    log_odds = rng.normal(size=(9, 4))

    def value(table: np.ndarray) -> float:
        weights = np.exp(table)
        return mdp.expected_return(weights / weights.sum(axis=1, keepdims=True), 0.95)

    weights = np.exp(log_odds)
    gradient = mdp.policy_gradient(weights / weights.sum(axis=1, keepdims=True), 0.95)
    for _ in range(5):
        direction = rng.normal(size=(9, 4))
        slope = (value(log_odds + 1e-5 * direction) - value(log_odds - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-6)


def test_estimators_agree_with_samples() -> None:
    """Rollouts of the environment itself, with an exploration policy, within 5 errors."""
    discount, n = 0.97, 4000
    env = TrapGridworld(4, 3, 1, slip=0.1, goal_reward=10, trap_reward=-10, horizon=30)
    mdp = TabularMDP.from_gridworld(env)
    rng = np.random.default_rng(2)
    policy = rng.dirichlet(np.full(4, 4.0), 16)
    exploration = 0.7 * policy + 0.3 * rng.dirichlet(np.full(4, 4.0), 16)
    baseline = mdp.state_values(policy, discount)
    direction = rng.normal(size=(16, 4))
    env.reset(seed=0)
    cumulative = np.cumsum(exploration, axis=1)
    samples = np.empty((n, 6))
    for sample in samples:
        env.reset()
        steps, ended = [], False
        info: dict[str, Any] = {}
        while not ended:
            state = env.state
            action = min(int((cumulative[state] < rng.random()).sum()), 3)
            _, reward, terminated, truncated, info = env.step(action)
            steps.append((state, action, reward))
            ended = terminated or truncated
        weight = np.prod([policy[s, a] / exploration[s, a] for s, a, _ in steps])
        gradient, to_go = np.zeros((16, 4)), 0.0
        for time, (s, a, reward) in reversed(list(enumerate(steps))):
            to_go = reward + discount * to_go
            scale = discount**time * (to_go - baseline[s])
            gradient[s] -= scale * policy[s]
            gradient[s, a] += scale
        square = (gradient**2).sum()
        along = (gradient * direction).sum()
        sample[:] = [1, info["is_success"], len(steps), to_go, along, weight * square]
        sample *= weight
    exact = [
        1,
        mdp.success_probability(policy, 30),
        mdp.expected_length(policy, 30),
        mdp.expected_return(policy, discount, 30),
        (mdp.policy_gradient(policy, discount, 30) * direction).sum(),
        mdp.gradient_second_moment(
            policy, discount, baseline=baseline, exploration=exploration, horizon=30
        ),
    ]
    error = samples.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(samples.mean(axis=0) - exact) < 5 * error)
    assert np.all(error < 0.2 * np.abs(exact) + 0.5)


def test_infinite_weights_are_inf() -> None:
    # The exploration policy runs at once to the goal, where the policy may wander: every step of
    # wandering multiplies the second moment by more than 1.
    mdp = TabularMDP.from_gridworld(small(desc=["SFG"]))
    policy = np.tile([0.45, 0.05, 0.45, 0.05], (3, 1))
    hasty = np.tile([0.05, 0.05, 0.85, 0.05], (3, 1))
    assert mdp.gradient_second_moment(policy, 0.9, exploration=hasty) == inf
    assert mdp.gradient_variance(policy, 0.9, exploration=hasty) == inf
    assert np.isfinite(mdp.gradient_second_moment(policy, 0.9, exploration=policy))
    # With a limit it is finite, and grows without bound.
    short, long = (
        mdp.gradient_second_moment(policy, 0.9, exploration=hasty, horizon=horizon)
        for horizon in (20, 40)
    )
    assert long > 10 * short


def test_exploration_equal_to_the_policy_changes_nothing() -> None:
    mdp = TabularMDP.from_gridworld(small(size=4, traps=3, slip=0.2))
    policy, _, baseline = softmax_tables(16)
    plain = mdp.gradient_second_moment(policy, 0.9, baseline=baseline)
    same = mdp.gradient_second_moment(policy, 0.9, baseline=baseline, exploration=policy)
    assert same == pytest.approx(plain)


def test_endless_policies() -> None:
    mdp = TabularMDP.from_gridworld(small(desc=["SFG"]))
    left = np.tile([1.0, 0, 0, 0], (3, 1))
    assert mdp.success_probability(left) == 0
    assert mdp.expected_length(left) == inf
    assert mdp.expected_length(left, 12) == 12
    assert mdp.expected_return(left, 0.5) == pytest.approx(-2)
    assert mdp.expected_return(left, 1.0, 12) == pytest.approx(-12)
    for method in (mdp.state_values, mdp.policy_gradient, mdp.return_variance):
        with pytest.raises(ValueError, match="policy never ends"):
            method(left, 1.0)


def test_optimal_policy_has_the_known_values() -> None:
    mdp = TabularMDP.from_gridworld(small(desc=["SFG"]))
    right = np.tile([0, 0, 1.0, 0], (3, 1))
    assert mdp.success_probability(right) == 1
    assert mdp.success_probability(right, 1) == 0
    assert mdp.expected_length(right) == 2
    np.testing.assert_allclose(mdp.state_values(right, 0.5), [2.5, 7, 0])
    np.testing.assert_allclose(mdp.action_values(right, 0.5)[0], [0.25, 0.25, 2.5, 0.25])
    assert mdp.return_variance(right, 0.5) == pytest.approx(0)
    assert mdp.expected_length(right, 0) == 0
    assert mdp.expected_return(right, 0.5, 0) == 0
    assert not mdp.policy_gradient(right, 0.5, 0).any()


def test_toy_text_environments() -> None:
    lake = gym.make("FrozenLake-v1").unwrapped
    table, start = lake.P, lake.initial_state_distrib  # type: ignore[attr-defined]
    mdp = TabularMDP.from_table(table, start)
    np.testing.assert_array_equal(np.flatnonzero(mdp.goal), [15])
    ours = TabularMDP.from_gridworld(
        TrapGridworld(
            desc=["SFFF", "FHFH", "FFFH", "HFFG"],
            slip=2 / 3,
            goal_reward=1,
            trap_reward=0,
            step_reward=0,
        )
    )
    uniform = np.full((16, 4), 0.25)
    assert mdp.success_probability(uniform) == pytest.approx(ours.success_probability(uniform))
    np.testing.assert_allclose(
        mdp.policy_gradient(uniform, 0.99), ours.policy_gradient(uniform, 0.99), atol=1e-15
    )
    cliff = gym.make("CliffWalking-v1").unwrapped
    mdp = TabularMDP.from_table(cliff.P, cliff.initial_state_distrib, np.arange(48) == 47)  # type: ignore[attr-defined]
    assert mdp.success_probability(np.full((48, 4), 0.25)) == pytest.approx(1)


def test_sparse_at_size_80() -> None:
    env = TrapGridworld(80, 40)
    mdp = TabularMDP.from_gridworld(env)
    table = np.full((6400, 4), 0.02)
    table[:, 1:3] = 0.48
    assert 0 < mdp.success_probability(table) < 1
    assert mdp.expected_length(table) > 50
    values = mdp.state_values(table, 0.99)
    step = (table * mdp.action_values(table, 0.99)).sum(axis=1)
    np.testing.assert_allclose(values, step, atol=1e-9)
    gradient = mdp.policy_gradient(table, 0.99)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-9)
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mdp, p: mdp.state_values(p[:1], 0.9), r"policy has shape \(1, 4\)"),
        (lambda mdp, p: mdp.state_values(p * 2, 0.9), "no distributions"),
        (lambda mdp, p: mdp.state_values(p * np.nan, 0.9), "no distributions"),
        (lambda mdp, p: mdp.state_values(p, 1.1), "discount is 1.1"),
        (lambda mdp, p: mdp.success_probability(p, -1), "horizon is -1"),
        (lambda mdp, p: mdp.gradient_second_moment(p, 0.9, baseline=[1.0]), "baseline has shape"),
        (
            lambda mdp, p: mdp.gradient_second_moment(
                p, 0.9, exploration=np.tile([0, 0, 0, 1.0], (3, 1))
            ),
            "exploration is 0",
        ),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    mdp = TabularMDP.from_gridworld(small(desc=["SFG"]))
    with pytest.raises(ValueError, match=message) as caught:
        call(mdp, np.full((3, 4), 0.25))
    assert "\n" not in str(caught.value)


def test_a_state_that_ends_only_sometimes_is_refused() -> None:
    table = {0: {0: [(0.5, 1, 0.0, True), (0.5, 1, 0.0, False)]}, 1: {0: [(1.0, 0, 0.0, False)]}}
    with pytest.raises(ValueError, match=r"states \[1\] are entered both"):
        TabularMDP.from_table(table, [1.0, 0.0])
