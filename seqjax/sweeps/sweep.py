"""A sweep: its groups of trials, the worker that trains them, successive halving, and the end.

A worker is `run_sweep`, called on the same directory by any process on any machine: it takes the
next group that is neither finished nor locked, trains it, and takes the next. The directory holds
`sweep.json`, a run directory for each trial, until they have ended one for each group, and the
results.
"""

import json
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json, change_fields, plain_value
from seqjax.errors import UserError, brief, is_from_user_code, require_file, run_user_file
from seqjax.files import read_json, sha256, write_json
from seqjax.parameters import device_bytes
from seqjax.runs.checkpoint import steps_in
from seqjax.runs.signals import Stopped, StopSignals, say
from seqjax.runs.workdir import CHECKPOINTS, LOCK, WorkdirLocked, lock_workdir
from seqjax.sweeps.results import LiveTable, report, shared_objective
from seqjax.sweeps.space import Changes, Search, check_num_trials
from seqjax.training.programs import group_key
from seqjax.training.trials import (
    NONE_DROPPED,
    PAUSED,
    Dropped,
    Trial,
    Watch,
    have_reached,
    read_below,
    save_failure,
    train_trials,
)

SWEEP, TRIALS, GROUPS, _HALVING = "sweep.json", "trials", "groups", "halving.json"
POLL_SECONDS = 0.5  # between two looks for a group that is free
LOCK_SECONDS = 60.0  # for another worker to read or write the sweep's own files
FAILURES, MAX_FAILURES = "failures.json", 3  # of a group without a new checkpoint between them
MEMORY_SHARE = 0.5  # of a device's, for the groups of the workers of this machine
STOPPED = "stopped; the training so far is saved: the same command resumes there"
# Set for a worker: the process that has started it, and how many workers it has on this machine.
WORKER = "SEQJAX_SWEEP_WORKER"

Look = Callable[..., None]
Workers = Callable[[Look], None]  # runs the workers of a sweep, and looks at it meanwhile


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
            identity = [[trial.name, as_json(trial.config)] for trial in chosen]
            digest = sha256([json.dumps(identity).encode()])
            groups.append(Group(chosen, directory / digest[:16]))
    return sorted(groups, key=lambda group: -len(group.trials))


def run_sweep(
    config: ConfigDict,
    changes: Sequence[Changes],
    directory: Path,
    *,
    num_groups: int = 1,
    halving: int = 0,
    workers: Workers | None = None,
) -> list[Trial]:
    """Trains the trials that no other worker trains, and returns all when all have ended.

    The first worker divides the trials into at least `num_groups` groups. With `halving` of k, of
    the trials that are left only the best k-th goes on after 1 / k^n, ..., 1 / k of the epochs
    (Jamieson and Talwalkar, 2016). With `workers` other processes train. Raises UserError, before
    anything is trained, for changes that the config does not take, and for a directory of another
    sweep.
    """
    trials = [make_trial(config, own, directory, number) for number, own in enumerate(changes)]
    shared_objective(trial.config for trial in trials)
    rungs, table = rungs_of(config, halving), LiveTable(lambda: trials, directory / GROUPS)
    sweep = {"config": as_json(config), "trials": [trial.changes for trial in trials]}
    with begin_sweep(directory, sweep | {"halving": halving}, num_groups) as saved:
        groups = divide(trials, saved["num_groups"], directory / GROUPS)
    dropped: dict[Path, int] = {}
    with table:
        if workers:
            workers(table.look)
        for until in (*rungs, None):
            train_groups(groups, table.look, until, dropped)
            if until is not None:
                names = _thin_out(trials, directory, until, halving)
                dropped |= {t.directory: until for t in trials if t.name in names}
    end_sweep(trials, directory)
    return trials


def make_trial(config: ConfigDict, changes: Changes, directory: Path, number: int) -> Trial:
    """Returns the trial of that number; raises UserError for changes the config does not take."""
    try:
        own = {field: plain_value(value) for field, value in changes.items()}
        trial = Trial(change_fields(config, own), directory / TRIALS / f"{number:04}", own)
        group_key(trial.config)  # for its errors
        return trial
    except UserError as error:
        raise UserError(f"trial {number}: {error}") from None


@contextmanager
def begin_sweep(directory: Path, sweep: Any, num_groups: int) -> Generator[dict[str, Any]]:
    """Holds the lock of the directory; yields the settings of the sweep, which the first worker
    writes at the end of this context. Raises UserError if the directory is another sweep's."""
    sweep, path = json.loads(json.dumps(sweep)), directory / SWEEP
    own = {"num_groups": num_groups, "id": uuid4().hex}  # of the first worker, not compared
    with lock_workdir(directory, LOCK_SECONDS):
        saved = own | (read_json(path) if path.exists() else sweep)
        if sweep != {name: value for name, value in saved.items() if name not in own}:
            told = f"{directory} holds another sweep"
            raise UserError(f"{told}: give a new --workdir, or the old settings to resume")
        yield saved
        write_json(path, saved)


