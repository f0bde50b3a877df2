"""A trial of a sweep: a config, and the run directory that it ends in.

The directory appears in one step when the trial ends: as that of a finished run, which can be
evaluated, exported, talked to and trained further, or with the reason why the trial failed.
"""

import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.distributed.choices import choose
from seqjax.errors import UserError
from seqjax.files import read_json, sha256, write_json, write_text
from seqjax.runs.checkpoint import Checkpoints
from seqjax.runs.identity import Identity, make_identity
from seqjax.runs.workdir import CHECKPOINTS, CONFIG, RESULT, save_identity
from seqjax.sweeps.vectorized import shared_config
from seqjax.tasks.base import fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.fit import summarize
from seqjax.training.logger import Record, write_log
from seqjax.training.position import Position, to_facts
from seqjax.training.setup import Setup, make_setup, task_shape
from seqjax.training.trainer import Trainer

FAILURE = "failure.json"


class Trial(NamedTuple):
    """A config, and the directory of its future run."""

    config: ConfigDict
    directory: Path

    @property
    def has_ended(self) -> bool:
        return any((self.directory / name).exists() for name in (RESULT, FAILURE))

    def failure(self) -> str:
        """Why the trial failed, "" if it did not."""
        path = self.directory / FAILURE
        return read_json(path)["reason"] if path.exists() else ""


SoundTrial = tuple[Trial, Callable]  # a trial that can be begun, and its `init`


def sound_trials(trials: Sequence[Trial], workdir: Path) -> list[SoundTrial]:
    """Returns the trials that can be begun; the others end as failures."""
    sound, made = [], {}
    for trial in trials:
        kind = json.dumps(as_json(trial.config) | {"seed": 0, "optim": {}})  # which no task reads
        try:
            if kind not in made:
                task = make_task(trial.config, workdir)
                task.save_fitted(workdir)  # what the first one fits to the data, the others read
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
        if trial.has_ended or trainer.now.trials[i].failure:
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
