"""Scheduled sampling: training a decoder on some of its own tokens (Bengio et al., 2015).

With a probability that may grow during training, each input token is replaced by one drawn from the
distribution that the model predicted at the step before.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seqjax.errors import require
from seqjax.hparams import from_spec
from seqjax.models.seq2seq import DecoderState, Seq2Seq
from seqjax.nn.dropout import ModelStream, fold_keys
from seqjax.typing import Logits, RowKeys, Tokens

Probability = Callable[[Int[Array, ""]], Float[Array, ""]]  # a function of the number of updates


def constant(probability: float = 0.25) -> Probability:
    """Returns a schedule with the same probability from the first step on."""
    _check_probability("probability", probability)
    return lambda step: jnp.float32(probability)


def linear(final: float = 0.25, num_steps: int = 1000) -> Probability:
    """Returns a schedule that rises from 0 to `final` in `num_steps` updates."""
    _check_probability("final", final)
    _check_steps(num_steps)
    return lambda step: final * jnp.minimum(step / num_steps, 1.0)


def inverse_sigmoid(final: float = 0.25, num_steps: int = 1000) -> Probability:
    """Returns a schedule that rises from about 0 to `final` and is half way at `num_steps`."""
    _check_probability("final", final)
    _check_steps(num_steps)
    return lambda step: final * jax.nn.sigmoid(8.0 * (step / num_steps - 1.0))


PROBABILITIES = {"constant": constant, "linear": linear, "inverse_sigmoid": inverse_sigmoid}


def make_probability(spec: str) -> Probability | None:
    """Returns the schedule of a spec, or None for "off", so that teacher forcing stays fast.

    Raises UserError for an unknown schedule or option, or a value out of its range.
    """
    return None if spec == "off" else from_spec("loss.scheduled_sampling", spec, PROBABILITIES)


def sampled_logits(
    model: Seq2Seq,
    state: DecoderState,
    inputs: Tokens,
    probability: Float[Array, ""],
    keys: RowKeys,
    rates: Mapping[str, Any] | None = None,
) -> Logits:
    """Returns logits `[B, T, V]` after each of `inputs`, some replaced by the model's own tokens.

    `state` is the decoder's state before its first token; `rates` is as in `Seq2Seq.encode`. The
    decoder reads one token at a time, so dropout in it keeps one mask for the sequence.
    """
    replace_keys, draw_keys = (fold_keys(keys, s) for s in (ModelStream.REPLACE, ModelStream.DRAW))

    def body(carry, xs):
        state, guess = carry
        token, step = xs
        replace = jax.vmap(lambda k: jax.random.bernoulli(_at(k, step), probability))(replace_keys)
        token = jnp.where(replace & (step > 0), guess, token)
        run = model.decode(state, token[:, None], keys=keys, rates=rates)
        logits = model.logits(run.hidden[:, 0])
        frozen = jax.lax.stop_gradient(logits)
        guess = jax.vmap(lambda k, row: jax.random.categorical(_at(k, step), row))(
            draw_keys, frozen
        )
        return (run.state, guess.astype(inputs.dtype)), logits

    steps = (inputs.T, jnp.arange(inputs.shape[1]))
    _, logits = jax.lax.scan(body, (state, inputs[:, 0]), steps)
    return jnp.swapaxes(logits, 0, 1)


def _at(key: Any, step: Int[Array, ""]) -> Any:
    return jax.random.fold_in(key, step)


def _check_probability(option: str, value: float) -> None:
    require(option, value, 0 <= value <= 1, "in [0, 1]")


def _check_steps(num_steps: int) -> None:
    require("num_steps", num_steps, num_steps >= 1, "at least 1")
