"""Train steps compared with one by hand; sums over batches, skipped steps, norms and keys; equal
results on any devices, in any loop, resumed."""

import logging
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.oracles import relative_error

from seqjax.config import text_pairs_config
from seqjax.data.batching import count_rows
from seqjax.distributed.mesh import AXIS, SPLIT, WHOLE, make_mesh, shard, sharded
from seqjax.hparams import HParams
from seqjax.losses import cross_entropy
from seqjax.metrics import Average, accuracy
from seqjax.models.classifier import Classifier
from seqjax.nn.dropout import row_keys
from seqjax.nn.layers import functional
from seqjax.tasks.registry import make_task
from seqjax.training.epoch import LOOPS, LoopOptions, Place, TrainData
from seqjax.training.optimizer import Optimizer, make_optimizer
from seqjax.training.train_step import (
    TrainState,
    init_train_state,
    make_gradient,
    make_keys,
    make_train_step,
)

NUM_ROWS, STEPS, FEATURES, CLASSES = 22, 5, 3, 4

# Sums over devices, and programs that XLA fuses differently, add float32 numbers in another order:
# errors of a few units in the last place (6e-8) in each of about ten steps.
ROUNDING = dict(rtol=1e-6, atol=1e-6)


@cache
def classifier(dropout_rate: float = 0.3):
    """Returns `init` and `measure` of a small LSTM classifier with all kinds of dropout."""
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

    def measure(params, batch, keys=None, **_):
        logits = bind(params)(batch["x"], keys=keys)
        return {
            "loss": cross_entropy(logits, batch["label"], batch["weight"]),
            "accuracy": accuracy(logits, batch["label"], batch["weight"]),
        }

    return init, measure


@cache
def make_sgd(name: str = "momentum", **options) -> Optimizer:
    """SGD with momentum, since Adam would magnify the rounding of tiny gradients."""
    settings = {
        "name": name,
        "learning_rate": 0.1,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "clip_value": 0.0,
        "accumulate_steps": 1,
        "ema_decay": 0.0,
        "steps_per_epoch": 4,
        "num_updates": 20,
    }
    return make_optimizer(**settings | options)


def frozen() -> Optimizer:
    """An optimizer that changes no parameter; its state is what it was passed last."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros((), bool)

    def update(gradients, state, params, *, weight, is_last=False):
        passed = (gradients, weight, jnp.asarray(is_last))
        return jax.tree.map(jnp.zeros_like, gradients), passed

    return Optimizer(
        init,
        update,
        learning_rate=lambda _: jnp.zeros(()),
        eval_params=lambda params, _: params,
        num_skipped=lambda _: jnp.int32(0),
        num_updates=lambda _: jnp.int32(0),
        plateau=None,
        with_factor=lambda opt_state, _: opt_state,
    )


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
    return init_train_state(jax.jit(init)(jax.random.key(seed)), optimizer or make_sgd())


@cache
def jitted_step(dropout_rate: float = 0.3):
    return jax.jit(make_train_step(classifier(dropout_rate)[1], make_sgd()))


@cache
def make_loop(kind: str, num_devices: int):
    # 22 rows make batches of 7, 7, 7 and 1. None is divisible by 2 or 8, and most devices have only
    # filler rows in the last one.
    mesh = make_mesh(num_devices)
    data = TrainData(make_rows(), 7, drop_remainder=False)
    return make_it(kind, classifier()[1], make_sgd(), data, mesh), mesh


def make_it(kind: str, measure, optimizer, data, mesh, max_skipped: int = 0):
    options = LoopOptions(max_steps=16, num_epochs=5, max_skipped=max_skipped)
    return LOOPS[kind](measure, optimizer, data, mesh, options)


def place_of(state: TrainState, steps_per_epoch: int = 4) -> Place:
    return Place(*divmod(int(state.step), steps_per_epoch))


def run(kind: str, num_devices: int, calls=(4, 4, 4), state=None, seed: int = 0):
    """Returns state and metrics [steps] after calls of so many steps; an epoch has 4 steps."""
    loop, mesh = make_loop(kind, num_devices)
    state = shard(new_state() if state is None else state, mesh, WHOLE)
    parts = []
    for num_steps in calls:
        state, log = loop(state, make_keys(seed), place_of(state), num_steps)
        assert not np.any(log.skipped)
        parts.append(jax.tree.map(lambda x, n=num_steps: np.asarray(x)[:n], log.metrics))
    metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return jax.device_get(state), metrics


def assert_same(actual, expected) -> None:
    """Asserts that two trees of arrays are bit-identical."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(actual, expected, **tolerance) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or ROUNDING))


