"""A group of trials, trained together by one program, from their first epoch or last checkpoint on.

The group's directory holds what resuming needs: checkpoints of all trials, their steps.jsonl, and
what the task fitted to the training data, which they share.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from seqjax.config import as_json
from seqjax.data.streams import names_on_disk
from seqjax.errors import UserError
from seqjax.files import write_json
from seqjax.parameters import device_bytes
from seqjax.runs.checkpoint import Checkpoint, Checkpoints, newest, set_aside_after
from seqjax.runs.identity import arrays_digest
from seqjax.runs.signals import StopSignals, say
from seqjax.runs.workdir import CHECKPOINTS, lock_workdir
from seqjax.sweeps.trial import SoundTrial, Trial, save_failure, save_trials, sound_trials
from seqjax.sweeps.vectorized import check_hparams, differing_hparams, shared_config
from seqjax.tasks.registry import make_task
from seqjax.training.logger import Record, StepsFile, read_records
from seqjax.training.position import FORMAT, Position, begin, resume
from seqjax.training.programs import DataParallel, Programs, TrialParallel
from seqjax.training.setup import Setup, make_setup, setup_optimizer
from seqjax.training.train_step import make_keys
from seqjax.training.trainer import Listeners, Trainer

PROGRESS = "progress.json"  # the value of each trial of a group that is paused
MEMORY_SHARE = 0.5  # of a device's, for a group
COPIES = 3  # of the weights, outside the program: the best ones, those evaluated, the new best
HALVES = ("first", "second")  # directories of a group that is too large
NONE_DROPPED: Mapping[Path, int] = MappingProxyType({})

Watch = Callable[[Trial, Sequence[Record]], None]  # is told of every trial after each evaluation
Dropped = Mapping[Path, int]  # the epoch after which a trial is to end, by its directory


def train_group(
    trials: Sequence[Trial],
    workdir: Path,
    watch: Watch = lambda trial, records: None,
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    max_bytes: float | None = None,
) -> None:
    """Trains trials of one group key to their end, or goes on with them.

    With `until` only up to that epoch; trials that are `dropped` end after theirs. A group that
    would take more than `max_bytes` of a device's memory is trained in halves. A trial that fails
    ends alone. Raises UserError where the directory cannot be used, and Stopped after a signal.
    """
    if all(trial.has_ended for trial in trials):
        return
    limit = MEMORY_SHARE * device_bytes() if max_bytes is None else max_bytes
    with lock_workdir(workdir), StopSignals() as signals:
        if not (workdir / HALVES[0]).exists():
            sound = sound_trials(trials, workdir)
            if not sound:
                return
            program = _make_program(sound, workdir)
            if len(sound) == 1 or _num_bytes(program) <= limit:
                return _train(sound, program, workdir, signals, watch, until, dropped)
    half = len(trials) // 2
    for name, part in zip(HALVES, (trials[:half], trials[half:]), strict=True):
        options: Any = {"until": until, "dropped": dropped, "max_bytes": limit}
        train_group(part, workdir / name, watch, **options)


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
    (workdir / PROGRESS).unlink(missing_ok=True)
    identity = _identity(setup, trials)
    now = _position(program, sound, workdir, identity)
    ends = [dropped.get(trial.directory, setup.config.train.num_epochs) for trial in trials]
    paths = [workdir / f"{trial.directory.name}.steps.jsonl" for trial in trials]
    steps = [StepsFile(path, now.step) for path in paths]
    listeners = Listeners(
        lambda i, records: watch(trials[i], records),
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
    else:
        values = _values(program, now)
        names = [trial.directory.name for trial in trials]
        write_json(workdir / PROGRESS, {names[i]: values[i] for i in active.nonzero()[0].tolist()})


def _position(
    program: Programs,
    sound: Sequence[SoundTrial],
    workdir: Path,
    identity: Mapping[str, Any],
) -> Position:
    """Returns the position of the newest intact checkpoint, or that before the first step."""
    setup = program.setup
    params = [init(make_keys(trial.config.seed).init) for trial, init in sound]
    # One for each trial: the initial state holds its numbers.
    optimizers = [
        setup_optimizer(trial.config, setup.data, setup.num_updates) for trial, _ in sound
    ]
    first = begin(program, params, optimizers)
    found = _find_checkpoint(program, workdir, identity)
    set_aside_after(workdir / CHECKPOINTS, found.step if found else 0)
    return resume(program, first, found) if found else first


def _find_checkpoint(
    program: Programs, workdir: Path, identity: Mapping[str, Any]
) -> Checkpoint | None:
    own = json.loads(json.dumps({"format": FORMAT, **identity}))

    def is_foreign(facts: dict[str, Any]) -> str:
        changed = [name for name in own if facts.get(name) != own[name]]
        return f"other {' and '.join(changed)}" if changed else ""

    like = program.like(program.setup.arrays_like())
    return newest(workdir / CHECKPOINTS, like, is_foreign, say)


def _identity(setup: Setup, trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the configs and data that a checkpoint of this group must have."""
    return {
        "configs": [as_json(trial.config) for trial in trials],
        "data": {split: arrays_digest(rows) for split, rows in setup.task.splits.items()},
    }


def _values(program: Programs, now: Position) -> list[float | None]:
    """Returns the value by which each trial is compared with the others, so far."""
    if program.setup.config.train.monitor != "epoch":
        return [trial.progress.best_value for trial in now.trials]
    measured = program.metrics(now.best_params, program.setup.data.rows)
    return [means["loss"] for means in measured]
