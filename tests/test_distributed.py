"""Rollout workers: the same batches for any number of them, unbiased however stale."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
import torch

from awsgd_rl.agents import AWSGD, Reinforce, engine, tables
from awsgd_rl.agents.distributed import RolloutError, RolloutWorkers, make_sampler
from awsgd_rl.agents.rollout_pool import Job, WorkerPool
from awsgd_rl.agents.rollout_samplers import Chunk, compact, log_mixture, split
from awsgd_rl.agents.rollout_workers import ProcessEngine
from awsgd_rl.cli import main
from awsgd_rl.envs.gridworld import TrapGridworld
from awsgd_rl.exact import TabularMDP

DISCOUNT = 0.9

# Workers import what they are sent by name, so it stands in a module that they can find.
MODULE = """
import os
from pathlib import Path

import gymnasium as gym


def fall_over(what, mark):
    if mark is not None and Path(mark).exists():
        return
    if mark is not None:
        Path(mark).touch()
    if what == "raise":
        raise RuntimeError("the gripper is jammed")
    os._exit(7)


class Wrapper(gym.Wrapper):
    what, mark = "", None

    def reset(self, **arguments):
        if self.what:
            fall_over(self.what, self.mark)
        return super().reset(**arguments)


class MakeEnv:
    def __init__(self, what="", mark=None):
        self.what, self.mark = what, mark

    def __call__(self):
        env = Wrapper(gym.make("CartPole-v1", max_episode_steps=30))
        env.what, env.mark = self.what, self.mark
        return env


class Sampler:
    def __init__(self, what, mark=None):
        self.what, self.mark = what, mark

    def load(self, parameters):
        self.parameters = parameters

    def draw(self, chunk):
        if chunk.number == 2:
            fall_over(self.what, self.mark)
        return chunk.number, self.parameters["version"], os.getpid()
