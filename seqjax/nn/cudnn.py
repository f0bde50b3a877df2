"""LSTMs on NVIDIA's cuDNN, behind `unroll`'s signature.

cuDNN takes rows of lengths 1 to T that start at the first step. Every mask is brought into that
form: the real steps of a row are moved to its front in the order in which they are read, and their
outputs are moved back. A row without real steps keeps its state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Bool, Float, Shaped

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, CellState, LSTMParams, LSTMState
from seqjax.nn.unroll import cast_inputs, params_dtype


def has_cudnn() -> bool:
    """Returns whether JAX computes on an NVIDIA GPU."""
    return jax.default_backend() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind


def why_not_cudnn(params: Any, state_scale: Any, compute_dtype: str = "float32") -> str:
    """Returns the reason why cuDNN cannot compute a run, or "" if it can."""
    if not isinstance(params, LSTMParams):
        return "JAX offers cuDNN for the LSTM only"
    if state_scale is not None:
        return "cuDNN has no state dropout"
    dtype = params_dtype(params) if compute_dtype == "float32" else compute_dtype
    return "" if dtype == jnp.float32 else f"cuDNN is used in float32 only, not in {dtype}"


def unroll_cudnn(
    cell: Cell,
    params: Any,
    state: CellState,
    xs: Shaped[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    state_scale: Float[Array, "B H"] | None = None,
) -> tuple[CellState, Float[Array, "T B H"]]:
    """Returns what `unroll` returns, up to rounding; matmuls are in full float32, not in TF32.

    Raises UserError, with the reason, if cuDNN cannot compute the run.
    """
    reason = why_not_cudnn(params, state_scale, cell.compute_dtype)
    if not reason and not has_cudnn():
        reason = f"this machine computes on {jax.devices()[0].device_kind}, not on an NVIDIA GPU"
    if reason:
        raise UserError(f"train.backend=cudnn: {reason}: choose auto, fused or scan")
    state, xs, _ = cast_inputs(params, state, xs, None)
    return run_by_lengths(_cudnn_lstm, params, state, xs, mask, reverse)


def run_by_lengths(lstm, params, state, xs, mask, reverse):
    """Returns what `unroll` returns, by an `lstm(params, state, xs, lengths)` without masks."""
    num_steps, batch_size, _ = xs.shape
    real = jnp.ones((num_steps, batch_size), bool) if mask is None else mask
    rank = jnp.arange(num_steps)[:, None]
    rank = num_steps - 1 - rank if reverse else rank
    # The real steps in the order in which they are read, then the padding.
    order = jnp.argsort(jnp.where(real, rank, num_steps + rank), axis=0)[..., None]
    lengths = jnp.sum(real, axis=0, dtype=jnp.int32)
    moved = jnp.take_along_axis(jnp.where(real[..., None], xs, 0), order, axis=0)
    last, ys = lstm(params, state, moved, jnp.maximum(lengths, 1))
    is_empty = (lengths == 0)[:, None]
    last = jax.tree.map(lambda new, old: jnp.where(is_empty, old, new), last, state)
    ys = jnp.take_along_axis(ys, jnp.argsort(order, axis=0), axis=0)
    return last, jnp.where(real[..., None], ys, 0)


def cudnn_weights(params: LSTMParams) -> Float[Array, " N"]:
    """Returns the parameters in cuDNN's layout: transposed kernels, then a bias for each kernel."""
    both = [params.w_x.T, params.w_h.T, params.b, jnp.zeros_like(params.b)]
    return jnp.concatenate([x.ravel() for x in both])


def _cudnn_lstm(params, state, xs, lengths):
    ys, h, c = rnn.lstm(
        jnp.swapaxes(xs, 0, 1),
        state.h[None],
        state.c[None],
        cudnn_weights(params),
        lengths,
        xs.shape[-1],
        state.h.shape[-1],
        1,  # number of layers
        0.0,  # dropout rate
        False,  # bidirectional
        jax.lax.Precision.HIGHEST,
    )
    return LSTMState(h[0], c[0]), jnp.swapaxes(ys, 0, 1)
