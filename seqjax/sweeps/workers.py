"""Processes that are workers of a sweep: the same command, started again on the same directory, on
this machine or as tasks of Ray, on the cluster at an address or on one started here."""

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
from pathlib import Path
from typing import Any

from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.sweeps.sweep import POLL_SECONDS, WORKERS, Look

LOG = "workers.log"
STOP_SECONDS = 60.0  # for workers to save in
RESTARTS = 10  # of killed workers, for each worker
CONNECT_SECONDS = 10.0
# What Ray's daemons would print here, and what they would send.
RAY_SETTINGS = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*", "RAY_USAGE_STATS_ENABLED": "0"}


def start_worker(command: Sequence[str], log: Path, index: int, share: int) -> subprocess.Popen:
    """Starts the worker of that number of this machine as a process that uses so many cores.

    It is in a session of its own: Ctrl-C in the terminal is for this process, which passes it on.
    """
    path = os.pathsep.join(filter(None, sys.path))
    environment = {"PYTHONPATH": path, WORKERS: str(max(1, num_cores() // share))}
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

    if WORKERS in os.environ:
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
            told = "stopped; what was trained is saved: the same command resumes there"
            raise Stopped(signals.received, told)
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


class RayWorker:
    """A worker as a task on one of the nodes, with the methods of a subprocess.Popen.

    The nodes must have seqjax installed, and see the working directory and the directory of the
    log, which is that of the sweep, by the same absolute paths.
    """

    def __init__(self, ray: Any, command: Sequence[str], log: Path, index: int, num_workers: int):
        cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        share = max(1, int(min(sum(cpus) // num_workers, max(cpus))))
        start, self._ray = ray.remote(num_cpus=share, max_retries=0)(_work), ray
        self._task = start.remote([*command], str(log.absolute()), os.getcwd(), index, share)

    def poll(self, timeout: float = 0.0) -> int | None:
        """Returns the exit code, None while it runs; UserError if the node lacks a directory."""
        if not self._ray.wait([self._task], timeout=timeout)[0]:
            return None
        try:
            return self._ray.get(self._task)
        except UserError as error:  # Ray adds the traceback to its text
            raise UserError(error.args[0]) from None
        except self._ray.exceptions.RayError:  # the node or the task's process has died
            return -9

    def wait(self, timeout: float) -> None:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired("task", timeout)

    def terminate(self) -> None:
        self._ray.cancel(self._task)  # which raises KeyboardInterrupt in the task

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)


def _work(command: list[str], log: str, cwd: str, index: int, share: int) -> int:
    """Runs a worker on this node, which may be another machine, and returns its exit code."""
    for place in (Path(cwd), Path(log).parent):
        if not place.is_dir():
            missing = f"node {platform.node()} does not see {place}"
            raise UserError(f"{missing}: work in directories that all nodes share")
    os.chdir(cwd)
    process = start_worker(command, Path(log), index, share)
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
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            if not ray.is_initialized():
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address!r} ({error}): `ray start` one") from None
    return ray
