"""The agents as a user meets them: options, training, prediction, saving, refusals."""

import json
import pickle
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

import awsgd_rl  # noqa: F401 (registers the environments)
from awsgd_rl.agents import ALGORITHMS, AWSGD, Reinforce, load_agent, make_agent
from awsgd_rl.exact import TabularMDP

GRID = "awsgd_rl/TrapGridworld-v0"
AGENTS = [AWSGD, Reinforce]
SMALL = {"size": 4, "traps": 2, "layout_seed": 1}


def small_env(**kwargs):
    return gym.make(GRID, **{**SMALL, **kwargs})


@pytest.mark.parametrize("agent_class", AGENTS)
def test_a_table_agent_learns_the_grid(agent_class):
    agent = agent_class("TablePolicy", small_env(), seed=0)
    before = TabularMDP.from_gridworld(agent.env.unwrapped).success_probability(
        agent.policy_table(), agent.env.unwrapped.horizon
    )
    agent.learn(total_episodes=2000)
    after = TabularMDP.from_gridworld(agent.env.unwrapped).success_probability(
        agent.policy_table(), agent.env.unwrapped.horizon
    )
    assert before < 0.7
    assert after > 0.95
    assert agent.num_episodes == 2000
    assert agent.history["episodes"][-1] == 2000
    assert agent.history["timesteps"][-1] == agent.num_timesteps


