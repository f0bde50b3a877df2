"""Every cell against a float64 NumPy loop and against Keras, and what a new cell holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    CELLS,
    keras_layer,
    keras_weights,
    numpy_run,
    random_like,
    random_problem,
    relative_error,
    weighted_sum,
)

from seqjax.cells import gru, lstm, make_cell, simple_rnn
from seqjax.errors import UserError
from seqjax.initializers import make_initializer
from seqjax.unroll import unroll

T, B, I, H = 7, 3, 5, 4  # noqa: E741


@pytest.mark.parametrize("spec", CELLS)
def test_forward_is_the_float64_loop(spec):
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=jnp.float64)
        end, ys = unroll(cell, params, state, xs)
        want_end, want_ys = numpy_run(spec, params, state, xs)
    # Seven steps of float64 (2e-16) in another order of summation.
    assert relative_error((list(end), ys), (want_end, want_ys)) < 1e-12


@pytest.mark.parametrize("spec", CELLS)
def test_gradients_are_the_slopes_of_the_float64_loop(spec):
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=jnp.float64)
        point, step = (params, state, xs), 1e-5
        gradients = jax.grad(lambda p: weighted_sum(list(unroll(cell, *p))))(point)
        leaves, treedef = jax.tree.flatten(point)
        for k, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
            direction = random_like(leaf, k, jnp.float64)

            def loop(distance, k=k, direction=direction):
                moved = [*leaves[:k], leaves[k] + distance * direction, *leaves[k + 1 :]]
                end, ys = numpy_run(spec, *jax.tree.unflatten(treedef, moved))
                return float(weighted_sum([end, ys]))

            slope = (loop(step) - loop(-step)) / (2 * step)
            # A central difference errs by the square of its step (1e-10), times third derivatives.
            assert float(jnp.vdot(gradient, direction)) == pytest.approx(slope, rel=1e-7), k


@pytest.mark.parametrize("spec", CELLS)
def test_forward_and_gradients_are_those_of_keras(spec):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    layer = keras_layer(spec, I, H, params, return_sequences=True, return_state=True)
    fixed = [v.value for v in layer.non_trainable_variables]

    def ours(params, state, xs):
        end, ys = unroll(cell, params, state, jnp.swapaxes(xs, 0, 1))
        outputs = [jnp.swapaxes(ys, 0, 1), *end]
        return weighted_sum(outputs), outputs

    def theirs(weights, state, xs):
        outputs, _ = layer.stateless_call(
            weights, fixed, xs, initial_state=list(state), training=False
        )
        return weighted_sum(list(outputs)), list(outputs)

    xs = jnp.swapaxes(xs, 0, 1)
    both = [jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True)) for f in (ours, theirs)]
    ours_g, ours_out = both[0](params, state, xs)
    theirs_g, theirs_out = both[1]([v.value for v in layer.trainable_variables], state, xs)
    # Both compute in float32, whose unit is 6e-8, over seven steps.
    assert relative_error(ours_out, theirs_out) < 1e-6
    assert relative_error(keras_weights(spec, ours_g[0]), theirs_g[0]) < 1e-6
    assert relative_error(ours_g[1:], theirs_g[1:]) < 1e-6


@pytest.mark.parametrize("spec", CELLS)
def test_step_is_gate_after_recur(spec):
    cell, params, state, xs = random_problem(spec, 1, B, I, H)
    z = cell.project(params, xs[0])
    assert (cell.recur is None) == (cell.gate is None) == (spec == "gru(reset_after=False)")
    if cell.gate is not None:
        want, want_y = cell.gate(z, cell.recur(params, state), state)
        got, y = cell.step(params, state, z)
        assert jnp.array_equal(y, want_y) and jnp.array_equal(y, got.h)
        assert all(jnp.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("spec", CELLS)
def test_project_works_on_whole_sequences(spec):
    cell, params, _, xs = random_problem(spec, T, B, I, H)
    each = jnp.stack([cell.project(params, x) for x in xs])
    assert relative_error(cell.project(params, xs), each) < 1e-6  # another blocking of the product


@pytest.mark.parametrize("spec", CELLS)
def test_initial_state_is_zero_and_shares_no_buffer(spec):
    state = make_cell(spec).initial_state(2, 3, jnp.float16)
    assert [(x.shape, x.dtype, float(jnp.abs(x).max())) for x in state] == [
        ((2, 3), jnp.float16, 0.0)
    ] * len(state)
    pointers = [x.unsafe_buffer_pointer() for x in state]
    assert len(set(pointers)) == len(pointers)


def test_equal_options_give_the_same_cell():
    assert make_cell("gru(reset_after=False)") is make_cell("gru( reset_after = False )")
    assert make_cell("lstm") is lstm() is make_cell("lstm")
    assert make_cell("simple_rnn") is simple_rnn()
    assert make_cell("lstm", kernel_init="zeros") is lstm(kernel_init="zeros")
    assert make_cell("gru") is not make_cell("gru(reset_after=False)")
    assert gru(reset_after=False) is not lstm()


@pytest.mark.parametrize(
    "spec, message",
    [
        ("ltsm", "unknown cell 'ltsm': did you mean 'lstm'"),
        ("gru(reset_afetr=False)", "reset_afetr.*options of gru: reset_after, "),
        ("lstm(forget_bias=1", "cannot read"),
        ("simple_rnn(forget_bias=1.0)", "forget_bias.*options of simple_rnn: kernel_init"),
    ],
)
def test_unknown_cells_and_options_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        make_cell(spec)


def test_unknown_initializers_are_refused():
    with pytest.raises(UserError, match="'glorot_unifrom': did you mean 'glorot_uniform'"):
        lstm(kernel_init="glorot_unifrom").init(jax.random.key(0), 2, 3)


@pytest.mark.parametrize("spec", CELLS)
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 2)])
def test_sizes_below_one_are_refused(spec, sizes):
    with pytest.raises(UserError, match="sizes must be positive"):
        make_cell(spec).init(jax.random.key(0), *sizes)


@pytest.mark.parametrize("spec, gates", CELLS.items())
def test_a_new_cell(spec, gates):
    size_in, size = 30, 50
    params = make_cell(spec).init(jax.random.key(3), size_in, size)
    assert all(p.dtype == jnp.float32 for p in params)
    # Recurrent kernels: every gate's square block is orthogonal by itself, and no two are alike.
    blocks = np.split(np.asarray(params.w_h, np.float64), gates, axis=1)
    for block in blocks:
        singular = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(singular, 1, atol=1e-5)  # float32's QR of 50 columns
    assert all(np.abs(a - blocks[0]).max() > 0.1 for a in blocks[1:])
    # Kernels: Glorot's limit, of the whole matrix, as in Keras; the largest of 1,500 is near it.
    limit = np.sqrt(6 / (size_in + gates * size))
    assert 0.98 * limit < jnp.abs(params.w_x).max() <= limit
    assert float(jnp.std(params.w_x)) == pytest.approx(limit / np.sqrt(3), rel=0.05)
    # Biases: zero, but for the forget gate's.
    biases = np.concatenate([np.ravel(b) for b in params[2:]])
    forget = np.arange(len(biases)) // size == 1
    np.testing.assert_array_equal(biases, np.where(forget & (spec == "lstm"), 1.0, 0.0))


def test_the_forget_bias_is_an_initial_value_only():
    plain, high = (lstm(forget_bias=f).init(jax.random.key(0), 2, 3) for f in (0.0, 2.5))
    assert jnp.array_equal(high.b - plain.b, jnp.repeat(jnp.array([0, 2.5, 0, 0]), 3))
    assert jnp.array_equal(plain.w_x, high.w_x) and jnp.array_equal(plain.w_h, high.w_h)
    state, z = lstm().initial_state(1, 3, jnp.float32), jnp.ones((1, 12))
    steps = [lstm(forget_bias=f).step(plain, state, z)[1] for f in (0.0, 2.5)]
    assert jnp.array_equal(*steps)


@pytest.mark.parametrize("spec, gates", CELLS.items())
def test_joined_glorot_takes_the_fans_of_one_matrix(spec, gates):
    cell = make_cell(
        spec, kernel_init="joined_glorot_uniform", recurrent_init="joined_glorot_uniform"
    )
    size_in, size = 40, 30
    params = cell.init(jax.random.key(5), size_in, size)
    limit = np.sqrt(6 / (size_in + size + gates * size))
    for kernel in (params.w_x, params.w_h):
        assert 0.98 * limit < jnp.abs(kernel).max() <= limit
    assert not jnp.array_equal(params.w_x[:size], params.w_h)


def test_initializers_by_name():
    key, shape = jax.random.key(1), (200, 100)
    draw = {
        spec: np.asarray(make_initializer(spec)(key, shape, jnp.float32))
        for spec in ("normal(1)", "normal(0.1)", "uniform(0.3)", "zeros", "ones", "constant(2.5)")
    }
    # Standard errors of 20,000 numbers are 0.007 (mean) and 0.005 (deviation).
    assert abs(draw["normal(1)"].mean()) < 0.03
    assert draw["normal(1)"].std() == pytest.approx(1, abs=0.02)
    assert draw["normal(0.1)"].std() == pytest.approx(0.1, abs=0.002)
    assert 0.299 < np.abs(draw["uniform(0.3)"]).max() <= 0.3
    assert [np.unique(draw[s]).tolist() for s in ("zeros", "ones", "constant(2.5)")] == [
        [0.0],
        [1.0],
        [2.5],
    ]
    bias = lstm(forget_bias=0.0, bias_init="normal(1)").init(key, 2, 500).b
    assert jnp.std(bias) == pytest.approx(1, abs=0.08)
    with pytest.raises(UserError, match="unknown initializer 'nromal'.*'normal'"):
        make_initializer("nromal(1)")


@pytest.mark.parametrize("spec", CELLS)
def test_a_key_gives_its_weights_and_no_others(spec):
    cell = make_cell(spec, bias_init="normal(1)")
    first, again, other = (cell.init(jax.random.key(k), 3, 4) for k in (0, 0, 1))
    assert all(jnp.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(jnp.array_equal(a, b) for a, b in zip(first, other, strict=True))
