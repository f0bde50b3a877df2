"""MNIST read row by row: each image is a sequence of its pixel rows, classified at the end.

Any image classification set of TensorFlow Datasets goes the same way, as `data.name=tfds:NAME`.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from seqjax.data.batches import Rows, split_rows
from seqjax.data.mnist import load_mnist
from seqjax.errors import UserError
from seqjax.layers import functional
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, confusion_matrix
from seqjax.models.classifier import Classifier
from seqjax.pictures import draw_confusion, draw_misread
from seqjax.task import Predict, Task


def make_mnist_rows(config, _directory=None) -> Task:
    """The task of a config: images to classes, one row of pixels a time step."""
    splits, names = load_images(**config.data)
    _, _, row_size = splits["train"]["image"].shape
    init, bind = functional(
        lambda rngs: Classifier(
            input_size=row_size, num_classes=len(names), rngs=rngs, **config.model
        )
    )

    def logits_of(params, batch, keys=None):
        return bind(params)(batch["image"].astype(jnp.float32) / 255, keys=keys)

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
        from seqjax.data.tfds import load_tfds  # heavy: only where it is asked for

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
