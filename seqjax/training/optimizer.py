"""The optimizer and its learning-rate schedule, built from a config's `optim` section.

Everything is optax except three things that it lacks: updates by the mean gradient of several
batches of unequal weights, Adam with Keras' place of epsilon, and an exponential moving average
(EMA) of the parameters that is kept in the optimizer's state. The numbers of the config (learning
rate, clipping bounds, EMA decay, weight decay) are held in that state too
(`optax.inject_hyperparams`), so one compiled program serves trials that differ in them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from seqjax.errors import require
from seqjax.hparams import from_spec
from seqjax.typing import Params

Schedule = Callable[[Any], Any]


class Plateau(NamedTuple):
    """The options of Keras' ReduceLROnPlateau; `min_factor` x the learning rate is its `min_lr`."""

    factor: float
    patience: int
    min_delta: float
    cooldown: int
    min_factor: float
    monitor: str
    mode: str

    def scale(self, values: Sequence[float | None]) -> float:
        """Returns the factor of the learning rate after records with these monitored values.

        A value is an improvement if it is better than the best one by more than `min_delta`; None
        and NaN are none. After `patience` records without an improvement the factor is multiplied;
        of the `cooldown` records after that only the last one is counted. Every epoch has a record
        of the training metrics; validation metrics are only in those of evaluations.
        """
        sign = 1 if self.mode == "max" else -1
        scale, best, wait, cooldown = 1.0, None, 0, 0
        for value in values:
            cooldown = max(0, cooldown - 1)
            is_number = value is not None and not math.isnan(value)
            if is_number and (best is None or sign * value - self.min_delta > sign * best):
                best, wait = value, 0
            elif cooldown == 0:
                wait += 1
                if wait >= self.patience:
                    scale = max(scale * self.factor, self.min_factor)
                    cooldown, wait = self.cooldown, 0
        return scale


