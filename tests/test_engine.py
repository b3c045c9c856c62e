"""The compiled engine against the environment itself, plain Python and enumeration."""

import itertools
import math

import numpy as np
import pytest

from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.tabular import grid_of
from awsgd_rl.envs.gridworld import TrapGridworld

DISCOUNT = 0.9


def tiny(slip=0.0, horizon=4):
    return TrapGridworld(desc=["SF", "HG"], slip=slip, horizon=horizon)


def two_tables(env, seed=0):
    rng = np.random.default_rng(seed)
    shape = (env.n_states, 4)
    return tables.make_table(rng.normal(size=shape)), tables.make_table(rng.normal(size=shape))


def episodes_of(env):
    """Every action sequence of the deterministic grid, as its list of (state, action, reward)."""
    for actions in itertools.product(range(4), repeat=env.horizon):
        s, steps = env.start, []
        for a in actions:
            steps.append((s, a, env.move_reward[s, a]))
            s = env.next_state[s, a]
            if env.terminal[s]:
                break
        else:
            yield steps
            continue
        # One representative of all the sequences that go on after the end.
        if all(a == 0 for a in actions[len(steps) :]):
            yield steps


def gradient_of(steps, policy, values, reward_to_go=True):
    gradient = np.zeros_like(policy)
    power = DISCOUNT ** np.arange(len(steps))
    rewards = power * np.array([r for *_, r in steps])
    for t, (s, a, _) in enumerate(steps):
        weight = (rewards[t:] if reward_to_go else rewards).sum() - power[t] * values[s]
        gradient[s] -= weight * policy[s]
        gradient[s, a] += weight
    return gradient


def dense(rows, which, weights, table, values):
    scratch = np.zeros((table.logits.shape[0], 5))
    tables.add_gradients(rows, which, weights, table, values, scratch)
    return scratch[:, :4]


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_every_episode_has_the_gradient_probability_and_return_of_plain_python(reward_to_go):
    env = tiny()
    target, _ = two_tables(env)
    values = np.random.default_rng(1).normal(size=env.n_states) * 100 * reward_to_go
    by_return = {}
    for steps in episodes_of(env):
        counts = np.zeros((env.n_states, 4))
        for s, a, _ in steps:
            counts[s, a] += 1
        key = (counts.tobytes(), round(sum(DISCOUNT**t * r for t, (*_, r) in enumerate(steps)), 9))
        by_return.setdefault(key, []).append(
            gradient_of(steps, target.probability, values, reward_to_go)
        )
    rows, drawn = engine.rollout(
        grid_of(env), target, target, 2000, 0, discount=DISCOUNT, seed=0, reward_to_go=reward_to_go
    )
    norms = tables.gradient_norms(rows, np.arange(2000), target, values)
    log_p = tables.log_probability(rows, np.arange(2000), target)
    assert len(np.unique(drawn.length)) > 2
    for b in range(2000):
        counts = np.zeros((env.n_states, 4))
        which = slice(rows.first[b], rows.first[b] + rows.size[b])
        counts[rows.state[which]] = rows.sums[which, :, tables.COUNT]
        assert counts.sum() == drawn.length[b]
        assert log_p[b] == pytest.approx((counts * target.log_probability).sum())
        gradient = dense(rows, np.array([b]), np.ones(1), target, values)
        candidates = by_return[counts.tobytes(), round(drawn.total[b], 9)]
        assert any(np.allclose(gradient, candidate) for candidate in candidates)
        assert norms[b] == pytest.approx(np.linalg.norm(gradient))


