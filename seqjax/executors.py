"""Who trains the groups of a sweep: this process, others on this machine, or a Ray cluster.

An executor takes chunks and yields each when it has ended: all of its trials, or with `until` at
that epoch. All of them end in the same runs to the last bit. A worker that dies costs a minute of
training at most: its chunk goes on from the group's checkpoint, twice; then its trials fail, with
the reason, and the others go on. After a signal all save and end, and `Stopped` is raised.
Imports: chunks, worker.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from seqjax.chunks import Chunk, conclude, divide, train_chunk
from seqjax.errors import UserError
from seqjax.group import Watch
from seqjax.launch import num_cores
from seqjax.stop_signals import Stopped, StopSignals
from seqjax.trial import Trial
from seqjax.worker import do_job_on_node, make_job

RETRIES = 2  # of a chunk whose worker has died
POLL_SECONDS = 0.2  # between looks for a signal
STOP_SECONDS = 60.0  # for workers to save in
RAY_SETTINGS = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what its daemons would print here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(RETRIES),  # else for ever
}


__all__ = ["EXECUTORS", "Chunk", "divide", "local", "on_ray", "processes"]


def unwatched(trial: Trial, records: Any) -> None:
    """Nobody is told."""


def local(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Collection[Trial] = (),
    watch: Watch = unwatched,
    num_workers: int = 0,
    address: str = "",
) -> Iterator[Chunk]:
    """One after the other in this process, on the devices of `worker.start_devices`."""
    _refuse_address(address)
    if num_workers > 1:
        raise UserError(f"num_workers={num_workers}: executor local is one; take processes or ray")
    for chunk in chunks:
        conclude(chunk, {"failed": train_chunk(chunk, watch, until, dropped)})
        yield chunk


def processes(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Collection[Trial] = (),
    watch: Watch = unwatched,
    num_workers: int = 0,
    address: str = "",
) -> Iterator[Chunk]:
    """In so many processes (0: one a core) at once, each with its share of the cores as devices.

    For CPUs: accelerators are shared out among the members of a group by `local`. `watch` is told
    again of the epochs that a worker that died had not saved. What workers print is in a log
    beside the directory of the groups.
    """
    _refuse_address(address)
    yield from (chunk for chunk in chunks if chunk.has_ended)
    cores, waiting = num_cores(), deque(chunk for chunk in chunks if not chunk.has_ended)
    num_workers = max(1, min(num_workers or cores, len(waiting)))
    options: Any = {"until": until, "dropped": dropped, "num_workers": num_workers}
    idle: list[Worker] = []
    busy: dict[Connection, tuple[Worker, Chunk]] = {}
    deaths: Counter[Path] = Counter()
    with _stoppable() as check:
        try:
            while waiting or busy:
                check()
                while waiting and len(busy) < num_workers:
                    chunk = waiting.popleft()
                    worker = (
                        idle.pop() if idle else Worker(chunk.workdir.parent.with_suffix(".log"))
                    )
                    worker.begin(make_job(chunk, num_cores=cores // num_workers, **options))
                    busy[worker.pipe] = worker, chunk
                for pipe in wait(list(busy), POLL_SECONDS):
                    assert isinstance(pipe, Connection)
                    worker, chunk = busy[pipe]
                    if "trial" in (message := worker.hear()):
                        watch(chunk.trials[message["trial"]], message["records"])
                        continue
                    del busy[pipe]
                    if "died" not in message:
                        idle.append(worker)
                    elif deaths[chunk.workdir] < RETRIES:
                        deaths[chunk.workdir] += 1
                        waiting.append(chunk)
                        continue
                    else:
                        message = {"failed": f"{RETRIES + 1} workers died: {message['died']}"}
                    conclude(chunk, message)
                    yield chunk
        finally:
            _end([*idle, *(worker for worker, _ in busy.values())])


class Worker:
    """A process that trains one chunk after the other, and ends when it hears no more of this one.

    It is in a session of its own: a terminal's Ctrl-C is for this process, which passes it on.
    """

    def __init__(self, log: Path):
        self.pipe, end = Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "seqjax.worker", str(end.fileno())],
                pass_fds=[end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        end.close()

    def begin(self, job: str) -> None:
        with suppress(OSError):  # it has died, and is heard to
            self.pipe.send_bytes(job.encode())

    def hear(self) -> dict[str, Any]:
        """The next message; `died`, and how, if that is the last one."""
        try:
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.pipe.close()
            code = self.process.wait()
        by = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        short = ", as when memory is short" if code == -signal.SIGKILL else ""
        return {"died": f"the last by {by}{short}; see {self.log}"}


def _end(workers: Sequence[Worker]) -> None:
    """Ends workers; they save first what is unsaved."""
    end = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.pipe.close()
    for worker in workers:
        try:
            worker.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def on_ray(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Collection[Trial] = (),
    watch: Watch = unwatched,
    num_workers: int = 0,
    num_cpus: int = 1,
    address: str = "",
) -> Iterator[Chunk]:
    """As tasks of Ray, a chunk each, of so many CPUs: each of these is a device.

    On the cluster at `address`, or else on one that is started here, for so many workers at once
    (0: as many as the cores allow), and ends with this process. The nodes must have seqjax
    installed, and see the directories of chunks and trials by the same absolute paths, on a file
    system that they share. `watch` is told of a chunk's epochs when the chunk has ended, and not
    of those that were saved before a worker died. Raises UserError without the package, without
    the cluster, and for a node that does not see a directory.
    """
    ray = _start_ray(address, num_cpus * num_workers or num_cores())
    num_workers = num_workers or max(1, num_cores() // num_cpus)
    options: Any = {"until": until, "dropped": dropped, "num_workers": num_workers}
    task = ray.remote(num_cpus=num_cpus, max_retries=RETRIES)(do_job_on_node)
    running: dict[Any, Chunk] = {}
    with _stoppable() as check:
        try:
            for chunk in chunks:
                chunk.workdir.mkdir(parents=True, exist_ok=True)  # which each node should see
                running[task.remote(make_job(chunk, num_cores=num_cpus, **options))] = chunk
            while running:
                check()
                for ref in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
                    chunk = running.pop(ref)
                    try:
                        message, told = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        reason = str(error).strip().partition("\n")[0]
                        message, told = {"failed": f"{RETRIES + 1} workers died: {reason}"}, []
                    for call in told:
                        watch(chunk.trials[call["trial"]], call["records"])
                    conclude(chunk, message)
                    yield chunk
        finally:
            for ref in running:
                ray.cancel(ref)  # its worker takes that for Ctrl-C
            ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)


def _start_ray(address: str, num_cpus: int) -> Any:
    """The package `ray`, connected to a cluster, and quiet."""
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError("executor 'ray' needs a package: pip install 'seqjax[ray]'") from None
    if not ray.is_initialized():
        where: Any = {"address": address} if address else {"num_cpus": num_cpus}
        try:
            ray.init(
                **where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address!r} ({error}): `ray start` one") from None
    return ray


def _refuse_address(address: str) -> None:
    if address:
        raise UserError(f"address={address!r} is one of a Ray cluster: take executor ray")


@contextmanager
def _stoppable() -> Generator[Callable[[], None]]:
    """A context in which signals are noted; the function raises Stopped after one."""
    with StopSignals() as signals:
        signals.unsaved = True

        def check() -> None:
            if signals.received is not None:
                told = "stopped; what was trained is saved: the same command resumes there"
                raise Stopped(signals.received, told)

        yield check


EXECUTORS: dict[str, Callable[..., Iterator[Chunk]]] = {
    "local": local,
    "processes": processes,
    "ray": on_ray,
}