def train_groups(
    groups: Sequence[Group],
    look: Look,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    *,
    wait: bool = True,
) -> bool:
    """Trains the groups that no other worker trains; returns whether there was one.

    Waits until other workers have trained the rest to the end, or to an epoch, unless `wait` is
    false.
    """
    trained = told = False
    while left := [group for group in groups if not have_reached(*group, until)]:
        num_locked = 0
        for group in left:
            try:
                train_group(*group, look, until=until, dropped=dropped)
                trained = True
            except WorkdirLocked:
                num_locked += 1
            except UserError:
                if not have_reached(*group, until):  # its directory is removed when it has ended
                    raise
        if num_locked == len(left):
            if not wait:
                break
            if not told:
                say(f"waiting for the {len(left)} groups that other workers train")
            told = True
            look()
            time.sleep(POLL_SECONDS)
    return trained


def end_sweep(trials: Sequence[Trial], directory: Path) -> None:
    """Removes the groups; writes and prints the results, unless many other workers do so."""
    with suppress(WorkdirLocked), lock_workdir(directory, LOCK_SECONDS):
        shutil.rmtree(directory / GROUPS, ignore_errors=True)
        report(trials, directory)


def load_sweep(source: str) -> Sequence[Changes] | Search:
    """Returns the sweep of a file, `FILE[:ARGUMENT]`; raises UserError."""
    path, *arguments = filter(None, source.split(":", 1))
    require_file("sweep", path)
    sweep = run_user_file(source, lambda: runpy.run_path(path)["get_sweep"](*arguments))
    if not isinstance(sweep, Search):
        if not isinstance(sweep, Sequence) or not all(isinstance(own, dict) for own in sweep):
            told = "get_sweep() must return what product() returns"
            raise UserError(f"{source}: {told}, not {sweep!r}")
        check_num_trials(len(sweep))
    return sweep


def rungs_of(config: ConfigDict, halving: int) -> list[int]:
    """Returns the epochs after which trials are dropped: num_epochs over k^n, ..., over k."""
    if halving == 0:
        return []
    if halving < 2:
        raise UserError(f"--halving={halving}: give 2 or more, or 0 for none")
    every, epochs = config.train.eval_every_epochs, config.train.num_epochs
    if every < 1:
        raise UserError(f"train.eval_every_epochs={every} must be at least 1")
    parts = [epochs // halving**n for n in range(1, epochs.bit_length() + 1)]
    rungs = {-(-part // every) * every for part in parts if part >= every}
    return sorted(rung for rung in rungs if rung < epochs)


def _thin_out(trials: Sequence[Trial], directory: Path, until: int, halving: int) -> Sequence[str]:
    """Returns the trials that are dropped after this epoch, decided by the first worker."""
    path, by = directory / _HALVING, shared_objective([trials[0].config])
    with lock_workdir(directory, LOCK_SECONDS):
        decisions = read_json(path) if path.exists() else {}
        if str(until) not in decisions:
            paused = read_below(directory / GROUPS, PAUSED)
            names = sorted(trial.name for trial in trials if not trial.has_ended)
            active = [name for name in names if paused[name]["goes_on"]]
            ranked = sorted(active, key=lambda name: by.rank(paused[name]["value"]))
            decisions[str(until)] = ranked[-(-len(ranked) // halving) :]
            write_json(path, decisions)
        return decisions[str(until)]


def train_group(
    trials: Sequence[Trial],
    workdir: Path,
    watch: Watch = lambda trial, records: None,
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
) -> None:
    """Trains the trials of a group as `train_trials` does, unless another process trains them.

    Where training fails, or the process is killed, that is noted: the next call goes on from the
    checkpoint, and after MAX_FAILURES at the same checkpoint the trials end as failures. The
    directory is removed when all have ended. Raises UserError where it cannot be used, as on a
    full disk, WorkdirLocked where another process has it, and Stopped after a signal.
    """
    if have_reached(trials, workdir, until):
        return
    with lock_workdir(workdir) as killed:
        if killed:
            _note_failure(trials, workdir, f"{killed} was killed, as when memory is short")
        leaving = partial(os.truncate, workdir / LOCK, 0)  # this process was not killed
        with StopSignals(leaving) as signals:
            try:
                max_bytes = MEMORY_SHARE * device_bytes() / started_by()[1]
                train_trials(trials, workdir, signals, watch, until, dropped, max_bytes)
            except Exception as error:  # a group that fails does not end the sweep
                is_of_disk = isinstance(error, OSError) and not is_from_user_code(error)
                if is_of_disk or isinstance(error, UserError):
                    raise
                traceback.print_exc(file=sys.stderr)
                _note_failure(trials, workdir, f"{type(error).__name__}: {error}")
        if signals.received is not None:  # it came during the last save
            raise Stopped(signals.received, STOPPED)
        if all(trial.has_ended for trial in trials):
            shutil.rmtree(workdir, ignore_errors=True)


def started_by() -> tuple[int, int]:
    """Returns the process that has started this worker, or 0, and the number of its workers."""
    process, number = os.environ.get(WORKER, "0 1").split()
    return int(process), int(number)


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
            save_failure(trial, brief(f"training failed {number} times: {reason}", most=1000))
