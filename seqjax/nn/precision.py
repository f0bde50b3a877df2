"""Products whose operands have the dtype that `train.compute_dtype` names.

`float32` leaves a product to JAX. `bfloat16` rounds both operands to bfloat16 and adds up in their
own dtype, in the backward pass too; so parameters, states, gates and gradients stay in float32.
Forward mode (`jax.jvp`) is then not defined.

`jax.default_matmul_precision("BF16_BF16_F32")` would need no change of layers, but XLA ignores it
on a CPU and computes in float32.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

COMPUTE_DTYPES = ("float32", "bfloat16")


def product(x: Any, w: Any, compute_dtype: str) -> Any:
    """Returns `x @ w` for a kernel `w` of two axes."""
    # With one axis of rows XLA takes half of the time for the gradient on a CPU.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = rows @ w if compute_dtype == "float32" else _bfloat16_einsum("ri,io->ro", rows, w)
    return y.reshape(*x.shape[:-1], w.shape[-1])


def einsum(spec: str, a: Any, b: Any, compute_dtype: str) -> Any:
    """Returns `jnp.einsum(spec, a, b)`, where no axis is summed over that only one operand has."""
    return (jnp.einsum if compute_dtype == "float32" else _bfloat16_einsum)(spec, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bfloat16_einsum(spec, a, b):
    operands = (x.astype(jnp.bfloat16) for x in (a, b))
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.result_type(a, b))


def _forward(spec, a, b):
    return _bfloat16_einsum(spec, a, b), (a, b)


def _backward(spec, operands, gradient):
    # JAX's own rule would not round the gradient that it multiplies, but would round the result.
    (a, b), (inputs, output) = operands, spec.split("->")
    of_a, of_b = inputs.split(",")
    grad_a = _bfloat16_einsum(f"{output},{of_b}->{of_a}", gradient, b)
    return grad_a, _bfloat16_einsum(f"{of_a},{output}->{of_b}", a, gradient)


_bfloat16_einsum.defvjp(_forward, _backward)
