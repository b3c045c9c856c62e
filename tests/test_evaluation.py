"""Probabilities of rare outcomes by learned exploration, against exact ones."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from awsgd_rl.agents import AWSGD, tables
from awsgd_rl.agents.evaluation import check_arguments, estimate_outcome
from awsgd_rl.agents.outcome_critics import NetworkCritic, TableCritic, aim
from awsgd_rl.agents.outcome_rollouts import make_rollouts
from awsgd_rl.agents.outcome_vector_rollouts import VectorRollouts
from awsgd_rl.agents.outcomes import Batch, LikeliestPaths
from awsgd_rl.exact import TabularMDP

GRIDWORLD = "awsgd_rl/TrapGridworld-v0"
MAP = ["SFFF", "FFHF", "FFFF", "FFFG"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table_agent(slip=0.0, sharpness=4.0, horizon=200, desc=MAP):
    """An agent that walks down and then right along the border, most of the time."""
    env = gym.make(GRIDWORLD, desc=desc, slip=slip, horizon=horizon)
    agent = AWSGD("TablePolicy", env, seed=0)
    columns = len(desc[0])
    logits = np.zeros((len(desc) * columns, 4))
    logits[:, 1] = sharpness
    logits[-columns:, 1] = 0.0
    logits[-columns:, 2] = sharpness
    agent.learner.target = tables.make_table(logits)
    return agent


def mdp_of(agent):
    return TabularMDP.from_gridworld(agent.env.unwrapped)


def failure_of(agent, policy=None):
    grid = agent.env.unwrapped
    policy = agent.policy_table() if policy is None else policy
    return 1.0 - mdp_of(agent).success_probability(policy, grid.horizon)


def mlp_agent():
    env = gym.make(GRIDWORLD, desc=MAP, horizon=60, observation="one_hot")
    agent = AWSGD("MlpPolicy", env, seed=0, device="cpu")
    learner = agent.learner
    with torch.no_grad():
        # Away from uniform: what is tested must not hold for uniform policies alone.
        for parameter in learner.policy.body.head.parameters():
            parameter.mul_(150.0)
        inputs = learner.normaliser(torch.eye(16))
        policy = learner.policy(inputs).exp().numpy()
    return agent, failure_of(agent, policy)


def within(estimates, exact, factor=5.0):
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < factor * error


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_tables_are_unbiased(slip):
    agent = table_agent(slip)
    exact = failure_of(agent)
    # All episodes, so that nothing stops early: then there is no bias at all.
    found = [
        estimate_outcome(agent, episodes=240, relative_error=None, seed=seed) for seed in range(150)
    ]
    within([each.estimate for each in found], exact)
    covered = np.mean([each.low <= exact <= each.high for each in found])
    assert covered > 0.95 - 5 * np.sqrt(0.05 * 0.95 / len(found))


def test_mlp_policies_are_unbiased():
    agent, exact = mlp_agent()
    assert 0.01 < exact < 0.99
    found = [
        estimate_outcome(agent, episodes=200, relative_error=None, seed=seed) for seed in range(12)
    ]
    within([each.estimate for each in found], exact)


def test_networks_are_unbiased(monkeypatch):
    # No observation counts as coming back: the critic is a network.
    monkeypatch.setattr(VectorRollouts, "_RETURNING", 0.0)
    monkeypatch.setattr(NetworkCritic, "rounds", 2)
    monkeypatch.setattr(NetworkCritic, "updates", 20)
    agent, exact = mlp_agent()
    found = [
        estimate_outcome(agent, episodes=200, relative_error=None, seed=seed) for seed in range(8)
    ]
    within([each.estimate for each in found], exact)


def test_discrete_observations_are_states_however_rarely_they_come_back(monkeypatch):
    monkeypatch.setattr(VectorRollouts, "_RETURNING", 0.0)
    env = gym.make(GRIDWORLD, desc=MAP, horizon=60)
    agent = AWSGD("MlpPolicy", env, seed=0, device="cpu")
    exact = failure_of(agent, agent.learner.policy_table())
    found = estimate_outcome(agent, episodes=400, relative_error=None)
    assert found.low <= exact <= found.high
    assert found.ess > 0.0


def test_rare_failures_need_far_fewer_episodes():
    agent = table_agent(sharpness=9.0, horizon=50)
    exact = failure_of(agent)
    assert exact < 1e-6
    found = [estimate_outcome(agent, seed=seed) for seed in range(40)]
    assert all(each.standard_error <= 0.1 * each.estimate for each in found)
    assert all(each.episodes < 2_000 < each.naive_episodes / 1_000 for each in found)
    within([each.estimate for each in found], exact)
    assert sum(each.low <= exact <= each.high for each in found) >= 34


@pytest.mark.parametrize("outcome", ["failure", "trap", "horizon", "return"])
def test_outcomes_agree_with_exact_ones(outcome):
    agent = table_agent(0.1, sharpness=2.0, horizon=12)
    grid, policy, mdp = agent.env.unwrapped, agent.policy_table(), mdp_of(agent)
    goal = mdp.success_probability(policy, grid.horizon)
    chain = mdp.mix(policy, mdp.transition).T.tocsr()
    mass, trap = mdp.start, 0.0
    for _ in range(grid.horizon):
        mass = chain @ mass
        trap += mass[grid.trap_cells].sum()
    exact = {
        "failure": 1 - goal,
        "trap": trap,
        "horizon": 1 - goal - trap,
        "return": mdp.expected_return(policy, 1.0, grid.horizon),
    }[outcome]
    found = [
        estimate_outcome(agent, outcome, episodes=300, relative_error=None, seed=seed)
        for seed in range(40)
    ]
    within([each.estimate for each in found], exact)
    assert all(path.outcome != each.typical for each in found for path in each.paths)


def test_functions_as_outcomes():
    agent = table_agent(sharpness=1.0, horizon=30)

    def late(episode):
        return float(episode.length > 8)

    found = estimate_outcome(agent, late, bounds=(0.0, 1.0), episodes=4_000, relative_error=None)
    assert found.outcome == "late"
    lengths = agent.learner.collect(4_000, 0).lengths.numpy()
    plain = (lengths > 8).mean()
    error = np.hypot(found.standard_error, np.sqrt(plain * (1 - plain) / 4_000))
    assert abs(found.estimate - plain) < 5 * error


def test_outcomes_outside_their_bounds_are_refused():
    agent = table_agent()
    with pytest.raises(ValueError, match=r"outside its bounds \(0, 1\)"):
        estimate_outcome(agent, lambda episode: float(episode.length), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="needs its bounds"):
        estimate_outcome(agent, lambda episode: 0.0)
    with pytest.raises(ValueError, match="low below high"):
        estimate_outcome(agent, lambda episode: 0.0, bounds=(1.0, 0.0))


def test_an_agent_that_never_fails_gives_a_bound():
    agent = table_agent(desc=["SFF", "FFF", "FFG"], horizon=500)
    found = estimate_outcome(agent, episodes=1_000)
    assert found.bound_only
    assert found.estimate == 0.0
    assert np.isnan(found.standard_error)
    assert found.ess == 0.0
    assert found.paths == ()
    # The rule of three, on the plain episodes: half the budget at least.
    assert 2.9 / 1_000 < found.high < 3.1 / 500


def test_an_agent_that_always_fails_gives_a_bound():
    found = estimate_outcome(table_agent(horizon=3), episodes=400)
    assert found.bound_only
    assert found.estimate == found.high == 1.0
    assert 1 - 3.1 / 200 < found.low < 1 - 2.9 / 400
    assert found.paths == ()


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_deterministic_policies_are_said_to_be(slip):
    agent = table_agent(slip)
    assert not estimate_outcome(agent, episodes=400).deterministic
    logits = np.where(agent.learner.target.logits == 4.0, 0.0, -np.inf)
    agent.learner.target = tables.make_table(logits)
    exact = failure_of(agent)
    found = estimate_outcome(agent, episodes=400, relative_error=None)
    assert found.deterministic
    assert found.bound_only == (slip == 0.0)
    assert found.low <= exact <= found.high
    if found.bound_only:  # by all episodes, as all are plain: the rule of three
        assert found.high == pytest.approx(3.0 / 400, rel=0.02)
    else:
        assert found.largest_weight == 1.0
        assert found.variance_ratio == pytest.approx(1.0, rel=0.05)


def test_bounds_cover():
    # Failures too rare to be met, by a policy that gives no way to aim at them: p = 1/300 an
    # episode, through slips alone. Where none is met, the bound must hold.
    desc = ["SFFG", "FFFF", "HFFF"]
    env = gym.make(GRIDWORLD, desc=desc, slip=0.01, horizon=100)
    agent = AWSGD("TablePolicy", env, seed=0)
    logits = np.full((12, 4), -40.0)
    logits[:, 2] = 0.0
    agent.learner.target = tables.make_table(logits)
    exact = failure_of(agent)
    found = [estimate_outcome(agent, episodes=200, seed=seed) for seed in range(50)]
    assert any(each.bound_only for each in found)
    assert np.mean([each.low <= exact <= each.high for each in found]) >= 0.9


def test_actions_of_probability_zero_are_never_taken():
    agent = table_agent(sharpness=3.0)
    logits = agent.learner.target.logits.copy()
    logits[:, 0] = -np.inf
    agent.learner.target = tables.make_table(logits)
    exact = failure_of(agent)
    found = estimate_outcome(agent, relative_error=0.02)
    assert abs(found.estimate - exact) < 5 * found.standard_error
    assert all(0 not in path.actions for path in found.paths)
    proposal = aim(agent.policy_table(), np.ones((16, 4)), 0.05)
    np.testing.assert_array_equal(proposal > 0, agent.policy_table() > 0)


def test_weights_are_bounded():
    assert estimate_outcome(table_agent(), episodes=300).largest_weight <= 10.0 + 1e-12
    # So few plain episodes that none would be left by rounding.
    found = estimate_outcome(table_agent(), episodes=300, exploration_share=0.999)
    assert found.largest_weight <= 75.0 + 1e-12  # two plain ones of 150
    assert found.standard_error > 0.0


def test_a_proposal_that_misses_the_support_is_refused():
    with pytest.raises(ValueError, match="expected below 1"):
        estimate_outcome(table_agent(), exploration_share=1)


def test_paths_are_the_likeliest_failures():
    agent = table_agent(sharpness=6.0)
    found = estimate_outcome(agent)
    policy = agent.policy_table()
    scores = [path.log_probability for path in found.paths]
    assert scores == sorted(scores, reverse=True)
    assert len({path.actions.tobytes() for path in found.paths}) == len(found.paths) == 6
    for path in found.paths:
        states = path.observations
        assert states[0] == 0
        assert states[-1] == 6
        assert path.outcome == 1.0
        taken = policy[states[:-1], path.actions]
        np.testing.assert_array_equal(taken, path.probabilities)
        assert np.log(taken).sum() == pytest.approx(path.log_probability)
    # The shortest ways into the trap: 2 steps off the policy's way, on two of them.
    assert np.exp(scores).sum() <= found.high


def test_one_path_does_not_crowd_out_the_others():
    # By far the likeliest failure, which most episodes that explore draw again and again.
    agent = table_agent(sharpness=12.0)
    logits = agent.learner.target.logits.copy()
    logits[4, 2] = logits[5, 2] = 12.0  # right, right from the policy's way: into the trap
    logits[4, 1] = 14.0
    logits[5, 1] = logits[5, 0] = logits[5, 3] = 0.0
    agent.learner.target = tables.make_table(logits)
    found = estimate_outcome(agent, episodes=2_000, relative_error=None)
    assert found.paths[0].actions.tolist() == [1, 2, 2]
    assert len(found.paths) == 6


def test_paths_leave_when_their_outcome_becomes_the_typical_one():
    def path(batch, b):
        return np.zeros(2), np.array([int(batch.total[b])]), np.exp(batch.log_p[b : b + 1])

    def batch(outcomes):
        n = len(outcomes)
        return Batch(
            np.full(n, -1.0), np.zeros(n), outcomes, np.ones(n, np.int64), np.ones(n, bool),
            np.ones(n), None,
        )  # fmt: skip

    paths = LikeliestPaths()
    for outcomes, typical in (([5.0, 5.0, 3.0], 3.0), ([5.0, 5.0, 4.0, 2.0], 5.0)):
        paths.add(batch(np.array(outcomes)), np.array(outcomes), typical, path)
    assert [each.outcome for each in paths.best()] == [2.0, 4.0]


def test_the_same_seed_gives_the_same_numbers():
    for agent in (table_agent(), mlp_agent()[0]):
        one, same, other = (estimate_outcome(agent, episodes=300, seed=seed) for seed in (3, 3, 4))
        assert one.estimate == same.estimate
        assert one.high == same.high
        assert one.estimate != other.estimate


def test_agents_are_left_as_they_were():
    agent = table_agent()
    before = agent.learner.collect(10, 0).lengths.tolist()
    again = table_agent()
    estimate_outcome(again, episodes=300)
    assert again.learner.collect(10, 0).lengths.tolist() == before


class Coin(gym.Env):
    """Shows a number in each of three steps; betting on large ones pays. There is no spec of it."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)
    horizon = 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.shown = 0, self.np_random.random(1).astype(np.float32)
        return self.shown, {}

    def step(self, action):
        reward = float(action * (self.shown[0] - 0.5))
        self.steps, self.shown = self.steps + 1, self.np_random.random(1).astype(np.float32)
        return self.shown, reward, False, self.steps == 3, {}


