"""Training: one step by hand, the same numbers on any devices, in any loop, and after a stop."""

import logging
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax.dropout import row_keys
from seqjax.layers import functional
from seqjax.losses import cross_entropy
from seqjax.mesh import AXIS, SPLIT, WHOLE, make_mesh, put, sharded
from seqjax.metrics import accuracy
from seqjax.models.classifier import Classifier
from seqjax.optim import Optimizer, make_optimizer
from seqjax.train import LOOPS, TrainData, TrainState, init_train_state, make_train_step

NUM_ROWS, STEPS, FEATURES, CLASSES = 22, 5, 3, 4

# Sums over devices, and programs that XLA fuses otherwise, add float32 numbers in another order:
# a few units in the last place (6e-8) a step, over about ten steps.
ROUNDING = dict(rtol=1e-6, atol=1e-6)


@cache
def classifier(dropout_rate: float = 0.3):
    """`init` and `measure` of a small LSTM classifier with all kinds of dropout."""
    init, bind = functional(
        lambda rngs: Classifier(
            input_size=FEATURES,
            num_classes=CLASSES,
            cell="lstm",
            hidden_size=5,
            num_layers=1,
            bidirectional=False,
            kernel_init="glorot_uniform",
            recurrent_init="orthogonal",
            output_kernel_init="normal(0.5)",
            output_bias_init="normal(0.5)",
            input_dropout=dropout_rate,
            output_dropout=dropout_rate,
            state_dropout=dropout_rate,
            rngs=rngs,
        )
    )

    def measure(params, batch, keys):
        logits = bind(params)(batch["x"], keys=keys)
        return {
            "loss": cross_entropy(logits, batch["label"], batch["weight"]),
            "accuracy": accuracy(logits, batch["label"], batch["weight"]),
        }

    return init, measure


@cache
def adam():
    options = dict(clip_norm=1.0, clip_value=0.0, accumulate_steps=1, ema_decay=0.0)
    return make_optimizer(
        name="adam",
        learning_rate=0.01,
        schedule="cosine",
        steps_per_epoch=4,
        num_epochs=5,
        **options,
    )


def frozen() -> Optimizer:
    """An optimizer that changes nothing and keeps the loss it was told as its state."""

    def update(grads, state, params, *, value):
        return jax.tree.map(jnp.zeros_like, grads), value

    return Optimizer(lambda params: jnp.zeros(()), update, lambda *_: 0.0, lambda params, _: params)


def make_rows(num_rows: int = NUM_ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(num_rows, STEPS, FEATURES)).astype(np.float32),
        "label": rng.integers(CLASSES, size=num_rows, dtype=np.int32),
    }


def make_batch(num_rows: int = 10) -> dict[str, np.ndarray]:
    return make_rows(num_rows) | {"weight": np.ones(num_rows, np.float32)}


def new_state(optimizer: Optimizer | None = None, seed: int = 0) -> TrainState:
    init, _ = classifier()
    return init_train_state(jax.jit(init)(jax.random.key(seed)), optimizer or adam())


@cache
def make_loop(kind: str, num_devices: int, batch_size: int):
    mesh = make_mesh(num_devices)
    data = TrainData(make_rows(), batch_size, drop_remainder=False)
    return LOOPS[kind](classifier()[1], adam(), data, mesh), mesh


def run(kind: str, num_devices: int, batch_size: int = 7, calls=(3,), state=None, seed: int = 0):
    """State and metrics [epochs, steps], on the host, after calls of so many epochs each."""
    loop, mesh = make_loop(kind, num_devices, batch_size)
    state = put(new_state() if state is None else state, mesh, WHOLE)
    parts = []
    for num_epochs in calls:
        state, metrics = loop(state, jax.random.key(seed), num_epochs)
        parts.append(jax.device_get(metrics))
    metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return jax.device_get(state), metrics


