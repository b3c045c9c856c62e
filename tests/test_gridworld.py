import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import awsgd_rl
from awsgd_rl.envs import PRESETS, TrapGridworld, preset

ID = "awsgd_rl/TrapGridworld-v0"
OBSERVATIONS = ["discrete", "position", "one_hot"]


def grid(**arguments: Any) -> TrapGridworld:
    env = gym.make(ID, **arguments).unwrapped
    assert isinstance(env, TrapGridworld)
    return env


# --- Agreement with FrozenLake and with Gymnasium's and SB3's rules


@pytest.mark.parametrize("success_rate", [1.0, 1 / 3, 0.8])
@pytest.mark.parametrize("map_name", ["4x4", "8x8"])
def test_transitions_equal_frozen_lakes(map_name: str, success_rate: float) -> None:
    lake = gym.make(
        "FrozenLake-v1",
        map_name=map_name,
        is_slippery=success_rate < 1,
        success_rate=success_rate,
    ).unwrapped
    desc = [b"".join(row).decode() for row in lake.desc]  # type: ignore[attr-defined]
    env = grid(desc=desc, slip=1 - success_rate, goal_reward=1, trap_reward=0, step_reward=0)
    table = lake.P  # type: ignore[attr-defined]
    assert env.P.keys() == table.keys()
    for state in table:
        for action in range(4):
            ours, theirs = np.array(env.P[state][action]), np.array(table[state][action])
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


def test_episodes_equal_frozen_lakes() -> None:
    lake = gym.make("FrozenLake-v1", success_rate=0.7, max_episode_steps=1000)
    desc = ["SFFF", "FHFH", "FFFH", "HFFG"]
    env = gym.make(
        ID, desc=desc, slip=1 - 0.7, goal_reward=1, trap_reward=0, step_reward=0, horizon=1000
    )
    actions = np.random.default_rng(0).integers(4, size=300)
    assert env.reset(seed=3)[0] == lake.reset(seed=3)[0]
    for action in actions.tolist():
        ours, theirs = env.step(action), lake.step(action)
        assert ours[:4] == theirs[:4]
        if ours[2]:
            assert env.reset()[0] == lake.reset()[0]


@pytest.mark.parametrize("slip", [0.0, 0.2])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_checkers_have_nothing_to_say(observation: str, slip: float) -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = gym.make(ID, size=6, observation=observation, slip=slip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_sb3(env)
        check_env_sb3(env.unwrapped)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks on several threads wait for each other more than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_ppo_trains(observation: str) -> None:
    from stable_baselines3 import PPO

    env = gym.make(
        ID, size=3, traps=1, observation=observation, goal_reward=1, trap_reward=-1, step_reward=0
    )
    model = PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=256, learning_rate=3e-3)
    model.learn(2048)
    seen, _ = env.reset()
    for _ in range(4):
        action, _ = model.predict(seen, deterministic=True)
        seen, _, terminated, _, info = env.step(int(action))
    assert terminated
    assert info["is_success"]


# --- Registration


