"""What holds for every decoder; greedy decoding and sampling."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.decoding import (
    BOS,
    EOS,
    PAD,
    UNK,
    B,
    T,
    V,
    chain_state,
    decoders,
    every_option_set,
    fast_beam,
    fast_greedy,
    fast_keys,
    fast_sample,
    jit,
    log_softmax,
    penalize,
    repeated,
    rescored,
    table_state,
    table_step,
    take_rows,
    toy_state,
    toy_step,
)
from support.oracles import assert_same

from seqjax.decoding.beam_search import beam_search
from seqjax.decoding.constraints import DecodeOptions
from seqjax.decoding.sampling import decode_token, greedy, sample, start_decoding
from seqjax.errors import UserError
from seqjax.typing import SpecialIds

fast_start = jit(start_decoding, static_argnums=1)
fast_token = jit(decode_token, static_argnums=(0, 1))


@every_option_set
def test_every_decoder_keeps_every_promise(options):
    """Padding, flags, scores and constraints, of every sequence of every decoder.

    The scores are those of a run that is fed the sequence, which they can only be if a hypothesis
    has kept the state, with its history, that belongs to it.
    """
    n = options.no_repeat_ngram
    for states, got in decoders(toy_step(7), toy_state(B), options):
        want = rescored(toy_step(7), states, got.tokens)
        np.testing.assert_allclose(got.scores, want, rtol=1e-5)
        assert np.any(got.finished)
        for tokens, length, finished in zip(*map(np.asarray, (*got[:2], got[3])), strict=True):
            emitted, rest = tokens[:length], tokens[length:]
            assert 1 <= length <= T and not rest.any()
            assert finished == (emitted[-1] == EOS) and EOS not in emitted[:-1]
            assert finished or length == T
            assert not set(options.banned_ids) & set(emitted)
            assert not (n and repeated(emitted, n))
            assert length > options.min_length or not finished


def numpy_greedy(logits_of, options):
    """One row's tokens, the constraints written out: `logits_of` maps a prefix to logits."""
    tokens, n = [], options.no_repeat_ngram
    while len(tokens) < options.max_length and EOS not in tokens:
        logits = np.array(logits_of(tokens), np.float64)
        penalize(logits, tokens, options)
        order = [token for token in np.argsort(-logits) if token not in options.banned_ids]
        if len(tokens) < options.min_length:
            order.remove(EOS)
        if n:
            order = [token for token in order if not repeated([*tokens, token], n)]
        tokens.append(int((order or [EOS])[0]))
    return tokens


@every_option_set
def test_greedy_is_the_loop_in_numpy(options):
    state = table_state(40)
    got = fast_greedy(table_step, state, options)
    for table, tokens, length in zip(state, *map(np.asarray, got[:2]), strict=True):
        want = numpy_greedy(lambda prefix, t=table: t[prefix[-1] if prefix else BOS], options)
        assert tokens[:length].tolist() == want


@pytest.mark.parametrize("decoder", range(3), ids=["greedy", "sample", "beam"])
def test_a_row_is_decoded_alike_in_any_batch(decoder):
    """To the bit: alone, in another order and beside copies of itself.

    The logits are read from a table. Those of a matrix product depend on the batch in the last bit.
    """
    options, table = DecodeOptions(T, no_repeat_ngram=3), table_state(8)
    keys = fast_keys(1, 8)

    def run(index):
        state = take_rows(table, index)
        if decoder == 0:
            return fast_greedy(table_step, state, options)[:4]
        if decoder == 1:
            own_keys = keys[jnp.array(index)]
            return fast_sample(table_step, state, options, own_keys, top_p=0.95)[:4]
        return fast_beam(table_step, state, options, beam_size=3, n_best=2)[:5]

    whole = run(range(8))
    for index in ([3], [4], [7, 0, 3, 3, 1, 2, 5, 5]):
        assert_same(run(index), take_rows(whole, index))


@every_option_set
def test_steps_one_by_one_are_greedy(options):
    """Step by step, as a reply is shown while it grows: the loop's tokens, scores and flags."""
    step, state = toy_step(5), toy_state(B)
    want = fast_greedy(step, state, options)
    now = fast_start(state, options)
    for count in range(int(want.num_steps)):
        assert now.step == count and not np.all(now.finished)
        assert_same(now.tokens[:, :count], want.tokens[:, :count])
        assert not np.any(now.tokens[:, count:])
        now = fast_token(step, options, now)
    assert_same((now.tokens, now.finished), (want.tokens, want.finished))
    np.testing.assert_allclose(now.scores, want.scores, rtol=1e-6)  # compiled in another program
    # A row that has ended stays as it is.
    if now.step < options.max_length:
        more = fast_token(step, options, now)
        assert_same((more.tokens, more.scores), (now.tokens, now.scores))


