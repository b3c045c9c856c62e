import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from awsgd_rl.envs import TrapGridworldVectorEnv, preset
from awsgd_rl.envs.vector import BLOCK

ID = "awsgd_rl/TrapGridworld-v0"


def make(num_envs: int, **arguments: Any) -> TrapGridworldVectorEnv:
    envs = gym.make_vec(ID, num_envs=num_envs, **arguments)
    assert isinstance(envs, TrapGridworldVectorEnv)
    return envs


def make_sync(num_envs: int, mode: AutoresetMode, **arguments: Any) -> VectorEnv:
    return gym.make_vec(
        ID,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **arguments,
    )


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    else:
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
            assert type(one) is type(other)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("slip", [0.0, 0.4])
@pytest.mark.parametrize("observation", ["discrete", "position", "one_hot"])
def test_equal_to_single_envs_step_for_step(
    mode: AutoresetMode, slip: float, observation: str
) -> None:
    # Long enough to use up the blocks of slips, with ends of all three kinds.
    n = 5
    arguments: dict[str, Any] = {"size": 4, "traps": 2, "horizon": 9, "layout_seed": 3}
    arguments |= {"slip": slip, "observation": observation}
    ours: Any = make(n, autoreset_mode=mode, **arguments)
    theirs: Any = make_sync(n, mode, **arguments)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    rng = np.random.default_rng(0)
    ends: set[str | None] = set()
    for seed in (11, None, None, [5, None, 6, 7, None]):
        for one, other in zip(ours.reset(seed=seed), theirs.reset(seed=seed), strict=True):
            assert_same(one, other)
        assert ours.np_random_seed == theirs.np_random_seed
        for _ in range(BLOCK // 2 - 50):
            actions = rng.integers(4, size=n)
            for one, other in zip(ours.step(actions), theirs.step(actions), strict=True):
                assert_same(one, other)
                if isinstance(one, dict):
                    ends |= set(one.get("final_info", one).get("end", []))
    assert ends == {None, "goal", "trap", "horizon"}


def test_metadata_and_spec() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = make(3, slip=0.1, autoreset_mode="SameStep")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert TrapGridworldVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.spec is not None
    again = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert again.num_envs == 3
    assert again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert gym.make_vec(preset("15/9").id, num_envs=2).num_envs == 2


@pytest.mark.parametrize("limit", [None, -1, 3, 100])
def test_time_limit_is_gymnasiums(limit: int | None) -> None:
    envs = make(2, size=4, traps=0, horizon=10, max_episode_steps=limit)
    single = gym.make(ID, size=4, traps=0, horizon=10, max_episode_steps=limit)
    envs.reset()
    single.reset()
    for _ in range(10):
        ours, theirs = envs.step(np.zeros(2, dtype=int)), single.step(0)
        assert ours[3].tolist() == [theirs[3]] * 2
        if theirs[3]:
            break
    assert theirs[3]
    assert ours[4]["end"].tolist() == ["horizon"] * 2


def test_results_are_not_written_over() -> None:
    envs = make(4, size=4, traps=2, slip=0.2)
    results = [envs.reset(seed=0)[0]]
    copies = [results[0].copy()]
    for _ in range(60):
        step = envs.step(np.full(4, 2))
        results += step[:4]
        copies += [part.copy() for part in step[:4]]
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)


def test_changing_a_result_changes_no_later_step() -> None:
    envs, reference = make(4, size=4, traps=2), make(4, size=4, traps=2)
    envs.reset(seed=0)[0][:] = 9
    reference.reset(seed=0)
    for action in (2, 1, 1, 2, 0, 3):
        actions = np.full(4, action)
        step = envs.step(actions)
        for one, other in zip(step[:4], reference.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        step[0][:] = 9


def test_gymnasiums_wrappers_work() -> None:
    envs = RecordEpisodeStatistics(make(8, size=3, traps=1))
    envs.reset(seed=0)
    rng = np.random.default_rng(1)
    returns = []
    for _ in range(300):
        *_, infos = envs.step(rng.integers(4, size=8))
        if "episode" in infos:
            returns += infos["episode"]["r"][infos["_episode"]].tolist()
    assert max(returns) <= 1000 - 3
    assert min(returns) >= -1000 - 89


def test_pickled_copy_goes_on_alike() -> None:
    envs = make(3, size=4, traps=2, slip=0.3)
    envs.reset(seed=4)
    envs.step(np.array([1, 2, 1]))
    copy = pickle.loads(pickle.dumps(envs))
    for _ in range(30):
        actions = np.array([1, 2, 1])
        for one, other in zip(envs.step(actions), copy.step(actions), strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint8, np.uint64])
def test_any_integer_dtype_will_do(dtype: type) -> None:
    envs, reference = make(3, slip=0.5), make(3, slip=0.5)
    envs.reset(seed=0)
    reference.reset(seed=0)
    actions = np.array([0, 3, 2])
    for _ in range(20):
        for one, other in zip(
            envs.step(actions.astype(dtype)), reference.step(actions), strict=True
        ):
            assert_same(one, other)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_render(mode: str) -> None:
    envs = make(3, size=4, traps=2, render_mode=mode)
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(seed=0)
    envs.step(np.array([1, 2, 0]))
    pictures = envs.render()
    assert pictures is not None
    assert len(pictures) == 3
    single = gym.make(ID, size=4, traps=2, render_mode=mode)
    single.reset()
    single.step(1)
    np.testing.assert_array_equal(pictures[0], single.render())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "autoreset_mode is"),
        ({"autoreset_mode": "never"}, "autoreset_mode is 'never'"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
        ({"size": 1}, "size is 1"),
        ({"goal_reward": float("nan")}, "goal_reward is nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TrapGridworldVectorEnv(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_calls() -> None:
    envs = make(3)
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="seed has 2 values, expected 3"):
        envs.reset(seed=[1, 2])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions contain 4"):
        envs.step(np.array([0, 4, 1]))
    with pytest.raises(ValueError, match="actions contain -1"):
        envs.step(np.array([0, -1, 1]))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        envs.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="float64"):
        envs.step(np.zeros(3))
