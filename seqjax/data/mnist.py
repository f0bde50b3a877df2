"""The MNIST digits that ship with the package."""

from importlib.resources import files

import numpy as np


def load_mnist() -> dict[str, np.ndarray]:
    """uint8 arrays x_train [60000, 28, 28], y_train [60000], x_test [10000, 28, 28] and y_test."""
    path = files("seqjax.data") / "corpora" / "mnist" / "mnist.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
