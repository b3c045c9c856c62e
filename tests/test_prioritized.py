import copy
import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer
from torch import Tensor, nn

from awsgd_rl.agents import load_agent
from awsgd_rl.agents.prioritized import PrioritizedDQN, PrioritizedSAC, PrioritizedTD3
from awsgd_rl.agents.prioritized_buffer import PrioritizedReplayBuffer, PrioritizedSamples
from awsgd_rl.base import Draw
from awsgd_rl.cli import main
from awsgd_rl.runs import read_results

PLAIN: dict[Any, Any] = {PrioritizedDQN: DQN, PrioritizedSAC: SAC, PrioritizedTD3: TD3}
ALGORITHMS = list(PLAIN)
SGD = {"optimizer_class": torch.optim.SGD}
OPTIONS: dict[str, dict[str, Any]] = {
    "priority": {},
    "two-stage": {"proposal": "two-stage"},
    "uniform": {"proposal": "uniform"},
    "gradient-norm": {"signal": "gradient-norm"},
    "three-steps": {"n_steps": 3, "uniform_share": 0.1},
}


def make(algorithm: Any, env: Any = None, **options: Any) -> Any:
    """A model with small networks, which says nothing."""
    env = env or ("CartPole-v1" if algorithm in (PrioritizedDQN, DQN) else "Pendulum-v1")
    settings = {
        "policy": "MlpPolicy",
        "seed": 0,
        "buffer_size": 1000,
        "learning_starts": 20,
        "batch_size": 16,
        "train_freq": 1,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [16, 16], **options.pop("policy_kwargs", {})},
        **options,
    }
    model = algorithm(env=env, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(first: Any, second: Any) -> bool:
    mine, yours = first.policy.state_dict(), second.policy.state_dict()
    return all(torch.equal(mine[name], yours[name]) for name in mine)


def everything(buffer: PrioritizedReplayBuffer) -> Any:
    """All transitions, by slot."""
    slots = torch.arange(buffer.size())
    return buffer.core.transitions(Draw(slots, torch.zeros(len(slots), dtype=torch.float64)))


def priorities(model: Any) -> Tensor:
    """The filled slots' priorities^α."""
    tree: Tensor = model.buffer.core.proposal.tree.scores[: model.buffer.size()].clone()
    return tree


class Recorder:
    """Keeps what the buffer of a model returns."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[PrioritizedSamples] = []
        sample = model.buffer.sample

        def recorded(*args: Any, **kwargs: Any) -> PrioritizedSamples:
            self.batches.append(sample(*args, **kwargs))
            return self.batches[-1]

        monkeypatch.setattr(model.buffer, "sample", recorded)


# Training


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_weights_of_one_a_step_is_stable_baselines_own(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(algorithm, proposal="uniform").learn(60)
    plain = make(PLAIN[algorithm])
    for name in ("policy", "actor.optimizer", "critic.optimizer", "policy.optimizer"):
        parts = [model, plain]
        for attribute in name.split("."):
            parts = [getattr(part, attribute, None) for part in parts]
        if parts[0] is not None:
            parts[1].load_state_dict(copy.deepcopy(parts[0].state_dict()))
    if algorithm is PrioritizedSAC:
        plain.log_ent_coef.data.copy_(model.log_ent_coef.data)
        state = copy.deepcopy(model.ent_coef_optimizer.state_dict())
        plain.ent_coef_optimizer.load_state_dict(state)
    batches = [model.buffer.sample(16) for _ in range(4)]
    plain._n_updates = model._n_updates
    for learner, kind in ((model, PrioritizedSamples), (plain, ReplayBufferSamples)):
        fields = len(ReplayBufferSamples._fields) if kind is ReplayBufferSamples else None
        queue = iter([kind(*batch[:fields]) for batch in batches])
        monkeypatch.setattr(
            learner.replay_buffer, "sample", lambda *_, queue=queue, **__: next(queue)
        )
        torch.manual_seed(3)
        learner.train(gradient_steps=4, batch_size=16)
    for mine, theirs in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for name, value in plain.logger.name_to_value.items():
        assert model.logger.name_to_value[name] == pytest.approx(value, rel=1e-4), name


def weights_by_hand(scores: Tensor, slots: Tensor, beta: float) -> Tensor:
    """Schaul (2016), §3.4, from priorities^α."""
    weights = (len(scores) * scores[slots] / scores.sum()) ** -beta
    return (weights / weights.max()).float()


def gradient(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


def test_weights_reach_the_loss_of_dqn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(
        PrioritizedDQN, policy_kwargs=SGD, learning_rate=1.0, max_grad_norm=1e9, beta=lambda _: 0.7
    )
    model.learn(20)
    with torch.no_grad():  # other values than the target's
        model.q_net.q_net[-1].bias += torch.tensor([0.3, -2.0])
    model.buffer.core.set_priorities(torch.arange(20), torch.linspace(0.1, 5.0, 20))
    scores, recorder = priorities(model), Recorder(model, monkeypatch)
    before = parameters(model.q_net)
    expected_network = pickle.loads(pickle.dumps(model.q_net))
    model.train(gradient_steps=1, batch_size=16)

    (batch,) = recorder.batches
    slots = batch.source.draw.items
    torch.testing.assert_close(scores, torch.linspace(0.1, 5.0, 20).double() ** 0.6)
    weights = weights_by_hand(scores, slots, 0.7)
    assert weights.min() < 0.7
    total = [torch.zeros_like(parameter) for parameter in before]
    for i in range(16):
        value = expected_network(batch.observations[i : i + 1])[0, batch.actions[i, 0]]
        following = model.q_net_target(batch.next_observations[i : i + 1]).max()
        target = batch.rewards[i, 0] + 0.99 * (1.0 - batch.dones[i, 0]) * following.detach()
        error = value - target
        huber = 0.5 * error**2 if error.abs() < 1.0 else error.abs() - 0.5
        for part, g in zip(total, gradient(huber, expected_network), strict=True):
            part += weights[i] * g / 16
    for old, new, g in zip(before, parameters(model.q_net), total, strict=True):
        torch.testing.assert_close(old - new, g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algorithm", [PrioritizedSAC, PrioritizedTD3])
def test_weights_reach_the_losses_of_critics_and_actor(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ent_coef": "auto_0.2"}
    if algorithm is PrioritizedTD3:
        options = {"policy_delay": 1, "target_policy_noise": 1e-12}
    model = make(algorithm, policy_kwargs=SGD, learning_rate=0.01, beta=lambda _: 0.7, **options)
    model.learn(20)
    model.buffer.core.set_priorities(torch.arange(20), torch.linspace(0.1, 5.0, 20))
    scores, recorder = priorities(model), Recorder(model, monkeypatch)
    critic, actor = parameters(model.critic), parameters(model.actor)
    old: Any = pickle.loads(pickle.dumps((model.actor, model.critic, model.critic_target)))
    old_actor, old_critic, old_target = old
    torch.manual_seed(3)
    model.train(gradient_steps=1, batch_size=16)

    (batch,) = recorder.batches
    weights = weights_by_hand(scores, batch.source.draw.items, 0.7)
    torch.manual_seed(3)
    entropy = torch.zeros(16)
    if algorithm is PrioritizedSAC:
        actions, log_prob = old_actor.action_log_prob(batch.observations)
        next_actions, next_log_prob = old_actor.action_log_prob(batch.next_observations)
        entropy = -0.2 * next_log_prob
        missing = (weights * (log_prob - 1.0)).mean()  # −1 is the target entropy
        torch.testing.assert_close(model.log_ent_coef.grad, -missing.detach()[None])
    else:
        actions = old_actor(batch.observations)
        next_actions = old_actor(batch.next_observations).clamp(-1, 1)
    values = torch.minimum(*old_target(batch.next_observations, next_actions))[:, 0] + entropy
    targets = (batch.rewards + 0.99 * (1 - batch.dones) * values[:, None]).detach()[:, 0]
    first, second = (v[:, 0] for v in old_critic(batch.observations, batch.actions))
    losses = (first - targets) ** 2 + (second - targets) ** 2
    losses = losses / 2 if algorithm is PrioritizedSAC else losses
    steps = gradient((weights * losses).mean(), old_critic)
    for before, after, g in zip(critic, parameters(model.critic), steps, strict=True):
        torch.testing.assert_close(before - after, 0.01 * g, rtol=1e-3, atol=1e-6)
    if algorithm is PrioritizedSAC:
        worth = torch.minimum(*model.critic(batch.observations, actions))[:, 0] - 0.2 * log_prob
    else:
        worth = model.critic(batch.observations, actions)[0][:, 0]
    steps = gradient(-(weights * worth).mean(), old_actor)
    for before, after, g in zip(actor, parameters(model.actor), steps, strict=True):
        torch.testing.assert_close(before - after, 0.01 * g, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("signal", ["td-error", "gradient-norm"])
def test_errors_reach_the_priorities(
    algorithm: Any, signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(algorithm, signal=signal).learn(20)
    recorder, before = Recorder(model, monkeypatch), priorities(model)
    torch.manual_seed(3)
    evaluated: list[tuple[Tensor, Tensor]] = []
    evaluate = model._evaluate
    monkeypatch.setattr(model, "_evaluate", lambda b: evaluated.append(evaluate(b)) or evaluated[0])
    model.train(gradient_steps=1, batch_size=8)
    errors, given = evaluated[0]
    assert errors.shape == (8, 1 if algorithm is PrioritizedDQN else 2)
    if signal == "td-error":
        torch.testing.assert_close(given, errors.abs().mean(1).detach())
    slots = recorder.batches[0].source.draw.items
    expected = before.clone()
    for slot, number in zip(slots.tolist(), given.double().tolist(), strict=True):
        expected[slot] = (number + 1e-6) ** 0.6
    assert 0 < len(slots.unique()) < 20
    torch.testing.assert_close(priorities(model), expected)


@pytest.mark.parametrize("algorithm", [PrioritizedDQN, PrioritizedTD3])
def test_the_gradient_norm_is_that_of_the_last_layer(algorithm: Any) -> None:
    options = {} if algorithm is PrioritizedDQN else {"target_policy_noise": 1e-12}
    model = make(algorithm, signal="gradient-norm", **options).learn(40)
    batch = model.buffer.sample(12)
    errors, signal = model._evaluate(batch)
    assert not signal.requires_grad
    heads = [
        head[-1]
        for head in (
            [model.q_net.q_net] if algorithm is PrioritizedDQN else model.critic.q_networks
        )
    ]
    weights = [parameter for head in heads for parameter in head.parameters()]
    for i in range(12):
        if algorithm is PrioritizedDQN:
            loss = nn.functional.smooth_l1_loss(errors[i], torch.zeros(1))
        else:
            loss = 0.5 * errors[i].square().sum()
        parts = torch.autograd.grad(loss, weights, retain_graph=True)
        norm = torch.cat([part.flatten() for part in parts]).norm()
        torch.testing.assert_close(signal[i], norm, rtol=1e-4, atol=1e-6)


def test_double_q_lets_the_online_network_choose() -> None:
    model = make(PrioritizedDQN, double_q=True).learn(60)
    with torch.no_grad():
        model.q_net.q_net[-1].bias += torch.tensor([5.0, -5.0])
        model.q_net_target.q_net[-1].bias += torch.tensor([-5.0, 5.0])
    batch = model.buffer.sample(64)
    with torch.no_grad():
        targets = model._targets(batch)
        values = model.q_net_target(batch.next_observations)[:, :1]  # the worse one
        torch.testing.assert_close(targets, batch.rewards + (1 - batch.dones) * 0.99 * values)
        model.double_q = False
        values = model.q_net_target(batch.next_observations)[:, 1:]
        torch.testing.assert_close(
            model._targets(batch), batch.rewards + (1 - batch.dones) * 0.99 * values
        )


def test_beta_rises_to_one_over_the_training() -> None:
    model = make(PrioritizedDQN, beta=0.2, train_freq=4)
    seen: dict[int, float] = {}
    record = model._record
    model._record = lambda *a, **k: (
        record(*a, **k),
        seen.update({model.num_timesteps: model._beta()}),
    )
    model.learn(101)  # 104 steps: the progress that remains goes below 0
    assert seen[24] == pytest.approx(0.2 + 0.8 * 24 / 101)
    assert seen[104] == 1.0
    assert model.logger.name_to_value["train/beta"] == 1.0


@pytest.mark.parametrize(
    ("options", "beta"),
    [
        ({}, 0.4 + 0.6 * 0.25),
        ({"beta": lambda remaining: 0.9 * remaining}, 0.9 * 0.75),
        ({"beta": 1}, 1.0),
        ({"proposal": "two-stage"}, 1.0),
        ({"proposal": "two-stage", "beta": 0.0}, 0.25),
    ],
)
def test_beta_at_a_quarter_of_the_training(options: dict[str, Any], beta: float) -> None:
    model = make(PrioritizedDQN, **options)
    model._current_progress_remaining = 0.75
    assert model._beta() == pytest.approx(beta)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_two_stage_weights_are_those_of_the_candidates(share: float) -> None:
    model = make(PrioritizedDQN, proposal="two-stage", uniform_share=share).learn(60)
    scored: list[Tensor] = []
    score = model._score

    modes: list[bool] = []
    values = model._values
    model._values = lambda batch: modes.append(model.policy.training) or values(batch)

    def recorded(candidates: PrioritizedSamples) -> Tensor:
        assert len(candidates.rewards) == 64
        scored.append(score(candidates))
        return scored[-1]

    model._score = recorded
    batch, weights = model._draw(16)
    (scores,) = scored
    assert modes == [False]  # batch normalisation does not count candidates
    assert model.policy.training
    with torch.no_grad():
        errors = (model._values(batch) - model._targets(batch)).abs()
    r = (1 - share) * errors[:, 0] / scores.sum() + share / 64
    torch.testing.assert_close(weights, 1.0 / (64 * r), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "envs"), [*((name, 1) for name in OPTIONS), ("priority", 2), ("three-steps", 2)]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_runs(algorithm: Any, name: str, envs: int) -> None:
    env_id = "CartPole-v1" if algorithm is PrioritizedDQN else "Pendulum-v1"
    env = DummyVecEnv([lambda: gym.make(env_id)] * envs)
    options: dict[str, Any] = {} if algorithm is PrioritizedDQN else {"train_freq": 4}
    if algorithm is PrioritizedTD3:
        options["action_noise"] = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    model = make(algorithm, env, **options, **OPTIONS[name]).learn(120)
    logged = model.logger.name_to_value
    assert model.buffer.size() == 120
    assert 1.0 <= logged["train/effective_sample_size"] <= 16.0 + 1e-5
    assert 1.0 <= logged["train/max_weight"] <= 16.0
    assert np.isfinite(logged["train/loss" if algorithm is PrioritizedDQN else "train/actor_loss"])
    assert (logged["train/max_weight"] == 1.0) == (name == "uniform")
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_gives_the_same_run(algorithm: Any) -> None:
    runs = [make(algorithm, seed=seed).learn(50) for seed in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert torch.equal(priorities(runs[0]), priorities(runs[1]))
    assert not same(runs[0], runs[2])


def test_without_a_seed_no_two_buffers_draw_the_same() -> None:
    first, second = (make(PrioritizedDQN, seed=None).buffer.core.seed for _ in range(2))
    assert first != second


def test_gsde_and_a_fixed_entropy_coefficient_run() -> None:
    make(PrioritizedSAC, use_sde=True, ent_coef=0.1, sde_sample_freq=4).learn(40)


# What is stored


class Count(gym.Env[Any, Any]):
    """Observes the time; episodes terminate after 4 steps and are truncated after 3, in turn."""

    observation_space = spaces.Box(0.0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, constant: bool = False) -> None:
        self.episode, self.time, self.constant = 0, 0, constant

    def _observe(self) -> np.ndarray[Any, Any]:
        return np.array([0.0 if self.constant else 100 * self.episode + self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode += 1
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        even = self.episode % 2 == 0
        terminated, truncated = even and self.time == 4, not even and self.time == 3
        return self._observe(), float(self.time), terminated, truncated, {}


@pytest.mark.parametrize("envs", [1, 3])
def test_ends_of_episodes_under_autoreset(envs: int) -> None:
    model = make(PrioritizedDQN, DummyVecEnv([Count] * envs), learning_starts=1000).learn(60)
    stored = everything(model.buffer)
    assert model.buffer.size() == 60
    # Never the first observation of another episode, and no step from one to the next.
    assert (stored.next_observations == stored.observations + 1).all()
    times = stored.next_observations[:, 0] % 100
    even = stored.next_observations[:, 0] // 100 % 2 == 0
    assert torch.equal(stored.rewards, times)
    terminated = even & (times == 4)
    assert terminated.any()
    assert (~even & (times == 3)).any()
    assert torch.equal(stored.discounts, torch.where(terminated, 0.0, 0.99))
    batch = model.buffer.sample(100)
    ends = (batch.next_observations % 100 == 4).float()
    assert torch.equal(batch.dones, ends)
    assert batch.rewards.shape == batch.dones.shape == batch.discounts.shape == (100, 1)


def test_timeouts_are_terminations_if_asked_for() -> None:
    kwargs = {"handle_timeout_termination": False}
    model = make(PrioritizedDQN, Count(), replay_buffer_kwargs=kwargs, learning_starts=1000)
    stored = everything(model.learn(21).buffer)
    ends = (stored.next_observations[:, 0] % 100 >= 3) & (stored.next_observations[:, 0] % 100 != 3)
    ends |= (stored.next_observations[:, 0] // 100 % 2 == 1) & (
        stored.next_observations[:, 0] % 100 == 3
    )
    assert torch.equal(stored.discounts == 0.0, ends)


@pytest.mark.parametrize("envs", [1, 2])
def test_n_step_returns_end_with_the_episode(envs: int) -> None:
    model = make(PrioritizedDQN, DummyVecEnv([Count] * envs), n_steps=3, learning_starts=1000)
    stored = everything(model.learn(80).buffer)
    times, episodes = stored.observations[:, 0] % 100, stored.observations[:, 0] // 100
    newest = stored.observations[:, 0].max()
    for i in range(80):
        time, even = int(times[i]), int(episodes[i]) % 2 == 0
        left = (4 if even else 3) - time
        if stored.observations[i, 0] > newest - 100:
            continue  # its episode has not ended yet
        steps = min(3, left)
        rewards = sum(0.99**j * (time + 1 + j) for j in range(steps))
        assert stored.rewards[i] == pytest.approx(rewards)
        expected = 0.0 if even and left <= 3 else 0.99**steps
        assert stored.discounts[i] == pytest.approx(expected)
        assert stored.next_observations[i, 0] == stored.observations[i, 0] + steps


def test_a_reset_by_learn_ends_a_return() -> None:
    model = make(PrioritizedDQN, Count(constant=True), n_steps=3, learning_starts=1000)
    model.learn(2).learn(2)  # the observations do not tell
    stored = everything(model.buffer)
    torch.testing.assert_close(stored.rewards, torch.tensor([1 + 0.99 * 2, 2.0, 1 + 0.99 * 2, 2.0]))
    model.learn(1, reset_num_timesteps=False)
    assert everything(model.buffer).rewards[2] == pytest.approx(1 + 0.99 * 2 + 0.99**2 * 3)


class Parts(gym.Env[Any, Any]):
    """Dict observations."""

    observation_space = spaces.Dict(
        {
            "where": spaces.Box(-1.0, 1.0, (3,), np.float32),
            "which": spaces.Discrete(4),
            "picture": spaces.Box(0, 255, (6,), np.uint8),
        }
    )
    action_space = spaces.Discrete(3)
    time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observation_space.sample(), 1.0, False, self.time == 7, {}


@pytest.mark.parametrize("envs", [1, 2])
def test_dict_observations(envs: int) -> None:
    env = DummyVecEnv([Parts] * envs)
    model = make(PrioritizedDQN, env, policy="MultiInputPolicy", n_steps=2).learn(60)
    batch = model.buffer.sample(5)
    assert {key: tuple(part.shape) for key, part in batch.observations.items()} == {
        "where": (5, 3),
        "which": (5, 1),
        "picture": (5, 6),
    }
    assert batch.observations["picture"].dtype == torch.uint8
    assert batch.observations["which"].dtype == torch.long


class Walk(Parts):
    observation_space = spaces.Discrete(5)  # type: ignore[assignment]


@pytest.mark.parametrize("envs", [1, 2])
def test_discrete_observations(envs: int) -> None:
    model = make(PrioritizedDQN, DummyVecEnv([Walk] * envs)).learn(60)
    assert model.buffer.sample(5).observations.shape == (5, 1)


def test_samples_are_normalised_as_stable_baselines_does() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2), clip_reward=0.2)
    model = make(PrioritizedTD3, env).learn(60)
    batch = model.buffer.sample(20, env=env)
    raw = batch.source
    assert raw.observations[:, 2].abs().max() > 1.0
    for got, stored in (
        (batch.observations, raw.observations),
        (batch.next_observations, raw.next_observations),
    ):
        expected: Any = env.normalize_obs(stored.numpy())
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
    expected = env.normalize_reward(raw.rewards.numpy())
    assert (abs(expected) == np.float32(0.2)).any()
    np.testing.assert_allclose(batch.rewards[:, 0].numpy(), expected, rtol=1e-6)


def test_only_the_keys_asked_for_are_normalised() -> None:
    env = VecNormalize(DummyVecEnv([Parts]), norm_obs_keys=["where"], norm_reward=False)
    model = make(PrioritizedDQN, env, policy="MultiInputPolicy").learn(30)
    batch = model.buffer.sample(20, env=env)
    expected: Any = env.normalize_obs({"where": batch.source.observations["where"].numpy()})
    np.testing.assert_allclose(batch.observations["where"].numpy(), expected["where"], rtol=1e-6)
    assert batch.observations["picture"].dtype == torch.uint8
    assert torch.equal(batch.rewards[:, 0], batch.source.rewards)


def test_two_stage_candidates_are_normalised_too() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = make(PrioritizedTD3, env, proposal="two-stage").learn(30)
    seen: list[PrioritizedSamples] = []

    def score(candidates: PrioritizedSamples) -> Tensor:
        seen.append(candidates)
        return torch.ones(len(candidates.rewards))

    model.buffer.sample(8, env=env, score=score)
    expected: Any = env.normalize_obs(seen[0].source.observations.numpy())
    assert expected.shape == (32, 3)
    np.testing.assert_allclose(seen[0].observations.numpy(), expected, rtol=1e-6)


def test_the_buffer_counts_as_stable_baselines_does() -> None:
    env: Any = make(PrioritizedDQN).get_env()
    spaces_ = env.observation_space, env.action_space
    buffer = PrioritizedReplayBuffer(3, *spaces_, device="cpu", proposal="uniform")
    row = np.zeros((1, 4), np.float32)
    for count in range(1, 5):
        buffer.add(row, row + 1, np.array([0]), np.ones(1), np.array([False]), [{}])
        assert (buffer.pos, buffer.full, buffer.size()) == (count % 3, count >= 3, min(count, 3))
    buffer.reset()
    assert (buffer.pos, buffer.full, buffer.size()) == (0, False, 0)


def test_stable_baselines_own_dqn_runs_on_the_buffer() -> None:
    kwargs = {"proposal": "uniform", "seed": 0, "n_steps": 2, "gamma": 0.9}
    options = {"replay_buffer_class": PrioritizedReplayBuffer, "replay_buffer_kwargs": kwargs}
    assert make(DQN, **options).learn(60).replay_buffer.size() == 60


# Files


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (PrioritizedDQN, {"double_q": True, "n_steps": 2}),
        (PrioritizedDQN, {"proposal": "two-stage"}),
        (PrioritizedSAC, {}),
        (PrioritizedTD3, {"signal": "gradient-norm"}),
    ],
)
def test_a_loaded_run_goes_on_bit_for_bit(
    algorithm: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    env_id = "CartPole-v1" if algorithm is PrioritizedDQN else "Pendulum-v1"
    model = make(algorithm, DummyVecEnv([lambda: gym.make(env_id)] * 2), **options).learn(100)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "buffer.safetensors"}
    env, torch_state, numpy_state = pickle.loads(
        pickle.dumps((model.env.envs, torch.get_rng_state(), np.random.get_state()))  # noqa: NPY002
    )
    model.learn(60, reset_num_timesteps=False)

    fresh = DummyVecEnv([lambda: gym.make(env_id)] * 2)
    fresh.envs = env
    loaded = algorithm.load(tmp_path / "model", env=fresh, force_reset=False, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(Logger(folder=None, output_formats=[]))
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    assert loaded.num_timesteps == 100
    loaded.learn(60, reset_num_timesteps=False)
    assert same(model, loaded)
    assert model.buffer.size() == loaded.buffer.size() == 160
    assert torch.equal(
        model.buffer.core.generator.get_state(), loaded.buffer.core.generator.get_state()
    )
    if "proposal" not in options:
        assert torch.equal(priorities(model), priorities(loaded))


def test_load_takes_other_options(tmp_path: Path) -> None:
    make(PrioritizedDQN, alpha=0.3, beta=lambda _: 0.5).save(tmp_path / "model")
    loaded: Any = PrioritizedDQN.load(tmp_path / "model", env=gym.make("CartPole-v1"), n_steps=4)
    assert loaded.buffer.core.n_step == loaded.n_steps == 4
    assert loaded.buffer.core.proposal.alpha == 0.3
    assert loaded._beta() == 0.5
    with pytest.raises(ValueError, match="alpha is -1"):
        PrioritizedDQN.load(tmp_path / "model", alpha=-1.0)


def test_checkpoints_hold_the_buffer(tmp_path: Path) -> None:
    model = make(PrioritizedDQN)
    model.learn(60, callback=CheckpointCallback(50, str(tmp_path), save_replay_buffer=True))
    other = make(PrioritizedDQN)
    (file,) = tmp_path.glob("*.pkl")
    other.load_replay_buffer(file)  # the name is Stable-Baselines3's, the contents are not
    assert other.buffer.pos == other.buffer.size() == 49  # callbacks come before the step is stored


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a file was unpickled",))


def test_a_buffer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = make(PrioritizedDQN).learn(30)
    model.save_replay_buffer(tmp_path / "whole")
    (tmp_path / "pickle").with_suffix(".pkl").write_bytes(pickle.dumps(Bomb()))
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-100])
    before = everything(model.buffer)
    for name in ("pickle.pkl", "short", "missing"):
        with pytest.raises(ValueError, match=name):
            model.load_replay_buffer(tmp_path / name)
    for other in (
        make(PrioritizedDQN, buffer_size=999),
        make(PrioritizedDQN, Walk()),
        make(PrioritizedDQN, alpha=0.5),
        make(PrioritizedDQN, proposal="uniform"),
        make(PrioritizedDQN, DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)),
    ):
        with pytest.raises(ValueError, match="expected"):
            other.load_replay_buffer(tmp_path / "whole")
        assert other.buffer.size() == 0
    with (tmp_path / "open").open("wb") as file, pytest.raises(ValueError, match="path of a file"):
        model.save_replay_buffer(file)
    assert torch.equal(before.observations, everything(model.buffer).observations)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposal": "prioritised"}, "unknown proposal .*did you mean 'priority'"),
        ({"signal": "td"}, "unknown signal"),
        ({"normaliser": "sum"}, "unknown normaliser"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"beta": 1.1}, "beta is 1.1"),
        ({"uniform_share": 2.0}, "uniform_share is 2.0"),
        ({"uniform_share": 1.0, "proposal": "two-stage"}, "uniform_share is 1"),
        ({"n_steps": 0}, "n_step is 0"),
        ({"buffer_size": 0}, "capacity is 0"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage is True"),
        ({"replay_buffer_class": HerReplayBuffer}, "HerReplayBuffer, expected none"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(PrioritizedDQN, **options)
    assert "\n" not in str(error.value)


def test_a_schedule_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta\(progress_remaining\) is 2.0"):
        make(PrioritizedDQN, beta=lambda _: 2.0).learn(30)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_error_that_is_no_number_stops_the_training(algorithm: Any) -> None:
    model = make(algorithm).learn(30)
    before = priorities(model)
    network = model.q_net if algorithm is PrioritizedDQN else model.critic
    next(network.parameters()).data.fill_(float("nan"))
    parameters_before = parameters(network)
    with pytest.raises(ValueError, match="signal"):
        model.train(gradient_steps=1, batch_size=16)
    assert torch.equal(priorities(model), before)
    for old, new in zip(parameters_before, parameters(network), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


@pytest.mark.parametrize("name", ["observation", "reward", "action"])
def test_a_transition_that_does_not_fit_is_refused(name: str) -> None:
    buffer = make(PrioritizedDQN).learn(5).buffer
    row = {"observation": np.zeros((1, 4), np.float32), "reward": np.zeros(1)}
    row["action"] = np.array([1])
    bad = {"observation": np.zeros((1, 5), np.float32), "reward": np.array([np.nan])}
    bad["action"] = np.array([2])
    row[name] = bad[name]
    with pytest.raises(ValueError, match=name):
        buffer.add(
            row["observation"],
            np.zeros((1, 4), np.float32),
            row["action"],
            row["reward"],
            np.array([False]),
            [{}],
        )
    assert buffer.size() == 5


# The command line


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("prioritized-dqn", "CartPole-v1", ["--double-q", "--n-steps", "2", "--n-envs", "2"]),
        ("prioritized-dqn", "CartPole-v1", ["--proposal", "two-stage", "--normaliser", "mean"]),
        ("prioritized-sac", "Pendulum-v1", ["--beta", "0.5", "--batch-size", "16"]),
        ("prioritized-td3", "Pendulum-v1", ["--signal", "gradient-norm", "--batch-size", "16"]),
        ("sac", "Pendulum-v1", ["--ent-coef", "0.1", "--batch-size", "16"]),
        ("td3", "Pendulum-v1", ["--action-noise", "0", "--batch-size", "16"]),
    ],
)
def test_train(
    algorithm: str, env: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "--algo", algorithm, "--env", env, "--eval-episodes", "1", "--device", "cpu"]
    train += ["--total-timesteps", "208", "--learning-starts", "180", "--buffer-size", "100"]
    assert main([*train, *options, "--out", "run", "--quiet"]) == 0
    results = read_results("run")
    assert results["config"]["algo"] == algorithm
    assert results["summary"]["num_timesteps"] == 208
    first, second = (load_agent("run/agent", device="cpu") for _ in range(2))
    assert same(first.model, second.model)
    state = first._state()
    assert any(name.startswith("policy.") for name in state)
    assert sum("exp_avg_sq" in name for name in state) > 5
    assert ("log_ent_coef.value" in state) == (algorithm == "prioritized-sac")
    first.learn(total_timesteps=10)
    assert not same(first.model, second.model)
    if algorithm == "prioritized-dqn":
        first.learn(total_episodes=1)
        assert 1.0 <= first.history["ess"][-1] <= 32.0
        assert first.history["max_weight"][-1] >= 1.0


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compare = ["compare", "--algos", "dqn", "prioritized-dqn", "--maps", "1", "--jobs", "1"]
    on_cart_pole = ["--env", "CartPole-v1", "--steps", "160"]
    monkeypatch.setattr("awsgd_rl.benchmarks.trial.FINAL_EPISODES", 2)
    assert main([*compare, *on_cart_pole, "--out", "a", "--quiet"]) == 0
    assert "prioritized-dqn.return_mean" in read_results("a")["summary"]
    on_a_grid = ["--size", "3", "--traps", "1", "--episodes", "10"]
    assert main([*compare, *on_a_grid, "--out", "b", "--quiet"]) == 0
    assert "prioritized-dqn.success_mean" in read_results("b")["summary"]


# The page


def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "replay.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        namespace: dict[str, Any] = {"__name__": "page"}
        exec(compile(block, str(page), "exec"), namespace)
    assert namespace["buffer"].size == 500
    loop = blocks[1].partition("for step")[2].splitlines()
    assert len([line for line in loop if line.startswith("    ")]) <= 15


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("storage", [None, "cpu"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_runs_on_cuda(algorithm: Any, name: str, storage: str | None, tmp_path: Path) -> None:
    kwargs = {"storage_device": storage}
    model = make(algorithm, device="cuda", replay_buffer_kwargs=kwargs, **OPTIONS[name]).learn(60)
    assert model.buffer.core.device.type == (storage or "cuda")
    assert model.buffer.sample(
        3, **({"score": lambda c: c.rewards[:, 0].abs() + 1} if name == "two-stage" else {})
    ).rewards.is_cuda
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
