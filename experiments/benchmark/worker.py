"""A peer in a process of its own, seen from both sides: `Process` here, `serve_peer` there.

They exchange lines of JSON. The first one tells of the peer and its first step; then
`{"steps": n}` is answered by `{"seconds": s}`, and `{"stop": true}` by the process's peak memory.
Whatever libraries print goes to the standard error.
"""

import hashlib
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from experiments.benchmark.inputs import make_batches, make_weights
from experiments.benchmark.machine import child_environment
from experiments.benchmark.peers import RATES, SOURCES
from experiments.benchmark.workloads import Workload
from seqjax.errors import one_line


class PeerDied(Exception):
    """A peer's process has ended before its time. The message is its last line."""


class Process:
    """A context in which a peer's process lives. It is idle except for the turns of `ask`."""

    def __init__(self, peer: str, workload: Workload, environment: Mapping[str, str]):
        self.peer, self.workload = peer, workload
        # Without the filter the last line of a traceback is the exception, which is reported.
        own = {"JAX_TRACEBACK_FILTERING": "off", **SOURCES[peer].environment}
        self.environment = {**own, **environment}

    def __enter__(self) -> "Process":
        # A file, because a pipe would be full one day and stop the peer.
        self._errors = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "experiments.benchmark.worker", self.peer]
        self._process = subprocess.Popen(
            [*command, json.dumps(self.workload._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=child_environment(self.environment),
        )
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def start(self) -> dict[str, Any]:
        """Returns what the peer tells of itself after its first step; raises PeerDied."""
        return self._read()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Returns the answer to an order; raises PeerDied."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerDied(self._last_words()) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise PeerDied(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return one_line(said[-1]) if said else f"ended with code {code}"


def main() -> None:
    peer, workload = sys.argv[1], Workload(**json.loads(sys.argv[2]))
    with take_stdout() as answers:
        serve_peer(peer, workload, answers)


def take_stdout() -> TextIO:
    """Returns the real standard output; what code prints from now on goes to standard error."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve_peer(peer: str, workload: Workload, answers: TextIO) -> None:
    """Builds the peer, and obeys lines on standard input until one of them says stop."""
    source = SOURCES[peer]
    if peer == RATES:
        weights, batches = {}, []
    else:
        weights, batches = make_weights(workload), make_batches(workload)
    start = time.perf_counter()
    module = importlib.import_module(f"experiments.benchmark.peers.{source.module}")
    imported, memory = time.perf_counter(), peak_memory_mib()
    built = module.build(workload, weights, batches, **source.options)
    facts = {
        **result_of(built.first),
        "import_seconds": imported - start,
        "first_step_seconds": time.perf_counter() - imported,
        "reserved_mib": built.reserved_mib,
        "version": {name: sys.modules[name].__version__ for name in source.packages},
    }
    answer(answers, facts)
    for line in sys.stdin:
        order = json.loads(line)
        if "stop" in order:
            peak = peak_memory_mib()
            answer(answers, {"peak_memory_mib": peak, "added_memory_mib": peak - memory})
            return
        start = time.perf_counter()
        built.run(order["steps"])
        answer(answers, {"seconds": time.perf_counter() - start})


def result_of(first: Any) -> dict[str, Any]:
    """Returns what is compared between peers: a loss, or a digest of tokens."""
    if isinstance(first, float):
        return {"loss": first}
    tokens = np.asarray(first, "<i4")
    return {"tokens_digest": hashlib.sha256(tokens.tobytes()).hexdigest()}


def peak_memory_mib() -> float:
    """Returns the most memory that this process ever held.

    On Linux the kernel's own mark of this program: `getrusage` also counts what the process that
    started this one held at that moment.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def answer(answers: TextIO, value: dict[str, Any]) -> None:
    """Writes a line of JSON."""
    print(json.dumps(value), file=answers, flush=True)


if __name__ == "__main__":
    main()
