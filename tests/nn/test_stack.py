"""Stacks: layers on top of each other, and dropout on their inputs, outputs and states."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import (
    OUTPUT_CELL,
    assert_same,
    make_layer,
    random_like,
    relative_error,
    weighted_sum,
)
from support.shapes import B, I, T

from seqjax.errors import UserError
from seqjax.nn.cells import Cell, RNNParams, RNNState
from seqjax.nn.dropout import (
    Direction,
    LayerStream,
    ModelStream,
    dropout,
    dropout_scale,
    fold_keys,
    layer_keys,
    row_keys,
)
from seqjax.nn.layers import Bidirectional, Recurrent, functional
from seqjax.nn.stack import Stack, make_stack

LENGTHS = np.array([4, T, 1, 2])
MASK = np.arange(T) < LENGTHS[:, None]
KEYS = row_keys(jax.random.key(11), B)
KINDS = ("input_dropout", "output_dropout", "state_dropout")
MIXED = ((Recurrent, "lstm", I, 5), (Bidirectional, "gru", 5, 3), (Recurrent, "simple_rnn", 6, 4))


def mixed_stack(*, rngs, **options):
    return Stack([kind(*args, rngs=rngs) for kind, *args in MIXED], **options)


def inputs(steps=T):
    return random_like(np.empty((B, steps, I)), 7, scale=1.0)


# The outputs of a stack.


def test_a_stack_is_its_layers_one_after_the_other():
    params, call = make_layer(mixed_stack)
    shapes = jax.eval_shape(call, params, inputs()).states
    starts = random_like(shapes, 3)
    run = jax.device_get(call(params, inputs(), initial_states=starts, lengths=LENGTHS))
    assert [len(states) for states in run.states] == [1, 2, 1]
    ys, flags = inputs(), {"return_sequences": True, "return_state": True}
    for i, (kind, *args) in enumerate(MIXED):
        _, layer = make_layer(kind, *args, **flags)
        state = jax.tree.leaves(starts[i])
        ys, *end = layer(params[f"layer_{i}"], ys, initial_state=state, lengths=LENGTHS)
        assert relative_error(jax.tree.leaves(run.states[i]), end) < 1e-6
    assert relative_error(run.sequence, ys) < 1e-6  # float32 rounding
    assert relative_error(run.last, end[0]) < 1e-6


def test_the_last_output_is_that_of_the_last_valid_step():
    params, call = make_layer(mixed_stack)
    run = jax.device_get(call(params, inputs()))
    assert_same(run.last, run.sequence[:, -1])
    assert_same(run.last, run.states[-1][0].h)
    run = jax.device_get(call(params, inputs(), lengths=LENGTHS))
    assert_same(run.last, run.sequence[np.arange(B), LENGTHS - 1])
    assert_same(run.last, run.states[-1][0].h)
    assert not np.any(run.sequence[~MASK])


@pytest.mark.parametrize("kind", [Recurrent, Bidirectional])
def test_the_last_output_need_not_be_h(kind):
    def two(rngs):
        first = kind(OUTPUT_CELL, I, 5, rngs=rngs)
        return Stack([first, Recurrent(OUTPUT_CELL, first.output_size, 3, rngs=rngs)])

    params, call = make_layer(two)
    run = jax.device_get(call(params, inputs(), lengths=LENGTHS))
    assert_same(run.last, run.sequence[np.arange(B), LENGTHS - 1])
    assert relative_error(run.last, 2 * run.states[-1][0].h + 1) < 1e-6


def test_the_last_output_of_a_bidirectional_top_reads_both_ends():
    params, call = make_layer(lambda rngs: Stack([Bidirectional("gru", I, 5, rngs=rngs)]))
    run = jax.device_get(call(params, inputs(), lengths=LENGTHS))
    forward, backward = run.states[-1]
    assert_same(run.last, np.concatenate([forward.h, backward.h], axis=-1))
    assert_same(run.last[:, :5], run.sequence[np.arange(B), LENGTHS - 1, :5])
    assert_same(run.last[:, 5:], run.sequence[:, 0, 5:])


def test_above_a_backward_layer_padding_comes_first():
    """Outputs of `go_backwards` are reversed, so the layer above must mask their first steps."""

    def two(rngs):
        first = Recurrent("lstm", I, 5, go_backwards=True, rngs=rngs)
        return Stack([first, Recurrent("gru", 5, 3, rngs=rngs)])

    params, call = make_layer(two)
    run = jax.device_get(call(params, inputs(), lengths=LENGTHS))
    for row, length in enumerate(LENGTHS.tolist()):
        alone = call(params, inputs()[row : row + 1, :length])
        assert relative_error(run.last[row : row + 1], alone.last) < 1e-6
        assert relative_error(run.sequence[row, T - length :], alone.sequence[0]) < 1e-6


def test_gradients_prove_that_padding_has_no_influence():
    params, call = make_layer(mixed_stack)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, xs):
        return weighted_sum(call(params, xs, lengths=LENGTHS))

    by_params, by_inputs = jax.device_get(gradients(params, inputs()))
    soiled = np.where(MASK[..., None], inputs(), np.float32(np.nan))
    assert_same(gradients(params, soiled), (by_params, by_inputs))
    assert not np.any(by_inputs[~MASK]) and np.all(by_inputs[MASK])


def test_make_stack_is_a_stack_of_equal_layers():
    options = {
        "input_size": I,
        "cell": "lstm(forget_bias=2.0)",
        "hidden_size": 5,
        "num_layers": 2,
        "bidirectional": True,
        "kernel_init": "ones",
        "recurrent_init": "constant(3)",
        "input_dropout": 0.1,
        "output_dropout": (0.5, 0.2),
        "state_dropout": (0.3,),
    }
    init, bind = functional(lambda rngs: make_stack(**options, rngs=rngs))
    params = init(jax.random.key(0))
    assert list(params) == ["layer_0", "layer_1"]
    for layer, size in zip(params.values(), (I, 10), strict=True):
        for weights in (layer["forward"], layer["backward"]):
            np.testing.assert_array_equal(weights["w_x"], np.ones((size, 20)))
            np.testing.assert_array_equal(weights["w_h"], np.full((5, 20), 3))
            np.testing.assert_array_equal(weights["b"], np.repeat([0, 2, 0, 0], 5))
    stack = bind(params)
    assert stack.output_size == 10
    assert stack.input_dropout == (0.1, 0.1)
    assert stack.output_dropout == (0.5, 0.2)
    assert stack.state_dropout == (0.3, 0.3)
    with pytest.raises(UserError, match="never read"):
        functional(lambda rngs: make_stack(**options, rngs=rngs, reads="state"))


# Dropout of a cell that multiplies its input by its state, which stays 1.


def init_nothing(key, input_size, hidden_size):
    return RNNParams(*(jnp.zeros(1) for _ in RNNParams._fields))


def ones_state(batch_size, hidden_size, dtype):
    return RNNState(jnp.ones((batch_size, hidden_size), dtype))


def multiply(params, state, z, read=None):
    return state, z * (read or state).h


PROBE = Cell(init_nothing, ones_state, lambda params, x: x, multiply)
RATE, WIDTH, STEPS = 0.3, 40, 50
ONE_LAYER = [(kind, layer) for kind in KINDS for layer in (0, 1)]


@cache
def two_probes(kind, layer):
    rates = (RATE, 0.0) if layer == 0 else (0.0, RATE)

    def two(rngs):
        return Stack([Recurrent(PROBE, WIDTH, WIDTH, rngs=rngs) for _ in rates], **{kind: rates})

    return make_layer(two)


def dropped(kind, layer, seed=11):
    """Returns outputs `[B, STEPS, WIDTH]` and last outputs of two probes on inputs of ones."""
    params, call = two_probes(kind, layer)
    keys = row_keys(jax.random.key(seed), B)
    run = jax.device_get(call(params, np.ones((B, STEPS, WIDTH), np.float32), keys=keys))
    return run.sequence, run.last


def assert_dropped(array):
    """Asserts that a share RATE of the values is 0 and that the mean is 1."""
    assert set(np.unique(array)) == {np.float32(0), np.float32(1) / np.float32(1 - RATE)}
    deviation = np.sqrt(RATE / (1 - RATE) / array.size)
    assert array.mean() == pytest.approx(1, abs=4 * deviation)


def assert_unlike(a, b):
    """Asserts that two masks are independent: they then agree at 58 % of their positions."""
    assert 0.3 < np.mean(a == b) < 0.8


@pytest.mark.parametrize("kind, layer", ONE_LAYER)
def test_dropout_zeroes_a_share_and_keeps_the_mean(kind, layer):
    sequence, last = dropped(kind, layer)
    if kind == "state_dropout":  # the same mask at every step
        np.testing.assert_array_equal(sequence, np.broadcast_to(sequence[:, :1], sequence.shape))
        assert_dropped(sequence[:, 0])
    else:  # a new mask at every step
        assert_dropped(sequence)
        for step in range(1, STEPS):
            assert_unlike(sequence[:, step], sequence[:, 0])
    assert_unlike(sequence[0], sequence[1])
    if (kind, layer) == ("output_dropout", 1):
        assert_dropped(last)
    else:
        np.testing.assert_array_equal(last, sequence[:, -1])


def test_every_place_has_its_own_masks():
    sequences = [dropped(kind, layer)[0] for kind, layer in ONE_LAYER]
    for i, a in enumerate(sequences):
        for b in sequences[:i]:
            assert_unlike(a, b)
    by_kind = [dropped(kind, 0)[0] for kind in KINDS]
    for kind, sequence in zip(KINDS, by_kind, strict=True):
        assert_unlike(sequence, dropped(kind, 0, seed=12)[0])


def test_each_direction_has_its_own_state_dropout():
    params, call = make_layer(
        lambda rngs: Stack([Bidirectional(PROBE, WIDTH, WIDTH, rngs=rngs)], state_dropout=RATE)
    )
    sequence = np.asarray(call(params, np.ones((B, 2, WIDTH), np.float32), keys=KEYS).sequence)
    assert_dropped(sequence[:, 0])
    assert_unlike(sequence[..., :WIDTH], sequence[..., WIDTH:])


def test_dropout_of_a_row_ignores_padding_and_batch_mates():
    params, call = make_layer(
        lambda rngs: Stack([Recurrent("gru", I, 5, rngs=rngs)], **dict.fromkeys(KINDS, 0.4))
    )
    run = jax.device_get(call(params, inputs(), lengths=LENGTHS, keys=KEYS))
    longer = np.concatenate([inputs()[:1], 100 + inputs()[:1]], axis=1)
    alone = call(params, longer, lengths=LENGTHS[:1], keys=KEYS[:1])
    # Float32 rounding in a program of other shapes.
    assert relative_error(alone.sequence[:, :T], run.sequence[:1]) < 1e-6
    assert relative_error(alone.last, run.last[:1]) < 1e-6


def test_without_keys_nothing_is_dropped():
    params, call = make_layer(mixed_stack, **dict.fromkeys(KINDS, 0.5))
    _, plain = make_layer(mixed_stack)
    run = jax.device_get(call(params, inputs()))
    assert_same(call(params, inputs()), run)
    assert_same(run, plain(params, inputs(), keys=KEYS))


def test_a_call_replaces_the_rates():
    rates = dict(zip(KINDS, (0.3, (0.4,), (0.2, 0.5, 0.4)), strict=True))
    params, call = make_layer(mixed_stack, **dict.fromkeys(KINDS, 0.1))
    _, built = make_layer(mixed_stack, **rates)
    got = call(params, inputs(), keys=KEYS, rates=jax.tree.map(np.float32, rates))
    # The masks are equal; float32 rounding differs in another program.
    assert relative_error(got, built(params, inputs(), keys=KEYS)) < 1e-6


def test_one_program_serves_several_rates():
    init, bind = functional(
        lambda rngs: Stack([Recurrent("gru", I, 5, rngs=rngs)], **dict.fromkeys(KINDS, 0.1))
    )
    params = random_like(jax.eval_shape(init, jax.random.key(0)), 0)
    run = jax.jit(lambda rates: bind(params)(jnp.asarray(inputs()), keys=KEYS, rates=rates).last)
    last = run(dict.fromkeys(KINDS, 0.1))
    for name in KINDS:
        other = run(dict.fromkeys(KINDS, 0.1) | {name: 0.6})
        assert relative_error(other, last) > 0.01, name
    assert run._cache_size() == 1


def test_a_rate_built_as_zero_stays_zero():
    params, call = make_layer(mixed_stack, output_dropout=(0.0, 0.3, 0.0))
    rates = dict.fromkeys(KINDS, jnp.float32(0.9)) | {"output_dropout": (0.9, 0.3, 0.9)}
    want = call(params, inputs(), keys=KEYS)
    assert relative_error(call(params, inputs(), keys=KEYS, rates=rates), want) < 1e-6
    assert_same(call(params, inputs(), rates=rates), call(params, inputs()))


# The functions of dropout.


def test_row_keys_are_indexed_by_position_in_the_batch():
    key = jax.random.key(5)
    keys = jax.random.key_data(row_keys(key, 4))
    assert len(np.unique(keys, axis=0)) == 4
    assert_same(jax.random.key_data(row_keys(key, 2, 2)), keys[2:])


def test_streams_keep_their_numbers():
    """Other numbers would change the dropout masks of every run."""
    assert [*ModelStream] == [*range(5)] and [*LayerStream] == [*range(4)]
    assert [*Direction] == [0, 1]
    got = layer_keys(KEYS, 2, LayerStream.STATE)
    assert_same(*(jax.random.key_data(keys) for keys in (got, fold_keys(KEYS, 4 * 2 + 3))))


def test_folded_keys_are_new_keys():
    folded = [jax.random.key_data(fold_keys(KEYS, i)) for i in range(3)]
    numbers = np.concatenate([jax.random.key_data(KEYS), *folded])
    assert len(np.unique(numbers, axis=0)) == 4 * B
    assert fold_keys(None, 1) is None


def test_rows_lie_on_the_axis_that_is_named():
    x = jnp.ones((B, 20, 5))
    first = np.asarray(dropout(KEYS, x, RATE))
    second = np.asarray(dropout(KEYS, jnp.ones((20, B, 5)), RATE, axis=1))
    np.testing.assert_array_equal(second.swapaxes(0, 1), first)
    assert_dropped(first)
    assert dropout(KEYS, x, 0.0) is x and dropout(None, x, RATE) is x


def test_dropout_scale_is_dropout_of_ones():
    x = jnp.full((B, WIDTH), 7.0)
    scale, dropped_x = dropout_scale(KEYS, x, 0.5), dropout(KEYS, x, 0.5)
    np.testing.assert_array_equal(7 * np.asarray(scale), dropped_x)
    assert dropout_scale(KEYS, x, 0.0) is None and dropout_scale(None, x, 0.5) is None


# Errors.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rates, message",
    [
        ((0.1, 0.2), r"model.KIND=\(0.1, 0.2\): 2 rates for 3 layers"),
        ((), "0 rates for 3 layers"),
        (1.0, "a dropout rate lies in"),
        ((0.1, -0.1, 0.1), "a dropout rate lies in"),
        (float("nan"), "a dropout rate lies in"),
    ],
)
def test_bad_rates_are_refused(kind, rates, message):
    with pytest.raises(UserError, match=message.replace("KIND", kind)):
        make_layer(mixed_stack, **{kind: rates})


@pytest.mark.parametrize(
    "rates, message",
    [
        ({"output_dropuot": 0.1}, "unknown dropout rate 'output_dropuot': did you mean 'output_dr"),
        ({"state_dropout": (0.1, 0.2)}, "2 rates for 3 layers"),
    ],
)
def test_bad_rates_of_a_call_are_refused(rates, message):
    params, call = make_layer(mixed_stack)
    with pytest.raises(UserError, match=message):
        call(params, inputs(), rates=rates)


def test_dropout_that_nothing_reads_is_refused():
    with pytest.raises(UserError, match="output_dropout of the last layer is never read"):
        make_layer(mixed_stack, output_dropout=(0.0, 0.0, 0.5), reads="state")
    make_layer(mixed_stack, output_dropout=(0.5, 0.5, 0.0), state_dropout=0.5, reads="state")


def test_a_stack_needs_layers_of_one_output():
    with pytest.raises(UserError, match="at least one layer"):
        Stack([])
    with pytest.raises(UserError, match="merge='none'.*two outputs"):
        make_layer(lambda rngs: Stack([Bidirectional("gru", 2, 3, merge="none", rngs=rngs)]))
