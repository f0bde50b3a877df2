"""Beam search against exhaustive search, greedy decoding and hand-made chains."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from support.decoding import (
    BOS,
    EOS,
    PAD,
    PENALTIES,
    B,
    T,
    V,
    chain_state,
    every_option_set,
    fast_beam,
    fast_greedy,
    forced_logits,
    log_softmax,
    normalizer,
    penalized,
    repeated,
    sums_of,
    table_state,
    table_step,
    take_rows,
    toy_state,
    toy_step,
)
from support.oracles import assert_same

from seqjax.decoding.constraints import DecodeOptions


@every_option_set
def test_a_beam_of_one_is_greedy(options):
    step, state = toy_step(8), toy_state(40)
    want = fast_greedy(step, state, options)
    for penalty in PENALTIES if options == DecodeOptions(T) else PENALTIES[:-1]:
        got = fast_beam(step, state, options, beam_size=1, length_penalty=penalty)
        assert_same(got.tokens[:, 0], want.tokens)
        assert_same((got.lengths[:, 0], got.finished[:, 0]), (want.lengths, want.finished))
        np.testing.assert_allclose(got.scores[:, 0], want.scores, rtol=1e-6)


def every_sequence(options):
    """All sequences of the toy's vocabulary that the constraints allow, padded, as an array."""
    words = [token for token in range(V) if token != EOS and token not in options.banned_ids]
    bound, n = options.max_length, options.no_repeat_ngram
    ended = [
        (*words_, EOS)
        for length in range(options.min_length, bound)
        for words_ in itertools.product(words, repeat=length)
    ]
    kept = [
        s
        for s in ended + list(itertools.product(words, repeat=bound))
        if not (n and repeated(s, n))
    ]
    return np.array([[*s, *[PAD] * (bound - len(s))] for s in kept], np.int32)


@pytest.mark.parametrize(
    ("changes", "penalties"),
    [
        ({}, PENALTIES),
        ({"min_length": 2}, [0.0, 1.0]),
        ({"ban_unknown": True}, [0.0, 1.0]),
        ({"no_repeat_ngram": 2}, [0.0, 1.0]),
        ({"repetition_penalty": 1.5, "min_length": 1}, [0.0, 1.0]),
    ],
    ids=str,
)
def test_a_beam_as_wide_as_the_tree_is_exhaustive_search(changes, penalties):
    options, rows, n_best = DecodeOptions(4, **changes), 3, 6
    step, state, sequences = toy_step(3), toy_state(rows), every_sequence(options)
    own, steered = np.zeros((2, rows, len(sequences)))
    for row in range(rows):
        logits = forced_logits(step, take_rows(state, [row] * len(sequences)), sequences)
        own[row] = sums_of(logits, sequences)
        steered[row] = sums_of(penalized(logits, sequences, options), sequences)
    lengths, finished = np.sum(sequences != PAD, axis=1), np.any(sequences == EOS, axis=1)
    for penalty in penalties:
        # 4 words and the end: at most 4 ** 3 live prefixes with 5 extensions each.
        got = fast_beam(step, state, options, 320, n_best, penalty)
        for row in range(rows):
            best = np.lexsort((-steered[row] / normalizer(penalty, lengths), ~finished))[:n_best]
            np.testing.assert_array_equal(got.tokens[row], sequences[best])
            np.testing.assert_array_equal(got.lengths[row], lengths[best])
            np.testing.assert_array_equal(got.finished[row], finished[best])
            want = own[row, best]  # in float64
            np.testing.assert_allclose(got.scores[row], want, rtol=1e-5)
            want = want / normalizer(penalty, lengths[best])
            np.testing.assert_allclose(got.normalized_scores[row], want, rtol=1e-5)


def clocked_step(state, token):
    """Logits from a different table at every step, so that no two sequences tie."""
    tables, count = state
    rows = jnp.arange(len(token))
    return (tables, count + 1), tables[rows, count, token]


