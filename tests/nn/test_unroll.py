"""Cells over time: masks, directions, windows, and options that must not change the result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.oracles import (
    CELLS,
    assert_same,
    numpy_run,
    numpy_step,
    random_like,
    random_problem,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T

from seqjax.errors import UserError
from seqjax.nn.fused import unroll_fused
from seqjax.nn.unroll import length_mask, unroll, unroll_bidirectional, unroll_windows

TWO = ("lstm", "gru(reset_after=False)")  # two states or one, one recurrent matmul or two

_unroll = jax.jit(unroll, static_argnums=0, static_argnames=("reverse", "hoist"))


@partial(jax.jit, static_argnums=0, static_argnames=("reverse", "hoist"))
def _gradients(cell, params, state, xs, **options):
    def objective(params, state, xs):
        return weighted_sum(unroll(cell, params, state, xs, **options))

    return jax.grad(objective, argnums=(0, 1, 2))(params, state, xs)


def fast_unroll(*args, **options):
    """Runs `unroll`, compiled once for each shape, and returns NumPy arrays."""
    return jax.device_get(_unroll(*args, **options))


def gradients(*args, **options):
    """Returns the gradients of a weighted sum of all outputs of `unroll`."""
    return jax.device_get(_gradients(*args, **options))


def right_padded(*lengths: int, num_steps: int = T) -> np.ndarray:
    return np.arange(num_steps)[:, None] < np.array(lengths)


masks = st.lists(st.lists(st.booleans(), min_size=B, max_size=B), min_size=T, max_size=T)


@pytest.mark.parametrize("spec, reverse", [*((c, False) for c in CELLS), *((c, True) for c in TWO)])
@given(mask=masks)
@example(mask=[[False] * B] * T)
@example(mask=[[True] * B] * T)
def test_masked_steps_do_not_happen(spec, reverse, mask):
    """Under any mask, state and outputs are those of the real steps, and other outputs are 0."""
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=np.float64)
        mask = np.array(mask)
        end, ys = fast_unroll(cell, params, state, xs, mask=mask, reverse=reverse)
    for row in range(B):
        real = np.flatnonzero(mask[:, row])[:: -1 if reverse else 1]
        start = [x[row] for x in state]
        want_end, want_ys = numpy_run(spec, params, start, xs[real, row])
        # Float64 has an epsilon of 2e-16, and values are below 2.
        np.testing.assert_allclose(ys[real, row], want_ys, atol=1e-13)
        np.testing.assert_allclose([x[row] for x in end], want_end, atol=1e-13)
    assert not np.any(ys[~mask])


@pytest.mark.parametrize("spec", TWO)
@given(lengths=st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_reverse_is_the_flipped_valid_prefix(spec, lengths):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    mask = right_padded(*lengths)
    flipped = np.array(xs)
    for row, length in enumerate(lengths):
        flipped[:length, row] = flipped[:length, row][::-1]
    end, ys = fast_unroll(cell, params, state, xs, mask=mask, reverse=True)
    want_end, want_ys = fast_unroll(cell, params, state, flipped, mask=mask)
    want_ys = np.array(want_ys)  # to write on
    for row, length in enumerate(lengths):
        want_ys[:length, row] = want_ys[:length, row][::-1].copy()
    assert_same((end, ys), (want_end, want_ys))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("spec", TWO)
def test_a_row_of_length_zero_keeps_its_initial_state(spec, reverse):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    mask = right_padded(T, 0, 2, 1)
    end, ys = fast_unroll(cell, params, state, xs, mask=mask, reverse=reverse)
    for initial, last in zip(state, end, strict=True):
        np.testing.assert_array_equal(last[1], initial[1])
        assert np.all(initial[1] != 0) and not np.any(last[0] == initial[0])
    assert not np.any(ys[:, 1])


@pytest.mark.parametrize("padding", [1e6, np.inf, np.nan])
@pytest.mark.parametrize("spec, hoist", [*zip(TWO, (True, False), strict=True)])
def test_what_stands_in_the_padding_changes_nothing(spec, padding, hoist):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    mask = right_padded(4, 0, T, 1)
    soiled = np.where(mask[..., None], xs, np.float32(padding))
    assert_same(
        fast_unroll(cell, params, state, soiled, mask=mask, hoist=hoist),
        fast_unroll(cell, params, state, xs, mask=mask, hoist=hoist),
    )
    got = gradients(cell, params, state, soiled, mask=mask, hoist=hoist)
    assert_same(got, gradients(cell, params, state, xs, mask=mask, hoist=hoist))
    by_input = got[2]
    assert not np.any(by_input[~mask]) and np.all(by_input[mask])


def test_more_padding_changes_nothing():
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    more = np.concatenate([xs, xs[:3] + 7])
    for lengths in ((4, 0, T, 1), (1, 2, 3, 0)):
        mask, more_mask = right_padded(*lengths), right_padded(*lengths, num_steps=T + 3)
        end, ys = fast_unroll(cell, params, state, xs, mask=mask)
        got_end, got_ys = fast_unroll(cell, params, state, more, mask=more_mask)
        assert_same((got_end, got_ys[:T]), (end, ys))
        assert not np.any(got_ys[T:])

    def objective(params, state, xs, mask):
        end, ys = unroll(cell, params, state, xs, mask=mask)
        return weighted_sum((end, ys[:T]))

    grad = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))
    by_params, by_state, by_input = jax.device_get(grad(params, state, more, more_mask))
    want = grad(params, state, xs, mask)
    assert_same((by_params, by_state, by_input[:T]), want)
    assert not np.any(by_input[T:])


@pytest.mark.parametrize("spec", TWO)
def test_padding_on_the_left_is_as_good_as_on_the_right(spec):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    for length in range(T + 1):
        right = fast_unroll(cell, params, state, xs, mask=right_padded(*[length] * B))
        moved, mask = np.roll(xs, T - length, axis=0), right_padded(*[length] * B)[::-1]
        end, ys = fast_unroll(cell, params, state, moved, mask=mask)
        assert_same((end, np.roll(ys, length - T, axis=0)), right)


@pytest.mark.parametrize("spec", TWO)
def test_all_ways_to_run_are_equal(spec):
    """Hoisting and compiling change only the rounding of float32 (epsilon 1e-7)."""
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    mask = right_padded(4, 0, T, 1)
    want = fast_unroll(cell, params, state, xs, mask=mask)
    assert relative_error(fast_unroll(cell, params, state, xs, mask=mask, hoist=True), want) < 1e-6
    arrays = jax.tree.map(jnp.asarray, (params, state, xs))
    with jax.disable_jit():
        assert relative_error(unroll(cell, *arrays, mask=jnp.asarray(mask)), want) < 1e-6
    whole = fast_unroll(cell, params, state, xs, mask=np.ones_like(mask))
    assert relative_error(fast_unroll(cell, params, state, xs), whole) < 1e-6
    got, want = (
        gradients(cell, params, state, xs, mask=mask, hoist=hoist) for hoist in (True, False)
    )
    assert relative_error(got, want) < 1e-6


def test_members_may_be_vmapped():
    cell, _, state, xs = random_problem("lstm", T, B, I, H)
    members = [random_problem("lstm", T, B, I, H, seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *ps: np.stack(ps), *members)
    got = jax.jit(jax.vmap(partial(unroll, cell), (0, None, None)))(stacked, state, xs)
    each = [fast_unroll(cell, params, state, xs) for params in members]
    want = jax.tree.map(lambda *rs: np.stack(rs), *each)
    assert relative_error(got, want) < 1e-6  # float32 rounding


def test_bidirectional_is_one_run_from_each_end():
    cell, forward, state, xs = random_problem("gru", T, B, I, H, seed=0)
    _, backward, other, _ = random_problem("gru", T, B, I, H, seed=1)
    scales = random_like((state.h, state.h), 2)
    mask = right_padded(4, 0, T, 1)
    states, ys = jax.jit(partial(unroll_bidirectional, cell))(
        (forward, backward), (state, other), xs, mask=mask, state_scales=scales
    )
    ways = ((forward, state, scales[0], False), (backward, other, scales[1], True))
    for (params, start, scale, reverse), end, outputs in zip(ways, states, ys, strict=True):
        want = fast_unroll(cell, params, start, xs, mask=mask, state_scale=scale, reverse=reverse)
        assert_same((end, outputs), want)


@pytest.mark.parametrize("spec", CELLS)
def test_state_scale_is_on_what_the_recurrent_products_read(spec):
    """Only the matmuls read the scaled h: the memory (1 - z) n + z h of a GRU has h itself."""
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=np.float64)
        scale = random_like(state.h, 5, np.float64)
        mask = right_padded(4, 0, T, 1)
        end, ys = fast_unroll(cell, params, state, xs, mask=mask, state_scale=scale)
    for row in range(B):
        # A matmul of scaled h equals one of h with scaled rows of W.
        scaled = params._replace(w_h=scale[row, :, None] * params.w_h)
        h, want = [x[row] for x in state], []
        for x in xs[mask[:, row], row]:
            h = numpy_step(spec, scaled, h, x)
            want.append(h[0])
        np.testing.assert_allclose([x[row] for x in end], h, atol=1e-13)
        np.testing.assert_allclose(ys[: len(want), row], np.reshape(want, (-1, H)), atol=1e-13)


@pytest.mark.parametrize("spec", ["gru", "gru(reset_after=False)"])
def test_state_dropout_cannot_explode(spec):
    """An output is a mean of values of tanh whatever is dropped, so it never exceeds 1."""
    cell, params, state, xs = random_problem(spec, 100, B, I, H)
    scale = np.tile(np.float32([0, 2, 2, 0, 2]), (B, 1))  # a mask of dropout with rate 0.5
    state = jax.tree.map(np.zeros_like, state)
    _, ys = fast_unroll(cell, params, state, xs, state_scale=scale)
    assert 0.1 < np.abs(ys).max() <= 1


@pytest.mark.parametrize("mask", [None, right_padded(4, 0, T, 1)], ids=["whole", "masked"])
@pytest.mark.parametrize("spec, size", [*zip(TWO, (1, 3), strict=True)])
def test_windows_give_the_values_of_one_long_run(spec, size, mask):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    windows = jax.jit(partial(unroll_windows, cell, window_size=size))
    got = windows(params, state, xs, mask=mask)
    assert relative_error(got, fast_unroll(cell, params, state, xs, mask=mask)) < 1e-6


def test_windows_cut_the_gradient_between_them():
    cell, params, state, xs = random_problem("lstm", T, B, I, H)

    def last_window(params, state, xs):
        end, ys = unroll_windows(cell, params, state, xs, window_size=2)
        return weighted_sum((end, ys[4:]))

    def by_hand(params, state, xs):
        start, _ = jax.lax.stop_gradient(unroll(cell, params, state, xs[:4]))
        return weighted_sum(unroll(cell, params, start, xs[4:]))

    got, want = (
        jax.device_get(jax.jit(jax.grad(f, argnums=(0, 1, 2)))(params, state, xs))
        for f in (last_window, by_hand)
    )
    assert relative_error(got[0], want[0]) < 1e-6
    assert relative_error(got[2][4:], want[2][4:]) < 1e-6
    assert np.all(got[2][4:]) and not np.any(got[2][:4])
    assert not any(np.any(x) for x in got[1])


@pytest.mark.parametrize("size", [0, -2, 4, T + 1])
def test_windows_that_do_not_divide_the_steps_are_refused(size):
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    with pytest.raises(UserError, match=f"window_size {size} does not divide the {T} time steps"):
        jax.eval_shape(partial(unroll_windows, cell, window_size=size), params, state, xs)


@pytest.mark.parametrize("run", [unroll, unroll_fused])
def test_the_dtype_is_that_of_the_parameters(run):
    """With float32 parameters, float64 and float16 inputs and states are cast to float32."""
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    for dtype in (np.float64, np.float16):
        with jax.enable_x64(True):
            other = [jax.tree.map(lambda x: x.astype(dtype), x) for x in (state, xs, state.h)]  # noqa: B023
            args = [jax.tree.map(lambda x: x.astype(np.float32), x) for x in other]
            got, want = (
                jax.jit(lambda s, x, scale: run(cell, params, s, x, state_scale=scale))(*a)
                for a in (other, args)
            )
        assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype("float32")}
        assert relative_error(got, want) < 1e-6


def test_length_mask():
    mask = length_mask(jnp.array([0, 2, 3, 5]), 3)
    assert mask.astype(int).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
