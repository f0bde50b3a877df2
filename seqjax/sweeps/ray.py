"""Ray, which trains chunks of a sweep on any machines."""

import json
import logging
import os
import platform
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError
from seqjax.runs.signals import Stopped
from seqjax.sweeps.group import NONE_DROPPED, Dropped, Watch
from seqjax.sweeps.workers import (
    POLL_SECONDS,
    RETRIES,
    STOP_SECONDS,
    Chunk,
    conclude_chunk,
    do_job,
    make_job,
    stoppable,
    unwatched,
)

CONNECT_SECONDS = 10.0
RAY_SETTINGS = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what its daemons would print here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(RETRIES),  # else for ever
}


def on_ray(
    chunks: Sequence[Chunk],
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
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
    ray = start_ray(address, num_cpus * num_workers or num_cores())
    most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if num_cpus > most:  # Ray would wait, for ever and in silence
        raise UserError(f"num_cpus={num_cpus}: no node of the Ray cluster has more than {most:g}")
    own = 0 if address else num_workers  # with other nodes it is for them to say
    options: Any = {"until": until, "dropped": dropped, "num_workers": own}
    task = ray.remote(num_cpus=num_cpus, max_retries=RETRIES)(do_job_on_node)
    running: dict[Any, Chunk] = {}
    with stoppable() as check:
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
                    conclude_chunk(chunk, message)
                    yield chunk
        finally:
            for ref in running:
                ray.cancel(ref)  # its worker takes that for Ctrl-C
            ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)


def start_ray(address: str, num_cpus: int) -> Any:
    """The package `ray`, connected to a cluster, and quiet."""
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError("executor 'ray' needs a package: pip install 'seqjax[ray]'") from None
    if not ray.is_initialized():
        where: Any = (
            {"address": address} if address else {"num_cpus": num_cpus, "include_dashboard": False}
        )
        options: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with warnings.catch_warnings():  # of forks, which become other programs at once
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                if re.fullmatch(r"[^:/]+:\d+", address):  # Ray would try for five minutes
                    host, _, port = address.partition(":")
                    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
                ray.init(**where, **options)
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"no Ray cluster at {address!r} ({error}): `ray start` one") from None
    return ray


def do_job_on_node(job: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What came of a job, and what it told, on a machine that may be another."""
    workdir = json.loads(job)["workdir"]
    if not Path(workdir).is_dir():
        node = platform.node()
        told = f"node {node} does not see {workdir}: give a directory that all nodes share"
        return {"refused": told}, []
    told: list[dict[str, Any]] = []
    try:
        return do_job(job, told.append), told
    except Stopped:  # by Ray, which starts it again unless it was cancelled
        os._exit(1)
