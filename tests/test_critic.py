"""The table critic, against the exact values and the exact gradient."""

import numpy as np
import pytest
import torch

from awsgd_rl.agents import AWSGD, critic, tables
from awsgd_rl.agents.tabular import TabularLearner
from awsgd_rl.envs.gridworld import TrapGridworld
from awsgd_rl.exact import TabularMDP

DISCOUNT = 0.9


def make_learner(slip: float = 0.0, memory: int = 0) -> TabularLearner:
    env = TrapGridworld(size=3, traps=1, layout_seed=0, slip=slip, horizon=200)
    learner = TabularLearner(
        env,
        seed=0,
        learning_rate=0.5,
        discount=DISCOUNT,
        critic=True,
        memory=memory,
    )
    logits = np.random.default_rng(1).normal(size=(env.n_states, 4))
    learner.target = tables.make_table(logits)
    return learner


def teach(learner: TabularLearner, episodes: int, passes: int):
    """Show a critic episodes, and back up until nothing changes."""
    shown = learner.collect(episodes, 0)
    ones = torch.ones(episodes, dtype=torch.float64)
    learner.fit_values(shown, ones)
    for _ in range(passes):
        errors = critic.back_up(
            shown.rows, shown.which, learner.target, learner.grid, DISCOUNT, learner.critic
        )
    return shown, ones, errors


def exact_values(learner: TabularLearner):
    mdp = TabularMDP.from_gridworld(learner.env)
    return learner.reward_scale * mdp.action_values(learner.policy_table(), DISCOUNT)


def test_backed_up_to_the_end_it_is_exact_without_slips():
    learner = make_learner()
    teach(learner, 500, 40)
    tried = learner.critic.moves.sum(-1) > 0
    assert tried[~learner.env.terminal].mean() > 0.9  # or there is little to compare
    np.testing.assert_allclose(learner.critic.q[tried], exact_values(learner)[tried], atol=1e-10)


def test_with_slips_it_is_exact_for_the_frequencies_seen_and_tends_to_the_truth():
    errors = []
    for episodes in (200, 20_000):
        learner = make_learner(slip=0.3)
        teach(learner, episodes, 1 if episodes > 1000 else 40)
        seen = learner.critic.moves.sum(-1)
        error = np.abs(learner.critic.q - exact_values(learner))
        errors.append(np.average(error, weights=seen))
    assert errors[1] < 0.3 * errors[0]
    learner = make_learner(slip=0.3)
    shown, _, _ = teach(learner, 500, 60)
    # Every move is counted, under the action that was taken and the direction that it went.
    counts = shown.rows.sums
    first, size = shown.rows.first, shown.rows.size
    taken = sum(counts[f : f + n, :, tables.COUNT].sum() for f, n in zip(first, size, strict=True))
    assert learner.critic.moves.sum() == taken
    # The solution of the Bellman equation with the frequencies seen.
    q, moves, grid = learner.critic.q, learner.critic.moves, learner.grid
    value = (learner.target.probability * q).sum(1)
    value[grid.end >= 0] = 0.0
    target = grid.reward + DISCOUNT * value[grid.next_state]
    tried = moves.sum(-1) > 0
    shares = moves[tried] / moves[tried].sum(-1, keepdims=True)
    states = np.nonzero(tried)[0]
    np.testing.assert_allclose(q[tried], (shares * target[states]).sum(-1), atol=1e-9)


def test_what_was_never_tried_keeps_the_value_zero():
    learner = make_learner()
    teach(learner, 3, 5)
    untried = learner.critic.moves.sum(-1) == 0
    assert untried.any()
    assert not learner.critic.q[untried].any()


