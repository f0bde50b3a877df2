"""Trains several trials by one program, and ends each as the directory of a finished run.

The directory of a trial appears in one step when the trial ends: as that of a finished run, which
can be evaluated, exported, talked to and trained further, or with the reason why the trial failed.
Until then the trials share a working directory, which holds all that resuming needs: checkpoints of
all trials, their steps.jsonl, and the files that the task fitted to the training data.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.data.streams import names_on_disk
from seqjax.distributed.choices import choose
from seqjax.distributed.devices import num_cores, start_jax
from seqjax.errors import UserError
from seqjax.files import read_json, sha256, write_json, write_text
from seqjax.runs.checkpoint import Checkpoints, newest, set_aside_after, steps_in
from seqjax.runs.identity import Identity, arrays_digest, make_identity
from seqjax.runs.signals import StopSignals, say
from seqjax.runs.workdir import CHECKPOINTS, CONFIG, RESULT, save_identity
from seqjax.tasks.base import fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.fit import summarize
from seqjax.training.logger import Record, StepsFile, read_records, write_log
from seqjax.training.position import FORMAT, Position, begin, resume, to_facts
from seqjax.training.programs import (
    DataParallel,
    Programs,
    TrialParallel,
    check_hparams,
    differing_hparams,
    shared_config,
)
from seqjax.training.setup import Setup, make_setup, setup_optimizer, task_shape
from seqjax.training.train_step import make_keys
from seqjax.training.trainer import Listeners, Trainer

FAILURE = "failure.json"  # in the directory of a trial
PAUSED, PROGRESS = "paused.json", "progress.json"  # in the working directory
PROGRESS_SECONDS = 0.5  # between two writes of how far the trials are
COPIES = 3  # of the weights, outside the program: the best ones, those evaluated, the new best
HALVES = ("first", "second")  # directories of trials that are too large for one program
NONE_DROPPED: Mapping[Path, int] = MappingProxyType({})

Watch = Callable[[Any, Any], None]  # is given a trial and its new records
Dropped = Mapping[Path, int]  # the epoch after which a trial is to end, by its directory


# XLA compiles other code for one device than for several: with at least two, trials that go on with
# another number of them keep to the code that they began with.
MIN_DEVICES = 2


class Trial(NamedTuple):
    """A config, the directory of its future run, and the fields that differ from the sweep's."""

    config: ConfigDict
    directory: Path
    changes: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def has_ended(self) -> bool:
        return any((self.directory / name).exists() for name in (RESULT, FAILURE))

    def failure(self) -> str:
        """Why the trial failed, "" if it did not."""
        path = self.directory / FAILURE
        return read_json(path)["reason"] if path.exists() else ""


SoundTrial = tuple[Trial, Callable]  # a trial that can be begun, and its `init`


def start_devices() -> None:
    """Makes the cores of this process, and at least two, the devices that trials are trained on."""
    start_jax(max(MIN_DEVICES, num_cores()))


def sound_trials(trials: Sequence[Trial], workdir: Path) -> list[SoundTrial]:
    """Returns the trials that can be begun; the others end as failures."""
    sound, made = [], {}
    for trial in trials:
        kind = json.dumps(as_json(trial.config) | {"seed": 0, "optim": {}})  # which no task reads
        try:
            if kind not in made:
                task = make_task(trial.config, workdir)
                task.save_fitted(workdir)  # the other trials read the files of the first
                made[kind] = task, jax.jit(task.init)
            task, init = made[kind]
            make_setup(task, shared_config([trial.config]))  # for its errors
            sound.append((trial, init))
        except UserError as error:
            save_failure(trial, str(error))
    return sound


def save_failure(trial: Trial, reason: str) -> None:
    """Ends a trial that failed, unless it had ended before the group resumed."""
    if trial.has_ended:
        return
    with _appearing(trial.directory) as directory:
        write_json(directory / CONFIG, as_json(trial.config))
        write_json(directory / FAILURE, {"reason": reason})


