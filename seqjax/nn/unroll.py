"""Cells over time: the plain scan, which defines what every backend computes.

Everything here is time-major, `[T, B, ...]`. A mask freezes the state: where it is False the state
keeps its value and the output is zero. So padding has no influence, a row of length zero keeps its
initial state, and `reverse=True` on right-padded rows equals a scan of the flipped valid prefix.

A run computes in the dtype of the cell's parameters: inputs and states are cast to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, CellState


def length_mask(lengths: Int[Array, " B"], num_steps: int) -> Bool[Array, "B T"]:
    """Returns a mask that is True at the first `lengths[b]` of `num_steps` steps of each row."""
    return jnp.arange(num_steps)[None, :] < lengths[:, None]


def params_dtype(params: Any) -> jnp.dtype:
    """Returns the floating dtype of the parameters; without any it is JAX's default."""
    return jnp.result_type(1.0, *jax.tree.leaves(params))


def cast_inputs(params: Any, state: CellState, xs: Any, state_scale: Any) -> tuple[Any, Any, Any]:
    """Returns state, inputs and state scale in the dtype that the parameters compute in.

    Integers in a state keep their dtype.
    """
    dtype = params_dtype(params)

    def cast(x):
        return jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else None)

    scale = None if state_scale is None else jnp.asarray(state_scale, dtype)
    return jax.tree.map(cast, state), jnp.asarray(xs, dtype), scale


def should_hoist(xs: Shaped[Array, "T B I"]) -> bool:
    """Returns whether projecting all inputs in one matmul before the scan is faster.

    It is on accelerators, and for a single row. On a CPU, writing and reading `[T, B, G]` costs
    more than small matmuls inside the loop; but with one row each of them would read all weights.
    """
    return jax.default_backend() != "cpu" or xs.shape[1] == 1


def unroll(
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
    """Returns the last state and all outputs of a cell run over `xs`, in one scan.

    - `mask`: True marks real steps.
    - `reverse`: starts at the last step; outputs stay at the positions of their inputs.
    - `state_scale` multiplies the `h` that the recurrent matmuls read, at every step: this is
      recurrent dropout with one mask for the sequence.
    - `hoist`: whether to project all inputs in one matmul before the scan. By default
      `should_hoist` decides.
    """
    state, xs, state_scale = cast_inputs(params, state, xs, state_scale)
    if hoist is None:
        hoist = should_hoist(xs)

    def body(state, inputs):
        x, keep = inputs
        state_in = None if state_scale is None else state._replace(h=state.h * state_scale)
        new, y = cell.step(params, state, x if hoist else cell.project(params, x), state_in)
        if keep is None:
            return new, y
        keep = keep[:, None]
        frozen = jax.tree.map(lambda n, old: jnp.where(keep, n, old), new, state)
        return frozen, jnp.where(keep, y, 0)

    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # NaN in the padding would give NaN gradients
    inputs = cell.project(params, xs) if hoist else xs
    return jax.lax.scan(body, state, (inputs, mask), reverse=reverse)


def unroll_bidirectional(
    cell: Cell,
    params: tuple[Any, Any],
    states: tuple[CellState, CellState],
    xs: Shaped[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    state_scales: Sequence[Float[Array, "B H"] | None] = (None, None),
    run: Callable = unroll,
) -> tuple[tuple[CellState, CellState], tuple[Float[Array, "T B H"], Float[Array, "T B H"]]]:
    """Returns last states and outputs of a forward and a backward run, each as a pair.

    Backward outputs stay at the positions of their inputs. `run` is `unroll` or another backend
    with its signature.
    """
    runs = [
        run(cell, p, s, xs, mask=mask, reverse=reverse, state_scale=scale)
        for p, s, scale, reverse in zip(params, states, state_scales, (False, True), strict=True)
    ]
    (forward, forward_ys), (backward, backward_ys) = runs
    return (forward, backward), (forward_ys, backward_ys)


def unroll_windows(
    cell: Cell,
    params: Any,
    state: CellState,
    xs: Shaped[Array, "T B I"],
    *,
    window_size: int,
    mask: Bool[Array, "T B"] | None = None,
) -> tuple[CellState, Float[Array, "T B H"]]:
    """Returns what `unroll` returns, computed in windows between which the gradient is cut.

    The values are those of one long run, because each window starts from the last state of the one
    before. The gradient is that of truncated back-propagation through time (Williams and Peng,
    1990). Raises UserError unless `window_size` divides T.
    """
    num_steps = xs.shape[0]
    if window_size < 1 or num_steps % window_size:
        raise UserError(f"window_size {window_size} does not divide the {num_steps} time steps")

    def split(array):
        return array.reshape(-1, window_size, *array.shape[1:])

    def body(state, window):
        window_xs, window_mask = window
        state = jax.lax.stop_gradient(state)
        return unroll(cell, params, state, window_xs, mask=window_mask)

    state, xs, _ = cast_inputs(params, state, xs, None)
    windows = (split(xs), None if mask is None else split(mask))
    state, ys = jax.lax.scan(body, state, windows)
    return state, ys.reshape(num_steps, *ys.shape[2:])


def last_output(
    ys: Float[Array, "T B H"], mask: Bool[Array, "T B"] | None, reverse: bool = False
) -> Float[Array, "B H"]:
    """Returns the output of the last real step of each row, zeros for a row without one.

    With `reverse` the last step is the one at the lowest position.
    """
    num_steps = len(ys)
    if not num_steps:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    if mask is None:
        return ys[0 if reverse else -1]
    step = jnp.argmax(mask, axis=0) if reverse else num_steps - 1 - jnp.argmax(mask[::-1], axis=0)
    return jnp.take_along_axis(ys, step[None, :, None], axis=0)[0]  # outputs of padding are zero
