"""Constraints on the next token, which every decoder obeys.

`R` counts the rows that are decoded side by side: `R = B`, or `R = B * K` in a beam of width K.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from seqjax.errors import UserError, require
from seqjax.typing import SpecialIds

# (state, token [R] int32) -> (state, logits [R, V]); every array of the state has a leading R.
DecodeStep = Callable[[PyTree, Int[Array, " R"]], tuple[PyTree, Float[Array, "R V"]]]

LARGEST = 1e30  # stands for infinity, so that no difference or sum of logits is NaN


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """The constraints that every decoder obeys. Hashable: a static argument to `jax.jit`.

    - `max_length`: the bound T on emitted tokens, including the end token.
    - `min_length`: the end token is not emitted before this many other tokens.
    - `repetition_penalty`: the logits of tokens that a row has already emitted are divided by it
      if positive and multiplied by it if negative (Keskar et al., 2019, in the sign-aware form).
    - `no_repeat_ngram`: no n-gram of this size is emitted twice in a row's sequence; 0 allows
      repetitions.
    - `ban_unknown`: `ids.unk_id` is never emitted. Padding and start tokens never are.

    A row for which these constraints leave no token of non-zero probability ends, however short.
    Raises UserError for a number out of its range and for an end id that is banned.
    """

    max_length: int
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    ban_unknown: bool = False
    ids: SpecialIds = dataclasses.field(default_factory=SpecialIds)

    def __post_init__(self):
        bound, penalty, ngram = self.max_length, self.repetition_penalty, self.no_repeat_ngram
        require("max_length", bound, bound >= 1, "at least 1")
        require("min_length", self.min_length, 0 <= self.min_length < bound, f"in [0, {bound})")
        require("repetition_penalty", penalty, penalty > 0, "positive")
        require("no_repeat_ngram", ngram, 0 <= ngram <= bound, f"in [0, {bound}], the max_length")
        require("ids", self.ids, min(self.ids) >= 0, "at least 0 each")
        banned, eos_id = self.banned_ids, self.ids.eos_id
        require("eos_id", eos_id, eos_id not in banned, f"none of the banned ids {banned}")

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """The ids that are never emitted."""
        ids = self.ids
        return (ids.pad_id, ids.bos_id, *([ids.unk_id] if self.ban_unknown else []))


def leading_size(state: PyTree) -> int:
    """Returns the size of the first axis, which all arrays of a decoder's state must share.

    Raises UserError if they do not.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes == {()}:
        raise UserError(f"a decoder's state needs arrays of one leading batch size, got {shapes}")
    return sizes.pop()[0]


def finite_logits(options: DecodeOptions, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """Returns logits in float32, clipped to [-LARGEST, LARGEST].

    Raises UserError if V is too small for the special ids.
    """
    vocab_size, ids = logits.shape[-1], options.ids
    needed = max(*options.banned_ids, ids.eos_id) + 1
    if vocab_size < needed:
        raise UserError(f"{vocab_size} logits are too few for {ids}, which need {needed}")
    return jnp.clip(logits.astype(jnp.float32), -LARGEST, LARGEST)


def penalize_repeats(
    options: DecodeOptions, logits: Float[Array, "R V"], tokens: Int[Array, "R T"]
) -> Float[Array, "R V"]:
    """Returns logits with the repetition penalty applied to every id in `tokens`."""
    penalty, vocab_size = options.repetition_penalty, logits.shape[-1]
    if penalty == 1.0:
        return logits
    seen = _mark(jnp.where(tokens == options.ids.pad_id, vocab_size, tokens), vocab_size)
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def allowed_tokens(
    options: DecodeOptions,
    logits: Float[Array, "R V"],
    tokens: Int[Array, "R T"],
    step: Int[Array, ""],
) -> Bool[Array, "R V"]:
    """Returns True for each id that may follow the first `step` tokens: at least one a row."""
    vocabulary = jnp.arange(logits.shape[-1])
    is_end = vocabulary == options.ids.eos_id
    not_banned = ~jnp.isin(vocabulary, jnp.array(options.banned_ids))
    allowed = (logits > -LARGEST) & not_banned & ~(is_end & (step < options.min_length))
    if options.no_repeat_ngram:
        allowed &= ~_repeats(tokens, step, options.no_repeat_ngram, len(vocabulary))
    return allowed | (is_end & ~jnp.any(allowed, axis=-1, keepdims=True))


def _repeats(
    tokens: Int[Array, "R T"], step: Int[Array, ""], ngram: int, vocab_size: int
) -> Bool[Array, "R V"]:
    """Returns True for each id that would complete an n-gram which its row already contains."""
    num_windows = tokens.shape[1] - ngram + 1
    # Before step n - 1 the slice is clamped and holds wrong tokens, but no window is complete yet.
    context = jax.lax.dynamic_slice_in_dim(tokens, step - ngram + 1, ngram - 1, axis=1)
    same = jnp.arange(num_windows) + ngram - 1 < step
    for offset in range(ngram - 1):
        same &= tokens[:, offset : offset + num_windows] == context[:, offset, None]
    return _mark(jnp.where(same, tokens[:, ngram - 1 :], vocab_size), vocab_size)


def _mark(ids: Int[Array, "R N"], vocab_size: int) -> Bool[Array, "R V"]:
    """Returns True at the ids of each row; an id equal to `vocab_size` marks nothing."""
    rows = jnp.arange(ids.shape[0])[:, None]
    blank = jnp.zeros((ids.shape[0], vocab_size), bool)
    return blank.at[rows, ids].set(True, mode="drop")
