"""Processes that train one run together, on one machine or on many.

Every process runs the same program. Process 0 alone reads and writes the run's directory and
prints; what it has read there, and what it decides by a clock, the others are told, so that only
the network need be shared. They work in a directory of their own, which is thrown away: one path
through the program serves all. In a single process nothing here does anything.
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

from seqjax.errors import UserError

HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as dead
LOST = (
    "another process of this run has ended, or cannot be reached: see what it said; "
    "the same commands, all of them, resume from the last checkpoint"
)


def start_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    detect: bool,
    timeout_seconds: int,
) -> None:
    """Joins the processes of a run, if flags say that there are several; before JAX has devices.

    With `detect` JAX asks Slurm, Open MPI, Kubernetes or the TPU pod for the three. Raises
    UserError for flags that cannot be used, and if the others do not come in time.
    """
    flags = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = [name for name, value in flags.items() if value is not None]
    if not given and not detect:
        return
    _check(flags, given, detect, timeout_seconds)
    _write_briefly()
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
    """The exit code; but of several processes one that has failed ends here.

    At exit JAX would wait for the others, which wait for this one; so they learn of it at once.
    """
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    return code


def _check(flags: dict[str, Any], given: list[str], detect: bool, timeout_seconds: int) -> None:
    if detect and given:
        raise UserError(f"--distributed finds out --{given[0]} itself: give only one of the two")
    if not detect and len(given) < len(flags):
        missing = next(name for name in flags if name not in given)
        raise UserError(
            f"--{missing} is missing: give {', '.join(f'--{name}' for name in flags)}, or "
            "--distributed where Slurm, Open MPI, Kubernetes or a TPU pod knows them"
        )
    if timeout_seconds < 1:
        raise UserError(f"--initialization_timeout={timeout_seconds} must be at least 1 second")
    if detect:
        return
    address, count, number = flags.values()
    match = re.fullmatch(r"[^:\s]+:(\d{1,5})|\[[\da-fA-F:]+\]:(\d{1,5})", address)
    if not match or not 0 < int(match[1] or match[2]) < 2**16:
        raise UserError(f"--coordinator_address={address} must be HOST:PORT, as 10.0.0.1:1234")
    if count < 1:
        raise UserError(f"--num_processes={count} must be at least 1")
    if not 0 <= number < count:
        raise UserError(f"--process_id={number} must lie between 0 and {count - 1}")
    if number == 0:  # where JAX is to listen, and would crash if it cannot
        try:
            socket.create_server(("", int(match[1] or match[2]))).close()
        except OSError as error:
            raise UserError(
                f"--coordinator_address={address}: cannot listen there ({error.strerror}): choose "
                "another port, for all processes"
            ) from None


def _join(timeout_seconds: int, **settings: Any) -> None:
    """`jax.distributed.initialize`, which ends the process where it should raise an error."""
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **settings,
                initialization_timeout=timeout_seconds + 60,  # never reached
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:  # JAX, gRPC and the clusters' libraries raise all kinds
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


def _write_briefly() -> None:
    """Sends standard error through a process of `brief_stderr.py`.

    JAX's runtime writes thirty lines and aborts as soon as it misses another process. That cannot
    be caught in the process itself.
    """
    script = Path(__file__).with_name("brief_stderr.py")
    ears, mouth = os.pipe()
    with open(ears, "rb") as source:
        command = [sys.executable, "-I", "-S", str(script), LOST]
        subprocess.Popen(command, stdin=source, stdout=2, start_new_session=True)
    os.dup2(mouth, 2)
    os.close(mouth)


def num_processes() -> int:
    """How many processes train together."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0: the one that has the run's directory, and the word."""
    return num_processes() == 1 or jax.process_index() == 0


def gather(value: int | float) -> list[Any]:
    """The number that each process gives, a float32 or an int32, by process."""
    if num_processes() == 1:
        return [value]
    kind = np.int32 if isinstance(value, int) else np.float32
    return gather_array(np.asarray(value, kind)).tolist()


def gather_array(array: np.ndarray) -> np.ndarray:
    """The arrays that the processes give, alike in shape and dtype: [processes, ...]."""
    return np.asarray(multihost_utils.process_allgather(array))


def broadcast(value: Any) -> Any:
    """Process 0's JSON value, in every process; what the others give does not count."""
    if num_processes() == 1:
        return value
    return json.loads(
        broadcast_bytes(np.frombuffer(json.dumps(value).encode(), np.uint8)).tobytes()
    )


def broadcast_bytes(data: np.ndarray) -> np.ndarray:
    """Process 0's bytes, uint8 [n], in every process."""
    if num_processes() == 1:
        return data
    size = int(gather(data.size)[0])
    mine = data if is_main() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine))


@contextlib.contextmanager
def own_directory(directory: Path) -> Generator[Path]:
    """The directory in process 0; in every other a new one, which is deleted afterwards."""
    if is_main():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="seqjax-") as scratch:
        yield Path(scratch) / directory.name
