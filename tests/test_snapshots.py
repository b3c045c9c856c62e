"""Snapshots of training: what they hold is what happened, and what is not one is refused."""

import base64
import json
import pickle
import struct

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import awsgd_rl.envs  # noqa: F401 (registers the gridworld)
from awsgd_rl.agents import make_agent, snapshots
from awsgd_rl.agents.snapshots import CUT_OFF, GOAL, TRAP, SnapshotRecorder, write_history
from awsgd_rl.exact import TabularMDP
from awsgd_rl.report_maps import LEAST_VISITS, MOST_VISITS, recording_data
from awsgd_rl.report_snapshots import read_history, read_recording, read_snapshot

CELLS = 25
GRID = {"size": 5, "traps": 3}


def learn(folder, episodes=300, algo="awsgd", total=None, agent=None, grid=None, **options):
    env = gym.make("awsgd_rl/TrapGridworld-v0", **(grid or GRID))
    if agent is None:
        agent = make_agent(algo, "TablePolicy", env, seed=1, device="cpu", **options)
    recorder = SnapshotRecorder(folder, agent, total=total or episodes, unit="episodes")
    recorder.drop_after(agent.num_episodes)
    agent.learn(total_episodes=episodes, callback=recorder.record)
    return agent


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "snapshots").iterdir())}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    learn(folder)
    return folder


def test_the_moments_are_spread_over_training(recorded):
    taken = [snapshot.episodes for snapshot in read_recording(recorded).snapshots]
    assert taken[:4] == [0, 10, 20, 30]
    assert taken[-1] == 290
    assert 15 <= len(taken) <= 48
    gaps = np.diff(taken)
    assert gaps[-1] > gaps[0]


@pytest.mark.parametrize(
    ("algo", "options"),
    [("awsgd", {}), ("awsgd", {"variant": "paper"}), ("awsgd", {"variant": "mixture"})],
)
def test_weights_are_those_that_were_learned_from(tmp_path, algo, options):
    """The largest and the effective sample size of the batch are in the agent's own history."""
    agent = learn(tmp_path, algo=algo, **options)
    history = agent.history
    for snapshot in read_recording(tmp_path).snapshots:
        batch = history["episodes"].index(
            next(done for done in history["episodes"] if done > snapshot.episodes)
        )
        weights = snapshot.weights.astype(np.float64)
        if len(weights) < agent.config.batch_size:  # some of the batch
            assert weights.max() <= history["max_weight"][batch] * (1 + 1e-6)
            continue
        np.testing.assert_allclose(weights.max(), history["max_weight"][batch], rtol=1e-5)
        size = weights.sum() ** 2 / (weights**2).sum()
        np.testing.assert_allclose(size, history["ess"][batch], rtol=1e-5)


def test_the_first_policies_are_uniform_and_the_weights_one(recorded):
    first = read_recording(recorded).snapshots[0]
    np.testing.assert_allclose(first.target, 0.25)
    np.testing.assert_allclose(first.exploration, 0.25, atol=1e-6)
    np.testing.assert_allclose(first.weights, 1.0, rtol=1e-6)
    assert first.from_target.tolist() == [True] * 8 + [False] * 2
    assert (first.episodes, first.timesteps) == (0, 0)


def test_the_policies_are_those_that_drew(tmp_path):
    """A snapshot after n episodes holds the P_w of an agent that has learned from n."""
    learn(tmp_path, 60, total=2000)
    agent = learn(tmp_path / "other", 40, total=2000)
    snapshot = next(s for s in read_recording(tmp_path).snapshots if s.episodes == 40)
    np.testing.assert_allclose(snapshot.target, agent.policy_table(), atol=1e-6)
    np.testing.assert_allclose(snapshot.exploration, agent.exploration_table(), atol=1e-6)
    assert snapshot.timesteps == agent.num_timesteps


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_trajectories_are_walks_on_the_map(tmp_path, slip):
    agent = learn(tmp_path, 100, grid={**GRID, "slip": slip, "horizon": 30})
    env = agent.learner.env
    recording = read_recording(tmp_path)
    assert recording.layout.desc == env.desc
    assert (recording.slip, recording.horizon) == (slip, 30)
    ends = set()
    for snapshot in recording.snapshots:
        for k, (begin, stop) in enumerate(
            zip(snapshot.offsets[:-1], snapshot.offsets[1:], strict=True)
        ):
            moves = snapshot.moves[begin:stop]
            assert len(set(moves.tolist())) == len(moves) <= snapshot.lengths[k]
            cells, reached = moves // 4, env.next_state[moves // 4, moves % 4]
            # Every cell is the start or was come to; the last one is where it ended.
            assert set(cells) <= {env.start, *reached}
            terminal = set(reached) & {*env.goal_cells, *env.trap_cells}
            ends.add(int(snapshot.ends[k]))
            if snapshot.ends[k] == CUT_OFF:
                assert not terminal
                assert snapshot.lengths[k] == 30
            else:
                assert terminal <= set(
                    env.goal_cells if snapshot.ends[k] == GOAL else env.trap_cells
                )
                assert len(terminal) == 1
    assert ends >= {GOAL, TRAP}


