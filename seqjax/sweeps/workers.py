"""Chunks of a sweep, and what trains them: this process, or one that was started for it.

python -m seqjax.sweeps.workers NUMBER is such a process; NUMBER is its pipe's file descriptor.
"""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from absl import logging as absl_logging
from ml_collections import ConfigDict

from seqjax.config import as_json, make_config
from seqjax.distributed.devices import num_cores as available_cores
from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError, brief
from seqjax.files import sha256
from seqjax.parameters import device_bytes
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.runs.workdir import WorkdirLocked
from seqjax.sweeps.group import MEMORY_SHARE, NONE_DROPPED, Dropped, Watch, train_group
from seqjax.sweeps.trial import Trial, save_failure
from seqjax.sweeps.vectorized import group_key

RETRIES = 2  # of a chunk whose worker has died
POLL_SECONDS = 0.2  # between looks for a signal
STOP_SECONDS = 60.0  # for workers to save in
IN_USE_SECONDS = 30  # in which a worker that lost its sweep has saved and ended
_MAX_REASON = 1000  # characters


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
            digest = sha256([json.dumps(identity).encode()])
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
        except WorkdirLocked:
            if time.monotonic() > end:
                raise
            time.sleep(1)
        except UserError:
            raise
        except Exception as error:  # one chunk's end is not the sweep's
            return brief(f"{type(error).__name__}: {error}", _MAX_REASON)


def conclude_chunk(chunk: Chunk, message: dict[str, Any]) -> None:
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


# XLA compiles other code for one device than for several: with two at least, a group that goes on
# with another number of them keeps to the code that it began with.
MIN_DEVICES = 2


def start_devices(train: ConfigDict, num_cores: int) -> None:
    """Makes so many cores, and two at least, the devices that groups are trained on."""
    start_jax(train, max(MIN_DEVICES, num_cores))


def make_job(
    chunk: Chunk,
    *,
    until: int | None,
    dropped: Dropped,
    num_cores: int,
    num_workers: int,
) -> str:
    """A chunk, and how to train it, as JSON: on so many cores of a machine that so many workers
    share (0: as many as it has cores for)."""
    return json.dumps(
        {
            "trials": [[as_json(t.config), str(t.directory.absolute())] for t in chunk.trials],
            "workdir": str(chunk.workdir.absolute()),
            "until": until,
            "dropped": [dropped.get(trial.directory) for trial in chunk.trials],
            "num_cores": num_cores,
            "num_workers": num_workers,
        }
    )


def do_job(job: str, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Trains the chunk of `make_job`; what came of it: `failed`, a reason or "", or `refused`.

    What a watch is called with, the trial as its place in the chunk, is told as it comes.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)  # as `launch` does
    fields = json.loads(job)
    try:
        trials = [Trial(make_config(config), Path(path)) for config, path in fields["trials"]]
        start_devices(trials[0].config.train, fields["num_cores"])
    except UserError as error:
        return {"failed": str(error)}

    def watch(trial: Trial, records: Sequence[Any]) -> None:
        tell({"trial": places[trial.directory], "records": records})

    places = {trial.directory: i for i, trial in enumerate(trials)}
    chunk = Chunk(trials, Path(fields["workdir"]))
    ends = zip(trials, fields["dropped"], strict=True)
    dropped = {trial.directory: epoch for trial, epoch in ends if epoch is not None}
    num_workers = fields["num_workers"] or max(1, available_cores() // fields["num_cores"])
    try:
        return {"failed": train_chunk(chunk, watch, fields["until"], dropped, num_workers)}
    except UserError as error:
        return {"refused": str(error)}


def main() -> None:
    """Does the jobs that come through the pipe, until its other end is closed."""
    pipe = Connection(int(sys.argv[1]))
    jobs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs), daemon=True).start()

    def tell(message: dict[str, Any]) -> None:
        with suppress(OSError):  # nobody listens any more; the signal to save is on its way
            pipe.send_bytes(json.dumps(message).encode())

    while True:
        tell(do_job(jobs.get(), tell))


def _listen(pipe: Connection, jobs: SimpleQueue[str]) -> None:
    """The end of the pipe is the end of the sweep, however that came: save what is unsaved."""
    with suppress(EOFError, OSError):
        while True:
            jobs.put(pipe.recv_bytes().decode())
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
