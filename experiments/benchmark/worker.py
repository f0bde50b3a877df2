"""A peer in a process of its own, which answers lines of JSON: `worker PEER WORKLOAD`.

The first answer tells of the peer and its first step; then `{"steps": n}` is answered by
`{"seconds": s}` and `{"stop": true}` by the process's peak memory. Whatever libraries print goes to
the standard error.
"""

import hashlib
import importlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from experiments.benchmark.inputs import make_batches, make_weights
from experiments.benchmark.peers import PEERS
from experiments.benchmark.workloads import Workload


def main() -> None:
    peer, workload = sys.argv[1], Workload(**json.loads(sys.argv[2]))
    with take_stdout() as answers:
        serve_peer(peer, workload, answers)


def take_stdout() -> TextIO:
    """The real standard output, for answers only: what any code prints goes to standard error."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve_peer(peer: str, workload: Workload, answers: TextIO) -> None:
    """Builds the peer, and obeys lines on standard input until one of them says stop."""
    source = PEERS[peer]
    os.environ.update(source.environment)
    weights, batches = make_weights(workload), make_batches(workload)
    start = time.perf_counter()
    module = importlib.import_module(f"experiments.benchmark.peers.{source.module}")
    imported = time.perf_counter()
    built = module.build(workload, weights, batches)
    built_at = time.perf_counter()
    facts = {"import_seconds": imported - start, "first_step_seconds": built_at - imported}
    versions = {name: sys.modules[name].__version__ for name in source.packages}
    answer(answers, {**result_of(built.first), **facts, "version": versions})
    for line in sys.stdin:
        order = json.loads(line)
        if "stop" in order:
            answer(answers, {"peak_memory_mib": peak_memory_mib()})
            return
        start = time.perf_counter()
        built.run(order["steps"])
        answer(answers, {"seconds": time.perf_counter() - start})


def result_of(first: Any) -> dict[str, Any]:
    """What is to be compared: a loss, or a digest of tokens."""
    if isinstance(first, float):
        return {"loss": first}
    tokens = np.asarray(first, "<i4")
    return {"tokens_digest": hashlib.sha256(tokens.tobytes()).hexdigest()}


def peak_memory_mib() -> float:
    """The most memory that this process ever held.

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
