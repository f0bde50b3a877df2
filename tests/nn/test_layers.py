"""Layers: Keras' return flags, merges and masks; dtypes; parameters as a dict."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.oracles import (
    CELLS,
    OUTPUT_CELL,
    PARAMS,
    assert_same,
    keras_layer,
    keras_weights,
    make_layer,
    numpy_run,
    random_like,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, LSTMParams, RNNParams
from seqjax.nn.dropout import row_keys
from seqjax.nn.layers import Bidirectional, Dense, Embed, Recurrent, functional, one_hot
from seqjax.nn.stack import Stack

LENGTHS = np.array([4, T, 1, 2])
MASK = np.arange(T) < LENGTHS[:, None]


def inputs(batch=B, steps=T, size=I, seed=7):
    return random_like(np.empty((batch, steps, size)), seed, scale=1.0)


# Four views of one layer: the tutorial's LSTM(3) on 5 features. Its weights are values of sin.


def wave(start, *shape):
    """Returns sin(start), sin(start + 1), ... in a shape."""
    return np.sin(start + np.arange(np.prod(shape, dtype=int))).reshape(shape)


LSTM_WEIGHTS = LSTMParams(wave(1, 5, 12), wave(61, 3, 12), wave(97, 12))
LSTM_INPUT = wave(200, 1, 4, 5)
LSTM_SEQUENCE = [
    [-0.14129441, -0.18156910, 0.09010146],
    [-0.18891785, -0.28112111, -0.10285634],
    [0.07517849, -0.17949745, -0.17185036],
    [0.03640013, 0.05979015, -0.17400667],
]
LSTM_CARRY = [0.97645515, 0.63438296, -0.26841010]


def view(return_sequences, return_state):
    _, call = make_layer(
        Recurrent, "lstm", 5, 3, return_sequences=return_sequences, return_state=return_state
    )
    params = {"weights": jax.tree.map(np.float32, LSTM_WEIGHTS._asdict())}
    return jax.device_get(call(params, np.float32(LSTM_INPUT)))


def test_the_golden_values_are_those_of_the_float64_loop():
    (h, c), ys = numpy_run("lstm", LSTM_WEIGHTS, [np.zeros(3)] * 2, LSTM_INPUT[0])
    np.testing.assert_allclose(ys, LSTM_SEQUENCE, atol=1e-8)  # the constants have 8 decimals
    np.testing.assert_allclose(c, LSTM_CARRY, atol=1e-8)
    np.testing.assert_array_equal(h, ys[-1])


def test_four_views_of_one_layer():
    close = partial(np.testing.assert_allclose, atol=1e-6)  # float32 has seven digits
    close(view(False, False), LSTM_SEQUENCE[-1:])
    output, h, c = view(False, True)
    close(output, LSTM_SEQUENCE[-1:])
    close(c, [LSTM_CARRY])
    assert_same(output, h)
    close(view(True, False), [LSTM_SEQUENCE])
    sequence, h, c = view(True, True)
    close(sequence, [LSTM_SEQUENCE])
    close(c, [LSTM_CARRY])
    assert_same(sequence[:, -1], h)  # bit-identical within one program


@pytest.mark.parametrize("spec", CELLS)
def test_return_flags_of_every_cell(spec):
    xs, num_fields = inputs(2, 3), 2 if spec == "lstm" else 1
    params, call = make_layer(Recurrent, spec, I, 8, return_sequences=True, return_state=True)
    sequence, *state = jax.device_get(call(params, xs))
    assert len(state) == num_fields
    assert sequence.shape == (2, 3, 8) and all(x.shape == (2, 8) for x in state)
    assert_same(state[0], sequence[:, -1])


def test_bidirectional_last_is_both_last_states():
    xs = inputs(1, 3)
    params, call = make_layer(Bidirectional, "lstm", I, 8, return_state=True)
    output, h, c, back_h, back_c = call(params, xs)
    assert output.shape == (1, 16) and c.shape == back_c.shape == (1, 8)
    assert_same(output, np.concatenate([h, back_h], axis=-1))


# Comparisons with Keras under equal weights. Both compute in float32, whose epsilon is 1e-7.


def states_for(spec, seed=3):
    return random_like([np.zeros((B, H), np.float32)] * (2 if spec == "lstm" else 1), seed)


def keras_call(layer, xs, state=None, mask=None):
    weights = [v.value for v in layer.trainable_variables]
    fixed = [v.value for v in layer.non_trainable_variables]

    @jax.jit
    def call(weights, xs, state, mask):
        options = {"initial_state": state, "mask": mask, "training": False}
        return layer.stateless_call(weights, fixed, xs, **options)[0]

    return call(weights, xs, state, mask)


@pytest.mark.parametrize(
    "spec, return_sequences, mask",
    [("lstm", True, MASK), ("gru", False, MASK), ("gru(reset_after=False)", True, None)],
)
def test_go_backwards_is_keras(spec, return_sequences, mask):
    flags = {"return_sequences": return_sequences, "return_state": True, "go_backwards": True}
    params, call = make_layer(Recurrent, spec, I, H, **flags)
    theirs = keras_layer(spec, I, H, params["weights"], **flags)
    xs, state = inputs(), states_for(spec)
    output, *end = call(params, xs, initial_state=state, mask=mask)
    want, *want_end = keras_call(theirs, xs, state, mask)
    if return_sequences and mask is not None:  # Keras repeats outputs at padding, we return 0
        want = np.where(mask[:, ::-1, None], want, 0)
    assert relative_error((output, end), (want, want_end)) < 1e-6


@pytest.mark.parametrize(
    "spec, merge, return_sequences, mask",
    [
        ("lstm", "concat", True, MASK),
        ("gru", "sum", False, None),
        ("simple_rnn", "mul", True, MASK),
        ("gru(reset_after=False)", "ave", False, MASK),
        ("lstm", "none", True, None),
    ],
)
def test_merges_are_those_of_keras(spec, merge, return_sequences, mask):
    import keras

    xs, state = inputs(), states_for(spec) + states_for(spec, 4)
    flags = {"return_sequences": return_sequences, "return_state": True}
    params, call = make_layer(Bidirectional, spec, I, H, merge=merge, **flags)
    theirs = keras.layers.Bidirectional(
        keras_layer(spec, I, H, **flags), merge_mode=None if merge == "none" else merge
    )
    theirs.build((None, None, I))
    both = [keras_weights(spec, params[way]) for way in ("forward", "backward")]
    theirs.set_weights(both[0] + both[1])
    got = call(params, xs, initial_state=state, mask=mask)
    # Keras returns outputs and states in one flat list; we return a pair of outputs.
    want = keras_call(theirs, xs, state, mask)
    assert relative_error(jax.tree.leaves(got), list(want)) < 1e-6


def test_a_mask_gives_keras_last_output():
    """Keras and seqjax return the last valid output, though they pad outputs differently."""
    params, call = make_layer(Recurrent, "lstm", I, H)
    theirs = keras_layer("lstm", I, H, params["weights"])
    xs = inputs()
    got = call(params, xs, mask=MASK)
    assert relative_error(got, keras_call(theirs, xs, mask=MASK)) < 1e-6
    assert_same(got, call(params, xs, lengths=LENGTHS))


# The last output of a cell whose output is not its h.

HOLES = np.random.default_rng(0).random((B, T)) < 0.5
HOLES[1] = False


class TwoStates(NamedTuple):
    h: jax.Array
    other: jax.Array


def test_the_last_output_of_keras_two_states_cell():
    """Keras' rnn_test.test_forward_pass_two_states: the output is the sum of two states."""

    def step(params, state, z, state_in=None):
        a = b = z + (state_in or state).h @ params.w_h
        return TwoStates(a, b), a + b

    def initial_state(batch_size, hidden_size, dtype):
        return TwoStates(*jnp.zeros((2, batch_size, hidden_size), dtype))

    def init(key, input_size, hidden_size):
        shapes = (input_size, hidden_size), (hidden_size, hidden_size), (hidden_size,)
        return RNNParams(*map(jnp.ones, shapes))

    cell = Cell(init, initial_state, lambda params, x: x @ params.w_x, step)
    layer = Recurrent(cell, 3, 2, rngs=nnx.Rngs(params=0))
    np.testing.assert_array_equal(layer(jnp.ones((1, 2, 3))), [[18, 18]])


