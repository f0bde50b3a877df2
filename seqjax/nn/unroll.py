"""Cells over time: the only owner of `jax.lax.scan` over the time axis.

Everything here is time-major, `[T, B, ...]`. A mask freezes the state: where it is False the state
does not move and the output is zero, so padding can never leak, a row of length zero keeps its
initial state, and `reverse=True` on right-padded rows equals scanning the flipped valid prefix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seqjax.errors import UserError
from seqjax.nn.cells import Cell

State = Any  # a cell's NamedTuple of [B, H] arrays


def length_mask(lengths: Int[Array, " B"], num_steps: int) -> Bool[Array, "B T"]:
    """True at the first `lengths[b]` of `num_steps` positions of each row."""
    return jnp.arange(num_steps)[None, :] < lengths[:, None]


def hoists(xs: Float[Array, "T B I"]) -> bool:
    """Whether all inputs had better be projected at once."""
    return jax.default_backend() != "cpu" or xs.shape[1] == 1


def unroll(
    cell: Cell,
    params: Any,
    state: State,
    xs: Float[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    state_scale: Float[Array, "B H"] | None = None,
    hoist: bool | None = None,
    scan_unroll: int = 1,
) -> tuple[State, Float[Array, "T B H"]]:
    """The last state and every output of a cell run over `xs`, in one scan.

    - `mask`: True = real. `reverse`: start at the last step; outputs stay at their own positions.
    - `state_scale` multiplies the `h` that the recurrent products read, at every step: recurrent
      dropout with one mask a sequence.
    - `hoist`: project all inputs in one product before the scan. By default on accelerators, and
      for a single row: on a CPU, writing and re-reading [T, B, G] costs more than small products in
      the loop, but for one row each of those would read all weights.
    - `scan_unroll`: time steps per loop iteration. More of them compile longer and, on a CPU, have
      not been seen to run faster.
    """
    if hoist is None:
        hoist = hoists(xs)

    def body(state, inputs):
        x, keep = inputs
        read = None if state_scale is None else state._replace(h=state.h * state_scale)
        new, y = cell.step(params, state, x if hoist else cell.project(params, x), read)
        if keep is None:
            return new, y
        keep = keep[:, None]
        frozen = jax.tree.map(lambda n, old: jnp.where(keep, n, old), new, state)
        return frozen, jnp.where(keep, y, 0)

    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # 0 times a NaN of the padding is a NaN gradient
    inputs = cell.project(params, xs) if hoist else xs
    return jax.lax.scan(body, state, (inputs, mask), reverse=reverse, unroll=scan_unroll)


def unroll_bidirectional(
    cell: Cell,
    params: tuple[Any, Any],
    states: tuple[State, State],
    xs: Float[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    state_scales: Sequence[Float[Array, "B H"] | None] = (None, None),
    run: Callable = unroll,
) -> tuple[tuple[State, State], tuple[Float[Array, "T B H"], Float[Array, "T B H"]]]:
    """Last states and outputs (forward, backward), each output at its own input's position.

    `run` is `unroll`, or another backend with its signature.
    """
    ends = [
        run(cell, p, s, xs, mask=mask, reverse=reverse, state_scale=scale)
        for p, s, scale, reverse in zip(params, states, state_scales, (False, True), strict=True)
    ]
    (forward, forward_ys), (backward, backward_ys) = ends
    return (forward, backward), (forward_ys, backward_ys)


def unroll_windows(
    cell: Cell,
    params: Any,
    state: State,
    xs: Float[Array, "T B I"],
    *,
    window_size: int,
    mask: Bool[Array, "T B"] | None = None,
    scan_unroll: int = 1,
) -> tuple[State, Float[Array, "T B H"]]:
    """`unroll` in windows of `window_size` steps with the state carried and its gradient cut.

    The values are those of one long run; the gradient is truncated back-propagation through time
    (Williams and Peng, 1990). Raises UserError unless the windows divide T.
    """
    num_steps = xs.shape[0]
    if window_size < 1 or num_steps % window_size:
        raise UserError(f"window_size {window_size} does not divide the {num_steps} time steps")

    def split(array):
        return array.reshape(-1, window_size, *array.shape[1:])

    def body(state, window):
        window_xs, window_mask = window
        state = jax.lax.stop_gradient(state)
        return unroll(cell, params, state, window_xs, mask=window_mask, scan_unroll=scan_unroll)

    windows = (split(xs), None if mask is None else split(mask))
    state, ys = jax.lax.scan(body, state, windows)
    return state, ys.reshape(num_steps, *ys.shape[2:])