@pytest.mark.parametrize(
    "make_env",
    [
        Coin,
        lambda: gym.vector.SyncVectorEnv([Coin, Coin]),
        lambda: gym.make_vec("CartPole-v1", 2, max_episode_steps=9),
        lambda: gym.make_vec(GRIDWORLD, 2, desc=MAP, horizon=9, slip=0.2, observation="one_hot"),
    ],
)
def test_trainings_that_share_their_environment_are_left_as_they_were(make_env, monkeypatch):
    monkeypatch.setattr(NetworkCritic, "updates", 2)

    def train(callback=None):
        agent = AWSGD("MlpPolicy", make_env(), seed=0, device="cpu", batch_size=4, updates=2)
        agent.learn(total_episodes=12, callback=callback)
        return agent.learner.state_dict()

    def evaluate(agent):
        estimate_outcome(agent, "return", episodes=200, exploration_share=0.0)
        check_arguments(agent, "return")

    plain, evaluated = train(), train(evaluate)
    assert all(torch.equal(x, plain[name]) for name, x in evaluated.items())


def test_copies_are_closed(monkeypatch):
    made = []

    def make(*arguments):
        made.append(make_rollouts(*arguments))
        return made[-1]

    monkeypatch.setattr("awsgd_rl.agents.evaluation.make_rollouts", make)
    lake = AWSGD("MlpPolicy", "FrozenLake-v1", seed=0, device="cpu", n_envs=1)
    for evaluate in (estimate_outcome, check_arguments):
        with pytest.raises(ValueError, match="reports no is_success"):
            evaluate(lake)
    assert [rollouts._collector.envs.closed for rollouts in made] == [True, True]
    assert not lake.learner.envs.closed


