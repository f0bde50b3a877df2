"""Every cell against a float64 NumPy loop and against Keras, and the initial parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import (
    CELLS,
    assert_same,
    init_cell,
    keras_layer,
    keras_weights,
    numpy_run,
    random_like,
    random_problem,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T

from seqjax.config import base_config
from seqjax.errors import UserError
from seqjax.nn.cells import lstm, make_cell, pre_activations, simple_rnn
from seqjax.nn.initializers import make_initializer
from seqjax.nn.unroll import unroll
from seqjax.tasks.registry import make_task

SIZES = (30, 50)  # input size and hidden size of new cells


@pytest.mark.parametrize("spec", CELLS)
def test_forward_is_the_float64_loop(spec):
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=np.float64)
        end, ys = jax.jit(unroll, static_argnums=0)(cell, params, state, xs)
        want_end, want_ys = numpy_run(spec, params, state, xs)
    # Float64 has an epsilon of 2e-16, and sums are in another order.
    assert relative_error((list(end), ys), (want_end, want_ys)) < 1e-12


@pytest.mark.parametrize("spec", CELLS)
def test_gradients_are_the_slopes_of_the_float64_loop(spec):
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=np.float64)
        point, step = (params, state, xs), 1e-5
        gradients = jax.jit(jax.grad(lambda p: weighted_sum(unroll(cell, *p))))(point)
        leaves, treedef = jax.tree.flatten(point)
        for k, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
            direction = random_like(leaf, k, np.float64)

            def loop(distance, k=k, direction=direction):
                moved = [*leaves[:k], leaves[k] + distance * direction, *leaves[k + 1 :]]
                return weighted_sum(numpy_run(spec, *jax.tree.unflatten(treedef, moved)))

            slope = (loop(step) - loop(-step)) / (2 * step)
            # The error of a central difference is the square of its step (1e-10) times a third
            # derivative.
            assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-7), k


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

    xs = np.swapaxes(xs, 0, 1)
    both = [jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True)) for f in (ours, theirs)]
    ours_g, ours_out = both[0](params, state, xs)
    theirs_g, theirs_out = both[1]([v.value for v in layer.trainable_variables], state, xs)
    # Both compute in float32, whose epsilon is 1e-7.
    assert relative_error(ours_out, theirs_out) < 1e-6
    assert relative_error(keras_weights(spec, ours_g[0]), theirs_g[0]) < 1e-6
    assert relative_error(ours_g[1:], theirs_g[1:]) < 1e-6


@pytest.mark.parametrize("spec", CELLS)
def test_a_step_is_its_gate_after_its_matmuls(spec):
    cell, params, state, xs = random_problem(spec, 1, B, I, H)
    assert len(cell.recurrent_matmuls) == (2 if spec == "gru(reset_after=False)" else 1)
    z = cell.project(params, xs[0])
    got, y = cell.step(params, state, z)
    np.testing.assert_array_equal(y, got.h)
    weights = [matmul.weights(params) for matmul in cell.recurrent_matmuls]
    a = pre_activations(cell, weights, z, state.h)
    assert_same((got, y), cell.gate(a, state))
    # The fused backward pass needs a linear `combine` and a `gate` that is pointwise over rows.
    results = [random_like(w[0], k) for k, (w, _) in enumerate(weights)]
    tripled = cell.combine(3 * z, *(3 * r for r in results))
    assert relative_error(tripled, jax.tree.map(lambda x: 3 * x, cell.combine(z, *results))) < 1e-6
    row = jax.tree.map(lambda x: x[1:2], (a, state))
    assert_same(cell.gate(*row), jax.tree.map(lambda x: x[1:2], (got, y)))


@pytest.mark.parametrize("spec", CELLS)
def test_what_is_read_need_not_be_what_is_carried(spec):
    cell, params, state, xs = random_problem(spec, 1, B, I, H)
    read = jax.tree.map(lambda x: x + 1, state)
    z = cell.project(params, xs[0])
    (got, _), (plain, _) = cell.step(params, state, z, read), cell.step(params, state, z)
    assert relative_error(got, plain) > 0.01
    # With recurrent kernels of zero, only the carried state has an effect.
    params = params._replace(w_h=np.zeros_like(params.w_h))
    assert_same(cell.step(params, state, z, read), cell.step(params, state, z))


@pytest.mark.parametrize("spec", CELLS)
def test_project_works_on_whole_sequences(spec):
    cell, params, _, xs = random_problem(spec, T, B, I, H)
    each = np.stack([cell.project(params, x) for x in xs])
    assert relative_error(cell.project(params, xs), each) < 1e-6  # float32 rounding


@pytest.mark.parametrize("spec", CELLS)
def test_initial_state_is_zero_and_shares_no_buffer(spec):
    state = make_cell(spec).initial_state(2, 3, jnp.float16)
    assert all(x.shape == (2, 3) and x.dtype == jnp.float16 for x in state)
    assert not any(np.any(x) for x in state)
    assert len({x.unsafe_buffer_pointer() for x in state}) == len(state)


def test_equal_options_give_the_same_cell():
    assert make_cell("gru(reset_after=False)") is make_cell("gru( reset_after = False )")
    assert make_cell("lstm") is lstm() is make_cell("lstm")
    assert make_cell("simple_rnn") is simple_rnn()
    assert make_cell("lstm", kernel_init="zeros") is lstm(kernel_init="zeros")
    assert make_cell("gru") is not make_cell("gru(reset_after=False)")
    assert lstm(forget_bias=0.0) is not lstm()
    assert make_cell("lstm(set_forget_bias=True)") is lstm(set_forget_bias=True) is not lstm()


@pytest.mark.parametrize(
    "spec, message",
    [
        ("ltsm", "unknown cell 'ltsm': did you mean 'lstm'"),
        ("gru(reset_afetr=False)", "reset_afetr.*options of gru: reset_after, "),
        ("lstm(forget_bias=1", "cannot read"),
        ("lstm(set_forget_bias=1)", "set_forget_bias=1 must be of type bool"),
        ("simple_rnn(forget_bias=1.0)", "forget_bias.*options of simple_rnn: kernel_init"),
    ],
)
def test_unknown_cells_and_options_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        make_cell(spec)


def test_unknown_initializers_are_refused():
    with pytest.raises(UserError, match="'glorot_unifrom': did you mean 'glorot_uniform'"):
        lstm(kernel_init="glorot_unifrom").init(jax.random.key(0), 2, 3)
    with pytest.raises(UserError, match="unknown initializer 'nromal'.*'normal'"):
        make_initializer("nromal(1)")


@pytest.mark.parametrize("spec", CELLS)
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 2)])
def test_sizes_below_one_are_refused(spec, sizes):
    with pytest.raises(UserError, match="sizes must be positive"):
        make_cell(spec).init(jax.random.key(0), *sizes)


@pytest.mark.parametrize("spec, num_gates", [*CELLS.items()][:3])  # both GRUs have three gates
def test_a_new_cell(spec, num_gates):
    size_in, size = SIZES
    params = init_cell(make_cell(spec), 3, *SIZES)
    assert all(p.dtype == np.float32 for p in params)
    # Recurrent kernels: the square block of every gate is orthogonal, and no two are equal.
    blocks = np.split(np.float64(params.w_h), num_gates, axis=1)
    for block in blocks:
        singular = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(singular, 1, atol=1e-5)  # a QR decomposition in float32
    assert all(np.abs(a - blocks[0]).max() > 0.1 for a in blocks[1:])
    # Kernels: Glorot's limit for the whole matrix, as in Keras; the largest value is close to it.
    limit = np.sqrt(6 / (size_in + num_gates * size))
    assert 0.98 * limit < np.abs(params.w_x).max() <= limit
    assert np.std(params.w_x) == pytest.approx(limit / np.sqrt(3), rel=0.05)
    # Biases: zero except for the forget gate.
    biases = np.concatenate(params[2:])
    forget = (np.arange(len(biases)) // size == 1) & (spec == "lstm")
    np.testing.assert_array_equal(biases, np.where(forget, 1.0, 0.0))


def test_the_forget_bias_is_an_initial_value_only():
    plain, high = (
        init_cell(lstm(f, kernel_init="ones", recurrent_init="ones"), 0, 2, 3) for f in (0.0, 2.5)
    )
    np.testing.assert_array_equal(high.b - plain.b, np.repeat([0, 2.5, 0, 0], 3))
    assert_same(plain[:2], high[:2])
    state, z = lstm().initial_state(1, 3, jnp.float32), jnp.ones((1, 12))
    assert_same(*(lstm(forget_bias=f).step(plain, state, z) for f in (0.0, 2.5)))


@pytest.mark.parametrize(
    ("option", "forget_bias"), [("set_forget_bias=True", 1.0), ("set_forget_bias=False", 1.03)]
)
def test_keras_sets_the_forget_bias_and_adds_nothing_to_it(option, forget_bias):
    config = base_config("recall")
    config.data = {"num_symbols": 2, "num_distractors": 1, "num_sequences": 5, "split_seed": 0}
    config.model.update(hidden_size=H, cell=f"lstm({option}, bias_init='constant(0.03)')")
    params = jax.jit(make_task(config).init)(jax.random.key(0))
    [bias] = [x for x in jax.tree.leaves(params) if x.shape == (4 * H,)]
    # One addition in float32, whose epsilon is 1e-7.
    np.testing.assert_allclose(bias, np.repeat([0.03, forget_bias, 0.03, 0.03], H), rtol=1e-6)
    constant = {"class_name": "Constant", "config": {"value": 0.03}}
    layer = keras_layer("lstm", I, H, bias_initializer=constant)
    layer.build((None, None, I))
    of_keras = layer.trainable_variables[2].value
    assert np.array_equal(bias, of_keras) == (forget_bias == 1)


def test_joined_glorot_takes_the_fans_of_one_matrix():
    options = dict.fromkeys(("kernel_init", "recurrent_init"), "joined_glorot_uniform")
    size_in, size = SIZES
    params = init_cell(lstm(**options), 5, *SIZES)
    limit = np.sqrt(6 / (size_in + size + 4 * size))
    for kernel in (params.w_x, params.w_h):
        assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert np.abs(params.w_x - params.w_h[:size_in]).max() > limit


@pytest.mark.parametrize(
    "spec, mean, deviation, largest",
    [
        ("normal(2)", 0, 2, None),
        ("uniform(0.3)", 0, 0.3 / np.sqrt(3), 0.3),
        ("zeros", 0, 0, 0),
        ("ones", 1, 0, 1),
        ("constant(-2.5)", -2.5, 0, 2.5),
    ],
)
def test_initializers_by_name(spec, mean, deviation, largest):
    init = jax.jit(make_initializer(spec), static_argnums=1)
    numbers = np.asarray(init(jax.random.key(1), (200, 100)), np.float64)
    # For 20,000 samples the standard error of the mean is 0.007 deviations, and that of the
    # deviation is 0.005 of itself.
    assert numbers.mean() == pytest.approx(mean, abs=0.03 * deviation)
    assert numbers.std() == pytest.approx(deviation, rel=0.02)
    if largest is not None:
        assert 0.999 * largest <= np.abs(numbers).max() <= largest * (1 + 1e-7)  # float32 rounding


def test_a_key_gives_its_weights_and_no_others():
    first, again, other = (init_cell(lstm(), key, *SIZES) for key in (0, 0, 1))
    assert_same(first, again)
    assert all(np.all(np.not_equal(a, b)) for a, b in zip(first[:2], other[:2], strict=True))