def test_a_step_is_value_and_grad_and_an_update():
    _, measure = classifier()
    batch, key = jax.tree.map(jnp.asarray, make_batch()), jax.random.key(3)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(0.1, 20), 0.9)
    )

    @jax.jit
    def by_hand(params, opt_state, step):
        keys = row_keys(jax.random.fold_in(key, step), 10)

        def mean_loss(params):
            total, weight = measure(params, batch, keys)["loss"]
            return total / weight

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    step, state = jitted_step(), new_state()
    expected = (state.params, optimizer.init(state.params))
    for number in range(4):
        assert int(state.step) == number
        state, (metrics, *_) = step(state, batch, key)
        *expected, loss = by_hand(*expected, number)
        np.testing.assert_allclose(metrics["loss"].total / 10, loss, **ROUNDING)
        assert_close(state.params, expected[0])


@pytest.mark.parametrize("num_devices", [2, 8])
def test_any_number_of_devices_gives_the_same_run(num_devices):
    state, metrics = run("epoch", 1)
    wide_state, wide_metrics = run("epoch", num_devices)
    assert int(state.step) == 12
    assert_close(wide_metrics, metrics)
    assert_close(wide_state.params, state.params)


def test_every_step_is_logged_with_the_weight_of_its_rows():
    _, metrics = run("epoch", 2)
    for average in metrics.values():
        assert average.total.shape == (12,)
        assert average.weight.tolist() == [7.0, 7.0, 7.0, 1.0] * 3


@pytest.mark.parametrize(("kind", "num_devices"), [("epoch", 1), ("epoch", 8), ("step", 2)])
def test_a_loop_reads_each_row_once_an_epoch_and_shuffles(kind, num_devices):
    """Row i adds 2**i to the loss, so each step's loss shows which rows it read."""
    rows = {"power": 2.0 ** np.arange(NUM_ROWS, dtype=np.float32)}

    def measure(params, batch, keys=None, **_):
        weight = batch["weight"]
        loss = jnp.sum(weight * batch["power"]) + 0 * params["w"]
        return {"loss": Average(loss, jnp.sum(weight))}

    mesh = make_mesh(num_devices)
    loop = make_it(kind, measure, frozen(), TrainData(rows, 7, drop_remainder=False), mesh)
    state = shard(init_train_state({"w": jnp.zeros(())}, frozen()), mesh, WHOLE)
    _, log = loop(state, make_keys(0), place_of(state), 12)
    sums = np.asarray(log.metrics["loss"].total, np.int64)[:12].reshape(3, 4)
    assert np.bitwise_or.reduce(sums, axis=1).tolist() == [2**NUM_ROWS - 1] * 3
    assert sums.sum(axis=1).tolist() == [2**NUM_ROWS - 1] * 3
    assert len(np.unique(sums[:, 0])) == 3


def test_the_step_loop_gives_the_epoch_loops_numbers():
    state, metrics = run("epoch", 2)
    step_state, step_metrics = run("step", 2)
    assert_close(step_metrics, metrics)
    assert_close(step_state.params, state.params)
    assert int(step_state.step) == int(state.step)


@pytest.mark.parametrize("kind", ["epoch", "step"])
def test_going_on_from_numpy_arrays_is_exact(kind):
    through, metrics = run(kind, 2, calls=(4, 4, 4, 4))
    half, first = run(kind, 2, calls=(4, 4))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(half))
    resumed, second = run(kind, 2, calls=(4, 4), state=half)
    assert_same(resumed, through)
    assert_same(jax.tree.map(lambda *xs: np.concatenate(xs), first, second), metrics)


@pytest.mark.parametrize(("kind", "num_devices"), [("epoch", 1), ("epoch", 2), ("step", 1)])
@pytest.mark.parametrize("calls", [(12,), (1, 5, 6), (3, 3, 3, 3), (1,) * 12])
def test_results_do_not_depend_on_the_steps_per_call(kind, num_devices, calls):
    assert_same(run(kind, num_devices, calls=calls), run(kind, num_devices))


