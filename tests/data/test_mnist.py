"""The shipped MNIST is the original one."""

import hashlib
import struct

import numpy as np
import pytest

from seqjax.data.images import load_mnist

TRAIN_IMAGES_IDX_SHA256 = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def mnist() -> dict[str, np.ndarray]:
    return load_mnist()


def test_keys_shapes_and_dtypes(mnist: dict[str, np.ndarray]) -> None:
    assert {key: (array.shape, str(array.dtype)) for key, array in mnist.items()} == {
        "x_train": ((60000, 28, 28), "uint8"),
        "y_train": ((60000,), "uint8"),
        "x_test": ((10000, 28, 28), "uint8"),
        "y_test": ((10000,), "uint8"),
    }


def test_training_images_are_the_original_bytes(mnist: dict[str, np.ndarray]) -> None:
    header = struct.pack(">4i", 2051, *mnist["x_train"].shape)
    digest = hashlib.sha256(header + mnist["x_train"].tobytes()).hexdigest()
    assert digest == TRAIN_IMAGES_IDX_SHA256


@pytest.mark.parametrize("key, counts", [("y_train", TRAIN_COUNTS), ("y_test", TEST_COUNTS)])
def test_label_counts(mnist: dict[str, np.ndarray], key: str, counts: list[int]) -> None:
    assert np.bincount(mnist[key]).tolist() == counts
