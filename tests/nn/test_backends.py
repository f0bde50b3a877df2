"""Backends: which one runs a cell, the form of a batch for cuDNN, and memory under remat."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn
from support.oracles import (
    CELLS,
    assert_same,
    make_layer,
    random_problem,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T

import seqjax.nn.backends
import seqjax.nn.cudnn
from seqjax.errors import UserError
from seqjax.nn.backends import BACKENDS, find_unroll
from seqjax.nn.cells import LSTMState
from seqjax.nn.cudnn import cudnn_weights, run_by_lengths, unroll_cudnn, why_not_cudnn
from seqjax.nn.fused import unroll_fused
from seqjax.nn.layers import Bidirectional, Recurrent
from seqjax.nn.unroll import unroll

MASKS = {
    "whole": None,
    "lengths": np.arange(T)[:, None] < np.array([4, 0, T, 1]),
    "left": np.arange(T)[:, None] >= np.array([4, 0, T, 1]),
    "holes": np.random.default_rng(0).random((T, B)) < 0.6,
}
every_mask = pytest.mark.parametrize("mask", MASKS)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="reverse")
def values_and_gradients(run, cell, params, state, xs, **options):
    def objective(params, state, xs):
        outputs = run(cell, params, state, xs, **options)
        return weighted_sum(outputs), outputs

    return jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(params, state, xs)


@every_mask
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", ["scan", "fused"])
@pytest.mark.parametrize("spec", ["lstm", "gru(reset_after=False)"])
def test_windows_computed_twice_change_nothing(spec, backend, mask, reverse):
    """Six steps are two windows of three."""
    problem = random_problem(spec, T, B, I, H)
    options = {"mask": MASKS[mask], "reverse": reverse}
    got, want = (
        values_and_gradients(find_unroll(backend, remat), *problem, **options)
        for remat in (True, False)
    )
    assert relative_error(got, want) < 1e-6  # float32 rounding


def test_no_step_at_all_changes_nothing():
    cell, params, state, xs = random_problem("lstm", 0, B, I, H)
    end, ys = find_unroll("fused", remat=True)(cell, params, state, jnp.array(xs))
    assert ys.shape == (0, B, H) and relative_error(end, state) == 0


@pytest.mark.parametrize("num_steps", [1, 2, 4, 9, 16])
def test_windows_of_any_number_of_steps(num_steps):
    problem = random_problem("lstm", num_steps, B, I, H)
    got, want = (values_and_gradients(find_unroll("fused", remat), *problem) for remat in (1, 0))
    assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize("backend", ["scan", "fused"])
def test_memory_grows_with_the_root_of_the_steps(backend):
    """Compares the temporary memory of a gradient, without inputs and outputs."""

    def num_bytes(num_steps, remat):
        cell, *arrays = random_problem("lstm", num_steps, 8, 1, 64)

        def objective(params, state, xs):
            end, _ = find_unroll(backend, remat)(cell, params, state, xs)
            return jnp.sum(end.h)

        compiled = jax.jit(jax.grad(objective)).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = {remat: [num_bytes(n, remat) for n in (256, 1024, 4096)] for remat in (False, True)}
    assert sizes[False][2] > 12 * sizes[False][0]  # 16 times the steps
    assert sizes[True][2] < 6 * sizes[True][0]  # their square root is 4 times as large
    assert sizes[True][2] < sizes[False][2] / 10


def test_a_layer_runs_on_its_backend_in_both_directions():
    _, _, _, xs = random_problem("lstm", B, T, I, H)
    for kind in (Recurrent, Bidirectional):
        outputs = []
        for options in ({}, {"backend": "scan"}, {"backend": "fused", "remat": True}):
            params, call = make_layer(kind, "lstm", I, H, return_sequences=True, **options)
            outputs.append(call(params, xs, lengths=np.array([3, 0, T, 1][: len(xs)])))
        assert relative_error(outputs[1:], [outputs[0]] * 2) < 1e-6


def test_auto_is_the_fused_pass_where_a_cell_gives_its_products(monkeypatch):
    cell, *arrays = random_problem("lstm", T, B, I, H)
    run = jax.jit(find_unroll("auto"), static_argnums=0)
    assert_same(run(cell, *arrays), jax.jit(unroll_fused, static_argnums=0)(cell, *arrays))
    opaque = cell._replace(recurrent_matmuls=(), combine=None, gate=None)
    assert_same(run(opaque, *arrays), jax.jit(unroll, static_argnums=0)(opaque, *arrays))
    used = []
    for name in ("unroll", "unroll_fused", "unroll_cudnn"):
        monkeypatch.setattr(seqjax.nn.backends, name, lambda *_, name=name, **__: used.append(name))
    for some in (cell, opaque):
        BACKENDS["auto"](some, *arrays)
    monkeypatch.setattr(seqjax.nn.backends, "has_cudnn", lambda: True)
    for spec in CELLS:
        BACKENDS["auto"](*random_problem(spec, T, B, I, H))
    assert used == ["unroll_fused", "unroll", "unroll_fused", "unroll_cudnn", *["unroll_fused"] * 2]


def test_auto_says_once_why_it_is_not_on_cudnn(monkeypatch, capsys):
    monkeypatch.setattr(seqjax.nn.backends, "has_cudnn", lambda: True)
    seqjax.nn.backends._print_once.cache_clear()
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    xs, scale = jnp.asarray(xs), jnp.ones_like(state.h)
    for _ in range(2):
        BACKENDS["auto"](cell, params, state, xs, state_scale=scale)
    assert capsys.readouterr().err == "not on cuDNN: cuDNN has no state dropout\n"


@pytest.mark.parametrize("name", ["fuzed", "", "CUDNN"])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(UserError, match=f"unknown train.backend '{name}'"):
        find_unroll(name)


def test_cudnn_says_what_it_cannot_do():
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    with pytest.raises(UserError, match="train.backend=cudnn: this machine computes on cpu"):
        unroll_cudnn(cell, params, state, jnp.asarray(xs))
    assert why_not_cudnn(params, None) == ""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert "float32 only, not in bfloat16" in why_not_cudnn(half, None)
    assert "no state dropout" in why_not_cudnn(params, state.h)
    gru, *arrays = random_problem("gru", T, B, I, H)
    with pytest.raises(UserError, match="cudnn: JAX offers cuDNN for the LSTM only: choose"):
        unroll_cudnn(gru, *jax.tree.map(jnp.asarray, arrays))


def reference(params, state, xs, lengths):
    """Runs JAX's reference implementation of cuDNN's LSTM on the packed weights."""
    sizes = (I, H, 1)
    weights = rnn.unpack_lstm_weights(cudnn_weights(params), *sizes, False)
    batch_major = jnp.swapaxes(xs, 0, 1)
    ys, h, c = rnn.lstm_ref(
        batch_major, state.h[None], state.c[None], *weights, lengths, *sizes, 0.0, False
    )
    return LSTMState(h[0], c[0]), jnp.swapaxes(ys, 0, 1)


@every_mask
@pytest.mark.parametrize("reverse", [False, True])
def test_any_mask_comes_to_cudnn_as_lengths(mask, reverse):
    """Compares values and gradients of JAX's reference of cuDNN's LSTM with `unroll`."""
    cell, *arrays = random_problem("lstm", T, B, I, H)
    lengths_dtypes = []

    def lstm(params, state, xs, lengths):
        lengths_dtypes.append(lengths.dtype)
        return reference(params, state, xs, lengths)

    def by_lengths(cell, params, state, xs, *, mask=None, reverse=False):
        return run_by_lengths(lstm, params, state, xs, mask, reverse)

    options = {"mask": MASKS[mask], "reverse": reverse}
    got, want = (
        values_and_gradients(run, cell, *arrays, **options) for run in (by_lengths, unroll)
    )
    assert relative_error(got, want) < 1e-6  # float32 rounding
    assert set(lengths_dtypes) == {np.dtype("int32")}


def test_padding_that_is_no_number_does_not_reach_cudnn():
    _, params, state, xs = random_problem("lstm", T, B, I, H)
    mask = jnp.asarray(MASKS["holes"])
    soiled = jnp.where(mask[..., None], xs, jnp.nan)
    run = jax.jit(partial(run_by_lengths, reference, reverse=False))
    got = run(params, state, soiled, mask=mask)
    assert_same(got, run(params, state, xs, mask=mask))


def test_cudnn_is_called_with_full_float32(monkeypatch):
    calls = []

    def lstm(xs, h, c, weights, lengths, *options):
        calls.append((xs.shape, h.shape, weights.shape, options))
        return xs[..., :1] * jnp.ones(H), h, c

    monkeypatch.setattr(seqjax.nn.cudnn, "has_cudnn", lambda: True)
    monkeypatch.setattr(seqjax.nn.cudnn.rnn, "lstm", lstm)
    cell, *arrays = random_problem("lstm", T, B, I, H)
    end, ys = unroll_cudnn(cell, *jax.tree.map(jnp.asarray, arrays))
    assert ys.shape == (T, B, H) and end.h.shape == (B, H)
    packed = (4 * H * (I + H + 2),)
    options = (I, H, 1, 0.0, False, jax.lax.Precision.HIGHEST)
    assert calls == [((B, T, I), (1, B, H), packed, options)]
