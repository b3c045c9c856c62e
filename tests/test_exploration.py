"""The learned exploration policy: its fit is the closed form, and its use is unbiased and pays."""

import itertools

import numpy as np
import pytest
import torch

from awsgd_rl.agents import Reinforce, engine, tables
from awsgd_rl.agents.exploration import (
    CrossEntropyExploration,
    learn_exploration,
    mixture_weights,
)
from awsgd_rl.agents.tabular import TabularLearner, grid_of
from awsgd_rl.benchmarks import frozen_variance
from awsgd_rl.envs.gridworld import TrapGridworld
from awsgd_rl.exact import TabularMDP

DISCOUNT = 0.9


def make_env(desc=("SFF", "FHF", "FFG"), slip=0.0, horizon=12):
    return TrapGridworld(desc=list(desc), slip=slip, horizon=horizon)


def random_table(env, seed=0, spread=1.0):
    shape = (env.n_states, 4)
    return tables.make_table(spread * np.random.default_rng(seed).normal(size=shape))


def draw(grid, target, exploration, n, share, seed):
    explored = round(share * n)
    rows, _ = engine.rollout(
        grid, target, exploration, n - explored, explored, discount=DISCOUNT, seed=seed
    )
    return rows, np.arange(n)


def fitted(rule, target):
    exploration = tables.make_table(target.logits)
    rule.write(target, exploration)
    return exploration


def reluctant_walker():
    """A policy along the upper edge that hardly ever steps into a trap; good state values."""
    env = make_env(("SFFFF", "FHHHF", "FFFFF", "FFFFG"), horizon=200)
    logits = np.zeros((env.n_states, 4))
    left, down, right, up = 0, 1, 2, 3
    logits[:4, right] = 7.0
    logits[:4, up] = 1.0
    logits[4:, down] = 7.0
    logits[env.n_states - 5 :, right] = 7.0
    logits[:, left] -= 2.0
    target = tables.make_table(logits)
    mdp = TabularMDP.from_gridworld(env)
    return env, target, mdp.state_values(target.probability, DISCOUNT) / 1000