class Optimizer(NamedTuple):
    """Makes updates from summed gradients, and reads its state.

    What is read may have a leading [N] where the states of N trials are stacked.
    """

    init: Callable  # params -> opt_state
    # (gradients, opt_state, params, *, weight, is_last=False) -> (updates, opt_state): the
    # gradients are those of a batch's summed loss, and `weight` is the weight of that sum.
    update: Callable
    learning_rate: Callable  # opt_state -> the rate of the next update
    eval_params: Callable  # (params, opt_state) -> the parameters to evaluate with
    num_skipped: Callable  # opt_state -> the number of batches with a non-finite gradient
    num_updates: Callable  # opt_state -> the number of updates that were made
    plateau: Plateau | None
    with_factor: Callable  # (opt_state, the plateau's factor) -> opt_state


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
    num_updates: int,
) -> Optimizer:
    """Returns the optimizer that a config describes; 0 turns clipping and the EMA off.

    Schedules count the `num_updates` updates of the run; one update is made every
    `accumulate_steps` steps. Raises UserError for an unknown name or option and for a number out of
    its range.
    """
    require("optim.learning_rate", learning_rate, learning_rate > 0, "positive")
    require("optim.clip_norm", clip_norm, clip_norm >= 0, "at least 0")
    require("optim.clip_value", clip_value, clip_value >= 0, "at least 0")
    require("optim.accumulate_steps", accumulate_steps, accumulate_steps >= 1, "at least 1")
    require("optim.ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    lengths = {"per_epoch": steps_per_epoch / accumulate_steps, "num_updates": num_updates}
    factor = from_spec("schedule", schedule, SCHEDULES, **lengths)
    rule = from_spec("optimizer", name, OPTIMIZERS)
    plateau = factor if isinstance(factor, Plateau) else None

    @optax.inject_hyperparams  # numbers and schedules become float32 arrays in the state
    def make_chain(learning_rate, factor, clip_value, clip_norm, weight_decay, ema_decay):
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        return optax.chain(
            optax.identity() if clip_value is None else optax.clip(clip_value),
            optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
            rule.make(learning_rate * factor, **decay),
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
    init, update = update_by_mean(chain, accumulate_steps)

    def next_rate(opt_state: MeanState) -> Any:
        numbers = opt_state.inner.hyperparams
        # The schedule's factor in `numbers` is that of the last update.
        scale = numbers["factor"] if plateau else factor(opt_state.inner.count)
        return numbers["learning_rate"] * scale

    def eval_params(params: Params, opt_state: MeanState) -> Params:
        return optax.tree_utils.tree_get(opt_state, "ema") if ema_decay else params

    def with_factor(opt_state: MeanState, factor: Any) -> MeanState:
        numbers = opt_state.inner.hyperparams
        # `where` keeps the shape, dtype and sharding for which the programs are compiled.
        numbers = numbers | {"factor": jnp.where(True, factor, numbers["factor"])}
        return opt_state._replace(inner=opt_state.inner._replace(hyperparams=numbers))

    return Optimizer(
        init,
        update,
        next_rate,
        eval_params,
        num_skipped=lambda opt_state: opt_state.num_skipped,
        num_updates=lambda opt_state: opt_state.inner.count,
        plateau=plateau,
        with_factor=with_factor,
    )


class Window(NamedTuple):
    """Sums over the batches whose mean gradient makes the next update."""

    gradients: Params
    weight: Float[Array, "*trials"]
    num_batches: Int[Array, "*trials"] | int  # skipped ones too


class MeanState(NamedTuple):
    """The state of `update_by_mean`; `window` is None where every batch makes an update."""

    inner: Any
    num_skipped: Int[Array, "*trials"]
    window: Window | None


def update_by_mean(inner: Any, accumulate_steps: int) -> tuple[Callable, Callable]:
    """Returns `init` and `update` as `Optimizer` has them, which make an update every
    `accumulate_steps` batches by the mean gradient over their whole weight.

    `optax.MultiSteps` takes the mean of the batches' means, whatever their weights are. A batch
    whose gradient or weight is not finite is skipped: it adds nothing but is counted. With
    `is_last` the update is made early. Without any weight none is made.
    """

    def init(params: Params) -> MeanState:
        zeros = Window(optax.tree.zeros_like(params), jnp.zeros(()), jnp.zeros((), jnp.int32))
        window = zeros if accumulate_steps > 1 else None
        return MeanState(inner.init(params), jnp.zeros((), jnp.int32), window)

    def update(
        gradients: Params, state: MeanState, params: Params, *, weight: Any, is_last: Any = False
    ) -> tuple[Params, MeanState]:
        inner_state, num_skipped, before = state
        finite = all_finite((gradients, weight))
        terms = jax.tree.map(lambda x: jnp.where(finite, x, 0), (gradients, weight))
        batch = Window(*terms, num_batches=1)
        window = batch if before is None else jax.tree.map(jnp.add, before, batch)
        is_whole = (window.num_batches >= accumulate_steps) | jnp.asarray(is_last)
        has_weight = window.weight > 0
        scale = 1 / jnp.where(has_weight, window.weight, 1)
        # Not in the branch: there XLA fuses the product into the next sum and does not round it.
        mean = jax.tree.map(lambda g: scale * g, window.gradients)
        updates, inner_state = jax.lax.cond(
            is_whole & has_weight,
            lambda: inner.update(mean, inner_state, params),
            lambda: (optax.tree.zeros_like(gradients), inner_state),
        )
        if before is not None:
            before = jax.tree.map(lambda x: jnp.where(is_whole, 0, x), window)
        return updates, MeanState(inner_state, num_skipped + ~finite, before)

    return init, update


def all_finite(tree: Any) -> Array:
    """Returns whether no element of any array is NaN or infinite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


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


# Each is called with `per_epoch`, the updates of an epoch, which is not rounded, and `num_updates`,
# those of the run.


def _constant(per_epoch: float, num_updates: int) -> Schedule:
    return optax.constant_schedule(1.0)


def _warmup(per_epoch: float, num_updates: int, epochs: float = 1.0) -> Schedule:
    require("epochs", epochs, epochs > 0, "positive")
    length: Any = epochs * per_epoch  # optax divides by it, so it need not be an int
    return optax.linear_schedule(0.0, 1.0, length)


def _cosine(
    per_epoch: float, num_updates: int, warmup_epochs: float = 0.0, final_factor: float = 0.0
) -> Schedule:
    require("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0")
    warmup: Any = warmup_epochs * per_epoch
    # A run that ends within the warm-up, or less than an update after it, never decays.
    decay = optax.cosine_decay_schedule(1.0, max(1, num_updates - warmup), final_factor)
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), decay], [warmup])


def _exponential(
    per_epoch: float, num_updates: int, factor: float = 0.5, epochs: float = 1.0
) -> Schedule:
    require("factor", factor, factor > 0, "positive")
    require("epochs", epochs, epochs > 0, "positive")
    length: Any = epochs * per_epoch
    return optax.exponential_decay(1.0, length, factor)


def _plateau(
    per_epoch: float,
    num_updates: int,
    factor: float = 0.5,
    patience: int = 3,
    min_delta: float = 1e-4,
    cooldown: int = 0,
    min_factor: float = 0.0,
    monitor: str = "train.loss",
    mode: str = "min",
) -> Plateau:
    require("factor", factor, 0 < factor < 1, "between 0 and 1")
    require("patience", patience, patience >= 1, "at least 1")
    require("min_delta", min_delta, min_delta >= 0, "at least 0")
    require("cooldown", cooldown, cooldown >= 0, "at least 0")
    require("min_factor", min_factor, 0 <= min_factor <= 1, "in [0, 1]")
    require("mode", repr(mode), mode in ("min", "max"), "'min' or 'max'")
    return Plateau(factor, patience, min_delta, cooldown, min_factor, monitor, mode)


# By what the learning rate is multiplied over the run: always 1; from 0 up to 1; down along a
# cosine; `factor` every `epochs`; `factor` whenever the monitored metric stops improving.
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
