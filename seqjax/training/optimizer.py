"""The optimizer and its schedule from a config's `optim` section.

Everything is optax; written here are only two things that it lacks: Keras' place of Adam's epsilon,
and a running mean of the parameters that rides along in the optimizer's state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax.errors import UserError
from seqjax.hparams import LARGEST_INT, from_spec, value_of
from seqjax.typing import Params

Schedule = Callable[[Any], Any]


class Optimizer(NamedTuple):
    """An optax transformation, its schedule, and the parameters to evaluate with."""

    init: Callable
    update: Callable  # (grads, opt_state, params, *, value) -> (updates, opt_state)
    learning_rate: Callable  # (opt_state, step) -> a number; of many members' state [N] of them
    eval_params: Callable  # (params, opt_state) -> params
    num_skipped: Callable  # opt_state -> how many updates by a gradient that is no number


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
    """The optimizer that a config describes; 0 turns clipping and the running mean off.

    Schedules count updates, of which there is one every `accumulate_steps` steps. Raises UserError
    for an unknown name or option, or a number out of its range.
    """
    _check("learning_rate", learning_rate, learning_rate > 0, "positive")
    _check("clip_norm", clip_norm, clip_norm >= 0, "at least 0")
    _check("clip_value", clip_value, clip_value >= 0, "at least 0")
    _check("accumulate_steps", accumulate_steps, accumulate_steps >= 1, "at least 1")
    _check("ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    if (steps := steps_per_epoch * num_epochs) > LARGEST_INT:
        raise UserError(f"train.num_epochs={num_epochs} makes {steps} steps, above {LARGEST_INT}")
    per_epoch = max(1, steps_per_epoch // accumulate_steps)
    base = from_spec(
        "schedule",
        schedule,
        SCHEDULES,
        peak=value_of(learning_rate),
        per_epoch=per_epoch,
        num_updates=per_epoch * num_epochs,
    )
    plateau = isinstance(base, optax.GradientTransformationExtraArgs)
    rate = (lambda _: value_of(learning_rate)) if plateau else base
    parts = [
        optax.clip(value_of(clip_value)) if clip_value else optax.identity(),
        optax.clip_by_global_norm(value_of(clip_norm)) if clip_norm else optax.identity(),
        from_spec("optimizer", name, OPTIMIZERS, learning_rate=rate),
        base if plateau else optax.identity(),
        running_mean(value_of(ema_decay)) if ema_decay else optax.identity(),
    ]
    chain = optax.with_extra_args_support(optax.chain(*parts))
    if accumulate_steps > 1:
        several: Any = optax.MultiSteps(chain, accumulate_steps)
        # Its own gradient_transformation() would not hand the loss on to the plateau.
        chain = optax.GradientTransformationExtraArgs(several.init, several.update)
    # Outermost, so that no gradient that is no number is accumulated either.
    chain = optax.apply_if_finite(chain, max_consecutive_errors=np.iinfo(np.int32).max)

    def current_rate(opt_state: Any, step: int) -> Any:
        scale = optax.tree_utils.tree_get(opt_state, "scale", 1.0) if plateau else 1.0
        return np.float64(rate(step // accumulate_steps)) * np.asarray(scale, np.float64)

    def eval_params(params: Params, opt_state: Any) -> Params:
        return optax.tree_utils.tree_get(opt_state, "mean") if ema_decay else params

    def num_skipped(opt_state: Any) -> Any:
        return opt_state.total_notfinite

    return Optimizer(chain.init, chain.update, current_rate, eval_params, num_skipped)


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda learning_rate: optax.sgd(learning_rate),
    "momentum": lambda learning_rate, momentum=0.9, nesterov=False: optax.sgd(
        learning_rate, momentum, nesterov
    ),
    "adam": lambda learning_rate, b1=0.9, b2=0.999, eps=1e-8: optax.adam(
        learning_rate, b1, b2, eps
    ),
    "keras_adam": lambda learning_rate, b1=0.9, b2=0.999, eps=1e-7: optax.chain(
        scale_by_keras_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)
    ),
    "adamw": lambda learning_rate, weight_decay=1e-2, b1=0.9, b2=0.999, eps=1e-8: optax.adamw(
        learning_rate, b1, b2, eps, weight_decay=value_of(weight_decay)
    ),
    # optax's rmsprop with eps inside the root and the rate inside the momentum is Keras' own.
    "rmsprop": lambda learning_rate, decay=0.9, eps=1e-7, momentum=0.0, centered=False: (
        optax.rmsprop(learning_rate, decay, eps, centered=centered, momentum=momentum or None)
    ),
}


def _constant(peak: Any, per_epoch: int, num_updates: int) -> Schedule:
    return optax.constant_schedule(peak)


def _warmup(peak: Any, per_epoch: int, num_updates: int, epochs: float = 1.0) -> Schedule:
    return optax.linear_schedule(0.0, peak, max(1, round(epochs * per_epoch)))


def _cosine(
    peak: Any,
    per_epoch: int,
    num_updates: int,
    warmup_epochs: float = 0.0,
    final_factor: float = 0.0,
) -> Schedule:
    _check("schedule: warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0")
    warmup = round(warmup_epochs * per_epoch)
    decay = optax.cosine_decay_schedule(peak, max(1, num_updates - warmup), final_factor)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup or 1), decay], [warmup])


def _exponential(
    peak: Any, per_epoch: int, num_updates: int, factor: float = 0.5, epochs: float = 1.0
) -> Schedule:
    _check("schedule: factor", factor, factor > 0, "positive")
    return optax.exponential_decay(peak, max(1, round(epochs * per_epoch)), factor)


def _plateau(
    peak: Any,
    per_epoch: int,
    num_updates: int,
    factor: float = 0.5,
    patience: int = 3,
    rtol: float = 1e-4,
) -> Any:
    return optax.contrib.reduce_on_plateau(factor, patience, rtol, accumulation_size=per_epoch)


# What the rate does over the run: from 0 up to `learning_rate` and stay; down along a cosine; times
# `factor` every `epochs`; times `factor` after `patience` epochs without a better training loss.
SCHEDULES: dict[str, Callable] = {
    "constant": _constant,
    "warmup": _warmup,
    "cosine": _cosine,
    "exponential": _exponential,
    "plateau": _plateau,
}


def scale_by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with the paper's "epsilon hat", as Keras and TF1 write it (Kingma and Ba, 2015, 2).

    Epsilon is added before the second moment's bias is corrected, so early in training it weighs
    up to 1 / sqrt(1 - b2) times more than in the paper's Algorithm 1.
    """

    def update(updates, state, params=None):
        count = state.count + 1
        mu = optax.tree_utils.tree_update_moment(updates, state.mu, b1, 1)
        nu = optax.tree_utils.tree_update_moment(updates, state.nu, b2, 2)
        alpha = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        scaled = jax.tree.map(lambda m, v: alpha * m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


class RunningMeanState(NamedTuple):
    mean: Params


def running_mean(decay: Any) -> optax.GradientTransformation:
    """Keeps an exponential moving mean of the parameters; leaves the updates as they are."""

    def init(params):
        return RunningMeanState(jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Any, params: Any = None):
        new = optax.apply_updates(params, updates)
        return updates, RunningMeanState(optax.incremental_update(new, state.mean, 1 - decay))

    return optax.GradientTransformation(init, update)


def _check(field: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"optim.{field}={value} must be {wanted}")