@pytest.mark.parametrize("mask", [None, MASK, HOLES], ids=["whole", "lengths", "holes"])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("backend", ["scan", "fused"])
def test_the_last_output_need_not_be_h(backend, backwards, mask):
    options = {"go_backwards": backwards, "backend": backend}
    params, call = make_layer(Recurrent, OUTPUT_CELL, I, H, **options)
    _, sequence = make_layer(Recurrent, OUTPUT_CELL, I, H, return_sequences=True, **options)
    real = np.ones((B, T), bool) if mask is None else mask
    ys = np.asarray(sequence(params, inputs(), mask=mask))
    ys = ys[:, ::-1] if backwards else ys  # at the positions of the inputs
    assert np.all(ys[real]) and not np.any(ys[~real])
    want = np.zeros((B, H), np.float32)
    for row in np.flatnonzero(real.any(axis=1)):
        want[row] = ys[row, np.flatnonzero(real[row])[0 if backwards else -1]]
    assert relative_error(call(params, inputs(), mask=mask), want) < 1e-6


@pytest.mark.parametrize("cell, keeps_h", [(OUTPUT_CELL, False), ("gru", True)])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_last_output_of_an_empty_row(cell, keeps_h, backwards):
    """The initial h where the output is the h, zeros otherwise; with padding or without steps."""
    params, call = make_layer(Recurrent, cell, I, H, go_backwards=backwards)
    state = random_like([np.zeros((B, H))], 3)
    want = state[0] if keeps_h else np.zeros((B, H), np.float32)
    lengths = np.array([0, T, 0, 0])
    last = np.asarray(call(params, inputs(), lengths=lengths, initial_state=state))
    assert_same(last[lengths == 0], want[lengths == 0])
    assert_same(call(params, inputs(steps=0), initial_state=state), want)


