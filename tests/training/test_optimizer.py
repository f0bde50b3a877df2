"""Optimizers and the plateau compared with Keras'; clipping, accumulation, averages, schedules."""

import math
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
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
    "num_updates": 40,
}


@cache  # equal options are compiled once
def optimizer_of(**options):
    return make_optimizer(**PLAIN | options)


@partial(jax.jit, static_argnums=0)
def run(optimizer, params, gradients, weights=None, state=None):
    """Returns the stacked parameters, updates and states after each of the stacked gradients.

    The last one ends the run. Without weights each gradient is that of a mean.
    """
    num_steps = len(jax.tree.leaves(gradients)[0])
    weights = jnp.ones(num_steps) if weights is None else jnp.asarray(weights, jnp.float32)
    is_last = jnp.arange(num_steps) == num_steps - 1

    def body(carry, inputs):
        params, state = carry
        gradient, weight, is_last = inputs
        updates, state = optimizer.update(gradient, state, params, weight=weight, is_last=is_last)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates, state)

    state = optimizer.init(params) if state is None else state
    return jax.lax.scan(body, (params, state), (gradients, weights, is_last))[1]


def rates_of(optimizer, params, states):
    """Returns the rate of each step, from the stacked states after the steps."""
    before = jax.tree.map(lambda x, xs: np.stack([x, *xs[:-1]]), optimizer.init(params), states)
    return np.asarray(optimizer.learning_rate(before))


def means_of_windows(gradients, weights, size):
    """Returns the mean gradient of each `size` batches, of which the last may be fewer."""
    starts = np.arange(0, len(weights), size)

    def sums(x):
        return np.add.reduceat(np.asarray(x, np.float64), starts)

    per_window = sums(weights)
    return jax.tree.map(lambda g: sums(g) / per_window.reshape(-1, *[1] * (g.ndim - 1)), gradients)


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


# Sums of so many batches of these weights; the last window is cut short.
WEIGHTS = np.array([2, 13, 0.25, 1, 0, 7, 0.5], np.float32)


@pytest.mark.parametrize("name", ["sgd", "adam", "keras_adam", "rmsprop(momentum=0.9)"])
@pytest.mark.parametrize("size", [1, 3])
def test_accumulating_k_batches_is_one_of_k_times_the_size(name, size):
    weights = WEIGHTS[WEIGHTS > 0] if size == 1 else WEIGHTS
    gradients = gradients_for(len(weights))
    optimizer = optimizer_of(name=name, accumulate_steps=size)
    params, updates, states = run(optimizer, PARAMS, gradients, weights)
    means = means_of_windows(gradients, weights, size)
    expected, _, _ = run(optimizer_of(name=name), PARAMS, jax.tree.map(jnp.float32, means))
    ends = [*range(size - 1, len(weights) - 1, size), len(weights) - 1]
    # Sums, quotients and square roots in float32, which rounds by 6e-8, over three or six updates.
    assert relative_error(jax.tree.map(lambda p: p[np.array(ends)], params), expected) < 2e-6
    for step in set(range(len(weights))) - set(ends):
        assert not any(np.any(u[step]) for u in jax.tree.leaves(updates))
    assert optimizer.num_updates(states)[np.array(ends)].tolist() == [*range(1, len(ends) + 1)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "size, bad, weights, made",
    [
        # Which batches of six are not finite, the weights of the six, and the batches whose mean
        # makes each of the updates.
        (1, {1: NAN, 4: INF}, [1] * 6, [[0], [2], [3], [5]]),
        (1, {}, [1, 2, 0, 0, 3, 4], [[0], [1], [4], [5]]),
        (3, {1: NAN}, [2, 3, 4, 5, 6, 7], [[0, 2], [3, 4, 5]]),
        (3, {2: -INF, 5: NAN}, [2, 3, 4, 5, 6, 7], [[0, 1], [3, 4]]),
        (3, {0: NAN, 1: NAN, 2: NAN}, [2, 3, 4, 5, 6, 7], [[3, 4, 5]]),
        (3, {1: NAN}, [0, 5, 0, 0.5, 0, 0], [[3, 4, 5]]),
        (4, {5: NAN}, [1, 2, 3, 4, 5, 6], [[0, 1, 2, 3], [4]]),
        (4, {4: NAN, 5: NAN}, [1, 2, 3, 4, 5, 6], [[0, 1, 2, 3]]),
        (9, {0: NAN}, [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5]]),
    ],
)
@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_a_batch_that_is_not_finite_is_counted_but_adds_nothing(size, bad, weights, made, what):
    gradients, weights = gradients_for(6), np.array(weights, np.float32)
    # The mean of some of the batches, before those that are not finite become so.
    means = [
        jax.tree.map(lambda g, n=n: np.sum(g[np.array(n)], 0) / weights[n].sum(), gradients)
        for n in made
    ]
    for step, value in bad.items():
        if what == "gradient":
            gradients["b"][step, 1] = value
        else:
            weights[step] = value
    optimizer = optimizer_of(accumulate_steps=size, schedule="exponential", steps_per_epoch=size)
    params, _, states = run(optimizer, PARAMS, gradients, weights)
    expected, end = PARAMS, jax.tree.map(lambda s: s[-1], states)
    for k, mean in enumerate(means):  # the rate is halved after each update, and only then
        expected = jax.tree.map(lambda p, g, k=k: p - 0.1 * 0.5**k * g, expected, mean)
    assert relative_error(jax.tree.map(lambda p: p[-1], params), expected) < 1e-6  # float32 sums
    assert optimizer.num_skipped(states).tolist() == [sum(k <= n for k in bad) for n in range(6)]
    assert optimizer.num_updates(end) == len(made)


