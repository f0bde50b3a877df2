"""Builds the parts of a run from a task and a config."""

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.config import base_config
from seqjax.data.batching import check_batch_size, count_rows
from seqjax.data.bucketing import Buckets, find_buckets
from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError, check_keywords, keywords, require, unknown_name
from seqjax.parameters import parameter_shapes
from seqjax.tasks.base import Task
from seqjax.training.early_stopping import check_monitor
from seqjax.training.epoch import LOOPS, TrainData
from seqjax.training.evaluator import Evaluator
from seqjax.training.optimizer import Optimizer, make_optimizer
from seqjax.training.train_step import init_train_state

CPU_ROWS = 32  # the residuals of so many rows stay in a core's cache during the backward pass
AT_LEAST = {  # the smallest value of each field of `train`
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


class Setup(NamedTuple):
    """The parts of a run."""

    task: Task
    config: ConfigDict
    optimizer: Optimizer
    data: TrainData
    mesh: jax.sharding.Mesh
    evaluator: Evaluator
    microbatch_size: int  # rows per device whose gradients are computed at once; 0 = all

    def arrays_like(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the arrays that a checkpoint holds."""
        params = parameter_shapes(self.task.init)
        state = jax.eval_shape(lambda p: init_train_state(p, self.optimizer), params)
        return {"state": state, "best_params": params}


def make_setup(task: Task, config: ConfigDict) -> Setup:
    """Returns the parts of a run; raises UserError for a setting that cannot be used."""
    train, rows = config.train, task.splits["train"]
    check_keywords("train", train, dict.fromkeys(base_config("").train, True), "training")
    in_optim = keywords(make_optimizer, passed=("steps_per_epoch", "num_epochs"))
    check_keywords("optim", config.optim, in_optim, "the optimizer")
    check_batch_size(train.batch_size, count_rows(rows))
    for field, least in AT_LEAST.items():
        require(f"train.{field}", train[field], train[field] >= least, f"at least {least}")
    is_mode = train.monitor_mode in ("min", "max")
    require("train.monitor_mode", repr(train.monitor_mode), is_mode, "'min' or 'max'")
    if train.loop not in LOOPS:
        raise unknown_name("train.loop", train.loop, LOOPS)
    require("seed", config.seed, 0 <= config.seed < 2**32, f"between 0 and {2**32 - 1}")
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
    """Returns the buckets of the training rows; raises UserError if they cannot have any."""
    field = f"train.num_buckets={train.num_buckets}"
    if not task.lengths:
        raise UserError(f"{field}: this task does not crop rows to their lengths; set it to 1")
    if train.drop_remainder:
        raise UserError(f"{field} needs train.drop_remainder=False: each bucket has a remainder")
    return find_buckets(task.lengths, train.num_buckets, train.batch_size)
