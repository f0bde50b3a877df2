"""What trains chunks of a sweep, in this process or in one that was started for it.

python -m seqjax.worker NUMBER is such a process, with the number of the file that is its pipe.
Imports: chunks, launch.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from absl import logging as absl_logging
from ml_collections import ConfigDict

from seqjax.chunks import Chunk, train_chunk
from seqjax.config import as_json, make_config
from seqjax.errors import UserError
from seqjax.group import Dropped
from seqjax.launch import num_cores as available_cores
from seqjax.launch import start_jax
from seqjax.trial import Trial

# XLA compiles other code for one device than for several: with two at least, a member's numbers do
# not depend on how many there are.
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
