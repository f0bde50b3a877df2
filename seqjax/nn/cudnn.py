"""LSTMs on NVIDIA's cuDNN, behind `unroll`'s signature.

cuDNN knows rows of lengths 1 to T that start at the first step. Every mask is brought to that form:
a row's real steps, in the order in which they are to be read, are moved to its front and their
outputs back; a row without one keeps its state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from jaxtyping import Array, Bool, Float

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, LSTMParams, LSTMState


def has_cudnn() -> bool:
    """Whether the device is NVIDIA's."""
    return jax.default_backend() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind


def why_not_cudnn(params: Any, xs: Any, state_scale: Any) -> str:
    """What cuDNN cannot do of a run, or "" if it can."""
    if not isinstance(params, LSTMParams):
        return "JAX has cuDNN's LSTM only, no other cell"
    if state_scale is not None:
        return "it has no state dropout"
    return "" if xs.dtype == jnp.float32 else f"it runs in float32, not {xs.dtype}"


def unroll_cudnn(
    cell: Cell,
    params: Any,
    state: Any,
    xs: Float[Array, "T B I"],
    *,
    mask: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    state_scale: Float[Array, "B H"] | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """What `unroll` gives, up to rounding; products are full float32, not TF32.

    Raises UserError, with the reason, where cuDNN cannot do it.
    """
    reason = why_not_cudnn(params, xs, state_scale)
    if not reason and not has_cudnn():
        reason = f"this machine computes on {jax.devices()[0].device_kind}, not on NVIDIA's GPUs"
    if reason:
        raise UserError(f"train.backend=cudnn: {reason}: choose auto, fused or scan")
    return run_lengths(_cudnn_lstm, params, state, xs, mask, reverse)


def run_lengths(lstm, params, state, xs, mask, reverse):
    """`unroll` by `lstm(params, state, xs, lengths)`, which knows lengths only."""
    num_steps, batch_size, _ = xs.shape
    real = jnp.ones((num_steps, batch_size), bool) if mask is None else mask
    rank = jnp.arange(num_steps)[:, None]
    rank = num_steps - 1 - rank if reverse else rank
    # Real steps first, each in its turn; the padding after them.
    order = jnp.argsort(jnp.where(real, rank, num_steps + rank), axis=0)[..., None]
    lengths = jnp.sum(real, axis=0, dtype=jnp.int32)
    moved = jnp.take_along_axis(jnp.where(real[..., None], xs, 0), order, axis=0)
    end, ys = lstm(params, state, moved, jnp.maximum(lengths, 1))
    is_empty = (lengths == 0)[:, None]
    end = jax.tree.map(lambda new, old: jnp.where(is_empty, old, new), end, state)
    ys = jnp.take_along_axis(ys, jnp.argsort(order, axis=0), axis=0)
    return end, jnp.where(real[..., None], ys, 0)


def pack(params: LSTMParams) -> Float[Array, " N"]:
    """The parameters as cuDNN has them: kernels transposed, then a bias for each."""
    both = [params.w_x.T, params.w_h.T, params.b, jnp.zeros_like(params.b)]
    return jnp.concatenate([x.ravel() for x in both])


def _cudnn_lstm(params, state, xs, lengths):
    ys, h, c = rnn.lstm(
        jnp.swapaxes(xs, 0, 1),
        state.h[None],
        state.c[None],
        pack(params),
        lengths,
        xs.shape[-1],
        state.h.shape[-1],
        1,  # layer
        0.0,  # dropout
        False,  # bidirectional
        jax.lax.Precision.HIGHEST,
    )
    return LSTMState(h[0], c[0]), jnp.swapaxes(ys, 0, 1)
