"""The optimizer and its learning-rate schedule, built from a config's `optim` section.

Everything is optax except two transformations that it lacks: Adam with Keras' place of epsilon, and
an exponential moving average (EMA) of the parameters that is kept in the optimizer's state. The
numbers of the config (learning rate, clipping bounds, EMA decay, weight decay) are held in that
state too (`optax.inject_hyperparams`), so one compiled program serves trials that differ in them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from seqjax.errors import UserError, require
from seqjax.hparams import LARGEST_INT, from_spec
from seqjax.typing import Params

Schedule = Callable[[Any], Any]


class Optimizer(NamedTuple):
    """An optax transformation, and what can be read from its state."""

    init: Callable
    update: Callable  # (grads, opt_state, params, *, value) -> (updates, opt_state)
    learning_rate: Callable  # opt_state -> the rate of the last update
    eval_params: Callable  # (params, opt_state) -> the parameters to evaluate with
    num_skipped: Callable  # opt_state -> the number of skipped, non-finite gradients


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    schedule: str,
    clip_norm: float,
    clip_value: float,
    accumulate_steps: int,
    ema_decay: float,
    steps_per_epoch: int,
    num_epochs: int,
) -> Optimizer:
    """Returns the optimizer that a config describes; 0 turns clipping and the EMA off.

    Schedules count updates; one update is made every `accumulate_steps` steps. Raises UserError for
    an unknown name or option and for a number out of its range.
    """
    require("optim.learning_rate", learning_rate, learning_rate > 0, "positive")
    require("optim.clip_norm", clip_norm, clip_norm >= 0, "at least 0")
    require("optim.clip_value", clip_value, clip_value >= 0, "at least 0")
    require("optim.accumulate_steps", accumulate_steps, accumulate_steps >= 1, "at least 1")
    require("optim.ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    if (steps := steps_per_epoch * num_epochs) > LARGEST_INT:
        raise UserError(f"train.num_epochs={num_epochs} makes {steps} steps, above {LARGEST_INT}")
    per_epoch = max(1, steps_per_epoch // accumulate_steps)
    lengths = {"per_epoch": per_epoch, "num_updates": per_epoch * num_epochs}
    factor = from_spec("schedule", schedule, SCHEDULES, **lengths)
    rule = from_spec("optimizer", name, OPTIMIZERS)
    plateau = factor if isinstance(factor, optax.GradientTransformationExtraArgs) else None

    @optax.inject_hyperparams  # numbers and schedules become float32 arrays in the state
    def make_chain(learning_rate, factor, clip_value, clip_norm, weight_decay, ema_decay):
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        return optax.chain(
            optax.identity() if clip_value is None else optax.clip(clip_value),
            optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
            rule.make(learning_rate * factor, **decay),
            plateau or optax.identity(),
            optax.identity() if ema_decay is None else parameter_ema(ema_decay),
        )

    chain = make_chain(
        learning_rate=learning_rate,
        factor=1.0 if plateau else factor,
        clip_value=clip_value or None,
        clip_norm=clip_norm or None,
        weight_decay=rule.weight_decay,
        ema_decay=ema_decay or None,
    )
    if accumulate_steps > 1:
        several: Any = optax.MultiSteps(chain, accumulate_steps)
        # Its own gradient_transformation() would not hand the loss on to the plateau.
        chain = optax.GradientTransformationExtraArgs(several.init, several.update)
    # Outermost, so that a non-finite gradient is not accumulated either.
    chain = optax.apply_if_finite(chain, max_consecutive_errors=np.iinfo(np.int32).max)

    def last_rate(opt_state: Any) -> Any:
        numbers = optax.tree_utils.tree_get(opt_state, "hyperparams")
        scale = optax.tree_utils.tree_get(opt_state, "scale") if plateau else 1.0
        return numbers["learning_rate"] * numbers["factor"] * scale

    def eval_params(params: Params, opt_state: Any) -> Params:
        return optax.tree_utils.tree_get(opt_state, "ema") if ema_decay else params

    def num_skipped(opt_state: Any) -> Any:
        return opt_state.total_notfinite

    return Optimizer(chain.init, chain.update, last_rate, eval_params, num_skipped)


class UpdateRule(NamedTuple):
    """An optimizer of the table below, without the numbers that `make_optimizer` gives it."""

    make: Callable  # (learning_rate[, weight_decay]) -> an optax transformation
    weight_decay: float | None = None


OPTIMIZERS: dict[str, Callable[..., UpdateRule]] = {
    "sgd": lambda: UpdateRule(optax.sgd),
    "momentum": lambda momentum=0.9, nesterov=False: UpdateRule(
        partial(optax.sgd, momentum=momentum, nesterov=nesterov)
    ),
    "adam": lambda b1=0.9, b2=0.999, eps=1e-8: UpdateRule(
        partial(optax.adam, b1=b1, b2=b2, eps=eps)
    ),
    "keras_adam": lambda b1=0.9, b2=0.999, eps=1e-7: UpdateRule(
        lambda learning_rate: optax.chain(
            scale_by_keras_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)
        )
    ),
    "adamw": lambda weight_decay=1e-2, b1=0.9, b2=0.999, eps=1e-8: UpdateRule(
        partial(optax.adamw, b1=b1, b2=b2, eps=eps), weight_decay
    ),
    # optax.rmsprop adds eps inside the square root and applies the rate inside the momentum, as
    # Keras does.
    "rmsprop": lambda decay=0.9, eps=1e-7, momentum=0.0, centered=False: UpdateRule(
        partial(optax.rmsprop, decay=decay, eps=eps, centered=centered, momentum=momentum or None)
    ),
}


def _constant(per_epoch: int, num_updates: int) -> Schedule:
    return optax.constant_schedule(1.0)


def _warmup(per_epoch: int, num_updates: int, epochs: float = 1.0) -> Schedule:
    return optax.linear_schedule(0.0, 1.0, max(1, round(epochs * per_epoch)))


def _cosine(
    per_epoch: int, num_updates: int, warmup_epochs: float = 0.0, final_factor: float = 0.0
) -> Schedule:
    require("optim.schedule: warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0")
    warmup = round(warmup_epochs * per_epoch)
    decay = optax.cosine_decay_schedule(1.0, max(1, num_updates - warmup), final_factor)
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup or 1), decay], [warmup])


def _exponential(
    per_epoch: int, num_updates: int, factor: float = 0.5, epochs: float = 1.0
) -> Schedule:
    require("optim.schedule: factor", factor, factor > 0, "positive")
    return optax.exponential_decay(1.0, max(1, round(epochs * per_epoch)), factor)


def _plateau(
    per_epoch: int, num_updates: int, factor: float = 0.5, patience: int = 3, rtol: float = 1e-4
) -> optax.GradientTransformationExtraArgs:
    return optax.contrib.reduce_on_plateau(factor, patience, rtol, accumulation_size=per_epoch)


# By what the learning rate is multiplied over the run: always 1; from 0 up to 1; down along a
# cosine; `factor` every `epochs`; `factor` after `patience` epochs without a lower training loss.
SCHEDULES: dict[str, Callable] = {
    "constant": _constant,
    "warmup": _warmup,
    "cosine": _cosine,
    "exponential": _exponential,
    "plateau": _plateau,
}


def scale_by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns Adam with the "epsilon hat" of Kingma and Ba (2015, section 2), as Keras writes it.

    Epsilon is added before the second moment's bias is corrected, so early in training it weighs
    up to 1 / sqrt(1 - b2) times more than in the paper's Algorithm 1.
    """

    def update(updates, state, params=None):
        count = state.count + 1
        mu = optax.tree_utils.tree_update_moment(updates, state.mu, b1, 1)
        nu = optax.tree_utils.tree_update_moment(updates, state.nu, b2, 2)
        alpha = jnp.sqrt(1 - b2**count) / (1 - b1**count)

        def scale(m: Array, v: Array) -> Array:
            return (alpha * m / (jnp.sqrt(v) + eps)).astype(m.dtype)  # alpha may be a float64

        return jax.tree.map(scale, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


class ParameterEmaState(NamedTuple):
    """The exponential moving average of the parameters."""

    ema: Params


def parameter_ema(decay: Any) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters and passes updates on unchanged."""

    def init(params):
        return ParameterEmaState(jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Any, params: Any = None):
        new = optax.apply_updates(params, updates)
        return updates, ParameterEmaState(optax.incremental_update(new, state.ema, 1 - decay))

    return optax.GradientTransformation(init, update)
