import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from awsgd_rl.agents.neural import NeuralLearner
from awsgd_rl.agents.rollout import EpisodeCollector, make_vector_env

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # On small networks several threads only wait for one another, the more so on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Counting(gym.Env):
    """Observations count the steps of the episode, rewards too; each episode is one step longer."""

    observation_space = gym.spaces.Box(0, 1000, (2,))
    action_space = gym.spaces.Discrete(2)
    horizon = 50

    def __init__(self, first_length=1, truncates=False):
        self.length = first_length - 1
        self.truncates = truncates

    def _observation(self):
        return np.array([self.step_number, self.length], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length += 1
        self.step_number = 0
        return self._observation(), {"is_success": True}

    def step(self, action):
        self.step_number += 1
        over = self.step_number == self.length
        info = {"is_success": self.length % 2 == 0} if over else {}
        return (
            self._observation(),
            float(self.step_number),
            over and not self.truncates,
            over and self.truncates,
            info,
        )


class Fork(gym.Env):
    """0 -> 1 or 2 by the action; then the action pays. Small enough to enumerate."""

    observation_space = gym.spaces.Discrete(3, start=10)
    action_space = gym.spaces.Discrete(2, start=5)
    horizon = 2
    pays = np.array([[1.0, -2.0], [4.0, 0.5]])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 10, {}

    def step(self, action):
        assert action in (5, 6)
        if self.state == 0:
            self.state = int(action) - 4
            return 10 + self.state, 0.25 * (action - 5), False, False, {}
        reward = self.pays[self.state - 1, action - 5]
        return 10 + self.state, reward, True, False, {}


class Torque(gym.Env):
    """One step on a Box; keeps the action that it was given."""

    observation_space = gym.spaces.Box(-1, 1, (2, 2))
    action_space = gym.spaces.Box(
        np.array([-2.0, 10.0, -np.inf], np.float32), np.array([2.0, 20.0, np.inf], np.float32)
    )
    horizon = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones((2, 2), np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.action = action
        return np.ones((2, 2), np.float32), 1.0, True, False, {}


def counting(n, mode=AutoresetMode.NEXT_STEP, **options):
    return SyncVectorEnv(
        [lambda i=i: Counting(i + 1, **options) for i in range(n)], autoreset_mode=mode
    )


def forks(n):
    return SyncVectorEnv([Fork] * n)


def fork_learner(n=50, **options):
    learner = NeuralLearner(
        forks(n), kind="table", discount=1.0, trace_decay=1.0, seed=3, **options
    )
    with torch.no_grad():
        policy, exploration = (
            next(learner.policy.parameters()),
            next(learner.exploration.parameters()),
        )
        policy.copy_(torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.6]]))
        exploration.copy_(torch.tensor([[-0.5, 0.4], [0.0, 0.3], [0.2, -0.3]]))
        next(learner.values.parameters()).copy_(torch.tensor([[0.7], [-0.3], [1.1]]))
    return learner


def fork_gradient(logits):
    logits = logits.detach().double().requires_grad_()
    p = logits.softmax(-1)
    value = sum(
        p[0, a] * p[1 + a, b] * (0.25 * a + Fork.pays[a, b])
        for a, b in itertools.product(range(2), range(2))
    )
    return torch.autograd.grad(value, logits)[0]


def within_five_errors(samples, expected):
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    return bool(((mean - expected).abs() <= 5 * error + 1e-9).all())


