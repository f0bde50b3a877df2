"""Early stopping: the best evaluation so far and the patience; steps per call.

All of it is computed on the host.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name
from seqjax.parameters import parameter_shapes
from seqjax.tasks.base import Task


class Progress(NamedTuple):
    """The epoch and the best evaluation so far, as checkpoints store them."""

    epoch: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    bad_evaluations: int = 0  # number of evaluations since the best one
    stopped: bool = False


def read_progress(path: Path, fields: Mapping[str, Any]) -> Progress:
    """Returns the progress from the JSON fields of a file; raises UserError for other fields."""
    if fields.keys() != set(Progress._fields):
        raise UserError(f"{path} has a header of another form (progress): get a new copy")
    return Progress(**fields)


def advance(progress: Progress, record: Mapping[str, Any], train: ConfigDict) -> Progress:
    """Returns the progress after an evaluation.

    An evaluation whose monitored metric improves by more than `train.min_delta` is the best so far.
    After `train.patience` evaluations in a row without one the run stops; 0 turns that off.
    """
    epoch = record["epoch"]
    if train.monitor == "epoch":
        return Progress(epoch, float(epoch), epoch)
    split, _, metric = train.monitor.partition(".")
    value = record[split][metric]
    sign = 1 if train.monitor_mode == "max" else -1
    best = progress.best_value
    if best is None or sign * value > sign * best + train.min_delta:
        return Progress(epoch, value, epoch)
    bad_evaluations = progress.bad_evaluations + 1
    stopped = 0 < train.patience <= bad_evaluations
    return Progress(epoch, best, progress.best_epoch, bad_evaluations, stopped)


def check_monitor(task: Task, monitor: str) -> None:
    """Raises UserError unless the records of evaluations will hold the monitored metric."""
    row = {name: x[:1] for name, x in task.splits["train"].items()}
    row["weight"] = np.ones(1, np.float32)
    params = parameter_shapes(task.init)
    metrics = jax.eval_shape(
        lambda p, batch: dict(task.loss_and_metrics(p, batch, None)), params, row
    )
    splits = [split for split in ("train", "valid") if split in task.splits]
    known = ["epoch", *(f"{split}.{metric}" for split in splits for metric in metrics)]
    if monitor not in known:
        raise unknown_name("train.monitor", monitor, known)


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
