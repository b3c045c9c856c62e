import json
import math

import numpy as np
import pytest
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awsgd_rl.agents.logging import RunLogger

NAN = math.nan


def scalars_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_monitor_file_is_read_by_sb3(tmp_path):
    with RunLogger(tmp_path, env_id="CartPole-v1") as logger:
        logger.episodes([1.5, -2.0], [3, 4], [1.0, 0.0])
        logger.episodes([7.0], [5], [NAN])
    header = json.loads((tmp_path / "monitor.csv").read_text().splitlines()[0][1:])
    assert header["env_id"] == "CartPole-v1"
    frame = load_results(str(tmp_path))
    assert frame["r"].tolist() == [1.5, -2.0, 7.0]
    assert frame["l"].tolist() == [3, 4, 5]
    assert frame["is_success"].tolist()[:2] == [True, False]
    assert math.isnan(frame["is_success"].tolist()[2])
    steps, rewards = ts2xy(frame, "timesteps")
    assert steps.tolist() == [3, 7, 12]
    assert rewards.tolist() == [1.5, -2.0, 7.0]


def test_every_row_is_on_disk_when_the_call_returns(tmp_path):
    logger = RunLogger(tmp_path, tmp_path / "board")
    logger.episodes([1.0], [2], [1.0])
    logger.scalars(2, {"loss": 0.5})
    assert len(load_results(str(tmp_path))) == 1
    assert scalars_of(tmp_path / "board" / "run_1")["train/loss"] == [(2, 0.5)]
    logger.close()


def test_an_exception_closes_the_files_and_loses_nothing(tmp_path):
    def run():
        with RunLogger(tmp_path, tmp_path / "board") as logger:
            logger.episodes([1.0], [2], [NAN])
            logger.scalars(2)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run()
    assert len(load_results(str(tmp_path))) == 1
    assert scalars_of(tmp_path / "board" / "run_1")["rollout/ep_rew_mean"] == [(2, 1.0)]


def test_evaluations_file_has_the_arrays_of_sb3s_callback(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.evaluation(100, [1.0, 2.0], [3, 4], [1.0, 0.0])
        first = dict(np.load(tmp_path / "evaluations.npz"))
        logger.evaluation(200, [5.0, 6.0], [7, 8], [1.0, 1.0])
    assert first["results"].tolist() == [[1.0, 2.0]]
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert sorted(arrays) == ["ep_lengths", "results", "successes", "timesteps"]
        assert arrays["timesteps"].tolist() == [100, 200]
        assert arrays["results"].tolist() == [[1.0, 2.0], [5.0, 6.0]]
        assert arrays["ep_lengths"].tolist() == [[3, 4], [7, 8]]
        assert arrays["successes"].tolist() == [[True, False], [True, True]]
    assert [path.name for path in tmp_path.glob("evaluations*")] == ["evaluations.npz"]


@pytest.mark.parametrize("successes", [None, [1.0, NAN]])
def test_evaluations_without_known_success_leave_it_out(tmp_path, successes):
    with RunLogger(tmp_path) as logger:
        logger.evaluation(100, [1.0, 2.0], [3, 4], successes)
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert "successes" not in arrays


def test_scalars_have_sb3s_names(tmp_path):
    with RunLogger(None, tmp_path, run_name="awsgd") as logger:
        logger.episodes([2.0, 4.0], [10, 30], [1.0, NAN])
        logger.scalars(
            40, {"variance_ratio": 1.5, "largest_weight": 2.0, "headroom": NAN, "time/batch": 3.0}
        )
        logger.evaluation(40, [8.0], [16], [1.0])
    scalars = scalars_of(tmp_path / "awsgd_1")
    assert scalars["rollout/ep_rew_mean"] == [(40, 3.0)]
    assert scalars["rollout/ep_len_mean"] == [(40, 20.0)]
    assert scalars["rollout/success_rate"] == [(40, 1.0)]
    assert scalars["train/variance_ratio"] == [(40, 1.5)]
    assert scalars["train/largest_weight"] == [(40, 2.0)]
    assert scalars["time/batch"] == [(40, 3.0)]
    assert scalars["eval/mean_reward"] == [(40, 8.0)]
    assert scalars["eval/mean_ep_length"] == [(40, 16.0)]
    assert scalars["eval/success_rate"] == [(40, 1.0)]
    assert scalars["time/fps"][0][1] > 0
    assert "train/headroom" not in scalars


def test_means_are_over_the_last_hundred_episodes(tmp_path):
    with RunLogger(None, tmp_path) as logger:
        logger.episodes([0.0] * 50 + [1.0] * 100, [1] * 150, [NAN] * 150)
        logger.scalars(150)
    scalars = scalars_of(tmp_path / "run_1")
    assert scalars["rollout/ep_rew_mean"] == [(150, 1.0)]
    assert "rollout/success_rate" not in scalars


def test_runs_get_their_own_tensorboard_folder_and_appending_uses_the_last(tmp_path):
    for append in (False, False, True):
        with RunLogger(None, tmp_path, run_name="a[b]", append=append) as logger:
            logger.scalars(1, {"loss": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[b]_1", "a[b]_2"]


def test_appending_goes_on_with_the_files(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.episodes([1.0], [2], [1.0])
        logger.evaluation(2, [1.0], [2], [1.0])
        started = logger.started
    with RunLogger(tmp_path, append=True) as logger:
        assert logger.started == started
        logger.episodes([3.0], [4], [0.0])
        logger.evaluation(6, [3.0], [4], [0.0])
    assert load_results(str(tmp_path))["r"].tolist() == [1.0, 3.0]
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert arrays["timesteps"].tolist() == [2, 6]
        assert arrays["successes"].tolist() == [[True], [False]]


def test_without_append_the_files_start_anew(tmp_path):
    for reward in (1.0, 3.0):
        with RunLogger(tmp_path) as logger:
            logger.episodes([reward], [2], [1.0])
    assert load_results(str(tmp_path))["r"].tolist() == [3.0]


def test_foreign_files_are_not_appended_to(tmp_path):
    (tmp_path / "monitor.csv").write_text("r,l,t\n1,2,3\n")
    with pytest.raises(ValueError, match="not a monitor file"):
        RunLogger(tmp_path, append=True)
    (tmp_path / "evaluations.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as an evaluations file"):
        RunLogger(tmp_path, append=True)
    assert (tmp_path / "monitor.csv").read_text() == "r,l,t\n1,2,3\n"


def test_uneven_records_are_refused_before_anything_is_written(tmp_path):
    with RunLogger(tmp_path) as logger:
        with pytest.raises(ValueError, match="one entry per episode"):
            logger.episodes([1.0, 2.0], [3], [1.0])
        logger.evaluation(1, [1.0], [2])
        with pytest.raises(ValueError, match="same number"):
            logger.evaluation(2, [1.0, 2.0], [3, 4])
        logger.evaluation(3, [1.0], [2])
    assert (tmp_path / "monitor.csv").read_text().count("\n") == 2
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert arrays["timesteps"].tolist() == [1, 3]


def test_nowhere_to_log_is_fine():
    with RunLogger() as logger:
        logger.episodes([1.0], [2], [NAN])
        logger.scalars(2, {"loss": 1.0})
        logger.evaluation(2, [1.0], [2])
