import csv
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

import awsgd_rl  # noqa: F401 (registers the environments)
from awsgd_rl.agents import load_agent, make_agent
from awsgd_rl.agents.stable_baselines import HISTORY, StableBaselines
from awsgd_rl.agents.stable_baselines_configs import (
    A2CConfig,
    DQNConfig,
    PPOConfig,
    PrioritizedDQNConfig,
    SACConfig,
    TD3Config,
)

GRID = "awsgd_rl/TrapGridworld-v0"
SMALL: dict[str, dict[str, Any]] = {
    "a2c": {},
    "ppo": {"n_steps": 64, "batch_size": 32, "n_epochs": 2},
    "dqn": {"buffer_size": 1000, "learning_starts": 20},
    "prioritized-dqn": {"buffer_size": 1000, "learning_starts": 20},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads, and much slower beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def grid() -> gym.Env[Any, Any]:
    return gym.make(GRID, size=3, traps=1, horizon=12)


def make(algorithm: str, env: Any = None, **arguments: Any) -> StableBaselines:
    options = {"seed": 0, **SMALL[algorithm], **arguments}
    return StableBaselines(algorithm, "MlpPolicy", env or grid(), device="cpu", **options)


@pytest.mark.parametrize("algorithm", SMALL)
def test_learns_for_a_number_of_episodes(algorithm: str, tmp_path: Path) -> None:
    agent = make(algorithm, seed=1, log_dir=tmp_path, tensorboard_log=tmp_path)
    assert not any(tmp_path.iterdir())
    calls: list[int] = []
    returned = agent.learn(total_episodes=30, callback=lambda a: calls.append(a.num_timesteps))
    assert returned is agent
    assert agent.num_episodes == 30
    assert set(agent.history) == set(HISTORY)
    assert agent.history["episodes"][-1] == 30
    assert sum(agent.history["updates"]) == agent.model._n_updates > 0
    assert agent.history["timesteps"][-1] == agent.num_timesteps == calls[-1]
    assert calls == agent.history["timesteps"]
    assert all(0 <= success <= 1 for success in agent.history["success"])
    with (tmp_path / "monitor.csv").open() as file:
        assert json.loads(file.readline()[1:])["env_id"] == GRID
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert sum(int(row["l"]) for row in rows) == agent.num_timesteps
    successes = [float(row["is_success"]) for row in rows]
    assert set(successes) <= {0.0, 1.0}
    assert [float(row["r"]) > 0 for row in rows] == [success == 1 for success in successes]
    assert list(tmp_path.glob(f"{algorithm}_1/events.out.tfevents.*"))


@pytest.mark.parametrize("algorithm", SMALL)
def test_learns_for_a_number_of_steps_and_goes_on(algorithm: str) -> None:
    agent = make(algorithm).learn(total_timesteps=100)
    first = agent.num_timesteps
    assert 100 <= first < 100 + 64
    agent.learn(total_timesteps=64)
    assert first + 64 <= agent.num_timesteps < first + 128


@pytest.mark.parametrize("algorithm", SMALL)
def test_the_callback_can_stop(algorithm: str) -> None:
    agent = make(algorithm).learn(total_timesteps=10_000, callback=lambda a: a.num_episodes < 5)
    assert 5 <= agent.num_episodes < 100


def test_same_seed_same_parameters() -> None:
    runs = [make("ppo", seed=seed).learn(total_timesteps=128) for seed in (3, 3, 4)]
    first, second, other = (run.model.policy.state_dict() for run in runs)
    assert all(first[name].equal(second[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {make("a2c", seed=None).seed, make_agent("a2c", "MlpPolicy", grid()).seed}
    assert len(seeds) == 2
    assert all(type(seed) is int for seed in seeds)


class Numbered(gym.Env[Any, Any]):
    """Shows the episode's number and the step's; an episode has three steps."""

    observation_space = spaces.Box(0.0, np.inf, (2,))
    action_space = spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        seen = np.array([self.episode, self.steps], np.float32)
        return seen, 1.0, False, self.steps == 3, {}


@pytest.mark.parametrize(("algorithm", "n_steps"), [("dqn", 1), ("dqn", 2), ("prioritized-dqn", 2)])
def test_no_transition_leads_from_one_training_into_the_next(algorithm: str, n_steps: int) -> None:
    agent = make(algorithm, env=Numbered(), n_steps=n_steps, gamma=1.0)
    for _ in range(3):
        agent.learn(total_episodes=2)
    buffer: Any = agent.model.replay_buffer
    samples = buffer.sample(500)
    before, after = samples.observations.numpy(), samples.next_observations.numpy()
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    np.testing.assert_array_equal(after[:, 1] - before[:, 1], samples.rewards.numpy()[:, 0])


def test_on_policy_trainings_begin_with_a_new_episode_too() -> None:
    agent = make("a2c", env=Numbered())
    for _ in range(2):
        agent.learn(total_episodes=2)
        assert agent.model._last_obs is None


@pytest.mark.parametrize("algorithm", SMALL)
def test_save_and_load(algorithm: str, tmp_path: Path) -> None:
    agent = make(algorithm, seed=5).learn(total_timesteps=64)
    agent.save(tmp_path / "agent")
    assert {p.name for p in (tmp_path / "agent").iterdir()} == {
        "agent.json",
        "parameters.safetensors",
    }
    loaded = load_agent(tmp_path / "agent", device="cpu")
    assert loaded.config == agent.config
    assert loaded.num_timesteps == agent.num_timesteps
    assert loaded.num_episodes == agent.num_episodes
    assert loaded.env.unwrapped.spec == agent.env.unwrapped.spec
    for state in range(9):
        actions = [a.predict(state, deterministic=True)[0] for a in (agent, loaded)]
        assert actions[0] == actions[1]
    before, after = agent.model.policy.state_dict(), loaded.model.policy.state_dict()
    assert all(before[name].equal(after[name]) for name in before)


def test_learning_goes_on_where_the_saved_agent_stopped(tmp_path: Path) -> None:
    agent = make("a2c", seed=5).learn(total_timesteps=50)
    agent.save(tmp_path / "agent")
    loaded = StableBaselines.load(tmp_path / "agent", device="cpu")
    for name, value in agent._state().items():
        assert loaded._state()[name].equal(value)
    assert any(name.startswith("optimizer.") for name in agent._state())
    loaded.learn(total_timesteps=10)
    assert loaded.num_timesteps == agent.num_timesteps + 10


def test_evaluate_policy_runs_on_it() -> None:
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    agent: Any = make("a2c")
    mean, deviation = evaluate_policy(agent, Monitor(grid()), n_eval_episodes=3)
    assert np.isfinite([mean, deviation]).all()


def test_success_is_nan_where_the_env_reports_none(tmp_path: Path) -> None:
    agent = make("a2c", env="CartPole-v1", log_dir=tmp_path).learn(total_episodes=3)
    assert all(math.isnan(success) for success in agent.history["success"])
    assert "nan" in (tmp_path / "monitor.csv").read_text()


def test_exploration_falls_over_the_episodes() -> None:
    agent = make("dqn", exploration_fraction=0.5).learn(total_episodes=40)
    assert agent.model.exploration_rate == pytest.approx(0.05)  # type: ignore[attr-defined]


class TupleObservations(gym.Env[Any, Any]):
    observation_space = spaces.Tuple([spaces.Discrete(2)])
    action_space = spaces.Discrete(2)


class BoxActions(gym.Env[Any, Any]):
    observation_space = spaces.Discrete(2)
    action_space = spaces.Box(-1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "pop"}, "did you mean 'ppo'"),
        ({"policy": "TablePolicy"}, "policy of ppo"),
        ({"device": "tpu9"}, "expected auto, cpu or cuda"),
        ({"seed": -1}, "seed is -1"),
        ({"learningrate": 0.1}, "did you mean 'learning_rate'"),
        ({"env": TupleObservations()}, "observation space is Tuple"),
        ({"env": BoxActions(), "algorithm": "dqn"}, "expected Discrete for dqn"),
        ({"algorithm": "prioritized-sac"}, "expected Box for prioritized-sac"),
        ({"env": gym.make_vec("CartPole-v1", 2)}, "expected one Gymnasium environment"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    default: dict[str, Any] = {"algorithm": "ppo", "policy": "MlpPolicy", "env": grid()}
    with pytest.raises(ValueError, match=message) as error:
        StableBaselines(**{**default, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (A2CConfig, {"learning_rate": -1.0}),
        (A2CConfig, {"learning_rate": math.nan}),
        (A2CConfig, {"gamma": 1.1}),
        (A2CConfig, {"n_steps": 0}),
        (PPOConfig, {"n_steps": 1, "batch_size": 1}),
        (PPOConfig, {"n_steps": 100, "batch_size": 64}),
        (PPOConfig, {"clip_range": 1.0}),
        (PPOConfig, {"ent_coef": -0.1}),
        (DQNConfig, {"buffer_size": 1.5}),
        (DQNConfig, {"learning_starts": -1}),
        (DQNConfig, {"exploration_final_eps": 2}),
        (SACConfig, {"ent_coef": "much"}),
        (SACConfig, {"ent_coef": "-0.1"}),
        (SACConfig, {"ent_coef": "auto_0"}),
        (SACConfig, {"tau": 1.5}),
        (TD3Config, {"action_noise": -0.1}),
        (PrioritizedDQNConfig, {"proposal": "prioritised"}),
        (PrioritizedDQNConfig, {"normaliser": None}),
        (PrioritizedDQNConfig, {"alpha": -1.0}),
        (PrioritizedDQNConfig, {"beta": 1.1}),
        (PrioritizedDQNConfig, {"double_q": 1}),
    ],
)
def test_bad_settings(config: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        config(**options)
    assert next(reversed(options)) in str(error.value) or next(iter(options)) in str(error.value)


@pytest.mark.parametrize("totals", [{}, {"total_timesteps": 5, "total_episodes": 5}])
def test_one_total_is_needed(totals: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give one of"):
        make("a2c").learn(**totals)


@pytest.mark.parametrize("total", ["total_timesteps", "total_episodes"])
def test_totals_are_positive(total: str) -> None:
    with pytest.raises(ValueError, match=f"{total} is 0"):
        make("a2c").learn(
            0 if total == "total_timesteps" else None, 0 if total != "total_timesteps" else None
        )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make("a2c").save(tmp_path / "agent")
    return tmp_path / "agent"


def damage_nothing_there(path: Path) -> None:
    (path / "agent.json").unlink()


def damage_json(path: Path) -> None:
    (path / "agent.json").write_text('{"schema": ')


def damage_short_json(path: Path) -> None:
    about = json.loads((path / "agent.json").read_text())
    del about["config"]
    (path / "agent.json").write_text(json.dumps(about))


def damage_other_algorithm(path: Path) -> None:
    about = json.loads((path / "agent.json").read_text())
    (path / "agent.json").write_text(json.dumps({**about, "algorithm": "awsgd"}))


def damage_no_parameters(path: Path) -> None:
    (path / "parameters.safetensors").unlink()


def damage_truncated_parameters(path: Path) -> None:
    parameters = path / "parameters.safetensors"
    parameters.write_bytes(parameters.read_bytes()[:-1000])


def damage_names(path: Path) -> None:
    save_file({"other": torch.zeros(3)}, path / "parameters.safetensors")


def damage_other_shapes(path: Path) -> None:
    make("a2c", env="CartPole-v1").save(path.parent / "other")
    parameters = path.parent / "other" / "parameters.safetensors"
    parameters.replace(path / "parameters.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_json,
        damage_short_json,
        damage_other_algorithm,
        damage_no_parameters,
        damage_truncated_parameters,
        damage_names,
        damage_other_shapes,
    ],
)
def test_a_damaged_agent_is_refused(saved: Path, damage: Any) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=r"agent|damaged|safetensors|fit|unknown") as error:
        StableBaselines.load(saved, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", ["a2c", "dqn"])
def test_nothing_is_left_in_the_temporary_directory(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    StableBaselines(algorithm, "MlpPolicy", "CartPole-v1").learn(200)
    assert not list(tmp_path.iterdir())
