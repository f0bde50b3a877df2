"""The loops that run train steps: an epoch as one compiled program, or one program a step.

Also how many steps each call of a loop runs.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
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
from seqjax.training.train_step import (
    LossAndMetrics,
    RunKeys,
    StepLog,
    TrainState,
    make_train_step,
)
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


class Place(NamedTuple):
    """Where a run is in its data: both numbers are counted, never derived from the other."""

    epoch: Any  # the number of epochs that were completed
    step: Any  # the number of steps that were made of the epoch after them


START = Place(0, 0)


class Program:
    """A jitted function, compiled ahead of time at its first call."""

    def __init__(self, function: Callable, mesh: Mesh, **options: Any):
        self._jitted = jax.jit(function, compiler_options=compiler_options(mesh), **options)
        self._compiled: Callable | None = None
        self.compile_seconds = 0.0

    def compile(self, *args: Any) -> int:
        """Compiles for arguments of these shapes; returns the bytes it takes of each device.

        Without jit nothing is compiled, and 0 is returned.
        """
        if jax.config.jax_disable_jit:  # ty: ignore[missing-attribute]
            self._compiled = self._jitted
            return 0
        started = time.perf_counter()
        compiled = self._jitted.lower(*args).compile()
        self.compile_seconds, self._compiled = time.perf_counter() - started, compiled
        memory: Any = compiled.memory_analysis()  # of one device; XLA may not know it
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0

    def __call__(self, *args: Any) -> Any:
        """Calls the compiled function; raises TypeError for arguments of another shape."""
        if self._compiled is None:
            self.compile(*args)
        return self._compiled(*args)  # ty: ignore[not-callable]


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns XLA's options: where every core is a device, a matmul must not use the other cores,
    or the devices would wait for each other."""
    on_cores = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_multi_thread_eigen": False} if on_cores else {}


class Loop(NamedTuple):
    """Runs many steps. Once too many of them have been skipped, the state no longer changes."""

    run: Callable  # (state, keys, place, num_steps) -> (state, StepLog [num_steps or more])
    program: Program

    def __call__(self, state: TrainState, keys: RunKeys, place: Place, num_steps: int):
        return self.run(state, keys, place, num_steps)


class LoopOptions(NamedTuple):
    """What the loops of all trials of a program share."""

    max_steps: int  # of one call
    num_epochs: int  # of the run: the last step of the last one makes the last update
    max_skipped: int = 0  # skipped steps; one more stops the loop
    microbatch_size: int = 0
    log_norms: bool = False