@pytest.mark.parametrize("variant", ["replay", "mixture", "paper"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(variant):
    def train(seed):
        agent = AWSGD("TablePolicy", small_env(), seed=seed, variant=variant)
        return agent.learn(total_episodes=300).policy_table()

    np.testing.assert_array_equal(train(5), train(5))
    assert not np.array_equal(train(5), train(6))


@pytest.mark.parametrize("agent_class", AGENTS)
@pytest.mark.parametrize(
    ("policy", "env"),
    [("TablePolicy", GRID), ("TablePolicy", "FrozenLake-v1"), ("MlpPolicy", "CartPole-v1"),
     ("MlpPolicy", "Pendulum-v1"), ("MlpPolicy", "FrozenLake-v1")],
)  # fmt: skip
def test_predict_save_load_and_sb3s_evaluation(agent_class, policy, env, tmp_path):
    made = gym.make(env, **SMALL) if env == GRID else gym.make(env)
    agent = agent_class(policy, made, seed=1, batch_size=4, updates=2)
    agent.learn(total_episodes=8)
    observations = np.stack([made.observation_space.sample() for _ in range(5)])
    expected, state = agent.predict(observations, deterministic=True)
    assert state is None
    assert all(made.action_space.contains(action) for action in expected)
    single, _ = agent.predict(observations[0], deterministic=True)
    np.testing.assert_allclose(single, expected[0], rtol=1e-5)  # another shape, another rounding
    agent.save(tmp_path / "agent")
    assert sorted(f.name for f in (tmp_path / "agent").iterdir()) == [
        "agent.json",
        "parameters.safetensors",
    ]
    for again in (agent_class.load(tmp_path / "agent"), load_agent(tmp_path / "agent", made)):
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
        assert again.config == agent.config
        assert again.num_timesteps == agent.num_timesteps
    mean, deviation = evaluate_policy(agent, gym.wrappers.TimeLimit(made, 30), 3, warn=False)
    assert np.isfinite(mean)
    assert np.isfinite(deviation)


@pytest.mark.parametrize(("variant", "follows"), [("mixture", True), ("paper", False)])
def test_only_the_papers_exploration_policy_is_free_of_the_target_policy(variant, follows):
    agent = AWSGD("MlpPolicy", "CartPole-v1", seed=0, variant=variant, batch_size=4)
    fresh = agent.learner.collect(4, 0)
    before = agent.learner.log_exploration(fresh)
    agent.learner.ascend(fresh, torch.ones(4, dtype=torch.float64))
    moved = not torch.equal(agent.learner.log_exploration(fresh), before)
    assert moved == follows
    torch.testing.assert_close(
        agent.learner.log_exploration(fresh),
        agent.learner.log_target(fresh) if follows else before,
    )


def test_learn_counts_steps_or_episodes_stops_at_false_and_goes_on():
    agent = Reinforce("TablePolicy", small_env(), seed=0)
    agent.learn(500)
    assert agent.num_timesteps >= 500
    episodes = agent.num_episodes
    agent.learn(total_episodes=30)
    assert agent.num_episodes == episodes + 30
    calls = []
    agent.learn(total_episodes=100, callback=lambda a: len(calls.append(a) or calls) < 2)
    assert len(calls) == 2
    assert calls[0] is agent
    for arguments, message in (
        ({}, "give one of"),
        ({"total_timesteps": 10, "total_episodes": 10}, "give one of"),
        ({"total_episodes": 0}, "total_episodes is 0"),
        ({"total_timesteps": 0}, "total_timesteps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.learn(**arguments)


@pytest.mark.parametrize(("variant", "by_target"), [("mixture", 1), ("paper", 0)])
def test_the_target_policy_draws_one_at_least_but_in_the_paper(variant, by_target, monkeypatch):
    agent = AWSGD("TablePolicy", small_env(), seed=0, variant=variant, exploration_share=0.95)
    drawn, collect = [], agent.learner.collect
    monkeypatch.setattr(agent.learner, "collect", lambda *n: drawn.append(n) or collect(*n))
    agent.learn(total_episodes=8)
    assert drawn == [(by_target, 8 - by_target)]


def test_history_has_every_measurement_for_each_batch():
    agent = AWSGD("TablePolicy", small_env(), seed=0, variant="mixture", exploration_share=0.5)
    agent.learn(total_episodes=200)
    names = {
        "episodes", "timesteps", "success", "return", "ess", "max_weight", "variance_ratio",
        "headroom", "updates",
    }  # fmt: skip
    assert set(agent.history) == names
    assert {len(values) for values in agent.history.values()} == {10}
    assert max(agent.history["max_weight"]) <= 2 + 1e-9
    assert all(1 <= ess <= 20 + 1e-9 for ess in agent.history["ess"])


def test_numpy_numbers_are_saved_as_plain_ones(tmp_path):
    options = {"batch_size": np.int64(4), "learning_rate": np.float32(0.1), "ratio_clip": np.inf}
    agent = AWSGD("TablePolicy", small_env(), seed=np.int64(3), **options)
    agent.learn(total_episodes=8).save(tmp_path / "agent")
    again = AWSGD.load(tmp_path / "agent")
    assert again.config == agent.config
    assert again.seed == 3


def test_an_environment_of_a_module_is_saved_by_its_id(tmp_path, monkeypatch):
    register = "import gymnasium as gym\ngym.register('Corridor-v0', {!r}, max_episode_steps=9)\n"
    entry_point = "gymnasium.envs.classic_control:CartPoleEnv"
    (tmp_path / "corridor_of_a_test.py").write_text(register.format(entry_point))
    monkeypatch.syspath_prepend(tmp_path)
    agent = Reinforce("MlpPolicy", "corridor_of_a_test:Corridor-v0", seed=0, device="cpu")
    agent.learn(total_episodes=8).save(tmp_path / "agent")
    assert Reinforce.load(tmp_path / "agent").env.spec.id == "Corridor-v0"
    del gym.registry["Corridor-v0"]


@pytest.mark.parametrize(
    "env",
    [
        gym.wrappers.NormalizeObservation(gym.make("CartPole-v1")),
        gym.make("CartPole-v1", sutton_barto_reward=object()),
    ],
)
def test_an_environment_that_no_file_can_tell_is_asked_for(env, tmp_path):
    Reinforce("MlpPolicy", env, seed=0, device="cpu").save(tmp_path / "agent")
    with pytest.raises(ValueError, match="pass env"):
        Reinforce.load(tmp_path / "agent")
    assert Reinforce.load(tmp_path / "agent", env, device="cpu").env is env


@pytest.mark.parametrize(
    ("agent_class", "options", "message"),
    [
        (AWSGD, {"exploration_share": 1.0}, "exploration_share"),
        (AWSGD, {"exploration_share": -0.1}, "exploration_share"),
        (AWSGD, {"exploration_share": float("nan")}, "exploration_share"),
        (AWSGD, {"learning_rate": -1.0}, "learning_rate"),
        (AWSGD, {"exploration_learning_rate": -1.0}, "exploration_learning_rate"),
        (AWSGD, {"exploration_bound": 0.0}, "exploration_bound"),
        (AWSGD, {"uniform_share": 1.5}, "uniform_share"),
        (AWSGD, {"memory": 3}, "memory"),
        (AWSGD, {"variant": "replya"}, "did you mean 'replay'"),
        (AWSGD, {"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        (Reinforce, {"learning_rate": 0.0}, "learning_rate"),
        (Reinforce, {"updates": 0}, "updates"),
        (Reinforce, {"batch_size": 2.5}, "batch_size"),
        (Reinforce, {"discount": 0.0}, "discount"),
        (Reinforce, {"discount": 1.1}, "discount"),
        (Reinforce, {"ratio_clip": -2.0}, "ratio_clip"),
        (Reinforce, {"value_rate": 1.1}, "value_rate"),
        (Reinforce, {"reward_scale": float("inf")}, "reward_scale"),
        (Reinforce, {"seed": -1}, "seed is -1"),
        (Reinforce, {"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_wrong_options_are_refused_in_one_line(agent_class, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        agent_class("TablePolicy", small_env(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "env", "message"),
    [
        ("TablePolice", GRID, "did you mean 'TablePolicy'"),
        ("TablePolicy", "CartPole-v1", "Discrete"),
        ("MlpPolicy", "Blackjack-v1", "Tuple"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy, env, message):
    with pytest.raises(ValueError, match=message):
        Reinforce(policy, gym.make(env), horizon=100)


@pytest.mark.parametrize("option", ["reward_to_go", "baseline"])
def test_networks_refuse_the_weak_form_of_the_seed(option):
    with pytest.raises(ValueError, match="tables on the gridworld"):
        Reinforce("MlpPolicy", gym.make("CartPole-v1"), **{option: False})


def test_unknown_algorithms_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'awsgd'"):
        make_agent("awsdg", "TablePolicy", small_env())
    plain = {"a2c", "ppo", "dqn", "sac", "td3"}
    prioritized = {"prioritized-dqn", "prioritized-sac", "prioritized-td3"}
    assert set(ALGORITHMS) == {"awsgd", "reinforce"} | plain | prioritized


def test_networks_have_no_table():
    agent = Reinforce("MlpPolicy", gym.make("CartPole-v1"), seed=0)
    with pytest.raises(ValueError, match="TablePolicy"):
        agent.policy_table()


@pytest.fixture
def saved(tmp_path):
    AWSGD("TablePolicy", small_env(), seed=0).save(tmp_path / "agent")
    return tmp_path / "agent"


def damage_json(folder):
    (folder / "agent.json").write_text('{"schema": 1, ')


def newer_schema(folder):
    about = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps({**about, "schema": 99}))


def cut_parameters(folder):
    data = (folder / "parameters.safetensors").read_bytes()
    (folder / "parameters.safetensors").write_bytes(data[: len(data) // 2])


def pickle_in_place(folder):
    class Payload:
        def __reduce__(self):
            return (print, ("code ran while a checkpoint was loaded",))

    (folder / "parameters.safetensors").write_bytes(pickle.dumps(Payload()))


def drop_parameters(folder):
    (folder / "parameters.safetensors").unlink()


def other_algorithm(folder):
    about = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps({**about, "algorithm": "reinforce"}))


def nothing_there(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_json, "damaged"),
        (newer_schema, "newer"),
        (cut_parameters, "no whole safetensors file"),
        (pickle_in_place, "no whole safetensors file"),
        (drop_parameters, "missing"),
        (other_algorithm, "reinforce"),
        (nothing_there, "no saved agent"),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused(saved, harm, message, capsys):
    harm(saved)
    with pytest.raises(ValueError, match=message) as caught:
        AWSGD.load(saved)
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_of_another_map_size_is_refused(saved):
    with pytest.raises(ValueError, match="another environment"):
        AWSGD.load(saved, env=small_env(size=5))


def test_a_checkpoint_with_nan_is_refused(saved):
    from safetensors.torch import load_file, save_file

    parameters = load_file(saved / "parameters.safetensors")
    parameters["target.logits"][0, 0] = torch.nan
    save_file(parameters, saved / "parameters.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        AWSGD.load(saved)


def test_saving_over_something_else_is_refused_and_over_an_agent_replaces_it(saved, tmp_path):
    agent = AWSGD("TablePolicy", small_env(), seed=1).learn(total_episodes=40)
    agent.save(saved)
    np.testing.assert_array_equal(AWSGD.load(saved).policy_table(), agent.policy_table())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no saved agent"):
        agent.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["agent", "thesis"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"variant": "mixture"}, {"variant": "paper"}])
def test_networks_learn_on_cuda(options):
    agent = AWSGD(
        "MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cuda", batch_size=4, **options
    )
    agent.learn(total_episodes=12)
    assert agent.learner.device.type == "cuda"
    assert agent.predict(np.zeros(4, np.float32))[0] in (0, 1)
