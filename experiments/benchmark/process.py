"""A worker's process, from the outside."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.benchmark.workloads import Workload
from seqjax.errors import one_line


class PeerDied(Exception):
    """A peer's process has ended before its time. The message is its last line."""


class Process:
    """A context in which a peer's process lives: idle, but for the turns that `ask` gives it."""

    def __init__(self, peer: str, workload: Workload):
        self.peer, self.workload = peer, workload

    def __enter__(self) -> "Process":
        # A file, not a pipe, which would be full one day and stop the peer.
        self._errors = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "experiments.benchmark.worker", self.peer]
        self._process = subprocess.Popen(
            [*command, json.dumps(self.workload._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": _path()},
        )
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def start(self) -> dict[str, Any]:
        """What the peer tells of itself after its first step; raises PeerDied."""
        return self._read()

    def ask(self, **order: Any) -> dict[str, Any]:
        """The answer to an order; raises PeerDied."""
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


def _path() -> str:
    """Where the worker finds this very seqjax, wherever it is started from."""
    root = str(Path(__file__).parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
