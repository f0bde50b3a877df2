"""Losses as (sum, weight), so that padding and filler rows weigh nothing."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from seqjax.hparams import value_of
from seqjax.metrics import Average
from seqjax.typing import Logits


def cross_entropy(
    logits: Logits,
    labels: Int[Array, "*dims"],
    weight: Float[Array, "*dims"],
    label_smoothing: float = 0.0,
) -> Average:
    """Softmax cross-entropy in nats per unit of weight (a real row, or a real token).

    `label_smoothing` is the share of each label that is spread over all classes alike (Szegedy et
    al., 2016).
    """
    # Where nothing weighs, not even a NaN may get through: the logits' (they would reach the
    # gradient) or that of a label which is no class.
    logits = jnp.where(weight[..., None] > 0, logits, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        share = value_of(label_smoothing)
        nats = (1 - share) * nats + share * uniform
    return Average(jnp.sum(jnp.where(weight > 0, nats * weight, 0)), jnp.sum(weight))
