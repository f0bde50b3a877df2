"""A sweep: its trials, trained by group, resumed, thinned out, compared.

Its directory holds `sweep.json`, which trials it has; `trials/`, a run directory each; `groups/`,
what resuming needs, until all trials have ended; and at the end the report.
"""

import json
import math
import runpy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError, run_user_file
from seqjax.files import read_json, write_json
from seqjax.runs.workdir import lock_workdir
from seqjax.sweeps.group import NONE_DROPPED, PROGRESS, Dropped
from seqjax.sweeps.report import LiveTable, save_report, show_table
from seqjax.sweeps.results import Entry, objective
from seqjax.sweeps.space import Changes, Search, apply, check_num_trials, plain
from seqjax.sweeps.trial import Trial
from seqjax.sweeps.vectorized import group_key
from seqjax.sweeps.workers import Chunk, divide

SWEEP, _HALVING, _DIVISION = "sweep.json", "halving.json", "division.json"
TRIALS, GROUPS = "trials", "groups"

# (chunks, *, until, dropped, watch) -> the chunks as they end
Executor = Callable[..., Iterator[Chunk]]


def run_sweep(
    config: ConfigDict,
    changes: Sequence[Changes],
    directory: Path,
    executor: Executor,
    num_workers: int = 1,
    *,
    halving: int = 0,
) -> list[Entry]:
    """Trains every trial that has not ended yet, and writes the report; all the trials.

    With `halving` of k, of the trials that are left only the best k-th goes on after 1 / k^n, ...,
    1 / k of the epochs (Jamieson and Talwalkar, 2016). Raises UserError, before anything is
    trained, for changes that the config does not take, and for a directory of another sweep.
    """
    entries = [make_entry(config, own, directory, number) for number, own in enumerate(changes)]
    rungs, table = rungs_of(config, halving), LiveTable([entry.trial for entry in entries])
    sweep = {"config": as_json(config), "trials": [entry.overrides for entry in entries]}
    with lock_workdir(directory):
        check_same(directory / SWEEP, sweep | {"halving": halving})
        with table:
            dropped: dict[Path, int] = {}
            for until in (*rungs, None):
                if until is None or not _decided(directory, until):
                    train_all(entries, directory, executor, table, num_workers, until, dropped)
                if until is not None:
                    names = _thin_out(entries, directory, until, halving)
                    dropped |= {e.trial.directory: until for e in entries if e.name in names}
        end_sweep(entries, directory)
    return entries


def make_entry(config: ConfigDict, changes: Changes, directory: Path, number: int) -> Entry:
    """The trial of that number; raises UserError for changes that the config does not take."""
    name = f"{number:04}"
    try:
        own = {field: plain(value) for field, value in changes.items()}
        trial = Trial(apply(config, own), directory / TRIALS / name)
        group_key(trial.config)  # for its complaints
        return Entry(name, own, trial)
    except UserError as error:
        raise UserError(f"trial {number}: {error}") from None


def train_all(
    entries: Sequence[Entry],
    directory: Path,
    executor: Executor,
    table: Any,
    num_workers: int,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
) -> None:
    """Trains the trials that have not ended, to their end or up to an epoch.

    They stay divided for as many workers as there were at first, so that groups go on.
    """
    trials, division = [entry.trial for entry in entries], directory / GROUPS / _DIVISION
    if not division.exists():
        division.parent.mkdir(exist_ok=True)
        write_json(division, num_workers)
    chunks = divide(trials, read_json(division), directory / GROUPS)
    for _ in executor(chunks, until=until, dropped=dropped, watch=table.watch):
        pass


def end_sweep(entries: Sequence[Entry], directory: Path) -> None:
    """Writes the report, shows it, and removes what resuming needed."""
    shutil.rmtree(directory / GROUPS, ignore_errors=True)
    paths = save_report(entries, directory)
    show_table(entries)
    print(f"written to {directory}: {', '.join(path.name for path in paths)}")


def load_sweep(source: str) -> Sequence[Changes] | Search:
    """What the `get_sweep` of a file gives, `FILE[:ARGUMENT]`; raises UserError where it cannot."""
    path, _, argument = source.partition(":")
    if not Path(path).is_file():
        there = ", ".join(sorted(map(str, Path(path).parent.glob("*.py")))) or "no .py file"
        raise UserError(f"sweep file {path} does not exist: in {Path(path).parent} is {there}")
    arguments = [argument] if argument else []
    sweep = run_user_file(source, lambda: runpy.run_path(path)["get_sweep"](*arguments))
    if isinstance(sweep, Search):
        return sweep
    if not isinstance(sweep, Sequence) or not all(isinstance(own, dict) for own in sweep):
        raise UserError(f"{source}: get_sweep() must return what product() gives, not {sweep!r}")
    check_num_trials(len(sweep))
    return sweep


def rungs_of(config: ConfigDict, halving: int) -> list[int]:
    """The epochs after which trials are dropped: num_epochs over k^n, ..., over k."""
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


def _decided(directory: Path, until: int) -> bool:
    return str(until) in _decisions(directory)


def _decisions(directory: Path) -> dict[str, list[str]]:
    path = directory / _HALVING
    return read_json(path) if path.exists() else {}


def _thin_out(entries: Sequence[Entry], directory: Path, until: int, halving: int) -> Sequence[str]:
    """The trials that are not to go on after this epoch, decided once and for all."""
    decisions = _decisions(directory)
    if str(until) not in decisions:
        values = _values(entries, directory)
        ranked = sorted(sorted(values), key=lambda name: -values[name])
        decisions[str(until)] = ranked[-(-len(ranked) // halving) :]
        write_json(directory / _HALVING, decisions)
    return decisions[str(until)]


def _values(entries: Sequence[Entry], directory: Path) -> Mapping[str, float]:
    """How good each trial that has not ended has been so far; more is better."""
    by = objective(entries[0].trial.config)
    ended = {entry.name for entry in entries if entry.trial.has_ended}
    values = {}
    for path in (directory / GROUPS).rglob(PROGRESS):
        for name, value in read_json(path).items():
            if name not in ended:
                values[name] = -math.inf if value is None else by.sign * value
    return values


def check_same(path: Path, sweep: dict[str, Any]) -> None:
    """Notes what the sweep is; raises UserError if the directory is another one's."""
    sweep = json.loads(json.dumps(sweep))
    if not path.exists():
        write_json(path, sweep)
    elif read_json(path) != sweep:
        raise UserError(
            f"{path.parent} holds another sweep: give a new --workdir, or the old settings to "
            "resume"
        )
