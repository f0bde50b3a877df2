"""Standard error after a process is lost: one line in place of the runtime's many."""

import subprocess
import sys

import pytest

from seqjax.distributed import brief_stderr

LOST = "E0101 12:00:00.000 coordination_service_agent.cc:123] Polled an error\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a warning\nanother", "a warning\nanother"),
        (f"a warning\n{LOST}*** Check failure stack trace: ***\n", "a warning\nerror: lost\n"),
        (LOST * 3, "error: lost\n"),
        (f"error: no file\n{LOST}Aborted\n", "error: no file\n"),
        ("2026: JAX distributed service detected fatal errors\nAborted\n", "error: lost\n"),
    ],
)
def test_a_lost_process_is_one_line(lines, expected):
    command = [sys.executable, "-I", "-S", brief_stderr.__file__, "lost"]
    output = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert (output.stdout, output.stderr) == (expected, "")
