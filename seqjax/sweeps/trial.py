"""A trial of a sweep: a config, and the run directory that it ends in.

The directory appears at once, when the trial has ended: with its best weights, config, records and
result, as an imported run has them (`experiments.evaluate` and `chat` take it), or with the reason
why it failed.
"""

import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.files import read_json, write_json, write_text
from seqjax.parameters import count_parameters, named_arrays
from seqjax.runs.weights import WEIGHTS_FILE, WeightsFile, write_weights
from seqjax.runs.workdir import CONFIG, ENVIRONMENT, RESULT, environment
from seqjax.sweeps.vectorized import share_config
from seqjax.tasks.registry import make_task
from seqjax.training.early_stopping import Progress
from seqjax.training.fit import summarize_splits
from seqjax.training.logger import Record
from seqjax.training.setup import Setup, make_setup
from seqjax.typing import Params

FAILURE, RECORDS = "failure.json", "metrics.jsonl"
Means = Mapping[str, Mapping[str, float]]  # by split


class Trial(NamedTuple):
    """A config, and where its run is to lie."""

    config: ConfigDict
    directory: Path

    @property
    def has_ended(self) -> bool:
        return any((self.directory / name).exists() for name in (RESULT, FAILURE))

    def failure(self) -> str:
        """Why the trial failed, "" if it did not."""
        path = self.directory / FAILURE
        return read_json(path)["reason"] if path.exists() else ""


def sound_trials(trials: Sequence[Trial], workdir: Path) -> list[tuple[Trial, Callable]]:
    """The trials that can be begun, with their `init`; the others end as failures."""
    sound, made = [], {}
    for trial in trials:
        kind = json.dumps(as_json(trial.config) | {"seed": 0, "optim": {}})  # which no task reads
        try:
            if kind not in made:
                task = make_task(trial.config, workdir)
                task.save_fitted(workdir)  # what the first one fits to the data, the others read
                made[kind] = task, jax.jit(task.init)
            task, init = made[kind]
            make_setup(task, share_config([trial.config]).config)  # for its complaints
            sound.append((trial, init))
        except UserError as error:
            save_failure(trial, str(error))
    return sound


def summarize(
    setup: Setup, params: Params, progress: Progress, means: Means, alive: Means
) -> dict[str, Any]:
    """What result.json holds of a member; `means` are those of its metrics by split, and `alive`
    those under dropout where the config asks for them."""
    splits = setup.task.splits
    predict = cache(lambda split: setup.evaluator.predict(params, splits[split]))

    def measure(split: str, dropout_alive: bool) -> dict[str, float]:
        return dict((alive if dropout_alive else means)[split])

    return summarize_splits(setup, measure, predict) | {
        "best_epoch": progress.best_epoch,
        "num_epochs": progress.epoch,
        "num_parameters": count_parameters(params),
    }


def save_failure(trial: Trial, reason: str) -> None:
    """Ends a trial that failed, unless it has ended before the group was set back."""
    if trial.has_ended:
        return
    with _appearing(trial.directory) as directory:
        write_json(directory / CONFIG, as_json(trial.config))
        write_json(directory / FAILURE, {"reason": reason})


def save_result(
    trial: Trial,
    params: Params,
    progress: Progress,
    records: Sequence[Record],
    files: Mapping[str, str],
    result: dict[str, Any],
) -> None:
    """Ends a trial with its best weights; `files` are what was fitted to the training data."""
    with _appearing(trial.directory) as directory:
        config = as_json(trial.config)
        for name, text in files.items():
            write_text(directory / name, text)
        weights = WeightsFile(config, progress._asdict(), dict(files), dict(named_arrays(params)))
        write_weights(directory / WEIGHTS_FILE, weights)
        write_text(directory / RECORDS, "".join(json.dumps(r) + "\n" for r in records))
        write_json(directory / CONFIG, config)
        write_json(directory / ENVIRONMENT, environment())
        write_json(directory / RESULT, result)


@contextmanager
def _appearing(directory: Path) -> Generator[Path]:
    """A directory to fill, which then gets the name of this one."""
    beside = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    beside.rename(directory)
