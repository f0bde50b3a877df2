"""Processes that are workers of a sweep, the same command on the same directory: on this machine,
or as tasks of Ray on the cluster at an address or on one started here."""

import logging
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.sweeps.sweep import POLL_SECONDS, STOPPED, WORKER, Look, started_by

LOG = "workers.log"
STOP_SECONDS = 60.0  # for workers to save in
RESTARTS = 100  # of killed workers, for each worker
# Ray's daemons would print lines here, and send usage statistics.
RAY_SETTINGS = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*", "RAY_USAGE_STATS_ENABLED": "0"}


def start_worker(
    command: Sequence[str], log: Path, num_workers: int, index: int | None = None
) -> subprocess.Popen:
    """Starts one of so many workers of this machine; with its number, on its share of the cores."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {"PYTHONPATH": path, WORKER: f"{os.getpid()} {num_workers}"}
    with log.open("ab") as file:  # in a session of its own: this process passes Ctrl-C on
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        env = os.environ | environment
        process = subprocess.Popen(command, **streams, start_new_session=True, env=env)
    if index is not None and hasattr(os, "sched_setaffinity"):  # Linux only
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // num_workers)
        own = {cores[(index * share + i) % len(cores)] for i in range(share)}
        os.sched_setaffinity(process.pid, own)  # before it has started a thread
    return process


def end_with_parent() -> None:
    """Makes a worker that was started by `start_worker` save and end when that process has died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    parent, _ = started_by()
    if parent:
        threading.Thread(target=watch, daemon=True).start()


def run_workers(start: Callable[[int], Any], num_workers: int, log: Path, look: Look) -> None:
    """Runs so many workers until each has ended; one that is killed is started again.

    `start(index)` returns a worker with the methods of a subprocess.Popen. Raises Stopped after a
    signal, when the workers have saved and ended, and UserError if none came to the end.
    """
    codes, restarts, workers = [], RESTARTS * num_workers, {}
    begin = log.stat().st_size if log.exists() else 0  # earlier workers wrote up to here
    with StopSignals() as signals:
        signals.unsaved = True
        try:
            for index in range(num_workers):
                workers[index] = start(index)
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
            raise Stopped(signals.received, STOPPED)
    if 0 not in codes:
        text = log.read_bytes()[begin:].decode(errors="replace") if log.exists() else ""
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        reason = errors[-1].removeprefix("error: ") if errors else "no worker came to the end"
        raise UserError(f"{reason} (exit codes {codes}; see {log})")


def _stop(workers: Iterable[Any]) -> None:
    """Asks workers to save and end, and waits; one that takes longer ends by itself."""
    end = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.terminate()
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, end - time.monotonic()))


class RayWorker:
    """A worker as a task on one of the nodes, with the methods of a subprocess.Popen.

    The nodes must have seqjax installed, and see the working directory and that of the sweep by
    the same absolute paths.
    """

    def __init__(self, ray: Any, command: Sequence[str], log: Path, index: int, num_workers: int):
        cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        share = max(1, int(min(sum(cpus) // num_workers, max(cpus))))
        here = (num_workers, index) if len(cpus) == 1 else (max(cpus) // share, None)
        start, self._ray = ray.remote(num_cpus=share, max_retries=0)(_work), ray
        self._task = start.remote([*command], str(log.absolute()), os.getcwd(), *here)

    def wait(self, timeout: float = 0.0) -> int | None:
        """Returns the exit code, None while it runs; UserError if the node lacks a directory."""
        if not self._ray.wait([self._task], timeout=timeout)[0]:
            return None
        try:
            return self._ray.get(self._task)
        except UserError as error:  # Ray adds the traceback to its text
            raise UserError(error.args[0]) from None
        except self._ray.exceptions.RayError:  # the node or the task's process has died
            return -9

    poll = wait

    def terminate(self) -> None:
        self._ray.cancel(self._task)  # which raises KeyboardInterrupt in the task


def _work(command: list[str], log: str, cwd: str, num_workers: int, index: int | None) -> int:
    """Runs a worker on this node, which may be another machine, and returns its exit code."""
    for place in (Path(cwd), Path(log).parent):
        if not place.is_dir():
            missing = f"node {platform.node()} does not see {place}"
            raise UserError(f"{missing}: work in directories that all nodes share")
    os.chdir(cwd)
    process = start_worker(command, Path(log), int(num_workers), index)
    try:
        while (code := process.poll()) is None:  # unlike `wait`, a sleep can be interrupted
            time.sleep(POLL_SECONDS)
        return code
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def start_ray(address: str) -> Any:
    """Returns the package `ray`, connected to the cluster; without an address, to a new one here.

    Raises UserError without the package and without the cluster.
    """
    os.environ.update({name: os.environ.get(name, x) for name, x in RAY_SETTINGS.items()})
    try:
        import ray
    except ImportError:
        raise UserError("--executor=ray needs a package: pip install 'seqjax[ray]'") from None
    here = {"num_cpus": num_cores(), "include_dashboard": False}
    options: Any = {"address": address} if address else here
    try:
        with warnings.catch_warnings():  # of forks, which become other programs at once
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            if re.fullmatch(r"[^:/]+:\d+", address):  # Ray would try for five minutes
                host, _, port = address.partition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            if not ray.is_initialized():
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address!r} ({error}): `ray start` one") from None
    return ray