def test_temperature_0_and_top_1_are_greedy():
    step, state = toy_step(4), toy_state(B)
    options, keys = DecodeOptions(T), fast_keys(0, B)
    want = fast_greedy(step, state, options)
    for choice in (
        {"temperature": 0.0},
        {"temperature": 1e-5},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 0.0, "top_p": 0.9},
        {"temperature": 5.0, "top_k": 3, "top_p": 1e-6},
    ):
        assert_same(fast_sample(step, state, options, keys, **choice), want)


def test_a_filter_that_lets_all_pass_changes_no_draw():
    state, options, keys = table_state(B), DecodeOptions(T), fast_keys(0, B)
    want = fast_sample(table_step, state, options, keys)
    for choice in ({"top_k": V}, {"top_p": 1.0}):
        assert_same(fast_sample(table_step, state, options, keys, **choice), want)


def test_of_tied_tokens_top_k_keeps_exactly_k():
    keys, options = fast_keys(0, B * B), DecodeOptions(1)
    got = fast_sample(table_step, np.zeros((B * B, V, V), np.float32), options, keys, top_k=2)
    assert set(np.asarray(got.tokens[:, 0])) == {EOS, UNK}


def nucleus(probabilities, top_p):
    """The ids of the nucleus, in float64: the loop of the definition."""
    total, least = 0.0, 1.0
    for probability in sorted(probabilities, reverse=True):
        if total >= top_p:
            break
        total, least = total + probability, probability
    return np.flatnonzero(probabilities >= least)


@pytest.mark.parametrize(
    ("temperature", "choice"),
    [
        (1.0, {}),
        (0.5, {}),
        (2.0, {}),
        (1.0, {"top_k": 3}),
        (1.0, {"top_p": 0.8}),
        (1.5, {"top_k": 4, "top_p": 0.7}),
        (1.0, {"top_k": 100, "top_p": 1.0}),
    ],
    ids=str,
)
def test_samples_are_as_frequent_as_they_are_probable(temperature, choice):
    """Chi-square over 20,000 rows of one step; the limit is exceeded once in a million."""
    rows, options = 20_000, DecodeOptions(1)
    logits = np.array([9, 8, 0.3, 1.2, -0.5, 0.9, -1.0], np.float32)  # padding and start on top
    state = np.broadcast_to(logits, (rows, V, V))
    got = fast_sample(
        table_step, state, options, fast_keys(3, rows), temperature=temperature, **choice
    )
    counts = np.bincount(np.asarray(got.tokens[:, 0]), minlength=V)

    scaled = np.where(np.arange(V) < EOS, -np.inf, logits) / temperature
    scaled[np.argsort(-scaled)[choice.get("top_k", V) :]] = -np.inf
    expected = np.exp(log_softmax(scaled))
    kept = nucleus(expected, choice.get("top_p", 1.0) - 1e-12)
    expected = np.where(np.isin(np.arange(V), kept), expected, 0)
    expected *= rows / expected.sum()
    assert not np.any(counts[expected == 0])
    possible = expected > 0
    assert possible.sum() >= 2
    # The 1e-6 quantiles of chi-square with 1 to 4 degrees of freedom.
    limit = [23.9, 27.6, 30.7, 33.4][possible.sum() - 2]
    assert np.sum((counts - expected)[possible] ** 2 / expected[possible]) < limit


def drawn(logits, rows=4000, **choice):
    """The set of ids that so many rows draw from the logits of one step."""
    state = np.broadcast_to(np.float32(logits), (rows, 1, len(logits)))
    got = fast_sample(table_step, state, DecodeOptions(1), fast_keys(5, rows), **choice)
    return set(np.asarray(got.tokens)[:, 0].tolist())


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p():
    """Random distributions over many words: no draw outside, and every member is drawn."""
    rng = np.random.default_rng(0)
    for top_p in (0.05, 0.5, 0.9):
        logits = 2 * rng.standard_normal(60)
        logits[[PAD, BOS]] = -np.inf
        # top_p refers to the distribution at this temperature.
        want = nucleus(np.exp(log_softmax(logits / 4.0)), top_p)
        assert drawn(logits, top_p=top_p, temperature=4.0) == set(want)


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        ({"top_p": 1e-6}, {4}),
        ({"top_p": 0.39}, {4}),
        ({"top_p": 0.41}, {2, 3, 4, 6}),  # one of the three would be enough, but they tie
        ({"top_p": 0.99}, {2, 3, 4, 6}),
        ({"top_p": 0.7, "top_k": 2}, {2, 4}),  # two thirds and one third of the two that are left
        ({"top_p": 0.6, "top_k": 2}, {4}),
    ],
    ids=str,
)
def test_ties_at_the_border_of_the_nucleus_are_kept(choice, want):
    probabilities = np.array([0, 0, 0.2, 0.2, 0.4, 0, 0.2])
    with np.errstate(divide="ignore"):
        assert drawn(np.log(probabilities), **choice) == want
    if "top_k" not in choice:
        assert set(nucleus(probabilities, choice["top_p"])) == want