# -- episodes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("truncates", [False, True])
def test_every_step_is_recorded_and_no_ghost_step_is(mode, truncates):
    learner = NeuralLearner(counting(3, mode, truncates=truncates), kind="mlp")
    batch = learner.collect(5, 3)
    # Sub-environment i runs i, i + 3, i + 6; its episodes grow by one step each.
    assert batch.lengths.tolist() == [1, 2, 3, 2, 3, 4, 3, 4]
    assert batch.terminated.tolist() == [not truncates] * 8
    assert batch.terminated.tolist() == [not truncates] * 8
    assert batch.from_target.tolist() == [True] * 5 + [False] * 3
    for b, length in enumerate(batch.lengths.tolist()):
        assert batch.observations[: length + 1, b, 0].tolist() == list(range(length + 1))
        assert (batch.observations[: length + 1, b, 1] == length).all()
        assert batch.rewards[:length, b].tolist() == list(range(1, length + 1))
        assert batch.mask[:, b].tolist() == [t < length for t in range(4)]
        assert (batch.rewards[length:, b] == 0).all()
        assert batch.success[b] == (length % 2 == 0)
        discounted = sum(0.99**t * (t + 1) for t in range(length))
        assert batch.returns[b].item() == pytest.approx(discounted)
        assert batch.raw_returns[b].item() == length * (length + 1) / 2
    assert batch.visited.sum(0).tolist() == (batch.lengths + 1).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_resetting_make_no_difference(mode):
    def run(mode):
        envs = SyncVectorEnv(
            [lambda: gym.make("CartPole-v1", max_episode_steps=30)] * 3, autoreset_mode=mode
        )
        return NeuralLearner(envs, seed=1).collect(3)

    first, second = run(AutoresetMode.SAME_STEP), run(mode)
    assert torch.equal(first.observations, second.observations)
    assert torch.equal(first.log_drawn, second.log_drawn)


def test_success_is_nan_where_the_environment_does_not_say():
    learner = NeuralLearner("CartPole-v1", n_envs=2, horizon=5)
    batch = learner.collect(2)
    assert batch.success.isnan().all()
    assert not batch.terminated.any()


def test_log_drawn_is_that_of_the_policy_that_ran_the_episode():
    learner = fork_learner(7)
    batch = learner.collect(9, 6)
    target, exploration = learner.log_target(batch), learner.log_exploration(batch)
    assert target.dtype == torch.float64
    assert torch.equal(batch.log_drawn[:9], target[:9])
    assert torch.equal(batch.log_drawn[9:], exploration[9:])
    assert not torch.equal(target, exploration)


def test_frequencies_are_those_of_each_policy():
    learner = fork_learner(100)
    batch = learner.collect(2000, 2000)
    for policy, rows in (
        (learner.policy, batch.actions[0, :2000]),
        (learner.exploration, batch.actions[0, 2000:]),
    ):
        with torch.no_grad():
            p = policy(torch.tensor([0])).exp()[0, 1].item()
        assert abs(rows.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / 2000)


def test_box_actions_are_scaled_and_clipped_only_for_the_environment():
    env = Torque()
    learner = NeuralLearner(env, initial_log_std=2.0)
    batch = learner.collect(4)
    raw = batch.actions[0, -1].numpy()
    expected = np.clip([2 * raw[0], 15 + 5 * raw[1], raw[2]], [-2, 10, -np.inf], [2, 20, np.inf])
    np.testing.assert_allclose(env.action, expected, rtol=1e-6)
    assert (batch.actions.abs() > 1).any()
    assert torch.equal(batch.log_drawn, learner.log_target(batch))


def test_normalisation_is_frozen_between_collects():
    learner = NeuralLearner("CartPole-v1", n_envs=4)
    first = learner.collect(4)
    assert torch.equal(learner.log_target(first), first.log_drawn)
    second = learner.collect(4)
    assert torch.equal(learner.log_target(second), second.log_drawn)
    # Raw observations are stored: the policy on the first batch has changed by the moments alone.
    assert not torch.equal(learner.log_target(first), first.log_drawn)


@pytest.mark.parametrize("counts", [(0, 0), (-1, 2), (2, -1)])
def test_a_batch_needs_episodes(counts):
    with pytest.raises(ValueError, match="at least one episode"):
        fork_learner(2).collect(*counts)


# -- gradients


def test_steps_are_unbiased_on_an_enumerable_problem():
    learner = fork_learner(learning_rate=1.0, reward_scale=0.5)
    w = next(learner.policy.parameters())
    start = w.detach().clone()
    steps = []
    for _ in range(40):
        batch = learner.collect(50)
        learner.ascend(batch, torch.ones(50))
        steps.append(w.detach() - start)
        with torch.no_grad():
            w.copy_(start)
    assert within_five_errors(torch.stack(steps).double(), 0.5 * fork_gradient(start))


