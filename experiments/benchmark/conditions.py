"""The conditions of a measurement: a quiet machine, a busy one, and one with AVX2 at most.

Run as a program it keeps one core busy until its standard input is closed.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmark.machine import child_environment
from experiments.benchmark.workloads import NOTHING
from seqjax.errors import UserError, unknown_name

# XLA's own switch leaves matrix products to YNNPACK, which finds AVX-512 by itself and cannot be
# told not to. Without YNNPACK they are computed by oneDNN.
_XLA_AVX2 = {
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
_AVX2 = {
    "jax": _XLA_AVX2,
    "tensorflow": _XLA_AVX2,
    # PyTorch's own switch leaves its matrix products, which are those of MKL, at AVX-512.
    "torch": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}


class Condition(NamedTuple):
    """What differs from an ordinary run."""

    num_busy: int = 0  # processes that run beside the peers
    environment: Mapping[str, dict[str, str]] = NOTHING  # of peers, by the package that they use
    remarks: Mapping[str, str] = NOTHING  # on their rows, by package


CONDITIONS = {
    "quiet": Condition(),
    "busy": Condition(num_busy=2),
    "avx2": Condition(
        environment=_AVX2, remarks={"tensorflow": "its Eigen kernels stay as they were built"}
    ),
}


def find_conditions(names: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Returns the names in their usual order.

    `flags` are those of the processor. Raises UserError for an unknown name, and for `avx2` on a
    processor without AVX2.
    """
    for name in names:
        if name not in CONDITIONS:
            raise unknown_name("condition", name, CONDITIONS)
    if "avx2" in names and "avx2" not in flags:
        raise UserError("--condition=avx2: this processor is not known to have AVX2")
    return [name for name in CONDITIONS if name in names]


def environment_of(condition: str, packages: Sequence[str]) -> dict[str, str]:
    """Returns the variables that a peer of these packages gets; XLA keeps the user's own flags."""
    found: dict[str, str] = {}
    for package in packages:
        found |= CONDITIONS[condition].environment.get(package, {})
    if "XLA_FLAGS" in found:
        found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {found['XLA_FLAGS']}".strip()
    return found


def remark_of(condition: str, packages: Sequence[str]) -> str:
    """Returns what has to be known of such a peer's figures under a condition, or ""."""
    remarks = CONDITIONS[condition].remarks
    return "; ".join(remarks[package] for package in packages if package in remarks)


@contextlib.contextmanager
def busy_processes(number: int) -> Generator[list[subprocess.Popen]]:
    """Yields so many processes, each of which keeps a core busy within the context.

    Their standard input is a pipe from this process. When this process ends, even by SIGKILL, the
    pipe is closed and they end.
    """
    command = [sys.executable, "-m", "experiments.benchmark.conditions"]
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "VECLIB")}
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(number):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(one_thread),
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout
            process.stdout.readline()  # it says when it has begun
        yield processes


def keep_busy() -> None:
    """Multiplies matrices and passes over memory, by turns, until standard input is closed."""

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait_for_end, daemon=True).start()
    matrix = np.full((1024, 1024), 1 / 1024, np.float32)
    memory = np.ones(2**24, np.float32)
    print("busy", flush=True)
    while True:
        matrix = matrix @ matrix
        matrix /= np.abs(matrix).max() * 1024
        memory += np.float32(1)


if __name__ == "__main__":
    keep_busy()
