"""Initializers of kernels, biases and embeddings, by the names of the field.

A config names one as a spec: `glorot_uniform`, `normal(1)`, `uniform(0.05)`, `zeros`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import initializers as jax_init
from jaxtyping import Array, Float, Key

from seqjax.errors import UserError
from seqjax.hparams import from_spec

Initializer = Callable[..., Array]  # (key, shape, dtype) -> array

_TABLE: dict[str, Callable[..., Initializer]] = {
    "zeros": lambda: jax_init.zeros,
    "ones": lambda: jax_init.ones,
    "constant": lambda value=0.0: jax_init.constant(value),
    "normal": lambda stddev=1.0: jax_init.normal(stddev),
    "uniform": lambda scale=0.05: (
        lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)
    ),
    "glorot_uniform": lambda: jax_init.glorot_uniform(),
    "glorot_normal": lambda: jax_init.glorot_normal(),
    "he_normal": lambda: jax_init.he_normal(),
    "lecun_normal": lambda: jax_init.lecun_normal(),
    "orthogonal": lambda scale=1.0: jax_init.orthogonal(scale),
}


def make_initializer(spec: str, num_axes: int = 2) -> Initializer:
    """Returns the initializer `(key, shape, dtype=float32) -> array` of a spec.

    Raises UserError for an unknown spec, or one that cannot fill arrays of `num_axes` axes.
    """
    initializer = from_spec("initializer", spec, _TABLE)
    try:
        jax.eval_shape(lambda key: initializer(key, (2,) * num_axes), jax.random.key(0))
    except ValueError as error:
        raise UserError(f"initializer {spec!r} is not for {num_axes} axes: {error}") from None
    return initializer


def init_gates(
    key: Key[Array, ""], spec: str, shape: tuple[int, int], num_gates: int, joined_rows: int
) -> Float[Array, "rows G"]:
    """Returns a cell's kernel: `num_gates` blocks side by side, one for each gate.

    - `orthogonal` makes each gate's block orthogonal. (Keras makes the whole matrix orthogonal,
      which leaves the blocks with singular values far below 1.)
    - `joined_glorot_uniform` takes the fans from a matrix of `joined_rows` rows: the cells of
      TensorFlow 1 keep the input kernel and the recurrent kernel in one matrix.
    - Every other spec fills the whole matrix, as in Keras.
    """
    rows, width = shape
    if spec.startswith("orthogonal"):
        block = make_initializer(spec)
        keys = jax.random.split(key, num_gates)
        blocks = [block(k, (rows, width // num_gates), jnp.float32) for k in keys]
        return jnp.concatenate(blocks, axis=1)
    if spec == "joined_glorot_uniform":
        return make_initializer("glorot_uniform")(key, (joined_rows, width), jnp.float32)[:rows]
    return make_initializer(spec)(key, shape, jnp.float32)