def test_steps_on_a_defensive_mixture_are_unbiased():
    learner = fork_learner(learning_rate=1.0)
    w, tau = next(learner.policy.parameters()), next(learner.exploration.parameters())
    start, start_tau = w.detach().clone(), tau.detach().clone()
    steps, unweighted = [], []
    for _ in range(40):
        batch = learner.collect(25, 25)
        log_p, log_q = learner.log_target(batch), learner.log_exploration(batch)
        weights = 1.0 / (0.5 + 0.5 * (log_q - log_p).exp())
        for chosen, into in ((weights, steps), (torch.ones(50), unweighted)):
            learner.ascend(batch, chosen)
            into.append(w.detach() - start)
            with torch.no_grad():
                w.copy_(start)
                tau.copy_(start_tau)
    expected = fork_gradient(start)
    assert within_five_errors(torch.stack(steps).double(), expected)
    assert not within_five_errors(torch.stack(unweighted).double(), expected)


def test_step_ratios_without_truncation_are_unbiased_for_immediate_rewards():
    # At discount 0+ only a step's own reward counts, so per-step ratios at the first state suffice.
    learner = fork_learner(learning_rate=1.0, trust_region=None)
    learner.discount = 1e-12
    w, tau = next(learner.policy.parameters()), next(learner.exploration.parameters())
    start, start_tau = w.detach().clone(), tau.detach().clone()
    steps = []
    for _ in range(60):
        batch = learner.collect(0, 50)
        learner.ascend(batch, torch.ones(50), step_clip=math.inf)
        steps.append(w.detach()[0] - start[0])
        with torch.no_grad():
            w.copy_(start)
            tau.copy_(start_tau)
    p = start[0].double().softmax(-1)[1]
    expected = 0.25 * p * (1 - p) * torch.tensor([-1.0, 1.0])
    assert within_five_errors(torch.stack(steps).double(), expected)


def test_steps_and_weights_enter_as_stated():
    learner = fork_learner(20, learning_rate=1.0)
    w = next(learner.policy.parameters())
    batch = learner.collect(20)
    start = w.detach().clone()
    norm = learner.ascend(batch, torch.linspace(0, 2, 20))
    step = w.detach() - start
    assert norm == pytest.approx(step.norm().item(), rel=1e-5)
    with torch.no_grad():
        w.copy_(start)
    for b in range(20):
        learner.ascend(batch.rows()[b], torch.ones(1))
        step -= torch.linspace(0, 2, 20)[b] / 20 * (w.detach() - start)
        with torch.no_grad():
            w.copy_(start)
    assert step.abs().max() < 1e-5


@pytest.mark.parametrize("truncates", [False, True])
def test_only_truncated_episodes_go_on_in_the_value_of_the_final_observation(truncates):
    learner = NeuralLearner(counting(1, truncates=truncates), discount=0.5, trace_decay=1.0)
    with torch.no_grad():
        for parameter in learner.values.parameters():
            parameter.zero_()
        learner.values.mean.fill_(10.0)
    learner.collect(2)
    batch = learner.collect(1)
    log_now = batch.step_log_drawn[batch.mask]
    _, targets, advantages = learner._evaluate(batch, log_now, None)
    tail = 0.5 * 10.0 if truncates else 0.0
    third = 3 + tail
    expected = torch.tensor([1 + 0.5 * (2 + 0.5 * third), 2 + 0.5 * third, third])
    torch.testing.assert_close(targets[:, 0], expected.double())
    torch.testing.assert_close(advantages[:, 0], expected.double() - 10)


def test_advantages_do_not_depend_on_the_padding():
    learner = NeuralLearner(counting(4), trace_decay=0.9)
    batch = learner.collect(4)
    learner.normalise_advantages = False
    alone = [learner.signal(row, 2.0) for row in batch.rows()]
    torch.testing.assert_close(learner.signal(batch, 2.0), torch.cat(alone), rtol=1e-5, atol=1e-7)


