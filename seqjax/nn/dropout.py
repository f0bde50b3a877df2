"""Dropout as a function of explicit keys, one for each row.

`keys=None` turns dropout off. Because a row has a key of its own, its dropout does not depend on
the other rows of the batch, on padding or on the device that computes it. Every use of dropout has
a stream of its own, so that no two masks are drawn from the same key.
"""

from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from seqjax.typing import RowKeys

Rate = float | Float[Array, ""]  # in [0, 1)


class ModelStream(IntEnum):
    """The streams of a sequence-to-sequence model. Another number would change every mask."""

    ENCODER = 0
    DECODER = 1
    SOURCE_TOKENS = 2  # which source tokens are read as unknown
    REPLACE = 3  # which inputs scheduled sampling replaces
    DRAW = 4  # the tokens that replace them


class LayerStream(IntEnum):
    """The streams of each layer of a stack."""

    INPUT = 0
    OUTPUT = 1
    LAST_OUTPUT = 2
    STATE = 3


class Direction(IntEnum):
    """The streams of a bidirectional layer."""

    FORWARD = 0
    BACKWARD = 1


def row_keys(key: Key[Array, ""], num_rows: int, first_row: Any = 0) -> RowKeys:
    """Returns one key for each of the rows `first_row, first_row + 1, ...` of a batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + jnp.arange(num_rows))


def fold_keys(keys: RowKeys | None, stream: int) -> RowKeys | None:
    """Returns the keys of a stream, or None for None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, int(stream))


def layer_keys(keys: RowKeys | None, layer: int, stream: LayerStream) -> RowKeys | None:
    """Returns the keys of a stream of one layer of a stack, or None for None."""
    return fold_keys(keys, len(LayerStream) * layer + stream)


def dropout(
    keys: RowKeys | None, x: Float[Array, "..."], rate: Rate, axis: int = 0
) -> Float[Array, "..."]:
    """Returns `x` with each element zeroed with probability `rate`, else divided by `1 - rate`.

    The rows of the keys lie on `axis`. A rate that is a JAX array is an input of the compiled
    program, which then serves every rate.
    """
    if keys is None or _is_zero(rate):
        return x
    keep_probability = 1.0 - (rate if isinstance(rate, jax.Array) else np.float32(rate))
    keep = jax.vmap(
        lambda key, row: jax.random.bernoulli(key, keep_probability, row.shape),
        in_axes=(0, axis),
        out_axes=axis,
    )(keys, x)
    return jnp.where(keep, x * (1 / keep_probability).astype(x.dtype), 0)


def dropout_scale(
    keys: RowKeys | None, like: Float[Array, "B H"], rate: Rate
) -> Float[Array, "B H"] | None:
    """Returns the factors of one dropout mask, to be used at every step; None if `rate` is 0."""
    if keys is None or _is_zero(rate):
        return None
    return dropout(keys, jnp.ones_like(like), rate)


def _is_zero(rate: Rate) -> bool:
    return not isinstance(rate, jax.Array) and rate == 0.0