@pytest.mark.parametrize("merge", ["concat", "mul", "none"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "lengths"])
def test_both_directions_end_in_their_outputs(merge, mask):
    params, call = make_layer(Bidirectional, OUTPUT_CELL, I, H, merge=merge)
    lasts = []
    for way, backwards in (("forward", False), ("backward", True)):
        _, one = make_layer(Recurrent, OUTPUT_CELL, I, H, go_backwards=backwards)
        lasts.append(np.asarray(one({"weights": params[way]}, inputs(), mask=mask)))
    merged = {"concat": np.concatenate(lasts, axis=-1), "mul": lasts[0] * lasts[1], "none": lasts}
    got = call(params, inputs(), mask=mask)
    assert relative_error(list(got) if merge == "none" else got, merged[merge]) < 1e-6


# Inputs of any dtype. Layers with float32 parameters compute in float32.

DTYPES = (jnp.bfloat16, jnp.float16, np.float64, np.int32, np.uint8, np.bool_)
ONE_HOT = np.eye(I, dtype=np.float32)[np.arange(B * T).reshape(B, T) % I]


def in_every_dtype(call, params):
    """Returns the outputs for one-hot inputs in float32, and a list of those for other dtypes."""
    inputs = [ONE_HOT, *(ONE_HOT.astype(dtype) for dtype in DTYPES)]
    want, *others = jax.jit(lambda params, inputs: [call(params, x) for x in inputs])(
        params, inputs
    )
    assert {x.dtype for x in jax.tree.leaves((want, others))} == {np.dtype("float32")}
    return want, others


@pytest.mark.parametrize("spec", CELLS)
@pytest.mark.parametrize("backend", ["scan", "fused"])
def test_inputs_may_have_any_dtype(spec, backend):
    flags = {"return_sequences": True, "return_state": True, "backend": backend}
    params, call = make_layer(Recurrent, spec, I, H, **flags)
    want, others = in_every_dtype(call, params)
    for dtype, got in zip(DTYPES, others, strict=True):
        assert relative_error(got, want) < 1e-6, dtype


@pytest.mark.parametrize("remat", [False, True])
def test_both_directions_take_any_dtype(remat):
    params, call = make_layer(Bidirectional, "lstm", I, H, return_sequences=True, remat=remat)
    want, others = in_every_dtype(call, params)
    assert relative_error(others, [want] * len(others)) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inputs_are_read_in_full(dtype):
    params, call = make_layer(Recurrent, "gru", I, H)
    halves = inputs().astype(dtype)
    states = [x.astype(dtype) for x in states_for("gru")]
    want = call(params, halves.astype(np.float32), initial_state=[states[0].astype(np.float32)])
    got = call(params, halves, initial_state=states)
    assert got.dtype == np.float32 and relative_error(got, want) < 1e-6


