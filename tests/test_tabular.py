"""The tabular learner: unbiased where it says so, and a memory that keeps what it was given."""

import numpy as np
import pytest
import torch

from awsgd_rl.agents import AWSGD, Reinforce, tables
from awsgd_rl.agents.tabular import TabularLearner
from awsgd_rl.envs.gridworld import TrapGridworld
from awsgd_rl.exact import TabularMDP

DISCOUNT = 0.9


def make_env(slip=0.0):
    return TrapGridworld(desc=["SFF", "FHF", "FFG"], slip=slip, horizon=12)


def set_policies(learner, seed=0):
    rng = np.random.default_rng(seed)
    shape = learner.target.logits.shape
    learner.target = tables.make_table(rng.normal(size=shape))
    learner.exploration = tables.make_table(learner.target.logits + 0.3 * rng.normal(size=shape))
    learner.values = rng.normal(size=shape[0])


def exact_gradient(learner, env):
    gradient = TabularMDP.from_gridworld(env).policy_gradient(
        learner.target.probability, DISCOUNT, horizon=env.horizon
    )
    return gradient * learner.reward_scale


def assert_unbiased(learner, trajectories, weights, exact, groups):
    """The weighted mean gradient agrees with `exact` within 5 standard errors, entry by entry.

    `groups` are the strata that were drawn independently, as slices of the batch.
    """
    n = len(trajectories)
    estimate = learner.gradient(trajectories, weights)
    variance = np.zeros_like(exact)
    for group in groups:
        parts = np.array_split(np.arange(n)[group], 200)
        means = []
        for part in parts:
            one = torch.zeros(n, dtype=torch.float64)
            one[part] = weights[part]
            means.append(learner.gradient(trajectories, one))
        variance += len(parts) * np.var(means, axis=0, ddof=1)
    error = np.sqrt(variance)
    assert (np.abs(estimate - exact) <= 5 * error + 1e-12).all()
    assert (np.abs(exact) > 5 * error).mean() > 0.3  # and the test can tell