def test_an_agent_without_exploration_has_one_policy(tmp_path):
    learn(tmp_path, 100, algo="reinforce")
    snapshot = read_recording(tmp_path).snapshots[-1]
    assert snapshot.exploration is None
    assert snapshot.from_target.all()
    assert len(snapshot.weights) == 12  # of a batch of 20
    np.testing.assert_allclose(snapshot.weights, 1.0, rtol=1e-6)
    assert len(recording_data(read_recording(tmp_path))["frames"][0]["policies"]) == 1


def test_long_trajectories_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_MOVES", 50)
    learn(tmp_path, 50)
    for snapshot in read_recording(tmp_path).snapshots:
        assert (np.diff(snapshot.offsets) <= 5).all()
        assert len(snapshot.moves) == snapshot.offsets[-1]


def test_recording_changes_nothing_that_is_learned(tmp_path):
    agent = learn(tmp_path, 200)
    env = gym.make("awsgd_rl/TrapGridworld-v0", **GRID)
    alone = make_agent("awsgd", "TablePolicy", env, seed=1, device="cpu")
    alone.learn(total_episodes=200)
    np.testing.assert_array_equal(agent.policy_table(), alone.policy_table())
    assert agent.history.keys() == alone.history.keys()
    for name, values in alone.history.items():
        np.testing.assert_array_equal(agent.history[name], values)


def test_a_resumed_run_records_the_same(tmp_path):
    learn(tmp_path / "whole", 300)
    agent = learn(tmp_path / "parts", 120, total=300)
    learn(tmp_path / "parts", 80, total=300, agent=agent)
    learn(tmp_path / "parts", 100, total=300, agent=agent)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_what_came_after_the_checkpoint_is_dropped(tmp_path):
    agent = learn(tmp_path, 300)
    recorder = SnapshotRecorder(tmp_path, agent, total=300, unit="episodes")
    (tmp_path / "snapshots" / ".000000000020.safetensors.partial").write_bytes(b"half")
    recorder.drop_after(30)
    assert list(files(tmp_path)) == [
        *(f"{episodes:012d}.safetensors" for episodes in (0, 10, 20)),
        "map.json",
    ]


def test_other_agents_leave_no_snapshots(tmp_path):
    env = gym.make("FrozenLake-v1")
    agent = make_agent("awsgd", "TablePolicy", env, seed=0, device="cpu")
    recorder = SnapshotRecorder(tmp_path, agent, total=50, unit="timesteps")
    recorder.drop_after(0)
    agent.learn(total_episodes=20, callback=recorder.record)
    assert not (tmp_path / "snapshots").exists()
    assert read_recording(tmp_path) is None


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.warns(RuntimeWarning, match="no snapshot could be written") as warned:
        agent = learn(tmp_path, 100)
    assert len(warned) == 1
    assert agent.num_episodes == 100
    assert read_recording(tmp_path) is None


# history


def test_the_history_is_kept(tmp_path):
    history = {"episodes": [10.0, 20.0], "success": [float("nan"), 0.5], "ess": [1.0, 2.0]}
    write_history(tmp_path, history)
    read = read_history(tmp_path)
    assert set(read) == set(history)
    for name, values in history.items():
        np.testing.assert_array_equal(read[name], values)
    assert read_history(tmp_path / "snapshots") is None