def test_signal_of_a_table_is_the_exact_norm():
    learner = fork_learner(20)
    batch = learner.collect(15, 5)
    for clip in (None, 1.5):
        torch.testing.assert_close(
            learner.signal(batch, clip), learner.signal(batch, clip, exact=True), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_signal_of_a_network_goes_with_the_exact_norm(env):
    learner = NeuralLearner(env, n_envs=10, hidden_sizes=(16,), horizon=40)
    for _ in range(2):
        batch = learner.collect(40)
        learner.ascend(batch, torch.ones(40))
        learner.fit_values(batch)
    both = torch.stack((learner.signal(batch), learner.signal(batch, exact=True))).log()
    assert torch.corrcoef(both)[0, 1] > 0.7


def test_an_action_that_has_moved_far_enough_is_not_pushed_further():
    learner = fork_learner(20, learning_rate=0.1, trust_region=0.2)
    free = fork_learner(20, learning_rate=0.1, trust_region=None)
    moved = []
    for one in (learner, free):
        batch = one.collect(20)
        with torch.no_grad():
            before = one.policy(torch.arange(3)).exp()
        for _ in range(200):
            one.ascend(batch, torch.ones(20), 2.0)
        with torch.no_grad():
            moved.append((one.policy(torch.arange(3)).exp() / before - 1).abs().max().item())
    # Of two actions, one that gains a fifth may take more than a fifth from the other.
    assert moved[0] < 0.6
    assert moved[1] > 0.9
    assert learner.metrics["clip_fraction"] > 0


def test_first_update_is_not_touched_by_ratios_or_the_trust_region():
    steps = []
    for clip in (None, 2.0):
        learner = fork_learner(20, learning_rate=1.0)
        learner.ascend(learner.collect(20), torch.ones(20), clip)
        steps.append(next(learner.policy.parameters()).detach().clone())
    torch.testing.assert_close(*steps)


# -- exploration


def test_tau_takes_the_steps_of_w():
    learner = fork_learner(20, learning_rate=1.0)
    w, tau = next(learner.policy.parameters()), next(learner.exploration.parameters())
    difference = (tau - w).detach()
    learner.ascend(learner.collect(20), torch.ones(20))
    torch.testing.assert_close((tau - w).detach(), difference)


def test_exploration_steps_along_the_weighted_scores():
    learner = fork_learner(20, exploration_learning_rate=0.1, exploration_bound=None)
    tau = next(learner.exploration.parameters())
    batch = learner.collect(10, 10)
    coefficients = torch.linspace(-1, 1, 20, dtype=torch.float64)
    expected = torch.zeros(3, 2)
    with torch.no_grad():
        q = learner.exploration(torch.arange(3)).exp().float()
    for b, t in itertools.product(range(20), range(2)):
        state, action = batch.observations[t, b], batch.actions[t, b]
        expected[state] += coefficients[b] / 20 * (torch.eye(2)[action] - q[state])
    start = tau.detach().clone()
    learner.ascend_exploration(batch, coefficients)
    torch.testing.assert_close((tau - start).detach(), 0.1 * expected, rtol=1e-4, atol=1e-6)


def test_tau_stays_within_the_bound_of_w():
    learner = fork_learner(20, exploration_learning_rate=50.0, exploration_bound=0.7)
    batch = learner.collect(10, 10)
    learner.ascend_exploration(batch, torch.linspace(-1, 1, 20))
    w, tau = next(learner.policy.parameters()), next(learner.exploration.parameters())
    assert (tau - w).norm().item() == pytest.approx(0.7, rel=1e-5)


# -- values, memory, state


def test_values_are_learned():
    learner = fork_learner(50, values_learning_rate=0.05, values_updates=100)
    for _ in range(10):
        learner.fit_values(learner.collect(50))
    with torch.no_grad():
        values = learner.values(torch.arange(3)).double()
        p = learner.policy(torch.arange(3)).exp()
    leaves = (p[1:] * torch.tensor(Fork.pays)).sum(1)
    root = (p[0] * (leaves + torch.tensor([0.0, 0.25]))).sum()
    assert (values - torch.cat((root.view(1), leaves))).abs().max() < 0.6


def test_weights_of_zero_take_trajectories_out_of_the_fit():
    learners = [fork_learner(20, values_updates=5) for _ in range(2)]
    batches = [learner.collect(20) for learner in learners]
    batches[1].rewards[:, :10] += 1e-3
    half = (torch.arange(20) >= 10).float()
    for learner, batch in zip(learners, batches, strict=True):
        learner.values.rescale(torch.tensor([0.0, 1.0]))
        learner.values.rescale = lambda *_: None
        learner.fit_values(batch, half)
    torch.testing.assert_close(*(next(learner.values.parameters()) for learner in learners))


def test_memory_is_a_ring():
    learner = fork_learner(3, memory=5)
    batches = [learner.collect(3) for _ in range(3)]
    batches[1].log_drawn = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    assert learner.remember(batches[0]).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="slot 3"):
        learner.recall(torch.tensor([0, 3]))
    assert learner.remember(batches[1]).tolist() == [3, 4, 0]
    recalled = learner.recall(torch.tensor([0, 3, 3, 1]))
    assert recalled.log_drawn.tolist()[:3] == [-3.0, -1.0, -1.0]
    assert torch.equal(recalled.actions[:, 3], batches[0].actions[:, 1])
    assert learner.remember(batches[2]).tolist() == [1, 2, 3]
    assert torch.equal(learner.recall(torch.tensor([1])).actions, batches[2].actions[:, :1])
    with pytest.raises(ValueError, match="do not fit"):
        learner.remember(learner.collect(6))