@pytest.mark.parametrize("slip", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_fresh_batches_are_unbiased_on_policy_mixed_and_off_policy(share, slip):
    env = make_env(slip)
    agent = AWSGD(
        "TablePolicy",
        env,
        seed=1,
        discount=DISCOUNT,
        variant="paper" if share == 1.0 else "mixture",
        exploration_share=min(share, 0.5),
    )
    learner = agent.learner
    set_policies(learner)
    n = 40_000
    explored = round(share * n)
    fresh = learner.collect(n - explored, explored)
    weights, _ = agent.weigh(fresh, share)
    if 0 < share < 1:
        assert weights.max() <= 1 / (1 - share) + 1e-9
    assert weights.mean() == pytest.approx(1.0, abs=5 * float(weights.std()) / n**0.5 + 1e-9)
    strata = [slice(0, n - explored), slice(n - explored, n)]
    strata = [s for s in strata if s.stop > s.start]
    assert_unbiased(learner, fresh, weights, exact_gradient(learner, env), strata)


def test_raw_returns_without_baseline_are_unbiased_too():
    env = make_env()
    learner = TabularLearner(
        env, seed=0, learning_rate=1.0, discount=DISCOUNT, reward_to_go=False, baseline=False
    )
    set_policies(learner)
    learner.values[:] = 0
    n = 80_000
    fresh = learner.collect(n, 0)
    weights = torch.ones(n, dtype=torch.float64)
    assert_unbiased(learner, fresh, weights, exact_gradient(learner, env), [slice(0, n)])


def test_replayed_trajectories_are_unbiased_without_the_clip():
    """Drawn by an older policy, weighted by p_now / p_drawn, and drawn again from the table."""
    env = make_env()
    n = 40_000
    options = {"discount": DISCOUNT, "memory": n, "batch_size": n, "critic": False}
    agent = AWSGD("TablePolicy", env, seed=3, **options)
    learner = agent.learner
    set_policies(learner)
    fresh = learner.collect(n, 0)
    agent.weigh(fresh, 0.0)
    slots = learner.remember(fresh)
    agent.table.fill(n)
    agent.table.set_scores(slots, learner.signal(fresh))
    old = learner.target.logits
    moved = old + 0.1 * np.random.default_rng(5).normal(size=old.shape)
    learner.target = tables.make_table(moved)
    draw = agent.table.draw(n, generator=torch.Generator().manual_seed(0))
    past = learner.recall(draw.items)
    ratio = (learner.log_target(past) - past.log_drawn).exp()
    exact = exact_gradient(learner, env)
    # First the memory's own mean: unbiased over what was collected.
    whole = learner.recall(slots)
    all_ratios = (learner.log_target(whole) - whole.log_drawn).exp()
    assert_unbiased(learner, whole, all_ratios, exact, [slice(0, n)])
    # Then the draws from it: unbiased for the memory's mean.
    weights = ratio * (-np.log(n) - draw.log_q).exp()
    memory_mean = learner.gradient(whole, all_ratios)
    assert_unbiased(learner, past, weights, memory_mean, [slice(0, n)])


def test_tau_step_is_the_gradient_of_the_mixtures_second_moment():
    env = make_env()
    agent = AWSGD(
        "TablePolicy", env, seed=2, discount=DISCOUNT, variant="mixture", exploration_share=0.5
    )
    learner = agent.learner
    set_policies(learner)
    n = 200_000
    fresh = learner.collect(n // 2, n // 2)
    weights, ratio = agent.weigh(fresh, 0.5)
    norms = weights * learner.signal(fresh)
    coefficients = norms.square() * ratio
    before = learner.exploration.logits.copy()
    learner.exploration_learning_rate, learner.exploration_bound = 1e-9, 1e9
    learner.ascend_exploration(fresh, coefficients)
    step = (learner.exploration.logits - before) / 1e-9
    # E_m |w g|^2 as a function of tau, on the same trajectories: mean of w(tau) |g|^2, drawn by
    # p, whose derivative is minus the step in expectation. Common draws make it exact enough.
    target_only = learner.collect(n, 0)
    log_p = learner.log_target(target_only)
    squared = learner.signal(target_only).square()

    def second_moment(logits):
        learner.exploration = tables.make_table(logits)
        log_q = learner.log_exploration(target_only)
        return 2 / (1 + (log_q - log_p).exp()) * squared

    for s, a in [(0, 1), (0, 2), (3, 1)]:
        high, low = before.copy(), before.copy()
        high[s, a] += 1e-4
        low[s, a] -= 1e-4
        each = (second_moment(high) - second_moment(low)) / 2e-4
        error = float(each.std()) / n**0.5
        assert abs(step[s, a] + float(each.mean())) <= 5 * 2 * error


def test_memory_keeps_the_last_trajectories_through_growing_and_squeezing():
    env = TrapGridworld(size=6, traps=3, layout_seed=1)
    learner = TabularLearner(env, seed=0, learning_rate=1.0, memory=37)
    set_policies(learner)
    expected = {}
    for batch in range(60):
        n = 1 + batch % 20
        fresh = learner.collect(n, 0)
        fresh.log_drawn = learner.log_target(fresh)
        slots = learner.remember(fresh)
        norms, log_q = learner.signal(fresh), learner.log_exploration(fresh)
        for slot, *numbers in zip(
            slots.tolist(), norms.tolist(), fresh.log_drawn.tolist(), log_q.tolist(), strict=True
        ):
            expected[slot] = numbers
        held = torch.tensor(sorted(expected))
        past = learner.recall(held)
        got = torch.stack([learner.signal(past), past.log_drawn, learner.log_exploration(past)], 1)
        torch.testing.assert_close(
            got, torch.tensor([expected[int(s)] for s in held], dtype=torch.float64), rtol=0, atol=0
        )
    assert learner.memory.stored == 37


def test_a_batch_larger_than_the_memory_is_refused():
    learner = TabularLearner(make_env(), seed=0, learning_rate=1.0, memory=5)
    with pytest.raises(ValueError, match=r"6 trajectories for a memory of 5"):
        learner.remember(learner.collect(6, 0))


def test_the_papers_tau_is_free_and_the_others_is_fitted_to_the_target_policy():
    free = AWSGD("TablePolicy", make_env(), seed=0, variant="paper")
    fitted = AWSGD("TablePolicy", make_env(), seed=0, variant="mixture")
    for agent in (free, fitted):
        before = agent.exploration_table()
        fresh = agent.learner.collect(0, 20)
        agent.learner.ascend(fresh, torch.ones(20, dtype=torch.float64))
        assert np.array_equal(agent.exploration_table(), before) == (agent is free)
    share = fitted.learner.rule.uniform_share
    # Without evidence Q_τ is its prior.
    prior = (1 - share) * fitted.policy_table() + share / 4
    np.testing.assert_allclose(fitted.exploration_table(), prior)


def test_one_update_of_reinforce_is_one_step_along_the_mean_gradient():
    env = make_env()
    agent = Reinforce("TablePolicy", env, seed=4, discount=DISCOUNT, learning_rate=0.5)
    twin = Reinforce("TablePolicy", env, seed=4, discount=DISCOUNT, learning_rate=0.5)
    agent.learn(total_episodes=20)
    fresh = twin.learner.collect(20, 0)
    gradient = twin.learner.gradient(fresh, torch.ones(20, dtype=torch.float64))
    np.testing.assert_allclose(agent.learner.target.logits, 0.5 * gradient)
