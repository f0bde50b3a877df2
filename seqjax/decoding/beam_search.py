"""Beam search over any `decode_step`.

At each step the K best extensions of all live hypotheses survive. Those that end move to a pool of
their own, where no live one can push them out; the others are extended, and the beam is K wide
again. So a beam of 1 is greedy decoding, and a beam as wide as the tree is exhaustive search.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seqjax.decoding.constraints import (
    DecodeOptions,
    DecodeStep,
    State,
    allowed_tokens,
    check,
    finite_logits,
    num_rows,
    penalize_repeats,
)
from seqjax.errors import UserError

LengthPenalty = float | Float[Array, ""] | Literal["average"]


class Hypotheses(NamedTuple):
    """The N best sequences of each row: finished before unfinished, the best first.

    A slot for which there was no sequence holds padding, length 0 and the score -inf.
    """

    tokens: Int[Array, "B N T"]  # the end included, padding after it; T is max_length
    lengths: Int[Array, "B N"]  # emitted tokens, the end included
    scores: Float[Array, "B N"]  # nats: the model's own log-probability of these tokens
    normalized_scores: Float[Array, "B N"]  # the same, divided by the length penalty
    finished: Bool[Array, "B N"]  # False: cut off at the bound
    num_steps: Int[Array, ""]  # how often `decode_step` ran


class _Group(NamedTuple):
    """Some hypotheses of each row; a rank of -inf marks an empty slot."""

    tokens: Int[Array, "B M T"]
    scores: Float[Array, "B M"]
    ranks: Float[Array, "B M"]

    def take(self, index: Int[Array, "B N"]) -> "_Group":
        rows = jnp.arange(index.shape[0])[:, None]
        return jax.tree.map(lambda x: x[rows, index], self)

    def best(self, count: int) -> "_Group":
        """The highest ranks in descending order, of equal ones the first."""
        return self.take(jax.lax.top_k(self.ranks, count)[1])

    def followed_by(self, other: "_Group") -> "_Group":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), self, other)


def beam_search(
    decode_step: DecodeStep,
    state: State,
    options: DecodeOptions,
    *,
    beam_size: int,
    n_best: int = 1,
    length_penalty: LengthPenalty = 0.6,
) -> Hypotheses:
    """The `n_best` sequences `[B, N, T]` of each row in one beam of `beam_size`.

    `state`: a pytree of arrays `[B, ...]`; `decode_step` sees each row `beam_size` times, and every
    hypothesis keeps its own state. They rank by their summed log-probability over the length
    penalty; a repetition penalty counts in that, but not in the scores. `length_penalty`: 0 ranks
    by the sum, alpha by that over ((5 + length) / 6) ** alpha (Wu et al., 2016), "average" by the
    mean.
    A row stops when its best live hypothesis, were all that may follow certain, could not enter its
    `n_best` finished ones. Raises UserError for a number out of its range.
    """
    check("beam_size", beam_size, beam_size >= 1, "at least 1")
    check("n_best", n_best, 1 <= n_best <= beam_size, f"in [1, {beam_size}], the beam_size")
    if isinstance(length_penalty, str) and length_penalty != "average":
        raise UserError(f"length_penalty={length_penalty!r} must be a number or 'average'")
    if isinstance(length_penalty, (int, float)):
        check("length_penalty", length_penalty, length_penalty >= 0, "at least 0")
    batch_size, bound, ids = num_rows(state), options.max_length, options.ids
    rows = jnp.arange(batch_size)[:, None]

    def any_live(loop):
        step, _, _, live, _ = loop
        return (step < bound) & jnp.any(live.ranks > -jnp.inf)

    def body(loop):
        step, old_state, token, live, ended = loop
        state, logits = decode_step(old_state, token)
        prefixes = live.tokens.reshape(-1, bound)
        log_probs, gains = _log_probs(options, logits, prefixes, step)
        shape = (batch_size, beam_size, -1)
        totals = live.ranks[..., None] + gains.reshape(shape)
        ranks, index = jax.lax.top_k(totals.reshape(batch_size, -1), beam_size)
        parent, token = jnp.divmod(index, logits.shape[-1])
        scores = live.scores[rows, parent] + log_probs.reshape(shape)[rows, parent, token]
        tokens = live.tokens[rows, parent].at[..., step].set(token)
        flat_parent = (rows * beam_size + parent).reshape(-1)
        # What a step hands through as it is, an encoder's outputs, all hypotheses of a row share.
        state = jax.tree.map(lambda x, old: x if x is old else x[flat_parent], state, old_state)

        is_end = token == ids.eos_id
        finals = ranks / _divisor(length_penalty, step + 1)
        new = _Group(tokens, scores, jnp.where(is_end, finals, -jnp.inf))
        ended = ended.followed_by(new).best(n_best)
        # Log-probabilities are at most 0 and the divisor grows: no future can do better than this.
        ranks = jnp.where(is_end, -jnp.inf, ranks)
        reachable = jnp.max(ranks, axis=1, keepdims=True) / _divisor(length_penalty, bound)
        ranks = jnp.where(reachable > ended.ranks[:, -1:], ranks, -jnp.inf)
        return step + 1, state, token.reshape(-1), _Group(tokens, scores, ranks), ended

    only_first = jnp.full(beam_size, -jnp.inf, jnp.float32).at[0].set(0)
    start = (
        jnp.int32(0),
        jax.tree.map(lambda x: jnp.repeat(x, beam_size, axis=0), state),
        jnp.full(batch_size * beam_size, ids.bos_id, jnp.int32),
        _empty(batch_size, beam_size, options)._replace(
            ranks=jnp.broadcast_to(only_first, (batch_size, beam_size)),
            scores=jnp.zeros((batch_size, beam_size), jnp.float32),
        ),
        _empty(batch_size, n_best, options),
    )
    step, _, _, live, ended = jax.lax.while_loop(any_live, body, start)

    # Cut-off hypotheses fill what slots the finished ones leave.
    both = ended.followed_by(live.best(beam_size))
    empty = both.ranks == -jnp.inf
    is_live = jnp.arange(n_best + beam_size) >= n_best
    found = both.take(jnp.argsort(jnp.where(empty, 2, is_live), axis=1, stable=True)[:, :n_best])
    lengths = jnp.sum(found.tokens != ids.pad_id, axis=2)
    return Hypotheses(
        found.tokens,
        lengths,
        found.scores,
        found.scores / _divisor(length_penalty, lengths),
        jnp.any(found.tokens == ids.eos_id, axis=2),
        step,
    )


def _log_probs(
    options: DecodeOptions,
    logits: Float[Array, "R V"],
    tokens: Int[Array, "R T"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "R V"], Float[Array, "R V"]]:
    """The model's log-probabilities, and those to rank by: of penalized logits, -inf if banned.

    What is banned is not shared out among the rest: that would make it free to be left no choice.
    """
    logits = finite_logits(options, logits)
    penalized = jax.nn.log_softmax(penalize_repeats(options, logits, tokens))
    allowed = allowed_tokens(options, logits, tokens, step)
    return jax.nn.log_softmax(logits), jnp.where(allowed, penalized, -jnp.inf)


def _divisor(length_penalty: LengthPenalty, length: Int[Array, "..."] | int) -> Any:
    """What a sum of so many log-probabilities is divided by."""
    length = jnp.asarray(length, jnp.float32)
    return length if isinstance(length_penalty, str) else ((5 + length) / 6) ** length_penalty


def _empty(batch_size: int, count: int, options: DecodeOptions) -> _Group:
    nothing = jnp.full((batch_size, count), -jnp.inf, jnp.float32)
    tokens = jnp.full((batch_size, count, options.max_length), options.ids.pad_id, jnp.int32)
    return _Group(tokens, nothing, nothing)