def test_a_single_batch_keeps_no_sums():
    state = optimizer_of(name="sgd").init(PARAMS)
    assert max(np.size(x) for x in jax.tree.leaves(state)) == 1


@pytest.mark.parametrize("size", [1, 3])
def test_the_state_of_stacked_trials_is_read_for_each(size):
    """Two trials of other rates, numbers of steps and bad batches are read as each alone."""
    bad = gradients_for(8)
    bad["b"][2, 0] = np.nan
    alone, optimizers = [], []
    for rate, gradients in ((0.1, gradients_for(4)), (0.3, bad)):
        options = {"ema_decay": 0.5, "accumulate_steps": size, "schedule": "warmup(epochs=2.0)"}
        optimizers.append(optimizer_of(learning_rate=rate, **options))
        states = run(optimizers[-1], PARAMS, gradients)[2]
        alone.append(jax.tree.map(lambda x: x[-1], states))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *alone)
    for read in ("learning_rate", "num_skipped", "num_updates"):
        expected = [getattr(o, read)(s) for o, s in zip(optimizers, alone, strict=True)]
        assert expected[0] != expected[1]
        np.testing.assert_allclose(getattr(optimizers[0], read)(stacked), expected, rtol=1e-6)
    assert optimizers[0].eval_params({}, stacked)["b"].shape == (2, 2)


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
    _, _, states = run(optimizer, PARAMS, gradients_for(51))
    rates = rates_of(optimizer, PARAMS, states)
    for step, rate in SCHEDULES[schedule].items():
        assert rates[step] == pytest.approx(rate, rel=1e-6, abs=1e-8)  # float32