def test_the_module_prefix_registers_in_a_fresh_process() -> None:
    code = (
        "import gymnasium, sys\n"
        "env = gymnasium.make('awsgd_rl:awsgd_rl/TrapGridworld-v0', size=4, traps=2)\n"
        "assert env.unwrapped.n_states == 16\n"
        "heavy = {'torch', 'numba', 'matplotlib', 'scipy', 'pygame'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_spec_survives_json_and_makes_the_same_env() -> None:
    for name in ("literature", "15/9"):
        env = gym.make(preset(name).id, slip=0.1)
        assert env.spec is not None
        copy = EnvSpec.from_json(env.spec.to_json())
        assert copy == env.spec
        again, original = gym.make(copy).unwrapped, env.unwrapped
        assert isinstance(again, TrapGridworld)
        assert isinstance(original, TrapGridworld)
        assert again.P == original.P


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_id(name: str) -> None:
    found = preset(name)
    assert found.id in registry
    env = gym.make(found.id).unwrapped
    assert isinstance(env, TrapGridworld)
    assert found.description
    if "size" in found.kwargs:
        assert (env.rows, env.trap_cells.size) == (found.kwargs["size"], found.kwargs["traps"])
        other = gym.make(found.id, layout_seed=1).unwrapped
        assert isinstance(other, TrapGridworld)
        assert other.desc != env.desc


def test_presets_of_the_paper() -> None:
    traps = {name: PRESETS[name].kwargs["traps"] for name in PRESETS if name != "literature"}
    assert {name: traps[name] for name in traps if "-" in name} == {
        "seed-15": 1,
        "seed-50": 2,
        "seed-80": 4,
        "full-15": 9,
        "full-50": 100,
        "full-80": 256,
    }
    assert all(name.split("/")[1] == str(traps[name]) for name in traps if "/" in name)
    assert PRESETS["15/9"].id == "awsgd_rl/TrapGridworld-15-9-v0"


def test_literature_preset() -> None:
    env = gym.make(preset("literature").id)
    assert env.reset()[0] == 0
    right, down, up = 2, 1, 3
    rewards = [env.step(action)[1] for action in [right, down]]
    assert rewards == [-1.0, -10.0]
    # (1, 3) pays for arriving, not for pushing against the edge; only (3, 3) ends the episode.
    assert [env.step(action)[1:3] for action in [right, right, right, up]] == [
        (-1.0, False),
        (1.0, False),
        (-1.0, False),
        (-1.0, False),
    ]
    assert [env.step(action)[1:3] for action in [down, down, down]] == [
        (1.0, False),
        (-1.0, False),
        (10.0, True),
    ]


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean '15/9'"):
        preset("15/09")
    with pytest.raises(ValueError, match="did you mean 'literature'"):
        preset("literatur")


def test_lazy_exports() -> None:
    assert awsgd_rl.TrapGridworld is TrapGridworld
    assert "TrapGridworld" in dir(awsgd_rl)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = awsgd_rl.nonsense
    with pytest.raises(AttributeError, match="nonsense"):
        _ = awsgd_rl.envs.nonsense


# --- The rules of the game


def test_ends_and_their_infos() -> None:
    env = grid(desc=["SFH", "FFG"], horizon=4)
    left, down, right = 0, 1, 2

    def play(actions: list[int]) -> list[tuple[Any, ...]]:
        env.reset()
        return [env.step(action) for action in actions]

    *steps, last = play([right, right])
    assert steps == [(1, -1.0, False, False, {})]
    assert last == (2, -1000.0, True, False, {"is_success": False, "end": "trap"})
    assert play([down, right, right])[-1] == (
        (5, 1000.0, True, False, {"is_success": True, "end": "goal"})
    )
    assert play([left] * 4)[-1] == ((0, -1.0, False, True, {"is_success": False, "end": "horizon"}))
    # The goal at the horizon's last step terminates, and does not truncate.
    assert play([left, down, right, right])[-1][2:] == (
        (True, False, {"is_success": True, "end": "goal"})
    )


def test_attributes() -> None:
    env = grid(desc=["SFH", "FFG"], slip=0.2)
    assert (env.rows, env.columns, env.n_states, env.start, env.horizon) == (2, 3, 6, 0, 60)
    np.testing.assert_array_equal(env.next_state[0], [0, 3, 1, 0])
    np.testing.assert_array_equal(env.next_state[2], [2] * 4)
    np.testing.assert_array_equal(env.terminal, [0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(env.cell_reward, [-1, -1, -1000, -1, -1, 1000])
    np.testing.assert_array_equal(env.move_reward[4], [-1, -1, 1000, -1])
    np.testing.assert_array_equal(env.move_reward[5], [0] * 4)
    for array in (env.next_state, env.terminal, env.cell_reward, env.move_reward):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_matrix_and_rewards_equal_the_table(slip: float) -> None:
    env = grid(size=4, traps=3, slip=slip, cell_rewards={(0, 3): 5.0})
    dense, rewards = np.zeros((16 * 4, 16)), np.zeros((16, 4))
    for state in np.flatnonzero(~env.terminal).tolist():
        for action in range(4):
            for probability, following, reward, _ in env.P[state][action]:
                dense[state * 4 + action, following] += probability
                rewards[state, action] += probability * reward
    np.testing.assert_allclose(env.transition_matrix().toarray(), dense, atol=1e-15)
    np.testing.assert_allclose(env.reward_table(), rewards, atol=1e-12)
    totals: np.ndarray = env.transition_matrix().sum(axis=1).reshape(16, 4)
    np.testing.assert_allclose(totals, np.repeat(~env.terminal[:, None], 4, 1), atol=1e-15)


def test_slips_have_their_probability() -> None:
    env = grid(desc=["FFF", "FSF", "FFG"], slip=0.3, horizon=1)
    env.reset(seed=0)
    n, counts = 4000, np.zeros(9)
    for _ in range(n):
        counts[env.step(2)[0]] += 1
        env.reset()
    for cell, probability in {5: 0.7, 1: 0.15, 7: 0.15}.items():
        error = np.sqrt(n * probability * (1 - probability))
        assert abs(counts[cell] - n * probability) < 5 * error
    assert counts[[1, 5, 7]].sum() == n


def test_observations() -> None:
    position = grid(desc=["SFF", "FFG"], observation="position")
    one_hot = grid(desc=["SFF", "FFG"], observation="one_hot")
    position.reset()
    one_hot.reset()
    for action in (1, 2):
        seen_position, seen_one_hot = position.step(action)[0], one_hot.step(action)[0]
    np.testing.assert_array_equal(seen_position, [1, 1])
    np.testing.assert_array_equal(seen_one_hot, [0, 0, 0, 0, 1, 0])
    assert seen_one_hot.dtype == np.float32  # type: ignore[union-attr]


def test_pickled_copy_goes_on_alike() -> None:
    env = grid(size=5, traps=3, slip=0.3)
    env.reset(seed=1)
    env.step(1)
    copy = pickle.loads(pickle.dumps(env))
    for action in (1, 2, 1, 2):
        ours, theirs = env.step(action), copy.step(action)
        assert ours == theirs
        if ours[2]:
            break


def test_a_map_by_default_has_a_25th_of_traps() -> None:
    assert grid().trap_cells.size == 9
    assert grid(size=10).trap_cells.size == 4


# --- Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size is 1, expected"),
        ({"size": 5.5}, "size is 5.5"),
        ({"size": 4, "traps": 10}, "at most 9"),
        ({"size": 4, "desc": ["SG"]}, "both desc and size"),
        ({"traps": 4, "desc": ["SG"]}, "both desc and traps"),
        ({"layout_seed": 4, "desc": ["SG"]}, "both desc and layout_seed"),
        ({"desc": ["SH", "HG"]}, "no way"),
        ({"slip": 1.0}, "slip is 1.0"),
        ({"slip": -0.1}, "slip is -0.1"),
        ({"slip": float("nan")}, "slip is nan"),
        ({"goal_reward": float("nan")}, "goal_reward is nan"),
        ({"trap_reward": float("inf")}, "trap_reward is inf"),
        ({"step_reward": "a"}, "step_reward is 'a'"),
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": 1.5}, "horizon is 1.5"),
        ({"observation": "pixels"}, "observation is 'pixels'"),
        ({"render_mode": "mp4"}, "render_mode is 'mp4'"),
        ({"cell_rewards": {(15, 0): 1.0}}, r"the cell \(15, 0\)"),
        ({"cell_rewards": {(0, 0): float("nan")}}, "cell_rewards is nan"),
        ({"cell_rewards": 3}, "cell_rewards is 3"),
        ({"cell_rewards": [1, 2]}, "cell_rewards is"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TrapGridworld(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_actions() -> None:
    env = grid()
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match="action is 4"):
        env.step(4)
    with pytest.raises(ValueError, match="action is -1"):
        env.step(-1)
    assert env.elapsed == 0
