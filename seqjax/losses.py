"""Losses as (sum, weight), so that padding and filler rows weigh nothing. Imports: metrics."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from seqjax.array_types import Logits
from seqjax.metrics import Average


def cross_entropy(
    logits: Logits, labels: Int[Array, "*dims"], weight: Float[Array, "*dims"]
) -> Average:
    """Softmax cross-entropy in nats per unit of weight (a real row, or a real token)."""
    # Where nothing weighs, not even a NaN may get through: the logits' (they would reach the
    # gradient) or that of a label which is no class.
    logits = jnp.where(weight[..., None] > 0, logits, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Average(jnp.sum(jnp.where(weight > 0, nats * weight, 0)), jnp.sum(weight))
