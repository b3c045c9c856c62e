"""The gridworld's vector environment as Stable-Baselines3 sees it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import awsgd_rl  # noqa: F401 (registers the environments)
from awsgd_rl.agents.sb3_vec_env import GymnasiumVecEnv, make_vec_env
from awsgd_rl.agents.stable_baselines import StableBaselines

GRID = "awsgd_rl/TrapGridworld-v0"
KWARGS: dict[str, Any] = {"size": 4, "traps": 2, "layout_seed": 3, "horizon": 9}


def native(num_envs: int, **arguments: Any) -> GymnasiumVecEnv:
    mode = AutoresetMode.SAME_STEP
    kwargs = {**KWARGS, **arguments}
    return GymnasiumVecEnv(gym.make_vec(GRID, num_envs, autoreset_mode=mode, **kwargs))


@pytest.mark.parametrize("slip", [0.0, 0.4])
@pytest.mark.parametrize("observation", ["discrete", "position", "one_hot"])
def test_equal_to_stable_baselines_own_step_for_step(slip: float, observation: str) -> None:
    n = 5
    ours = VecMonitor(native(n, slip=slip, observation=observation))
    kwargs = {**KWARGS, "slip": slip, "observation": observation}
    theirs = DummyVecEnv([lambda: Monitor(gym.make(GRID, **kwargs)) for _ in range(n)])
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    for envs in (ours, theirs):
        envs.seed(7)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(1)
    ends = set()
    for _ in range(200):
        actions = rng.integers(4, size=n)
        one, other = ours.step(actions), theirs.step(actions)
        for part in range(3):
            assert one[part].dtype == other[part].dtype
            np.testing.assert_array_equal(one[part], other[part])
        for mine, dummy, ended in zip(one[3], other[3], one[2], strict=True):
            if not ended:
                assert mine == {}
                continue
            assert mine.keys() == dummy.keys()
            for name in ("is_success", "end", "TimeLimit.truncated"):
                assert mine[name] == dummy[name]
            np.testing.assert_array_equal(
                mine["terminal_observation"], dummy["terminal_observation"]
            )
            assert [mine["episode"][k] for k in "rl"] == [dummy["episode"][k] for k in "rl"]
            ends.add(mine["end"])
    assert ends == {"goal", "trap", "horizon"}


def test_the_seeds_are_used_once() -> None:
    envs = native(3, slip=0.4)
    envs.seed(5)
    envs.reset()
    seeds = envs.envs.np_random_seed
    assert seeds == (5, 6, 7)
    envs.reset()
    assert envs.envs.np_random_seed == seeds


def test_another_way_of_resetting_is_refused() -> None:
    with pytest.raises(ValueError, match="expected SAME_STEP"):
        GymnasiumVecEnv(gym.make_vec(GRID, 2, **KWARGS))


def test_copies_share_their_attributes() -> None:
    envs = native(3)
    assert envs.get_attr("horizon") == [9, 9, 9]
    assert envs.get_attr("horizon", [0, 2]) == [9, 9]
    assert envs.env_is_wrapped(Monitor) == [False] * 3
    with pytest.raises(AttributeError, match="cannot be set"):
        envs.set_attr("horizon", 3)
    with pytest.raises(AttributeError, match="no single environments"):
        envs.env_method("render")
    envs.close()


@pytest.mark.parametrize("env_id", [GRID, "CartPole-v1"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_rewards_are_scaled_and_returns_are_not(env_id: str, n_envs: int) -> None:
    kwargs = KWARGS if env_id == GRID else {}
    plain = make_vec_env(gym.make(env_id, **kwargs), n_envs, 1.0)
    scaled = make_vec_env(gym.make(env_id, **kwargs), n_envs, 0.01)
    for envs in (plain, scaled):
        envs.seed(0)
        envs.reset()
    total = np.zeros(n_envs)
    seen = 0
    for step in range(60):
        actions = np.full(n_envs, step % 2 + 1 if env_id == GRID else step % 2)
        (_, raw, ended, infos), (_, rewards, _, others) = plain.step(actions), scaled.step(actions)
        np.testing.assert_allclose(rewards, 0.01 * raw, rtol=1e-6)
        total += raw
        for i in np.flatnonzero(ended):
            assert infos[i]["episode"]["r"] == others[i]["episode"]["r"] == total[i]
            total[i] = 0
            seen += 1
    assert seen


def test_an_environment_without_id_has_no_copies() -> None:
    env = gym.make("CartPole-v1").unwrapped
    env.spec = None
    with pytest.raises(ValueError, match="n_envs=1"):
        make_vec_env(env, 2, 1.0)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_agents_learn_side_by_side(algorithm: str) -> None:
    options = {"ppo": {"n_steps": 32, "batch_size": 64, "n_epochs": 4}}.get(algorithm, {})
    env = gym.make(GRID, size=3, traps=0)
    agents = [
        StableBaselines(
            algorithm,
            "MlpPolicy",
            env,
            seed=3,
            device="cpu",
            n_envs=8,
            reward_scale=1e-3,
            **options,
        ).learn(total_timesteps=2048)
        for _ in range(2)
    ]
    agent = agents[0]
    assert 2048 <= agent.num_timesteps < 2048 + 8 * 32
    assert agent.history["timesteps"][-1] == agent.num_timesteps
    assert np.mean(agent.history["return"][-3:]) > np.mean(agent.history["return"][:3])
    # The same seed gives the same agent.
    np.testing.assert_array_equal(agents[0].policy_table(), agents[1].policy_table())


def test_the_table_of_a_policy() -> None:
    agent = StableBaselines("ppo", "MlpPolicy", gym.make(GRID, **KWARGS), device="cpu")
    table = agent.policy_table()
    assert table.shape == (16, 4)
    np.testing.assert_allclose(table.sum(1), 1.0)
    with torch.no_grad():
        policy: Any = agent.model.policy
        one = policy.get_distribution(torch.tensor([7])).distribution.probs[0]
    np.testing.assert_allclose(table[7], one.numpy(), rtol=1e-5)
    # What `predict` draws has these probabilities.
    torch.manual_seed(0)
    n = 2000
    drawn = np.bincount([int(agent.predict(7)[0]) for _ in range(n)], minlength=4)
    np.testing.assert_array_less(np.abs(drawn / n - table[7]), 5 * np.sqrt(table[7] / n))
    for other in ("CartPole-v1", GRID):
        with pytest.raises(ValueError, match="no table"):
            StableBaselines(
                "dqn" if other == GRID else "a2c", "MlpPolicy", other, device="cpu"
            ).policy_table()


def test_batches_count_all_environments() -> None:
    env = gym.make(GRID, **KWARGS)
    with pytest.raises(ValueError, match=r"divisor of n_steps \* n_envs = 40"):
        StableBaselines("ppo", "MlpPolicy", env, n_envs=4, n_steps=10, batch_size=64)
    with pytest.raises(ValueError, match="n_envs is 0"):
        StableBaselines("a2c", "MlpPolicy", env, n_envs=0)
    with pytest.raises(ValueError, match="reward_scale is 0"):
        StableBaselines("a2c", "MlpPolicy", env, reward_scale=0.0)
