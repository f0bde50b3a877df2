"""The loops that run train steps: an epoch as one compiled program, or one program a step."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from seqjax.data.batching import (
    Rows,
    bucketed_order,
    count_rows,
    epoch_order,
    steps_per_epoch,
    take_rows,
)
from seqjax.data.bucketing import Buckets
from seqjax.distributed.mesh import AXIS, SPLIT, WHOLE, local_rows, shard, sharded
from seqjax.hparams import HParams
from seqjax.training.optimizer import Optimizer
from seqjax.training.train_step import LossAndMetrics, StepLog, TrainState, make_train_step
from seqjax.typing import Batch


class TrainData(NamedTuple):
    """The training rows and the order in which an epoch reads them."""

    rows: Rows
    batch_size: int
    drop_remainder: bool
    buckets: Buckets | None = None

    @property
    def steps_per_epoch(self) -> int:
        totals = map(len, self.buckets.rows) if self.buckets else [count_rows(self.rows)]
        return sum(steps_per_epoch(n, self.batch_size, self.drop_remainder) for n in totals)

    def order(self, key: Key[Array, ""], epoch: Any, num_devices: int) -> tuple[Array, ...]:
        """Returns row numbers and weights `[steps, B]` and bucket numbers `[steps]` of an epoch.

        Epochs are counted from 0.
        """
        key = jax.random.fold_in(key, epoch)
        if self.buckets:
            return bucketed_order(key, self.buckets, self.batch_size, num_devices)
        size = (count_rows(self.rows), self.batch_size, self.drop_remainder, num_devices)
        index, weight = epoch_order(key, *size)
        return index, weight, jnp.zeros(len(index), jnp.int32)


class Program:
    """A jitted function that counts how often it was compiled: once for each new argument shape."""

    def __init__(self, function: Callable, mesh: Mesh, **options: Any):
        self.num_compiled = 0
        options["compiler_options"] = compiler_options(mesh)

        @wraps(function)
        def traced(*args: Any):
            # Without jit this function runs at every call.
            self.num_compiled += not jax.config.jax_disable_jit  # ty: ignore[missing-attribute]
            return function(*args)

        self._call = jax.jit(traced, **options)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns XLA's options: where every core is a device, a matmul must not use the other cores,
    or the devices would wait for each other."""
    on_cores = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_multi_thread_eigen": False} if on_cores else {}


class Loop(NamedTuple):
    """Runs many steps; the key seeds shuffling and dropout.

    Once more than `max_skipped` steps have been skipped, the state no longer changes.
    """

    run: Callable  # (state, key, num_steps) -> (state, StepLog [num_steps or more])
    program: Program

    def __call__(self, state: TrainState, key: Key[Array, ""], num_steps: int):
        return self.run(state, key, num_steps)


def make_steps(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    num_devices: int,
    axis: str | None,
    *,
    max_steps: int,
    max_skipped: int,
    microbatch_size: int = 0,
) -> Callable:
    """Returns `(state, rows, key, num_steps, hparams) -> (state, StepLog [max_steps])`.

    The function runs `num_steps` train steps and is meant to be compiled. With the name of a mesh
    axis it is for use inside `mesh.sharded`, on each of `num_devices`.
    """
    options: Any = {"microbatch_size": microbatch_size, "buckets": data.buckets}
    train_step = make_train_step(loss_and_metrics, optimizer, axis, **options)
    per_epoch = data.steps_per_epoch

    def steps(
        state: TrainState,
        rows: Rows,
        key: Key[Array, ""],
        num_steps: Int[Array, ""],
        hparams: HParams = HParams(),
    ):
        order_key, step_key = jax.random.split(key)
        first = state.step

        def before(end: Array) -> Callable:
            def goes_on(carry: tuple[TrainState, StepLog]) -> Array:
                few_skipped = optimizer.num_skipped(carry[0].opt_state) <= max_skipped
                return (carry[0].step < end) & few_skipped

            return goes_on

        def one_epoch(carry: tuple[TrainState, StepLog]):
            epoch = carry[0].step // per_epoch
            *order, buckets = data.order(order_key, epoch, num_devices)

            def one_step(carry: tuple[TrainState, StepLog]):
                state, logs = carry
                number = state.step % per_epoch
                now = (local_rows(x[number], num_devices, axis) for x in order)
                batch = take_rows(rows, *now)
                new_state, log = train_step(state, batch, step_key, buckets[number], hparams)
                place = state.step - first
                return new_state, jax.tree.map(lambda xs, x: xs.at[place].set(x), logs, log)

            end = jnp.minimum((epoch + 1) * per_epoch, first + num_steps)
            return jax.lax.while_loop(before(end), one_step, carry)

        part = jnp.zeros(-(-data.batch_size // num_devices), jnp.int32)
        batch = jax.eval_shape(take_rows, rows, part, part.astype(jnp.float32))
        log = empty_log(train_step, state, batch, step_key)
        logs = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), log)
        return jax.lax.while_loop(before(first + num_steps), one_epoch, (state, logs))

    return steps