@pytest.mark.parametrize("slip", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_weighted_gradient_is_unbiased(share, slip):
    env = make_env(slip=slip)
    learner = TabularLearner(env, seed=3, learning_rate=1.0, discount=DISCOUNT)
    learner.target = random_table(env)
    learner.values = np.random.default_rng(1).normal(size=env.n_states)
    learner.exploration = learn_exploration(
        learner.grid, learner.target, learner.values, episodes=2000, discount=DISCOUNT, seed=4
    )
    batches, n = 200, 200
    explored = round(share * n)
    means = []
    for _ in range(batches):
        fresh = learner.collect(n - explored, explored)
        weights = mixture_weights(
            fresh.rows, fresh.which, learner.target, learner.exploration, share
        )
        assert weights.min() >= 0.0
        assert weights.max() <= 1 / (1 - share) + 1e-9
        means.append(learner.gradient(fresh, torch.from_numpy(weights)))
    exact = learner.reward_scale * TabularMDP.from_gridworld(env).policy_gradient(
        learner.target.probability, DISCOUNT, horizon=env.horizon
    )
    error = np.std(means, axis=0, ddof=1) / np.sqrt(batches)
    assert (np.abs(np.mean(means, axis=0) - exact) <= 5 * error + 1e-12).all()
    assert (np.abs(exact) > 5 * error).mean() > 0.3  # and the test can tell


def test_the_fit_is_the_closed_form():
    """All 4^3 paths of three steps, scored at random: every sum by hand."""
    env = make_env(horizon=3)
    grid, target = grid_of(env), random_table(env, 5)
    rng = np.random.default_rng(6)
    paths = list(itertools.product(range(4), repeat=3))
    counts = np.zeros((len(paths), env.n_states, 4))
    for path, count in zip(paths, counts, strict=True):
        state = env.start
        for action in path:
            count[state, action] += 1
            state = int(env.next_state[state, action])
            if grid.end[state] >= 0:
                break
    scores = rng.random(len(paths))
    # One row for each visited state, as the engine writes them.
    visited = [np.flatnonzero(count.sum(1)) for count in counts]
    size = np.array([len(states) for states in visited])
    sums = np.zeros((size.sum(), 4, 3))
    sums[:, :, tables.COUNT] = np.concatenate(
        [count[states] for count, states in zip(counts, visited, strict=True)]
    )
    rows = tables.Rows(np.cumsum(size) - size, size, np.concatenate(visited).astype(np.int32), sums)
    rule = CrossEntropyExploration(env.n_states, 4, prior_visits=3.0, uniform_share=0.2)
    for half in (np.arange(30), np.arange(30, 64)):
        rule.update(rows, half, scores[half])
    q = fitted(rule, target).probability

    own = np.einsum("b,bsa->sa", scores, counts)
    squares = np.einsum("b,bs->s", scores**2, counts.sum(2) ** 2)
    prior = 0.8 * target.probability + 0.2 / 4
    for s in range(env.n_states):
        if squares[s] == 0:
            np.testing.assert_allclose(q[s], prior[s], rtol=1e-12)
            continue
        effective = own[s].sum() ** 2 / squares[s]
        expected = (effective * own[s] / own[s].sum() + 3.0 * prior[s]) / (effective + 3.0)
        np.testing.assert_allclose(q[s], expected, rtol=1e-12)


def test_much_evidence_gives_the_cross_entropy_optimum():
    """Without noise left, the fit is E_q*[n(s, a)] / E_q*[n(s)], enumerated from P_w's paths."""
    env, horizon = make_env(horizon=4), 4
    grid, target = grid_of(env, 1e-3), random_table(env, 7, 0.5)
    values = np.zeros(env.n_states)
    rows, which = draw(grid, target, target, 200_000, 0.0, 8)
    norms = tables.gradient_norms(rows, which, target, values)
    rule = CrossEntropyExploration(env.n_states, 4, prior_visits=1e-6, uniform_share=0.0)
    rule.update(rows, which, norms)
    q = fitted(rule, target).probability

    visits, squares = np.zeros((env.n_states, 4)), np.zeros((env.n_states, 4))
    for path in itertools.product(range(4), repeat=horizon):
        probability, count, steps = 1.0, np.zeros((env.n_states, 4)), []
        state = env.start
        for action in path:
            probability *= target.probability[state, action]
            following = int(env.next_state[state, action])
            steps.append((state, action, grid.reward[state, action]))
            count[state, action] += 1
            state = following
            if grid.end[state] >= 0:
                break
        # Paths that go on after an end are met once for each way to go on.
        probability /= 4.0 ** (horizon - len(steps))
        gradient = np.zeros((env.n_states, 4))
        for t, (s, a, _) in enumerate(steps):
            to_go = sum(DISCOUNT**k * reward for k, (_, _, reward) in enumerate(steps) if k >= t)
            gradient[s, a] += to_go
            gradient[s] -= to_go * target.probability[s]
        c = np.linalg.norm(gradient)
        visits += probability * c * count
        squares += probability * (c * count) ** 2
    seen = visits.sum(1) > 0
    expected = visits[seen] / visits[seen].sum(1, keepdims=True)
    error = np.sqrt(squares[seen] / len(which)) / visits[seen].sum(1, keepdims=True)
    assert (np.abs(q[seen] - expected) <= 5 * error + 1e-6).all()
    assert np.abs(expected - target.probability[seen]).max() > 10 * error.max()


def test_the_variance_falls_from_few_trajectories():
    env, target, values = reluctant_walker()
    grid = grid_of(env, 1e-3)
    mdp = TabularMDP.from_gridworld(env)
    gradient = 1e-3 * mdp.policy_gradient(target.probability, DISCOUNT)
    on_policy = 1e-6 * mdp.gradient_variance(target.probability, DISCOUNT, baseline=1e3 * values)
    exploration = learn_exploration(
        grid, target, values, episodes=2000, discount=DISCOUNT, seed=0, batch_size=100
    )
    rows, which = draw(grid, target, exploration, 40_000, 0.8, 1)
    weights = mixture_weights(rows, which, target, exploration, 0.8)
    squared = (weights * tables.gradient_norms(rows, which, target, values)) ** 2
    variance = squared.mean() + 3 * squared.std() / 200 - (gradient**2).sum()
    assert on_policy / variance > 1.5


def test_support_and_bounds():
    env = make_env()
    target = random_table(env, 9, 30.0)  # some probabilities are almost or wholly zero
    rule = CrossEntropyExploration(env.n_states, 4)
    rows, which = draw(grid_of(env), target, target, 500, 0.0, 1)
    rule.update(rows, which, np.random.default_rng(2).exponential(size=500) ** 8)
    q = fitted(rule, target).probability
    assert (q > 0).all()
    np.testing.assert_allclose(q.sum(1), 1.0, rtol=1e-12)
    # Where everything is known the prior still holds its share, and no ratio p / q is unbounded.
    effective = np.divide(
        rule.visits.sum(1) ** 2, rule.squared_visits, where=rule.squared_visits > 0, out=np.zeros(9)
    )
    least = rule.prior_visits * 0.9 / (effective + rule.prior_visits)
    assert (q >= least[:, None] * target.probability * (1 - 1e-9)).all()


def test_no_support_is_added_without_a_uniform_share():
    env = make_env()
    logits = np.zeros((env.n_states, 4))
    logits[:, 0] = -np.inf
    target = tables.make_table(logits)
    rule = CrossEntropyExploration(env.n_states, 4, uniform_share=0.0)
    rows, which = draw(grid_of(env), target, target, 100, 0.0, 1)
    rule.update(rows, which, np.ones(100))
    q = fitted(rule, target)
    np.testing.assert_array_equal(q.probability == 0, target.probability == 0)
    weights = mixture_weights(rows, which, target, q, 0.5)
    assert np.isfinite(weights).all()


def test_decay_is_the_same_as_weighting_later_batches_more():
    env = make_env()
    target = random_table(env)
    rows, which = draw(grid_of(env), target, target, 60, 0.0, 1)
    scores = np.random.default_rng(2).random(60)
    batches = which.reshape(3, 20)
    forgetting = CrossEntropyExploration(env.n_states, 4, decay=0.5)
    by_hand = CrossEntropyExploration(env.n_states, 4)
    for k, batch in enumerate(batches):
        forgetting.update(rows, batch, scores[batch])
        by_hand.update(rows, batch, 2.0**k * scores[batch])
    np.testing.assert_allclose(
        fitted(forgetting, target).probability, fitted(by_hand, target).probability, rtol=1e-12
    )


def test_a_long_run_with_decay_stays_finite():
    env = make_env()
    target = random_table(env)
    rows, which = draw(grid_of(env), target, target, 20, 0.0, 1)
    rule = CrossEntropyExploration(env.n_states, 4, decay=0.5)
    for _ in range(3000):
        rule.update(rows, which, np.ones(20))
    once = CrossEntropyExploration(env.n_states, 4)
    once.update(rows, which, np.ones(20))
    total = rule.visits.sum(1)
    seen = total > 0
    # n_eff of a geometric series of equal batches: (1 + d) / (1 − d) of one.
    effective = total[seen] ** 2 / rule.squared_visits[seen]
    one = once.visits.sum(1)[seen] ** 2 / once.squared_visits[seen]
    np.testing.assert_allclose(effective, 3.0 * one, rtol=1e-9)


def test_what_was_learned_follows_the_target():
    """Moving P_w by log-odds changes the learned part by the same log-odds, visits or not."""
    env = make_env()
    target = random_table(env)
    rows, which = draw(grid_of(env), target, target, 500, 0.0, 1)
    rule = CrossEntropyExploration(env.n_states, 4, prior_visits=1e-9)
    rule.update(rows, which, np.random.default_rng(2).random(500))
    before = fitted(rule, target)
    effective = rule.visits.sum(1) ** 2 / np.maximum(rule.squared_visits, 1e-300)
    shift = np.random.default_rng(3).normal(size=target.logits.shape)
    after = fitted(rule, tables.make_table(target.logits + shift))
    seen = rule.squared_visits > 0
    expected = tables.make_table(before.logits + shift).probability
    np.testing.assert_allclose(after.probability[seen], expected[seen], atol=1e-6)
    now = rule.visits.sum(1) ** 2 / np.maximum(rule.squared_visits, 1e-300)
    np.testing.assert_allclose(now, effective, rtol=1e-9)


def test_the_state_is_saved_and_restored():
    env = make_env()
    target = random_table(env)
    rows, which = draw(grid_of(env), target, target, 200, 0.0, 1)
    rule = CrossEntropyExploration(env.n_states, 4, decay=0.9)
    for batch in which.reshape(10, 20):
        rule.update(rows, batch, np.linspace(0.1, 1.0, 20))
        first = fitted(rule, target)
    again = CrossEntropyExploration(env.n_states, 4, decay=0.9)
    again.load_state_dict(rule.state_dict())
    np.testing.assert_allclose(fitted(again, target).probability, first.probability, rtol=1e-12)
    for one in (rule, again):
        one.update(rows, which[:20], np.ones(20))
    np.testing.assert_allclose(
        fitted(again, target).probability, fitted(rule, target).probability, rtol=1e-12
    )


def test_the_same_seed_learns_the_same_policy():
    env, target, values = reluctant_walker()
    learned = [
        learn_exploration(
            grid_of(env), target, values, episodes=500, discount=DISCOUNT, seed=seed
        ).probability
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(learned[0], learned[1])
    assert (learned[0] != learned[2]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior_visits": 0.0}, "prior_visits is 0.0, expected a number above 0"),
        ({"uniform_share": 1.5}, "uniform_share is 1.5, expected a probability"),
        ({"decay": 1.5}, "decay is 1.5, expected at most 1"),
        ({"decay": 0.0}, "decay is 0.0, expected a number above 0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropyExploration(9, 4, **arguments)


def test_bad_scores_and_states_are_refused_and_change_nothing():
    env = make_env()
    target = random_table(env)
    rows, which = draw(grid_of(env), target, target, 20, 0.0, 1)
    rule = CrossEntropyExploration(env.n_states, 4)
    rule.update(rows, which, np.ones(20))
    before = rule.visits.copy()
    for scores in (np.full(20, np.nan), -np.ones(20), np.full(20, np.inf), np.ones(19)):
        with pytest.raises(ValueError, match=r"expected one each, finite and 0 or more"):
            rule.update(rows, which, scores)
    good = rule.state_dict()
    for name, value, message in (
        ("visits", None, "got nothing for 'visits'"),
        ("visits", torch.zeros(3, 4), "expected shape"),
        ("squared_visits", torch.full((9,), torch.nan), "damaged"),
        ("squared_visits", -torch.ones(9), "damaged"),
    ):
        state = {**good, name: value}
        if value is None:
            del state[name]
        with pytest.raises(ValueError, match=message):
            rule.load_state_dict(state)
    np.testing.assert_array_equal(rule.visits, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes is 0, expected 1 or more"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 or more"),
        ({"share": 1.0}, "share is 1.0, expected 0 or more and below 1"),
    ],
)
def test_bad_budgets_are_refused(arguments, message):
    env = make_env()
    arguments = {"episodes": 10, "discount": DISCOUNT, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        learn_exploration(grid_of(env), random_table(env), np.zeros(env.n_states), **arguments)


def test_the_target_policy_draws_one_of_each_batch_at_least(monkeypatch):
    drawn, rollout = [], engine.rollout
    monkeypatch.setattr(engine, "rollout", lambda *a, **k: drawn.append(a[3:5]) or rollout(*a, **k))
    env = make_env()
    learn_exploration(
        grid_of(env), random_table(env), np.zeros(env.n_states), episodes=17, discount=DISCOUNT,
        seed=0, share=0.95, batch_size=8,
    )  # fmt: skip
    assert drawn == [(1, 7), (1, 7), (1, 0)]


@pytest.fixture
def small_bench(monkeypatch):
    for name, value in {"LEARN": 500, "FIT": 5000, "LONG": 1000, "MEASURE": 25_000}.items():
        monkeypatch.setattr(frozen_variance, name, value)
    monkeypatch.setattr(frozen_variance, "TRIALS", (400, 800))


def test_the_bench_measures_what_is_known_exactly():
    """With P_w itself as the exploration policy the sampled second moment is the exact one."""
    env = TrapGridworld(size=5, traps=2, layout_seed=0)
    agent = Reinforce("TablePolicy", env, seed=0).learn(total_episodes=2000)
    stage = frozen_variance.Stage(env, agent.learner, 50_000)
    _, _, weights, norms, _ = stage.draw(stage.target, 0.5, 50_000, 1)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-9)
    exact = 1e-6 * stage.mdp.gradient_variance(
        stage.target.probability, 0.999, baseline=1e3 * stage.values
    )
    second = norms**2
    error = second.std() / np.sqrt(len(second))
    assert abs(second.mean() - stage.squared_mean - exact) < 5 * error
    assert exact > 10 * error


def test_the_bench_reports_its_rows_summary_and_figure(small_bench, tmp_path):
    rows, summary = frozen_variance.run(quick=True, maps=2, jobs=1)
    assert [(row["map"], row["slip"], row["trials"]) for row in rows] == [
        (m, slip, trials) for slip in (0.0, 0.1) for m in (0, 1) for trials in (400, 800)
    ]
    own = [row["ours"] for row in rows if row["slip"] == 0.0]
    assert summary["variance_ratio_geomean"] == pytest.approx(np.exp(np.mean(np.log(own))))
    for name in frozen_variance.MEASURES:
        for prefix in ("", "slip."):
            low, middle, high = (
                summary[f"{prefix}{name}_geomean{end}"] for end in ("_low", "", "_high")
            )
            assert 0 < low <= middle <= high
    written = frozen_variance.write_figures(rows, summary, tmp_path)
    assert [path.name for path in written] == ["variance-ratio.png", "variance-ratio.svg"]


def test_one_map_tells_no_interval(small_bench):
    _, summary = frozen_variance.run(quick=True, maps=1, jobs=1)
    assert "variance_ratio_geomean" in summary
    assert not any(name.endswith(("_low", "_high")) for name in summary)


@pytest.mark.parametrize("arguments", [{"maps": 0}, {"jobs": 0}])
def test_the_bench_refuses_nothing_to_do(arguments):
    with pytest.raises(ValueError, match="is 0, expected 1 or more"):
        frozen_variance.run(**arguments)
