"""Who trains the groups of a sweep: this process, others on this machine, or a Ray cluster.

An executor takes chunks and yields each when it has ended: all of its trials, or with `until` at
that epoch. All of them end in the same runs, up to rounding. A worker that dies costs a minute of
training at most: its chunk goes on from the group's checkpoint, twice; then its trials fail, with
the reason, and the others go on. After a signal all save and end, and `Stopped` is raised.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from seqjax.distributed.devices import num_cores
from seqjax.sweeps.group import NONE_DROPPED, Dropped, Watch
from seqjax.sweeps.ray import on_ray
from seqjax.sweeps.workers import (
    POLL_SECONDS,
    RETRIES,
    STOP_SECONDS,
    Chunk,
    conclude_chunk,
    make_job,
    stoppable,
    train_chunk,
    unwatched,
)


def local(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    watch: Watch = unwatched,
) -> Iterator[Chunk]:
    """One after the other in this process, on the devices of `worker.start_devices`."""
    for chunk in chunks:
        conclude_chunk(chunk, {"failed": train_chunk(chunk, watch, until, dropped)})
        yield chunk


def processes(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    watch: Watch = unwatched,
    num_workers: int = 0,
) -> Iterator[Chunk]:
    """In so many processes (0: one a core) at once, each with its share of the cores as devices.

    For CPUs: accelerators are shared out among the members of a group by `local`. `watch` is told
    again of the epochs that a worker that died had not saved. What workers print is in a log
    beside the groups' directory.
    """
    yield from (chunk for chunk in chunks if chunk.has_ended)
    cores, waiting = num_cores(), deque(chunk for chunk in chunks if not chunk.has_ended)
    num_workers = max(1, min(num_workers or cores, len(waiting)))
    options: Any = {"until": until, "dropped": dropped, "num_workers": num_workers}
    idle: list[Worker] = []
    busy: dict[Connection, tuple[Worker, Chunk]] = {}
    deaths: Counter[Path] = Counter()
    with stoppable() as check:
        try:
            while waiting or busy:
                check()
                while waiting and len(busy) < num_workers:
                    chunk = waiting.popleft()
                    worker = idle.pop() if idle else Worker(chunk.workdir.parent)
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
                    conclude_chunk(chunk, message)
                    yield chunk
        finally:
            _end([*idle, *(worker for worker, _ in busy.values())])


class Worker:
    """A process that trains one chunk after the other, and ends when it hears no more of this one.

    It is in a session of its own: a terminal's Ctrl-C is for this process, which passes it on.
    """

    def __init__(self, groups: Path):
        self.pipe, end = Pipe()
        groups.mkdir(parents=True, exist_ok=True)
        self.log = groups.with_suffix(".log")  # which outlives them
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "seqjax.sweeps.workers", str(end.fileno())],
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
        if worker.log.exists() and not worker.log.stat().st_size:
            worker.log.unlink()


EXECUTORS: dict[str, Callable[..., Iterator[Chunk]]] = {
    "local": local,
    "processes": processes,
    "ray": on_ray,
}
