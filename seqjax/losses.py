"""Losses as (sum, weight) pairs, in which padding and filler rows have no weight."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from seqjax.metrics import Average
from seqjax.typing import Logits


def cross_entropy(
    logits: Logits,
    labels: Int[Array, "*dims"],
    weight: Float[Array, "*dims"],
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Average:
    """Returns the softmax cross-entropy in nats per unit of weight (a real row or a real token).

    `label_smoothing` is the share of each label's probability that is spread evenly over all
    classes (Szegedy et al., 2016): a float, or an array of a compiled program's arguments.
    """
    # A position without weight must not pass on a NaN, neither through the logits (it would reach
    # the gradient) nor through a label that is not a class.
    logits = jnp.where(weight[..., None] > 0, logits, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not isinstance(label_smoothing, int | float) or label_smoothing > 0:
        uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        share = jnp.asarray(label_smoothing, jnp.float32)
        nats = (1 - share) * nats + share * uniform
    return Average(jnp.sum(jnp.where(weight > 0, nats * weight, 0)), jnp.sum(weight))
