"""Attention over a masked memory, with dot, general or additive scores.

Dot and general scores are by Luong et al. (2015), additive scores by Bahdanau et al. (2015). Masked
positions get no weight, and a row whose memory is all padding gets a context of zeros.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seqjax.errors import unknown_name
from seqjax.nn.layers import Dense
from seqjax.nn.precision import einsum

SCORES = ("dot", "general", "additive")


class Memory(NamedTuple):
    """The vectors that attention reads, prepared once for a sequence."""

    values: Float[Array, "B S O"]
    keys: Float[Array, "B S Q"]  # the values, projected to the size of the queries
    mask: Bool[Array, "B S"]  # True marks real positions


class Attention(nnx.Module):
    """Computes a context for each query: the mean of the memory's values under its weights."""

    def __init__(
        self,
        score: str,
        query_size: int,
        memory_size: int,
        *,
        compute_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if score not in SCORES:
            raise unknown_name("attention", score, (*SCORES, "none"))
        self.score, self.compute_dtype = score, compute_dtype
        dense = partial(Dense, compute_dtype=compute_dtype, rngs=rngs)
        # Projections to keys, queries and scores. Saved weights have these names.
        if score != "dot" or memory_size != query_size:
            self.of_memory = dense(memory_size, query_size)
        if score == "additive":
            self.of_query = dense(query_size, query_size)
            self.of_sum = dense(query_size, 1)

    def memory(self, values: Float[Array, "B S O"], mask: Bool[Array, "B S"]) -> Memory:
        """Returns the memory of a sequence of vectors."""
        keys = self.of_memory(values) if hasattr(self, "of_memory") else values
        return Memory(values, keys, mask)

    def __call__(
        self, queries: Float[Array, "B T Q"], memory: Memory
    ) -> tuple[Float[Array, "B T O"], Float[Array, "B T S"]]:
        """Returns the contexts and the weights."""
        if self.score == "additive":
            sums = jnp.tanh(self.of_query(queries)[:, :, None] + memory.keys[:, None])
            scores = self.of_sum(sums)[..., 0]
        else:
            scores = einsum("btq,bsq->bts", queries, memory.keys, self.compute_dtype)
        mask = memory.mask[:, None, :]
        # Not -inf: a row without real positions would give NaN, also in the gradient.
        lowest = jnp.finfo(scores.dtype).min
        weights = jax.nn.softmax(jnp.where(mask, scores, lowest), axis=-1) * mask
        return einsum("bts,bso->bto", weights, memory.values, self.compute_dtype), weights
