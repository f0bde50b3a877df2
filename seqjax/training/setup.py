"""Builds the parts of a run, with its evaluator, from a task and a config."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from seqjax.config import base_config
from seqjax.data.batching import Rows, check_batch_size, count_rows, eval_batches
from seqjax.data.bucketing import Buckets, find_buckets
from seqjax.data.streams import names_on_disk
from seqjax.distributed.choices import Choice, Shape, choose, find_shape
from seqjax.distributed.mesh import (
    AXIS,
    SPLIT,
    WHOLE,
    gather_shards,
    make_mesh,
    shard,
    sharded,
)
from seqjax.errors import UserError, check_keywords, keywords, require, unknown_name
from seqjax.hparams import LARGEST_INT
from seqjax.metrics import Metrics, compute_means
from seqjax.nn.dropout import row_keys
from seqjax.parameters import parameter_shapes
from seqjax.tasks.base import Task
from seqjax.training.early_stopping import check_monitors
from seqjax.training.epoch import LOOPS, START, Place, TrainData
from seqjax.training.optimizer import Optimizer, make_optimizer
from seqjax.training.train_step import LossAndMetrics, init_train_state
from seqjax.typing import Batch, Params

MAPPINGS = ("auto", "map", "vmap")  # train.trial_mapping
AT_LEAST = {  # the smallest value of each field of `train`
    "num_epochs": 1,
    "num_buckets": 1,
    "microbatch_size": 0,
    "eval_every_epochs": 1,
    "checkpoint_every_epochs": 1,
    "checkpoint_every_minutes": 0,
    "max_skipped_steps": 0,
    "steps_per_call": 0,
    "log_every_steps": 0,
    "log_every_epochs": 0,
    "patience": 0,
    "min_delta": 0,
}


class Evaluator:
    """Runs a task's compiled `loss_and_metrics` and `predict` over the mesh, batch by batch."""

    def __init__(
        self, loss_and_metrics: LossAndMetrics, predict: Callable, batch_size: int, mesh: Mesh
    ):
        def measure_batch(
            params: Params, batch: Batch, key: Key[Array, ""] | None, first_row: Int[Array, ""]
        ) -> Metrics:
            # Each device returns its own sums: [1] here, [devices] outside. If the devices added
            # them up, several batches at once could block one another for ever on a CPU's few
            # threads.
            rows = count_rows(batch)
            first_row += jax.lax.axis_index(AXIS) * rows
            keys = None if key is None else row_keys(key, rows, first_row)
            return jax.tree.map(lambda x: x[None], dict(loss_and_metrics(params, batch, keys)))

        self.batch_size, self.mesh = batch_size, mesh
        self._measure = jax.jit(sharded(measure_batch, mesh, (WHOLE, SPLIT, WHOLE, WHOLE), SPLIT))
        self._predict = jax.jit(sharded(predict, mesh, (WHOLE, SPLIT), SPLIT))

    def metrics(
        self, params: Params, rows: Rows, key: Key[Array, ""] | None = None
    ) -> dict[str, float]:
        """Returns the means of the metrics over all rows; with a key, dropout is active."""
        parts = []
        for i, (batch, _) in enumerate(self._batches(rows)):
            first_row = jnp.int32(i * count_rows(batch))
            parts.append(self._measure(params, batch, key, first_row))
            jax.block_until_ready(parts[-2:-1])  # so that no more than two batches are in memory
        return compute_means(jax.tree.map(lambda *xs: np.stack(xs), *gather_shards(parts)))

    def predict(self, params: Params, rows: Rows) -> Any:
        """Returns the task's predictions for all rows, in order."""
        parts = []
        for batch, real in self._batches(rows):
            outputs = gather_shards(self._predict(params, batch))
            parts.append(jax.tree.map(lambda x, n=real: x[:n], outputs))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def _batches(self, rows: Rows) -> Iterator[tuple[Batch, int]]:
        for batch, real in eval_batches(rows, self.batch_size, self.mesh.size):
            yield shard(batch, self.mesh, SPLIT), real


