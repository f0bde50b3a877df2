"""The busy condition: its processes run within the context, and never after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.benchmark.conditions import busy_processes
from experiments.benchmark.machine import child_environment

pytestmark = pytest.mark.slow


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")  # on Linux, where a zombie has a process id too
    if status.exists():
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_busy_processes_end_with_the_context():
    with pytest.raises(KeyboardInterrupt), busy_processes(2) as processes:
        assert len(processes) == 2 and all(is_running(process.pid) for process in processes)
        raise KeyboardInterrupt
    assert not any(is_running(process.pid) for process in processes)


def test_busy_processes_end_when_their_parent_is_killed():
    code = """
        import time
        from experiments.benchmark.conditions import busy_processes
        with busy_processes(1) as [process]:
            print(process.pid, flush=True)
            time.sleep(60)
    """.replace("\n        ", "\n")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=child_environment({})
    ) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it still ran ten seconds later")
