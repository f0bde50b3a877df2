"""Starts training processes and compares their runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from support.same_runs import packed_arrays, read_result

ROOT = Path(__file__).parents[2]


def start(workdir: Path, *args: str, cache: Path, **options) -> subprocess.Popen:
    """Starts `experiments.train` as a process."""
    return _start("experiments.train", workdir, *args, cache=cache, **options)


def start_sweep(workdir: Path, *args: str, cache: Path) -> subprocess.Popen:
    """Starts `experiments.sweep` as a process."""
    return _start("experiments.sweep", workdir, *args, cache=cache)


def _start(module: str, workdir: Path, *args: str, cache: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, f"--workdir={workdir}", *args],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def free_address() -> str:
    """Returns a loopback address whose port is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finish(process: subprocess.Popen, timeout: float = 300) -> str:
    """Waits until a process ends without an error; returns what it printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit code {process.returncode}:\n{out}\n{err}"
    return out


def different_bits(some: Path, other: Path) -> int:
    """Returns how many bits of the last checkpoint, logs and result differ between two runs."""
    pairs = [tuple(packed_arrays(run).tobytes() for run in (some, other))]
    pairs.append(tuple(json.dumps(read_result(run)).encode() for run in (some, other)))
    for name in ("metrics.jsonl", "steps.jsonl"):
        if any((run / name).exists() for run in (some, other)):
            pairs.append(tuple((run / name).read_bytes() for run in (some, other)))
    bits = 0
    for a, b in pairs:
        bits += 8 * abs(len(a) - len(b))
        bits += sum((x ^ y).bit_count() for x, y in zip(a, b, strict=False) if x != y)
    return bits