def test_a_long_history_is_thinned(tmp_path):
    rng = np.random.default_rng(0)
    batches = 30_000
    success = rng.random(batches)
    success[rng.random(batches) < 0.2] = np.nan
    history = {
        "episodes": np.arange(1.0, batches + 1),
        "success": success,
        "max_weight": rng.random(batches),
        "headroom": np.full(batches, np.nan),
    }
    path = write_history(tmp_path, history)
    read = read_history(tmp_path)
    points = read["episodes"]
    assert 1000 < len(points) <= 2000
    assert path.stat().st_size < 200_000
    np.testing.assert_array_equal(points[:10], np.arange(1.0, 11.0))
    assert points[-1] == batches
    begin, stop = int(points[-2]), int(points[-1])
    np.testing.assert_allclose(read["success"][-1], np.nanmean(success[begin:stop]))
    assert read["max_weight"][-1] == history["max_weight"][begin:stop].max()
    assert np.isnan(read["headroom"]).all()


# reading what is not to be trusted


def test_maps_are_what_the_policies_do(recorded):
    data = recording_data(read_recording(recorded))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["rows"], data["columns"], data["start"]) == (5, 5, 0)
    first, last = data["frames"][0]["policies"], data["frames"][-1]["policies"]
    agent_map = read_recording(recorded)
    env = gym.make("awsgd_rl/TrapGridworld-v0", **GRID).unwrapped
    mdp = TabularMDP.from_gridworld(env)
    for policy, table in (
        (first[0], agent_map.snapshots[0].target),
        (last[0], agent_map.snapshots[-1].target),
        (last[1], agent_map.snapshots[-1].exploration),
    ):
        exact = table.astype(np.float64) / table.sum(1, keepdims=True, dtype=np.float64)
        assert policy["success"] == pytest.approx(mdp.success_probability(exact, 250), abs=1e-9)
    heat = np.frombuffer(base64.b64decode(first[0]["visits"]), np.uint8)
    assert heat.shape == (CELLS,)
    # The byte of the goal is its probability to be reached, on the log scale.
    visits = LEAST_VISITS * (MOST_VISITS / LEAST_VISITS) ** ((heat[-1] - 1) / 254)
    assert visits == pytest.approx(first[0]["success"], rel=0.03)


def test_long_episodes_are_solved_for(recorded):
    recording = read_recording(recorded)._replace(horizon=10**9)
    mdp = TabularMDP.from_gridworld(gym.make("awsgd_rl/TrapGridworld-v0", **GRID).unwrapped)
    for snapshot, frame in zip(
        recording.snapshots, recording_data(recording)["frames"], strict=True
    ):
        table = snapshot.target / snapshot.target.sum(1, keepdims=True, dtype=np.float64)
        expected = mdp.success_probability(table)
        assert frame["policies"][0]["success"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("horizon", [250, 100_000])
def test_a_policy_that_goes_round_in_circles_is_drawn(recorded, horizon):
    recording = read_recording(recorded)._replace(horizon=horizon)
    circle = np.zeros((CELLS, 4), np.float32)
    circle[:, 0] = 1.0  # against the wall for ever
    snapshot = recording.snapshots[0]._replace(target=circle)
    data = recording_data(recording._replace(snapshots=[snapshot]))
    assert data["frames"][0]["policies"][0]["success"] == 0.0


def change(arrays, name, value):
    return {**arrays, name: value}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: change(a, "target", a["target"][:-1]), "has shape [24, 4], expected [25, 4]"),
        (lambda a: change(a, "target", a["target"] * np.nan), "holds what is no probability"),
        (lambda a: change(a, "target", -a["target"]), "holds what is no probability"),
        (lambda a: change(a, "exploration", 2 * a["exploration"]), "do not sum to 1"),
        (lambda a: change(a, "target", a["target"].astype(np.float64)), "'target' of F64"),
        (lambda a: change(a, "extra", a["target"]), "'extra' of F32"),
        (lambda a: change(a, "weights", a["weights"] * np.inf), "no importance weight"),
        (lambda a: change(a, "weights", a["weights"][:3]), "'from_target' has shape"),
        (lambda a: change(a, "weights", a["weights"].repeat(9)), "more than a run records"),
        (lambda a: change(a, "moves", a["moves"] + 1000), "'moves' holds numbers out of"),
        (lambda a: change(a, "moves", a["moves"][:-1]), "'offsets' holds numbers out of"),
        (lambda a: change(a, "offsets", a["offsets"][::-1].copy()), "does not divide the moves"),
        (lambda a: change(a, "ends", a["ends"] + 9), "'ends' holds numbers out of"),
        (lambda a: {n: v for n, v in a.items() if n != "ends"}, "it lacks ends"),
    ],
)
def test_a_damaged_snapshot_is_refused(recorded, tmp_path, damage, message):
    good = recorded / "snapshots" / "000000000010.safetensors"
    path = tmp_path / good.name
    about = {"about": '{"schema": 1, "episodes": 10, "timesteps": 99}'}
    save_file(damage(load_file(good)), path, about)
    with pytest.raises(ValueError, match="is no snapshot of this run") as error:
        read_snapshot(path, CELLS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"about": "[]"},
        {"about": '{"schema": 1, "episodes": -3, "timesteps": 1}'},
        {"about": '{"schema": 1, "episodes": true, "timesteps": 1}'},
        {"about": '{"schema": 1, "episodes": 1, "timesteps": 1e400}'},
    ],
)
def test_a_snapshot_that_does_not_tell_its_moment_is_refused(recorded, tmp_path, about):
    arrays = load_file(recorded / "snapshots" / "000000000010.safetensors")
    save_file(arrays, tmp_path / "x.safetensors", about)
    with pytest.raises(ValueError, match="expected a count"):
        read_snapshot(tmp_path / "x.safetensors", CELLS)


