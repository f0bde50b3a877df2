"""Processes that train one run together, on one machine or on many.

Every process runs the same program. Process 0 alone reads and writes the run's directory and
prints. It sends the others what it has read there and what it decides by its clock, so the machines
need to share nothing but a network. The others write to a temporary directory instead, so that all
processes can run the same code. In a single process the functions of this module do nothing.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seqjax.errors import UserError, require

HEARTBEAT_SECONDS = 30  # a process that sends no heartbeat for so long counts as dead
LOST = (
    "another process of this run has ended or cannot be reached: see its messages; repeat the "
    "commands of all processes to resume from the last checkpoint"
)


def start_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    detect: bool,
    timeout_seconds: int,
) -> None:
    """Connects this process to the others of its run, if the flags say that there are several.

    It must be called before JAX initializes its devices. With `detect`, JAX gets the address, the
    number of processes and the process id from Slurm, Open MPI, Kubernetes or the TPU pod. Raises
    UserError for flags that cannot be used and if the others do not connect in time.
    """
    flags = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    passed = [name for name, value in flags.items() if value is not None]
    if not passed and not detect:
        return
    _check(flags, passed, detect, timeout_seconds)
    _shorten_stderr()
    # seqjax saves after a signal to any process; JAX's own service would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    _join(
        timeout_seconds, **({} if detect else {**flags, "cluster_detection_method": "deactivate"})
    )
    uncaught = sys.excepthook
    sys.excepthook = lambda *error: (uncaught(*error), leave(1))
    if not is_main():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def leave(code: int) -> int:
    """Returns the exit code of a failed command; one of several processes exits here instead.

    At a normal exit JAX would wait for the other processes, which wait for this one. When it exits
    at once, they notice it and end too.
    """
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    return code


def _check(flags: dict[str, Any], passed: list[str], detect: bool, timeout_seconds: int) -> None:
    if detect and passed:
        raise UserError(f"--distributed finds out --{passed[0]} itself: give only one of the two")
    if not detect and len(passed) < len(flags):
        missing = next(name for name in flags if name not in passed)
        raise UserError(
            f"--{missing} is missing: give {', '.join(f'--{name}' for name in flags)}, or "
            "--distributed where Slurm, Open MPI, Kubernetes or a TPU pod knows them"
        )
    is_positive = timeout_seconds >= 1
    require("--initialization_timeout", timeout_seconds, is_positive, "at least 1 second")
    if detect:
        return
    address, count, number = flags.values()
    match = re.fullmatch(r"[^:\s]+:(\d{1,5})|\[[\da-fA-F:]+\]:(\d{1,5})", address)
    port = int(match[1] or match[2]) if match else 0
    is_address = 0 < port < 2**16
    require("--coordinator_address", address, is_address, "HOST:PORT, such as 10.0.0.1:1234")
    require("--num_processes", count, count >= 1, "at least 1")
    require("--process_id", number, 0 <= number < count, f"between 0 and {count - 1}")
    if number == 0:  # JAX listens at this port in process 0, and would crash if it could not
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise UserError(
                f"--coordinator_address={address}: cannot listen there ({error.strerror}): choose "
                "another port, for all processes"
            ) from None


def _join(timeout_seconds: int, **settings: Any) -> None:
    """Calls `jax.distributed.initialize` and raises UserError if it fails or takes too long.

    JAX itself would end the process at its timeout instead of raising an error, so the timeout is
    watched here.
    """
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **settings,
                initialization_timeout=timeout_seconds + 60,  # so long that it is never reached
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:  # JAX, gRPC and the clusters' libraries raise many types
            errors.append(error)

    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(timeout_seconds)
    where = settings.get("coordinator_address", "the cluster's coordinator")
    if joining.is_alive():
        raise UserError(
            f"not all processes met at {where} within {timeout_seconds} s: start them all, each "
            "with its --process_id, process 0 on that host; or raise --initialization_timeout"
        )
    if errors and not settings and "should be defined" in str(errors[0]):
        raise UserError(
            "--distributed finds no Slurm, Open MPI, Kubernetes (with jax[k8s]) or TPU pod here: "
            "give --coordinator_address, --num_processes and --process_id"
        )
    if errors:
        raise UserError(f"cannot join the processes at {where}: {errors[0]}")


def _shorten_stderr() -> None:
    """Sends standard error through a process of `brief_stderr.py`.

    JAX's runtime writes thirty lines and aborts as soon as it loses contact with another process.
    The process itself cannot prevent that.
    """
    script = Path(__file__).with_name("brief_stderr.py")
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as source:
        command = [sys.executable, "-I", "-S", str(script), LOST]
        subprocess.Popen(command, stdin=source, stdout=2, start_new_session=True)
    os.dup2(write_end, 2)
    os.close(write_end)


def num_processes() -> int:
    """Returns the number of processes that train this run together."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Returns whether this is process 0, which alone writes the run's directory and prints."""
    return num_processes() == 1 or jax.process_index() == 0


def gather(value: int | float) -> list[Any]:
    """Returns the numbers that the processes pass, as float32 or int32, in order of processes."""
    if num_processes() == 1:
        return [value]
    kind = np.int32 if isinstance(value, int) else np.float32
    return gather_array(np.asarray(value, kind)).tolist()


def gather_array(array: np.ndarray) -> np.ndarray:
    """Returns the arrays that the processes pass, of one shape and dtype: [processes, ...]."""
    return np.asarray(multihost_utils.process_allgather(array))


def broadcast(value: Any) -> Any:
    """Returns process 0's JSON value in every process; the others' values are ignored."""
    if num_processes() == 1:
        return value
    return json.loads(
        broadcast_bytes(np.frombuffer(json.dumps(value).encode(), np.uint8)).tobytes()
    )


def broadcast_bytes(data: np.ndarray) -> np.ndarray:
    """Returns process 0's bytes, uint8 [n], in every process."""
    if num_processes() == 1:
        return data
    size = int(gather(data.size)[0])
    local = data if is_main() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(local))


@contextlib.contextmanager
def process_directory(directory: Path) -> Generator[Path]:
    """Yields the directory in process 0; in the others a temporary one, deleted afterwards."""
    if is_main():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="seqjax-") as scratch:
        yield Path(scratch) / directory.name
