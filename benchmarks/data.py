"""Data of the supervised benches: of a file that the user has, or fetched by the usual library."""

import os
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def mnist(path: Path | None = None) -> Labelled:
    """Return the 60,000 and 10,000 images of handwritten digits (LeCun 1998), 784 pixels each.

    Args:
        path: an `mnist.npz` as Keras has it (x_train, y_train, x_test, y_test), or a folder that
            holds one. None takes the path in the variable `AWSGD_RL_MNIST`; without one scikit-learn
            fetches the images from OpenML, once, into its cache.

    Raises:
        ValueError: the file is missing or holds something else, or nothing could be fetched.
    """
    if path is None and MNIST_VARIABLE in os.environ:
        path = Path(os.environ[MNIST_VARIABLE])
    return _fetch_mnist() if path is None else _read_mnist(path)


def digits() -> Labelled:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels (no download): every fifth is for tests."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = (pixels / 16.0).astype(np.float32), classes.astype(np.int64)
    test = np.arange(len(y)) % 5 == 0
    return Labelled(x[~test], y[~test], x[test], y[test])


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
