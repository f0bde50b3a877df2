"""What single layers return, and how many parameters they have.

Numbers that come from weights and inputs drawn without a seed can be compared only by their size,
their root mean square, with ours over many draws.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reproduce.figure import Measure
from experiments.reproduce.measure import one
from experiments.reproduce.verdict import root_mean_square
from seqjax.nn.layers import Bidirectional, Dense, Recurrent, functional
from seqjax.nn.stack import Stack
from seqjax.parameters import count_parameters, named_arrays, parameter_shapes

NUM_DRAWS = 512
SENTENCES = ((0, 1, 2), (2, 1, 3))  # John loves Jane, Jane loves Alex

Draw = Callable[[Any, tuple[int, ...]], jax.Array]  # (key, shape) -> inputs


def normal_inputs(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """As `np.random.randn`."""
    return jax.random.normal(key, shape)


def uniform_inputs(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """As `tf.random.uniform`: in [0, 1)."""
    return jax.random.uniform(key, shape)


def sentence_inputs(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """The tagger's one-hot words, the same for every key."""
    return jnp.eye(shape[-1])[jnp.array(SENTENCES)]


CASES = ("lstm", 3, normal_inputs, (1, 4, 5))  # R0's layer and input: of the four return flags


@cache
def returned(*args: Any, **flags: Any) -> Any:
    """The arrays that `call` returns, each `[draws, ...]`: of many weights and inputs."""
    # Not vmap: on a CPU, XLA can wait for ever for the batched QR of orthogonal weights.
    draws = jax.jit(lambda keys: jax.lax.map(call(*args, **flags), keys))
    return jax.device_get(draws(jax.random.split(jax.random.key(0), NUM_DRAWS)))


def call(
    cell: str, hidden_size: int, draw: Draw, shape: tuple[int, ...], **flags: Any
) -> Callable[[Any], tuple[jax.Array, ...]]:
    """A function from a key to the arrays that a layer of random weights returns."""
    kind = Bidirectional if flags.pop("bidirectional", False) else Recurrent
    init, bind = functional(lambda rngs: kind(cell, shape[-1], hidden_size, rngs=rngs, **flags))

    def run(key):
        weights, inputs = jax.random.split(key)
        found = bind(init(weights))(draw(inputs, shape))
        return found if isinstance(found, tuple) else (found,)

    return run


def shapes_of(*args: Any, **flags: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes of the arrays that `call` returns."""
    return tuple(x.shape for x in jax.eval_shape(call(*args, **flags), jax.random.key(0)))


def shapes(*args: Any, **flags: Any) -> Measure:
    """The same as a measure: one shape where it is one array."""

    def find(study: Any) -> Any:
        found = shapes_of(*args, **flags)
        return found if len(found) > 1 else found[0]

    return one(find)


def magnitude(which: int, *args: Any, last: bool = False, **flags: Any) -> Measure:
    """Root mean square of one of the arrays, or of its last step, for each draw."""

    def measure(study: Any) -> list[float]:
        values = returned(*args, **flags)[which]
        return [root_mean_square(x[:, -1] if last else x) for x in values]

    return measure


def last_is_state(*args: Any) -> Measure:
    """Whether the last output of the sequence is the state, to the last bit, in every draw."""

    def check(study: Any) -> bool:
        sequence, state, *_ = returned(*args, return_sequences=True, return_state=True)
        return bool(np.array_equal(sequence[:, :, -1], state))

    return one(check)


def output_is_state(*args: Any) -> Measure:
    """Whether the last output is the state, to the last bit, in every draw."""

    def check(study: Any) -> bool:
        output, state, *_ = returned(*args, return_state=True)
        return bool(np.array_equal(output, state))

    return one(check)


def first_weights(study: Any) -> tuple[bool, bool, float]:
    """Of a new LSTM(3) on 5 features: whether its kernel is Glorot's, whether each gate's recurrent
    kernel is orthogonal, and the forget gate's bias, where all others are 0."""
    init, _ = functional(lambda rngs: Recurrent("lstm", 5, 3, rngs=rngs))
    arrays = {name[-3:]: np.asarray(x) for name, x in named_arrays(init(jax.random.key(0)))}
    w_x, w_h, b = arrays["w_x"], arrays["w_h"], arrays["s.b"]
    bound = math.sqrt(6 / (5 + 12))
    is_glorot = 0.9 * bound < np.abs(w_x).max() <= bound
    blocks = np.split(w_h, 4, axis=1)
    is_orthogonal = all(np.allclose(block @ block.T, np.eye(3), atol=1e-6) for block in blocks)
    forget, others = b[3:6], np.delete(b, slice(3, 6))
    same = np.ptp(forget) == 0 and not others.any()
    return bool(is_glorot), bool(is_orthogonal), float(forget[0]) if same else math.nan


def count(cell: str, input_size: int, hidden_size: int, kind: Any = Recurrent) -> int:
    """A layer's parameters, without allocating one."""
    return _count(lambda rngs: kind(cell, input_size, hidden_size, rngs=rngs))


def counts(*cells: tuple[str, int, int], num_classes: int) -> tuple[int, ...]:
    """Parameters of each layer of a stack, of the dense one on top, and of all."""
    layers = [count(*cell) for cell in cells]
    dense = _count(lambda rngs: Dense(cells[-1][-1], num_classes, rngs=rngs))
    whole = _count(lambda rngs: Stack([Recurrent(*cell, rngs=rngs) for cell in cells]))
    return (*layers, dense, whole + dense)


def follows(cell: str, num_gates: int) -> bool:
    """Whether layers of several sizes have gates x (units + inputs + 1) x units parameters."""
    pairs = ((1, 1), (4, 3), (5, 7), (10, 2))
    return all(count(cell, i, h) == num_gates * (h + i + 1) * h for i, h in pairs)


def _count(make: Callable[[Any], Any]) -> int:
    return count_parameters(parameter_shapes(functional(make)[0]))
