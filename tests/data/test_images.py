"""Sets of TensorFlow Datasets become exact arrays, and each mistake gives a one-line message."""

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seqjax.data.images import load_mnist, load_tfds
from seqjax.errors import UserError

LABELS = {"train": [2, 0, 1, 2, 1], "test": [1, 0], "validation": [1, 0]}
SHAPE = (4, 6, 1)
ARCHIVES = Path(
    os.environ.get("SEQJAX_MNIST_ARCHIVES", Path(__file__).parents[3] / "shared/data/mnist")
)
TENSORFLOW = find_spec("tensorflow") is not None


def random_images(shape: tuple[int, int, int] = SHAPE) -> dict[str, np.ndarray]:
    """Random images, one for each label of "train" and "test"."""
    rng = np.random.default_rng(0)
    sizes = {split: len(LABELS[split]) for split in ("train", "test")}
    return {split: rng.integers(0, 256, (n, *shape), np.uint8) for split, n in sizes.items()}


def for_pillow(images: Mapping[str, np.ndarray]) -> dict[str, list[Image.Image]]:
    """The images as TFDS stores them without TensorFlow."""
    return {split: [Image.fromarray(x.squeeze()) for x in rows] for split, rows in images.items()}


def builder(
    folder: Path,
    set_name: str,
    images: Mapping[str, Any],
    shape: tuple[int, int, int] = SHAPE,
    config: str = "",
    known: bool = False,
) -> Any:
    """A set with its code, which TFDS (and so seqjax) finds by name only if known=True."""
    import tensorflow_datasets as tfds

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=not known):
        name = set_name
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="big"),) if config else ()
        pkg_dir_path = folder  # where TFDS looks for descriptions of the set

        def _info(self) -> Any:
            image = tfds.features.Image(shape=shape, encoding_format="png")
            label = tfds.features.ClassLabel(num_classes=3)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in images}

        def _generate_examples(self, split: str) -> Any:
            for row, (image, label) in enumerate(zip(images[split], LABELS[split], strict=True)):
                yield row, {"image": image, "label": label}

    return Toy(data_dir=folder)


def prepared(folder: Path, *args: Any, **kwargs: Any) -> Path:
    """The folder with the files of a set whose code cannot be found."""
    toy = builder(folder, *args, **kwargs)
    toy.download_and_prepare(file_format="array_record")
    return Path(toy.data_dir)


def assert_same(arrays: Mapping[str, np.ndarray], images: np.ndarray, labels: Any) -> None:
    """Asserts that the examples are equal in any order, since TFDS stores them by their hashes."""
    assert arrays["image"].dtype == np.uint8 and arrays["label"].dtype == np.int32
    assert arrays["image"].shape == images.shape and arrays["label"].shape == (len(images),)
    actual = zip(map(np.ndarray.tobytes, arrays["image"]), arrays["label"].tolist(), strict=True)
    expected = zip(map(np.ndarray.tobytes, images), np.asarray(labels).tolist(), strict=True)
    assert sorted(actual) == sorted(expected)


def message(name: str, **folders: str) -> str:
    """The message of the UserError, without its beginning, which names the set."""
    with pytest.raises(UserError) as caught:
        load_tfds(name, **folders)
    start, text = f"tfds:{name}: ", str(caught.value)
    assert text.startswith(start) and "\n" not in text
    return text.removeprefix(start)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail at once, as it does without a network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("shape", [(4, 6, 1), (5, 3, 3), (2, 7, 4)])
