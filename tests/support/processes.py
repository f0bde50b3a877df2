"""Starts training processes and compares their runs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from support.same_runs import packed_arrays, read_result

ROOT = Path(__file__).parents[2]


def start(
    workdir: Path,
    *args: str,
    cache: Path,
    entry: str = "train",
    variables: Mapping[str, str] = MappingProxyType({}),
    **options,
) -> subprocess.Popen:
    """Starts an entry point as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{entry}", f"--workdir={workdir}", *args],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | variables,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


def start_both(
    workdir: Path, *args: str, cache: Path, others: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Starts two processes of one run; `others` are flags of process 1 alone."""
    common = (*args, f"--coordinator_address={free_address()}", "--num_processes=2")
    first = start(workdir, *common, "--process_id=0", cache=cache)
    beside = workdir.with_name("other")
    return [first, start(beside, *common, "--process_id=1", *others, cache=cache)]


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
