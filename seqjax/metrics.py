"""Metrics as sums and weights until the very end.

An `Average` may be added over steps, devices and members of a sweep; `summarize` divides once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped

from seqjax.typing import Logits


def argmax(values: Shaped[Array, "*B N"]) -> Int[Array, "*B"]:
    """The first index of the greatest of each row, int32; 0 where one is NaN.

    As two reductions of one operand each, which XLA vectorizes on a CPU: `jnp.argmax` is one of
    pairs, and over 2,000 words takes four times as long.
    """
    greatest = jnp.max(values, axis=-1, keepdims=True)
    index = jnp.arange(values.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(values < greatest, values.shape[-1], index), axis=-1)


class Average(NamedTuple):
    """A mean still in two parts."""

    total: Num[Array, "..."]
    weight: Num[Array, "..."]


Metrics = Mapping[str, Average]


def accuracy(logits: Logits, labels: Int[Array, "*dims"], weight: Float[Array, "*dims"]) -> Average:
    """How much of the weight the most probable class gets right."""
    hits = argmax(logits) == labels
    return Average(jnp.sum(hits * weight), jnp.sum(weight))


def top_k_accuracy(logits: Logits, labels: Int[Array, "*dims"], weight: Array, k: int) -> Average:
    """How much of the weight has its label among the `k` most probable classes."""
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    hits = jnp.sum(~(logits <= own), axis=-1) < k  # so written, a NaN is never among them
    return Average(jnp.sum(hits * weight), jnp.sum(weight))


def sequence_accuracy(
    logits: Logits, labels: Int[Array, "B T"], weight: Float[Array, "B T"]
) -> Average:
    """How many sequences are right at every weighted step; rows without weight do not count."""
    wrong = jnp.sum((argmax(logits) != labels) * weight, axis=1)
    rows = jnp.any(weight > 0, axis=1)
    return Average(jnp.sum((wrong == 0) & rows).astype(jnp.float32), jnp.sum(rows))


def summarize(metrics: Metrics) -> dict[str, float]:
    """Means over everything the arrays hold, summed in float64."""
    sums = {
        name: [np.sum(np.asarray(x, np.float64)) for x in pair] for name, pair in metrics.items()
    }
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, on the host."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> Int[np.ndarray, "C C"]:
    """Counts of (label, prediction) pairs: rows are labels, columns predictions."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts
