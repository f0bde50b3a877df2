"""train.compute_dtype: what is rounded to bfloat16, and what is not."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.oracles import (
    OUTPUT_CELL,
    make_layer,
    numpy_step,
    random_like,
    random_problem,
    relative_error,
    weighted_sum,
)
from support.shapes import B, H, I, T
from support.toys import tiny_config

from seqjax.data.batching import take_rows
from seqjax.errors import UserError
from seqjax.nn.attention import Attention
from seqjax.nn.backends import find_unroll
from seqjax.nn.cells import lstm, with_compute_dtype
from seqjax.nn.cudnn import why_not_cudnn
from seqjax.nn.layers import Dense, functional
from seqjax.nn.precision import einsum, product
from seqjax.parameters import parameter_shapes
from seqjax.tasks.registry import make_task
from seqjax.training.optimizer import make_optimizer
from seqjax.training.train_step import init_train_state, make_train_step

STEP = 2.0**-8  # the largest relative error of rounding to bfloat16


def rounded(tree):
    """Returns float64 arrays of values that bfloat16 can hold."""
    return jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(float), tree)


def test_a_product_and_its_gradients_round_their_operands():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, B, I), (I, H), (2, B, H))]
    x, w, gradient = random_like(shapes, seed=0)
    y, pull_back = jax.vjp(partial(product, compute_dtype="bfloat16"), x, w)
    (x_, w_, gradient_), rows = rounded((x, w, gradient)), (-1, I)
    assert {a.dtype for a in (y, *pull_back(gradient))} == {np.dtype("float32")}
    assert relative_error(y, x_ @ w_) < 1e-6 < STEP / 100 < relative_error(y, x @ w)
    wanted = gradient_ @ w_.T, x_.reshape(rows).T @ gradient_.reshape(-1, H)
    assert relative_error(pull_back(gradient), wanted) < 1e-6
    plain = jax.make_jaxpr(partial(product, compute_dtype="float32"))(x[0], w)
    assert str(plain) == str(jax.make_jaxpr(lambda x, w: x @ w)(x[0], w))


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(I,), (B, I), (2, B, I), (2, 0, I), (2, 3, B, I)])
def test_products_have_one_axis_of_rows_also_in_the_backward_pass(shape, compute_dtype):
    x, w = (np.ones(s, np.float32) for s in (shape, (I, H)))

    def total(x, w):
        return product(x, w, compute_dtype).sum()

    assert product(x, w, compute_dtype).shape == (x @ w).shape
    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, w)
    products = re.findall(r"\w+:[bf]+(?:32|16|f16)\[([\d,]*)\] = dot_general", str(jaxpr))
    assert len(products) >= 2 and all(sizes.count(",") == 1 for sizes in products)


def test_batched_products_round_their_operands():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, T, I), (B, H, I), (B, T, H))]
    a, b, gradient = random_like(shapes, seed=1)
    y, pull_back = jax.vjp(lambda a, b: einsum("btq,bsq->bts", a, b, "bfloat16"), a, b)
    a_, b_, gradient_ = rounded((a, b, gradient))
    assert relative_error(y, a_ @ b_.swapaxes(1, 2)) < 1e-6
    wanted = gradient_ @ b_, gradient_.swapaxes(1, 2) @ a_
    assert relative_error(pull_back(gradient), wanted) < 1e-6


def test_a_dense_layer_adds_its_bias_in_float32():
    params, call = make_layer(Dense, I, H, compute_dtype="bfloat16")
    x = np.random.default_rng(0).standard_normal((B, I)).astype(np.float32)
    wanted = rounded(x) @ rounded(params["kernel"]) + params["bias"]
    assert relative_error(call(params, x), wanted) < 1e-6


def test_a_step_of_an_lstm_keeps_states_and_gates_in_float32():
    cell, params, state, xs = random_problem("lstm", 1, B, I, H)
    cell = with_compute_dtype(cell, "bfloat16")
    new, _ = jax.jit(cell.step)(params, state, cell.project(params, xs[0]))
    weights = params._replace(w_x=rounded(params.w_x), w_h=rounded(params.w_h))
    wanted = numpy_step("lstm", weights, (rounded(state.h), state.c), rounded(xs[0]))
    assert relative_error(tuple(new), wanted) < 1e-6
    exact = numpy_step("lstm", params, state, xs[0])
    assert 1e-4 < relative_error(tuple(new), exact) < 4 * STEP
    assert {x.dtype for x in new} == {np.dtype("float32")}


@partial(jax.jit, static_argnums=(0, 1))
def outputs_and_gradients(run, cell, *problem):
    def objective(params, state, xs):
        mask = jnp.arange(T)[:, None] < jnp.array([4, 0, T, 1])
        outputs = run(cell, params, state, xs, mask=mask)
        return weighted_sum(outputs), outputs

    return jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(*problem)


@pytest.mark.parametrize("spec", ["lstm", "gru(reset_after=False)"])
def test_backends_agree_also_with_remat(spec):
    """An operand that lies between two values of bfloat16 may be rounded either way."""
    cell, *problem = random_problem(spec, T, B, I, H)
    low = with_compute_dtype(cell, "bfloat16")
    assert low is with_compute_dtype(cell, "bfloat16")  # so jit does not compile twice
    runs = [find_unroll("scan"), find_unroll("fused", remat=spec == "lstm")]
    scan, fused = (outputs_and_gradients(run, low, *problem) for run in runs)
    assert relative_error(fused, scan) < 2 * STEP
    assert {x.dtype for x in jax.tree.leaves((scan, fused))} == {np.dtype("float32")}
    assert 1e-4 < relative_error(scan, outputs_and_gradients(runs[0], cell, *problem)) < 16 * STEP


def lowered(name, compute_dtype, **options):
    """Returns the lowered programs of a train step and of a prediction."""
    config = tiny_config(name, compute_dtype=compute_dtype).unlock()
    config.update_from_flattened_dict(options)
    task = make_task(config.lock())
    rows, weight = task.splits["train"], np.ones(config.train.batch_size, np.float32)
    batch = take_rows(rows, np.zeros(len(weight), np.int32), weight)
    optimizer = make_optimizer(**config.optim, steps_per_epoch=1, num_updates=1)
    params = parameter_shapes(task.init)
    state = jax.eval_shape(lambda params: init_train_state(params, optimizer), params)
    step = make_train_step(task.loss_and_metrics, optimizer)
    return [
        jax.jit(step).lower(state, batch, jax.random.key(0)),
        jax.jit(task.predict).lower(params, batch),
    ]


PRODUCT = re.compile(r"stablehlo\.dot_general.* : \((.*)\) -> tensor<(.*)>")
ALL_PRODUCTS = {
    "model.attention": "general",
    "model.input_feeding": True,
    "model.bidirectional": True,
    "model.tie_output": True,
}


@pytest.mark.parametrize(
    ("name", "compute_dtype", "options"),
    [
        ("recall", "float32", {}),
        ("recall", "bfloat16", {"train.backend": "scan"}),
        ("cafe_chatbot", "bfloat16", ALL_PRODUCTS),
    ],
)
def test_all_products_of_a_step_and_a_prediction_take_bfloat16(name, compute_dtype, options):
    operand = {"bfloat16": "bf16", "float32": "f32"}[compute_dtype]
    for program in lowered(name, compute_dtype, **options):
        text = program.as_text()
        products = PRODUCT.findall(text)
        assert len(products) == text.count("stablehlo.dot_general") > 2
        for inputs, output in products:
            assert re.fullmatch(rf"(tensor<[\dx]+x{operand}>(, )?){{2}}", inputs)
            assert output.endswith("xf32")
        # Nothing but operands is ever in bfloat16: no sum, no state of a loop, no result.
        others = re.findall(r"stablehlo\.(?:while|add|reduce|multiply|tanh|exp).*", text)
        assert others and not any("bf16" in line for line in others)
        dtypes = {str(x.dtype) for x in jax.tree.leaves(program.out_info)}
        assert "float32" in dtypes and dtypes <= {"float32", "int32", "bool"}
        assert ("bf16" in text) == (compute_dtype == "bfloat16")


def test_attention_rounds_scores_and_contexts():
    options = {"compute_dtype": "bfloat16"}
    init, bind = functional(lambda rngs: Attention("dot", I, I, **options, rngs=rngs))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, T, I), (B, H, I))]
    queries, values = random_like(shapes, seed=2)
    attention = bind(init(jax.random.key(0)))
    contexts, weights = attention(queries, attention.memory(values, jnp.ones((B, H), bool)))
    scores = np.exp(rounded(queries) @ rounded(values).swapaxes(1, 2))
    wanted = scores / scores.sum(-1, keepdims=True)
    assert relative_error(weights, wanted) < 1e-6
    assert relative_error(contexts, rounded(weights) @ rounded(values)) < 1e-6


def test_what_cannot_be_in_bfloat16_is_refused():
    with pytest.raises(UserError, match="unknown train.compute_dtype 'float16': .*bfloat16"):
        with_compute_dtype(lstm(), "float16")
    opaque = OUTPUT_CELL._replace(recurrent_matmuls=(), combine=None, gate=None)
    assert with_compute_dtype(opaque, "float32") is opaque
    with pytest.raises(UserError, match="=bfloat16: this cell has only a step: choose float32"):
        with_compute_dtype(opaque, "bfloat16")
    params = jax.eval_shape(lambda: lstm().init(jax.random.key(0), I, H))
    assert "float32 only, not in bfloat16" in why_not_cudnn(params, None, "bfloat16")
