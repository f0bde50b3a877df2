"""Loads images as NumPy arrays: the MNIST that ships, and sets of TensorFlow Datasets (TFDS)."""

import contextlib
import difflib
import io
import logging
import os
import re
from collections.abc import Generator
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from seqjax.data.batching import split_rows
from seqjax.errors import UserError


def load_mnist() -> dict[str, np.ndarray]:
    """Returns uint8 x_train [60000, 28, 28], y_train [60000], x_test [10000, 28, 28] and y_test."""
    path = files("seqjax.data") / "corpora" / "mnist" / "mnist.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def load_images(
    *, name: str, valid_size: int, split_seed: int, tfds_data_dir: str, tfds_manual_dir: str
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Returns the rows of each split, and the names of the classes.

    Rows are "image" uint8 [N, T, I] and "label" int32 [N]. `name` is "mnist" or "tfds:NAME";
    `valid_size` training images become the split "valid". Raises UserError for another name and for
    a set that cannot be used.
    """
    if name == "mnist":
        arrays = load_mnist()
        splits = {
            s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]} for s in ("train", "test")
        }
        names = [str(digit) for digit in range(10)]
    elif name.startswith("tfds:"):
        sets = load_tfds(
            name.removeprefix("tfds:"), data_dir=tfds_data_dir, manual_dir=tfds_manual_dir
        )
        splits, names = sets.splits, sets.class_names
    else:
        raise UserError(
            f"unknown data.name {name!r}: write mnist, or tfds:NAME such as tfds:fashion_mnist"
        )
    rows = {
        split: {
            # [N, H, W, C] -> [N, H, W C]: one step is a row of pixels with all its channels.
            "image": arrays["image"].reshape(*arrays["image"].shape[:2], -1),
            "label": arrays["label"].astype(np.int32),
        }
        for split, arrays in splits.items()
    }
    return split_rows(rows.pop("train"), {"valid": valid_size}, split_seed) | rows, names


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode for each number of channels


class ImageSets(NamedTuple):
    """The arrays of each split of a set, and the names of its classes."""

    splits: dict[str, dict[str, np.ndarray]]
    class_names: list[str]


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silences the progress bars, banners and logs of TFDS; exceptions are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _one_line(what: str, remedy: str) -> Generator[None, None, None]:
    """Turns any exception in the `with` block into a UserError of one line, with the remedy."""
    try:
        yield
    except Exception as error:  # TFDS and the code of its sets may raise any exception
        if missing := re.search(r"No module named '(\w+)", str(error)):
            once = " (once, to prepare this set; reading does not need it)"
            remedy = f"pip install {missing[1]}{once if missing[1] == 'tensorflow' else ''}"
        noise = r'^Failed to construct dataset .*?}": | \(Caused by .*| Here are 10 .*'
        line = re.sub(noise, "", str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: {line.rstrip('.:')}: {remedy}") from error


@_quiet()
def load_tfds(name: str, *, data_dir: str = "", manual_dir: str = "") -> ImageSets:
    """Returns the splits "train" and, if the set has it, "test", in the order of TFDS.

    Each is {"image": uint8 [N, H, W, C], "label": int32 [N]}. `name` is NAME[/CONFIG][:VERSION], as
    in "emnist/letters". A set that is not yet prepared in `data_dir` (by default
    ~/tensorflow_datasets) is downloaded and prepared there, except that original archives in
    `manual_dir` are not downloaded. Raises UserError for a set that cannot be prepared, read or
    used.
    """
    where = f"tfds:{name}"
    if manual_dir and not os.path.isdir(os.path.expanduser(manual_dir)):
        raise UserError(f"{where}: no folder {manual_dir!r}: correct manual_dir or leave it empty")
    builder = _find(where, name, data_dir)
    features: Any = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if (type(image).__name__, type(label).__name__) != ("Image", "ClassLabel"):
        needs = "needs an `image` and its class `label`: choose an image-classification set"
        raise UserError(f"{where}: has the features {', '.join(features)}, {needs}")
    if image.np_dtype != np.uint8 or None in image.shape or image.shape[-1] not in _MODES:
        raise UserError(f"{where}: {image} is not uint8 of one fixed size: choose another set")
    if not builder.is_prepared():
        _prepare(builder, where, manual_dir)
    remedy = "choose another set, or another data_dir to prepare it again"
    with _one_line(f"{where}: cannot read {builder.data_dir}", remedy):
        names = ["train", *(split for split in builder.info.splits if split == "test")]
        splits = {split: _read(builder, split, image.shape) for split in names}
    return ImageSets(splits, label.names)


def _find(where: str, name: str, data_dir: str) -> Any:
    """Returns the builder of the set: from the code in TFDS, or else from the files in data_dir."""
    with _one_line(where, "reinstall it"):
        import tensorflow_datasets as tfds

        base, known = re.split("[:/]", name)[0], tfds.list_builders(with_community_datasets=False)
        if base in known:  # a mistake can then only be in the config or the version
            known = [f"{base}/{config}" for config in tfds.builder_cls(base).builder_configs]
    near = " or ".join(difflib.get_close_matches(name.split(":")[0], known))
    remedy = "give NAME[/CONFIG][:VERSION] of tensorflow.org/datasets/catalog or of data_dir"
    with _one_line(where, f"did you mean {near}? else {remedy}" if near else remedy):
        return tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)


def _prepare(builder: Any, where: str, manual_dir: str) -> None:
    """Writes the set into its data_dir, in a format that can be read without TensorFlow."""
    from tensorflow_datasets import download

    downloader: Any = download.download_manager.downloader
    downloader.MAX_RETRIES = 2  # the default, 10, takes 3.5 minutes if there is no network
    # When one download has failed, others continue in threads and would print warnings.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # Keeps TensorFlow's C++ code from printing when it starts, unless the user has set these.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "1", "TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ
    config = download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    remedy = "it needs the network, or the archives in manual_dir, and a writable data_dir"
    with _one_line(f"{where}: cannot prepare {builder.data_dir}", remedy):
        builder.download_and_prepare(file_format="array_record", download_config=config)


def _read(builder: Any, split: str, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Returns the images and labels of one split, in the order in which they are stored."""
    import tensorflow_datasets as tfds
    from PIL import Image

    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    for row, example in enumerate(source.__getitems__(range(len(source)))):  # 5x faster than [row]
        # TFDS does not decode it: without TensorFlow it mistakes palette indices for brightness.
        image = Image.open(io.BytesIO(example["image"])).convert(_MODES[shape[-1]])
        images[row] = np.asarray(image).reshape(image.height, image.width, -1)
        labels[row] = example["label"]
    return {"image": images, "label": labels}
