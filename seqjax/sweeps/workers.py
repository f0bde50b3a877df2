"""Processes that are workers of a sweep: the same command, started again on the same directory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seqjax.distributed.devices import num_cores, start_jax
from seqjax.errors import UserError
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.sweeps.sweep import POLL_SECONDS, Look

LOG = "workers.log"
STOP_SECONDS = 60.0  # for workers to save in
RESTARTS = 10  # of killed workers, for each worker
_PARENT = "SEQJAX_SWEEP_PARENT"  # set for a worker that ends with the process that started it
# XLA compiles other code for one device than for several: with at least two, a group that goes on
# with another number of them keeps to the code that it began with.
MIN_DEVICES = 2


def start_devices(train: ConfigDict) -> None:
    """Makes the cores of this process, and at least two, the devices that groups are trained on."""
    start_jax(train, max(MIN_DEVICES, num_cores()))


def start_worker(command: Sequence[str], log: Path, index: int, share: int) -> subprocess.Popen:
    """Starts the worker of that number of this machine as a process that uses so many cores.

    It is in a session of its own: Ctrl-C in the terminal is for this process, which passes it on.
    """
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), _PARENT: "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | environment,
        )
    if hasattr(os, "sched_setaffinity"):  # Linux only
        cores = sorted(os.sched_getaffinity(0))
        own = {cores[(index * share + i) % len(cores)] for i in range(share)}
        os.sched_setaffinity(process.pid, own)  # before it has started a thread
    return process


def end_with_parent() -> None:
    """Makes a worker that was started by `start_worker` save and end when that process has died."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(_PARENT, ""):
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def run_workers(start: Callable[[int], Any], num_workers: int, log: Path, look: Look) -> None:
    """Runs so many workers until each has ended; one that is killed is started again.

    `start(index)` returns a worker with the methods of a subprocess.Popen. After a signal the
    workers save and end, and Stopped is raised. Raises UserError if no worker came to the end.
    """
    codes, restarts = [], RESTARTS * num_workers
    with StopSignals() as signals:
        signals.unsaved = True
        workers = {index: start(index) for index in range(num_workers)}
        try:
            while workers and signals.received is None:
                look()
                time.sleep(POLL_SECONDS)
                for index in [i for i, worker in workers.items() if worker.poll() is not None]:
                    codes.append(workers.pop(index).poll())
                    if codes[-1] < 0 < restarts:
                        restarts -= 1
                        workers[index] = start(index)
        finally:
            _stop(workers.values())
        if signals.received is not None:
            message = "stopped; what was trained is saved: the same command resumes there"
            raise Stopped(signals.received, message)
    if 0 not in codes:
        last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
        raise UserError(f"{last.removeprefix('error: ')} (from {log}; exit codes {codes})")


def _stop(workers: Iterable[Any]) -> None:
    """Ends workers; they save first what is unsaved."""
    end = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