def test_recall_pads_again_and_keeps_everything():
    learner = NeuralLearner(counting(3), memory=8)
    batch = learner.collect(6)
    slots = learner.remember(batch)
    again = learner.recall(slots)
    for name in vars(batch):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    batch.rewards.zero_()
    assert learner.recall(slots).rewards.sum() > 0
    assert torch.equal(learner.log_target(again), again.log_drawn)
    assert learner.recall(slots[:1]).rewards.shape == (1, 1)


def train(seed, env="CartPole-v1"):
    learner = NeuralLearner(env, n_envs=4, seed=seed, memory=8, horizon=30)
    for _ in range(2):
        batch = learner.collect(3, 1)
        learner.ascend(batch, torch.ones(4))
        learner.ascend_exploration(batch, torch.tensor([1.0, -1.0, 0.5, 0.0]))
        learner.fit_values(batch)
        learner.ascend(learner.recall(learner.remember(batch)), torch.ones(4), 2.0)
    return learner


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_a_seed_gives_the_same_bits(env):
    torch.manual_seed(0)
    first = train(5, env).state_dict()
    torch.manual_seed(1)
    second, third = train(5, env).state_dict(), train(6, env).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_predicting_in_between_changes_nothing():
    def run(predicts):
        learner = NeuralLearner("CartPole-v1", n_envs=2, horizon=20)
        if predicts:
            learner.predict(np.zeros((5, 4)))
        return learner.collect(2).log_drawn

    assert torch.equal(run(True), run(False))


