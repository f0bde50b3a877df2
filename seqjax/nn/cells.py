"""Recurrent cells: data plus pure functions, composable like optax's transformations.

Written down once, because "LSTM" means five things in five libraries:

- LSTM gates stand in the order i, f, g, o; GRU gates in the order r, z, n.
- Kernels are Glorot uniform, recurrent kernels orthogonal gate by gate, biases zero.
- The forget bias is an initial value (default 1), not a constant of the forward pass.
- `gru(reset_after=True)` has an input and a recurrent bias (cuDNN, Keras' default);
  `gru(reset_after=False)` has one (the paper's).

Factories are cached: equal options give the same object, so `jax.jit` does not compile twice.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from seqjax.errors import UserError
from seqjax.hparams import from_spec
from seqjax.nn.initializers import init_gates, make_initializer

# A kernel `[I, O]` and a bias `[O]`, or None: `affine` uses them.
Weights = tuple[Any, Any]


class Product(NamedTuple):
    """One recurrent product of a step: `affine(weights(params), read(a, h))`.

    `read` is pointwise and may look at what the products before it have made of `a`.
    """

    read: Callable  # (a, h [..., H]) -> [..., H]
    weights: Callable  # (params) -> Weights [H, P]


class Cell(NamedTuple):
    """One recurrent step as data. `state` is a NamedTuple whose first field is `h [B, H]`."""

    init: Callable  # (key, input_size, hidden_size) -> params
    initial_state: Callable  # (batch_size, hidden_size, dtype) -> state
    project: Callable  # (params, x [..., I]) -> z [..., G]
    step: Callable  # (params, state, z [B, G], read=None) -> (state, y [B, H])
    projection: Callable | None = None  # (params) -> Weights [I, G], those of `project`
    products: tuple[Product, ...] = ()
    join: Callable | None = None  # (z [..., G], *products' results so far) -> a; linear
    gate: Callable | None = None  # (a, state) -> (state, y); pointwise


def affine(weights: Weights, x: Any) -> Any:
    """`x w + b` on the last axis."""
    w, b = weights
    return x @ w if b is None else x @ w + b


def pre_activations(products, join, weights, z, h):
    """`a` of a step: the products of `h`, each with its weights, joined with `z`."""
    a, results = z, []
    for product, of_product in zip(products, weights, strict=True):
        results.append(affine(of_product, product.read(a, h)))
        a = join(z, *results)
    return a


def make_from_products(init, initial_state, projection, products, join, gate) -> Cell:
    """A cell whose step is its pointwise `gate` after its recurrent products."""

    def project(params, x):
        return affine(projection(params), x)

    def step(params, state, z, read=None):
        weights = [product.weights(params) for product in products]
        return gate(pre_activations(products, join, weights, z, (read or state).h), state)

    return Cell(init, initial_state, project, step, projection, products, join, gate)


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
    """The Elman network's cell (Elman, 1990, "Finding structure in time").

    h' = tanh(x W_x + h W_h + b)
    """

    def init(key, input_size, hidden_size):
        w_x, w_h, b = _init(key, input_size, hidden_size, 1, kernel_init, recurrent_init, bias_init)
        return RNNParams(w_x, w_h, b)

    def gate(a, state):
        h = jnp.tanh(a)
        return RNNState(h), h

    return make_from_products(init, _zeros_state(RNNState), _projection, (_PRODUCT,), jnp.add, gate)


@cache
def lstm(
    forget_bias: float = 1.0,
    kernel_init: str = "glorot_uniform",
    recurrent_init: str = "orthogonal",
    bias_init: str = "zeros",
) -> Cell:
    """Long short-term memory with a forget gate (Gers, Schmidhuber and Cummins, 2000).

    i  = sigmoid(x W_xi + h W_hi + b_i)
    f  = sigmoid(x W_xf + h W_hf + b_f)      b_f starts `forget_bias` higher
    g  =    tanh(x W_xg + h W_hg + b_g)
    o  = sigmoid(x W_xo + h W_ho + b_o)
    c' = f c + i g
    h' = o tanh(c')
    """

    def init(key, input_size, hidden_size):
        w_x, w_h, b = _init(key, input_size, hidden_size, 4, kernel_init, recurrent_init, bias_init)
        return LSTMParams(w_x, w_h, b.at[hidden_size : 2 * hidden_size].add(forget_bias))

    def gate(a, state):
        a_if, a_g, a_o = jnp.split(a, [a.shape[-1] // 2, 3 * (a.shape[-1] // 4)], axis=-1)
        i, f = jnp.split(sigmoid(a_if), 2, axis=-1)  # at once: on a CPU one loop, not two
        c = f * state.c + i * jnp.tanh(a_g)
        h = sigmoid(a_o) * jnp.tanh(c)
        return LSTMState(h, c), h

    return make_from_products(
        init, _zeros_state(LSTMState), _projection, (_PRODUCT,), jnp.add, gate
    )


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
    n  =    tanh(x W_xn + b_xn + (r h) W_hn)             reset_after=False, and no b_h at all
    h' = (1 - z) n + z h
    """

    def init(key, input_size, hidden_size):
        options = (input_size, hidden_size, 3, kernel_init, recurrent_init, bias_init)
        w_x, w_h, b = _init(key, *options)
        return GRUParams(w_x, w_h, b, jnp.array(b)) if reset_after else GRUBeforeParams(w_x, w_h, b)

    def update(z, n, state):
        h = (1 - z) * n + z * state.h
        return GRUState(h), h

    if reset_after:

        def projection(params):
            return params.w_x, params.b_x

        def join(z, hz):  # the product of n apart from its projection: r comes between them
            (z, z_n), (hz, h_n) = _last_apart(z), _last_apart(hz)
            return z + hz, z_n, h_n

        def gate(a, state):
            a_rz, z_n, h_n = a
            r, z = jnp.split(sigmoid(a_rz), 2, axis=-1)  # at once: on a CPU one loop, not two
            return update(z, jnp.tanh(z_n + r * h_n), state)

        products = (Product(_whole_state, lambda params: (params.w_h, params.b_h)),)
        return make_from_products(init, _zeros_state(GRUState), projection, products, join, gate)

    def join_both(z, hz, h_n=0.0):
        z, z_n = _last_apart(z)
        return z + hz, z_n + h_n

    def gate_before(a, state):
        a_z, a_n = a[0][..., a[1].shape[-1] :], a[1]
        return update(sigmoid(a_z), jnp.tanh(a_n), state)

    def weights(part):
        return lambda params: (_last_apart(params.w_h)[part], None)

    products = (
        Product(_whole_state, weights(0)),
        Product(lambda a, h: sigmoid(a[0][..., : h.shape[-1]]) * h, weights(1)),
    )
    return make_from_products(
        init, _zeros_state(GRUState), _projection, products, join_both, gate_before
    )


