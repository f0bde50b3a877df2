"""Groups of trials that one program trains together: how a sweep is divided into them, and how one
is trained by a worker that may be killed at any time."""

import json
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from seqjax.config import as_json
from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError, brief
from seqjax.files import read_json, sha256, write_json
from seqjax.parameters import device_bytes
from seqjax.runs.checkpoint import steps_in
from seqjax.runs.signals import StopSignals
from seqjax.runs.workdir import CHECKPOINTS, LOCK, lock_workdir
from seqjax.training.programs import group_key
from seqjax.training.trials import (
    NONE_DROPPED,
    Dropped,
    Trial,
    Watch,
    have_reached,
    save_failure,
    train_trials,
)

FAILURES, MAX_FAILURES = "failures.json", 3  # of a group without a new checkpoint between them
MEMORY_SHARE = 0.5  # of a device's, for a group
_MAX_REASON = 1000  # characters


class Group(NamedTuple):
    """Trials with one group key, and the directory that they share until they have ended."""

    trials: Sequence[Trial]
    workdir: Path


def divide(trials: Sequence[Trial], num_groups: int, directory: Path) -> list[Group]:
    """Returns groups of trials with the same group key, the largest first: at least `num_groups`,
    if there are as many trials.

    Their directories, in `directory`, follow from their trials: give all, also those that ended.
    """
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(group_key(trial.config), []).append(trial)
    groups, size = [], max(1, len(trials) // num_groups)
    for own in by_key.values():
        for part in np.array_split(range(len(own)), -(-len(own) // size)):
            chosen = [own[i] for i in part]
            identity = [[trial.directory.name, as_json(trial.config)] for trial in chosen]
            digest = sha256([json.dumps(identity).encode()])
            groups.append(Group(chosen, directory / digest[:16]))
    return sorted(groups, key=lambda group: -len(group.trials))


def train_group(
    trials: Sequence[Trial],
    workdir: Path,
    watch: Watch = lambda trial, records: None,
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    max_bytes: float | None = None,
) -> None:
    """Trains the trials of a group as `train_trials` does, unless another process trains them.

    Where training fails, or the process is killed, that is noted: the next call goes on from the
    checkpoint, and after MAX_FAILURES at the same checkpoint the trials end as failures. The
    directory is removed when all have ended. `max_bytes` is by default half of a device's memory,
    on a CPU by this process's share of the cores. Raises UserError where the directory cannot be
    used, as on a full disk, WorkdirLocked where another process has it, and Stopped after a signal.
    """
    if max_bytes is None:
        share = num_cores() / (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
        max_bytes = MEMORY_SHARE * device_bytes() * share
    if have_reached(trials, workdir, until):
        return
    with lock_workdir(workdir) as killed:
        if killed:
            _note_failure(trials, workdir, f"{killed} was killed, as when memory is short")
        leaving = partial(os.truncate, workdir / LOCK, 0)  # this process was not killed
        with StopSignals(leaving) as signals:
            try:
                train_trials(trials, workdir, signals, watch, until, dropped, max_bytes)
            except UserError:
                raise
            except Exception as error:  # the end of one group is not that of the sweep
                traceback.print_exc(file=sys.stderr)
                _note_failure(trials, workdir, f"{type(error).__name__}: {error}")
        if all(trial.has_ended for trial in trials):
            shutil.rmtree(workdir, ignore_errors=True)


def _note_failure(trials: Sequence[Trial], workdir: Path, reason: str) -> None:
    """Counts a failure; after MAX_FAILURES without progress the trials end with the reason."""
    path = workdir / FAILURES
    newest = [step for found in workdir.rglob(CHECKPOINTS) for step in steps_in(found)[:1]]
    place = sorted(str(path.relative_to(workdir)) for path in newest)
    place.append(f"{sum(trial.has_ended for trial in trials)} ended")
    saved = read_json(path) if path.exists() else {}
    number = saved["number"] + 1 if saved.get("place") == place else 1
    write_json(path, {"place": place, "number": number})
    if number >= MAX_FAILURES:
        for trial in trials:
            save_failure(trial, brief(f"training failed {number} times: {reason}", _MAX_REASON))