"""


@pytest.fixture
def trouble(tmp_path, monkeypatch):
    (tmp_path / "trouble_of_workers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import trouble_of_workers

    yield trouble_of_workers
    del sys.modules["trouble_of_workers"]


def grid_agent(**options):
    return AWSGD("TablePolicy", "awsgd_rl/TrapGridworld-v0", seed=1, **options)


def net_agent(**options):
    env = gym.make("CartPole-v1", max_episode_steps=30)
    return AWSGD("MlpPolicy", env, seed=1, device="cpu", hidden_sizes=(8,), **options)


def trained(agent, workers, episodes, callback=None, **options):
    """Everything that a run has come to, as one tuple that can be compared bit for bit."""
    with RolloutWorkers(agent, workers, **options) as rollouts:
        agent.learn(total_episodes=episodes, callback=callback and (lambda _: callback(rollouts)))
    state = {name: x.numpy().tobytes() for name, x in agent.learner.state_dict().items()}
    return history_of(agent), state


def history_of(agent):
    return {name: str(column) for name, column in agent.history.items()}  # nan is not nan


# -- the same batches ---------------------------------------------------------------------------


@pytest.mark.parametrize(("lag", "workers"), [(0, 1), (1, 2), (2, 3)])
def test_batches_of_a_table_are_the_same_for_any_number_of_workers(lag, workers):
    here = trained(grid_agent(), 0, 55, lag=lag)  # the last batch is smaller
    assert trained(grid_agent(), workers, 55, lag=lag) == here
    assert trained(grid_agent(), 0, 55, lag=lag + 1) != here
    assert trained(grid_agent(), 0, 55, lag=lag, chunk_size=5) != here


@pytest.mark.slow
def test_batches_of_a_network_are_the_same_for_any_number_of_workers():
    here = trained(net_agent(variant="mixture"), 0, 20)
    assert trained(net_agent(variant="mixture"), 2, 20) == here


def test_killed_workers_change_nothing():
    killed = []

    def kill(rollouts):
        if rollouts.batch == 2:
            for worker in list(rollouts._pool._workers):
                worker.kill()
            killed.append(rollouts)

    here = trained(grid_agent(), 0, 60)
    assert trained(grid_agent(), 1, 60, callback=kill) == here
    assert killed[0].traffic.lost >= 1


@pytest.mark.slow
def test_a_worker_that_ends_within_a_chunk_changes_nothing(trouble, tmp_path):
    mark = tmp_path / "ended"
    here = trained(net_agent(), 0, 16, make_env=trouble.MakeEnv())
    there = trained(net_agent(), 2, 16, make_env=trouble.MakeEnv("exit", str(mark)))
    assert there == here
    assert mark.exists()


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCar-v0", "FrozenLake-v1", "Pendulum-v1"])
def test_a_chunk_is_the_same_whatever_was_drawn_before(env):
    policy = "TablePolicy" if env == "FrozenLake-v1" else "MlpPolicy"
    agent = AWSGD(policy, env, seed=0, device="cpu", exploration_share=0.5, horizon=20)
    used, fresh = (make_sampler(agent, 4) for _ in range(2))
    chunks = list(split((0, 0), 3, 4, 3, 4))
    parameters = used.snapshot(agent.learner)
    used.load(parameters)
    fresh.load(parameters)
    before = [used.draw(chunk) for chunk in chunks]
    for one, other in ((before[1], fresh.draw(chunks[1])), (before[0], used.draw(chunks[0]))):
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(one, other, strict=True))
    for sampler in (used, fresh):
        sampler.close()


# -- what travels -------------------------------------------------------------------------------


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_compressed_episodes_of_the_gridworld_lose_nothing(slip):
    env = TrapGridworld(size=6, traps=4, slip=slip)
    agent = AWSGD("TablePolicy", env, seed=0, variant="mixture")
    learner = agent.learner
    sampler = make_sampler(agent, 4)
    sampler.load(sampler.snapshot(learner))
    chunk = Chunk((1, 2), 3, 4, 5, 6, 0.5)
    joined = sampler.join(learner, [sampler.draw(chunk)], 5)
    rows, outcomes = engine.rollout(
        learner.grid,
        learner.target,
        learner.exploration,
        5,
        6,
        discount=learner.discount,
        seed=chunk.seeds(1)[0],
    )
    used = int(rows.size.sum())
    assert np.array_equal(joined.rows.size, rows.size)
    assert np.array_equal(joined.rows.first, rows.first)
    assert np.array_equal(joined.rows.state, rows.state[:used])
    assert np.array_equal(joined.rows.sums, rows.sums[:used])
    assert np.array_equal(joined.returns, outcomes.total)
    assert np.array_equal(joined.lengths, outcomes.length)
    assert joined.from_target.tolist() == [True] * 5 + [False] * 6


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_episodes_of_networks_bring_what_the_learner_would_compute(env):
    agent = AWSGD("MlpPolicy", env, seed=0, device="cpu", exploration_share=0.5, horizon=15)
    learner = agent.learner
    with torch.no_grad():
        for parameter in learner.exploration.parameters():
            parameter += 0.1
    with RolloutWorkers(agent, 0, lag=0):
        fresh = learner.collect(5, 4)
    log_p, log_q = learner.log_target(fresh), learner.log_exploration(fresh)
    mixed = log_mixture(log_p.numpy(), log_q.numpy(), 4 / 9)
    # Single precision: the network's products are of other shapes here.
    np.testing.assert_allclose(fresh.log_drawn, mixed, atol=1e-4)
    steps = torch.where(fresh.from_target, log_p, log_q)
    np.testing.assert_allclose(fresh.step_log_drawn.sum(0), steps, atol=1e-4)
    assert fresh.observations.dtype == (torch.int64 if "Lake" in env else torch.float32)
    assert fresh.mask.sum(0).tolist() == fresh.lengths.tolist()


def test_whole_numbers_take_the_smallest_type():
    assert compact(np.array([0, 255])).dtype == np.uint8
    assert compact(np.array([0.0, 256.0])).dtype == np.uint16
    assert compact(np.array([], dtype=np.int64)).dtype == np.uint8


def test_traffic_is_counted():
    agent = grid_agent()
    with RolloutWorkers(agent, 1, lag=0) as rollouts:
        agent.learn(total_episodes=30)
        traffic = rollouts.traffic
    assert traffic.episodes == 30
    table = 2 * agent.learner.target.logits.nbytes
    # Once for each of the three versions, not for each of the nine chunks.
    assert 3 * table < traffic.sent < 4 * table
    dense = 100 * agent.history["timesteps"][-1]
    assert 0 < traffic.received < dense / 3


# -- staleness ----------------------------------------------------------------------------------


def tiny_agent(share, **options):
    env = TrapGridworld(desc=["SFF", "FHF", "FFG"], horizon=12)
    return AWSGD(
        "TablePolicy",
        env,
        seed=1,
        discount=DISCOUNT,
        **{"variant": "mixture", "exploration_share": share, **options},
    )


def set_policies(learner, seed):
    rng = np.random.default_rng(seed)
    shape = learner.target.logits.shape
    learner.target = tables.make_table(0.7 * rng.normal(size=shape))
    learner.exploration = tables.make_table(learner.target.logits + 0.3 * rng.normal(size=shape))
    learner.values = rng.normal(size=shape[0])


def deviations(learner, trajectories, weights, strata):
    """How many standard errors the weighted mean gradient is from the exact one, entry by entry."""
    mdp = TabularMDP.from_gridworld(learner.env)
    exact = learner.reward_scale * mdp.policy_gradient(
        learner.target.probability, DISCOUNT, horizon=learner.env.horizon
    )
    n = len(trajectories)
    variance = np.zeros_like(exact)
    for stratum in strata:
        parts = np.array_split(np.arange(n)[stratum], 200)
        means = []
        for part in parts:
            one = torch.zeros(n, dtype=torch.float64)
            one[part] = weights[part]
            means.append(learner.gradient(trajectories, one))
        variance += len(parts) * np.var(means, axis=0, ddof=1)
    error = np.sqrt(variance)
    away = np.abs(learner.gradient(trajectories, weights) - exact)
    assert (np.abs(exact) > 5 * error).mean() > 0.3  # it can tell
    return away[error > 0] / error[error > 0]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_stale_batches_are_unbiased_and_the_present_density_would_not_be(share):
    agent = tiny_agent(share)
    learner = agent.learner
    n = 40_000
    explored = round(share * n)
    with RolloutWorkers(agent, 0, lag=1, chunk_size=10_000):
        set_policies(learner, 0)
        learner.collect(n - explored, explored)
        set_policies(learner, 1)  # an update, and a large one
        stale = learner.collect(n - explored, explored)
        weights, _ = agent.weigh(stale, share)
        strata = [s for s in (slice(0, n - explored), slice(n - explored, n)) if s.stop > s.start]
        spread = float(weights.std()) / n**0.5
        assert float(weights.mean()) == pytest.approx(1.0, abs=5 * spread)
        assert weights.max() > 1 / (1 - share)  # the bound of fresh batches does not hold
        assert agent.truncate(weights)[0] is weights
        assert deviations(learner, stale, weights, strata).max() <= 5
    assert agent.lag == 0
    biased, _ = agent.weigh(stale, share)  # as if it had been drawn by the present mixture
    assert deviations(learner, stale, biased, strata).max() > 20


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_batches_are_drawn_by_the_policies_of_so_many_updates_before(lag):
    agent = tiny_agent(0.5, batch_size=10)
    learner = agent.learner
    policies = []
    with RolloutWorkers(agent, 0, lag=lag):
        for batch in range(5):
            set_policies(learner, batch)
            drawn = learner.collect(6, 4)
            policies.append((learner.target, tables.make_table(learner.exploration.logits)))
            log_p, log_q = (
                tables.log_probability(drawn.rows, drawn.which, table)
                for table in policies[max(batch - lag, 0)]
            )
            np.testing.assert_array_equal(drawn.log_drawn, log_mixture(log_p, log_q, 0.4))


def test_replay_truncates_what_is_stale():
    weights = torch.tensor([0.5, 7.0], dtype=torch.float64)
    table, net = tiny_agent(0.2, variant="replay", ratio_clip=3.0), net_agent()
    assert table.truncate(weights) == (weights, None)
    with RolloutWorkers(table, 0, lag=1), RolloutWorkers(net, 0, lag=1):
        truncated, clip = table.truncate(weights)
        assert (truncated.tolist(), clip) == ([0.5, 3.0], None)
        ones, clip = net.truncate(weights)
        assert (ones.tolist(), clip) == ([1.0, 1.0], net.config.ratio_clip)


def test_seed_and_start_name_the_streams():
    chunks = list(split((7, 0), 2, 5, 4, 4))
    assert [(c.n_target, c.n_exploration) for c in chunks] == [(4, 0), (1, 3), (0, 1)]
    assert {c.share for c in chunks} == {4 / 9}
    others = [*chunks, *split((7, 0), 3, 5, 4, 4), *split((8, 0), 2, 5, 4, 4)]
    others += split((7, 10), 2, 5, 4, 4)
    assert len({seed for c in others for seed in c.seeds(2)}) == 2 * len(others)


# -- stopping and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("make", [grid_agent, net_agent])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path, make, lag):
    def stop(agent):
        agent.save_training(tmp_path / "state")
        return len(agent.history["episodes"]) < 3

    whole, stopped, resumed = make(), make(), make()
    n = whole.config.batch_size
    with RolloutWorkers(whole, 0, lag=lag):
        whole.learn(total_episodes=6 * n)
    with RolloutWorkers(stopped, 0, lag=lag):
        stopped.learn(total_episodes=6 * n, callback=stop)
    with RolloutWorkers(resumed, 0, lag=lag):
        resumed.restore_training(tmp_path / "state")
        resumed.learn(total_episodes=3 * n)
    assert history_of(resumed) == history_of(whole)
    ends = whole.learner.state_dict()
    assert all(torch.equal(x, ends[name]) for name, x in resumed.learner.state_dict().items())


def test_workers_that_draw_already_are_restored_too(tmp_path):
    whole, resumed = grid_agent(), grid_agent()
    with RolloutWorkers(whole, 0, lag=1):
        whole.learn(total_episodes=30)
        whole.save_training(tmp_path / "state")
        whole.learn(total_episodes=30)
    with RolloutWorkers(resumed, 2, lag=1):
        resumed.learn(total_episodes=10)  # what is under way now is not wanted any more
        resumed.restore_training(tmp_path / "state")
        resumed.learn(total_episodes=30)
    assert history_of(resumed) == history_of(whole)


def test_a_state_saved_after_a_failed_batch_is_restored(tmp_path, monkeypatch):
    def jam(chunk):
        raise RuntimeError("the gripper is jammed")

    agent, again = grid_agent(), grid_agent()
    with RolloutWorkers(agent, 0, lag=2) as rollouts:
        agent.learn(total_episodes=30)
        before = history_of(agent)
        with monkeypatch.context() as patch:
            patch.setattr(rollouts, "_draw_here", jam)
            with pytest.raises(RuntimeError, match="jammed"):
                agent.learn(total_episodes=10)
        agent.save_training(tmp_path / "state")
        agent.learn(total_episodes=30)
    with RolloutWorkers(again, 0, lag=2):
        again.restore_training(tmp_path / "state")
        assert history_of(again) == before
        again.learn(total_episodes=30)
    assert history_of(again) == history_of(agent)


def test_a_state_of_other_rollouts_is_refused(tmp_path):
    agent = grid_agent()
    with RolloutWorkers(agent, 0, lag=1) as rollouts:
        agent.learn(total_episodes=20)
        agent.save_training(tmp_path / "state")
        tensors, values = rollouts.training_state()
        assert {name.partition(".")[0] for name in tensors} == {"version0"}
        for change in ({"batch": -1}, {"started": None}, {"lag": 2}):
            with pytest.raises(ValueError, match=r"rollouts'|but the run had"):
                rollouts.restore_training(tensors, {**values, **change})
        broken = {name: x * torch.nan for name, x in tensors.items()}
        with pytest.raises(ValueError, match="finite"):
            rollouts.restore_training(broken, values)
        assert rollouts.batch == 2
    with pytest.raises(ValueError, match="saved with rollout workers"):
        grid_agent().restore_training(tmp_path / "state")
    other = grid_agent()
    with RolloutWorkers(other, 0, lag=3), pytest.raises(ValueError, match="lag=3"):
        other.restore_training(tmp_path / "state")
    assert other.num_episodes == 0


def test_train_takes_workers_and_says_so(tmp_path, capsys):
    def train(*options):
        common = ["--total-episodes", "40", "--eval-episodes", "0", "--quiet"]
        return main(["train", *common, *options])

    returns = []
    for lag in ("0", "1"):
        out = tmp_path / lag
        train("--rollout-workers", "0", "--rollout-lag", lag, "--out", str(out))
        config = json.loads((out / "config.json").read_text())["config"]
        assert (config["rollout_workers"], config["rollout_lag"]) == (0, int(lag))
        returns.append(json.loads((out / "history.json").read_text())["return"])
    assert returns[0] != returns[1]
    for options, message in (
        (["--engine", "ray"], "are for --rollout-workers"),
        (["--rollout-workers", "-1"], "workers"),
        (["--rollout-workers", "1", "--algo", "reinforce"], "pass lag=0"),
    ):
        assert train("--out", str(tmp_path / "none"), *options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# -- trouble ------------------------------------------------------------------------------------


def pool_of(sampler, workers):
    return contextlib.closing(WorkerPool(ProcessEngine(sampler), workers))


def jobs_of(engine, n, version=0):
    message, size = engine.publish({"version": np.array(version)})
    return [Job(Chunk((0, 0), 0, i, 1, 0, 0.0), version, message, size) for i in range(n)]


def test_a_chunk_whose_worker_is_lost_is_drawn_by_another(trouble, tmp_path):
    with pool_of(trouble.Sampler("exit", str(tmp_path / "mark")), 1) as pool:
        jobs = jobs_of(pool.engine, 4)
        for job in jobs:
            pool.submit(job)
        numbers, versions, processes = zip(*pool.finish(jobs), strict=True)
        assert (numbers, versions) == ((0, 1, 2, 3), (0, 0, 0, 0))
        assert processes[1] != processes[3]
        assert pool.traffic.lost == 1
        assert pool.traffic.sent == 2 * jobs[0].size  # once for each worker


def test_an_error_in_a_worker_is_told_with_its_cause(trouble):
    with pool_of(trouble.Sampler("raise"), 1) as pool:
        jobs = jobs_of(pool.engine, 4)
        for job in jobs:
            pool.submit(job)
        with pytest.raises(
            RolloutError, match=r"^batch 0, chunk 2: RuntimeError: the gripper is jammed"
        ) as error:
            pool.finish(jobs)
        assert "trouble_of_workers.py" in "".join(error.value.__notes__)
        (again,) = jobs_of(pool.engine, 1, version=1)  # the worker goes on
        pool.submit(again)
        assert pool.finish([again])[0][:2] == (0, 1)


def test_a_chunk_that_ends_every_worker_is_an_error(trouble):
    with pool_of(trouble.Sampler("exit"), 1) as pool:
        jobs = jobs_of(pool.engine, 3)
        for job in jobs:
            pool.submit(job)
        with pytest.raises(RolloutError, match="batch 0, chunk 2: 3 workers ended at it"):
            pool.finish(jobs)


def test_an_error_in_the_environment_is_told_without_workers_too(trouble):
    with (
        RolloutWorkers(net_agent(), 0, make_env=trouble.MakeEnv("raise")) as rollouts,
        pytest.raises(RolloutError, match=r"^batch 0, chunk 0: RuntimeError: the gripper"),
    ):
        rollouts.agent.learn(total_episodes=8)


def test_arguments_are_checked():
    agent = grid_agent()
    for options, message in (
        ({"workers": -1}, "workers"),
        ({"lag": -1}, "lag"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"engine": "raye"}, "did you mean 'ray'"),
        ({"address": "auto"}, "pass engine='ray'"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutWorkers(agent, **options)
    with RolloutWorkers(agent, 0), pytest.raises(ValueError, match="close them first"):
        RolloutWorkers(agent, 0)
    with pytest.raises(ValueError, match="serve the agents"):
        RolloutWorkers(object())
    reinforce = Reinforce("TablePolicy", "awsgd_rl/TrapGridworld-v0", seed=0)
    with pytest.raises(ValueError, match="pass lag=0"):
        RolloutWorkers(reinforce, 0)
    with RolloutWorkers(reinforce, 0, lag=0):
        reinforce.learn(total_episodes=20)


def test_environments_that_no_worker_can_make_are_refused():
    def make():
        return gym.make("CartPole-v1")

    with pytest.raises(ValueError, match="top level of a module"):
        RolloutWorkers(net_agent(), 1, make_env=make)
    vector = gym.make_vec("CartPole-v1", 2)
    agent = AWSGD("MlpPolicy", vector, seed=0, device="cpu", horizon=500)
    with pytest.raises(ValueError, match="pass make_env="):
        RolloutWorkers(agent, 1)
    vector.close()


def test_nothing_is_left_behind():
    agent = grid_agent()
    rollouts = RolloutWorkers(agent, 2)
    agent.learn(total_episodes=20)
    assert len(multiprocessing.active_children()) >= 1
    rollouts.close()
    rollouts.close()
    assert multiprocessing.active_children() == []
    assert not [t for t in threading.enumerate() if t.name.startswith("rollouts-")]
    assert agent.learner.rollouts is None
    agent.learn(total_episodes=10)  # it draws for itself again


SCRIPT = """
if __name__ == "__main__":
    import multiprocessing, sys
    from awsgd_rl.agents import AWSGD
    from awsgd_rl.agents.distributed import RolloutWorkers

    agent = AWSGD("TablePolicy", "awsgd_rl/TrapGridworld-v0", seed=0)
    rollouts = RolloutWorkers(agent, 1)
    agent.learn(total_episodes=20)
    print(multiprocessing.active_children()[0].pid, flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="reads /proc")
