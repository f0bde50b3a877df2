"""Scheduled sampling: a decoder that trains on some of its own words (Bengio et al., 2015).

Each input token is, with a probability that may grow over training, replaced by one drawn from the
model's own distribution at the step before.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seqjax.errors import UserError
from seqjax.hparams import from_spec
from seqjax.models.seq2seq import DecoderState, Seq2Seq
from seqjax.nn.dropout import fold_keys
from seqjax.typing import Logits, RowKeys, Tokens

Probability = Callable[[Int[Array, ""]], Float[Array, ""]]  # of the number of updates made


def constant(probability: float = 0.25) -> Probability:
    """The same probability from the first step on."""
    _check(probability)
    return lambda step: jnp.float32(probability)


def linear(final: float = 0.25, num_steps: int = 1000) -> Probability:
    """From 0 up to `final`, reached after `num_steps` updates."""
    _check(final)
    _check_steps(num_steps)
    return lambda step: final * jnp.minimum(step / num_steps, 1.0)


def inverse_sigmoid(final: float = 0.25, num_steps: int = 1000) -> Probability:
    """From about 0 up to `final`, half of it after `num_steps` updates."""
    _check(final)
    _check_steps(num_steps)
    return lambda step: final * jax.nn.sigmoid(8.0 * (step / num_steps - 1.0))


SCHEDULES = {"constant": constant, "linear": linear, "inverse_sigmoid": inverse_sigmoid}


def make_probability(spec: str) -> Probability | None:
    """The schedule of a config; None for "off", so that teacher forcing stays as fast as it is."""
    return None if spec == "off" else from_spec("loss.scheduled_sampling", spec, SCHEDULES)


def sampled_logits(
    model: Seq2Seq,
    state: DecoderState,
    inputs: Tokens,
    probability: Float[Array, ""],
    keys: RowKeys,
    rates: Mapping[str, Any] | None = None,
) -> Logits:
    """Logits `[B, T, V]` after each of `inputs`, some of which are replaced by the model's own.

    `state` is the decoder's before its first token, `rates` as in `Seq2Seq.encode`. Tokens are read
    one after the other, so dropout inside the decoder keeps one mask a sequence.
    """
    replace_keys, draw_keys = fold_keys(keys, 3), fold_keys(keys, 4)

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


def _check(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise UserError(f"loss.scheduled_sampling: {probability} is no probability; use 0 to 1")


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise UserError(f"loss.scheduled_sampling: num_steps={num_steps} must be at least 1")
