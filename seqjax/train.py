"""The train step, and the loops that run it. Imports: metrics, optim, mesh, data.batches.

The step is built, not decorated: the same pure function is looped over an epoch, sharded over
devices, vmapped over seeds. Keys are folded from the step's number, so resuming is exact for free.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from seqjax.array_types import Batch, Params, RowKeys
from seqjax.data.batches import Rows, epoch_order, num_rows, steps_per_epoch, take_rows
from seqjax.mesh import AXIS, SPLIT, WHOLE, batch_keys, own_part, put, sharded, total
from seqjax.metrics import Metrics
from seqjax.optim import Optimizer

Measure = Callable[[Params, Batch, RowKeys | None], Metrics]


class TrainState(NamedTuple):
    """All that training changes."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class StepLog(NamedTuple):
    """What steps tell: of one, or `[steps]` of many."""

    metrics: Metrics
    skipped: Int[Array, "*steps"]  # 1 where loss or gradient was no number and nothing was updated


def init_train_state(params: Params, optimizer: Optimizer) -> TrainState:
    """The state before the first step."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_objective(measure: Measure, axis: str | None = None) -> Callable:
    """`(params, batch, step, key) -> (loss, metrics)`: the mean of `metrics["loss"]`, and all.

    Beside its rows the batch that `measure` sees has "step", how many batches were read before it,
    for what follows a schedule. With the name of a mesh axis every device holds some of the rows:
    the loss is this device's part of the mean over all of them, the metrics are its own sums.
    """

    def objective(params: Params, batch: Batch, step: Int[Array, ""], key: Key[Array, ""]):
        keys = batch_keys(jax.random.fold_in(key, step), batch, axis)
        metrics = dict(measure(params, {**batch, "step": step}, keys))
        weight = jnp.maximum(total(metrics["loss"].weight, axis), 1)
        return metrics["loss"].total / weight, metrics

    return objective


def make_train_step(measure: Measure, optimizer: Optimizer, axis: str | None = None) -> Callable:
    """`(state, batch, key) -> (state, StepLog)`: one update by the mean of `metrics["loss"]`.

    With the name of a mesh axis the step is for use inside `mesh.sharded`: gradients and metrics
    are summed over the devices once.
    """
    gradient = jax.grad(make_objective(measure, axis), has_aux=True)

    def train_step(state: TrainState, batch: Batch, key: Key[Array, ""]):
        params, opt_state, step = state
        grads, metrics = total(gradient(params, batch, step, key), axis)
        loss = metrics["loss"].total / jnp.maximum(metrics["loss"].weight, 1)
        # The optimizer skips a gradient that is no number; a loss that is none has no gradient.
        grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), grads)
        updates, new_opt_state = optimizer.update(grads, opt_state, params, value=loss)
        skipped = optimizer.num_skipped(new_opt_state) - optimizer.num_skipped(opt_state)
        params = optax.apply_updates(params, updates)
        return TrainState(params, new_opt_state, step + 1), StepLog(metrics, skipped)

    return train_step


class TrainData(NamedTuple):
    """The training rows and how an epoch reads them."""

    rows: Rows
    batch_size: int
    drop_remainder: bool

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(num_rows(self.rows), self.batch_size, self.drop_remainder)

    def order(self, key: Key[Array, ""], epoch: Any, num_devices: int) -> tuple[Array, Array]:
        """Row numbers and weights `[steps, B]` of an epoch, counted from 0."""
        size = (num_rows(self.rows), self.batch_size, self.drop_remainder, num_devices)
        return epoch_order(jax.random.fold_in(key, epoch), *size)


# (state, key, num_steps) -> (state, StepLog [num_steps or more]); the key orders rows and drops
# units. Once more than `max_skipped` steps were skipped the state stays as it is.
Loop = Callable[[TrainState, Key[Array, ""], int], tuple[TrainState, StepLog]]


def make_epoch_loop(
    measure: Measure,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    *,
    max_steps: int,
    max_skipped: int,
) -> Loop:
    """Steps as one compiled program: shuffling, gathering and updates, epoch after epoch.

    The rows lie on each device. Returning to Python once an epoch, not once a step, lets XLA
    allocate its buffers once. How many steps a call makes, `max_steps` at most, is no part of the
    program: one compilation serves all, and the bits do not depend on how steps are divided into
    calls.
    """
    train_step = make_train_step(measure, optimizer, AXIS)
    rows = put(dict(data.rows), mesh, WHOLE)
    per_epoch = data.steps_per_epoch

    def steps(state: TrainState, rows: Rows, key: Key[Array, ""], num_steps: Int[Array, ""]):
        order_key, step_key = jax.random.split(key)
        first = state.step

        def before(end: Array) -> Callable:
            def goes_on(carry: tuple[TrainState, StepLog]) -> Array:
                few_skipped = optimizer.num_skipped(carry[0].opt_state) <= max_skipped
                return (carry[0].step < end) & few_skipped

            return goes_on

        def one_epoch(carry: tuple[TrainState, StepLog]):
            epoch = carry[0].step // per_epoch
            order = data.order(order_key, epoch, mesh.size)

            def one_step(carry: tuple[TrainState, StepLog]):
                state, logs = carry
                now = (own_part(x[state.step % per_epoch], mesh.size) for x in order)
                new_state, log = train_step(state, take_rows(rows, *now), step_key)
                place = state.step - first
                return new_state, jax.tree.map(lambda xs, x: xs.at[place].set(x), logs, log)

            end = jnp.minimum((epoch + 1) * per_epoch, first + num_steps)
            return jax.lax.while_loop(before(end), one_step, carry)

        part = jnp.zeros(-(-data.batch_size // mesh.size), jnp.int32)
        batch = jax.eval_shape(take_rows, rows, part, part.astype(jnp.float32))
        log = empty_log(train_step, state, batch, step_key)
        logs = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), log)
        return jax.lax.while_loop(before(first + num_steps), one_epoch, (state, logs))

    program = jax.jit(sharded(steps, mesh, (WHOLE,) * 4), donate_argnums=0)

    def loop(state: TrainState, key: Key[Array, ""], num_steps: int):
        return program(state, rows, key, jnp.int32(num_steps))

    return loop


def make_step_loop(
    measure: Measure,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    *,
    max_steps: int,
    max_skipped: int,
) -> Loop:
    """The same steps, one a program: for rows that do not fit on a device."""
    train_step = make_train_step(measure, optimizer, AXIS)

    def one_step(state: TrainState, batch: Batch, key: Key[Array, ""]):
        def stay():
            return state, empty_log(train_step, state, batch, key)

        few_skipped = optimizer.num_skipped(state.opt_state) <= max_skipped
        return jax.lax.cond(few_skipped, lambda: train_step(state, batch, key), stay)

    program = jax.jit(sharded(one_step, mesh, (WHOLE, SPLIT, WHOLE)), donate_argnums=0)
    order = jax.jit(partial(data.order, num_devices=mesh.size))

    def loop(state: TrainState, key: Key[Array, ""], num_steps: int):
        order_key, step_key = jax.random.split(key)
        first, logs, read = int(state.step), [], None
        for step in range(first, first + num_steps):
            epoch, place = divmod(step, data.steps_per_epoch)
            if epoch != read:
                index, weight = jax.device_get(order(order_key, epoch))
                read = epoch
            batch = put(take_rows(data.rows, index[place], weight[place]), mesh, SPLIT)
            state, log = program(state, batch, step_key)
            logs.append(log)
        return state, jax.tree.map(lambda *xs: np.stack(xs), *logs)

    return loop


def empty_log(train_step: Callable, state: TrainState, batch: Batch, key: Key[Array, ""]) -> Any:
    """The log of no step, of the shapes of a step's."""
    _, log = jax.eval_shape(train_step, state, batch, key)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), log)


LOOPS: dict[str, Callable[..., Loop]] = {"epoch": make_epoch_loop, "step": make_step_loop}
