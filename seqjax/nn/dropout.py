"""Dropout as a function of explicit keys, one a row.

`keys=None` evaluates. With a key of its own, a row is dropped alike whatever its batch mates, its
padding and the device it lies on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from seqjax.typing import RowKeys

Rate = float | Float[Array, ""]  # in [0, 1)


def row_keys(key: Key[Array, ""], num_rows: int, first_row: Any = 0) -> RowKeys:
    """One key for each of the rows `first_row, first_row + 1, ...` of a batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + jnp.arange(num_rows))


def fold_keys(keys: RowKeys | None, data: int) -> RowKeys | None:
    """Keys for another use, told apart by `data`; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(
    keys: RowKeys | None, x: Float[Array, "..."], rate: Rate, axis: int = 0
) -> Float[Array, "..."]:
    """`x` with a share `rate` of its elements zeroed and the rest scaled up; rows lie on `axis`.

    A rate that is a JAX array is an input of the compiled program, which then serves every rate.
    """
    if keys is None or _is_zero(rate):
        return x
    share = 1.0 - (rate if isinstance(rate, jax.Array) else np.float32(rate))
    kept = jax.vmap(
        lambda key, row: jax.random.bernoulli(key, share, row.shape),
        in_axes=(0, axis),
        out_axes=axis,
    )(keys, x)
    return jnp.where(kept, x * (1 / share), 0)


def dropout_scale(
    keys: RowKeys | None, like: Float[Array, "B H"], rate: Rate
) -> Float[Array, "B H"] | None:
    """The factors of one dropout mask, to be used many times; None where nothing is dropped."""
    if keys is None or _is_zero(rate):
        return None
    return dropout(keys, jnp.ones_like(like), rate)


def _is_zero(rate: Rate) -> bool:
    return not isinstance(rate, jax.Array) and rate == 0.0