def make_epoch_loop(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    **options: Any,
) -> Loop:
    """Returns a loop whose steps are one compiled program: shuffling, gathering and updates.

    Each device holds all rows. Returning to Python once an epoch, not once a step, lets XLA
    allocate its buffers once. The number of steps of a call (at most `max_steps`) is an argument of
    the program: it is compiled once, and the results are bit-identical however the steps are
    divided into calls.
    """
    steps = make_steps(loss_and_metrics, optimizer, data, mesh.size, AXIS, **options)
    rows = shard(dict(data.rows), mesh, WHOLE)
    program = Program(sharded(steps, mesh, (WHOLE,) * 4), mesh, donate_argnums=0)

    def run(state: TrainState, key: Key[Array, ""], num_steps: int):
        return program(state, rows, key, jnp.int32(num_steps))

    return Loop(run, program)


def make_step_loop(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    *,
    max_steps: int,
    max_skipped: int,
    microbatch_size: int = 0,
) -> Loop:
    """Returns a loop that calls a program for each step, for rows that do not fit on a device."""
    options: Any = {"microbatch_size": microbatch_size, "buckets": data.buckets}
    train_step = make_train_step(loss_and_metrics, optimizer, AXIS, **options)

    def one_step(state: TrainState, batch: Batch, key: Key[Array, ""], bucket: Int[Array, ""]):
        def stay():
            return state, empty_log(train_step, state, batch, key)

        few_skipped = optimizer.num_skipped(state.opt_state) <= max_skipped
        return jax.lax.cond(few_skipped, lambda: train_step(state, batch, key, bucket), stay)

    program = Program(sharded(one_step, mesh, (WHOLE, SPLIT, WHOLE, WHOLE)), mesh, donate_argnums=0)
    order = jax.jit(partial(data.order, num_devices=mesh.size))

    def run(state: TrainState, key: Key[Array, ""], num_steps: int):
        order_key, step_key = jax.random.split(key)
        first, logs, read = int(state.step), [], None
        for step in range(first, first + num_steps):
            epoch, place = divmod(step, data.steps_per_epoch)
            if epoch != read:
                index, weight, buckets = jax.device_get(order(order_key, epoch))
                read = epoch
            batch = shard(take_rows(data.rows, index[place], weight[place]), mesh, SPLIT)
            state, log = program(state, batch, step_key, buckets[place])
            logs.append(log)
        return state, jax.tree.map(lambda *xs: np.stack(xs), *logs)

    return Loop(run, program)


def empty_log(train_step: Callable, state: TrainState, batch: Batch, key: Key[Array, ""]) -> Any:
    """Returns a log of zeros with the shapes and dtypes of a step's log."""
    _, log = jax.eval_shape(train_step, state, batch, key)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), log)


LOOPS: dict[str, Callable[..., Loop]] = {"epoch": make_epoch_loop, "step": make_step_loop}
