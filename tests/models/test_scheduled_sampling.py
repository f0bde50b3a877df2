"""Scheduled sampling: off is teacher forcing; at 1 the model reads only its own tokens."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import assert_same, relative_error
from support.texts import batch_of, make_text, random_params

from seqjax.errors import UserError
from seqjax.models.scheduled_sampling import (
    constant,
    inverse_sigmoid,
    linear,
    make_probability,
    sampled_logits,
)
from seqjax.nn.dropout import row_keys
from seqjax.tasks.seq2seq import token_metrics
from seqjax.training.optimizer import make_optimizer
from seqjax.training.train_step import init_train_state, make_train_step

SPECS = ["off", "constant(probability=0.0)", "constant(probability=1.0)", "linear(num_steps=2)"]
KEYS = row_keys(jax.random.key(7), 5)


@cache
def prepared(spec, attention="none"):
    """Returns a model, parameters, a batch, and the compiled logits `run(batch, step, keys)`."""
    text = make_text(loss={"scheduled_sampling": spec}, attention=attention)
    params, logits = random_params(text), jax.jit(text.logits)

    def run(batch, step=None, keys=KEYS):
        return logits(params, batch, keys, None if step is None else jnp.int32(step))

    return text, params, batch_of(text), run


def test_off_is_teacher_forcing_to_the_bit():
    assert make_probability("off") is None
    text, params, batch, run = prepared("off")
    model = text.bind(params)
    mask, inputs = batch["source"] > 0, batch["target"][:, :-1]
    want = jax.jit(model.teacher_forced)(batch["source"], mask, inputs)
    for keys in (None, KEYS):
        assert_same(run(batch, 5, keys), want)


@pytest.mark.parametrize("attention", ["none", "dot"])
def test_probability_0_is_teacher_forcing(attention):
    *_, batch, run = prepared("constant(probability=0.0)", attention)
    *_, forced = prepared("off", attention)
    # Float32 rounding differs between one step and a scan over steps.
    np.testing.assert_allclose(run(batch, 3), forced(batch), rtol=2e-5, atol=5e-6)


def test_without_keys_or_step_it_is_teacher_forcing():
    *_, batch, run = prepared("constant(probability=1.0)")
    *_, forced = prepared("off")
    for got in (run(batch, 3, None), run(batch)):
        assert_same(got, forced(batch))
    assert np.abs(run(batch, 3) - forced(batch)).max() > 0.1


def test_at_probability_1_only_the_first_target_is_read():
    *_, batch, run = prepared("constant(probability=1.0)")
    want = run(batch, 0)
    others = batch["target"].at[:, 1:].set(7)
    assert_same(run(batch | {"target": others}, 0), want)
    first = batch["target"].at[:, 0].set(7)
    assert np.all(np.abs(run(batch | {"target": first}, 0) - want).max((1, 2)) > 1e-3)


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_inputs_are_draws_from_the_models_own_distribution(probability):
    """In two steps of 4,000 rows, the second logits of a row show which token it read."""
    rows = 4_000
    text, params, batch, _ = prepared("off")
    model = text.bind(params)
    source = jnp.broadcast_to(batch["source"][:1], (rows, 6))
    inputs = jnp.broadcast_to(jnp.array([1, 5]), (rows, 2))
    keys = row_keys(jax.random.key(0), rows)

    @jax.jit
    def draw(inputs):
        state = text.encode(model, source)
        return sampled_logits(model, state, inputs, jnp.float32(probability), keys)

    logits = np.asarray(draw(inputs))
    state = text.encode(model, batch["source"][:1])
    state, first = model.decode_step(state, inputs[:1, 0])
    size = first.shape[-1]
    after = [model.decode_step(state, jnp.array([token]))[1][0] for token in range(size)]
    distance = np.abs(logits[:, None, 1] - np.stack(after)).max(-1)
    assert distance.min(axis=1).max() < 1e-4 < np.sort(distance, axis=1)[:, 1].min()
    counts = np.bincount(distance.argmin(axis=1), minlength=size)
    expected = rows * probability * np.asarray(jax.nn.softmax(first[0]))
    expected[5] += rows * (1 - probability)  # the input itself
    # Each count is binomial and exceeds five standard deviations once in two million runs.
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)


def test_a_share_of_inputs_is_replaced_each_on_its_own():
    """Logits that differ from teacher forcing show that an input was replaced."""
    rows = 4_000
    text, params, batch, _ = prepared("off")
    model = text.bind(params)
    source = jnp.broadcast_to(batch["source"][:1], (rows, 6))
    inputs = jnp.broadcast_to(
        jnp.array([1, 2, 0]), (rows, 3)
    )  # the model sometimes draws these tokens

    @jax.jit
    def draw(probability):
        state = text.encode(model, source)
        keys = row_keys(jax.random.key(0), rows)
        logits = sampled_logits(model, state, inputs, probability, keys)
        return logits, sampled_logits(model, state, inputs, jnp.float32(0), keys)

    logits, forced = draw(jnp.float32(0.25))
    own = np.abs(logits - forced).max(-1) > 1e-4
    probs = jax.nn.softmax(forced[0])
    assert not np.any(own[:, 0])
    share = 0.25 * (1 - float(probs[0, 2]))  # a draw of the input itself changes nothing
    assert abs(own[:, 1].mean() - share) < 5 * np.sqrt(share / rows)
    unread = own[~own[:, 1], 2]  # rows whose step before was not replaced
    share = 0.25 * (1 - float(probs[1, 0]))
    assert abs(unread.mean() - share) < 5 * np.sqrt(share / len(unread))


def test_a_call_replaces_the_rates():
    text = make_text(decoder_output_dropout=(0.1,))
    params, batch = random_params(text), batch_of(text)
    model, inputs = text.bind(params), batch["target"][:, :-1]
    state = text.encode(model, batch["source"])

    @jax.jit
    def run(rates):
        return sampled_logits(model, state, inputs, jnp.float32(0.5), KEYS, rates)

    built = make_text(decoder_output_dropout=(0.6,)).bind(params)
    want = jax.jit(lambda: sampled_logits(built, state, inputs, jnp.float32(0.5), KEYS))()
    got = run({"decoder_output_dropout": jnp.float32(0.6)})
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=5e-6)
    assert np.abs(got - run({})).max() > 0.01


def test_draws_do_not_depend_on_batch_mates_and_do_on_the_key():
    *_, batch, run = prepared("constant(probability=1.0)")
    want = run(batch, 0)
    order = jnp.array([3, 1, 4, 0, 2])
    moved = jax.tree.map(lambda x: x[order], batch)
    # The rounding of a matmul may depend on a row's position in the batch.
    np.testing.assert_allclose(run(moved, 0, KEYS[order]), want[order], rtol=1e-5, atol=1e-6)
    other = run(batch, 0, row_keys(jax.random.key(8), 5))
    assert np.abs(other - want).max() > 0.1


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.4), {0: 0.4, 50: 0.4, 1_000: 0.4}),
        (linear(0.4, 100), {0: 0.0, 50: 0.2, 100: 0.4, 1_000: 0.4}),
        (inverse_sigmoid(0.4, 100), {0: 0.0, 100: 0.2, 200: 0.4, 1_000: 0.4}),
        (make_probability("linear(final=1.0, num_steps=4)"), {1: 0.25, 3: 0.75, 4: 1.0}),
        (make_probability("inverse_sigmoid"), {0: 0.0, 1_000: 0.125, 9_000: 0.25}),
    ],
)
def test_schedules(schedule, values):
    for step, value in values.items():
        # The inverse sigmoid starts at 0.0003 of its final value and reaches all but 0.0003 of it
        # after twice `num_steps`; the others are exact up to float32 rounding.
        assert float(schedule(jnp.int32(step))) == pytest.approx(value, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("constant(probability=1.5)", r"probability=1.5 must be in \[0, 1\]"),
        ("linear(final=-0.1)", "final=-0.1 must be in"),
        ("inverse_sigmoid(final=2.0)", "final=2.0 must be in"),
        ("linear(num_steps=0)", "num_steps=0 must be at least 1"),
        ("inverse_sigmoid(num_steps=-5)", "num_steps=-5 must be at least 1"),
        ("linaer", "unknown loss.scheduled_sampling 'linaer': did you mean 'linear'"),
        ("on", "unknown loss.scheduled_sampling 'on'"),
        ("linear(steps=3)", "options of linear: final, num_steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(spec, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        make_probability(spec)
    assert "\n" not in str(caught.value)


def test_the_number_of_the_train_step_reaches_the_schedule():
    """With a learning rate near 0, the loss changes only because the decoder's inputs change."""

    def losses(spec):
        text, params, batch, _ = prepared(spec)

        def measure(params, batch, keys=None, step=None, **_):
            return token_metrics(text, text.logits(params, batch, keys, step), batch, 0.0)

        optimizer = make_optimizer(
            name="sgd",
            learning_rate=1e-12,
            schedule="constant",
            clip_norm=0.0,
            clip_value=0.0,
            accumulate_steps=1,
            ema_decay=0.0,
            steps_per_epoch=1,
            num_updates=3,
        )
        step = jax.jit(make_train_step(measure, optimizer))
        state, found = init_train_state(params, optimizer), []
        for _ in range(3):
            state, (metrics, *_) = step(state, batch, jax.random.key(0))
            found.append(float(metrics["loss"].total))
        return found

    forced = losses("off")
    sampled = losses("linear(final=1.0, num_steps=2)")
    assert relative_error(forced, forced[:1] * 3) < 1e-6
    assert sampled[0] == pytest.approx(forced[0], rel=1e-5)  # float32 rounding
    assert all(abs(loss - forced[0]) > 0.01 for loss in sampled[1:])
