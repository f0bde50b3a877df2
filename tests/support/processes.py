"""Starts training processes and compares their runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

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


def last_bytes(workdir: Path) -> bytes:
    """Returns the bytes of all arrays of a run's newest checkpoint."""
    paths = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    path = max(paths, key=lambda path: int(path.name))
    arrays = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
        (path / "arrays").absolute(), args=ocp.args.StandardRestore()
    )
    return np.asarray(arrays["bytes"]).tobytes()


def different_bits(some: Path, other: Path) -> int:
    """Returns how many bits of the last checkpoint, records and result differ between two runs."""
    pairs = [(last_bytes(some), last_bytes(other))]
    for name in ("metrics.jsonl", "result.json"):
        pairs.append(((some / name).read_bytes(), (other / name).read_bytes()))
    bits = 0
    for a, b in pairs:
        bits += 8 * abs(len(a) - len(b))
        bits += sum((x ^ y).bit_count() for x, y in zip(a, b, strict=False) if x != y)
    return bits