def test_errors_are_what_the_backups_changed_and_vanish():
    learner = make_learner()
    shown = learner.collect(1, 0)
    critic.observe(shown.rows, shown.which, learner.critic)
    arguments = (shown.rows, shown.which, learner.target, learner.grid, DISCOUNT, learner.critic)
    before = learner.critic.q.copy()
    errors = critic.back_up(*arguments)
    assert errors[0] == pytest.approx(np.abs(learner.critic.q - before).sum())
    assert errors[0] > 0
    for _ in range(200):
        errors = critic.back_up(*arguments)
    assert errors[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_gradient_is_unbiased_with_the_exact_critic(slip):
    """Of all actions at the states visited: only these visits are sampled."""
    learner = make_learner(slip)
    learner.critic.q[:] = exact_values(learner)
    n = 20_000
    fresh = learner.collect(n, 0)
    mdp = TabularMDP.from_gridworld(learner.env)
    exact = learner.reward_scale * mdp.policy_gradient(learner.policy_table(), DISCOUNT)
    parts = np.array_split(np.arange(n), 100)
    means = []
    for part in parts:
        weights = torch.zeros(n, dtype=torch.float64)
        weights[part] = n / len(part)
        means.append(learner.gradient(fresh, weights))
    error = np.std(means, axis=0, ddof=1) / 10
    assert (np.abs(np.mean(means, axis=0) - exact) <= 5 * error + 1e-12).all()
    assert (np.abs(exact) > 5 * error).mean() > 0.3


def test_bias_is_the_critics_error_and_bounded_by_it():
    """|bias| ≤ 2 E[sum_t discount^t] max |Q̂ - Q| per entry: p and the advantage's error."""
    learner = make_learner()
    exact = exact_values(learner)
    noise = 0.05 * np.random.default_rng(2).normal(size=exact.shape)
    n = 20_000
    fresh = learner.collect(n, 0)
    ones = torch.ones(n, dtype=torch.float64)
    learner.critic.q[:] = exact
    right = learner.gradient(fresh, ones)
    learner.critic.q[:] = exact + noise
    bias = learner.gradient(fresh, ones) - right
    visits = np.zeros(learner.env.n_states)
    for b in range(n):
        span = slice(fresh.rows.first[b], fresh.rows.first[b] + fresh.rows.size[b])
        discounted = fresh.rows.sums[span, :, tables.DISCOUNTED].sum(1)
        visits[fresh.rows.state[span]] += discounted / n
    assert np.abs(bias).max() > 1e-4
    assert (np.abs(bias) <= 2 * visits[:, None] * np.abs(noise).max() + 1e-12).all()


def test_it_varies_far_less_than_the_gradient_of_the_returns():
    learner = make_learner()
    learner.critic.q[:] = exact_values(learner)
    fresh = learner.collect(5000, 0)
    with_critic = learner.signal(fresh).square().mean()
    learner.critic, known = None, learner.critic
    learner.values[:] = (learner.target.probability * known.q).sum(1)
    assert with_critic < 0.5 * learner.signal(fresh).square().mean()


def test_replay_in_one_kernel_is_the_same_as_step_by_step():
    one, other = make_learner(memory=12), make_learner(memory=12)
    rng = np.random.default_rng(3)
    slots = torch.from_numpy(rng.integers(12, size=(5, 4)))
    weights = torch.from_numpy(rng.random((5, 4)))
    for learner in (one, other):
        fresh = learner.collect(12, 0)
        fresh.log_drawn = learner.log_target(fresh)
        learner.fit_values(fresh, torch.ones(12, dtype=torch.float64))
        learner.remember(fresh)
    scores = one.replay(slots, weights, 2.0)
    for u in range(5):
        past = other.recall(slots[u])
        errors = critic.back_up(
            past.rows, past.which, other.target, other.grid, DISCOUNT, other.critic
        )
        np.testing.assert_array_equal(errors, scores[u])
        ratio = (other.log_target(past) - past.log_drawn).exp().clamp(max=2.0)
        other.ascend(past, ratio * weights[u])
    np.testing.assert_allclose(one.target.logits, other.target.logits, rtol=1e-12)
    assert not one._scratch.any()


def test_saved_and_loaded_with_the_agent(tmp_path):
    env = TrapGridworld(size=4, traps=2, layout_seed=1, slip=0.1)
    agent = AWSGD("TablePolicy", env, seed=0).learn(total_episodes=100)
    agent.save(tmp_path / "agent")
    again = AWSGD.load(tmp_path / "agent", env=env)
    for name, part in agent.learner.state_dict().items():
        torch.testing.assert_close(again.learner.state_dict()[name], part, rtol=0, atol=0)
    assert again.learner.critic.q.any()
    assert again.learner.rule.visits.any()


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, True),
        ({"critic": False}, False),
        ({"variant": "mixture"}, False),
        ({"baseline": False}, False),
        ({"reward_to_go": False}, False),
    ],
)
def test_when_it_is_used(options, used):
    agent = AWSGD("TablePolicy", TrapGridworld(size=4, traps=1), **options)
    assert (agent.learner.critic is not None) == used
    assert agent.config.learning_rate == (16.0 if used else 4.0)


@pytest.mark.parametrize(
    ("policy", "env", "options"),
    [
        ("MlpPolicy", "CartPole-v1", {}),
        ("TablePolicy", "FrozenLake-v1", {}),
        ("TablePolicy", "awsgd_rl/TrapGridworld-v0", {"variant": "mixture"}),
    ],
)
def test_where_it_is_not_possible(policy, env, options):
    agent = AWSGD(policy, env, **options)
    assert agent.config.critic is False
    if policy == "TablePolicy":
        assert agent.config.learning_rate == 4.0
    with pytest.raises(ValueError, match="got critic=True, expected it only for TablePolicy"):
        AWSGD(policy, env, critic=True, **options)


def test_awsgd_learns_a_map_with_slips():
    env = TrapGridworld(size=6, traps=3, layout_seed=0, slip=0.05)
    agent = AWSGD("TablePolicy", env, seed=0).learn(total_episodes=1500)
    mdp = TabularMDP.from_gridworld(env)
    before = mdp.success_probability(np.full((env.n_states, 4), 0.25), env.horizon)
    after = mdp.success_probability(agent.policy_table(), env.horizon)
    assert after > 0.9 > before
