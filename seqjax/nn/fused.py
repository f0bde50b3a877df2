"""The fast `unroll`, with a backward pass of its own.

Differentiating `jax.lax.scan` adds to the gradient of every weight at each step. Here a step keeps
the state that it read and its pre-activations; the scan backwards carries the cotangent of the
state only and leaves those of the pre-activations behind; and the gradient of each weight is then
one product over all `T * B` rows, as cuDNN's is (Appleyard, Kocisky and Blunsom, 2016, "Optimizing
performance of recurrent neural networks on GPUs"). It computes gates twice, and needs about a
fourth more memory than the scan; `train.remat` needs far less.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, pre_activations
from seqjax.nn.unroll import hoists

State = Any  # a cell's NamedTuple of [B, H] arrays


def unroll_fused(
    cell: Cell,
    params: Any,
    state: State,
    xs: Float[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    state_scale: Float[Array, "B H"] | None = None,
    hoist: bool | None = None,
) -> tuple[State, Float[Array, "T B H"]]:
    """What `unroll` gives, up to rounding, for a cell made of `products`, `join` and `gate`.

    In reverse mode it may be differentiated as often as one likes; forward mode (`jax.jvp`) is not
    defined for it. `hoist` as in `unroll`. Raises UserError for a cell that gives only a `step`.
    """
    if not cell.products:
        raise UserError("train.backend=fused: this cell gives no products: choose auto or scan")
    if hoist is None:
        hoist = hoists(xs)
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # 0 times a NaN of the padding is a NaN gradient
    return _fused(cell, reverse, hoist, params, state, xs, mask, state_scale)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(cell, reverse, hoist, params, state, xs, mask, scale):
    outputs, _ = _forward(cell, reverse, hoist, params, state, xs, mask, scale)
    return outputs


def _forward(cell, reverse, hoist, params, state, xs, mask, scale):
    """The outputs, and all that the backward pass needs."""
    weights = [product.weights(params) for product in cell.products]

    def body(state, inputs):
        x, keep = inputs
        z = x if hoist else cell.project(params, x)
        a = pre_activations(cell.products, cell.join, weights, z, _seen(state, scale))
        new, y = cell.gate(a, state)
        if keep is not None:
            new, y = _where(keep, new, state), _where(keep, y, jnp.zeros_like(y))
        return new, (y, state, a)

    inputs = cell.project(params, xs) if hoist else xs
    end, (ys, states, a) = jax.lax.scan(body, state, (inputs, mask), reverse=reverse)
    return (end, ys), (params, xs, mask, scale, states, a)


def _backward(cell, reverse, hoist, kept, cotangents):
    """The cotangents of parameters, state, inputs, mask and scale."""
    params, xs, mask, scale, states, a = kept
    by_end, by_ys = cotangents
    # Transposed once: on a CPU the products are a quarter faster than with the weights as they lie.
    transposed = [product.weights(params)[0].T for product in cell.products]
    split = _transpose_join(cell, params)

    def body(carry, inputs):
        by_new, by_scale = carry
        state, a, by_y, keep = inputs
        given, by_frozen = (by_new, by_y), None
        if keep is not None:
            nothing = jax.tree.map(jnp.zeros_like, given)
            given, by_frozen = _where(keep, given, nothing), _where(keep, nothing[0], by_new)
        seen = _seen(state, scale)
        by_a, by_state = jax.vjp(cell.gate, a, state)[1](given)
        by_seen = jnp.zeros_like(seen)
        for k in reversed(range(len(cell.products))):
            by_read = split(by_a)[1 + k] @ transposed[k]
            by_earlier, by_h = jax.vjp(cell.products[k].read, a, seen)[1](by_read)
            by_a, by_seen = jax.tree.map(jnp.add, by_a, by_earlier), by_seen + by_h
        if scale is not None:
            by_scale, by_seen = by_scale + by_seen * state.h, by_seen * scale
        by_state = by_state._replace(h=by_state.h + by_seen)
        if by_frozen is not None:
            by_state = jax.tree.map(jnp.add, by_state, by_frozen)
        return (by_state, by_scale), split(by_a)

    start = by_end, None if scale is None else jnp.zeros_like(scale)
    steps = states, a, by_ys, mask
    (by_state, by_scale), by_affine = jax.lax.scan(body, start, steps, reverse=not reverse)

    by_z, *by_results = map(_flat, by_affine)
    seen, a = _flat(_seen(states, scale)), _flat(a)
    reads = [product.read(a, seen) for product in cell.products]
    by_params = jax.tree.map(jnp.zeros_like, params)
    for weights, read, by_result in zip(
        (cell.projection, *(product.weights for product in cell.products)),
        (_flat(xs), *reads),
        (by_z, *by_results),
        strict=True,
    ):
        (more,) = jax.vjp(weights, params)[1](_by_weights(weights(params), read, by_result))
        by_params = jax.tree.map(jnp.add, by_params, more)
    by_xs = (by_z @ cell.projection(params)[0].T).reshape(xs.shape)
    return by_params, by_state, by_xs, None, by_scale


_fused.defvjp(_forward, _backward)


def _seen(state, scale):
    """What the recurrent products see of a state."""
    return state.h if scale is None else state.h * scale


def _flat(xs):
    """`[T, B, ...]` as `[T * B, ...]`: over one axis XLA's products need no copies."""
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), xs)


def _by_weights(weights, x, by_result):
    """The cotangents of the weights of `affine(weights, x)`, over all rows of `x`."""
    # On a CPU a product with a transposed copy is faster than one over both first axes.
    by_w = jax.lax.optimization_barrier(x.T) @ by_result
    return by_w, None if weights[1] is None else jnp.sum(by_result, axis=0)


def _where(keep, new, old):
    """`new` in the rows to keep."""
    return jax.tree.map(lambda n, o: jnp.where(keep[:, None], n, o), new, old)


def _transpose_join(cell, params):
    """`by_a -> [by_z, *by_results]`, on any leading axes."""
    weights = (cell.projection, *(product.weights for product in cell.products))
    sizes = [of_one(params)[0].shape[-1] for of_one in weights]

    def split(by_a):
        first = jax.tree.leaves(by_a)[0]
        like = [jax.ShapeDtypeStruct((*first.shape[:-1], n), first.dtype) for n in sizes]
        return jax.linear_transpose(cell.join, *like)(by_a)

    return split