@pytest.mark.parametrize("how", ["kill", "end"])
def test_workers_end_with_the_learner_however_it_ends(tmp_path, how):
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), *(["wait"] if how == "kill" else [])]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as learner:
        worker = int(learner.stdout.readline())
        if how == "kill":
            learner.kill()
        _, errors = learner.communicate(timeout=60)
    assert errors == ""
    deadline = time.monotonic() + 30
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(process):
    try:
        with open(f"/proc/{process}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- Ray ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_draws_the_same_and_survives_the_loss_of_an_actor(trouble, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # where the actors are to find the module
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or other tests leave little to the actors

    def kill(rollouts):
        if rollouts.batch == 2:
            for worker in list(rollouts._pool._workers):
                worker.kill()

    here = trained(grid_agent(), 0, 40)
    agent = grid_agent()
    assert trained(agent, 2, 40, callback=kill, engine="ray") == here
    assert not ray.is_initialized()
    make_env = trouble.MakeEnv("raise")
    with (
        RolloutWorkers(net_agent(), 1, engine="ray", make_env=make_env) as rollouts,
        pytest.raises(RolloutError, match="batch 0, chunk 0: RuntimeError: the gripper is jammed"),
    ):
        rollouts.agent.learn(total_episodes=8)
    assert not ray.is_initialized()