def save_trials(
    trainer: Trainer, trials: Sequence[Trial], step_lines: Sequence[Sequence[Record]]
) -> None:
    """Ends every trial of a group that has not ended yet, as a finished run of its own."""
    program, now = trainer.program, trainer.now
    setup, files = program.setup, fitted_files(program.setup.task)
    splits, train = setup.task.splits, setup.config.train
    # What is measured by the program for all trials together: with and without dropout, by split.
    modes = (False, True) if train.dropout_at_test else (False,)
    measure = partial(program.metrics, now.best_params)
    means = {(split, mode): measure(splits[split], mode) for split in splits for mode in modes}
    costs = trainer.costs()
    # The choice with which the same command trains it further.
    choice = choose(task_shape(setup.task, setup.config), trials[0].config.train)
    fingerprint = make_identity(setup.config, splits, choice, ()).fingerprint
    fingerprint["files"] = {name: sha256([text.encode()]) for name, text in files.items()}
    for i, trial in enumerate(trials):
        if trial.has_ended:
            continue
        if failure := now.trials[i].failure:  # of which a user has removed the directory
            save_failure(trial, failure)
            continue
        own = _position_of(trainer, i)
        params, progress = own.best_params, own.trials[0].progress
        predict = cache(lambda split, p=params: setup.evaluator.predict(p, splits[split]))
        result = summarize(
            setup,
            params,
            progress,
            lambda split, dropout, i=i: dict(means[split, dropout][i]),
            predict,
        )
        identity = Identity(as_json(trial.config), fingerprint)
        _save_run(trial, identity, own, setup, files, step_lines[i], result | costs)


def _position_of(trainer: Trainer, i: int) -> Position:
    """Returns the position of one trial as that of a run of its own."""
    program, now = trainer.program, trainer.now
    trial = now.trials[i]
    return Position(
        program.get(now.state, i),
        program.get(now.best_params, i),
        [trial],
        epoch=trial.progress.epoch,
        step=trial.records[-1]["step"],
        evaluated=trial.progress.epoch,
        seconds=now.seconds,
        compile_seconds=now.compile_seconds,
    )


def _save_run(
    trial: Trial,
    identity: Identity,
    now: Position,
    setup: Setup,
    files: Mapping[str, str],
    step_lines: Sequence[Record],
    result: dict[str, Any],
) -> None:
    """Writes the directory of a finished run; `files` were fitted to the training data."""
    with _appearing(trial.directory) as directory:
        for name, text in files.items():
            write_text(directory / name, text)
        save_identity(directory, identity)
        facts = to_facts(now, setup) | identity._asdict()
        arrays = {"state": now.state, "best_params": now.best_params}
        with closing(Checkpoints(directory / CHECKPOINTS)) as checkpoints:
            checkpoints.prepare(now.step, arrays, facts, now.step)()
        write_log(directory, now.trials[0].records, step_lines, identity.config, result)
        write_json(directory / RESULT, result)


@contextmanager
def _appearing(directory: Path) -> Generator[Path]:
    """Yields a temporary directory, which is renamed to `directory` at the end."""
    beside = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    beside.rename(directory)


def have_reached(trials: Sequence[Trial], workdir: Path, until: int | None) -> bool:
    """Returns whether all trials have ended, or have been paused at this epoch or later."""
    paused = read_below(workdir, PAUSED) if until is not None else {}
    names = [trial.name for trial in trials if not trial.has_ended]
    return all(name in paused and paused[name]["epoch"] >= until for name in names)


def read_below(workdir: Path, name: str) -> dict[str, Any]:
    """Returns the entries of all JSON files of that name below a working directory.

    Other processes may write and remove directories meanwhile.
    """
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(workdir):
        if CHECKPOINTS in folders:
            folders.remove(CHECKPOINTS)
        if name in files:
            with suppress(UserError):  # it has been removed
                found |= read_json(Path(folder) / name)
    return found


def train_trials(
    trials: Sequence[Trial],
    workdir: Path,
    signals: StopSignals,
    watch: Watch,
    until: int | None,
    dropped: Dropped,
    max_bytes: float,
) -> None:
    """Trains trials of one group key to their end, or goes on with them.

    With `until` only up to that epoch; trials that are `dropped` end after theirs. Trials that
    would take more than `max_bytes` of a device's memory are trained in halves. A trial that fails
    ends alone. Raises as `Trainer.run`, and UserError for trials that cannot share a program.
    """
    if have_reached(trials, workdir, until):
        return
    if not (workdir / HALVES[0]).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        sound = sound_trials(trials, workdir)
        if not sound:
            return
        program = _make_program(sound, workdir)
        has_begun = bool(steps_in(workdir / CHECKPOINTS))
        if len(sound) == 1 or has_begun or _num_bytes(program) <= max_bytes:
            return _train(sound, program, workdir, signals, watch, until, dropped)
    half = len(trials) // 2
    for name, part in zip(HALVES, (trials[:half], trials[half:]), strict=True):
        train_trials(part, workdir / name, signals, watch, until, dropped, max_bytes)