CELLS: dict[str, Callable[..., Cell]] = {"simple_rnn": simple_rnn, "lstm": lstm, "gru": gru}


def make_cell(spec: str, **initializers: str) -> Cell:
    """The cell a config names, such as `lstm` or `gru(reset_after=False)`.

    `initializers` are `kernel_init`, `recurrent_init` and `bias_init`. Raises UserError for an
    unknown cell or option.
    """
    return from_spec("cell", spec, CELLS, **initializers)


def _zeros_state(state_type):
    def initial_state(batch_size, hidden_size, dtype=jnp.float32):
        # A fresh array per field: a donated buffer may not appear twice.
        return state_type(
            *(jnp.zeros((batch_size, hidden_size), dtype) for _ in state_type._fields)
        )

    return initial_state


def _projection(params):
    return params.w_x, params.b


def _whole_state(a, h):
    return h


_PRODUCT = Product(_whole_state, lambda params: (params.w_h, None))


def _last_apart(x):
    """The first two of three gates, and the third."""
    return jnp.split(x, [2 * (x.shape[-1] // 3)], axis=-1)


def _init(key, input_size, hidden_size, num_gates, kernel_init, recurrent_init, bias_init):
    """(w_x, w_h, b) of a cell with `num_gates` gates; raises UserError for a size below 1."""
    if input_size < 1 or hidden_size < 1:
        raise UserError(f"sizes must be positive: input {input_size}, hidden {hidden_size}")
    key_x, key_h, key_b = jax.random.split(key, 3)
    width, joined = num_gates * hidden_size, input_size + hidden_size
    w_x = init_gates(key_x, kernel_init, (input_size, width), num_gates, joined)
    w_h = init_gates(key_h, recurrent_init, (hidden_size, width), num_gates, joined)
    return w_x, w_h, make_initializer(bias_init, num_axes=1)(key_b, (width,), jnp.float32)
