"""Metrics, which stay sums and weights until the very end.

An `Average` may be added over steps and devices, or hold one value for each trial of a sweep;
`compute_means` divides once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped

from seqjax.typing import Logits


def argmax(values: Shaped[Array, "*B N"]) -> Int[Array, "*B"]:
    """Returns the index of the first maximum of each row, int32; 0 if the row has a NaN.

    It is two reductions of one operand each, which XLA vectorizes on a CPU. `jnp.argmax` is one
    reduction of (value, index) pairs and takes four times as long over 2,000 words.
    """
    greatest = jnp.max(values, axis=-1, keepdims=True)
    index = jnp.arange(values.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(values < greatest, values.shape[-1], index), axis=-1)


class Average(NamedTuple):
    """A mean as its weighted sum and its weight, before the division."""

    total: Num[Array, "..."]
    weight: Num[Array, "..."]


Metrics = Mapping[str, Average]


def accuracy(logits: Logits, labels: Int[Array, "*dims"], weight: Float[Array, "*dims"]) -> Average:
    """Returns the share of the weight for which the most probable class is the label."""
    hits = argmax(logits) == labels
    return Average(jnp.sum(hits * weight), jnp.sum(weight))


def top_k_accuracy(logits: Logits, labels: Int[Array, "*dims"], weight: Array, k: int) -> Average:
    """Returns the share of the weight for which the label is among the `k` most probable.

    Of equally probable classes the first count, as `jax.lax.top_k` orders them.
    """
    labels = labels[..., None]
    of_label = jnp.take_along_axis(logits, labels, axis=-1)
    tied_before = (logits == of_label) & (jnp.arange(logits.shape[-1]) < labels)
    above = ~(logits <= of_label)  # not `>`: a label whose logit is NaN is below all classes
    hits = jnp.sum(above | tied_before, axis=-1) < k
    return Average(jnp.sum(hits * weight), jnp.sum(weight))


def sequence_accuracy(
    logits: Logits, labels: Int[Array, "B T"], weight: Float[Array, "B T"]
) -> Average:
    """Returns the share of sequences that are right at every step that has weight.

    Sequences without weight do not count.
    """
    wrong = jnp.sum((argmax(logits) != labels) * weight, axis=1)
    rows = jnp.any(weight > 0, axis=1)
    return Average(jnp.sum((wrong == 0) & rows).astype(jnp.float32), jnp.sum(rows))


def compute_means(metrics: Metrics) -> dict[str, float]:
    """Returns the mean of each metric over all elements of its arrays, summed in float64."""
    sums = {
        name: [np.sum(np.asarray(x, np.float64)) for x in average]
        for name, average in metrics.items()
    }
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, computed on the host."""
    unnormalized = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return unnormalized / unnormalized.sum(axis=-1, keepdims=True)


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> Int[np.ndarray, "C C"]:
    """Returns the number of examples of each label (row) predicted as each class (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts
