"""Sequence to sequence: an encoder, a decoder, and attention between them.

Teacher forcing and generation are two functions that share `decode`: `teacher_forced` passes it the
whole target at once, `decode_step` one token.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seqjax.errors import UserError, require
from seqjax.nn.attention import Attention, Memory
from seqjax.nn.dropout import ModelStream, dropout, fold_keys
from seqjax.nn.layers import Dense, Embed, one_hot
from seqjax.nn.precision import product
from seqjax.nn.remat import map_windows, scan_windows
from seqjax.nn.stack import DROPOUTS, MAX_SIZE, Rates, check_names, make_stack
from seqjax.typing import Logits, RowKeys, SpecialIds, Tokens

RATES = (  # the options that are dropout rates
    "token_dropout",
    "input_dropout",
    "state_dropout",
    "encoder_output_dropout",
    "decoder_output_dropout",
)


class DecoderState(NamedTuple):
    """What decoding the next token depends on. Every array in it has a leading B."""

    states: Any  # the states of the decoder's stack
    memory: Any  # the Memory that attention reads, or None
    feed: Any  # with input feeding, the last attentional vector [B, H]; otherwise None


class DecoderRun(NamedTuple):
    """The result of reading some target tokens."""

    state: DecoderState
    hidden: Float[Array, "B T H"]  # the argument of `logits`
    weights: Any  # attention weights [B, T, S], or None


class Seq2Seq(nnx.Module):
    """A decoder that starts from the encoder's last states and may attend to its outputs.

    - `embed_size=0` reads one-hot tokens instead of embeddings.
    - `share_embeddings` uses one embedding for both sides, which must share a vocabulary.
    - `tie_output` uses the target's embedding as the output kernel (Press and Wolf, 2017).
    - `bidirectional` makes the encoder bidirectional. A bridge, which is a dense layer for each
      layer and field of the state, then maps the states of both directions to the decoder's.
    - `input_feeding` feeds the last attentional vector to each step (Luong et al., 2015).
    - `token_dropout` is the probability with which a source token is read as unknown in training,
      like the word dropout of Bowman et al. (2016), but in the source. It keeps the encoder from
      relying on single words, and it trains the embedding of the unknown token.
    """

    def __init__(
        self,
        *,
        source_vocab_size: int,
        target_vocab_size: int,
        embed_size: int,
        hidden_size: int,
        bidirectional: bool,
        attention: str,
        input_feeding: bool,
        share_embeddings: bool,
        tie_output: bool,
        token_dropout: float,
        encoder_output_dropout: Rates,
        decoder_output_dropout: Rates,
        output_kernel_init: str,
        output_bias_init: str,
        compute_dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
        **stack: Any,  # the other options of make_stack
    ):
        if share_embeddings and (not embed_size or source_vocab_size != target_vocab_size):
            raise UserError("model.share_embeddings needs an embed_size and one vocabulary")
        require("model.embed_size", embed_size, 0 <= embed_size <= MAX_SIZE, f"in [0, {MAX_SIZE}]")
        if tie_output and not embed_size:
            raise UserError("model.tie_output needs an embedding: raise model.embed_size")
        if input_feeding and attention == "none":
            raise UserError("model.input_feeding needs attention: set model.attention=dot")
        require("model.token_dropout", token_dropout, 0 <= token_dropout < 1, "in [0, 1)")
        self.token_dropout = token_dropout
        self.vocab_sizes = (source_vocab_size, target_vocab_size)
        self.input_feeding = input_feeding
        target, source = (target_vocab_size, embed_size), (source_vocab_size, embed_size)
        self.target_embed: Any = Embed(*target, rngs=rngs) if embed_size else None
        separate = embed_size and not share_embeddings
        self.source_embed = Embed(*source, rngs=rngs) if separate else None
        precision = {"compute_dtype": compute_dtype, "rngs": rngs}
        stack |= {"hidden_size": hidden_size, "remat": remat, **precision}
        dense = partial(Dense, **precision)
        self.encoder = make_stack(
            input_size=embed_size or source_vocab_size,
            bidirectional=bidirectional,
            output_dropout=encoder_output_dropout,
            reads="state" if attention == "none" else "output",
            part="encoder_",
            **stack,
        )
        self.decoder = make_stack(
            input_size=(embed_size or target_vocab_size) + input_feeding * hidden_size,
            bidirectional=False,
            output_dropout=decoder_output_dropout,
            part="decoder_",
            **stack,
        )
        self.bridged = bidirectional
        if bidirectional:
            fields = jax.tree.leaves(self.decoder.initial_states(1))
            for i in range(len(fields)):
                setattr(self, f"bridge_{i}", dense(2 * hidden_size, hidden_size))
        self.attends, self.remat = attention != "none", remat
        if self.attends:
            memory_size = self.encoder.output_size
            self.attention = Attention(attention, hidden_size, memory_size, **precision)
            self.combine = dense(memory_size + hidden_size, hidden_size)
        inits = {"kernel_init": output_kernel_init, "bias_init": output_bias_init}
        output_size = embed_size if tie_output else target_vocab_size
        self.output = dense(hidden_size, output_size, **inits)
        self.tie_output, self.compute_dtype = tie_output, compute_dtype

    def encode(
        self,
        source: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        *,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> DecoderState:
        """Returns the decoder's state before its first token. Padding may be on either side.

        Without `keys` nothing is dropped. `rates` replaces dropout rates of the constructor, by the
        names in `RATES` and as in `Stack`; raises UserError for another name.
        """
        rates = rates or {}
        check_names(rates, RATES)
        token_rate = rates.get("token_dropout", self.token_dropout) if self.token_dropout else 0.0
        embed = self.target_embed if self.source_embed is None else self.source_embed
        token_keys = fold_keys(keys, ModelStream.SOURCE_TOKENS)
        keep = dropout(token_keys, jnp.ones(source.shape, jnp.float32), token_rate) > 0
        source = jnp.where(keep, source, SpecialIds().unk_id)
        run = self.encoder(
            self._inputs(embed, source, 0),
            mask=mask,
            keys=fold_keys(keys, ModelStream.ENCODER),
            rates=_stack_rates(rates, "encoder_"),
        )
        states = run.states
        if self.bridged:
            states = self._bridge(states)
        memory = feed = None
        if self.attends:
            memory = self.attention.memory(run.sequence, mask)
        if self.input_feeding:
            feed = jnp.zeros_like(states[0][0].h)
        return DecoderState(states, memory, feed)

    def decode(
        self,
        state: DecoderState,
        tokens: Tokens,
        *,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> DecoderRun:
        """Reads target tokens `[B, T]` in order; `keys` and `rates` are as in `encode`."""
        rates = rates or {}
        check_names(rates, RATES)
        decoder_rates = _stack_rates(rates, "decoder_")
        xs = self._inputs(self.target_embed, tokens, 1)
        keys = fold_keys(keys, ModelStream.DECODER)
        if not self.input_feeding:
            return self._decode_inputs(state, xs, keys, decoder_rates)

        def body(state, x):
            x = jnp.concatenate([x, state.feed], axis=-1)[:, None]
            # The keys are the same at every step, so dropout keeps one mask for the sequence.
            run = self._decode_inputs(state, x, keys, decoder_rates)
            return run.state, (run.hidden[:, 0], run.weights[:, 0])

        scan = partial(jax.lax.scan, body)
        scan = partial(scan_windows, scan) if self.remat else scan
        state, (hidden, weights) = scan(state, jnp.swapaxes(xs, 0, 1))
        return DecoderRun(state, jnp.swapaxes(hidden, 0, 1), jnp.swapaxes(weights, 0, 1))

    def logits(self, hidden: Float[Array, "... H"]) -> Logits:
        """Returns logits over the target's vocabulary."""
        out = self.output(hidden)
        if not self.tie_output:
            return out
        return product(out, self.target_embed.embedding[...].T, self.compute_dtype)

    def teacher_forced(
        self,
        source: Int[Array, "B S"],
        source_mask: Bool[Array, "B S"],
        inputs: Tokens,
        *,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> Logits:
        """Returns logits `[B, T, V]` for the token after each of `inputs`.

        `inputs` is the target without its last token; `keys` and `rates` are as in `encode`.
        """
        state = self.encode(source, source_mask, keys=keys, rates=rates)
        return self.logits(self.decode(state, inputs, keys=keys, rates=rates).hidden)

    def decode_step(
        self, state: DecoderState, token: Int[Array, " B"]
    ) -> tuple[DecoderState, Float[Array, "B V"]]:
        """Returns the state after one more token, and logits for the next token."""
        run = self.decode(state, token[:, None])
        return run.state, self.logits(run.hidden[:, 0])

    def _decode_inputs(
        self,
        state: DecoderState,
        xs: Float[Array, "B T I"],
        keys: RowKeys | None,
        rates: Mapping[str, Any],
    ) -> DecoderRun:
        run = self.decoder(xs, initial_states=state.states, keys=keys, rates=rates)
        hidden, weights, feed = run.sequence, None, state.feed
        if self.attends:
            attend = partial(self._attend, state.memory)
            in_windows = self.remat and hidden.shape[1] > 1
            hidden, weights = map_windows(attend, hidden) if in_windows else attend(hidden)
        if self.input_feeding:
            feed = hidden[:, -1]
        return DecoderRun(DecoderState(run.states, state.memory, feed), hidden, weights)

    def _attend(
        self, memory: Memory, hidden: Float[Array, "B T H"]
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T S"]]:
        """Returns the attentional vectors and the attention weights."""
        contexts, weights = self.attention(hidden, memory)
        return jnp.tanh(self.combine(jnp.concatenate([contexts, hidden], axis=-1))), weights

    def _inputs(self, embed: Embed | None, tokens: Tokens, side: int) -> Float[Array, "B T E"]:
        return one_hot(tokens, self.vocab_sizes[side]) if embed is None else embed(tokens)

    def _bridge(self, states: Any) -> Any:
        """Returns the decoder's states, one per layer, from those of both directions."""
        forward, treedef = jax.tree.flatten(tuple((pair[0],) for pair in states))
        backward = jax.tree.leaves([pair[1] for pair in states])
        bridged = [
            jnp.tanh(getattr(self, f"bridge_{i}")(jnp.concatenate(fields, axis=-1)))
            for i, fields in enumerate(zip(forward, backward, strict=True))
        ]
        return jax.tree.unflatten(treedef, bridged)


def _stack_rates(rates: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns the rates of the encoder's or the decoder's stack, by the names that `Stack` uses."""
    names = {name: f"{part}{name}" if name == "output_dropout" else name for name in DROPOUTS}
    return {name: rates[option] for name, option in names.items() if option in rates}
