"""A faster `unroll`, with a backward pass of its own.

Differentiating `jax.lax.scan` adds to the gradient of every weight at every step. Here the forward
scan stores the states and pre-activations of all steps; the backward scan carries only the gradient
with respect to the state and stores those with respect to the pre-activations; the gradient of each
weight is then one matmul over all `T * B` rows, as in cuDNN (Appleyard, Kocisky and Blunsom, 2016,
"Optimizing performance of recurrent neural networks on GPUs"). Gates are computed twice, and it
needs about a quarter more memory than the scan; `train.remat` needs far less.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, CellState, pre_activations
from seqjax.nn.precision import product
from seqjax.nn.unroll import cast_inputs, should_hoist


def unroll_fused(
    cell: Cell,
    params: Any,
    state: CellState,
    xs: Shaped[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    state_scale: Float[Array, "B H"] | None = None,
    hoist: bool | None = None,
) -> tuple[CellState, Float[Array, "T B H"]]:
    """Returns what `unroll` returns, up to rounding, for a cell that has `recurrent_matmuls`.

    Reverse mode works to any order; forward mode (`jax.jvp`) is not defined. `hoist` is as in
    `unroll`. Raises UserError for a cell without `recurrent_matmuls`.
    """
    if not cell.recurrent_matmuls:
        raise UserError("train.backend=fused: this cell has only a step: choose auto or scan")
    state, xs, state_scale = cast_inputs(params, state, xs, state_scale)
    if hoist is None:
        hoist = should_hoist(xs)
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # NaN in the padding would give NaN gradients
    return _fused(cell, reverse, hoist, params, state, xs, mask, state_scale)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(cell, reverse, hoist, params, state, xs, mask, scale):
    outputs, _ = _forward(cell, reverse, hoist, params, state, xs, mask, scale)
    return outputs


def _forward(cell, reverse, hoist, params, state, xs, mask, scale):
    """Returns the outputs, and the residuals that the backward pass needs."""
    weights = [matmul.weights(params) for matmul in cell.recurrent_matmuls]

    def body(state, inputs):
        x, keep = inputs
        z = x if hoist else cell.project(params, x)
        h_read = _h_read(state, scale)
        a = pre_activations(cell, weights, z, h_read)
        new, y = cell.gate(a, state)
        if keep is not None:
            new, y = _where(keep, new, state), _where(keep, y, jnp.zeros_like(y))
        return new, (y, state, a)

    inputs = cell.project(params, xs) if hoist else xs
    last, (ys, states, a) = jax.lax.scan(body, state, (inputs, mask), reverse=reverse)
    return (last, ys), (params, xs, mask, scale, states, a)


def _backward(cell, reverse, hoist, residuals, cotangents):
    """Returns the gradients with respect to parameters, state, inputs, mask and scale."""
    params, xs, mask, scale, states, a = residuals
    grad_last, grad_ys = cotangents
    matmuls, dtype = cell.recurrent_matmuls, cell.compute_dtype
    # Transposed once: on a CPU this makes the matmuls of the loop a quarter faster.
    transposed = [matmul.weights(params)[0].T for matmul in matmuls]
    split = _transpose_combine(cell, params)

    def body(carry, inputs):
        grad_new, grad_scale = carry
        state, a, grad_y, keep = inputs
        grad_step, grad_frozen = (grad_new, grad_y), None
        if keep is not None:  # a frozen row passes the gradient of its state on
            zeros = jax.tree.map(jnp.zeros_like, grad_step)
            grad_step, grad_frozen = (
                _where(keep, grad_step, zeros),
                _where(keep, zeros[0], grad_new),
            )
        h_read = _h_read(state, scale)
        grad_a, grad_state = jax.vjp(cell.gate, a, state)[1](grad_step)
        grad_h_read = jnp.zeros_like(h_read)
        for k in reversed(range(len(matmuls))):
            grad_operand = product(split(grad_a)[1 + k], transposed[k], dtype)
            grad_earlier, grad_h = jax.vjp(matmuls[k].operand, a, h_read)[1](grad_operand)
            grad_a = jax.tree.map(jnp.add, grad_a, grad_earlier)
            grad_h_read = grad_h_read + grad_h
        if scale is not None:
            grad_scale = grad_scale + grad_h_read * state.h
            grad_h_read = grad_h_read * scale
        grad_state = grad_state._replace(h=grad_state.h + grad_h_read)
        if grad_frozen is not None:
            grad_state = jax.tree.map(jnp.add, grad_state, grad_frozen)
        return (grad_state, grad_scale), split(grad_a)

    start = grad_last, None if scale is None else jnp.zeros_like(scale)
    steps = states, a, grad_ys, mask
    (grad_state, grad_scale), grads = jax.lax.scan(body, start, steps, reverse=not reverse)

    grad_z, *grad_results = map(_flatten_time, grads)
    h_read, a = _flatten_time(_h_read(states, scale)), _flatten_time(a)
    operands = [matmul.operand(a, h_read) for matmul in matmuls]
    grad_params = jax.tree.map(jnp.zeros_like, params)
    for weights, operand, grad_result in zip(
        (cell.projection, *(matmul.weights for matmul in matmuls)),
        (_flatten_time(xs), *operands),
        (grad_z, *grad_results),
        strict=True,
    ):
        grad_weights = _grad_weights(weights(params), operand, grad_result, dtype)
        (term,) = jax.vjp(weights, params)[1](grad_weights)
        grad_params = jax.tree.map(jnp.add, grad_params, term)
    grad_xs = product(grad_z, cell.projection(params)[0].T, dtype).reshape(xs.shape)
    return grad_params, grad_state, grad_xs, None, grad_scale


_fused.defvjp(_forward, _backward)


def _h_read(state, scale):
    """Returns the `h` that the recurrent matmuls read."""
    return state.h if scale is None else state.h * scale


def _flatten_time(xs):
    """Returns `[T, B, ...]` as `[T * B, ...]`: with one axis of rows, XLA's matmuls do not copy."""
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), xs)


def _grad_weights(weights, x, grad_result, dtype):
    """Returns the gradients of the weights of `affine(weights, x)`, summed over all rows of `x`."""
    # On a CPU a matmul with a transposed copy is faster than one that contracts both first axes.
    grad_w = product(jax.lax.optimization_barrier(x.T), grad_result, dtype)
    return grad_w, None if weights[1] is None else jnp.sum(grad_result, axis=0)


def _where(keep, new, old):
    """Returns `new` in the rows to keep, `old` in the others."""
    return jax.tree.map(lambda n, o: jnp.where(keep[:, None], n, o), new, old)


def _transpose_combine(cell, params):
    """Returns the transpose of `cell.combine`: `grad_a -> [grad_z, *grad_results]`."""
    weights = (cell.projection, *(matmul.weights for matmul in cell.recurrent_matmuls))
    sizes = [kernel_and_bias(params)[0].shape[-1] for kernel_and_bias in weights]

    def split(grad_a):
        first = jax.tree.leaves(grad_a)[0]
        shapes = [jax.ShapeDtypeStruct((*first.shape[:-1], n), first.dtype) for n in sizes]
        return jax.linear_transpose(cell.combine, *shapes)(grad_a)

    return split
