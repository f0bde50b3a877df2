"""Attention over a masked memory: dot, general and additive scores.

Luong et al. (2015) for dot and general, Bahdanau et al. (2015) for additive. Masked positions get
no weight at all; a row whose memory is all padding gets a context of zeros.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seqjax.errors import unknown_name
from seqjax.nn.layers import Dense

SCORES = ("dot", "general", "additive")


class Memory(NamedTuple):
    """What attention looks at, prepared once a sequence."""

    values: Float[Array, "B S O"]
    keys: Float[Array, "B S Q"]  # the values, projected to what queries are compared with
    mask: Bool[Array, "B S"]


class Attention(nnx.Module):
    """Weights of a memory's positions for each query, and the mean of its values under them."""

    def __init__(self, score: str, query_size: int, memory_size: int, *, rngs: nnx.Rngs):
        if score not in SCORES:
            raise unknown_name("attention", score, (*SCORES, "none"))
        self.score = score
        if score != "dot" or memory_size != query_size:
            self.of_memory = Dense(memory_size, query_size, rngs=rngs)
        if score == "additive":
            self.of_query = Dense(query_size, query_size, rngs=rngs)
            self.of_sum = Dense(query_size, 1, rngs=rngs)

    def memory(self, values: Float[Array, "B S O"], mask: Bool[Array, "B S"]) -> Memory:
        """The memory of a sequence of vectors; True in the mask is real."""
        keys = self.of_memory(values) if hasattr(self, "of_memory") else values
        return Memory(values, keys, mask)

    def __call__(
        self, queries: Float[Array, "B T Q"], memory: Memory
    ) -> tuple[Float[Array, "B T O"], Float[Array, "B T S"]]:
        """Contexts and weights."""
        if self.score == "additive":
            sums = jnp.tanh(self.of_query(queries)[:, :, None] + memory.keys[:, None])
            scores = self.of_sum(sums)[..., 0]
        else:
            scores = jnp.einsum("btq,bsq->bts", queries, memory.keys)
        mask = memory.mask[:, None, :]
        # Not -inf: a row without one real position would give NaN, in the gradient too.
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1) * mask
        return jnp.einsum("bts,bso->bto", weights, memory.values), weights
