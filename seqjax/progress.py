"""Where a run stands: which evaluation was best, when to stop, when to give up. Imports: task.

The counterpart of `train`, on the host: pure functions over the records of a run.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name
from seqjax.metrics import Metrics
from seqjax.parameters import parameter_shapes
from seqjax.task import Task


class Progress(NamedTuple):
    """Where a run stands, as it is kept in checkpoints."""

    epoch: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    bad_evaluations: int = 0  # since the best one
    stopped: bool = False


def advance(progress: Progress, record: dict[str, Any], train: ConfigDict) -> Progress:
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
    metrics = jax.eval_shape(lambda p, batch: dict(task.measure(p, batch, None)), params, one)
    splits = [split for split in ("train", "valid") if split in task.splits]
    known = ["epoch", *(f"{split}.{metric}" for split in splits for metric in metrics)]
    if monitor not in known:
        raise unknown_name("train.monitor", monitor, known)


def check_finite(
    metrics: Metrics, record: dict[str, Any], first_epoch: int, saved_epoch: int, workdir: Path
) -> None:
    """Raises UserError, naming the first step, if a training or validation loss is no number.

    `metrics` are those of the steps since `first_epoch`, `[epochs, steps]`.
    """
    losses = np.asarray(metrics["loss"].total)
    bad = np.argwhere(~np.isfinite(losses))
    valid = record.get("valid", {"loss": 0.0})["loss"]
    if len(bad):
        epoch, batch = (int(i) for i in bad[0])
        step = (first_epoch + epoch) * losses.shape[1] + batch + 1
        place = f"step {step} (epoch {first_epoch + epoch + 1}, batch {batch + 1})"
        what = f"the loss is {losses[epoch, batch]} at {place}"
    elif not math.isfinite(valid):
        what = f"the validation loss is {valid} after epoch {record['epoch']}"
    else:
        return
    kept = f"the checkpoint of epoch {saved_epoch} in {workdir} stays"
    raise UserError(
        f"{what}; {kept if saved_epoch else 'nothing was saved yet'}: "
        "lower optim.learning_rate or set optim.clip_norm"
    )
