"""Encoder, decoder and attention: steps equal teacher forcing, and padding has no influence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import random_like

from seqjax.errors import UserError
from seqjax.models.seq2seq import RATES, Seq2Seq
from seqjax.nn.attention import Attention
from seqjax.nn.dropout import row_keys
from seqjax.nn.layers import functional
from seqjax.parameters import count_parameters, parameter_shapes

B, S, T, V = 3, 5, 4, 11


OPTIONS = dict(
    source_vocab_size=V,
    target_vocab_size=V,
    embed_size=6,
    hidden_size=8,
    bidirectional=False,
    attention="none",
    input_feeding=False,
    share_embeddings=False,
    tie_output=False,
    token_dropout=0.0,
    encoder_output_dropout=(0.0,),
    decoder_output_dropout=(0.0,),
    output_kernel_init="glorot_uniform",
    output_bias_init="zeros",
    cell="lstm",
    num_layers=1,
    kernel_init="glorot_uniform",
    recurrent_init="orthogonal",
    input_dropout=(0.0,),
    state_dropout=(0.0,),
)
MODELS = {
    "one-hot RNN": dict(cell="simple_rnn", embed_size=0),
    "bridged LSTM, dot, feeding": dict(
        bidirectional=True, attention="dot", input_feeding=True, num_layers=2
    ),
    "GRU, general, tied": dict(
        cell="gru", attention="general", share_embeddings=True, tie_output=True
    ),
    "GRU before, additive": dict(
        cell="gru(reset_after=False)", attention="additive", bidirectional=True
    ),
}


def make(**changes):
    """Returns `bind` and random parameters."""
    init, bind = functional(lambda rngs: Seq2Seq(rngs=rngs, **(OPTIONS | changes)))
    return bind, jax.tree.map(jnp.asarray, random_like(parameter_shapes(init), seed=1))


def problem(seed=0):
    """Returns source, mask (a full, a short and an empty row) and decoder inputs."""
    rng = np.random.default_rng(seed)
    source = rng.integers(4, V, (B, S)).astype(np.int32)
    mask = np.arange(S)[None] < np.array([S, 3, 0])[:, None]
    inputs = rng.integers(4, V, (B, T)).astype(np.int32)
    return jnp.asarray(source), jnp.asarray(mask), jnp.asarray(inputs)


@pytest.mark.parametrize("name", MODELS)
def test_steps_reproduce_teacher_forcing(name):
    bind, params = make(**MODELS[name])
    source, mask, inputs = problem()
    logits = jax.jit(lambda p: bind(p).teacher_forced(source, mask, inputs))(params)
    step = jax.jit(lambda p, state, token: bind(p).decode_step(state, token))
    state = bind(params).encode(source, mask)
    for t in range(T):
        state, one = step(params, state, inputs[:, t])
        # Float32 rounding differs between one step and a scan over steps.
        np.testing.assert_allclose(one, logits[:, t], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_remat_changes_neither_values_nor_gradients(name):
    source, mask, inputs = problem()

    def value_and_gradient(remat):
        bind, params = make(**MODELS[name], remat=remat)

        def loss(p):
            return jnp.sum(jnp.sin(bind(p).teacher_forced(source, mask, inputs)))

        return jax.jit(jax.value_and_grad(loss))(params)

    plain, windows = value_and_gradient(False), value_and_gradient(True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, windows
    )


@pytest.mark.parametrize("input_feeding", [False, True])
def test_remat_does_not_store_the_attention_of_all_steps(input_feeding):
    """Compares the temporary memory of a gradient: B T S attention weights are 4 MiB each."""
    size, num_steps = 4, 512
    tokens = jax.ShapeDtypeStruct((size, num_steps), jnp.int32)

    def num_bytes(remat):
        bind, params = make(
            cell="gru", attention="additive", input_feeding=input_feeding, remat=remat
        )

        def loss(p, source, inputs):
            return jnp.sum(bind(p).teacher_forced(source, source > 0, inputs))

        compiled = jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert num_bytes(True) < num_bytes(False) / 8


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_the_source_has_no_influence(name, side):
    bind, params = make(**MODELS[name])
    source, mask, inputs = problem()
    junk, none = jnp.full((B, 2), 3, jnp.int32), jnp.zeros((B, 2), bool)
    order = slice(None) if side == "right" else slice(None, None, -1)
    padded = jnp.concatenate([source, junk][order], axis=1)
    padded_mask = jnp.concatenate([mask, none][order], axis=1)

    def loss(p, source, mask):
        return jnp.sum(jnp.sin(bind(p).teacher_forced(source, mask, inputs)))

    run = jax.jit(jax.value_and_grad(loss))
    plain, padded = run(params, source, mask), run(params, padded, padded_mask)
    # Sums with more zeros may be added in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, padded)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_source_gives_finite_logits_and_gradients(name):
    bind, params = make(**MODELS[name])
    source, _, inputs = problem()
    nothing = jnp.zeros((B, S), bool)
    value, grads = jax.value_and_grad(
        lambda p: jnp.sum(bind(p).teacher_forced(source, nothing, inputs) ** 2)
    )(params)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((value, grads)))


@pytest.mark.parametrize("score", ["dot", "general", "additive"])
def test_attention_weights_real_positions_only_and_sum_to_one(score):
    init, bind = functional(lambda rngs: Attention(score, 4, 6, rngs=rngs))
    params = random_like(parameter_shapes(init), seed=2)
    rng = np.random.default_rng(3)
    values, queries = (
        jnp.asarray(rng.normal(size=(B, S, 6))),
        jnp.asarray(rng.normal(size=(B, T, 4))),
    )
    _, mask, _ = problem()
    attention = bind(params)
    contexts, weights = attention(queries, attention.memory(values, mask))
    assert not np.any(np.asarray(weights) * ~np.asarray(mask)[:, None])
    np.testing.assert_allclose(np.sum(weights, -1), [[1] * T, [1] * T, [0] * T], atol=1e-6)
    np.testing.assert_allclose(contexts, np.einsum("bts,bso->bto", weights, values), atol=1e-5)
    assert np.ptp(np.asarray(weights)[0], axis=-1).min() > 0.01  # weights differ by position


def test_attention_scores_are_luongs_and_bahdanaus():
    rng = np.random.default_rng(4)
    values, queries = (
        jnp.asarray(rng.normal(size=(1, S, 4))),
        jnp.asarray(rng.normal(size=(1, 1, 4))),
    )
    mask = jnp.ones((1, S), bool)
    for score in ("dot", "general", "additive"):
        init, bind = functional(lambda rngs, score=score: Attention(score, 4, 4, rngs=rngs))
        p = random_like(parameter_shapes(init), seed=5)
        v, q = np.asarray(values[0]), np.asarray(queries[0, 0])
        if score == "dot":
            scores = v @ q
        else:
            keys = v @ p["of_memory"]["kernel"] + p["of_memory"]["bias"]
            scores = keys @ q
        if score == "additive":
            sums = np.tanh(keys + q @ p["of_query"]["kernel"] + p["of_query"]["bias"])
            scores = (sums @ p["of_sum"]["kernel"] + p["of_sum"]["bias"])[:, 0]
        want = np.exp(scores - scores.max()) / np.sum(np.exp(scores - scores.max()))
        _, weights = bind(p)(queries, bind(p).memory(values, mask))
        np.testing.assert_allclose(weights[0, 0], want, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [MODELS["one-hot RNN"], dict(cell="gru", embed_size=0, attention="dot", input_feeding=True)],
    ids=["plain", "feeding"],
)
def test_float32_parameters_compute_in_float32(changes):
    """With x64 enabled, one-hot vectors are float64."""
    bind, params = make(**changes, input_dropout=(0.2,), token_dropout=0.2)
    results = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            keys, batch = row_keys(jax.random.key(0), B), problem()

            def loss(params, keys=keys, batch=batch):
                logits = bind(params).teacher_forced(*batch, keys=keys)
                return jnp.sum(jnp.sin(logits)), logits

            results.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    assert {x.dtype for x in jax.tree.leaves(results)} == {np.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_attention_in_half_precision_ignores_padding():
    init, bind = functional(lambda rngs: Attention("general", 4, 6, rngs=rngs))
    params = random_like(parameter_shapes(init), seed=2, dtype=np.float16)
    shapes = [np.zeros((B, S, 6)), np.zeros((B, T, 4))]
    values, queries = map(jnp.asarray, random_like(shapes, 3, np.float16))
    _, mask, _ = problem()

    def total(params):
        attention = bind(params)
        contexts, weights = attention(queries, attention.memory(values, mask))
        return jnp.sum(contexts), (contexts, weights)

    slopes, (contexts, weights) = jax.grad(total, has_aux=True)(params)
    assert contexts.dtype == jnp.float16 and not np.any(np.asarray(contexts[2]))
    np.testing.assert_allclose(np.sum(weights, -1), [[1] * T, [1] * T, [0] * T], atol=1e-2)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes))


def read_by_encoder(rate, source, keys):
    """Returns the ids that a one-hot encoder reads."""

    class EncoderCalled(Exception):
        pass

    def encoder(xs, **options):
        raise EncoderCalled(np.argmax(xs, axis=-1))

    bind, params = make(embed_size=0, token_dropout=rate)
    model = bind(params)
    model.encoder = encoder
    with pytest.raises(EncoderCalled) as caught:
        model.encode(source, jnp.ones_like(source, bool), keys=keys)
    return caught.value.args[0]


def test_token_dropout_replaces_source_tokens_by_unknown():
    source = jnp.asarray(np.random.default_rng(0).integers(4, V, (200, 30), np.int32))
    keys = row_keys(jax.random.key(1), 200)
    read = read_by_encoder(0.3, source, keys)
    dropped = read == 3
    np.testing.assert_array_equal(read, np.where(dropped, 3, source))
    # Five standard deviations of the mean of 6,000 draws.
    assert abs(dropped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 6_000)
    assert np.std(dropped.mean(1)) > 0.04  # each token is drawn, not each row or column
    assert np.std(dropped.mean(0)) > 0.015
    # Tokens are dropped alike in another batch and with more padding.
    order = np.array([5, 199, 0])
    wider = jnp.pad(source[order], ((0, 0), (0, 4)), constant_values=5)
    np.testing.assert_array_equal(read_by_encoder(0.3, wider, keys[order])[:, :30], read[order])


def test_without_keys_or_rate_every_token_is_read():
    source, _, _ = problem()
    for rate, keys in ((0.3, None), (0.0, row_keys(jax.random.key(0), B))):
        np.testing.assert_array_equal(read_by_encoder(rate, source, keys), source)


def test_dropout_needs_keys_and_reaches_both_sides():
    changes = dict(input_dropout=(0.5,), decoder_output_dropout=(0.5,), state_dropout=(0.3,))
    bind, params = make(**changes)
    source, mask, inputs = problem()
    quiet = bind(params).teacher_forced(source, mask, inputs)
    again = bind(params).teacher_forced(source, mask, inputs)
    loud = bind(params).teacher_forced(source, mask, inputs, keys=row_keys(jax.random.key(0), B))
    assert np.array_equal(quiet, again)
    assert np.abs(np.asarray(loud - quiet)).max() > 0.1


def test_a_call_replaces_the_rates():
    options = MODELS["GRU, general, tied"]
    low, high = dict.fromkeys(RATES, 0.1), {name: 0.2 + 0.1 * i for i, name in enumerate(RATES)}
    source, mask, inputs = problem()
    keys = row_keys(jax.random.key(0), B)

    def compiled(**built):
        bind, params = make(**options, **built)
        run = jax.jit(
            lambda rates: bind(params).teacher_forced(source, mask, inputs, keys=keys, rates=rates)
        )
        return lambda rates: np.asarray(run(jax.tree.map(jnp.float32, rates)))

    run = compiled(**low)
    want = compiled(**high)(None)
    np.testing.assert_allclose(run(high), want, rtol=2e-5, atol=2e-6)  # float32 rounding
    for name in RATES:  # every rate has an effect
        assert np.abs(run(low | {name: 0.6}) - run(low)).max() > 0.01, name


def test_a_call_refuses_unknown_rates():
    bind, params = make()
    source, mask, inputs = problem()
    model = bind(params)
    state = model.encode(source, mask)
    for run in (partial(model.encode, source, mask), partial(model.decode, state, inputs)):
        with pytest.raises(UserError, match="unknown dropout rate 'output_dropout'"):
            run(rates={"output_dropout": 0.5})


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (dict(cell="simple_rnn", embed_size=0, hidden_size=128, vocab=(41, 41)), 48_809),
        (dict(embed_size=0, hidden_size=32, vocab=(23, 24)), 15_256),
        (dict(embed_size=128, hidden_size=512, vocab=(2_000, 2_000)), 4_163_536),
    ],
)
def test_parameter_counts_are_those_of_the_tutorials(changes, count):
    source, target = changes.pop("vocab")
    options = OPTIONS | changes | dict(source_vocab_size=source, target_vocab_size=target)
    init, _ = functional(lambda rngs: Seq2Seq(rngs=rngs, **options))
    assert count_parameters(parameter_shapes(init)) == count


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(share_embeddings=True, target_vocab_size=12), "one vocabulary"),
        (dict(share_embeddings=True, embed_size=0), "share_embeddings"),
        (dict(tie_output=True, embed_size=0), "embed_size"),
        (dict(input_feeding=True), "set model.attention=dot"),
        (dict(attention="dots"), "did you mean 'dot'"),
        (dict(token_dropout=1.0), "token_dropout=1.0 must be in"),
        (dict(token_dropout=-0.1), "token_dropout=-0.1 must be in"),
        (dict(encoder_output_dropout=(0.5,)), "never read"),
    ],
)
def test_options_that_do_not_fit_are_one_line(changes, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        make(**changes)
    assert "\n" not in str(error.value)
