"""Independent recurrences to test against: float64 NumPy loops, and Keras with the same weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.nn.cells import (
    Cell,
    GRUBeforeParams,
    GRUParams,
    LSTMParams,
    RNNParams,
    RNNState,
    make_cell,
    make_from_matmuls,
    simple_rnn,
)
from seqjax.nn.layers import functional

CELLS = {"simple_rnn": 1, "lstm": 4, "gru": 3, "gru(reset_after=False)": 3}  # number of gates
PARAMS = dict(zip(CELLS, (RNNParams, LSTMParams, GRUParams, GRUBeforeParams), strict=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numpy_step(spec: str, params: Any, state: Sequence[np.ndarray], x: np.ndarray) -> list:
    """Returns the next state of a cell, `h` first, by the equations of the papers."""
    h, size = state[0], state[0].shape[-1]
    w_x, w_h, *biases = params
    if spec == "simple_rnn":
        return [np.tanh(x @ w_x + h @ w_h + biases[0])]
    gates = [slice(k * size, (k + 1) * size) for k in range(4)]
    if spec == "lstm":
        i, f, g, o = (x @ w_x[:, k] + h @ w_h[:, k] + biases[0][k] for k in gates)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    zs = [x @ w_x[:, k] + biases[0][k] for k in gates[:3]]
    bias_h = biases[1] if spec == "gru" else np.zeros(3 * size)
    r, z = (sigmoid(zs[j] + h @ w_h[:, k] + bias_h[k]) for j, k in enumerate(gates[:2]))
    k = gates[2]
    inner = r * (h @ w_h[:, k] + bias_h[k]) if spec == "gru" else (r * h) @ w_h[:, k]
    return [(1 - z) * np.tanh(zs[2] + inner) + z * h]


def numpy_run(spec: str, params: Any, state: Sequence[Any], xs: Any) -> tuple[list, np.ndarray]:
    """Returns the last state and the outputs `[T, ...]` of time-major inputs, in float64."""
    params, state = (jax.tree.map(lambda a: np.asarray(a, np.float64), t) for t in (params, state))
    state, ys = list(state), []
    for x in np.asarray(xs, np.float64):
        state = numpy_step(spec, params, state, x)
        ys.append(state[0])
    return state, np.stack(ys) if ys else np.zeros((0, *state[0].shape))


def _output_gate(a, state):
    h = jnp.tanh(a)
    return RNNState(h), 2 * h + 1


# An Elman cell whose output, 2 h + 1, is not its state's h.
OUTPUT_CELL = make_from_matmuls(
    simple_rnn().init,
    simple_rnn().initial_state,
    simple_rnn().projection,
    simple_rnn().recurrent_matmuls,
    simple_rnn().combine,
    _output_gate,
)


def random_like(tree: Any, seed: int, dtype: Any = np.float32, scale: float = 0.5) -> Any:
    """Returns normal numbers in the shapes of a tree: no two weights are equal, no bias is zero.

    NumPy draws them, because JAX would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (scale * rng.standard_normal(a.shape)).astype(dtype), tree)


def random_problem(spec: str, t: int, b: int, i: int, h: int, seed: int = 0, dtype=np.float32):
    """Returns a cell, and random parameters, state and time-major inputs for it."""
    cell = make_cell(spec)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), i, h))
    state = jax.eval_shape(lambda: cell.initial_state(b, h, jnp.float32))
    shapes = (params, state, jax.ShapeDtypeStruct((t, b, i), jnp.float32))
    return cell, *random_like(shapes, seed, dtype)


def make_layer(kind: Any, *args: Any, seed: int = 0, dtype: Any = np.float32, **options: Any):
    """Returns random parameters of a layer, and the layer as a compiled function of them."""
    init, bind = functional(lambda rngs: kind(*args, rngs=rngs, **options))
    params = random_like(jax.eval_shape(init, jax.random.key(0)), seed, dtype)
    return params, jax.jit(lambda params, *args, **kwargs: bind(params)(*args, **kwargs))


def weighted_sum(tree: Any, seed: int = 99) -> Any:
    """Returns a sum over a tree in which every element has a random weight."""
    leaves, rng = jax.tree.leaves(tree), np.random.default_rng(seed)
    return sum((x * rng.standard_normal(x.shape).astype(x.dtype)).sum() for x in leaves)


def init_cell(cell: Cell, seed: int, input_size: int, hidden_size: int) -> Any:
    """Returns new parameters as NumPy arrays, from one compiled program."""
    init = jax.jit(cell.init, static_argnums=(1, 2))
    return jax.tree.map(np.asarray, init(jax.random.key(seed), input_size, hidden_size))


def relative_error(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of two trees, relative to the largest value of each array."""
    pairs = zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in pairs]
    assert all(a.shape == b.shape for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    return max(np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Asserts that two trees are bit-identical; a NaN equals a NaN."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def keras_weights(spec: str, params: Any) -> list[np.ndarray]:
    """Returns our parameters, or a layer's dict of them, in Keras' order: GRU gates are z, r, n."""
    params = PARAMS[spec](**params) if isinstance(params, Mapping) else params
    arrays = [np.asarray(p) for p in params]
    if spec.startswith("gru"):
        r, z, n = zip(*(np.split(a, 3, axis=-1) for a in arrays), strict=True)
        arrays = [np.concatenate(gates, axis=-1) for gates in zip(z, r, n, strict=True)]
    return [*arrays[:2], np.stack(arrays[2:])] if spec == "gru" else arrays


def keras_layer(spec: str, input_size: int, hidden_size: int, params: Any = None, **options: Any):
    """Returns the Keras layer of a cell, with our parameters if there are any."""
    import keras

    kinds = {
        "simple_rnn": keras.layers.SimpleRNN,
        "lstm": keras.layers.LSTM,
        "gru": keras.layers.GRU,
    }
    if spec.startswith("gru"):
        options["reset_after"] = spec == "gru"
    options |= dict.fromkeys(("kernel_initializer", "recurrent_initializer"), "zeros")  # fast
    layer = kinds[spec.partition("(")[0]](hidden_size, **options)
    if params is not None:
        layer.build((None, None, input_size))
        layer.set_weights(keras_weights(spec, params))
    return layer