def test_files_without_code(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    images = random_images(shape)
    prepared(tmp_path, "toy", for_pillow(images), shape)
    sets = load_tfds("toy", data_dir=str(tmp_path))
    assert list(sets.splits) == ["train", "test"] and sets.class_names == ["0", "1", "2"]
    for split, arrays in sets.splits.items():
        assert_same(arrays, images[split], LABELS[split])


def test_code_without_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = random_images()
    builder(tmp_path, "toy_known", for_pillow(images), known=True)
    for _ in range(2):  # the first call prepares the set, the second only reads it
        sets = load_tfds("toy_known", data_dir=str(tmp_path))
        assert_same(sets.splits["train"], images["train"], LABELS["train"])
        assert_same(sets.splits["test"], images["test"], LABELS["test"])
    assert capfd.readouterr() == ("", "")


def test_config_and_version_are_part_of_the_name(tmp_path: Path) -> None:
    images = random_images()
    folder = prepared(tmp_path, "toy", for_pillow(images), config="big")
    assert folder == tmp_path / "toy" / "big" / "1.2.0"
    for name in ("toy/big", "toy/big:1.2.0"):
        sets = load_tfds(name, data_dir=str(tmp_path))
        assert_same(sets.splits["train"], images["train"], LABELS["train"])
    assert "give NAME[/CONFIG][:VERSION]" in message("toy/big:3.0.0", data_dir=str(tmp_path))


def test_only_train_and_test_are_read(tmp_path: Path) -> None:
    images = random_images()
    images["validation"] = images.pop("test")
    prepared(tmp_path, "toy", for_pillow(images))
    sets = load_tfds("toy", data_dir=str(tmp_path))
    assert list(sets.splits) == ["train"]
    assert_same(sets.splits["train"], images["train"], LABELS["train"])


def test_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared(tmp_path / "sets", "toy", for_pillow(random_images()))
    assert load_tfds("toy", data_dir="~/sets", manual_dir="~").class_names[1] == "1"


def test_palettes_become_colours(tmp_path: Path) -> None:
    indices = random_images()["train"].squeeze()
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    images = [Image.fromarray(row) for row in indices]
    for image in images:
        image.putpalette(palette.tobytes())
    prepared(tmp_path, "toy", {"train": images}, shape=(4, 6, 3))
    arrays = load_tfds("toy", data_dir=str(tmp_path)).splits["train"]
    assert_same(arrays, palette[indices], LABELS["train"])


def test_real_mnist_is_the_shipped_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not TENSORFLOW:
        pytest.skip("preparing MNIST needs TensorFlow")
    if not ARCHIVES.is_dir():
        pytest.skip(f"no original MNIST archives in {ARCHIVES}: set SEQJAX_MNIST_ARCHIVES")
    sets = load_tfds("mnist", data_dir=str(tmp_path), manual_dir=str(ARCHIVES))
    assert capfd.readouterr() == ("", "")
    shipped = load_mnist()
    assert list(sets.splits) == ["train", "test"] and len(sets.class_names) == 10
    for split, arrays in sets.splits.items():
        assert_same(arrays, shipped[f"x_{split}"][..., None], shipped[f"y_{split}"])


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("fashion_mnst", "did you mean fashion_mnist"),
        ("emnist/leters", "did you mean emnist/letters"),
        ("mnist:9.9.9", "only: 3.0.1"),
        ("mnist!", "failed: did you mean mnist"),
        ("qqqqqqqq", "give NAME[/CONFIG][:VERSION] of tensorflow.org/datasets/catalog"),
        ("imdb_reviews", "has the features text, label, needs an `image`"),
        (
            "imagenet2012",
            "Image(shape=(None, None, 3), dtype=uint8) is not uint8 of one fixed size",
        ),
    ],
)
def test_unusable_names(tmp_path: Path, name: str, remedy: str) -> None:
    assert remedy in message(name, data_dir=str(tmp_path))


def test_no_network(
    tmp_path: Path,
    offline: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = time.monotonic()
    text = message("mnist", data_dir=str(tmp_path))
    assert time.monotonic() - start < 120  # TFDS by default retries for 3.5 minutes
    assert f"cannot prepare {tmp_path / 'mnist'}" in text and "images-idx3-ubyte.gz: " in text
    assert "needs the network, or the archives in manual_dir" in text
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_no_manual_dir(tmp_path: Path) -> None:
    text = message("mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "none"))
    assert text == f"no folder '{tmp_path / 'none'}': correct manual_dir or leave it empty"


def test_data_dir_that_cannot_be_written(tmp_path: Path, offline: None) -> None:
    (tmp_path / "file").write_text("")
    text = message("mnist", data_dir=str(tmp_path / "file"))
    assert "Not a directory" in text and text.endswith("and a writable data_dir")


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is not missing")
def test_preparing_without_tensorflow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    builder(
        tmp_path, "toy_arrays", random_images(), known=True
    )  # TFDS encodes arrays with TensorFlow
    text = message("toy_arrays", data_dir=str(tmp_path))
    assert text.endswith(
        "pip install tensorflow (once, to prepare this set; reading does not need it)"
    )
    assert capfd.readouterr() == ("", "")


def test_no_train_split(tmp_path: Path) -> None:
    prepared(tmp_path, "toy", for_pillow({"test": random_images()["test"]}))
    text = message("toy", data_dir=str(tmp_path))
    assert "'train'" in text and "choose another set" in text


def test_images_that_are_not_of_the_declared_size(tmp_path: Path) -> None:
    prepared(tmp_path, "toy", for_pillow(random_images((6, 4, 1))))
    text = message("toy", data_dir=str(tmp_path))
    assert "(6,4,1) into shape (4,6,1)" in text and "choose another set" in text


def test_damaged_file(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "toy", for_pillow(random_images()))
    (file,) = folder.glob("*train*")
    file.write_bytes(file.read_bytes()[:-20])
    text = message("toy", data_dir=str(tmp_path))
    assert (
        text.startswith(f"cannot read {folder}: ")
        and "another data_dir to prepare it again" in text
    )


def test_set_prepared_for_tensorflow(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "toy", for_pillow(random_images()))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    text = message("toy", data_dir=str(tmp_path))
    assert "TFRECORD is not supported" in text and "another data_dir" in text
