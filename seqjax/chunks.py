"""Chunks of a sweep: trials that one process trains together. Imports: group, members, trial."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.group import MEMORY_SHARE, NONE_DROPPED, Dropped, Watch, train_group
from seqjax.members import group_key
from seqjax.memory import device_bytes
from seqjax.plain_text import brief
from seqjax.run_directory import InUse
from seqjax.stop_signals import Stopped, StopSignals
from seqjax.trial import Trial, save_failure

RETRIES = 2  # of a chunk whose worker has died
POLL_SECONDS = 0.2  # between looks for a signal
STOP_SECONDS = 60.0  # for workers to save in
IN_USE_SECONDS = 30  # in which a worker that lost its sweep has saved and ended
MAX_REASON = 1000  # characters


class Chunk(NamedTuple):
    """What one process trains together."""

    trials: Sequence[Trial]  # of one group key
    workdir: Path  # the group's own directory

    @property
    def has_ended(self) -> bool:
        return all(trial.has_ended for trial in self.trials)


def divide(trials: Sequence[Trial], num_workers: int, directory: Path) -> list[Chunk]:
    """Chunks for so many workers, large ones first, with their own directories in this one.

    The directories are the same whenever the trials and the number are: give all trials, also
    those that have ended.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(group_key(trial.config), []).append(trial)
    parts = Counter(groups.keys())
    while parts.total() < min(num_workers, len(trials)):
        parts[max(groups, key=lambda key: len(groups[key]) / parts[key])] += 1
    chunks = []
    for key, group in groups.items():
        bounds = [i * len(group) // parts[key] for i in range(parts[key] + 1)]
        for start, stop in pairwise(bounds):
            identity = [[t.directory.name, as_json(t.config)] for t in group[start:stop]]
            digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
            chunks.append(Chunk(group[start:stop], directory / digest[:16]))
    return sorted(chunks, key=lambda chunk: -len(chunk.trials))


def train_chunk(
    chunk: Chunk,
    watch: Watch,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    num_workers: int = 1,
) -> str:
    """Trains a chunk on a machine that so many share; why it failed, "" if it did not.

    Raises UserError where it is not for the trials that it cannot go on, as on a full disk or where
    another process trains it; and Stopped after a signal.
    """
    end = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            max_bytes = MEMORY_SHARE * device_bytes() / num_workers
            options: Any = {"until": until, "dropped": dropped, "max_bytes": max_bytes}
            train_group(chunk.trials, chunk.workdir, watch, **options)
            return ""
        except InUse:
            if time.monotonic() > end:
                raise
            time.sleep(1)
        except UserError:
            raise
        except Exception as error:  # one chunk's end is not the sweep's
            return brief(f"{type(error).__name__}: {error}", MAX_REASON)


def conclude(chunk: Chunk, message: dict[str, Any]) -> None:
    """Ends the trials of a chunk that failed; raises UserError if it could not be begun."""
    if "refused" in message:
        raise UserError(message["refused"])
    if message["failed"]:
        for trial in chunk.trials:
            save_failure(trial, message["failed"])


def unwatched(trial: Trial, records: Any) -> None:
    """Nobody is told."""


@contextmanager
def stoppable() -> Generator[Callable[[], None]]:
    """A context in which signals are noted; the function raises Stopped after one."""
    with StopSignals() as signals:
        signals.unsaved = True

        def check() -> None:
            if signals.received is not None:
                told = "stopped; what was trained is saved: the same command resumes there"
                raise Stopped(signals.received, told)

        yield check
