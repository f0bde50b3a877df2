"""What may be emitted next, for every decoder alike.

Rows here are whatever is decoded side by side: `R = B`, or `R = B * K` for a beam of width K.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seqjax.errors import UserError
from seqjax.typing import SpecialIds

State = Any  # a pytree of arrays, each with the rows on its first axis
# (state, token [R] int32) -> (state, logits [R, V])
DecodeStep = Callable[[State, Int[Array, " R"]], tuple[State, Float[Array, "R V"]]]

LARGEST = 1e30  # stands for infinity, so that no difference or sum of logits is a NaN


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """What every decoder obeys. Hashable: a static argument to `jax.jit`.

    - `max_length`: the bound T on emitted tokens, the end included.
    - `min_length`: no end before so many tokens.
    - `repetition_penalty`: the logits of tokens that the row has emitted are divided by it where
      positive and multiplied by it where negative (Keskar et al., 2019, in the sign-aware form).
    - `no_repeat_ngram`: no n tokens in a row twice; 0 allows it.
    - `ban_unknown`: never emit `ids.unk_id`. Padding and start are never emitted at all.

    Where all this leaves a row nothing of non-zero probability, it ends, however short.
    Raises UserError for a number out of its range and for ids that collide with the end's.
    """

    max_length: int
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    ban_unknown: bool = False
    ids: SpecialIds = dataclasses.field(default_factory=SpecialIds)

    def __post_init__(self):
        bound = self.max_length
        check("max_length", bound, bound >= 1, "at least 1")
        check("min_length", self.min_length, 0 <= self.min_length < bound, f"in [0, {bound})")
        check(
            "repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "positive"
        )
        ngram = self.no_repeat_ngram
        check("no_repeat_ngram", ngram, 0 <= ngram <= bound, f"in [0, {bound}], the max_length")
        check("ids", self.ids, min(self.ids) >= 0, "at least 0 each")
        can_end = self.ids.eos_id not in self.banned_ids
        check("eos_id", self.ids.eos_id, can_end, f"none of {self.banned_ids}: those are banned")

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """The ids that are never emitted."""
        ids = self.ids
        return (ids.pad_id, ids.bos_id, *([ids.unk_id] if self.ban_unknown else []))


def check(field: str, value: Any, holds: bool, wanted: str) -> None:
    """Nothing where `holds`, else a UserError that names the field."""
    if not holds:
        raise UserError(f"{field}={value} must be {wanted}")


def num_rows(state: State) -> int:
    """The size of the first axis, which all arrays of a decoder's state share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes == {()}:
        raise UserError(f"a decoder's state needs arrays of one leading batch size, got {shapes}")
    return sizes.pop()[0]


def finite_logits(options: DecodeOptions, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """Logits in float32 and in [-LARGEST, LARGEST]. Raises UserError where V lacks a special id."""
    vocab_size, ids = logits.shape[-1], options.ids
    needed = max(*options.banned_ids, ids.eos_id) + 1
    if vocab_size < needed:
        raise UserError(f"{vocab_size} logits are too few for {ids}: it needs {needed}")
    return jnp.clip(logits.astype(jnp.float32), -LARGEST, LARGEST)


def penalize_repeats(
    options: DecodeOptions, logits: Float[Array, "R V"], tokens: Int[Array, "R T"]
) -> Float[Array, "R V"]:
    """Logits with the repetition penalty on what `tokens` holds."""
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
    """True where a token may follow the `step` first ones of `tokens`; in every row somewhere."""
    vocabulary = jnp.arange(logits.shape[-1])
    is_end = vocabulary == options.ids.eos_id
    emitted = ~jnp.isin(vocabulary, jnp.array(options.banned_ids))
    allowed = (logits > -LARGEST) & emitted & ~(is_end & (step < options.min_length))
    if options.no_repeat_ngram:
        allowed &= ~_repeats(tokens, step, options.no_repeat_ngram, len(vocabulary))
    return allowed | (is_end & ~jnp.any(allowed, axis=-1, keepdims=True))


def _repeats(
    tokens: Int[Array, "R T"], step: Int[Array, ""], ngram: int, vocab_size: int
) -> Bool[Array, "R V"]:
    """True for the tokens with which an n-gram would stand a second time in its row."""
    num_windows = tokens.shape[1] - ngram + 1
    # Before n tokens are there, the slice is clamped to wrong ones, but no window is complete.
    context = jax.lax.dynamic_slice_in_dim(tokens, step - ngram + 1, ngram - 1, axis=1)
    same = jnp.arange(num_windows) + ngram - 1 < step
    for offset in range(ngram - 1):
        same &= tokens[:, offset : offset + num_windows] == context[:, offset, None]
    return _mark(jnp.where(same, tokens[:, ngram - 1 :], vocab_size), vocab_size)


def _mark(ids: Int[Array, "R N"], vocab_size: int) -> Bool[Array, "R V"]:
    """True at the ids of each row; an id of `vocab_size` marks nothing."""
    rows = jnp.arange(ids.shape[0])[:, None]
    blank = jnp.zeros((ids.shape[0], vocab_size), bool)
    return blank.at[rows, ids].set(True, mode="drop")
