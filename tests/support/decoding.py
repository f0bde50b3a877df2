"""Small decode steps, and the scores of their sequences, for the tests of decoders."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.decoding.beam_search import beam_search
from seqjax.decoding.constraints import DecodeOptions
from seqjax.decoding.sampling import Sequences, greedy, sample
from seqjax.nn.dropout import row_keys
from seqjax.typing import SpecialIds

PAD, BOS, EOS, UNK = SpecialIds()
B, V, H, T = 12, 7, 3, 8

# Some eighty small programs: half of the time goes if LLVM does not optimize them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
fast_greedy = jit(greedy, static_argnums=(0, 2))
fast_keys = jit(lambda seed, rows: row_keys(jax.random.key(seed), rows), static_argnums=1)
fast_sample = jit(sample, static_argnums=(0, 2), static_argnames="top_k")


def fast_beam(step, state, options, beam_size, n_best=1, length_penalty=0.6):
    run = beam_by_mean if length_penalty == "average" else beam_by_power
    return run(step, state, options, beam_size, n_best, length_penalty)


def _beam(step, state, options, beam_size, n_best, length_penalty):
    sizes = {"beam_size": beam_size, "n_best": n_best}
    return beam_search(step, state, options, length_penalty=length_penalty, **sizes)


beam_by_power = jit(_beam, static_argnums=(0, 2, 3, 4))
beam_by_mean = jit(_beam, static_argnums=(0, 2, 3, 4, 5))


@functools.cache
def toy_step(seed: int):
    """A decoder whose logits depend on a recurrent state, on every past input and on the row."""
    rng = np.random.default_rng(seed)
    shapes = ((V, H), (H, H), (H, V), (40, V))
    embed, recur, out, past = (np.float32(rng.standard_normal(shape)) for shape in shapes)

    def step(state, token):
        (h, extra), (history, count) = state
        h = jnp.tanh(h @ recur + jnp.asarray(embed)[token])
        history = history.at[jnp.arange(len(token)), count].set(token)
        logits = 1.5 * h @ out + jnp.cos(history @ past) + extra["bias"]
        return ((h, extra), (history, count + 1)), logits

    return step


def toy_state(rows: int, seed: int = 0, end_bias: float = 0.0):
    """A pytree of nested tuples; every row is another problem, its end more or less probable."""
    rng = np.random.default_rng(seed)
    h, bias = rng.standard_normal((rows, H)), rng.standard_normal((rows, V))
    bias[:, EOS] += end_bias + rng.uniform(-3, 1, rows)
    history = (np.zeros((rows, 40), np.int32), np.zeros(rows, np.int32))
    return (np.float32(h), {"bias": np.float32(bias)}), history


def table_step(state, token):
    """Logits from a table in the state: `[B, previous token, V]`, exact whatever the batch."""
    return state, state[jnp.arange(len(token)), token]


def table_state(rows: int, seed: int = 0, vocab_size: int = V):
    rng = np.random.default_rng(seed)
    return np.float32(2 * rng.standard_normal((rows, vocab_size, vocab_size)))


def chain_state(*logits: dict[int, float], vocab_size: int = V):
    """A table for one row: after token i the listed logits, -30 for the others."""
    table = np.full((1, vocab_size, vocab_size), -30.0, np.float32)
    for previous, row in enumerate(logits):
        for token, logit in row.items():
            table[0, previous, token] = logit
    return table


@partial(jit, static_argnums=0)
def forced_logits(step, state, tokens):
    """Logits `[B, T, V]` of a run in which `tokens [B, T]` are emitted."""
    inputs = jnp.concatenate([jnp.full((len(tokens), 1), BOS), tokens[:, :-1]], axis=1)
    return jnp.moveaxis(jax.lax.scan(step, state, inputs.T)[1], 0, 1)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def take_rows(tree, index):
    index = np.array(index)
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def sums_of(logits, tokens):
    """The log-probability of each row's tokens up to the padding."""
    own = np.take_along_axis(log_softmax(logits), np.asarray(tokens)[..., None], axis=-1)[..., 0]
    return np.sum(own, axis=1, where=np.asarray(tokens) != PAD)


def rescored(step, state, tokens):
    """The same, by feeding the tokens to the model."""
    return sums_of(forced_logits(step, state, tokens), tokens)


def normalizer(length_penalty, length):
    return length if length_penalty == "average" else ((5 + length) / 6) ** length_penalty


def decoders(step, state, options):
    """Each decoder's initial states and `Sequences`, with a row for every hypothesis."""
    rows = len(jax.tree.leaves(state)[0])
    keys = fast_keys(0, rows)
    yield state, fast_greedy(step, state, options)
    yield state, fast_sample(step, state, options, keys, top_p=0.95, temperature=1.5)
    best = fast_beam(step, state, options, beam_size=3, n_best=3)
    flat = [np.reshape(x, (-1, *x.shape[2:])) for x in (*best[:3], best.finished)]
    decoded = Sequences(*flat, best.num_steps)
    yield take_rows(state, np.repeat(np.arange(rows), 3)), decoded


def repeated(tokens, n):
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) < len(grams)


OPTION_SETS = {
    "plain": DecodeOptions(T),
    "banned": DecodeOptions(T, min_length=3, ban_unknown=True),
    "penalized": DecodeOptions(T, repetition_penalty=1.7, no_repeat_ngram=3),
    "long": DecodeOptions(T, min_length=T - 1, repetition_penalty=0.6, no_repeat_ngram=2),
    "once": DecodeOptions(T, min_length=2, no_repeat_ngram=1),
}
every_option_set = pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
PENALTIES = [0.0, 0.6, 2.0, "average"]


def penalize(logits, emitted, options):
    """Lowers (for a penalty above 1) the logits of what was emitted, whatever their sign."""
    for token in set(emitted) - {PAD}:
        logits[token] *= options.repetition_penalty ** (-1 if logits[token] > 0 else 1)


def penalized(logits, sequences, options):
    """Logits `[B, T, V]`, every step penalized for the steps before it."""
    logits = np.array(logits, np.float64)
    for of_sequence, sequence in zip(logits, sequences.tolist(), strict=True):
        for step, at_step in enumerate(of_sequence):
            penalize(at_step, sequence[:step], options)
    return logits
