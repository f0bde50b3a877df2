"""A run's parts, from a task and a config."""

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.data.batching import check_batch_size, num_rows
from seqjax.data.bucketing import Buckets, find_buckets
from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError, unknown_name
from seqjax.parameters import parameter_shapes
from seqjax.tasks.base import Task
from seqjax.training.early_stopping import check_monitor
from seqjax.training.epoch import LOOPS, TrainData
from seqjax.training.evaluator import Evaluator
from seqjax.training.optimizer import Optimizer, make_optimizer
from seqjax.training.train_step import init_train_state


class Setup(NamedTuple):
    """What a run is made of."""

    task: Task
    config: ConfigDict
    optimizer: Optimizer
    data: TrainData
    mesh: jax.sharding.Mesh
    evaluator: Evaluator
    microbatch_size: int  # rows of a device whose gradients are computed together; 0 = all

    def arrays_like(self) -> dict[str, Any]:
        """Shapes and dtypes of what a checkpoint holds."""
        params = parameter_shapes(self.task.init)
        state = jax.eval_shape(lambda p: init_train_state(p, self.optimizer), params)
        return {"state": state, "best_params": params}


def make_setup(task: Task, config: ConfigDict) -> Setup:
    """The parts of a run; raises UserError where a setting cannot be used."""
    train, rows = config.train, task.splits["train"]
    check_batch_size(train.batch_size, num_rows(rows))
    for field, least in AT_LEAST.items():
        if not train[field] >= least:  # so written, a NaN is refused
            raise UserError(f"train.{field}={train[field]} must be at least {least}")
    if train.monitor_mode not in ("min", "max"):
        raise UserError(f"train.monitor_mode={train.monitor_mode!r} must be 'min' or 'max'")
    if train.loop not in LOOPS:
        raise unknown_name("train.loop", train.loop, LOOPS)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must lie between 0 and {2**32 - 1}")
    check_monitor(task, train.monitor)
    mesh = make_mesh(train.num_devices)
    buckets = _find_buckets(task, train) if train.num_buckets != 1 else None
    data = TrainData(rows, train.batch_size, train.drop_remainder, buckets)
    optimizer = make_optimizer(
        **config.optim, steps_per_epoch=data.steps_per_epoch, num_epochs=train.num_epochs
    )
    evaluator = Evaluator(task.loss_and_metrics, task.predict, train.batch_size, mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    microbatch_size = train.microbatch_size or (CPU_ROWS if on_cpu else 0)
    return Setup(task, config, optimizer, data, mesh, evaluator, microbatch_size)


def _find_buckets(task: Task, train: ConfigDict) -> Buckets:
    """The buckets of the training rows; raises UserError where there can be none."""
    field = f"train.num_buckets={train.num_buckets}"
    if not task.lengths:
        raise UserError(f"{field}: rows cannot be cut to their lengths here; set it to 1")
    if train.drop_remainder:
        raise UserError(f"{field} leaves a remainder in each: set train.drop_remainder=False")
    return find_buckets(task.lengths, train.num_buckets, train.batch_size)


CPU_ROWS = 32  # whose residuals of a backward pass stay in a core's cache
AT_LEAST = {
    "num_epochs": 1,
    "num_buckets": 1,
    "microbatch_size": 0,
    "eval_every_epochs": 1,
    "checkpoint_every_epochs": 1,
    "checkpoint_every_minutes": 0,
    "max_skipped_steps": 0,
    "steps_per_call": 0,
    "log_every_epochs": 0,
    "patience": 0,
    "min_delta": 0,
}
