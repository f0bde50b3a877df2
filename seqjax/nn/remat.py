"""Gradient checkpointing in windows of time steps."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def scan_windows(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """Runs `function(carry, steps) -> (carry, outputs)` over windows of sqrt(T) steps.

    `steps` and the outputs are nests of arrays `[T, ...]`, with T at least 1. For the backward pass
    only the carries between the windows are stored: differentiation computes each window a second
    time (Chen et al., 2016, "Training deep nets with sublinear memory cost"). Apart from inputs and
    outputs, memory grows with sqrt(T) instead of T.
    """
    num_steps = len(jax.tree.leaves(steps)[0])
    size = math.isqrt(num_steps - 1) + 1
    whole = num_steps - num_steps % size

    def windows(carry, steps):
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), steps)
        # XLA cannot merge the body of a loop with its recomputation, so it need not be kept from
        # doing so.
        body = jax.checkpoint(function, prevent_cse=False)
        carry, outputs = jax.lax.scan(body, carry, split, reverse=reverse)
        return carry, jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), outputs)

    slices = [(windows, slice(whole)), (jax.checkpoint(function), slice(whole, None))]
    parts = [(run, jax.tree.map(lambda x, s=s: x[s], steps)) for run, s in slices]
    if whole == num_steps:
        parts.pop()
    outputs = []
    for run, part in reversed(parts) if reverse else parts:
        carry, ys = run(carry, part)
        outputs.append(ys)
    in_order = outputs[::-1] if reverse else outputs
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *in_order)


def map_windows(function: Callable[[Any], Any], xs: Shaped[Array, "B T *rest"]) -> Any:
    """Returns `function(xs)`, a nest of arrays `[B, T, ...]`, computed by `scan_windows`."""

    def swap(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)

    return swap(scan_windows(lambda _, x: ((), swap(function(swap(x)))), (), swap(xs))[1])