def _make_program(sound: Sequence[SoundTrial], workdir: Path) -> Programs:
    """Returns the program of the trials; a single one is trained as a run is."""
    configs = [trial.config for trial, _ in sound]
    config, hparams = shared_config(configs), differing_hparams(configs)
    setup = make_setup(make_task(config, workdir), config)
    if len(sound) == 1:
        return DataParallel(setup)
    check_hparams(setup.task, config.task, hparams)
    if names := names_on_disk(setup.data.rows):
        raise UserError(
            f"trials train together on rows in memory, not {names[0]!r}: train each trial as a run"
        )
    if config.train.loop != "epoch":
        say(f"train.loop={config.train.loop!r} is for single runs: each device holds all rows")
    return TrialParallel(setup, [config.seed for config in configs], hparams)


def _num_bytes(program: Programs) -> int:
    """Returns the bytes that a group takes of each device; compiles its program."""
    assert isinstance(program, TrialParallel)
    setup = program.setup
    params = setup.arrays_like()["best_params"]
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return program.compile() + COPIES * weights * program.num_trials // setup.mesh.size


def _train(
    sound: Sequence[SoundTrial],
    program: Programs,
    workdir: Path,
    signals: StopSignals,
    watch: Watch,
    until: int | None,
    dropped: Dropped,
) -> None:
    """Trains the trials to their end, where they become run directories, or to `until`."""
    setup, trials = program.setup, [trial for trial, _ in sound]
    monitor = setup.config.train.monitor
    identity = {  # the configs and data that a checkpoint of this group must have
        "configs": [as_json(trial.config) for trial in trials],
        "data": {split: arrays_digest(rows) for split, rows in setup.task.splits.items()},
    }
    now = _position(program, sound, workdir, identity)
    ends = [dropped.get(trial.directory, setup.config.train.num_epochs) for trial in trials]
    paths = [workdir / f"{trial.name}.steps.jsonl" for trial in trials]
    steps = [StepsFile(path, now.step) for path in paths]
    shown: dict[str, Any] = {}  # how far each trial is, for all who look at the directory
    written_at = 0.0

    def add_records(i: int, records: Sequence[Record]) -> None:
        nonlocal written_at
        losses = [records[-1].get(split, {}).get("loss") for split in ("train", "valid")]
        best = losses[0] if monitor == "epoch" else now.trials[i].progress.best_value
        shown[trials[i].name] = [records[-1]["epoch"], *losses, best]
        is_last = i == max(np.flatnonzero(trainer.active()), default=i)
        if is_last and time.monotonic() > written_at + PROGRESS_SECONDS:
            write_json(workdir / PROGRESS, shown, durable=False)
            written_at = time.monotonic()
        watch(trials[i], records)

    listeners = Listeners(
        add_records,
        lambda i, lines: steps[i].add(lines),
        lambda i, reason: save_failure(trials[i], reason),
    )
    with closing(Checkpoints(workdir / CHECKPOINTS)) as checkpoints:
        trainer = Trainer(program, now, checkpoints, identity, listeners, signals, ends=ends)
        trainer.run(until)
    lines = [read_records(path) if path.exists() else [] for path in paths]
    signals.unsaved = False
    active = trainer.active()
    if now.evaluated >= setup.config.train.num_epochs or not active.any():
        save_trials(trainer, trials, lines)
        return
    rows = zip(trials, _values(program, now), active.tolist(), strict=True)
    paused = {
        trial.name: {"epoch": now.evaluated, "value": value, "goes_on": goes_on}
        for trial, value, goes_on in rows
    }
    write_json(workdir / PAUSED, paused)


def _position(
    program: Programs,
    sound: Sequence[SoundTrial],
    workdir: Path,
    identity: Mapping[str, Any],
) -> Position:
    """Returns the position of the newest intact checkpoint, or that before the first step."""
    setup, own = program.setup, json.loads(json.dumps({"format": FORMAT, **identity}))
    params = [init(make_keys(trial.config.seed).init) for trial, init in sound]
    # One for each trial: the initial state holds its numbers.
    optimizers = [
        setup_optimizer(trial.config, setup.data, setup.num_updates) for trial, _ in sound
    ]
    first = begin(program, params, optimizers)

    def is_foreign(facts: dict[str, Any]) -> str:
        changed = [name for name in own if facts.get(name) != own[name]]
        return f"other {' and '.join(changed)}" if changed else ""

    found = newest(workdir / CHECKPOINTS, program.like(setup.arrays_like()), is_foreign, say)
    set_aside_after(workdir / CHECKPOINTS, found.step if found else 0)
    return resume(program, first, found) if found else first


def _values(program: Programs, now: Position) -> list[float | None]:
    """Returns the value by which each trial is compared with the others, so far."""
    if program.setup.config.train.monitor != "epoch":
        return [trial.progress.best_value for trial in now.trials]
    measured = program.metrics(now.best_params, program.setup.data.rows)
    return [means["loss"] for means in measured]