def test_equal_seeds_are_bit_identical_and_others_differ():
    first, again, other = (run("epoch", 8, seed=seed) for seed in (0, 0, 1))
    assert_same(again, first)
    assert not np.array_equal(other[1]["loss"].total, first[1]["loss"].total)


def test_filler_rows_have_no_influence():
    step, key, batch = jitted_step(), jax.random.key(0), make_batch()

    def run_with(weight, fill=None):
        x = batch["x"].copy()
        if fill is not None:
            x[weight == 0] = fill
        return jax.device_get(
            step(new_state(), batch | {"x": x, "weight": weight.astype(np.float32)}, key)
        )

    first = np.arange(10) < 7
    state, log = run_with(first)
    metrics = log.metrics
    assert metrics["loss"].weight == metrics["accuracy"].weight == 7
    assert_same(run_with(first, fill=100.0), (state, log))
    # The sums over the other rows of the batch complete the sums over all ten.
    parts = jax.tree.map(np.add, metrics, run_with(~first)[1].metrics)
    assert_close(parts, run_with(np.ones(10))[1].metrics)
    # A batch of filler rows alone does not divide by zero.
    state, (metrics, *_) = run_with(np.zeros(10))
    assert metrics["loss"].total == metrics["loss"].weight == 0
    assert_same(state.params, jax.device_get(new_state().params))


def test_a_vmap_over_seeds_is_the_solo_runs():
    step, batch, seeds = jitted_step(), make_batch(), [0, 1, 2]
    many_steps = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    states, keys = [new_state(seed=seed) for seed in seeds], list(map(jax.random.key, seeds))
    together = jax.tree.map(lambda *xs: np.stack(xs), *states)
    for _ in range(3):
        together, metrics = many_steps(together, batch, jnp.stack(keys))
        alone = [step(state, batch, key) for state, key in zip(states, keys, strict=True)]
        states = [state for state, _ in alone]
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *alone)
        assert_close((together, metrics), stacked)


@pytest.mark.parametrize(("rate", "different"), [(0.0, 1), (0.3, 3)])
def test_only_dropout_makes_keys_and_steps_differ(rate, different):
    state, batch, step = new_state(), make_batch(), jitted_step(rate)

    def loss(state, seed):
        return float(step(state, batch, jax.random.key(seed))[1].metrics["loss"].total)

    assert len({loss(state, seed) for seed in range(3)}) == different
    steps = (state._replace(step=jnp.array(number, jnp.int32)) for number in range(3))
    assert len({loss(later, 0) for later in steps}) == different


def linear_measure(params, batch, keys=None, **_):
    """A loss of `w x` a row, plus what the batch has as "constant"."""
    losses = params["w"] * batch["x"] + batch.get("constant", 0)
    return {"loss": Average(jnp.sum(batch["weight"] * losses), jnp.sum(batch["weight"]))}


def linear_state(optimizer: Optimizer) -> TrainState:
    return init_train_state({"w": jnp.ones(())}, optimizer)


@pytest.mark.parametrize("is_last", [False, True])
def test_the_optimizer_is_passed_the_sums_over_the_whole_batch(is_last):
    weight = np.array([1, 1, 1, 0], np.float32)
    batch = {"x": np.array([1, 2, 6, 100], np.float32), "weight": weight}
    mesh = make_mesh(2)
    step = make_train_step(linear_measure, frozen(), AXIS, log_norms=True)
    step = sharded(step, mesh, (WHOLE, SPLIT, WHOLE, WHOLE, WHOLE, WHOLE))
    state, log = jax.jit(step)(
        shard(linear_state(frozen()), mesh, WHOLE),
        shard(batch, mesh, SPLIT),
        jax.random.key(0),
        0,
        HParams(),
        is_last,
    )
    assert state.opt_state == ({"w": 9}, 3, is_last)
    assert log.norms == {"gradient_norm": 3, "update_norm": 0, "parameter_norm": 1}


