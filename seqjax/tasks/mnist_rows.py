"""MNIST read row by row: an image is the sequence of its pixel rows and is classified at the end.

With `data.name=tfds:NAME`, any image classification set of TensorFlow Datasets is read so.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from seqjax.data.batching import Rows
from seqjax.data.images import load_images
from seqjax.hparams import HParams
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, confusion_matrix
from seqjax.models.classifier import Classifier
from seqjax.plots import draw_confusion, draw_misread
from seqjax.tasks.base import STACK_RATES, Predict, Task, build_model, load_data


def make_mnist_rows(config, _directory=None) -> Task:
    """Returns the task of a config: images to classes, with one row of pixels per time step."""
    splits, names = load_data(load_images, config)
    _, _, row_size = splits["train"]["image"].shape
    init, bind = make_model(config, row_size, len(names))

    def logits_of(params, batch, keys=None, rates=None):
        return bind(params)(brightness(batch["image"]), keys=keys, rates=rates)

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        logits, weight = logits_of(params, batch, keys, hparams.model), batch["weight"]
        return {
            "loss": cross_entropy(logits, batch["label"], weight),
            "accuracy": accuracy(logits, batch["label"], weight),
        }

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        split = "test" if "test" in splits else "train"
        return show_errors(splits[split], predict(split), names, directory)

    return Task(splits, init, loss_and_metrics, logits_of, show_examples, hparams=STACK_RATES)


def make_model(config, row_size: int, num_classes: int):
    """Returns the classifier's `init` and `bind`, as `nn.layers.functional` makes them."""
    return build_model(Classifier, config, input_size=row_size, num_classes=num_classes)


def brightness(images):
    """Returns pixels of 0 to 255 as float32 in [0, 1], which the classifier reads."""
    return images.astype(jnp.float32) / 255


def show_errors(rows: Rows, logits: np.ndarray, names: list[str], directory: Path) -> list[str]:
    """Draws the confusion matrix and the worst errors; returns the most frequent errors."""
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