def test_returns_that_are_not_finite_are_refused():
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: np.inf)
    agent = AWSGD("MlpPolicy", env, seed=0, device="cpu", n_envs=1)
    with pytest.raises(ValueError, match="return of an episode is inf, expected a finite number"):
        estimate_outcome(agent, "return")


def test_bad_arguments_are_refused():
    agent = table_agent()
    with pytest.raises(ValueError, match="too few for an interval"):
        estimate_outcome(agent, episodes=199)
    with pytest.raises(ValueError, match="did you mean 'failure'"):
        estimate_outcome(agent, "failures")
    with pytest.raises(ValueError, match="relative_error is 0"):
        estimate_outcome(agent, relative_error=0)
    with pytest.raises(ValueError, match="leave them out"):
        estimate_outcome(agent, "trap", bounds=(0, 1))
    with pytest.raises(ValueError, match="expected one of this package"):
        estimate_outcome(object())
    continuous = AWSGD("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", n_envs=1)
    with pytest.raises(ValueError, match="expected Discrete actions"):
        estimate_outcome(continuous, "return")
    pole = AWSGD("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_envs=1)
    with pytest.raises(ValueError, match="reports no is_success"):
        estimate_outcome(pole)


def test_networks_learn_where_observations_do_not_come_back(monkeypatch):
    monkeypatch.setattr(NetworkCritic, "rounds", 2)
    monkeypatch.setattr(NetworkCritic, "updates", 20)
    agent = AWSGD("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_envs=1)

    def long(episode):
        return float(episode.length > 60)

    found = estimate_outcome(
        agent, long, bounds=(0.0, 1.0), episodes=300, relative_error=None, seed=1
    )
    plain = estimate_outcome(
        agent, long, bounds=(0.0, 1.0), episodes=300, relative_error=None, seed=2,
        exploration_share=0.0,
    )  # fmt: skip
    error = np.hypot(found.standard_error, plain.standard_error)
    assert abs(found.estimate - plain.estimate) < 5 * error


def test_the_critic_solves_its_equation():
    # 0 goes to 1 or 2 by action; 1 ends in 3 (f = 1) or 4 (f = 0), half each; 2 ends in 4.
    critic = TableCritic(5, 2)
    states, actions = np.array([0, 0, 1, 1, 1, 1, 2, 2]), np.array([0, 1, 0, 0, 1, 1, 0, 1])
    critic.add(states, actions, np.array([1, 2, 3, 4, 3, 4, 4, 4]), np.full(8, 6))
    critic.add_ends(np.array([3, 4]), np.array([1.0, 0.0]), np.array([True, True]))
    policy = np.full((5, 2), 0.5)
    solution = critic.solve(policy, np.array([0]), 0.0, 1.0)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(solution.roots[0], [root, 0.0], atol=1e-12)
    np.testing.assert_allclose(solution.roots[1], [root, root])
    assert solution.known == pytest.approx(0.5 * root) == pytest.approx(solution.possible)
    # The least second moment of all policies: sqrt of E[(p/q f)^2] at q = aim is that number.
    q = aim(policy, solution.roots, 0.0)
    assert np.sqrt((policy[0, 0] / q[0, 0]) ** 2 * q[0, 0] * 0.5) == pytest.approx(0.5 * root)


def test_untried_actions_count_as_the_outcome():
    critic = TableCritic(3, 2)
    critic.add(np.array([0]), np.array([0]), np.array([1]), np.array([1]))
    critic.add_ends(np.array([1]), np.array([0.0]), np.array([True]))
    solution = critic.solve(np.array([[0.9, 0.1]] * 3), np.array([0]), 0.0, 1.0)
    assert (solution.known, solution.possible) == (0.0, pytest.approx(0.1))