# 2 and 13 target tokens with the end token (https://github.com/huggingface/transformers/issues/24725)
PAIRS = (("a", "x"), ("b", "y" * 12))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_every_token_weighs_the_same_in_one_batch_or_in_two(accumulate_steps):
    config = text_pairs_config("")
    config.model.update(embed_size=5, hidden_size=6)
    config.data.pairs = PAIRS
    task = make_task(config)
    params, rows = task.init(jax.random.key(0)), task.splits["train"]
    rows = jax.tree.map(jnp.asarray, dict(rows)) | {"weight": jnp.ones(2)}
    options = {"learning_rate": 1.0, "clip_norm": 0.0, "schedule": "constant"}
    optimizer = make_sgd("sgd", accumulate_steps=accumulate_steps, **options)
    step = jax.jit(make_train_step(task.loss_and_metrics, optimizer))
    state = init_train_state(params, optimizer)
    for part in np.split(np.arange(2), accumulate_steps):
        batch = {name: x[part] for name, x in rows.items()}
        state, log = step(state, batch, jax.random.key(0))
    assert log.metrics["loss"].weight == {1: 15, 2: 13}[accumulate_steps]

    def mean_loss(params):
        return task.loss_and_metrics(params, rows, None)["loss"].total / 15

    expected = jax.tree.map(jnp.subtract, params, jax.grad(mean_loss)(params))
    assert_close(state.params, expected)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_several_small_batches_are_one_large_batch(name):
    """Rows of unequal, fractional weights; six make an update, and then the last four."""
    _, measure = classifier(0.0)
    rows = make_rows(10) | {"weight": np.array([2, 0.25, 1, 0, 0, 3, 0.5, 0, 0.1, 0], np.float32)}

    def train(size, accumulate_steps, ends):
        optimizer = make_sgd(name, accumulate_steps=accumulate_steps, num_updates=2)
        step, state = jax.jit(make_train_step(measure, optimizer)), new_state(optimizer)
        for start in range(0, 10, size):
            batch = {name: x[start : start + size] for name, x in rows.items()}
            last = np.bool_(start + size >= 10)
            state, _ = step(state, batch, jax.random.key(0), 0, HParams(), last)
            assert optimizer.num_updates(state.opt_state) == sum(start + size >= n for n in ends)
        return state.params

    # Adam's quotients magnify the rounding of float32 sums in another order.
    assert_close(train(2, 3, (6, 10)), train(6, 1, (6, 10)), rtol=1e-4, atol=1e-5)


def test_the_logged_rate_is_that_of_the_step():
    optimizer = make_sgd("sgd", accumulate_steps=2, num_updates=3)
    step, state = jax.jit(make_train_step(linear_measure, optimizer)), linear_state(optimizer)
    batch = {"x": np.ones(3, np.float32), "weight": np.ones(3, np.float32)}  # the gradient is 1
    for number, rate in enumerate([0.1, 0.1, 0.075, 0.075, 0.025, 0.025]):  # of a cosine
        new, log = step(state, batch, jax.random.key(0))
        assert log.learning_rate == pytest.approx(rate, rel=1e-6)  # float32
        used = state.params["w"] - new.params["w"]
        # The parameter is 1 at most, and float32 rounds it by 6e-8.
        assert used == pytest.approx(rate if number % 2 else 0, abs=1e-6)
        state = new


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_skips_the_step(bad):
    """The gradient is finite, since the loss has a constant term that is not."""
    optimizer = make_sgd("sgd")
    step, state = jax.jit(make_train_step(linear_measure, optimizer)), linear_state(optimizer)
    batch = {"x": np.ones(3, np.float32), "weight": np.ones(3, np.float32)}
    for constant, skipped in ((0, 0), (bad, 1), (0, 0)):
        batch["constant"] = np.full(3, constant, np.float32)
        old, (state, log) = state, step(state, batch, jax.random.key(0))
        assert log.skipped == skipped
        assert (state.params["w"] == old.params["w"]) == bool(skipped)
    assert optimizer.num_updates(state.opt_state) == 2
    assert optimizer.num_skipped(state.opt_state) == 1


