"""A sequence-to-sequence model between texts: two vocabularies, a Seq2Seq, and a decoder."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seqjax.data.vocabulary import Vocabulary, encode_batch
from seqjax.decoding.beam_search import beam_search
from seqjax.decoding.constraints import LARGEST, DecodeOptions, DecodeStep
from seqjax.decoding.sampling import check_sampling, greedy, sample
from seqjax.errors import UserError, require
from seqjax.hparams import from_spec
from seqjax.metrics import argmax
from seqjax.models.scheduled_sampling import make_probability, sampled_logits
from seqjax.models.seq2seq import DecoderState, Seq2Seq
from seqjax.nn.layers import functional
from seqjax.typing import Batch, Logits, Params, RowKeys

MAX_BEAM = 1000  # every hypothesis keeps a state of its own


class Replies(NamedTuple):
    """The decoded sequence of each row."""

    tokens: Int[Array, "B T"]  # up to and including the end token, then padding
    scores: Float[Array, " B"]  # log-probability of the tokens under the model, in nats
    finished: Bool[Array, " B"]  # False if the length limit was reached before an end token


class TextToText:
    """Converts texts to ids, ids to logits, and decoded ids to replies.

    Parameters are arguments of its methods, as everywhere in seqjax.

    - `max_source_length`, `max_target_length`: the number of tokens to which texts are padded or
      truncated. A target's start and end tokens count and are never truncated.
    - `source_padding`: "post" or "pre".
    - `vocab_size`: the least number of rows of embeddings and outputs; spare rows are never
      emitted.
    - `boundaries=False` uses no start, end or other reserved ids, as tutorial R4 does. Such a model
      can be trained with teacher forcing but cannot generate.
    - `mask_padding=False` makes the encoder read padding as text, as the tutorials do.
    """

    def __init__(
        self,
        source: Vocabulary,
        target: Vocabulary,
        model: Mapping[str, Any],
        *,
        max_source_length: int,
        max_target_length: int,
        source_padding: str,
        vocab_size: int,
        boundaries: bool,
        mask_padding: bool,
        scheduled_sampling: str,
        decoder: str,
        **constraints: Any,  # the other fields of DecodeOptions
    ):
        if source_padding not in ("post", "pre"):
            raise UserError(f"data.source_padding={source_padding!r} must be 'post' or 'pre'")
        if not boundaries and model["embed_size"]:
            raise UserError("data.boundaries=False leaves padding no id: set model.embed_size=0")
        self.source, self.target = source, target
        self.max_source_length, self.max_target_length = max_source_length, max_target_length
        self.source_padding: Literal["post", "pre"] = "post" if source_padding == "post" else "pre"
        self.boundaries, self.mask_padding = boundaries, mask_padding
        # Without reserved ids the first token is number 0, and padding becomes a row of zeros.
        self.first_id = 0 if boundaries else source.num_reserved
        sizes = [max(v.size - self.first_id, vocab_size) for v in (source, target)]
        self.init, self.bind = functional(
            lambda rngs: Seq2Seq(
                source_vocab_size=sizes[0], target_vocab_size=sizes[1], rngs=rngs, **model
            )
        )
        self.probability = make_probability(scheduled_sampling)
        self.decoder = from_spec("decode.decoder", decoder, DECODERS)
        self.options = DecodeOptions(max_length=max_target_length - 1, **constraints)

    def encode_sources(self, texts: Iterable[str]) -> np.ndarray:
        """Returns ids `[N, S]`."""
        ids, _ = encode_batch(
            self.source,
            texts,
            self.max_source_length,
            add_bos=False,
            add_eos=False,
            padding=self.source_padding,
        )
        return ids

    def encode_targets(self, texts: Iterable[str]) -> np.ndarray:
        """Returns ids `[N, T + 1]`.

        The decoder's inputs are all columns but the last, its labels all columns but the first.
        """
        both = self.boundaries
        ids, _ = encode_batch(
            self.target, texts, self.max_target_length, add_bos=both, add_eos=both
        )
        return ids if self.boundaries else np.pad(ids, ((0, 0), (0, 1)))

    def lengths(self, rows: Batch) -> dict[str, np.ndarray]:
        """Returns by field the number of columns up to the last token of each row, at least 1."""
        pad_ids = {"source": self.source.pad_id, "target": self.target.pad_id}
        real = {name: np.asarray(rows[name]) != pad_id for name, pad_id in pad_ids.items()}
        counts = {name: x.shape[1] - np.argmax(x[:, ::-1], axis=1) for name, x in real.items()}
        return {name: np.where(real[name].any(axis=1), counts[name], 1) for name in real}

    def encode(self, model: Seq2Seq, source: Int[Array, "B S"]) -> DecoderState:
        """Returns the decoder's state before its first token."""
        return model.encode(*self._encoder_inputs(source))

    def _encoder_inputs(self, source: Int[Array, "B S"]) -> tuple[Array, Bool[Array, "B S"]]:
        """Returns the encoder's symbols and their mask."""
        mask = source != self.source.pad_id
        return source - self.first_id, mask if self.mask_padding else jnp.ones_like(mask)

    def logits(
        self,
        params: Params,
        batch: Batch,
        keys: RowKeys | None = None,
        step: Int[Array, ""] | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> Logits:
        """Returns the logits `[B, T, V]` for the label after each input, under teacher forcing.

        Keys turn dropout on, at the `rates` that replace the config's. In training, which gives its
        `step`, scheduled sampling replaces some inputs by the model's own if the config says so.
        """
        model = self.bind(params)
        source, mask = self._encoder_inputs(batch["source"])
        inputs = batch["target"][:, :-1] - self.first_id
        if self.probability is None or keys is None or step is None:
            return model.teacher_forced(source, mask, inputs, keys=keys, rates=rates)
        state = model.encode(source, mask, keys=keys, rates=rates)
        return sampled_logits(model, state, inputs, self.probability(step), keys, rates)

    def decode_step(self, params: Params) -> DecodeStep:
        """Returns the step function of decoders; ids that stand for no token are never chosen."""
        model = self.bind(params)

        def step(state, token):
            state, logits = model.decode_step(state, token)
            return state, self.known(logits)

        return step

    def known(self, logits: Logits) -> Logits:
        """Returns the logits with those of spare ids, which stand for no token, at the minimum."""
        known = jnp.arange(logits.shape[-1]) < self.target.size - self.first_id
        return jnp.where(known, logits, -LARGEST)

    def replies(self, params: Params, batch: Batch) -> Replies:
        """Returns the replies of the config's decoder."""
        return self.decoder(self, params, batch)

    def attention(
        self, params: Params, source: Int[Array, "B S"], tokens: Int[Array, "B T"]
    ) -> Float[Array, "B T S"] | None:
        """Returns the attention weights of each of the tokens, or None without attention."""
        model = self.bind(params)
        start = jnp.full_like(tokens[:, :1], self.target.bos_id)
        inputs = jnp.concatenate([start, tokens[:, :-1]], axis=1)
        return model.decode(self.encode(model, source), inputs).weights


Decoder = Callable[[TextToText, Params, Batch], Replies]


def greedy_decoder() -> Decoder:
    """Returns a decoder that emits the most probable token at every step."""

    def decode(text: TextToText, params: Params, batch: Batch) -> Replies:
        state = text.encode(text.bind(params), batch["source"])
        sequences = greedy(text.decode_step(params), state, text.options)
        return Replies(sequences.tokens, sequences.scores, sequences.finished)

    return decode


def beam_decoder(beam_size: int = 4, length_penalty: float = 0.6) -> Decoder:
    """Returns a decoder that returns the best sequence of a beam.

    Raises UserError for a number out of its range.
    """
    require("beam_size", beam_size, 1 <= beam_size <= MAX_BEAM, f"in [1, {MAX_BEAM}]")
    require("length_penalty", length_penalty, length_penalty >= 0, "at least 0")

    def decode(text: TextToText, params: Params, batch: Batch) -> Replies:
        state = text.encode(text.bind(params), batch["source"])
        best = beam_search(
            text.decode_step(params),
            state,
            text.options,
            beam_size=beam_size,
            length_penalty=length_penalty,
        )
        return Replies(best.tokens[:, 0], best.scores[:, 0], best.finished[:, 0])

    return decode


def sampling_decoder(
    temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0
) -> Decoder:
    """Returns a decoder that draws tokens with a key for each row, made of its source and `seed`.

    So a source gets the same reply in every batch, in evaluation and in a chat; equal sources get
    equal replies. Raises UserError for a number out of its range.
    """
    check_sampling(temperature, top_k, top_p)
    require("seed", seed, seed >= 0, "at least 0")

    def decode(text: TextToText, params: Params, batch: Batch) -> Replies:
        source = batch["source"]
        sequences = sample(
            text.decode_step(params),
            text.encode(text.bind(params), source),
            text.options,
            _source_keys(seed, source, text.source.pad_id),
            temperature=temperature,
            top_k=top_k,
            top_p=None if top_p == 1 else top_p,  # without a sort where all tokens are kept
        )
        return Replies(sequences.tokens, sequences.scores, sequences.finished)

    return decode


def padding_fed_decoder() -> Decoder:
    """Returns the decoder of the tutorial R3, which never feeds back its own tokens.

    Its inputs are the start token and then padding, one for each column of the source, all in one
    pass. It emits the most probable token at each step, up to the first end token.
    """

    def decode(text: TextToText, params: Params, batch: Batch) -> Replies:
        padding = jnp.full_like(batch["source"], text.target.pad_id)
        start = jnp.full_like(padding[:, :1], text.target.bos_id)
        inputs = jnp.concatenate([start, padding], axis=1)
        model = text.bind(params)
        run = model.decode(text.encode(model, batch["source"]), inputs)
        return _most_probable(text, model.logits(run.hidden), jnp.ones(inputs.shape, bool))

    return decode


def gold_fed_decoder() -> Decoder:
    """Returns a decoder for models without start and end tokens, such as the tutorial R4's.

    It generates nothing: it returns the first token of the target as it is, and then the most
    probable token after each token of the target.
    """

    def decode(text: TextToText, params: Params, batch: Batch) -> Replies:
        inputs, real = batch["target"][:, :-1], batch["target"][:, 1:] > 0
        replies = _most_probable(text, text.logits(params, batch), real)
        tokens = jnp.concatenate([inputs[:, :1], replies.tokens[:, :-1]], axis=1)
        return replies._replace(tokens=jnp.where(inputs > 0, tokens, text.target.pad_id))

    return decode


DECODERS = {
    "greedy": greedy_decoder,
    "beam": beam_decoder,
    "sample": sampling_decoder,
    "fed_padding": padding_fed_decoder,
    "teacher_forced": gold_fed_decoder,
}


def _source_keys(seed: int, source: Int[Array, "B S"], pad_id: int) -> RowKeys:
    """One key for each row, which depends on `seed` and on the tokens of its source only."""

    def fold(key, token):
        return jnp.where(token == pad_id, key, jax.random.fold_in(key, token)), None

    def key_of(tokens):
        key, _ = jax.lax.scan(fold, jax.random.key(seed), tokens)
        return jax.random.fold_in(key, pad_id)  # unlike every key on the way to a longer source

    return jax.vmap(key_of)(source)


def _most_probable(text: TextToText, logits: Logits, real: Bool[Array, "B T"]) -> Replies:
    """Returns the most probable tokens up to the first end token, scored over real steps only."""
    logits = text.known(logits)
    tokens = argmax(logits) + text.first_id
    is_end = tokens == text.target.eos_id
    after_end = jnp.cumsum(is_end, axis=1) - is_end > 0
    best = jnp.where(real & ~after_end, jnp.max(jax.nn.log_softmax(logits), axis=-1), 0.0)
    tokens = jnp.where(after_end, text.target.pad_id, tokens).astype(jnp.int32)
    return Replies(tokens, jnp.sum(best, axis=1), jnp.any(is_end, axis=1))
