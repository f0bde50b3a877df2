"""MNIST read row by row: each image is a sequence of its pixel rows, classified at the end.

Any image classification set of TensorFlow Datasets goes the same way, as `data.name=tfds:NAME`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from seqjax.data.batching import Rows, split_rows
from seqjax.data.images import load_mnist
from seqjax.errors import UserError
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, confusion_matrix
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import functional
from seqjax.plots import draw_confusion, draw_misread
from seqjax.tasks.base import Predict, Task, load_data, model_options
from seqjax.typing import Params


def make_mnist_rows(config, _directory=None) -> Task:
    """The task of a config: images to classes, one row of pixels a time step."""
    splits, names = load_data(load_images, config.data)
    _, _, row_size = splits["train"]["image"].shape
    init, bind = make_model(config, row_size, len(names))

    def logits_of(params, batch, keys=None):
        return bind(params)(brightness(batch["image"]), keys=keys)

    def measure(params, batch, keys):
        logits, weight = logits_of(params, batch, keys), batch["weight"]
        return {
            "loss": cross_entropy(logits, batch["label"], weight),
            "accuracy": accuracy(logits, batch["label"], weight),
        }

    def show(params, predict: Predict, directory: Path) -> list[str]:
        split = "test" if "test" in splits else "train"
        return show_errors(splits[split], predict(split), names, directory)

    return Task(splits, init, measure, logits_of, show)


def make_model(config, row_size: int, num_classes: int):
    """The classifier's `init` and `bind`."""
    return functional(
        lambda rngs: Classifier(
            input_size=row_size, num_classes=num_classes, rngs=rngs, **model_options(config)
        )
    )


def brightness(images):
    """What the classifier reads of pixels of 0 to 255."""
    return images.astype(jnp.float32) / 255


def every_row(
    config, params: Params, images: UInt8[Array, "B T I"], num_classes: int
) -> Float[Array, "B T C"]:
    """Probabilities after each row: what the model would say if the images ended there."""
    _, bind = make_model(config, images.shape[-1], num_classes)
    return jax.nn.softmax(bind(params).every_step(brightness(images)))


def as_mnist(ink: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "28 28"] | None:
    """A drawing, 255 where there is ink, as MNIST has its digits: scaled to fit 20 x 20, its mass
    centred on pixel 14 of 28 x 28. None without ink."""
    rows, columns = (np.flatnonzero((ink > 16).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    crop = ink.astype(np.float32)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(20 * n / max(crop.shape))) for n in crop.shape)
    digit = np.array(Image.fromarray(crop).resize((width, height), Image.Resampling.BOX))
    masses = digit.sum(axis=1), digit.sum(axis=0)
    centres = [np.average(np.arange(len(mass)), weights=mass) for mass in masses]
    top, left = (
        int(np.clip(round(14 - centre), 0, 28 - length))
        for centre, length in zip(centres, digit.shape, strict=True)
    )
    image = np.zeros((28, 28), np.uint8)
    image[top : top + height, left : left + width] = digit * (255 / digit.max())  # thin, not faint
    return image


def load_images(
    *, name: str, valid_size: int, split_seed: int, tfds_data_dir: str, tfds_manual_dir: str
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Rows by split, "image" uint8 [N, T, I] and "label" [N], and the names of the classes."""
    if name == "mnist":
        arrays = load_mnist()
        splits = {
            s: {"image": arrays[f"x_{s}"], "label": arrays[f"y_{s}"]} for s in ("train", "test")
        }
        names = [str(digit) for digit in range(10)]
    elif name.startswith("tfds:"):
        from seqjax.data.images import load_tfds  # heavy: only where it is asked for

        sets = load_tfds(
            name.removeprefix("tfds:"), data_dir=tfds_data_dir, manual_dir=tfds_manual_dir
        )
        splits, names = sets.splits, sets.class_names
    else:
        raise UserError(
            f"unknown data.name {name!r}: write mnist, or tfds:NAME as tfds:fashion_mnist"
        )
    rows = {
        split: {
            # [N, H, W, C] -> [N, H, W C]: a row of pixels with all its channels is one step.
            "image": part["image"].reshape(*part["image"].shape[:2], -1),
            "label": part["label"].astype(np.int32),
        }
        for split, part in splits.items()
    }
    return split_rows(rows.pop("train"), {"valid": valid_size}, split_seed) | rows, names


def show_errors(rows: Rows, logits: np.ndarray, names: list[str], directory: Path) -> list[str]:
    """Writes the confusion matrix and the worst misread images; says what is confused most."""
    labels, predicted = rows["label"], np.argmax(logits, axis=-1)
    counts = confusion_matrix(labels, predicted, len(names))
    draw_confusion(counts, names, directory / "confusion.png")
    margin = np.max(logits, axis=-1) - logits[np.arange(len(labels)), labels]
    worst = np.argsort(-margin)[: min(48, int(np.sum(predicted != labels)))]
    draw_misread(
        rows["image"][worst],
        [names[i] for i in labels[worst]],
        [names[i] for i in predicted[worst]],
        directory / "misread.png",
    )
    errors = np.where(np.eye(len(names), dtype=bool), 0, counts)
    pairs = np.argsort(-errors, axis=None)[: min(3, np.count_nonzero(errors))]
    confused = [np.unravel_index(pair, errors.shape) for pair in pairs]
    return [f"{errors.sum()} of {len(labels)} misread; most often:"] + [
        f"  {names[label]} read as {names[wrong]}: {errors[label, wrong]} times"
        for label, wrong in confused
    ]