def listed_beam(log_probs, options, beam_size, n_best, penalty):
    """The n best `(tokens, score, finished)` of a beam kept in lists, which never stops early."""
    live, ended, n = [((), 0.0)], [], options.no_repeat_ngram
    for length in range(1, options.max_length + 1):
        longer = [
            ((*tokens, token), score + log_probs[length - 1, (BOS, *tokens)[-1], token])
            for tokens, score in live
            for token in range(EOS, V)
            if not (n and repeated((*tokens, token), n))
        ]
        longer = sorted(longer, key=lambda pair: -pair[1])[:beam_size]
        live = [pair for pair in longer if pair[0][-1] != EOS]
        ended += [pair for pair in longer if pair[0][-1] == EOS]
    ended.sort(key=lambda pair: -pair[1] / normalizer(penalty, len(pair[0])))
    return [(*pair, pair in ended) for pair in (ended + live)[:n_best]]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("beam_size", "n_best", "ngram"), [(2, 1, 0), (4, 3, 2)])
def test_narrow_beams_are_those_kept_in_lists(beam_size, n_best, ngram, penalty):
    rows, options = 60, DecodeOptions(T, no_repeat_ngram=ngram)
    tables = np.float32(2 * np.random.default_rng(0).standard_normal((rows, T, V, V)))
    tables[..., EOS] += np.linspace(-3, 2, rows)[:, None, None]
    state = (tables, np.zeros(rows, np.int32))
    best = fast_beam(clocked_step, state, options, beam_size, n_best, penalty)
    got = zip(*map(np.asarray, (best.tokens, best.scores, best.finished)), strict=True)
    for table, hypotheses in zip(tables, got, strict=True):
        want = listed_beam(log_softmax(table), options, beam_size, n_best, penalty)
        for tokens, score, ended, hypothesis in zip(*hypotheses, want, strict=True):
            assert (tuple(tokens[tokens != PAD]), ended) == hypothesis[::2]
            np.testing.assert_allclose(score, hypothesis[1], rtol=1e-5)


def test_the_length_penalty_decides_which_length_wins():
    """Ending at once costs 0.69 nats, the end after three words 0.83.

    After one step the longer one is behind by any measure: a search that stops there loses it.
    """
    state = chain_state({}, {EOS: 0.0, 4: -0.01}, {}, {}, {5: 0.0, 6: -2}, {6: 0.0}, {EOS: 0.0})
    options = DecodeOptions(20)
    for penalty, length in ((0.0, 1), (1.0, 4), ("average", 4)):
        got = fast_beam(table_step, state, options, beam_size=4, length_penalty=penalty)
        assert got.lengths[0, 0] == length and got.finished[0, 0]
        want = np.asarray(got.scores) / normalizer(penalty, length)
        np.testing.assert_allclose(got.normalized_scores, want, rtol=1e-6)
        assert got.num_steps < 10


def test_cut_off_comes_after_finished_and_empty_slots_last():
    """With one word and two steps there are just [end], [word, end] and [word, word]."""
    options = DecodeOptions(2, ban_unknown=True)
    state = table_state(1, vocab_size=5)
    state[0, BOS, EOS] = -9
    got = fast_beam(table_step, state, options, beam_size=5, n_best=5)
    np.testing.assert_array_equal(
        got.tokens[0], [[4, EOS], [EOS, PAD], [4, 4], [PAD, PAD], [PAD, PAD]]
    )
    np.testing.assert_array_equal(got.lengths[0], [2, 1, 2, 0, 0])
    np.testing.assert_array_equal(got.finished[0], [True, True, False, False, False])
    assert np.all(got.scores[0, 3:] == -np.inf) and np.all(np.isfinite(got.scores[0, :3]))
    assert np.all(got.normalized_scores[0, 3:] == -np.inf)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_stopping_early_loses_nothing(penalty):
    """A row stops for its N best; with more slots to fill it runs longer and finds the same ones.

    Among the rows are some that find their best at once while others go on to the bound, where what
    they have found must not change any more.
    """
    options = DecodeOptions(20)
    step, state = toy_step(5), toy_state(B, end_bias=4.0)
    few, many = (
        fast_beam(step, state, options, beam_size=6, n_best=n, length_penalty=penalty)
        for n in (1, 6)
    )
    assert_same(few[:5], tuple(np.asarray(x)[:, :1] for x in many[:5]))
