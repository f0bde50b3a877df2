"""Where a run stands: which evaluation was best, when to stop, how far to go.

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
    """Where a run stands, as it is kept in checkpoints."""

    epoch: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    bad_evaluations: int = 0  # since the best one
    stopped: bool = False


def read_progress(path: Path, fields: Mapping[str, Any]) -> Progress:
    """The progress that a file holds as JSON; raises UserError for one of other fields."""
    if fields.keys() != set(Progress._fields):
        raise UserError(f"{path} has a header of another form (progress): get a new copy")
    return Progress(**fields)


def advance(progress: Progress, record: Mapping[str, Any], train: ConfigDict) -> Progress:
    """The progress after an evaluation: is it the best yet, and is patience at its end?"""
    epoch = record["epoch"]
    if train.monitor == "epoch":
        return Progress(epoch, float(epoch), epoch)
    split, _, metric = train.monitor.partition(".")
    value = record[split][metric]
    sign = 1 if train.monitor_mode == "max" else -1
    best = progress.best_value
    if best is None or sign * value > sign * best + train.min_delta:
        return Progress(epoch, value, epoch)
    bad = progress.bad_evaluations + 1
    stopped = 0 < train.patience <= bad
    return Progress(epoch, best, progress.best_epoch, bad, stopped)


def check_monitor(task: Task, monitor: str) -> None:
    """Raises UserError unless the monitored metric will be in the records."""
    one = {name: x[:1] for name, x in task.splits["train"].items()}
    one["weight"] = np.ones(1, np.float32)
    params = parameter_shapes(task.init)
    metrics = jax.eval_shape(
        lambda p, batch: dict(task.loss_and_metrics(p, batch, None)), params, one
    )
    splits = [split for split in ("train", "valid") if split in task.splits]
    known = ["epoch", *(f"{split}.{metric}" for split in splits for metric in metrics)]
    if monitor not in known:
        raise unknown_name("train.monitor", monitor, known)


class Pace:
    """How many steps the next call of the compiled program makes.

    Few enough that between two calls a run can be stopped within seconds, and many enough that
    calls cost nothing. A fixed number, if one is given.
    """

    SECONDS = 2.0  # of a call
    GROWTH = 16  # of the number of steps from call to call, while their time is not known well

    def __init__(self, steps_per_call: int):
        self._steps, self._fixed, self._compiled = steps_per_call or 1, bool(steps_per_call), False

    def num_steps(self, left: int) -> int:
        """How many of the steps that are left to make now; calls are of even sizes."""
        calls = -(-left // self._steps)
        return min(left, self._steps) if self._fixed else -(-left // calls)

    def took(self, seconds: float, num_steps: int) -> None:
        """Learns from a call that took so long; the first one compiles, and tells nothing."""
        if self._compiled and not self._fixed:
            fit = int(num_steps * self.SECONDS / max(seconds, 1e-9))
            self._steps = max(1, min(fit, self.GROWTH * num_steps))
        self._compiled = True
