"""A sweep: its trials, the worker that trains them, successive halving, and the end.

A worker is this function, called again on the same directory by any process on any machine: it
takes the next group that is neither finished nor locked, trains it, and takes the next. The
directory holds `sweep.json`, which trials it has; `trials/`, a run directory each; `groups/`, what
resuming needs, until all trials have ended; and at the end the report.
"""

import json
import math
import runpy
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ml_collections import ConfigDict

from seqjax.config import as_json, change_fields, plain_value
from seqjax.errors import UserError, run_user_file
from seqjax.files import read_json, write_json
from seqjax.runs.signals import say
from seqjax.runs.workdir import WorkdirLocked, lock_workdir
from seqjax.sweeps.group import Group, divide, train_group
from seqjax.sweeps.report import LiveTable, report
from seqjax.sweeps.results import shared_objective
from seqjax.sweeps.space import Changes, Search, check_num_trials
from seqjax.training.programs import group_key
from seqjax.training.trials import NONE_DROPPED, Dropped, Trial, have_reached, paused_trials

SWEEP, TRIALS, GROUPS, _HALVING = "sweep.json", "trials", "groups", "halving.json"
POLL_SECONDS = 0.5  # between two looks for a group that is free
LOCK_SECONDS = 60.0  # for another worker to read or write the sweep's own files

Look = Callable[..., None]
Workers = Callable[[Look], None]  # runs the workers of a sweep, and looks at it meanwhile


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
                dropped |= {t.directory: until for t in trials if t.directory.name in names}
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
def begin_sweep(
    directory: Path, sweep: Mapping[str, Any], num_groups: int
) -> Generator[dict[str, Any]]:
    """Holds the lock of the directory; yields what the sweep is, as its first worker wrote it.

    That is written at the end of a first context that raises nothing. Raises UserError if the
    directory is that of another sweep.
    """
    sweep, path = json.loads(json.dumps(sweep)), directory / SWEEP
    own = {"num_groups": num_groups, "id": uuid4().hex}  # of the first worker, not compared
    with lock_workdir(directory, LOCK_SECONDS):
        saved = own | (read_json(path) if path.exists() else sweep)
        if sweep != {name: value for name, value in saved.items() if name not in own}:
            raise UserError(
                f"{directory} holds another sweep: give a new --workdir, or the old settings to "
                "resume"
            )
        yield saved
        write_json(path, saved)


def train_groups(
    groups: Sequence[Group],
    look: Look,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
) -> None:
    """Trains groups until all trials have ended, or reached an epoch; waits for other workers."""
    told = False
    while left := [group for group in groups if not have_reached(*group, until)]:
        if not train_free(left, look, until, dropped):
            if not told:
                say(f"waiting for {len(left)} groups of trials that other workers train")
            told = True
            look()
            time.sleep(POLL_SECONDS)


def train_free(
    groups: Sequence[Group],
    look: Look,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
) -> bool:
    """Trains each of the groups that no other worker trains; returns whether there was one."""
    trained = False
    for group in groups:
        with suppress(WorkdirLocked):
            if not have_reached(*group, until):
                train_group(*group, look, until=until, dropped=dropped)
                trained = True
    return trained


def end_sweep(trials: Sequence[Trial], directory: Path) -> None:
    """Removes what resuming needed, writes the report and prints it."""
    with lock_workdir(directory, LOCK_SECONDS):
        shutil.rmtree(directory / GROUPS, ignore_errors=True)
        report(trials, directory)


def load_sweep(source: str) -> Sequence[Changes] | Search:
    """Returns what `get_sweep` of a file, `FILE[:ARGUMENT]`, returns; raises UserError."""
    path, _, argument = source.partition(":")
    if not Path(path).is_file():
        files = ", ".join(sorted(map(str, Path(path).parent.glob("*.py")))) or "no .py file"
        raise UserError(f"sweep file {path} does not exist: in {Path(path).parent} is {files}")
    arguments = [argument] if argument else []
    sweep = run_user_file(source, lambda: runpy.run_path(path)["get_sweep"](*arguments))
    if isinstance(sweep, Search):
        return sweep
    if not isinstance(sweep, Sequence) or not all(isinstance(own, dict) for own in sweep):
        raise UserError(f"{source}: get_sweep() must return what product() returns, not {sweep!r}")
    check_num_trials(len(sweep))
    return sweep


def rungs_of(config: ConfigDict, halving: int) -> list[int]:
    """Returns the epochs after which trials are dropped: num_epochs over k^n, ..., over k."""
    if halving == 0:
        return []
    if halving < 2:
        raise UserError(f"--halving={halving}: give 2 or more, or 0 for none")
    every, rungs = config.train.eval_every_epochs, []
    if every < 1:
        raise UserError(f"train.eval_every_epochs={every} must be at least 1")
    epochs = config.train.num_epochs // halving
    while epochs >= every:
        rungs.append(-(-epochs // every) * every)
        epochs //= halving
    return sorted({rung for rung in rungs if rung < config.train.num_epochs})


def _thin_out(trials: Sequence[Trial], directory: Path, until: int, halving: int) -> Sequence[str]:
    """Returns the trials that are dropped after this epoch, decided by the first worker."""
    path, by = directory / _HALVING, shared_objective([trials[0].config])
    with lock_workdir(directory, LOCK_SECONDS):
        decisions = read_json(path) if path.exists() else {}
        if str(until) not in decisions:
            paused, values = paused_trials(directory / GROUPS), {}
            for name in sorted(trial.directory.name for trial in trials if not trial.has_ended):
                if paused[name]["goes_on"]:
                    value = paused[name]["value"]
                    values[name] = -math.inf if value is None else by.sign * value
            ranked = sorted(values, key=lambda name: -values[name])
            decisions[str(until)] = ranked[-(-len(ranked) // halving) :]
            write_json(path, decisions)
        return decisions[str(until)]