# The factor of update k of K, of which there are `per_epoch` in an epoch.
FORMULAS = {
    "cosine": lambda k, K, per_epoch: (1 + np.cos(np.pi * k / K)) / 2,
    "warmup(epochs=2.0)": lambda k, K, per_epoch: np.minimum(1, k / (2 * per_epoch)),
    "exponential(epochs=1.5)": lambda k, K, per_epoch: 0.5 ** (k / (1.5 * per_epoch)),
    "cosine(warmup_epochs=1.0, final_factor=0.1)": lambda k, K, per_epoch: np.where(
        k < per_epoch,
        k / per_epoch,
        0.1 + 0.9 * (1 + np.cos(np.pi * (k - per_epoch) / max(1, K - per_epoch))) / 2,
    ),
}
# Steps per epoch, epochs and batches per update. Most do not divide; the last run is one update.
LENGTHS = [(107, 20, 54), (3, 12, 4), (3, 20, 2), (7, 10, 4), (10, 10, 4), (12, 10, 4), (15, 1, 16)]


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("steps_per_epoch, num_epochs, size", LENGTHS)
def test_schedules_count_the_updates_of_the_run(schedule, steps_per_epoch, num_epochs, size):
    steps = steps_per_epoch * num_epochs
    num_updates = math.ceil(steps / size)
    lengths = {"steps_per_epoch": steps_per_epoch, "num_updates": num_updates}
    optimizer = optimizer_of(schedule=schedule, accumulate_steps=size, learning_rate=1.0, **lengths)
    params = {"w": jnp.zeros(())}
    _, updates, states = run(optimizer, params, {"w": jnp.ones(steps)})
    made = np.flatnonzero(np.diff(optimizer.num_updates(states), prepend=0))
    assert len(made) == num_updates
    expected = FORMULAS[schedule](np.arange(num_updates), num_updates, steps_per_epoch / size)
    # Float32 cosines of angles up to pi, which it rounds by 1e-7.
    np.testing.assert_allclose(-updates["w"][made], expected, atol=5e-7)
    rates = rates_of(optimizer, params, states)
    np.testing.assert_allclose(rates, expected[np.arange(steps) // size], atol=5e-7)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("schedule", ["cosine(warmup_epochs=1.0)", "exponential", "plateau"])
def test_the_rate_that_is_told_is_the_rate_that_is_used(schedule, accumulate_steps):
    optimizer = optimizer_of(schedule=schedule, accumulate_steps=accumulate_steps)
    ones = jax.tree.map(jnp.ones_like, gradients_for(60))
    _, updates, states = run(optimizer, PARAMS, ones)
    rates = rates_of(optimizer, PARAMS, states)
    for step in range(accumulate_steps - 1, 60, accumulate_steps):
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_allclose(leaf[step], -rates[step], rtol=1e-6, atol=1e-8)  # float32


# The plateau


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_the_factor_of_a_plateau_scales_the_next_updates(accumulate_steps):
    optimizer = optimizer_of(schedule="plateau", accumulate_steps=accumulate_steps)
    ones = jax.tree.map(jnp.ones_like, gradients_for(4))
    state = optimizer.init(PARAMS)
    for factor in (1.0, 0.5, 0.125):
        new = optimizer.with_factor(state, factor)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, state)
        assert optimizer.learning_rate(new) == pytest.approx(0.1 * factor)
        _, updates, states = run(optimizer, PARAMS, ones, state=new)
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_allclose(leaf[-1], -0.1 * factor, rtol=1e-6)  # float32
        state = jax.tree.map(lambda s: s[-1], states)
        assert optimizer.learning_rate(state) == pytest.approx(0.1 * factor)


def test_each_of_stacked_trials_has_a_factor_of_its_own():
    optimizer = optimizer_of(schedule="plateau")
    state = jax.tree.map(lambda x: jnp.stack([x, x]), optimizer.init(PARAMS))
    state = optimizer.with_factor(state, np.array([0.5, 0.25]))
    np.testing.assert_allclose(optimizer.learning_rate(state), [0.05, 0.025], rtol=1e-6)
    both = optimizer.learning_rate(optimizer.with_factor(state, 0.75))
    np.testing.assert_allclose(both, [0.075, 0.075], rtol=1e-6)


def plateau_of(**options):
    named = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return optimizer_of(schedule=f"plateau({named})").plateau


@pytest.mark.parametrize(
    "values, rates",
    [
        # The loss of each epoch and the factor of the learning rate after it. Three epochs without
        # a lower loss halve the rate.
        ([5, 4, 3, 2, 1, 0.5, 0.4, 0.3], [1] * 8),
        ([5, 5, 5, 5, 5, 5, 5, 5], [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ([5, 6, 7, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1, 0.5, 0.5]),
        ([5, 4.99995, 4.9999, 4.99985, 4, 3, 2, 1], [1, 1, 1, 1, 1, 1, 1, 1]),
        ([5, 4.99995, 4.99992, 4.99991, 4, 3, 2, 1], [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ([5, None, NAN, 5, 4, None, None, NAN], [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]),
        ([None, NAN, 9, 8, None, None, None, 7], [1, 1, 1, 1, 1, 1, 0.5, 0.5]),
        ([None, None, None, 8], [1, 1, 0.5, 0.5]),
    ],
)
def test_a_plateau_lowers_the_rate_after_its_patience(values, rates):
    plateau, values = plateau_of(), [None if x is None else float(x) for x in values]
    assert [plateau.scale(values[: n + 1]) for n in range(len(values))] == rates
    upside_down = [None if x is None else -x for x in values]
    assert plateau_of(mode="max").scale(upside_down) == rates[-1]


@given(
    values=st.lists(st.integers(0, 6), max_size=30),
    factor=st.sampled_from([0.5, 0.1]),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 1e-4, 0.25, 0.5]),
    cooldown=st.integers(0, 3),
    min_factor=st.sampled_from([0.0, 0.2]),
    mode=st.sampled_from(["min", "max"]),
)
@settings(max_examples=200)
def test_a_plateau_is_that_of_keras(values, min_factor, **options):
    import keras

    plateau = plateau_of(min_factor=min_factor, **options)
    callback = keras.callbacks.ReduceLROnPlateau(monitor="x", min_lr=0.1 * min_factor, **options)
    optimizer = SimpleNamespace(learning_rate=0.1)
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    values = [0.25 * value for value in values]  # exact in float32, in which Keras compares
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"x": value})
        scale = plateau.scale(values[: epoch + 1])
        assert 0.1 * scale == pytest.approx(optimizer.learning_rate, rel=1e-12)  # float64 products


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
        ({"schedule": "exponential(factor=-1)"}, "factor=-1.0 must be positive"),
        ({"schedule": "exponential(epochs=0)"}, "epochs=0.0 must be positive"),
        ({"schedule": "warmup(epochs=0)"}, "epochs=0.0 must be positive"),
        ({"schedule": "cosine(warmup_epochs=-1)"}, "warmup_epochs=-1.0 must be at least 0"),
        ({"schedule": "plateau(factor=1.0)"}, "factor=1.0 must be between 0 and 1"),
        ({"schedule": "plateau(patience=0)"}, "patience=0 must be at least 1"),
        ({"schedule": "plateau(min_delta=-1)"}, "min_delta=-1.0 must be at least 0"),
        ({"schedule": "plateau(cooldown=-1)"}, "cooldown=-1 must be at least 0"),
        ({"schedule": "plateau(min_factor=2)"}, "min_factor=2.0 must be in \\[0, 1\\]"),
        ({"schedule": "plateau(mode='auto')"}, "mode='auto' must be 'min' or 'max'"),
        ({"schedule": "plateau(rtol=0.1)"}, "rtol.*options of plateau: factor, patience, "),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        optimizer_of(**options)
