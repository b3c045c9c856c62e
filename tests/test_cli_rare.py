"""`awsgd-rl evaluate DIR --rare`."""

import json

import gymnasium as gym
import numpy as np
import pytest

from awsgd_rl import cli, plots_maps
from awsgd_rl.agents import AWSGD, tables

GRIDWORLD = "awsgd_rl/TrapGridworld-v0"


@pytest.fixture
def agent(tmp_path):
    """A saved table agent, barely trained."""
    env = gym.make(GRIDWORLD, desc=["SFFF", "FFHF", "FFFF", "FFFG"], horizon=40)
    AWSGD("TablePolicy", env, seed=0).learn(total_episodes=400).save(tmp_path / "agent")
    return tmp_path / "agent"


def run(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_writes_results_and_figures(agent, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(agent, "--rare", "failure", "--episodes", 3000, "--out", out) == 0
    results = json.loads((out / "results.json").read_text())
    summary = results["summary"]
    assert summary["failure_low"] < summary["failure"] < summary["failure_high"]
    assert 0 < summary["failure_se"] <= 0.1 * summary["failure"]
    assert {"ess", "episodes", "naive_episodes", "variance_ratio"} <= summary.keys()
    assert results["rows"][0]["outcome"] == 1.0
    assert len(results["rows"][0]["actions"]) == results["rows"][0]["length"]
    for kind in ("png", "svg"):
        assert (out / f"failures.{kind}").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "plain episodes for this error" in printed
    assert "the likeliest failures met" in printed
    assert "down" in printed
    assert json.loads((out / "config.json").read_text())["config"]["rare"] == "failure"


def test_relative_error_is_met(agent, tmp_path):
    out = tmp_path / "out"
    assert run(agent, "--rare", "trap", "--relative-error", 0.03, "--out", out, "--quiet") == 0
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert summary["trap_se"] <= 0.03 * summary["trap"]


def test_says_when_there_is_only_a_bound(tmp_path, capsys):
    env = gym.make(GRIDWORLD, desc=["SFF", "FFF", "FFG"], horizon=500)
    AWSGD("TablePolicy", env, seed=0).save(tmp_path / "agent")
    out = tmp_path / "out"
    assert run(tmp_path / "agent", "--rare", "failure", "--episodes", 400, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "probability of failure, at most" in printed
    assert "None of 400 episodes had the outcome: the number is a 95 % upper bound" in printed
    assert "deterministic" not in printed
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert summary["bound_only"] == 1
    assert summary["failure"] == 0
    assert 0.007 < summary["failure_high"] < 0.02


@pytest.mark.parametrize(
    ("outcome", "horizon", "line"),
    [
        ("failure", 40, "probability of failure, at most"),
        ("failure", 4, "probability of failure, at least"),
        ("return", 40, "mean return, no interval"),
    ],
)
def test_says_when_the_policy_is_deterministic(tmp_path, capsys, outcome, horizon, line):
    agent = AWSGD(
        "TablePolicy", gym.make(GRIDWORLD, desc=["SFF", "FFF", "FFG"], horizon=horizon), seed=0
    )
    logits = np.full((9, 4), -1e4)
    logits[:6, 1] = logits[6:, 2] = 0.0
    if horizon == 4:
        logits[0] = [0.0, -1e4, -1e4, -1e4]  # against the wall
    agent.learner.target = tables.make_table(logits)
    agent.save(tmp_path / "agent")
    out = tmp_path / "out"
    assert run(tmp_path / "agent", "--rare", outcome, "--episodes", 300, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "The policy is deterministic" in printed
    assert line in printed
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert (summary["deterministic"], summary["bound_only"]) == (1, 1)
    assert not (out / "failures.png").exists()


def test_says_when_the_episodes_were_too_few(agent, tmp_path, capsys):
    arguments = ("--rare", "failure", "--episodes", 200, "--relative-error", 0.001)
    assert run(agent, *arguments, "--out", tmp_path / "out") == 0
    assert "too few for a standard error of 0.001" in capsys.readouterr().out


def test_networks_on_other_environments(tmp_path, capsys):
    agent = AWSGD("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_envs=1)
    agent.save(tmp_path / "agent")
    out = tmp_path / "out"
    assert run(tmp_path / "agent", "--rare", "return", "--episodes", 200, "--out", out) == 0
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert 15 < summary["return"] < 30
    assert not (out / "failures.png").exists()
    printed = capsys.readouterr().out
    assert "off the typical return" in printed
    assert "Plain rollouts would have done as well" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rare", "failures"), "did you mean 'failure'"),
        (("--rare", "failure", "--episodes", "50"), "too few for an interval"),
        (("--rare", "failure", "--relative-error", "0"), "relative_error is 0"),
        (("--rare", "failure", "--deterministic"), "evaluates the stochastic policy"),
        (("--rare", "failure", "--render", "gif"), "both given"),
        (("--rare", "failure", "--seed", "-1"), "--seed is -1"),
        (("--relative-error", "0.2"), "is for --rare"),
    ],
)
def test_bad_usage_is_one_line(agent, tmp_path, capsys, arguments, message):
    assert run(agent, *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_agents_and_environments_are_refused(agent, tmp_path, capsys):
    AWSGD("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", n_envs=1).save(tmp_path / "pendulum")
    AWSGD("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_envs=1).save(tmp_path / "pole")
    about = json.loads((agent / "agent.json").read_text())
    about["env"]["kwargs"]["desc"] = ["SFF", "FFF", "FFG"]
    (agent / "agent.json").write_text(json.dumps(about))
    for path, message in (
        (tmp_path / "pendulum", "expected Discrete actions"),
        (tmp_path / "pole", "reports no is_success"),
        (agent, "of another environment"),
        (tmp_path / "nothing", "there is no folder"),
    ):
        assert run(path, "--rare", "failure", "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_trajectory_maps_refuse_what_does_not_fit():
    def draw(*panels):
        common = {"columns": 3, "states": 9, "start": 0, "goals": [8], "traps": [4]}
        return plots_maps.trajectory_maps(panels, **common)

    path = plots_maps.TrajectoryPanel("", np.array([0, 1, 4]), np.array([0.9, 0.01]))
    assert len(draw(path, path, path, path).axes) == 4
    with pytest.raises(ValueError, match="got no panel"):
        draw()
    for wrong in (path._replace(cells=np.array([0, 1, 9])), path._replace(cells=path.cells[:2])):
        with pytest.raises(ValueError, match="expected"):
            draw(wrong)