def assert_same(actual, expected) -> None:
    """Bitwise equality of two nests of arrays."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(actual, expected, **tolerance) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or ROUNDING))


def test_a_step_is_value_and_grad_and_an_update():
    _, measure = classifier()
    optimizer, batch, key = optax.adam(0.01), make_batch(), jax.random.key(3)
    params = new_state().params

    @jax.jit
    def by_hand(params, opt_state, step):
        keys = row_keys(jax.random.fold_in(key, step), 10)

        def mean_loss(params):
            total, weight = measure(params, batch, keys)["loss"]
            return total / weight

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    made = make_optimizer(
        name="adam",
        learning_rate=0.01,
        schedule="constant",
        clip_norm=0.0,
        clip_value=0.0,
        accumulate_steps=1,
        ema_decay=0.0,
        steps_per_epoch=1,
        num_epochs=1,
    )
    step = jax.jit(make_train_step(measure, made))
    state, expected = init_train_state(params, made), (params, optimizer.init(params))
    for number in range(4):
        assert int(state.step) == number
        state, metrics = step(state, batch, key)
        *expected, loss = by_hand(*expected, number)
        np.testing.assert_allclose(metrics["loss"].total / 10, loss, **ROUNDING)
        assert_close(state.params, expected[0])


@pytest.mark.parametrize(("num_devices", "batch_size"), [(2, 7), (8, 7), (8, 3)])
def test_any_number_of_devices_gives_the_same_run(num_devices, batch_size):
    # 7 rows on 2 and 8 devices need fillers; of 3 rows on 8 devices five devices have none.
    state, metrics = run("epoch", 1, batch_size, calls=(3,))
    wide_state, wide_metrics = run("epoch", num_devices, batch_size, calls=(3,))
    assert int(state.step) == 3 * -(-NUM_ROWS // batch_size)
    assert_close(wide_metrics, metrics)
    assert_close(wide_state.params, state.params)


def test_every_step_of_an_epoch_is_recorded_and_every_row_weighs_one():
    _, metrics = run("epoch", 2)
    for average in metrics.values():
        assert average.total.shape == (3, 4)
        assert average.weight.tolist() == [[7.0, 7.0, 7.0, 1.0]] * 3


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_step_loop_gives_the_epoch_loops_numbers(num_devices):
    state, metrics = run("epoch", num_devices)
    step_state, step_metrics = run("step", num_devices)
    assert_close(step_metrics, metrics)
    assert_close(step_state.params, state.params)
    assert int(step_state.step) == int(state.step)


@pytest.mark.parametrize("kind", ["epoch", "step"])
def test_going_on_from_numpy_arrays_is_exact(kind):
    through, metrics = run(kind, 2, calls=(1, 1, 1, 1))
    half, first = run(kind, 2, calls=(1, 1))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(half))
    resumed, second = run(kind, 2, calls=(1, 1), state=half)
    assert_same(resumed, through)
    assert_same(jax.tree.map(lambda *xs: np.concatenate(xs), first, second), metrics)


def test_four_epochs_in_one_call_are_four_calls():
    assert_same(run("epoch", 1, calls=(4,)), run("epoch", 1, calls=(1, 1, 1, 1)))


def test_the_same_call_twice_is_bitwise_equal_and_another_seed_is_not():
    first, again, other = (run("epoch", 8, calls=(3,), seed=seed) for seed in (0, 0, 1))
    assert_same(again, first)
    assert not np.array_equal(other[1]["loss"].total, first[1]["loss"].total)


def test_epochs_read_the_rows_in_different_orders():
    """With parameters that stay and no dropout, only the order tells the steps apart."""
    measure = classifier(0.0)[1]
    data = TrainData(make_rows(), 7, drop_remainder=False)
    loop = LOOPS["epoch"](measure, frozen(), data, mesh := make_mesh(1))
    state = put(new_state(frozen()), mesh, WHOLE)
    loss = jax.device_get(loop(state, jax.random.key(0), 3)[1]["loss"].total)
    assert len(np.unique(loss[:, 0])) == 3
    np.testing.assert_allclose(loss.sum(axis=1), loss[0].sum(), rtol=1e-5)  # every row each epoch


def test_filler_rows_have_no_influence():
    step = jax.jit(make_train_step(classifier()[1], adam()))
    batch, key = make_batch(10), jax.random.key(0)
    batch["weight"][7:] = 0
    batch["x"][7:] = 100.0
    plain = {name: value[:7] for name, value in batch.items()}
    state, metrics = step(new_state(), batch, key)
    expected_state, expected = step(new_state(), plain, key)
    assert metrics["loss"].weight == 7
    assert_close(metrics, expected)
    assert_close(state.params, expected_state.params)


def test_a_batch_of_fillers_alone_changes_nothing_by_sgd():
    optimizer = adam()._replace(
        init=optax.sgd(0.1).init, update=optax.with_extra_args_support(optax.sgd(0.1)).update
    )
    batch = make_batch(10) | {"weight": np.zeros(10, np.float32)}
    before = new_state(optimizer)
    after, metrics = jax.jit(make_train_step(classifier()[1], optimizer))(
        before, batch, jax.random.key(0)
    )
    assert metrics["loss"].total == metrics["loss"].weight == 0
    assert_same(jax.device_get(after.params), jax.device_get(before.params))


def test_a_vmap_over_seeds_is_the_solo_runs():
    train_step = make_train_step(classifier()[1], adam())
    batch, seeds = make_batch(), [0, 1, 2]

    def three_steps(state, key):
        return jax.lax.scan(lambda s, _: train_step(s, batch, key), state, length=3)

    states = [new_state(seed=seed) for seed in seeds]
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    together = jax.jit(jax.vmap(three_steps))(
        jax.tree.map(lambda *xs: jnp.stack(xs), *states), keys
    )
    alone = jax.jit(three_steps)
    for i, (state, key) in enumerate(zip(states, keys, strict=True)):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone(state, key))


def test_the_key_matters_to_dropout_and_to_nothing_else():
    batch, state = make_batch(), new_state(frozen())

    def losses(rate: float) -> set[float]:
        step = jax.jit(make_train_step(classifier(rate)[1], frozen()))
        return {
            float(step(state, batch, jax.random.key(seed))[1]["loss"].total) for seed in range(3)
        }

    assert len(losses(0.0)) == 1
    assert len(losses(0.3)) == 3


def test_every_step_drops_other_units():
    step = jax.jit(make_train_step(classifier()[1], frozen()))
    state, batch, key = new_state(frozen()), make_batch(), jax.random.key(0)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"].total))
    assert len(set(losses)) == 3


def test_the_optimizer_is_told_the_mean_loss_of_the_whole_batch():
    mesh, batch = make_mesh(2), make_batch(10)
    batch["weight"][7:] = 0
    step = make_train_step(classifier()[1], frozen(), AXIS)
    state, metrics = jax.jit(sharded(step, mesh, (WHOLE, SPLIT, WHOLE)))(
        put(new_state(frozen()), mesh, WHOLE), put(batch, mesh, SPLIT), jax.random.key(0)
    )
    # One division of the same two float32 numbers.
    np.testing.assert_allclose(state.opt_state, metrics["loss"].total / 7, rtol=1e-7)


@pytest.mark.parametrize(("kind", "program"), [("epoch", "jit(program)"), ("step", "train_step")])
def test_a_loop_compiles_once(kind, program, caplog):
    data = TrainData(make_rows(), 7, drop_remainder=False)
    mesh = make_mesh(2)
    traces = []

    def measure(params, batch, keys):
        traces.append(None)
        return classifier()[1](params, batch, keys)

    loop = LOOPS[kind](measure, adam(), data, mesh)
    state = put(new_state(), mesh, WHOLE)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        counts = []
        for epoch in range(3):
            state, _ = loop(state, jax.random.key(epoch), 1)
            counts.append(len(traces))
    compiled = [m for m in caplog.messages if m.startswith("Finished XLA compilation of")]
    assert sum(program in m for m in compiled) == 1, compiled
    assert counts[0] == counts[-1]


def test_the_loop_can_be_resumed_in_the_middle_of_nothing_but_epochs():
    """The epoch's number comes from the step: five epochs in, the fifth order is read."""
    state, _ = run("epoch", 1, calls=(1,))
    data = make_loop("epoch", 1, 7)[0]
    assert int(state.step) == 4 and data is not None


drop = partial(TrainData, drop_remainder=True)


@pytest.mark.parametrize(("batch_size", "steps"), [(7, 3), (22, 1), (1, 22)])
def test_steps_per_epoch_of_dropped_remainders(batch_size, steps):
    assert drop(make_rows(), batch_size).steps_per_epoch == steps
