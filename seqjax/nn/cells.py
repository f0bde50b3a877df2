"""Recurrent cells: data and pure functions, composable like optax's gradient transformations.

"LSTM" means different things in different libraries. In seqjax:

- LSTM gates are in the order i, f, g, o; GRU gates are in the order r, z, n.
- Kernels are Glorot uniform, recurrent kernels are orthogonal gate by gate, biases are zero.
- The forget bias is an initial value (1 by default), not a constant of the forward pass.
- `gru(reset_after=True)` has an input bias and a recurrent bias, as in cuDNN and as Keras does by
  default; `gru(reset_after=False)` has one bias, as in the paper.

Factories are cached: equal options return the same object, so `jax.jit` does not compile twice.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from seqjax.errors import UserError, unknown_name
from seqjax.hparams import from_spec
from seqjax.nn.initializers import init_gates, make_initializer
from seqjax.nn.precision import COMPUTE_DTYPES, product

CellState = Any  # a cell's NamedTuple of [B, H] arrays, the first of which is `h`
KernelAndBias = tuple[Any, Any]  # [I, O], and [O] or None


class RecurrentMatmul(NamedTuple):
    """One matmul of a step with a recurrent kernel: `affine(weights(params), operand(a, h))`.

    `operand` is pointwise. Besides `h` it may read `a`, to which the earlier matmuls of the step
    have contributed.
    """

    operand: Callable  # (a, h [..., H]) -> [..., H]
    weights: Callable  # (params) -> KernelAndBias


class Cell(NamedTuple):
    """One recurrent step as data.

    The first four functions suffice. In `step`, the recurrent matmuls read `state_in` (the state
    after dropout) if it is not None; everything else reads `state`.

    The next four split `project` and `step` into matmuls and pointwise functions, from which the
    `fused` backend builds its backward pass; `make_from_matmuls` makes a cell of them.

    `output_is_h` says that the output `y` is the `h` of the new state. Layers then take their last
    output from the last state, which costs nothing.
    """

    init: Callable  # (key, input_size, hidden_size) -> params
    initial_state: Callable  # (batch_size, hidden_size, dtype) -> state
    project: Callable  # (params, x [..., I]) -> z [..., G]
    step: Callable  # (params, state, z [B, G], state_in=None) -> (state, y [B, H])
    projection: Callable | None = None  # (params) -> KernelAndBias of `project`
    recurrent_matmuls: tuple[RecurrentMatmul, ...] = ()
    combine: Callable | None = None  # (z [..., G], *results of the first matmuls) -> a; linear
    gate: Callable | None = None  # (a, state) -> (state, y); pointwise
    output_is_h: bool = False
    compute_dtype: str = "float32"  # of the operands of matmuls; `with_compute_dtype` changes it


def affine(weights: KernelAndBias, x: Any, compute_dtype: str) -> Any:
    """Returns `x w + b` on the last axis."""
    w, b = weights
    xw = product(x, w, compute_dtype)
    return xw if b is None else xw + b


def pre_activations(cell, weights, z, h):
    """Returns the `a` of a step: `z` combined with the recurrent matmuls of `h`."""
    a, results = z, []
    for matmul, kernel_and_bias in zip(cell.recurrent_matmuls, weights, strict=True):
        results.append(affine(kernel_and_bias, matmul.operand(a, h), cell.compute_dtype))
        a = cell.combine(z, *results)
    return a


def make_from_matmuls(
    init, initial_state, projection, recurrent_matmuls, combine, gate, *, output_is_h=False
) -> Cell:
    """Returns the cell whose step is a pointwise `gate` after its recurrent matmuls."""
    later: Any = None
    parts = (projection, recurrent_matmuls, combine, gate, output_is_h)
    return _with_project_and_step(Cell(init, initial_state, later, later, *parts))


@cache
def with_compute_dtype(cell: Cell, compute_dtype: str) -> Cell:
    """Returns the cell with matmuls of operands in `train.compute_dtype`.

    Raises UserError for an unknown dtype, and for a cell that has only a step.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise unknown_name("train.compute_dtype", compute_dtype, COMPUTE_DTYPES)
    if compute_dtype == cell.compute_dtype:
        return cell
    if not cell.recurrent_matmuls:
        field = f"train.compute_dtype={compute_dtype}"
        raise UserError(f"{field}: this cell has only a step: choose {cell.compute_dtype}")
    return _with_project_and_step(cell._replace(compute_dtype=compute_dtype))


