"""The train step; `epoch` loops over it.

The step is built, not decorated: the same pure function is looped over an epoch, sharded over
devices, vmapped over seeds. Keys are folded from the step's number, so resuming is exact for free.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from seqjax.data.batching import num_rows
from seqjax.data.bucketing import Buckets
from seqjax.distributed.mesh import psum_tree
from seqjax.metrics import Metrics
from seqjax.nn.dropout import row_keys
from seqjax.training.optimizer import Optimizer
from seqjax.typing import Batch, Params, RowKeys

LossAndMetrics = Callable[[Params, Batch, RowKeys | None], Metrics]


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


def batch_keys(key: Key[Array, ""], batch: Batch, axis: str | None) -> RowKeys:
    """A key for each of this device's rows, indexed by position in the global batch."""
    rows = num_rows(batch)
    return row_keys(key, rows, 0 if axis is None else jax.lax.axis_index(axis) * rows)


def make_objective(loss_and_metrics: LossAndMetrics) -> Callable:
    """`(params, batch, step, keys) -> (total, metrics)`: the sum of `metrics["loss"]`, and all.

    Beside its rows the batch that `loss_and_metrics` sees has "step", how many batches were read
    before it, for what follows a schedule.
    """

    def objective(params: Params, batch: Batch, step: Int[Array, ""], keys: RowKeys):
        metrics = dict(loss_and_metrics(params, {**batch, "step": step}, keys))
        return metrics["loss"].total, metrics

    return objective


def make_gradient(loss_and_metrics: LossAndMetrics, microbatch_size: int = 0) -> Callable:
    """`(params, batch, step, keys) -> (gradient, metrics)` of the objective, sums over all rows.

    With a `microbatch_size` so many rows at a time, or a few more where it does not divide the
    batch: what the backward pass needs of them then stays in a CPU's cache.
    """
    gradient = jax.grad(make_objective(loss_and_metrics), has_aux=True)

    def in_parts(params: Params, batch: Batch, step: Int[Array, ""], keys: RowKeys):
        rows = num_rows(batch)
        sizes = range(microbatch_size or rows, rows)
        size = next((size for size in sizes if rows % size == 0), rows)
        if size == rows:
            return gradient(params, batch, step, keys)

        def part(sums: Any, rows: tuple[Batch, RowKeys]):
            batch, keys = rows
            return jax.tree.map(jnp.add, sums, gradient(params, batch, step, keys)), None

        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (batch, keys))
        first = jax.tree.map(lambda x: x[0], split)
        like = jax.eval_shape(gradient, params, first[0], step, first[1])
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return jax.lax.scan(part, nothing, split)[0]

    return in_parts


def make_train_step(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    axis: str | None = None,
    *,
    microbatch_size: int = 0,
    buckets: Buckets | None = None,
) -> Callable:
    """`(state, batch, key, bucket=0) -> (state, StepLog)`: one update by the mean loss.

    With the name of a mesh axis the step is for use inside `mesh.sharded`: gradients and metrics
    are summed over the devices once. With buckets the program has a branch for each, and takes the
    one of that number.
    """
    gradient = make_gradient(loss_and_metrics, microbatch_size)

    def train_step(state: TrainState, batch: Batch, key: Key[Array, ""], bucket: Any = 0):
        params, opt_state, step = state
        keys = batch_keys(jax.random.fold_in(key, step), batch, axis)

        def branch(number: int) -> Callable:
            def of_bucket(batch: Batch):
                rows = buckets.crop(batch, number) if buckets else batch
                return gradient(params, rows, step, keys)

            return of_bucket

        num_branches = buckets.number if buckets else 1
        found = jax.lax.switch(bucket, [branch(k) for k in range(num_branches)], batch)
        grads, metrics = psum_tree(found, axis)
        weight = jnp.maximum(metrics["loss"].weight, 1)
        loss = metrics["loss"].total / weight
        # The optimizer skips a gradient that is no number; a loss that is none has no gradient.
        scale = jnp.where(jnp.isfinite(loss), 1 / weight, jnp.nan)
        grads = jax.tree.map(lambda g: scale * g, grads)
        updates, new_opt_state = optimizer.update(grads, opt_state, params, value=loss)
        skipped = optimizer.num_skipped(new_opt_state) - optimizer.num_skipped(opt_state)
        params = optax.apply_updates(params, updates)
        return TrainState(params, new_opt_state, step + 1), StepLog(metrics, skipped)

    return train_step
