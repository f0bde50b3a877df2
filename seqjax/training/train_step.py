"""The train step, which `training/epoch.py` runs in a loop.

The step is built, not decorated: the same pure function is run over an epoch in a loop, sharded
over devices, and mapped over the trials of a sweep. The dropout key of a step is folded from the
step's number, so a resumed run draws what an uninterrupted run draws.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from seqjax.data.batching import count_rows
from seqjax.data.bucketing import Buckets
from seqjax.distributed.mesh import psum_tree
from seqjax.hparams import HParams
from seqjax.metrics import Metrics
from seqjax.nn.dropout import row_keys
from seqjax.training.optimizer import Optimizer
from seqjax.typing import Batch, Params, RowKeys

LossAndMetrics = Callable[..., Metrics]  # as `tasks.base.Task.loss_and_metrics`


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class StepLog(NamedTuple):
    """What is logged of one step, or of many with a leading `[steps]`."""

    metrics: Metrics
    learning_rate: Float[Array, "*steps"]  # of the update that the step makes or takes part in
    skipped: Int[Array, "*steps"]  # 1 if the step was skipped: loss or gradient was not finite
    norms: Mapping[str, Float[Array, "*steps"]]  # empty unless they are asked for


class RunKeys(NamedTuple):
    """The random keys of a run, one for each purpose."""

    init: Key[Array, "*trials"]  # initial parameters
    data: Key[Array, "*trials"]  # the order of the rows
    dropout: Key[Array, "*trials"]


def make_keys(seed: Any) -> RunKeys:
    """Returns the keys of a run. The seed is an int or an array, so it can be mapped over."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def init_train_state(params: Params, optimizer: Optimizer) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def batch_keys(key: Key[Array, ""], batch: Batch, axis: str | None) -> RowKeys:
    """Returns a key for each of this device's rows, indexed by position in the global batch."""
    rows = count_rows(batch)
    return row_keys(key, rows, 0 if axis is None else jax.lax.axis_index(axis) * rows)


def make_objective(loss_and_metrics: LossAndMetrics) -> Callable:
    """Returns `(params, batch, keys, step, hparams) -> (total, metrics)`, to be differentiated.

    `total` is the sum of `metrics["loss"]` over the batch.
    """

    def objective(
        params: Params, batch: Batch, keys: RowKeys, step: Int[Array, ""], hparams: HParams
    ):
        metrics = dict(loss_and_metrics(params, batch, keys, step=step, hparams=hparams))
        return metrics["loss"].total, metrics

    return objective


def make_gradient(loss_and_metrics: LossAndMetrics, microbatch_size: int = 0) -> Callable:
    """Returns `(params, batch, keys, step, hparams) -> (gradient, metrics)`, sums over all rows.

    `microbatch_size` rows are differentiated at a time (a few more where it does not divide the
    batch; 0 means all), so that what the backward pass needs stays in a CPU's cache.
    """
    gradient = jax.grad(make_objective(loss_and_metrics), has_aux=True)

    def summed_gradient(
        params: Params, batch: Batch, keys: RowKeys, step: Int[Array, ""], hparams: HParams
    ):
        rows = count_rows(batch)
        sizes = range(microbatch_size or rows, rows)
        size = next((size for size in sizes if rows % size == 0), rows)
        if size == rows:
            return gradient(params, batch, keys, step, hparams)

        def add_microbatch(sums: Any, microbatch: tuple[Batch, RowKeys]):
            terms = gradient(params, *microbatch, step, hparams)
            return jax.tree.map(jnp.add, sums, terms), None

        microbatches = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (batch, keys))
        first = jax.tree.map(lambda x: x[0], microbatches)
        shapes = jax.eval_shape(gradient, params, *first, step, hparams)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add_microbatch, zeros, microbatches)[0]

    return summed_gradient


def make_train_step(
    loss_and_metrics: LossAndMetrics,
    optimizer: Optimizer,
    axis: str | None = None,
    *,
    microbatch_size: int = 0,
    buckets: Buckets | None = None,
    log_norms: bool = False,
) -> Callable:
    """Returns the step `(state, batch, key, bucket=0, hparams=HParams(), is_last=False)`, which
    returns `(state, StepLog)`.

    `key` is the run's dropout key; `is_last` says that the run makes no further step. With the name
    of a mesh axis the step is for use inside `mesh.sharded`: gradients and metrics are summed over
    the devices once. With `buckets` the program has a branch for each bucket and takes the one
    numbered `bucket`. With `log_norms` the log has the norms that `global_norms` returns.
    """
    gradient = make_gradient(loss_and_metrics, microbatch_size)

    def train_step(
        state: TrainState,
        batch: Batch,
        key: Key[Array, ""],
        bucket: Any = 0,
        hparams: HParams = HParams(),
        is_last: Any = False,
    ):
        params, opt_state, step = state
        keys = batch_keys(jax.random.fold_in(key, step), batch, axis)

        def cropped_gradient(number: int, batch: Batch):
            rows = buckets.crop(batch, number) if buckets else batch
            return gradient(params, rows, keys, step, hparams)

        num_branches = buckets.num_buckets if buckets else 1
        branches = [partial(cropped_gradient, k) for k in range(num_branches)]
        grads, metrics = psum_tree(jax.lax.switch(bucket, branches, batch), axis)
        # The optimizer skips non-finite gradients and weights; a non-finite loss must count as one.
        total, weight = metrics["loss"]
        checked = jnp.where(jnp.isfinite(total), weight, jnp.nan)
        options = {"weight": checked, "is_last": is_last}
        updates, new_opt_state = optimizer.update(grads, opt_state, params, **options)
        params = optax.apply_updates(params, updates)
        log = StepLog(
            metrics,
            optimizer.learning_rate(opt_state),
            optimizer.num_skipped(new_opt_state) - optimizer.num_skipped(opt_state),
            global_norms(grads, weight, updates, params) if log_norms else {},
        )
        return TrainState(params, new_opt_state, step + 1), log

    return train_step


def global_norms(
    gradients: Params, weight: Float[Array, ""], updates: Params, params: Params
) -> dict[str, Float[Array, ""]]:
    """Returns the L2 norms of a batch's mean gradient, of the update and of the new parameters."""
    norm = optax.tree.norm(gradients)
    return {
        "gradient_norm": jnp.where(weight > 0, norm / weight, norm),
        "update_norm": optax.tree.norm(updates),
        "parameter_norm": optax.tree.norm(params),
    }
