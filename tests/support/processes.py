"""Starts training processes and compares their runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.same_runs import packed_arrays, read_result

ROOT = Path(__file__).parents[2]


def start(workdir: Path, *args: str, cache: Path, **options) -> subprocess.Popen:
    """Starts `experiments.train` as a process with two devices."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *args]
    return subprocess.Popen(
        [*command, "--config.train.num_devices=2"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


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
