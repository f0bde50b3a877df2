"""Greedy decoding and sampling over any `decode_step`.

Each is one `jax.lax.while_loop` over the whole batch, which ends when every row has ended or the
length bound is reached; call it inside `jax.jit`, with parameters as arguments. The first input is
the start token. The result of a row does not depend on the other rows of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from seqjax.decoding.constraints import (
    DecodeOptions,
    DecodeStep,
    allowed_tokens,
    finite_logits,
    leading_size,
    penalize_repeats,
)
from seqjax.errors import require
from seqjax.metrics import argmax
from seqjax.typing import RowKeys

MAX_TEMPERATURE = 1000  # uniform for all practical purposes; noise cannot overflow


class Sequences(NamedTuple):
    """One sequence for each row, and its probability under the model."""

    tokens: Int[Array, "B T"]  # the end token included, padding after it; T is max_length
    lengths: Int[Array, " B"]  # number of emitted tokens, the end token included
    scores: Float[Array, " B"]  # nats: the model's own log-probability of these tokens
    finished: Bool[Array, " B"]  # False if the sequence was cut off at the bound
    num_steps: Int[Array, ""]  # number of calls of `decode_step`


class Decoding(NamedTuple):
    """The sequences of all rows after some steps."""

    step: Int[Array, ""]
    state: PyTree
    token: Int[Array, " B"]  # the last token of each row
    tokens: Int[Array, "B T"]
    scores: Float[Array, " B"]
    finished: Bool[Array, " B"]


# (logits, step) -> the next token of each row
Choose = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]


def greedy(decode_step: DecodeStep, state: PyTree, options: DecodeOptions) -> Sequences:
    """Returns tokens `[B, T]`: at every step the most probable one that is allowed.

    `state` is a pytree of arrays `[B, ...]`. Raises UserError if they do not share one B.
    """
    return _decode(decode_step, state, options, _most_probable)


def sample(
    decode_step: DecodeStep,
    state: PyTree,
    options: DecodeOptions,
    keys: RowKeys,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Sequences:
    """Returns tokens `[B, T]`, each row drawn with its own key from `keys [B]`.

    - `temperature` divides the logits; 0 is greedy decoding.
    - `top_k` keeps only the k most probable tokens; of tied tokens, those with the lowest ids.
    - `top_p` keeps, of these, only the smallest set of most probable tokens whose probabilities
      sum to at least `top_p` (nucleus sampling, Holtzman et al., 2020). All tokens that tie with
      the least probable one of the set are kept too.

    `temperature` and `top_p` may be traced, and are then not checked. `scores` are the model's own
    log-probabilities, before any of this. Raises UserError for a number out of its range.
    """
    check_sampling(temperature, top_k, top_p)
    batch_size = leading_size(state)
    require("keys", f"[{len(keys)}]", len(keys) == batch_size, f"one for each of {batch_size} rows")

    def draw(logits: Float[Array, "B V"], step: Int[Array, ""]) -> Int[Array, " B"]:
        def gumbel(key):
            return jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[1:], logits.dtype)

        # Each id has its own noise, whatever its rank, so removing some ids does not change the
        # draws among the others. The noise is multiplied by the temperature, instead of dividing
        # the logits by it: 0 needs no special case.
        noise = temperature * jax.vmap(gumbel)(keys)
        if top_k is not None:
            logits, ids = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
            noise = jnp.take_along_axis(noise, ids, axis=-1)
        if top_p is not None:
            logits = jnp.where(_nucleus(logits, temperature, top_p), logits, -jnp.inf)
        best = argmax(logits + noise)
        return best if top_k is None else _pick(ids, best)

    return _decode(decode_step, state, options, draw)


def check_sampling(
    temperature: float | Float[Array, ""],
    top_k: int | None,
    top_p: float | Float[Array, ""] | None,
) -> None:
    """Raises UserError for an option of `sample` out of its range; arrays are not checked."""
    if isinstance(temperature, (int, float)):
        holds = 0 <= temperature <= MAX_TEMPERATURE
        require("temperature", temperature, holds, f"in [0, {MAX_TEMPERATURE}]")
    if top_k is not None:
        require("top_k", top_k, top_k >= 1, "at least 1")
    if isinstance(top_p, (int, float)):
        require("top_p", top_p, 0 < top_p <= 1, "in (0, 1]")


def _nucleus(
    logits: Float[Array, "B N"],
    temperature: float | Float[Array, ""],
    top_p: float | Float[Array, ""],
) -> Bool[Array, "B N"]:
    """Returns the smallest set of most probable ids that reaches `top_p`, ties included."""
    scale = jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    probabilities = jax.nn.softmax(shifted / scale, axis=-1)
    descending = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.sum(jnp.cumsum(descending, axis=-1) < top_p, axis=-1, keepdims=True)
    least = jnp.take_along_axis(descending, before, axis=-1, mode="clip")
    return (probabilities >= least) | (top_p >= 1)  # rounded sums reach 1 before the tail


def start_decoding(state: PyTree, options: DecodeOptions) -> Decoding:
    """Returns the `Decoding` before the first token of each row.

    Raises UserError if the arrays of the state do not share one leading size.
    """
    batch_size, ids = leading_size(state), options.ids
    return Decoding(
        jnp.int32(0),
        state,
        jnp.full(batch_size, ids.bos_id, jnp.int32),
        jnp.full((batch_size, options.max_length), ids.pad_id, jnp.int32),
        jnp.zeros(batch_size, jnp.float32),
        jnp.zeros(batch_size, bool),
    )


def _most_probable(logits: Float[Array, "B V"], step: Int[Array, ""]) -> Int[Array, " B"]:
    """Returns the choice of greedy decoding."""
    return argmax(logits)


def decode_token(
    decode_step: DecodeStep, options: DecodeOptions, now: Decoding, choose: Choose = _most_probable
) -> Decoding:
    """Returns the `Decoding` after one more token of each row, by default the most probable one.

    `choose` gets logits that are -inf where a token is not allowed. `greedy` and `sample` are loops
    of this function; called step by step, it shows a reply as it grows.
    """
    ids = options.ids
    state, logits = decode_step(now.state, now.token)
    logits = finite_logits(options, logits)
    allowed = allowed_tokens(options, logits, now.tokens, now.step)
    choices = jnp.where(allowed, penalize_repeats(options, logits, now.tokens), -jnp.inf)
    token = choose(choices, now.step).astype(jnp.int32)
    log_probability = _pick(logits, token) - jax.nn.logsumexp(logits, axis=-1)
    gain = jnp.where(now.finished, 0, log_probability)
    token = jnp.where(now.finished, ids.pad_id, token)
    tokens = now.tokens.at[:, now.step].set(token)
    finished = now.finished | (token == ids.eos_id)
    return Decoding(now.step + 1, state, token, tokens, now.scores + gain, finished)


def _decode(
    decode_step: DecodeStep, state: PyTree, options: DecodeOptions, choose: Choose
) -> Sequences:
    """Returns sequences decoded until every row has ended or the bound is reached."""

    def unfinished(now):
        return (now.step < options.max_length) & ~jnp.all(now.finished)

    def body(now):
        return decode_token(decode_step, options, now, choose)

    end = jax.lax.while_loop(unfinished, body, start_decoding(state, options))
    lengths = jnp.sum(end.tokens != options.ids.pad_id, axis=1)
    return Sequences(end.tokens, lengths, end.scores, end.finished, end.step)


def _pick(values: Array, index: Int[Array, " B"]) -> Array:
    """`values[b, index[b]]` for every row b."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