def test_initial_states_have_the_dtype_of_the_parameters():
    params, call = make_layer(Recurrent, "gru", I, H)
    ones = call(params, inputs(), initial_state=[np.ones((B, H), np.float32)])
    assert_same(call(params, inputs(), initial_state=[np.ones((B, H), np.int32)]), ones)
    _, bind = functional(lambda rngs: Recurrent("gru", I, H, rngs=rngs))
    layer = bind(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert {x.dtype for x in jax.tree.leaves(layer.initial_states(B))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("backend", ["scan", "fused"])
def test_half_precision_parameters_compute_in_it(dtype, backend):
    _, full = make_layer(Recurrent, "lstm", I, H)
    params, call = make_layer(Recurrent, "lstm", I, H, dtype=dtype, backend=backend)
    gradient = jax.jit(jax.grad(lambda params, xs: weighted_sum(call(params, xs))))
    got, slopes = call(params, inputs()), gradient(params, inputs())
    assert {x.dtype for x in jax.tree.leaves((got, slopes))} == {jnp.dtype(dtype)}
    # bfloat16 has two to three significant digits, float16 has three to four.
    assert relative_error(got, full(params, inputs())) < 0.02


def test_any_dtype_goes_through_dense_and_stack():
    keys = row_keys(jax.random.key(0), B)
    options = {"input_dropout": 0.3, "output_dropout": 0.3, "state_dropout": 0.3}

    def one_layer(rngs):
        return Stack([Recurrent("gru", I, H, rngs=rngs)], **options)

    params, stack = make_layer(one_layer)
    want, others = in_every_dtype(lambda params, xs: stack(params, xs, keys=keys), params)
    assert relative_error(others, [want] * len(others)) < 1e-6
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    run = stack(halves, inputs(), keys=keys)
    assert {x.dtype for x in jax.tree.leaves(run)} == {jnp.dtype(jnp.bfloat16)}
    params, dense = make_layer(Dense, I, H)
    want, others = in_every_dtype(dense, params)
    assert relative_error(others, [want] * len(others)) < 1e-6


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
def test_ids_may_have_any_integer_dtype(dtype):
    ids = np.array([[0, 1], [1, 0]])
    params, call = make_layer(Embed, 300, 3)
    np.testing.assert_array_equal(call(params, ids.astype(dtype)), params["embedding"][ids])
    np.testing.assert_array_equal(one_hot(ids.astype(dtype), 300), np.eye(300)[ids])


# With x64 enabled.


@pytest.mark.parametrize("spec", CELLS)
@pytest.mark.parametrize("backend", ["scan", "fused"])
def test_float64_is_the_numpy_loop(spec, backend):
    with jax.enable_x64(True):
        flags = {"return_sequences": True, "return_state": True, "backend": backend}
        params, call = make_layer(Recurrent, spec, I, H, dtype=np.float64, **flags)
        xs = inputs().astype(np.float64)
        gradient = jax.jit(jax.grad(lambda params, xs: weighted_sum(call(params, xs)), (0, 1)))
        ys, *state = call(params, xs)
        slopes = gradient(params, xs)
    assert {x.dtype for x in jax.tree.leaves((ys, state, slopes))} == {np.dtype("float64")}
    weights = PARAMS[spec](**params["weights"])
    zeros = [np.zeros((B, H))] * len(state)
    want_state, want_ys = numpy_run(spec, weights, zeros, np.swapaxes(xs, 0, 1))
    assert relative_error((ys, state), (np.swapaxes(want_ys, 0, 1), want_state)) < 1e-12


@pytest.mark.parametrize("kind", [Recurrent, Bidirectional, Dense])
def test_float32_parameters_compute_in_float32(kind):
    """Under x64, new arrays are float64, so inputs often are."""
    args = (I, H) if kind is Dense else ("lstm", I, H)
    params, call = make_layer(kind, *args)
    want = call(params, inputs())
    with jax.enable_x64(True):
        _, call = make_layer(kind, *args)
        gradient = jax.jit(jax.grad(lambda params, xs: weighted_sum(call(params, xs))))
        xs = inputs().astype(np.float64)
        got, slopes = call(params, xs), gradient(params, xs)
    assert {x.dtype for x in jax.tree.leaves((got, slopes))} == {np.dtype("float32")}
    assert relative_error(got, want) < 1e-6


# Arguments.


def test_a_layer_takes_a_mask_or_lengths_but_not_both():
    params, call = make_layer(Recurrent, "gru", I, H, return_sequences=True)
    masked = jax.device_get(call(params, inputs(), mask=MASK))
    assert_same(call(params, inputs(), lengths=LENGTHS), masked)
    assert not np.any(masked[~MASK]) and np.all(masked[MASK])
    with pytest.raises(UserError, match="either mask or lengths, not both"):
        call(params, inputs(), mask=MASK, lengths=LENGTHS)


@pytest.mark.parametrize(
    "kind, spec, wanted",
    [(Recurrent, "lstm", 2), (Recurrent, "gru", 1), (Bidirectional, "lstm", 4)],
)
def test_initial_states_are_counted(kind, spec, wanted):
    params, call = make_layer(kind, spec, I, H)
    for number in (0, wanted - 1, wanted + 1):
        with pytest.raises(UserError, match=f"initial_state has {number} arrays, not {wanted}"):
            call(params, inputs(), initial_state=[np.ones((B, H), np.float32)] * number)
    zeros = call(params, inputs(), initial_state=[np.zeros((B, H), np.float32)] * wanted)
    assert relative_error(call(params, inputs()), zeros) < 1e-6


def test_unknown_merges_are_refused():
    with pytest.raises(UserError, match="unknown merge 'avg': did you mean 'ave'"):
        make_layer(Bidirectional, "lstm", I, H, merge="avg")


# Padding.


def test_gradients_prove_that_padding_has_no_influence():
    params, call = make_layer(Bidirectional, "lstm", I, H, return_sequences=True, return_state=True)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, xs):
        return weighted_sum(call(params, xs, lengths=LENGTHS))

    by_params, by_inputs = jax.device_get(gradients(params, inputs()))
    soiled = np.where(MASK[..., None], inputs(), np.float32(np.nan))
    assert_same(gradients(params, soiled), (by_params, by_inputs))
    assert not np.any(by_inputs[~MASK]) and np.all(by_inputs[MASK])


def test_a_mask_by_ids_silences_the_padding_row_of_a_table():
    """The embedding of id 0 is not zero, so only the mask can exclude it."""
    table, embed = make_layer(Embed, 7, I)
    params, call = make_layer(Recurrent, "gru", I, H)
    ids = np.array([[3, 1, 2, 0], [5, 0, 0, 0], [1, 2, 3, 4]])

    @jax.jit
    @jax.grad
    def slopes(table):
        return weighted_sum(call(params, embed(table, ids), mask=ids != 0))

    by_row = jax.device_get(slopes(table))["embedding"]
    assert np.all(table["embedding"][0]) and not np.any(by_row[0])
    assert np.all(by_row[1:6]) and not np.any(by_row[6])


# Dense, Embed, one_hot, functional.


def test_dense_is_a_product_and_a_bias():
    params, call = make_layer(Dense, I, 3)
    assert {name: x.shape for name, x in params.items()} == {"kernel": (I, 3), "bias": (3,)}
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    xs = inputs()
    assert relative_error(call(params, xs), np.asarray(xs, np.float64) @ kernel + bias) < 1e-6


def test_a_new_dense_follows_its_initializers():
    init, _ = functional(
        lambda rngs: Dense(50, 40, kernel_init="normal(2)", bias_init="constant(3)", rngs=rngs)
    )
    params = jax.jit(init)(jax.random.key(0))
    assert np.std(params["kernel"]) == pytest.approx(2, rel=0.1)  # six standard deviations
    np.testing.assert_array_equal(params["bias"], 3)


def test_embed_gives_a_row_for_each_id():
    params, call = make_layer(Embed, 5, 3)
    ids = np.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(call(params, ids), params["embedding"][ids])


def test_one_hot_of_no_class_is_zero():
    assert one_hot(jnp.array([[1, -1], [0, 2]]), 3).tolist() == [
        [[0, 1, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 1]],
    ]


def test_parameters_leave_as_a_nested_dict_of_arrays():
    init, bind = functional(
        lambda rngs: Bidirectional("lstm(recurrent_init='ones')", I, H, rngs=rngs)
    )
    params = jax.jit(init)(jax.random.key(0))
    shapes = {"w_x": (I, 4 * H), "w_h": (H, 4 * H), "b": (4 * H,)}
    assert {way: {f: x.shape for f, x in p.items()} for way, p in params.items()} == {
        "forward": shapes,
        "backward": shapes,
    }
    assert type(params) is dict and all(type(p) is dict for p in params.values())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    assert np.all(params["forward"]["w_x"] != params["backward"]["w_x"])
    again = bind(params).forward()
    assert_same(again._asdict(), params["forward"])


def test_bound_layers_work_under_jit_grad_and_vmap():
    init, bind = functional(lambda rngs: Recurrent("gru", I, H, rngs=rngs))
    shapes = jax.eval_shape(init, jax.random.key(0))
    members = [random_like(shapes, seed) for seed in range(2)]

    @jax.grad
    def slopes(params):
        return weighted_sum(bind(params)(jnp.asarray(inputs())))

    stacked = jax.tree.map(lambda *xs: np.stack(xs), *members)
    together = jax.jit(jax.vmap(slopes))(stacked)
    each = [jax.jit(slopes)(params) for params in members]
    assert relative_error(together, jax.tree.map(lambda *xs: np.stack(xs), *each)) < 1e-6