class Setup(NamedTuple):
    """The parts of a run, or of several trials that share a program."""

    task: Task
    config: ConfigDict
    optimizer: Optimizer
    data: TrainData
    mesh: Mesh
    evaluator: Evaluator
    choice: Choice  # how batches are divided
    num_updates: int  # of the whole run: the length of the schedule

    def arrays_like(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the arrays that a checkpoint holds."""
        params = parameter_shapes(self.task.init)
        state = jax.eval_shape(lambda p: init_train_state(p, self.optimizer), params)
        return {"state": state, "best_params": params}


def make_setup(task: Task, config: ConfigDict, kept: Choice | None = None) -> Setup:
    """Returns the parts of a run; `kept` is the choice of a run that was begun before.

    Raises UserError for a setting that cannot be used.
    """
    train, rows = config.train, task.splits["train"]
    check_keywords("train", train, dict.fromkeys(base_config("").train, True), "training")
    in_optim = keywords(make_optimizer, passed=("steps_per_epoch", "num_updates"))
    check_keywords("optim", config.optim, in_optim, "the optimizer")
    check_batch_size(train.batch_size, count_rows(rows))
    for field, least in AT_LEAST.items():
        require(f"train.{field}", train[field], train[field] >= least, f"at least {least}")
    is_mode = train.monitor_mode in ("min", "max")
    require("train.monitor_mode", repr(train.monitor_mode), is_mode, "'min' or 'max'")
    if train.loop not in LOOPS:
        raise unknown_name("train.loop", train.loop, LOOPS)
    if train.loop == "epoch" and (names := names_on_disk(rows)):
        raise UserError(
            f"train.loop='epoch' needs rows in memory, not {names[0]!r}: set it to 'step'"
        )
    require("seed", config.seed, 0 <= config.seed < 2**32, f"between 0 and {2**32 - 1}")
    find_mapping(train)  # for its errors
    choice = choose(task_shape(task, config), train, kept)
    mesh = make_mesh(choice.num_devices)
    buckets = _find_buckets(task, train) if train.num_buckets != 1 else None
    data = TrainData(rows, train.batch_size, train.drop_remainder, buckets)
    num_updates = count_updates(config, data)
    optimizer = setup_optimizer(config, data, num_updates)
    check_monitors(task, train, optimizer.plateau)
    evaluator = Evaluator(task.loss_and_metrics, task.predict, train.batch_size, mesh)
    return Setup(task, config, optimizer, data, mesh, evaluator, choice, num_updates)


def task_shape(task: Task, config: ConfigDict) -> Shape:
    """Returns the sizes by which the training of a task is divided."""
    rows = task.splits["train"]
    return find_shape(parameter_shapes(task.init), rows, config.train.batch_size)


def setup_optimizer(config: ConfigDict, data: TrainData, num_updates: int) -> Optimizer:
    """Returns the optimizer of a run that makes so many updates."""
    lengths = {"steps_per_epoch": data.steps_per_epoch, "num_updates": num_updates}
    return make_optimizer(**config.optim, **lengths)


def count_updates(
    config: ConfigDict, data: TrainData, place: Place = START, num_waiting: int = 0
) -> int:
    """Returns the number of updates that a run makes from a place on to its end.

    `num_waiting` is the number of steps before, whose gradients were not applied yet. Raises
    UserError for too many steps, and where all steps of a run are less than one update.
    """
    num_steps = data.steps_per_epoch * config.train.num_epochs
    steps, epochs = config.optim.accumulate_steps, config.train.num_epochs
    if num_steps > LARGEST_INT:
        raise UserError(f"train.num_epochs={epochs} makes {num_steps} steps, above {LARGEST_INT}")
    expected = f"at least 1 and at most {num_steps}, the number of steps of the run"
    require("optim.accumulate_steps", steps, 1 <= steps <= num_steps, expected)
    left = num_steps - place.epoch * data.steps_per_epoch - place.step
    return -(-(num_waiting + max(0, left)) // steps)


def _find_buckets(task: Task, train: ConfigDict) -> Buckets:
    """Returns the buckets of the training rows; raises UserError if they cannot have any."""
    field = f"train.num_buckets={train.num_buckets}"
    if not task.lengths:
        raise UserError(f"{field}: this task does not crop rows to their lengths; set it to 1")
    if train.drop_remainder:
        raise UserError(f"{field} needs train.drop_remainder=False: each bucket has a remainder")
    return find_buckets(task.lengths, train.num_buckets, train.batch_size)


def find_mapping(train: ConfigDict) -> str:
    """Returns how the trials of one device are mapped, "map" or "vmap".

    On a CPU they run one after the other, because a trial's arrays then stay in a core's cache. A
    small model fills an accelerator only side by side with others. Raises UserError for an unknown
    name, and for a backend that cannot be vmapped.
    """
    if train.trial_mapping not in MAPPINGS:
        raise unknown_name("train.trial_mapping", train.trial_mapping, MAPPINGS)
    by_device = "map" if jax.default_backend() == "cpu" else "vmap"
    mapping = by_device if train.trial_mapping == "auto" else train.trial_mapping
    if mapping == "vmap" and train.backend == "cudnn":
        raise UserError(
            "train.backend='cudnn' cannot be vmapped over trials: set train.backend to 'auto', or "
            "train.trial_mapping to 'map'"
        )
    return mapping
