"""Beam search over any `decode_step`.

At each step the K best extensions of all live hypotheses survive. Those that end move to a separate
pool, from which live hypotheses cannot displace them; the others are extended, and the beam is K
wide again. A beam of width 1 is greedy decoding; a beam that holds every prefix is exhaustive
search.
"""

from typing import Literal, NamedTuple

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
from seqjax.errors import UserError, require

LengthPenalty = float | Float[Array, ""] | Literal["average"]


class Hypotheses(NamedTuple):
    """The N best sequences of each row: finished before unfinished ones, the best first.

    A slot without a sequence holds padding, length 0 and the score -inf.
    """

    tokens: Int[Array, "B N T"]  # the end token included, padding after it; T is max_length
    lengths: Int[Array, "B N"]  # number of emitted tokens, the end token included
    scores: Float[Array, "B N"]  # nats: the model's own log-probability of these tokens
    normalized_scores: Float[Array, "B N"]  # scores divided by the length penalty
    finished: Bool[Array, "B N"]  # False if the sequence was cut off at the bound
    num_steps: Int[Array, ""]  # number of calls of `decode_step`


class _Beams(NamedTuple):
    """M hypotheses of each row; a rank of -inf marks an empty slot."""

    tokens: Int[Array, "B M T"]
    scores: Float[Array, "B M"]
    ranks: Float[Array, "B M"]

    def take(self, index: Int[Array, "B N"]) -> "_Beams":
        rows = jnp.arange(index.shape[0])[:, None]
        return jax.tree.map(lambda x: x[rows, index], self)

    def best(self, count: int) -> "_Beams":
        """Returns the hypotheses of the highest ranks in descending order, in ties the first."""
        return self.take(jax.lax.top_k(self.ranks, count)[1])

    def followed_by(self, other: "_Beams") -> "_Beams":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), self, other)


def beam_search(
    decode_step: DecodeStep,
    state: PyTree,
    options: DecodeOptions,
    *,
    beam_size: int,
    n_best: int = 1,
    length_penalty: LengthPenalty = 0.6,
) -> Hypotheses:
    """Returns the `n_best` sequences `[B, N, T]` of each row, found with a beam of `beam_size`.

    `state` is a pytree of arrays `[B, ...]`; `decode_step` sees each row `beam_size` times, with a
    state of its own for each hypothesis. Hypotheses are ranked by their summed log-probability,
    which includes the repetition penalty (the returned scores do not), divided by the length
    penalty: for a number alpha ((5 + length) / 6) ** alpha (Wu et al., 2016), so 0 ranks by the
    sum; for "average" the length.
    A row stops when its best live hypothesis could no longer enter its `n_best` finished ones even
    if all later tokens were certain. Raises UserError for a number out of its range.
    """
    require("beam_size", beam_size, beam_size >= 1, "at least 1")
    require("n_best", n_best, 1 <= n_best <= beam_size, f"in [1, {beam_size}], the beam_size")
    if isinstance(length_penalty, str) and length_penalty != "average":
        raise UserError(f"length_penalty={length_penalty!r} must be a number or 'average'")
    if isinstance(length_penalty, (int, float)):
        require("length_penalty", length_penalty, length_penalty >= 0, "at least 0")
    batch_size, bound, ids = leading_size(state), options.max_length, options.ids
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
        # An array that the step returns unchanged, such as the encoder's outputs, is the same for
        # all hypotheses of a row and need not be reordered.
        state = jax.tree.map(lambda x, old: x if x is old else x[flat_parent], state, old_state)

        is_end = token == ids.eos_id
        finals = ranks / _divisor(length_penalty, step + 1)
        new = _Beams(tokens, scores, jnp.where(is_end, finals, -jnp.inf))
        ended = ended.followed_by(new).best(n_best)
        # Log-probabilities are at most 0 and the divisor grows, so no extension can rank higher
        # than `reachable`.
        ranks = jnp.where(is_end, -jnp.inf, ranks)
        reachable = jnp.max(ranks, axis=1, keepdims=True) / _divisor(length_penalty, bound)
        ranks = jnp.where(reachable > ended.ranks[:, -1:], ranks, -jnp.inf)
        return step + 1, state, token.reshape(-1), _Beams(tokens, scores, ranks), ended

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
    best = _finished_first(ended, live.best(beam_size))
    lengths = jnp.sum(best.tokens != ids.pad_id, axis=2)
    return Hypotheses(
        best.tokens,
        lengths,
        best.scores,
        best.scores / _divisor(length_penalty, lengths),
        jnp.any(best.tokens == ids.eos_id, axis=2),
        step,
    )


def _log_probs(
    options: DecodeOptions,
    logits: Float[Array, "R V"],
    tokens: Int[Array, "R T"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "R V"], Float[Array, "R V"]]:
    """Returns the model's log-probabilities, and penalized ones to rank by, -inf for banned tokens.

    The probability of banned tokens is not redistributed among the others: otherwise a forced
    token would cost nothing.
    """
    logits = finite_logits(options, logits)
    penalized = jax.nn.log_softmax(penalize_repeats(options, logits, tokens))
    allowed = allowed_tokens(options, logits, tokens, step)
    return jax.nn.log_softmax(logits), jnp.where(allowed, penalized, -jnp.inf)


def _divisor(length_penalty: LengthPenalty, length: Int[Array, "*dims"] | int) -> Array:
    """Returns the number that divides the summed log-probability of a sequence of this length."""
    length = jnp.asarray(length, jnp.float32)
    return length if isinstance(length_penalty, str) else ((5 + length) / 6) ** length_penalty


def _empty(batch_size: int, count: int, options: DecodeOptions) -> _Beams:
    nothing = jnp.full((batch_size, count), -jnp.inf, jnp.float32)
    tokens = jnp.full((batch_size, count, options.max_length), options.ids.pad_id, jnp.int32)
    return _Beams(tokens, nothing, nothing)


def _finished_first(ended: _Beams, live: _Beams) -> _Beams:
    """As many hypotheses as `ended` has slots: its own, then live ones where slots are empty."""
    both, num_slots = ended.followed_by(live), ended.ranks.shape[1]
    is_live = jnp.arange(both.ranks.shape[1]) >= num_slots
    order = jnp.where(both.ranks == -jnp.inf, 2, is_live)
    return both.take(jnp.argsort(order, axis=1, stable=True)[:, :num_slots])
