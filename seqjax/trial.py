"""A trial of a sweep: a config, and the run directory that it ends in. Imports: weights, setup.

The directory appears at once, when the trial has ended: with its best weights, config, records and
result, as an imported run has them (`experiments.evaluate` and `chat` take it), or with the reason
why it failed.
"""

import json
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from seqjax.array_types import Params
from seqjax.config import as_json
from seqjax.files import read_json, write_json, write_text
from seqjax.parameters import named_arrays
from seqjax.progress import Progress
from seqjax.report import Record
from seqjax.run_directory import CONFIG, ENVIRONMENT, RESULT, environment
from seqjax.weights import FILE as WEIGHTS
from seqjax.weights import Weights, write_weights

FAILURE, RECORDS = "failure.json", "metrics.jsonl"


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


def save_failure(trial: Trial, reason: str) -> None:
    """Ends a trial that failed."""
    with _appearing(trial.directory) as directory:
        write_json(directory / CONFIG, as_json(trial.config))
        write_json(directory / FAILURE, {"reason": reason})


def save_result(
    trial: Trial,
    params: Params,
    progress: Progress,
    records: Sequence[Record],
    files: Iterable[Path],
    result: dict[str, Any],
) -> None:
    """Ends a trial with its best weights; `files` hold what was fitted to the training data."""
    with _appearing(trial.directory) as directory:
        config = as_json(trial.config)
        texts = {path.name: path.read_text(encoding="utf-8") for path in files}
        for name, text in texts.items():
            write_text(directory / name, text)
        weights = Weights(config, progress, texts, dict(named_arrays(params)))
        write_weights(directory / WEIGHTS, weights)
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