def test_state_goes_round_and_training_goes_on_alike():
    learner = train(5)
    other = NeuralLearner("CartPole-v1", n_envs=4, seed=9, memory=8, horizon=30)
    state = learner.state_dict()
    assert all(value.is_contiguous() for value in state.values())
    other.load_state_dict(state)
    batch = learner.collect(4)
    other.normaliser.refresh()
    assert torch.equal(learner.log_target(batch), other.log_target(batch))
    assert torch.equal(learner.log_exploration(batch), other.log_exploration(batch))
    for one in (learner, other):
        one.ascend(batch, torch.ones(4))
        one.fit_values(batch)
    for (name, a), b in zip(
        learner.policy.state_dict().items(), other.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_foreign_state_is_refused_and_changes_nothing():
    learner = train(5)
    before = learner.state_dict()
    missing = {key: value for key, value in before.items() if key != "values.mean"}
    with pytest.raises(ValueError, match=r"values\.mean"):
        learner.load_state_dict(missing)
    wrong = NeuralLearner("CartPole-v1", hidden_sizes=(8, 8), horizon=30).state_dict()
    with pytest.raises(ValueError, match="has shape"):
        learner.load_state_dict(wrong)
    after = learner.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


# -- use


def test_predict_takes_one_observation_or_a_batch():
    learner = NeuralLearner(Torque(), seed=1)
    one = learner.predict(np.ones((2, 2)), deterministic=True)
    assert one.shape == (3,)
    assert one.dtype == np.float32
    many = learner.predict(np.ones((5, 2, 2)), deterministic=True)
    assert many.shape == (5, 3)
    np.testing.assert_allclose(many, np.tile(one, (5, 1)), rtol=1e-6)
    assert not np.array_equal(learner.predict(np.ones((2, 2))), learner.predict(np.ones((2, 2))))
    with pytest.raises(ValueError, match=r"shape \(2, 2\).*got shape \(3,\)"):
        learner.predict(np.ones(3))
    table = fork_learner(2)
    assert table.predict(11, deterministic=True) == 5
    assert table.predict(np.array([10, 11, 12]), deterministic=True).tolist() == [5, 5, 6]


def test_tables_are_probabilities():
    learner = fork_learner(2)
    assert learner.policy_table().shape == (3, 2)
    np.testing.assert_allclose(learner.exploration_table().sum(1), 1.0)
    with pytest.raises(ValueError, match="Discrete"):
        NeuralLearner("CartPole-v1").policy_table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cnn"}, "kind must be"),
        ({"hidden_sizes": ()}, "hidden_sizes"),
        ({"discount": 0.0}, "discount"),
        ({"trace_decay": 1.5}, "trace_decay"),
        ({"memory": -1}, "memory"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"n_envs": 0}, "n_envs"),
        ({"horizon": 0}, "horizon"),
        ({"optimizer": "Sgd"}, "unknown optimizer"),
        ({"kind": "table"}, "MlpPolicy"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeuralLearner("CartPole-v1", **options)


def test_unknown_environments_are_refused():
    with pytest.raises(ValueError, match="unknown environment"):
        NeuralLearner("CartPool-v1")
    with pytest.raises(ValueError, match="unknown environment"):
        NeuralLearner("no_such_module:CartPole-v1")


class Endless(Torque):
    horizon = None

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


def test_an_end_must_be_known():
    with pytest.raises(ValueError, match="pass horizon"):
        NeuralLearner(Endless())
    with pytest.raises(ValueError, match="pass horizon"):
        NeuralLearner(SyncVectorEnv([Endless] * 2))
    assert NeuralLearner(Endless(), horizon=7).collect(2).lengths.tolist() == [7, 7]
    learner = NeuralLearner(SyncVectorEnv([Endless] * 2), horizon=7)
    with pytest.raises(RuntimeError, match="beyond the horizon of 7"):
        learner.collect(2)


def test_vector_environments_are_made_as_the_environment_asks():
    envs, limit = make_vector_env("CartPole-v1", 3, None)
    assert not isinstance(envs.unwrapped, SyncVectorEnv)
    assert (envs.num_envs, limit) == (3, 500)
    envs, limit = make_vector_env("CartPole-v1", 3, 20)
    assert EpisodeCollector(envs, limit, 0).horizon == 20
    wrapped = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda r: 2 * r)
    envs, limit = make_vector_env(wrapped, 3, None)
    assert isinstance(envs, SyncVectorEnv)
    assert (envs.num_envs, limit) == (3, 500)
    envs, limit = make_vector_env(Counting(), 3, None)
    assert (envs.num_envs, limit) == (1, 50)
    silent = counting(2)
    silent.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        make_vector_env(silent, 2, None)


def test_rewards_that_are_not_finite_are_refused():
    env = gym.wrappers.TransformReward(Torque(), lambda _: math.nan)
    with pytest.raises(ValueError, match="not finite"):
        NeuralLearner(env, horizon=1).collect(1)


def test_weights_must_fit():
    learner = fork_learner(4)
    batch = learner.collect(4)
    with pytest.raises(ValueError, match="one weight for each of 4"):
        learner.ascend(batch, torch.ones(3))
    with pytest.raises(ValueError, match="detach"):
        learner.ascend_exploration(batch, torch.ones(4, requires_grad=True))


def test_cartpole_is_learned():
    learner = NeuralLearner("CartPole-v1", n_envs=10, seed=0)
    returns = []
    for _ in range(10):
        batch = learner.collect(10)
        returns.append(batch.raw_returns.mean().item())
        for _ in range(8):
            learner.ascend(batch, torch.ones(10), 2.0)
        learner.fit_values(batch)
    assert returns[0] < 40
    assert returns[-1] > 90