def _with_project_and_step(cell):
    def project(params, x):
        return affine(cell.projection(params), x, cell.compute_dtype)

    def step(params, state, z, state_in=None):
        weights = [matmul.weights(params) for matmul in cell.recurrent_matmuls]
        h = (state_in or state).h
        return cell.gate(pre_activations(cell, weights, z, h), state)

    return cell._replace(project=project, step=step)


class RNNParams(NamedTuple):
    w_x: Float[Array, "I H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, " H"]


class RNNState(NamedTuple):
    h: Float[Array, "B H"]


class LSTMParams(NamedTuple):
    w_x: Float[Array, "I G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]


class LSTMState(NamedTuple):
    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


class GRUParams(NamedTuple):
    w_x: Float[Array, "I G"]
    w_h: Float[Array, "H G"]
    b_x: Float[Array, " G"]
    b_h: Float[Array, " G"]


class GRUBeforeParams(NamedTuple):
    w_x: Float[Array, "I G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]


class GRUState(NamedTuple):
    h: Float[Array, "B H"]


@cache
def simple_rnn(
    kernel_init: str = "glorot_uniform",
    recurrent_init: str = "orthogonal",
    bias_init: str = "zeros",
) -> Cell:
    """Elman's cell (Elman, 1990, "Finding structure in time").

    h' = tanh(x W_x + h W_h + b)
    """

    def init(key, input_size, hidden_size):
        w_x, w_h, b = _init(key, input_size, hidden_size, 1, kernel_init, recurrent_init, bias_init)
        return RNNParams(w_x, w_h, b)

    def gate(a, state):
        h = jnp.tanh(a)
        return RNNState(h), h

    return _shipped(init, RNNState, _projection, (_MATMUL,), jnp.add, gate)


@cache
def lstm(
    forget_bias: float = 1.0,
    kernel_init: str = "glorot_uniform",
    recurrent_init: str = "orthogonal",
    bias_init: str = "zeros",
    set_forget_bias: bool = False,
) -> Cell:
    """Long short-term memory with a forget gate (Gers, Schmidhuber and Cummins, 2000).

    i  = sigmoid(x W_xi + h W_hi + b_i)
    f  = sigmoid(x W_xf + h W_hf + b_f)
    g  =    tanh(x W_xg + h W_hg + b_g)
    o  = sigmoid(x W_xo + h W_ho + b_o)
    c' = f c + i g
    h' = o tanh(c')

    `forget_bias` is added to the initial `b_f` that `bias_init` gives. With `set_forget_bias` it
    replaces that `b_f`, as Keras' `unit_forget_bias` does; the two are equal where `bias_init` is
    zeros.
    """

    def init(key, input_size, hidden_size):
        w_x, w_h, b = _init(key, input_size, hidden_size, 4, kernel_init, recurrent_init, bias_init)
        b_f = b.at[hidden_size : 2 * hidden_size]
        return LSTMParams(
            w_x, w_h, b_f.set(forget_bias) if set_forget_bias else b_f.add(forget_bias)
        )

    def gate(a, state):
        size = a.shape[-1] // 4
        a_if, a_g, a_o = jnp.split(a, [2 * size, 3 * size], axis=-1)
        i, f = jnp.split(sigmoid(a_if), 2, axis=-1)  # one sigmoid: on a CPU one loop, not two
        c = f * state.c + i * jnp.tanh(a_g)
        h = sigmoid(a_o) * jnp.tanh(c)
        return LSTMState(h, c), h

    return _shipped(init, LSTMState, _projection, (_MATMUL,), jnp.add, gate)


@cache
def gru(
    reset_after: bool = True,
    kernel_init: str = "glorot_uniform",
    recurrent_init: str = "orthogonal",
    bias_init: str = "zeros",
) -> Cell:
    """Gated recurrent unit (Cho et al., 2014; `reset_after` as in cuDNN and Keras).

    r  = sigmoid(x W_xr + b_xr + h W_hr + b_hr)
    z  = sigmoid(x W_xz + b_xz + h W_hz + b_hz)
    n  =    tanh(x W_xn + b_xn + r (h W_hn + b_hn))      reset_after=True
    n  =    tanh(x W_xn + b_xn + (r h) W_hn)             reset_after=False, without any b_h
    h' = (1 - z) n + z h
    """

    def init(key, input_size, hidden_size):
        w_x, w_h, b = _init(key, input_size, hidden_size, 3, kernel_init, recurrent_init, bias_init)
        return GRUParams(w_x, w_h, b, jnp.array(b)) if reset_after else GRUBeforeParams(w_x, w_h, b)

    return _gru_after(init) if reset_after else _gru_before(init)


def _gru_after(init) -> Cell:
    """Resets after the matmul: the gate multiplies h W_hn + b_hn by r."""

    def projection(params):
        return params.w_x, params.b_x

    def combine(z, hz):
        (z_rz, z_n), (hz_rz, hz_n) = _split_rz_n(z), _split_rz_n(hz)
        return z_rz + hz_rz, z_n, hz_n

    def gate(a, state):
        a_rz, z_n, hz_n = a
        r, z = jnp.split(sigmoid(a_rz), 2, axis=-1)  # one sigmoid: on a CPU one loop, not two
        n = jnp.tanh(z_n + r * hz_n)
        h = (1 - z) * n + z * state.h
        return GRUState(h), h

    matmuls = (RecurrentMatmul(_unchanged, lambda params: (params.w_h, params.b_h)),)
    return _shipped(init, GRUState, projection, matmuls, combine, gate)


def _gru_before(init) -> Cell:
    """Resets before the matmul: r comes from a first matmul and is needed by the second."""

    def kernel_rz(params):
        return _split_rz_n(params.w_h)[0], None

    def kernel_n(params):
        return _split_rz_n(params.w_h)[1], None

    def reset_h(a, h):
        a_rz, _ = a
        return sigmoid(a_rz[..., : h.shape[-1]]) * h

    def combine(z, hz_rz, hz_n=0.0):  # without hz_n after the first matmul
        z_rz, z_n = _split_rz_n(z)
        return z_rz + hz_rz, z_n + hz_n

    def gate(a, state):
        a_rz, a_n = a
        z = sigmoid(a_rz[..., a_n.shape[-1] :])
        h = (1 - z) * jnp.tanh(a_n) + z * state.h
        return GRUState(h), h

    matmuls = (RecurrentMatmul(_unchanged, kernel_rz), RecurrentMatmul(reset_h, kernel_n))
    return _shipped(init, GRUState, _projection, matmuls, combine, gate)


CELLS: dict[str, Callable[..., Cell]] = {"simple_rnn": simple_rnn, "lstm": lstm, "gru": gru}


def make_cell(spec: str, **initializers: str) -> Cell:
    """Returns the cell that a config names, such as `lstm` or `gru(reset_after=False)`.

    `initializers` are `kernel_init`, `recurrent_init` and `bias_init`. Raises UserError for an
    unknown cell or option.
    """
    return from_spec("cell", spec, CELLS, **initializers)


def _shipped(init, state_type, projection, matmuls, combine, gate) -> Cell:
    """Returns a cell that starts from zeros and whose output is its h."""

    def initial_state(batch_size, hidden_size, dtype=jnp.float32):
        # A new array for each field: a donated buffer may not appear twice.
        return state_type(
            *(jnp.zeros((batch_size, hidden_size), dtype) for _ in state_type._fields)
        )

    return make_from_matmuls(
        init, initial_state, projection, matmuls, combine, gate, output_is_h=True
    )


def _projection(params):
    return params.w_x, params.b


def _unchanged(a, h):
    return h


_MATMUL = RecurrentMatmul(_unchanged, lambda params: (params.w_h, None))


def _split_rz_n(x):
    """Returns the first two of the three gates of a GRU, and the third."""
    return jnp.split(x, [2 * (x.shape[-1] // 3)], axis=-1)


def _init(key, input_size, hidden_size, num_gates, kernel_init, recurrent_init, bias_init):
    """Returns (w_x, w_h, b) of a cell; raises UserError for a size below 1."""
    if input_size < 1 or hidden_size < 1:
        raise UserError(f"sizes must be positive: input {input_size}, hidden {hidden_size}")
    key_x, key_h, key_b = jax.random.split(key, 3)
    width, joined = num_gates * hidden_size, input_size + hidden_size
    w_x = init_gates(key_x, kernel_init, (input_size, width), num_gates, joined)
    w_h = init_gates(key_h, recurrent_init, (hidden_size, width), num_gates, joined)
    return w_x, w_h, make_initializer(bias_init, num_axes=1)(key_b, (width,), jnp.float32)
