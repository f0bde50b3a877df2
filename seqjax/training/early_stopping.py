"""Early stopping: the best evaluation so far, and the patience after it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name
from seqjax.tasks.base import Task, metric_shapes
from seqjax.training.optimizer import Plateau

TRAIN_EVAL = "train_eval"  # the training rows, measured with the weights after an epoch


class Progress(NamedTuple):
    """The epoch and the best evaluation so far."""

    epoch: int = 0
    best_value: float | None = None  # None as long as there was no finite value
    best_epoch: int = 0
    bad_evaluations: int = 0  # number of evaluations since the best one
    stopped: bool = False


def read_progress(path: Path, fields: Mapping[str, Any]) -> Progress:
    """Returns the progress from the JSON fields of a file; raises UserError for other fields."""
    if fields.keys() != set(Progress._fields):
        raise UserError(f"{path} has a header of another form (progress): get a new copy")
    return Progress(**fields)


def monitored_value(record: Mapping[str, Any], monitor: str) -> float | None:
    """Returns the value of `SPLIT.METRIC` in a record, or None if it has no finite one.

    The training rows count with the weights after the epoch (`train_eval`), not with the mean over
    the epoch, which is of earlier weights and may carry dropout and label smoothing.
    """
    if monitor == "epoch":
        return float(record["epoch"])
    split, _, metric = monitor.partition(".")
    value = record.get(TRAIN_EVAL if split == "train" else split, {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def advance(progress: Progress, record: Mapping[str, Any], train: ConfigDict) -> Progress:
    """Returns the progress after an evaluation.

    An evaluation whose monitored metric improves by more than `train.min_delta` is the best so far.
    After `train.patience` evaluations in a row without one the run stops; 0 turns that off. Until
    there is a finite value, the newest weights count as the best.
    """
    epoch, value = record["epoch"], monitored_value(record, train.monitor)
    if train.monitor == "epoch" or progress.best_value is None:
        return Progress(epoch, value, epoch)
    if improves(value, progress.best_value, train):
        return Progress(epoch, value, epoch)
    bad_evaluations = progress.bad_evaluations + 1
    stopped = 0 < train.patience <= bad_evaluations
    return progress._replace(epoch=epoch, bad_evaluations=bad_evaluations, stopped=stopped)


def improves(value: float | None, best: float, train: ConfigDict) -> bool:
    """Returns whether a value is better than the best one by more than `train.min_delta`."""
    sign = 1 if train.monitor_mode == "max" else -1
    return value is not None and sign * value > sign * best + train.min_delta


def derive_progress(
    records: Sequence[Mapping[str, Any]],
    best_epoch: int,
    epoch: int,
    train: ConfigDict,
    patient_from: int = 0,
) -> Progress:
    """Returns the progress of a run that goes on, from its records and the present config.

    `best_epoch` is the epoch whose weights were kept and `epoch` that of the last evaluation;
    evaluations up to the epoch `patient_from` are not held against the run. Nothing that the config
    decides is stored, so a run that stopped early goes on under a longer patience. Under another
    monitor a later record may beat the kept one; the count then restarts there, although those
    weights were not kept.
    """
    if not best_epoch:
        return Progress(epoch)
    kept = monitored_value(records[best_epoch - 1], train.monitor)
    bad_evaluations, best = 0, kept
    for record in records[best_epoch:epoch]:
        value = monitored_value(record, train.monitor)
        if best is None or improves(value, best, train):
            bad_evaluations, best = 0, value
        elif record["epoch"] > patient_from:
            bad_evaluations += train.monitor != "epoch" and _was_evaluated(record, train.monitor)
    stopped = 0 < train.patience <= bad_evaluations
    return Progress(epoch, kept, best_epoch, bad_evaluations, stopped)


def _was_evaluated(record: Mapping[str, Any], monitor: str) -> bool:
    split, _, metric = monitor.partition(".")
    return metric in record.get(TRAIN_EVAL if split == "train" else split, {})


def check_monitors(task: Task, train: ConfigDict, plateau: Plateau | None) -> None:
    """Raises UserError unless the records will hold what the config and its schedule monitor."""
    evaluated = metric_shapes(task)
    splits = [split for split in ("train", "valid") if split in task.splits]
    known = ["epoch", *(f"{split}.{metric}" for split in splits for metric in evaluated)]
    if task.main_metric not in evaluated:
        raise unknown_name("Task.main_metric", task.main_metric, evaluated)
    if train.monitor not in known:
        raise unknown_name("train.monitor", train.monitor, known)
    if plateau:
        trained = [f"train.{metric}" for metric in metric_shapes(task, jnp.int32(0))]
        known = trained + [name for name in known if name.startswith("valid.")]
        if plateau.monitor not in known:
            raise unknown_name("optim.schedule: monitor", plateau.monitor, known)
