"""The fused backend: it has the values and gradients of the scan, for every cell and option."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads
from support.oracles import (
    CELLS,
    assert_same,
    random_like,
    random_problem,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T

from seqjax.errors import UserError
from seqjax.nn.fused import unroll_fused
from seqjax.nn.unroll import unroll

MASKS = {
    "whole": None,
    "lengths": np.arange(T)[:, None] < np.array([4, 0, T, 1]),
    "holes": np.random.default_rng(0).random((T, B)) < 0.6,
}


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("reverse", "hoist"))
def values_and_gradients(run, cell, params, state, xs, scale, **options):
    """Returns gradients of a weighted sum of the outputs, and the outputs."""

    def objective(params, state, xs, scale):
        outputs = run(cell, params, state, xs, state_scale=scale, **options)
        return weighted_sum(outputs), outputs

    arguments = (0, 1, 2) if scale is None else (0, 1, 2, 3)
    return jax.grad(objective, argnums=arguments, has_aux=True)(params, state, xs, scale)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spec, reverse, dropped", [*product(CELLS, (False, True), (False, True))])
def test_fused_is_the_scan(spec, mask, reverse, dropped):
    """Compares outputs, last state and all gradients in float64."""
    with jax.enable_x64(True):
        cell, params, state, xs = random_problem(spec, T, B, I, H, dtype=np.float64)
        scale = random_like(state.h, 5, np.float64) if dropped else None
        arguments = (cell, params, state, xs, scale)
        got, want = (
            values_and_gradients(run, *arguments, mask=MASKS[mask], reverse=reverse)
            for run in (unroll_fused, unroll)
        )
        assert jax.tree.leaves(got)[0].dtype == np.float64
    assert relative_error(got, want) < 1e-13  # the epsilon is 2e-16


@pytest.mark.parametrize("spec", CELLS)
def test_in_float32_too(spec):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    got, want = (
        values_and_gradients(run, cell, params, state, xs, None, mask=MASKS["lengths"])
        for run in (unroll_fused, unroll)
    )
    assert relative_error(got, want) < 1e-6  # float32 rounding
    hoisted = values_and_gradients(
        unroll_fused, cell, params, state, xs, None, mask=MASKS["lengths"], hoist=True
    )
    assert relative_error(hoisted, want) < 1e-6


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spec", CELLS)
def test_gradients_are_the_slopes(spec, mask):
    """Compares first and second derivatives with finite differences."""
    with jax.enable_x64(True):
        cell, *arguments = random_problem(spec, 3, 2, 2, 2, dtype=np.float64)
        keep = None if MASKS[mask] is None else jnp.asarray(MASKS[mask][:3, :2])

        def run(params, state, xs):
            return weighted_sum(unroll_fused(cell, params, state, xs, mask=keep))

        check_grads(jax.jit(run), tuple(arguments), order=2, modes=("rev",), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", CELLS)
def test_a_hessian_is_that_of_the_scan(spec):
    """A Hessian is forward mode over reverse mode."""
    with jax.enable_x64(True):
        cell, *arrays = random_problem(spec, 3, 2, 2, 2, dtype=np.float64)
        params, state, xs = jax.tree.map(jnp.asarray, arrays)
        got, want = (
            jax.jit(jax.hessian(lambda s, run=run: weighted_sum(run(cell, params, s, xs))))(state)
            for run in (unroll_fused, unroll)
        )
    assert relative_error(got, want) < 1e-12


@pytest.mark.parametrize("padding", [np.inf, np.nan])
def test_what_stands_in_the_padding_changes_nothing(padding):
    cell, params, state, xs = random_problem("lstm", T, B, I, H)
    mask = MASKS["lengths"]
    soiled = np.where(mask[..., None], xs, np.float32(padding))
    got, want = (
        jax.device_get(values_and_gradients(unroll_fused, cell, params, state, x, None, mask=mask))
        for x in (soiled, xs)
    )
    assert_same(got, want)
    by_inputs = got[0][2]
    assert not np.any(by_inputs[~mask]) and np.all(by_inputs[mask])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("spec", CELLS)
def test_an_empty_row_keeps_its_state_and_has_no_gradient(spec, reverse):
    cell, params, state, xs = random_problem(spec, T, B, I, H)
    mask = jnp.asarray(MASKS["lengths"])

    def objective(params, state, xs):
        end, ys = unroll_fused(cell, params, state, xs, mask=mask, reverse=reverse)
        row = jax.tree.map(lambda x: x[1], end)
        return weighted_sum((row, ys[:, 1])), (row, ys[:, 1])

    run = jax.jit(jax.grad(objective, argnums=(0, 1, 2), has_aux=True))
    (by_params, by_state, by_xs), (end, ys) = jax.device_get(run(params, state, xs))
    assert_same(end, jax.tree.map(lambda x: x[1], state))
    assert not np.any(ys) and not np.any(by_xs) and not any(map(np.any, by_params))
    assert all(np.all(x[1]) and not np.any(x[0]) for x in by_state)


@pytest.mark.parametrize("spec", CELLS)
def test_members_may_be_vmapped(spec):
    cell, _, state, xs = random_problem(spec, T, B, I, H)
    members = [random_problem(spec, T, B, I, H, seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *ps: np.stack(ps), *members)

    def one(params):
        options = {"mask": MASKS["holes"]}
        return values_and_gradients(unroll_fused, cell, params, state, xs, None, **options)

    each = [one(params) for params in members]
    want = jax.tree.map(lambda *rs: np.stack(rs), *each)
    assert relative_error(jax.jit(jax.vmap(one))(stacked), want) < 1e-6  # float32 rounding


def test_jit_changes_nothing():
    cell, *arrays = random_problem("lstm", T, B, I, H)
    arrays = jax.tree.map(jnp.asarray, arrays)
    want = jax.jit(partial(unroll_fused, cell))(*arrays)
    with jax.disable_jit():
        assert relative_error(unroll_fused(cell, *arrays), want) < 1e-6


def test_the_backward_loop_has_no_weight_gradients():
    """The loop has one matmul per step; weight gradients follow it, over all rows at once."""
    cell, *arrays = random_problem("lstm", T, B, I, H)
    params, state, xs = jax.tree.map(jnp.asarray, arrays)
    grad = jax.grad(lambda p: weighted_sum(unroll_fused(cell, p, state, xs)))
    jaxpr = jax.make_jaxpr(grad)(params).jaxpr
    loops = [products(e.params["jaxpr"].jaxpr) for e in equations(jaxpr, "scan")]
    of_weights = {tuple(sorted(x.shape)) for x in (params.w_x, params.w_h)}
    assert [sorted(shapes) for shapes in loops] == [[(B, 4 * H)] * 2, [(B, H)]]
    assert of_weights <= {tuple(sorted(shape)) for shape in products(jaxpr)}


def equations(jaxpr, name):
    """Yields the equations of a primitive in a jaxpr and the jaxprs it calls, outside of loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        elif equation.primitive.name != "scan":
            for inner in jaxprs_in_params(equation.params):
                yield from equations(getattr(inner, "jaxpr", inner), name)


def products(jaxpr):
    """Returns the shapes of all matmuls outside of loops."""
    return [equation.outvars[0].aval.shape for equation in equations(jaxpr, "dot_general")]


def test_a_cell_of_a_step_alone_is_refused():
    cell, *arrays = random_problem("lstm", T, B, I, H)
    opaque = cell._replace(recurrent_matmuls=(), combine=None, gate=None)
    with pytest.raises(UserError, match="fused: this cell has only a step: choose auto or scan"):
        unroll_fused(opaque, *jax.tree.map(jnp.asarray, arrays))
