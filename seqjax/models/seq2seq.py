"""A sequence to another: encoder, decoder, and attention between them.

Teacher forcing and generation are two functions over one `decode`: `teacher_forced` gives it the
whole target at once, `decode_step` one token. Neither is a flag of the other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seqjax.errors import UserError
from seqjax.nn.attention import Attention
from seqjax.nn.dropout import dropout, fold_keys
from seqjax.nn.layers import Dense, Embed, one_hot
from seqjax.nn.stack import DROPOUTS, MAX_SIZE, Rates, check_names, make_stack
from seqjax.typing import Logits, RowKeys, SpecialIds, Tokens

RATES = (
    "token_dropout",
    "input_dropout",
    "state_dropout",
    "encoder_output_dropout",
    "decoder_output_dropout",
)


class DecoderState(NamedTuple):
    """All that decoding needs of what came before. Every array in it has a leading B."""

    states: Any  # of the decoder's stack
    memory: Any  # the Memory that attention looks at, or None
    feed: Any  # under input feeding the last attentional vector [B, H], or None


class DecoderRun(NamedTuple):
    """What decoding some tokens gives."""

    state: DecoderState
    hidden: Float[Array, "B T H"]  # what `logits` turns into logits
    weights: Any  # where attention looked, [B, T, S], or None


class Seq2Seq(nnx.Module):
    """The encoder's last states start a decoder, which may attend to the encoder's outputs.

    `embed_size=0` reads one-hot symbols. `share_embeddings` needs one vocabulary for both sides;
    `tie_output` uses the target's embedding as the output kernel (Press and Wolf, 2017). A
    bidirectional encoder has a bridge: for each layer and field of its state a dense layer, from
    the two directions' to the decoder's. `input_feeding` gives each step the last attentional
    vector (Luong et al., 2015). In training `token_dropout` is the share of source tokens that are
    read as unknown (Bowman et al., 2016's word dropout, on the other side): it keeps the encoder
    from leaning on single words, and is what trains the unknown word's embedding.
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
        rngs: nnx.Rngs,
        **stack: Any,  # the other options of make_stack
    ):
        if share_embeddings and (not embed_size or source_vocab_size != target_vocab_size):
            raise UserError("model.share_embeddings needs an embed_size and one vocabulary")
        if not 0 <= embed_size <= MAX_SIZE:
            raise UserError(f"model.embed_size={embed_size} must lie between 0 and {MAX_SIZE}")
        if tie_output and not embed_size:
            raise UserError("model.tie_output needs an embedding: raise model.embed_size")
        if input_feeding and attention == "none":
            raise UserError("model.input_feeding feeds what attention found: choose an attention")
        if not 0 <= token_dropout < 1:
            raise UserError(f"model.token_dropout={token_dropout} must lie in [0, 1)")
        self.token_dropout = token_dropout
        self.vocab_sizes = (source_vocab_size, target_vocab_size)
        self.input_feeding = input_feeding
        target, source = (target_vocab_size, embed_size), (source_vocab_size, embed_size)
        own_source = embed_size and not share_embeddings
        self.target_embed: Any = Embed(*target, rngs=rngs) if embed_size else None
        self.source_embed = Embed(*source, rngs=rngs) if own_source else None
        stack |= {"hidden_size": hidden_size, "rngs": rngs}
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
            fields = jax.tree.leaves(self.decoder.initial_states(1, jnp.float32))
            for i in range(len(fields)):
                setattr(self, f"bridge_{i}", Dense(2 * hidden_size, hidden_size, rngs=rngs))
        self.attends = attention != "none"
        if self.attends:
            memory_size = self.encoder.output_size
            self.attention = Attention(attention, hidden_size, memory_size, rngs=rngs)
            self.combine = Dense(memory_size + hidden_size, hidden_size, rngs=rngs)
        inits = {"kernel_init": output_kernel_init, "bias_init": output_bias_init}
        output_size = embed_size if tie_output else target_vocab_size
        self.output = Dense(hidden_size, output_size, **inits, rngs=rngs)
        self.tie_output = tie_output

    def encode(
        self,
        source: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        *,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> DecoderState:
        """The decoder's state before its first token. Padding may lie on either side.

        Without `keys` nothing is dropped. `rates` replaces the constructor's dropout rates by the
        options' names, as in `Stack`.
        """
        rates = rates or {}
        check_names(rates, RATES)
        token_rate = rates.get("token_dropout", self.token_dropout) if self.token_dropout else 0.0
        embed = self.target_embed if self.source_embed is None else self.source_embed
        kept = dropout(fold_keys(keys, 2), jnp.ones(source.shape), token_rate) > 0
        source = jnp.where(kept, source, SpecialIds().unk_id)
        run = self.encoder(
            self._inputs(embed, source, 0),
            mask=mask,
            keys=fold_keys(keys, 0),
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
        """Reads target tokens, `[B, T]`, one after the other; `keys` and `rates` as in `encode`."""
        rates = rates or {}
        check_names(rates, RATES)
        decoder_rates = _stack_rates(rates, "decoder_")
        xs = self._inputs(self.target_embed, tokens, 1)
        keys = fold_keys(keys, 1)
        if not self.input_feeding:
            return self._decode_inputs(state, xs, keys, decoder_rates)

        def body(state, x):  # each step reads what the one before it found
            feeding = jnp.concatenate([x, state.feed], axis=-1)[:, None]
            # The same keys at every step: under input feeding, dropout keeps one mask a sequence.
            run = self._decode_inputs(state, feeding, keys, decoder_rates)
            return run.state, (run.hidden[:, 0], run.weights[:, 0])

        state, (hidden, weights) = jax.lax.scan(body, state, jnp.swapaxes(xs, 0, 1))
        return DecoderRun(state, jnp.swapaxes(hidden, 0, 1), jnp.swapaxes(weights, 0, 1))

    def logits(self, hidden: Float[Array, "... H"]) -> Logits:
        """Logits over the target's vocabulary."""
        out = self.output(hidden)
        return out @ self.target_embed.embedding[...].T if self.tie_output else out

    def teacher_forced(
        self,
        source: Int[Array, "B S"],
        source_mask: Bool[Array, "B S"],
        inputs: Tokens,
        *,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> Logits:
        """Logits `[B, T, V]` for the token after each of `inputs`, the target shifted right.

        `keys` and `rates` as in `encode`.
        """
        state = self.encode(source, source_mask, keys=keys, rates=rates)
        return self.logits(self.decode(state, inputs, keys=keys, rates=rates).hidden)

    def decode_step(
        self, state: DecoderState, token: Int[Array, " B"]
    ) -> tuple[DecoderState, Float[Array, "B V"]]:
        """The state after one more token, and logits for the next one."""
        decoded = self.decode(state, token[:, None])
        return decoded.state, self.logits(decoded.hidden[:, 0])

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
            contexts, weights = self.attention(hidden, state.memory)
            hidden = jnp.tanh(self.combine(jnp.concatenate([contexts, hidden], axis=-1)))
        if self.input_feeding:
            feed = hidden[:, -1]
        return DecoderRun(DecoderState(run.states, state.memory, feed), hidden, weights)

    def _inputs(self, embed: Embed | None, tokens: Tokens, side: int) -> Float[Array, "B T E"]:
        return one_hot(tokens, self.vocab_sizes[side]) if embed is None else embed(tokens)

    def _bridge(self, states: Any) -> Any:
        """For each layer, the two directions' states through the bridge into one."""
        forward = [(pair[0],) for pair in states]
        fields, treedef = jax.tree.flatten(tuple(forward))
        others = jax.tree.leaves([pair[1] for pair in states])
        bridged = [
            jnp.tanh(getattr(self, f"bridge_{i}")(jnp.concatenate(pair, axis=-1)))
            for i, pair in enumerate(zip(fields, others, strict=True))
        ]
        return jax.tree.unflatten(treedef, bridged)


def _stack_rates(rates: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The rates of the encoder's or the decoder's stack, by that stack's own names."""
    names = {name: f"{part}{name}" if name == "output_dropout" else name for name in DROPOUTS}
    return {name: rates[option] for name, option in names.items() if option in rates}
