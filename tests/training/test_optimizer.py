"""Optimizers compared with Keras'; clipping, accumulation, averaged parameters, schedules."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import keras_layer, keras_weights, make_layer, random_like, relative_error

from seqjax.errors import UserError
from seqjax.losses import cross_entropy
from seqjax.nn.layers import Dense, Recurrent
from seqjax.training.optimizer import make_optimizer
from seqjax.training.train_step import init_train_state, make_train_step

STEPS, B, T, I, H, C = 20, 6, 5, 4, 5, 3  # noqa: E741
PARAMS = {"a": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}, "b": jnp.array([0.25, -4.0])}
PLAIN = {
    "name": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "clip_norm": 0.0,
    "clip_value": 0.0,
    "accumulate_steps": 1,
    "ema_decay": 0.0,
    "steps_per_epoch": 10,
    "num_epochs": 4,
}


@cache  # equal options are compiled once
def optimizer_of(**options):
    return make_optimizer(**PLAIN | options)


@partial(jax.jit, static_argnums=0)
def run(optimizer, params, gradients, values=None):
    """Returns the stacked parameters, updates and states after each of the stacked gradients."""
    values = jnp.ones(len(jax.tree.leaves(gradients)[0])) if values is None else values

    def body(carry, inputs):
        params, state = carry
        gradient, value = inputs
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates, state)

    return jax.lax.scan(body, (params, optimizer.init(params)), (gradients, values))[1]


def gradients_for(steps, seed=0, scale=1.0):
    shapes = jax.tree.map(lambda p: jnp.zeros((steps, *p.shape)), PARAMS)
    return random_like(shapes, seed, scale=scale)


# Comparison with Keras

KERAS = {
    "keras_adam": ("Adam", {}),
    "keras_adam(b1=0.8, b2=0.9, eps=0.001)": (
        "Adam",
        {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3},
    ),
    "rmsprop": ("RMSprop", {}),
    "rmsprop(decay=0.8, eps=0.01)": ("RMSprop", {"rho": 0.8, "epsilon": 0.01}),
    "rmsprop(momentum=0.7)": ("RMSprop", {"momentum": 0.7}),
    "rmsprop(centered=True)": ("RMSprop", {"centered": True}),
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "momentum(momentum=0.8, nesterov=True)": ("SGD", {"momentum": 0.8, "nesterov": True}),
}


def keras_optimizer(name, rate):
    import keras

    kind, options = KERAS[name]
    return getattr(keras.optimizers, kind)(rate, **options)


@pytest.mark.parametrize("name", KERAS)
def test_updates_are_those_of_keras(name):
    import keras

    gradients = gradients_for(STEPS)
    params, _, _ = run(optimizer_of(name=name, learning_rate=0.05), PARAMS, gradients)
    optimizer = keras_optimizer(name, 0.05)
    leaves, treedef = jax.tree.flatten(PARAMS)
    optimizer.build([keras.Variable(p) for p in leaves])

    def body(carry, gradients):
        params, slots = optimizer.stateless_apply(carry[1], gradients, carry[0])
        return (params, slots), params

    slots = [v.value for v in optimizer.variables]
    steps = jax.jit(partial(jax.lax.scan, body))
    _, expected = steps((leaves, slots), jax.tree.leaves(gradients))
    # Twenty steps in float32 (which rounds by 6e-8), each with a square root and a quotient.
    assert relative_error(params, jax.tree.unflatten(treedef, expected)) < 2e-6


BATCH = {
    "x": random_like(jax.ShapeDtypeStruct((B, T, I), jnp.float32), 0, scale=1.0),
    "label": jnp.arange(B) % C,
    "weight": jnp.ones(B),
}


def our_curve(cell, params, optimizer):
    _, layer = make_layer(Recurrent, cell, I, H)
    _, dense = make_layer(Dense, H, C)

    def measure(params, batch, keys=None, **_):
        logits = dense(params["dense"], layer(params["layer"], batch["x"]))
        return {"loss": cross_entropy(logits, batch["label"], batch["weight"])}

    step = make_train_step(measure, optimizer)

    @jax.jit
    def train(state):
        body = lambda state, _: step(state, BATCH, jax.random.key(0))  # noqa: E731
        return jax.lax.scan(body, state, length=STEPS)

    state, (metrics, *_) = train(init_train_state(params, optimizer))
    assert state.step == STEPS
    return np.asarray(metrics["loss"].total / metrics["loss"].weight)


def keras_curve(cell, params, optimizer):
    import keras

    model = keras.Sequential([keras.Input((T, I)), keras_layer(cell, I, H), keras.layers.Dense(C)])
    weights = [params["dense"]["kernel"], params["dense"]["bias"]]
    model.set_weights(keras_weights(cell, params["layer"]["weights"]) + weights)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fixed = [v.value for v in model.non_trainable_variables]
    optimizer.build(model.trainable_variables)

    def loss(weights):
        logits, _ = model.stateless_call(weights, fixed, BATCH["x"], training=True)
        return loss_of(BATCH["label"], logits)

    def body(carry, _):
        value, gradients = jax.value_and_grad(loss)(carry[0])
        return optimizer.stateless_apply(carry[1], gradients, carry[0]), value

    weights = [v.value for v in model.trainable_variables]
    slots = [v.value for v in optimizer.variables]
    return jax.jit(lambda carry: jax.lax.scan(body, carry, length=STEPS))((weights, slots))[1]


@pytest.mark.parametrize(
    "cell, name",
    [
        ("lstm", "keras_adam"),
        ("gru", "rmsprop"),
    ],
)
def test_loss_curves_are_those_of_keras(cell, name):
    shapes = {"layer": make_layer(Recurrent, cell, I, H)[0], "dense": make_layer(Dense, H, C)[0]}
    params = random_like(shapes, 5)
    ours = our_curve(cell, params, optimizer_of(name=name, learning_rate=0.01))
    expected = keras_curve(cell, params, keras_optimizer(name, 0.01))
    assert ours[-1] < 0.9 * ours[0]
    # Float32 rounds by 6e-8, and quotients of small gradients magnify that.
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# What Keras does not have, or does otherwise


def test_weight_decay_shrinks_what_has_no_gradient():
    zeros = jax.tree.map(jnp.zeros_like, gradients_for(3))
    optimizer = optimizer_of(name="adamw(weight_decay=0.5)")
    params, _, _ = run(optimizer, PARAMS, zeros)
    expected = jax.tree.map(lambda p: np.stack([p * 0.95**n for n in (1, 2, 3)]), PARAMS)
    assert relative_error(params, expected) < 1e-6  # 0.95 = 1 - learning rate x decay; float32


@given(scale=st.floats(0.01, 100))
def test_clipping_by_norm_keeps_the_direction(scale):
    gradients = gradients_for(4, scale=scale)
    _, updates, _ = run(optimizer_of(clip_norm=0.5, learning_rate=1.0), PARAMS, gradients)
    for step in range(4):
        g, u = (
            np.concatenate([np.ravel(x[step]) for x in jax.tree.leaves(tree)])
            for tree in (gradients, updates)
        )
        expected = -g * min(1, 0.5 / np.linalg.norm(g))
        np.testing.assert_allclose(u, expected, rtol=1e-5)  # float32


def test_clipping_by_value_comes_first():
    gradients = gradients_for(4, scale=2.0)
    options = {"clip_value": 0.5, "learning_rate": 1.0}
    _, updates, _ = run(optimizer_of(**options), PARAMS, gradients)
    clipped = jax.tree.map(lambda g: -np.clip(g, -0.5, 0.5), gradients)
    assert relative_error(updates, clipped) < 1e-6
    _, updates, _ = run(optimizer_of(**options, clip_norm=0.8), PARAMS, gradients)
    norms = np.sqrt(sum(np.sum(x.reshape(4, -1) ** 2, axis=1) for x in jax.tree.leaves(clipped)))
    assert np.all(norms > 0.8)
    expected = jax.tree.map(lambda x: 0.8 * x / norms.reshape(4, *[1] * (x.ndim - 1)), clipped)
    assert relative_error(updates, expected) < 1e-6


@pytest.mark.parametrize("name", ["sgd", "keras_adam", "rmsprop(momentum=0.9)"])
def test_accumulating_k_batches_is_one_of_k_times_the_size(name):
    gradients = gradients_for(6)
    params, updates, _ = run(optimizer_of(name=name, accumulate_steps=3), PARAMS, gradients)
    means = jax.tree.map(lambda g: g.reshape(2, 3, *g.shape[1:]).mean(axis=1), gradients)
    expected, _, _ = run(optimizer_of(name=name), PARAMS, means)
    assert relative_error(jax.tree.map(lambda p: p[2::3], params), expected) < 1e-6  # float32 sums
    for step in (0, 1, 3, 4):
        assert not any(np.any(u[step]) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_the_mean_of_the_parameters_is_what_evaluates(accumulate_steps):
    gradients = gradients_for(6)
    optimizer = optimizer_of(ema_decay=0.8, accumulate_steps=accumulate_steps)
    params, _, states = run(optimizer, PARAMS, gradients)
    mean = PARAMS
    for step in range(accumulate_steps - 1, 6, accumulate_steps):
        new = jax.tree.map(lambda p, step=step: p[step], params)
        mean = jax.tree.map(lambda m, p: 0.8 * m + 0.2 * np.float64(p), mean, new)
    end = jax.tree.map(lambda s: s[-1], states)
    assert relative_error(optimizer.eval_params(new, end), mean) < 1e-6
    plain, _, _ = run(optimizer_of(accumulate_steps=accumulate_steps), PARAMS, gradients)
    assert relative_error(params, plain) < 1e-7  # training does not use the mean


def test_without_a_mean_the_parameters_themselves_evaluate():
    optimizer = optimizer_of()
    assert optimizer.eval_params(PARAMS, optimizer.init(PARAMS)) is PARAMS


# Schedules, of 4 epochs of 10 steps and a learning rate of 0.1

SCHEDULES = {
    "constant": {0: 0.1, 39: 0.1},
    "warmup": {0: 0, 5: 0.05, 10: 0.1, 39: 0.1},
    "warmup(epochs=0.5)": {0: 0, 1: 0.02, 5: 0.1},
    "cosine": {0: 0.1, 10: 0.05 * (1 + np.sqrt(0.5)), 20: 0.05, 40: 0, 50: 0},
    "cosine(warmup_epochs=2.0)": {0: 0, 10: 0.05, 20: 0.1, 30: 0.05, 40: 0},
    "cosine(final_factor=0.1)": {0: 0.1, 20: 0.055, 40: 0.01},
    "exponential": {0: 0.1, 5: 0.1 * np.sqrt(0.5), 10: 0.05, 30: 0.0125},
    "exponential(factor=0.9, epochs=2.0)": {0: 0.1, 20: 0.09, 40: 0.081},
    "plateau": {0: 0.1, 39: 0.1},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_at_known_steps(schedule):
    optimizer = optimizer_of(schedule=schedule)
    _, _, states = run(optimizer, PARAMS, gradients_for(51), jnp.linspace(5.0, 1.0, 51))
    rates = jax.vmap(optimizer.learning_rate)(states)
    for step, rate in SCHEDULES[schedule].items():
        assert rates[step] == pytest.approx(rate, rel=1e-6, abs=1e-8)  # float32


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("schedule", ["cosine(warmup_epochs=1.0)", "exponential", "plateau"])
def test_the_rate_that_is_told_is_the_rate_that_is_used(schedule, accumulate_steps):
    optimizer = optimizer_of(schedule=schedule, accumulate_steps=accumulate_steps)
    ones = jax.tree.map(jnp.ones_like, gradients_for(60))
    _, updates, states = run(optimizer, PARAMS, ones)
    states = jax.device_get(states)
    for step in range(accumulate_steps - 1, 60, accumulate_steps):
        state = jax.tree.map(lambda s, step=step: s[step], states)
        rate = optimizer.learning_rate(state)
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_allclose(leaf[step], -rate, rtol=1e-6, atol=1e-8)  # float32 of 0.1


@pytest.mark.parametrize(
    "values, rates",
    [
        # The loss of each epoch and the factor of the learning rate after it. Three epochs without
        # a lower loss halve the rate.
        ([5, 4, 3, 2, 1, 0.5, 0.4, 0.3], [1] * 8),
        ([5, 5, 5, 5, 5, 5, 5, 5], [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ([5, 6, 7, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1, 0.5, 0.5]),
        ([5, 4.9999, 4.9998, 4.9997, 4, 3, 2, 1], [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_plateau_lowers_the_rate_after_its_patience(values, rates, accumulate_steps):
    optimizer = optimizer_of(schedule="plateau", accumulate_steps=accumulate_steps)
    gradients = jax.tree.map(jnp.ones_like, gradients_for(80))
    noise = jnp.tile(jnp.array([0.5, -0.5] if accumulate_steps == 1 else [9.0, 0.0]), 40)
    losses = jnp.repeat(jnp.array(values, jnp.float32), 10) + noise
    states = jax.device_get(run(optimizer, PARAMS, gradients, losses)[2])
    for epoch, rate in enumerate(rates):
        state = jax.tree.map(lambda s, epoch=epoch: s[10 * epoch + 9], states)
        assert optimizer.learning_rate(state) == pytest.approx(0.1 * rate)


# Options that are refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "addam"}, "unknown optimizer 'addam': did you mean 'adam'"),
        ({"name": "adam(beta=0.9)"}, "beta.*options of adam: b1, b2, eps"),
        ({"name": "sgd(0.5)"}, "options of sgd: none"),
        ({"name": "sgd(learning_rate=0.5)"}, "options of sgd: none"),
        ({"name": "adam("}, "cannot read optimizer 'adam\\('"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"schedule": "exponential(rate=2)"}, "rate.*options of exponential: factor, epochs"),
        ({"schedule": "warmup(per_epoch=1)"}, "options of warmup: epochs"),
        ({"learning_rate": 0.0}, "optim.learning_rate=0.0 must be positive"),
        ({"learning_rate": -0.1}, "optim.learning_rate=-0.1 must be positive"),
        ({"learning_rate": float("nan")}, "optim.learning_rate=nan must be positive"),
        ({"clip_norm": -1.0}, "optim.clip_norm=-1.0 must be at least 0"),
        ({"clip_value": -1.0}, "optim.clip_value=-1.0 must be at least 0"),
        ({"accumulate_steps": 0}, "optim.accumulate_steps=0 must be at least 1"),
        ({"ema_decay": 1.0}, "optim.ema_decay=1.0 must be in"),
        ({"ema_decay": -0.1}, "optim.ema_decay=-0.1 must be in"),
        ({"num_epochs": 2**31}, "train.num_epochs=2147483648 makes [0-9]+ steps, above 2147483647"),
        ({"schedule": "exponential(factor=-1)"}, "factor=-1.0 must be positive"),
        ({"schedule": "cosine(warmup_epochs=-1)"}, "warmup_epochs=-1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        optimizer_of(**options)