def norm(tree) -> float:
    return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_norms_are_those_of_the_steps_arrays(accumulate_steps):
    _, measure = classifier(0.0)
    optimizer = make_sgd(accumulate_steps=accumulate_steps, clip_norm=0.05)
    step = jax.jit(make_train_step(measure, optimizer, log_norms=True))
    state = new_state(optimizer)
    gradient = jax.jit(jax.grad(lambda params, batch: measure(params, batch)["loss"].total))
    for number in range(4):
        batch = make_batch() | {"weight": np.arange(10, dtype=np.float32) * 0.1 * (number + 1)}
        new, log = step(state, batch, jax.random.key(0))
        mean = norm(gradient(state.params, batch)) / np.sum(batch["weight"])
        assert mean > 0.05  # it is clipped
        update = jax.tree.map(lambda x, y: np.float64(x) - y, new.params, state.params)
        assert (norm(update) > 0) == ((number + 1) % accumulate_steps == 0)
        expected = {
            "gradient_norm": mean,
            "update_norm": norm(update),
            "parameter_norm": norm(new.params),
        }
        # The update, of at most 0.01, is read from parameters of about 1 that round by 6e-8.
        assert log.norms == pytest.approx(expected, rel=1e-4)
        state = new
    silent = make_train_step(measure, optimizer)
    assert jax.eval_shape(silent, state, batch, jax.random.key(0))[1].norms == {}


def bits_of(key) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).tolist())


def test_no_key_of_a_run_serves_two_purposes(monkeypatch):
    """The keys that parameters are drawn from are all that `split` and `fold_in` return."""
    keys, derived = make_keys(7), []
    with monkeypatch.context() as patch:
        for name in ("split", "fold_in"):
            make = getattr(jax.random, name)

            def record(*args, make=make, **options):
                derived.append(make(*args, **options))
                return derived[-1]

            patch.setattr(jax.random, name, record)
        params = classifier()[0](keys.init)
    of_params = {bits_of(key) for made in derived for key in made.reshape(-1)}
    assert len(of_params) >= len(jax.tree.leaves(params))
    own = [keys.init, keys.data, keys.dropout]
    folded = [jax.random.fold_in(key, n) for key in own[1:] for n in range(100)]
    of_rows = [key for step in folded[100:103] for key in row_keys(step, 10)]
    others = {bits_of(key) for key in (*own, *folded, *of_rows)}
    assert len(others) == len(own) + len(folded) + len(of_rows)
    assert not others & of_params


def test_the_keys_of_a_seed_can_be_mapped():
    seeds = np.array([0, 1, 2**32 - 1], np.uint32)
    together = jax.jit(jax.vmap(make_keys))(seeds)
    alone = [make_keys(int(seed)) for seed in seeds]
    for name in together._fields:
        found = [bits_of(key) for key in getattr(together, name)]
        assert found == [bits_of(getattr(keys, name)) for keys in alone]


@pytest.mark.parametrize("kind", ["epoch", "step"])
def test_a_loop_compiles_once(kind, caplog):
    traces = []

    def measure(params, batch, keys=None, **_):
        traces.append(None)
        return {"loss": Average(params["w"] * jnp.sum(batch["x"]), jnp.sum(batch["weight"]))}

    mesh = make_mesh(2)
    data = TrainData({"x": np.ones(22, np.float32)}, 7, drop_remainder=False)
    loop = make_it(kind, measure, make_sgd(), data, mesh)
    state = shard(init_train_state({"w": jnp.ones(())}, make_sgd()), mesh, WHOLE)
    counts = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for epoch in range(3):
            state, _ = loop(state, make_keys(epoch), place_of(state), 1 + epoch)
            counts.append(len(traces))
    compiled = [m for m in caplog.messages if "Finished XLA compilation of jit(steps)" in m]
    assert len(compiled) == 1, caplog.messages
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10, 11])
def test_a_gradient_in_parts_is_that_of_the_whole_batch(size):
    """Dropout is active. Sizes 3 and 4 do not divide 10 rows, so parts of 5 rows are used."""
    init, measure = classifier()
    params = jax.jit(init)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, make_batch(10))
    batch["weight"] = jnp.arange(10.0)
    keys = row_keys(jax.random.key(1), 10)
    sizes = []

    def record_sizes(params, batch, keys, **_):
        sizes.append(count_rows(batch))
        return measure(params, batch, keys)

    whole, parts = (
        jax.jit(make_gradient(record_sizes, n))(params, batch, keys, jnp.int32(0), HParams())
        for n in (0, size)
    )
    assert relative_error(parts, whole) < 1e-6  # float32 sums in another order
    assert set(sizes) == {10, {3: 5, 4: 5, 11: 10}.get(size, size)}


@pytest.mark.parametrize(("batch_size", "steps"), [(7, 3), (22, 1), (1, 22)])
def test_steps_per_epoch_of_dropped_remainders(batch_size, steps):
    assert TrainData(make_rows(), batch_size, drop_remainder=True).steps_per_epoch == steps