def test_mean_gradient_is_that_of_enumeration_within_five_standard_errors():
    env = tiny(horizon=5)
    target, exploration = two_tables(env)
    values = np.array([1.0, -2.0, 3.0, 0.0])
    exact = np.zeros((env.n_states, 4))
    mass = 0.0
    for steps in episodes_of(env):
        p = math.prod(target.probability[s, a] for s, a, _ in steps)
        mass += p
        exact += p * gradient_of(steps, target.probability, values)
    assert mass == pytest.approx(1.0)
    n = 40_000
    rows, _drawn = engine.rollout(
        grid_of(env), target, exploration, n // 2, n // 2, discount=DISCOUNT, seed=3
    )
    log_p = tables.log_probability(rows, np.arange(n), target)
    log_q = tables.log_probability(rows, np.arange(n), exploration)
    weights = np.exp(log_p - np.logaddexp(log_p, log_q) + math.log(2.0))
    each = np.stack(
        [dense(rows, np.array([b]), weights[b : b + 1], target, values) for b in range(n)]
    )
    halves = each.reshape(2, n // 2, *exact.shape)
    error = np.sqrt((halves.var(1, ddof=1) / (n // 2)).sum(0)) / 2
    assert (np.abs(each.mean(0) - exact) <= 5 * error + 1e-9).all()
    assert (np.abs(exact) > 10 * error).any()  # the test can tell a wrong gradient


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_transitions_are_the_environments(slip):
    env = TrapGridworld(size=4, traps=2, layout_seed=1, slip=slip, horizon=1)
    grid = grid_of(env)
    n = 20_000
    expected = env.transition_matrix().toarray().reshape(env.n_states, 4, env.n_states)
    target, _ = two_tables(env)
    for start in np.flatnonzero(~env.terminal)[:6]:
        _rows, drawn = engine.rollout(
            grid._replace(start=int(start)), target, target, n, 0, discount=1.0, seed=int(start)
        )
        p_goal = (target.probability[start] @ expected[start])[env.goal_cells].sum()
        p_trap = (target.probability[start] @ expected[start])[env.trap_cells].sum()
        for p, end in ((p_goal, engine.GOAL), (p_trap, engine.TRAP)):
            error = math.sqrt(p * (1 - p) / n)
            assert abs((drawn.end == end).mean() - p) <= 5 * error


def test_a_batch_is_the_same_for_any_number_of_threads():
    env = TrapGridworld(size=6, traps=4, layout_seed=0, slip=0.1)
    target, exploration = two_tables(env)
    batches = [
        engine.rollout(
            grid_of(env), target, exploration, 300, 300, discount=0.99, seed=7, threads=threads
        )
        for threads in (1, 2, 3)
    ]
    rows_of, (first, *_, last) = zip(*batches, strict=True)
    np.testing.assert_array_equal(first.total, last.total)
    np.testing.assert_array_equal(first.length, last.length)
    np.testing.assert_array_equal(
        tables.log_probability(rows_of[0], np.arange(600), exploration),
        tables.log_probability(rows_of[-1], np.arange(600), exploration),
    )


def test_an_action_of_probability_zero_is_never_drawn():
    env = TrapGridworld(size=2, traps=0, horizon=50)
    logits = np.zeros((env.n_states, 4))
    logits[:, 1:3] = -1e6  # down and right underflow to 0: the goal cannot be reached
    table = tables.make_table(logits)
    assert (table.probability[:, 1:3] == 0).all()
    rows, drawn = engine.rollout(grid_of(env), table, table, 1000, 0, discount=1.0, seed=0)
    assert (drawn.end == engine.HORIZON).all()
    assert (drawn.length == 50).all()
    assert np.isfinite(tables.log_probability(rows, np.arange(1000), table)).all()


def test_the_last_action_is_not_drawn_through_rounding():
    logits = np.array([[0.1, 0.3, 0.2, -1e6]])
    cumulative = tables.make_table(logits).cumulative
    assert (cumulative[0, 2:] == np.inf).all()


def test_log_gradients_are_the_score_function():
    env = tiny()
    target, _ = two_tables(env)
    rows, _drawn = engine.rollout(grid_of(env), target, target, 50, 0, discount=1.0, seed=2)
    which = np.arange(50)
    weights = np.random.default_rng(0).normal(size=50)
    scratch = np.zeros((env.n_states, 5))
    touched = tables.add_log_gradients(rows, which, weights, target, scratch)
    step = 1e-6
    for s, a in itertools.product(range(env.n_states), range(4)):
        moved = [target.logits.copy(), target.logits.copy()]
        moved[0][s, a] -= step
        moved[1][s, a] += step
        low, high = (
            weights @ tables.log_probability(rows, which, tables.make_table(m)) for m in moved
        )
        assert scratch[s, a] == pytest.approx((high - low) / (2 * step), abs=1e-5)
    tables.clear(touched, scratch)
    assert not scratch.any()


def test_values_move_to_the_mean_return_by_one_share_a_visit():
    env = TrapGridworld(desc=["SG"], horizon=9)
    table = tables.make_table(np.zeros((env.n_states, 4)))
    rows, drawn = engine.rollout(grid_of(env), table, table, 4, 0, discount=0.5, seed=1)
    values = np.array([10.0, 7.0])
    tables.fit_values(rows, np.arange(4), np.ones(4), values, 0.25)
    sums = rows.sums[: rows.size.sum()]
    visits = sums[..., tables.COUNT].sum()
    mean = sums[..., tables.RETURNS].sum() / sums[..., tables.DISCOUNTED].sum()
    assert visits == drawn.length.sum()
    assert values[0] == pytest.approx(10 + (1 - 0.75**visits) * (mean - 10))
    assert values[1] == 7.0  # a terminal state is never acted in