@pytest.mark.parametrize("choice", [{"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.8}])
def test_a_filter_leaves_the_draws_that_it_allows(choice):
    """The noise of a token does not depend on which other tokens are left."""
    rows, options = 500, DecodeOptions(1)
    state, keys = table_state(rows), fast_keys(2, rows)
    free, got = (
        np.asarray(fast_sample(table_step, state, options, keys, **filters).tokens)[:, 0]
        for filters in ({}, choice)
    )
    allowed = np.zeros(rows, bool)
    for row, logits in enumerate(state[:, BOS]):
        logits[[PAD, BOS]] = -np.inf
        ids = np.argsort(-logits)[: choice.get("top_k")]
        probabilities = np.exp(log_softmax(logits[ids]))
        allowed[row] = free[row] in ids[nucleus(probabilities, choice.get("top_p", 2))]
    assert 0.2 < allowed.mean() < 0.95
    assert_same(got[allowed], free[allowed])
    assert np.all(got[~allowed] != free[~allowed])


def test_a_key_is_used_for_one_token_only():
    """Rows of one key agree, others do not; the steps of a row are independent draws."""
    state = np.zeros((200, V, V), np.float32)
    options = DecodeOptions(2, min_length=1)
    keys = fast_keys(0, 200)
    tokens = np.asarray(fast_sample(table_step, state, options, keys).tokens)
    again = fast_sample(table_step, state, options, keys[jnp.zeros(200, int)]).tokens
    assert_same(again, np.broadcast_to(tokens[0], (200, 2)))
    pairs = {tuple(pair) for pair in tokens}
    assert len(pairs) == 4 * 5  # 4 words, then one of them or the end


@pytest.mark.parametrize("decode", [fast_greedy, partial(fast_beam, beam_size=2)])
def test_decoding_stops_when_every_row_has_ended(decode):
    """Rows of 2 and 4 tokens: four calls of the model, counted from outside, of a bound of 50."""
    calls = []

    def step(state, token):
        jax.debug.callback(lambda: calls.append(1))
        return table_step(state, token)

    short = chain_state({}, {4: 0}, {}, {}, {EOS: 0})
    long = chain_state({}, {4: 0}, {}, {}, {5: 0}, {6: 0}, {EOS: 0})
    got = decode(step, np.concatenate([short, long]), DecodeOptions(50))
    jax.effects_barrier()
    assert len(calls) == got.num_steps == 4
    assert got.lengths.reshape(-1).tolist() == [2, 4] and got.finished.all()


@pytest.mark.parametrize("size", [60.0, 1e4, 1e30, np.inf])
def test_padding_and_start_are_never_emitted_however_probable(size):
    state = table_state(B)
    state[:, :, [PAD, BOS]] = size
    for _, got in decoders(table_step, state, DecodeOptions(T, min_length=2)):
        real = np.arange(T) < np.asarray(got.lengths)[:, None]
        assert np.all(np.asarray(got.tokens)[real] >= EOS) and np.all(got.lengths >= 1)
        assert np.all(np.asarray(got.scores) < -50) and np.all(np.isfinite(got.scores))


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_impossible_tokens_make_no_nan_and_are_no_choice(share):
    """Logits of -inf: never chosen while anything else is possible; with nothing left, the end."""
    state = table_state(B)
    impossible = np.random.default_rng(0).random(state.shape) < share
    state[impossible] = -np.inf
    for states, got in decoders(table_step, state, DecodeOptions(T, min_length=2)):
        assert not np.any(np.isnan(got.scores))
        for table, tokens, length in zip(states, *map(np.asarray, got[:2]), strict=True):
            for step, (previous, token) in enumerate(itertools.pairwise([BOS, *tokens[:length]])):
                choices = np.flatnonzero(table[previous] > -np.inf)
                choices = set(choices) - {PAD, BOS, *([EOS] if step < 2 else [])}
                assert token in choices or (token == EOS and not choices)


def test_half_precision_logits_are_scored_in_float32():
    state = jnp.asarray(table_state(B), jnp.bfloat16)
    got = fast_greedy(table_step, state, DecodeOptions(T))
    assert got.scores.dtype == jnp.float32
    np.testing.assert_allclose(got.scores, rescored(table_step, state, got.tokens), rtol=1e-5)


def test_double_precision_changes_nothing():
    state, options = table_state(B), DecodeOptions(T, min_length=2)
    want = list(decoders(table_step, state, options))
    with jax.enable_x64(True):
        for (_, got), (_, old) in zip(
            decoders(table_step, np.float64(state), options), want, strict=True
        ):
            assert_same((got.tokens, got.finished), (old.tokens, old.finished))
            np.testing.assert_allclose(got.scores, old.scores, rtol=1e-5)


def test_the_same_shapes_compile_once():
    traces = []

    def step(state, token):
        traces.append(1)
        return table_step(state, token)

    options, keys = DecodeOptions(T), fast_keys(0, B)
    runs = {
        "greedy": lambda state, x: fast_greedy(step, state, options),
        "sample": lambda state, x: fast_sample(
            step, state, options, keys, temperature=x, top_p=0.9 * x
        ),
        "beam": lambda state, x: fast_beam(step, state, options, beam_size=2),
    }
    for run in runs.values():
        run(table_state(B), 1.0)
        count = len(traces)
        run(table_state(B, seed=1), 0.5)
        assert len(traces) == count
    equal = dataclasses.replace(options, max_length=T)
    fast_greedy(step, table_state(B), equal)
    assert len(traces) == count


def test_special_ids_may_be_any():
    """The same problem with its symbols renumbered gives the same tokens, renumbered."""
    places = np.array([6, 3, 0, 5, 1, 2, 4])  # of the old ids
    ids = SpecialIds(*(int(place) for place in places[:4]))
    state = table_state(B)
    moved = np.empty_like(state)
    moved[:, places[:, None], places] = state
    options = DecodeOptions(T, ban_unknown=True, repetition_penalty=1.3)
    new_options = dataclasses.replace(options, ids=ids)
    for decode in (fast_greedy, partial(fast_beam, beam_size=3)):
        old, new = decode(table_step, state, options), decode(table_step, moved, new_options)
        np.testing.assert_array_equal(places[np.asarray(old.tokens)], new.tokens)
        np.testing.assert_allclose(old.scores, new.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"min_length": 8}, "min_length=8 must be in [0, 8)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be positive"),
        ({"no_repeat_ngram": 9}, "no_repeat_ngram=9 must be in [0, 8], the max_length"),
        ({"ids": SpecialIds(eos_id=0)}, "eos_id=0 must be none of the banned ids (0, 1)"),
        ({"ids": SpecialIds(pad_id=-1)}, "must be at least 0 each"),
        ({"ids": SpecialIds(unk_id=2), "ban_unknown": True}, "eos_id=2 must be none of"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        DecodeOptions(**{"max_length": 8} | changes)
    assert message in str(error.value) and "\n" not in str(error.value)


OPTIONS, STATE = DecodeOptions(3), table_state(2)
KEYS = fast_keys(0, 2)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (partial(sample, keys=KEYS, temperature=-1.0), "temperature=-1.0 must be in [0, 1000]"),
        (partial(sample, keys=KEYS, temperature=1001), "temperature=1001 must be in [0, 1000]"),
        (partial(sample, keys=KEYS, temperature=np.nan), "temperature=nan must be in [0, 1000]"),
        (partial(sample, keys=KEYS, top_k=0), "top_k=0 must be at least 1"),
        (partial(sample, keys=KEYS, top_p=0.0), "top_p=0.0 must be in (0, 1]"),
        (partial(sample, keys=KEYS, top_p=2), "top_p=2 must be in (0, 1]"),
        (partial(sample, keys=KEYS[:1]), "keys=[1] must be one for each of 2 rows"),
        (partial(beam_search, beam_size=0), "beam_size=0 must be at least 1"),
        (partial(beam_search, beam_size=2, n_best=3), "n_best=3 must be in [1, 2], the beam_size"),
        (partial(beam_search, beam_size=2, length_penalty=-1.0), "must be at least 0"),
    ],
)
def test_wrong_choices_are_refused(run, message):
    with pytest.raises(UserError) as error:
        run(table_step, STATE, OPTIONS)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("state", [(), jnp.zeros(()), (jnp.zeros(2), jnp.zeros(3))], ids=str)
def test_a_state_without_a_batch_size_is_refused(state):
    with pytest.raises(UserError, match="one leading batch size"):
        greedy(table_step, state, OPTIONS)


def test_a_vocabulary_without_the_special_ids_is_refused():
    ids = SpecialIds(eos_id=7)
    with pytest.raises(UserError, match="7 logits are too few"):
        greedy(table_step, STATE, DecodeOptions(3, ids=ids))
