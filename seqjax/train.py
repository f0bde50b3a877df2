"""The train step, and the loops that run it. Imports: metrics, optim, mesh, data.batches.

The step is built, not decorated: the same pure function is scanned over an epoch, sharded over
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


def init_train_state(params: Params, optimizer: Optimizer) -> TrainState:
    """The state before the first step."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(measure: Measure, optimizer: Optimizer, axis: str | None = None) -> Callable:
    """`(state, batch, key) -> (state, metrics)`: one update by the mean of `metrics["loss"]`.

    With the name of a mesh axis the step is for use inside `mesh.sharded`: every device holds some
    of the rows, and gradients and metrics are summed over all of them once. Beside its rows the
    batch that `measure` sees has "step", how many updates were made, for what follows a schedule.
    """

    def train_step(state: TrainState, batch: Batch, key: Key[Array, ""]):
        keys = batch_keys(jax.random.fold_in(key, state.step), batch, axis)

        def objective(params):
            metrics = measure(params, {**batch, "step": state.step}, keys)
            weight = jnp.maximum(total(metrics["loss"].weight, axis), 1)
            return metrics["loss"].total / weight, dict(metrics)

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        grads, metrics = total((grads, metrics), axis)
        loss = metrics["loss"].total / jnp.maximum(metrics["loss"].weight, 1)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), metrics

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


# (state, key, num_epochs) -> (state, metrics [epochs, steps]); the key orders rows and drops units
Loop = Callable[[TrainState, Key[Array, ""], int], tuple[TrainState, Metrics]]


def make_epoch_loop(measure: Measure, optimizer: Optimizer, data: TrainData, mesh: Mesh) -> Loop:
    """Whole epochs as one compiled program: shuffling, gathering and every step.

    The rows lie on each device. Returning to Python once an epoch, not once a step, lets XLA
    allocate its buffers once.
    """
    train_step = make_train_step(measure, optimizer, AXIS)
    rows = put(dict(data.rows), mesh, WHOLE)

    def epochs(state: TrainState, rows: Rows, key: Key[Array, ""], num_epochs: int):
        order_key, step_key = jax.random.split(key)

        def one_step(state, inputs):
            index, weight = (own_part(x, mesh.size) for x in inputs)
            return train_step(state, take_rows(rows, index, weight), step_key)

        def one_epoch(state, _):
            order = data.order(order_key, state.step // data.steps_per_epoch, mesh.size)
            return jax.lax.scan(one_step, state, order)

        return jax.lax.scan(one_epoch, state, length=num_epochs)

    @partial(jax.jit, static_argnums=3, donate_argnums=0)
    def program(state, rows, key, num_epochs):
        run = partial(epochs, num_epochs=num_epochs)
        return sharded(run, mesh, (WHOLE, WHOLE, WHOLE))(state, rows, key)

    def loop(state: TrainState, key: Key[Array, ""], num_epochs: int):
        return program(state, rows, key, num_epochs)

    return loop


def make_step_loop(measure: Measure, optimizer: Optimizer, data: TrainData, mesh: Mesh) -> Loop:
    """The same epochs a step at a time: for rows that do not fit on a device."""
    train_step = make_train_step(measure, optimizer, AXIS)
    step = jax.jit(sharded(train_step, mesh, (WHOLE, SPLIT, WHOLE)), donate_argnums=0)
    order = jax.jit(partial(data.order, num_devices=mesh.size))

    def loop(state: TrainState, key: Key[Array, ""], num_epochs: int):
        order_key, step_key = jax.random.split(key)
        first, metrics = int(state.step) // data.steps_per_epoch, []
        for epoch in range(first, first + num_epochs):
            for index, weight in zip(*jax.device_get(order(order_key, epoch)), strict=True):
                batch = put(take_rows(data.rows, index, weight), mesh, SPLIT)
                state, step_metrics = step(state, batch, step_key)
                metrics.append(step_metrics)
        stacked = jax.tree.map(lambda *xs: np.reshape(xs, (num_epochs, -1)), *metrics)
        return state, stacked

    return loop


LOOPS: dict[str, Callable[..., Loop]] = {"epoch": make_epoch_loop, "step": make_step_loop}