def test_a_newer_snapshot_is_refused(recorded, tmp_path):
    arrays = load_file(recorded / "snapshots" / "000000000010.safetensors")
    about = {"about": '{"schema": 2, "episodes": 1, "timesteps": 1}'}
    save_file(arrays, tmp_path / "x.safetensors", about)
    with pytest.raises(ValueError, match="newer version"):
        read_snapshot(tmp_path / "x.safetensors", CELLS)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_other_files_under_the_name_of_a_snapshot_are_refused(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    pickled = tmp_path / "x.npz"
    np.savez(pickled, target=np.array([Malicious()], dtype=object))
    whole = struct.pack("<Q", 1 << 60)
    for content in (pickle.dumps(Malicious()), pickled.read_bytes(), b"", whole, whole + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no snapshot of this run"):
            read_snapshot(path, CELLS)
    path.write_bytes(b"\0" * ((8 << 20) + 1))
    with pytest.raises(ValueError, match="expected at most"):
        read_snapshot(path, CELLS)
    assert "must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("[1]", "expected an object with a schema number"),
        ('{"schema": 1}', "expected a map, a slip and a horizon"),
        ('{"schema": 1, "desc": ["SG"], "slip": 1.0, "horizon": 9}', "expected a map"),
        ('{"schema": 1, "desc": ["SX", "HG"], "slip": 0, "horizon": 9}', "unknown letters"),
        ('{"schema": 1, "desc": [1, 2], "slip": 0, "horizon": 9}', "expected one string a row"),
        ('{"schema": 1, "desc": ["SFG"], "slip": 0, "horizon": 9}', "expected [3, 4]"),
    ],
)
def test_a_damaged_map_is_refused(recorded, tmp_path, content, message):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    name = "000000000010.safetensors"
    (folder / name).write_bytes((recorded / "snapshots" / name).read_bytes())
    if content is not None:
        (folder / "map.json").write_text(content)
    with pytest.raises(ValueError) as error:
        read_recording(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_too_large_a_map_or_too_many_snapshots_are_refused(recorded, tmp_path):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "0.safetensors").touch()
    row = "F" * 300
    desc = ["S" + row[1:], *[row] * 298, row[1:] + "G"]
    world = {"schema": 1, "desc": desc, "slip": 0, "horizon": 9}
    (folder / "map.json").write_text(json.dumps(world))
    with pytest.raises(ValueError, match="has 90000 cells, expected at most 65536"):
        read_recording(tmp_path)
    for k in range(300):
        (folder / f"{k}.safetensors").touch()
    with pytest.raises(ValueError, match="holds 300 snapshots, expected at most 200"):
        read_recording(tmp_path)
