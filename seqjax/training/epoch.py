"""The loops that run train steps, as one compiled program for many of them: from rows on the
devices, or from chunks of batches that are read on the host."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
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
from seqjax.distributed.mesh import AXIS, SPLIT, WHOLE, local_rows, shard, shard_own, sharded
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

# The step loop reads so many bytes of batches at once, and no more steps: rows may be slow to make.
CHUNK_BYTES, CHUNK_STEPS = 2**25, 128


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


class _Chunk(NamedTuple):
    """The steps of a chunk, on the devices."""

    batches: Any  # a Batch of [devices, size, rows of a device, ...]
    buckets: Any  # [size]
    is_last: Any  # [size]: whether the step is the last one of the run


class _Chunks:
    """Reads the batches of a run in chunks of `size` steps.

    A chunk is known by its number from the start of the run, wherever calls end. One that is read
    ahead, or not used up, is kept for the next call. Each process reads its own devices' rows.
    """

    def __init__(self, data: TrainData, mesh: Mesh, options: LoopOptions):
        columns = data.rows.values()
        row_bytes = sum(math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize for x in columns)
        fit = CHUNK_BYTES // max(1, row_bytes * data.batch_size)
        self.size = max(1, min(fit, CHUNK_STEPS, options.max_steps))
        self.total = options.num_epochs * data.steps_per_epoch  # steps of the run
        self._data, self._mesh, self._options = data, mesh, options
        self._own = [x.process_index == jax.process_index() for x in mesh.devices.flat]
        self._order = jax.jit(partial(data.order, num_devices=mesh.size))
        self._key: Any = None  # of the order of the rows

    def read(self, thread: ThreadPoolExecutor, key: Key[Array, ""], number: int) -> Future:
        """Returns the future of a chunk, which the thread begins to read unless it is kept."""
        if key is not self._key:
            self._key, self._kept, self._orders = key, {}, {}
        if number not in self._kept:
            # The order is computed here: with the devices at work, the thread would wait for them.
            self._kept[number] = thread.submit(self._read, *self._steps(number))
        self._kept = {n: x for n, x in self._kept.items() if n >= number - 1}
        return self._kept[number]

    def _steps(self, number: int) -> list[np.ndarray]:
        """Returns the row numbers, weights and buckets of a chunk's steps, and which is last."""
        per_epoch, parts = self._data.steps_per_epoch, []
        start, end = number * self.size, min((number + 1) * self.size, self.total)
        while start < end:
            epoch, step = divmod(start, per_epoch)
            if epoch not in self._orders:
                self._orders = {epoch: jax.device_get(self._order(self._key, epoch))}
            steps = np.arange(step, min(per_epoch, step + end - start))
            is_last = _is_last(Place(epoch, steps), self._data, self._options)
            parts.append([*(x[steps] for x in self._orders[epoch]), is_last])
            start += len(steps)
        return [np.concatenate(xs) for xs in zip(*parts, strict=True)]

    def _read(self, index, weight, buckets, is_last) -> _Chunk:
        def by_device(x: np.ndarray) -> np.ndarray:
            x = x.reshape(len(x), self._mesh.size, -1)[:, self._own]
            return np.ascontiguousarray(x.swapaxes(0, 1))

        def fill(x: np.ndarray, axis: int) -> np.ndarray:  # the last chunk of a run is smaller
            missing = self.size - x.shape[axis]
            widths = [(0, missing * (i == axis)) for i in range(x.ndim)]
            return np.pad(x, widths) if missing else x

        batches = take_rows(self._data.rows, by_device(index), by_device(weight))
        batches = {name: fill(x, 1) for name, x in batches.items()}
        return _Chunk(shard_own(batches, self._mesh), fill(buckets, 0), fill(is_last, 0))


def make_step_loop(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    data: TrainData,
    mesh: Mesh,
    options: LoopOptions,
) -> Loop:
    """Returns a loop that reads the rows on the host, for rows that do not fit on a device.

    The steps are divided into chunks. One call of the compiled program makes the steps of a chunk
    while a thread reads the next one. Which steps of a chunk to make is an argument of the program:
    it is compiled once, and the results are bit-identical however the steps are divided into calls.
    """
    train_step = _make_train_step(loss_and_metrics, optimizer, data, AXIS, options)
    chunks = _Chunks(data, mesh, options)

    def steps(
        state: TrainState, chunk: _Chunk, key: Key[Array, ""], start: Array, stop: Array
    ) -> tuple[TrainState, StepLog]:
        first = state.step - start  # the number of the chunk's first step

        def take(i: Any) -> Batch:
            return jax.tree.map(lambda x: x[0, i], chunk.batches)

        def goes_on(carry: tuple[TrainState, StepLog]) -> Array:
            few_skipped = optimizer.num_skipped(carry[0].opt_state) <= options.max_skipped
            return (carry[0].step < first + stop) & few_skipped

        def one_step(carry: tuple[TrainState, StepLog]):
            state, logs = carry
            i = state.step - first
            now = chunk.buckets[i], HParams(), chunk.is_last[i]
            new_state, log = train_step(state, take(i), key, *now)
            return new_state, jax.tree.map(lambda xs, x: xs.at[i].set(x), logs, log)

        log = empty_log(train_step, state, jax.eval_shape(take, 0), key)
        logs = jax.tree.map(lambda x: jnp.zeros((chunks.size, *x.shape), x.dtype), log)
        return jax.lax.while_loop(goes_on, one_step, (state, logs))

    specs = (WHOLE, _Chunk(SPLIT, WHOLE, WHOLE), WHOLE, WHOLE, WHOLE)
    program = Program(sharded(steps, mesh, specs), mesh, donate_argnums=0)

    def run(state: TrainState, keys: RunKeys, place: Place, num_steps: int):
        first, logs = place.epoch * data.steps_per_epoch + place.step, []
        end = first + num_steps
        with ThreadPoolExecutor(1) as thread:  # which ends with the call
            for number in range(first // chunks.size, -(-end // chunks.size)):
                chunk = chunks.read(thread, keys.data, number).result()
                before, after = number * chunks.size, (number + 1) * chunks.size
                if after < chunks.total:
                    chunks.read(thread, keys.data, number + 1)
                made = slice(max(first - before, 0), min(end - before, chunks.size))
                bounds = np.int32(made.start), np.int32(made.stop)
                state, log = program(state, chunk, keys.dropout, *bounds)
                log = jax.device_get(log)  # waits for the devices: one chunk at most is read ahead
                logs.append(jax.tree.map(lambda x, made=made: x[made], log))
        return state, jax.tree.map(lambda *xs: np.concatenate(xs), *logs)

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