def make_steps(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    num_devices: int,
    axis: str | None,
    options: LoopOptions,
) -> Callable:
    """Returns `(state, rows, keys, place, num_steps, hparams) -> (state, StepLog [max_steps])`.

    The function runs `num_steps` train steps and is meant to be compiled. With the name of a mesh
    axis it is for use inside `mesh.sharded`, on each of `num_devices`.
    """
    train_step = _make_train_step(loss_and_metrics, optimizer, data, axis, options)
    per_epoch = data.steps_per_epoch

    def steps(
        state: TrainState,
        rows: Rows,
        keys: RunKeys,
        place: Place,
        num_steps: Int[Array, ""],
        hparams: HParams = HParams(),
    ):
        first = state.step

        def place_of(step: Array) -> Place:
            done = place.step + step - first
            return Place(place.epoch + done // per_epoch, done % per_epoch)

        def before(end: Array) -> Callable:
            def goes_on(carry: tuple[TrainState, StepLog]) -> Array:
                few_skipped = optimizer.num_skipped(carry[0].opt_state) <= options.max_skipped
                return (carry[0].step < end) & few_skipped

            return goes_on

        def one_epoch(carry: tuple[TrainState, StepLog]):
            epoch, done = place_of(carry[0].step)
            *order, buckets = data.order(keys.data, epoch, num_devices)

            def one_step(carry: tuple[TrainState, StepLog]):
                state, logs = carry
                now = place_of(state.step)
                parts = (local_rows(x[now.step], num_devices, axis) for x in order)
                new_state, log = train_step(
                    state,
                    take_rows(rows, *parts),
                    keys.dropout,
                    buckets[now.step],
                    hparams,
                    _is_last(now, data, options),
                )
                index = state.step - first
                return new_state, jax.tree.map(lambda xs, x: xs.at[index].set(x), logs, log)

            end = jnp.minimum(carry[0].step - done + per_epoch, first + num_steps)
            return jax.lax.while_loop(before(end), one_step, carry)

        part = jnp.zeros(-(-data.batch_size // num_devices), jnp.int32)
        batch = jax.eval_shape(take_rows, rows, part, part.astype(jnp.float32))
        log = empty_log(train_step, state, batch, keys.dropout)
        logs = jax.tree.map(lambda x: jnp.zeros((options.max_steps, *x.shape), x.dtype), log)
        return jax.lax.while_loop(before(first + num_steps), one_epoch, (state, logs))

    return steps


def make_epoch_loop(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    options: LoopOptions,
) -> Loop:
    """Returns a loop whose steps are one compiled program: shuffling, gathering and updates.

    Each device holds all rows. Returning to Python once an epoch, not once a step, lets XLA
    allocate its buffers once. The number of steps of a call (at most `max_steps`) is an argument of
    the program: it is compiled once, and the results are bit-identical however the steps are
    divided into calls.
    """
    steps = make_steps(loss_and_metrics, optimizer, data, mesh.size, AXIS, options)
    rows = shard(dict(data.rows), mesh, WHOLE)
    program = Program(sharded(steps, mesh, (WHOLE,) * 5), mesh, donate_argnums=0)

    def run(state: TrainState, keys: RunKeys, place: Place, num_steps: int):
        now = Place(*map(np.int32, place))
        return program(state, rows, keys, now, np.int32(num_steps))

    return Loop(run, program)


def make_step_loop(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    options: LoopOptions,
) -> Loop:
    """Returns a loop that calls a program for each step, for rows that do not fit on a device."""
    train_step = _make_train_step(loss_and_metrics, optimizer, data, AXIS, options)

    def one_step(state: TrainState, batch: Batch, key: Key[Array, ""], bucket: Array, last: Array):
        def stay():
            return state, empty_log(train_step, state, batch, key)

        def go():
            return train_step(state, batch, key, bucket, HParams(), last)

        few_skipped = optimizer.num_skipped(state.opt_state) <= options.max_skipped
        return jax.lax.cond(few_skipped, go, stay)

    specs = (WHOLE, SPLIT, WHOLE, WHOLE, WHOLE)
    program = Program(sharded(one_step, mesh, specs), mesh, donate_argnums=0)
    order = jax.jit(partial(data.order, num_devices=mesh.size))

    def run(state: TrainState, keys: RunKeys, place: Place, num_steps: int):
        logs, read = [], None
        for done in range(place.step, place.step + num_steps):
            epoch, step = divmod(done, data.steps_per_epoch)
            now = Place(place.epoch + epoch, step)
            if now.epoch != read:
                index, weight, buckets = jax.device_get(order(keys.data, now.epoch))
                read = now.epoch
            batch = shard(take_rows(data.rows, index[step], weight[step]), mesh, SPLIT)
            last = np.bool_(_is_last(now, data, options))
            state, log = program(state, batch, keys.dropout, np.int32(buckets[step]), last)
            logs.append(log)
        return state, jax.tree.map(lambda *xs: np.stack(xs), *logs)

    return Loop(run, program)


def _make_train_step(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    axis: str | None,
    options: LoopOptions,
) -> Callable:
    return make_train_step(
        loss_and_metrics,
        optimizer,
        axis,
        microbatch_size=options.microbatch_size,
        buckets=data.buckets,
        log_norms=options.log_norms,
    )


def _is_last(place: Place, data: TrainData, options: LoopOptions) -> Any:
    """Returns whether the next step is the last one of the run."""
    is_last_epoch = place.epoch == options.num_epochs - 1
    return is_last_epoch & (place.step == data.steps_per_epoch - 1)


def empty_log(train_step: Callable, state: TrainState, batch: Batch, key: Key[Array, ""]) -> Any:
    """Returns a log of zeros with the shapes and dtypes of a step's log."""
    _, log = jax.eval_shape(train_step, state, batch, key)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), log)


LOOPS: dict[str, Callable[..., Loop]] = {"epoch": make_epoch_loop, "step": make_step_loop}


class Pace:
    """Chooses how many steps each call of the compiled program runs.

    A call takes about two seconds: a run can be saved and stopped between two calls, and the calls
    themselves add no noticeable time. `steps_per_call` fixes the number; 0 adapts it.
    """

    SECONDS = 2.0  # the time that a call should take
    GROWTH = 16  # largest factor between two calls, as the first times are not precise

    def __init__(self, steps_per_call: int):
        self._steps, self._fixed, self._compiled = steps_per_call or 1, bool(steps_per_call), False

    def num_steps(self, left: int) -> int:
        """Returns how many of the `left` steps to run in the next call; calls are of equal size."""
        calls = -(-left // self._steps)
        return min(left, self._steps) if self._fixed else -(-left // calls)

    def took(self, seconds: float, num_steps: int) -> None:
        """Adapts the number of steps to the time of a call, except the first, which compiles."""
        if self._compiled and not self._fixed:
            fit = int(num_steps * self.SECONDS / max(seconds, 1e-9))
            self._steps = max(1, min(fit, self.GROWTH * num_steps))
        self._compiled = True


class Profile:
    """Traces some steps of a run for xprof and Perfetto, `--profile=START:STEPS`.

    The trace begins after `start` steps of the run have been made and holds `num_steps` steps: the
    calls of the program are cut there. With `num_steps=0` nothing is traced.
    """

    def __init__(self, start: int = 0, num_steps: int = 0, directory: Path = Path()):
        self.start, self.end, self.directory = start, start + num_steps, directory
        self._running = False

    def limit(self, step: int, num_steps: int) -> int:
        """Returns how many of the next steps to run in one call; starts and ends the trace."""
        if self._running and step >= self.end:
            self.stop()
        elif not self._running and self.start <= step < self.end:
            jax.profiler.start_trace(str(self.directory), create_perfetto_trace=True)
            self._running = True
        bounds = [bound - step for bound in (self.start, self.end) if bound > step]
        return min([num_steps, *bounds]) if self.end > self.start else num_steps

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
