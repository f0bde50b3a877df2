"""Workers of two machines share a sweep and are killed at random: every trial ends once, no group
is trained by two at a time, and the results have the same bits as without kills.

The machines are two host names and two paths to one directory. Three kills in a usual run of the
tests. In about eight minutes, five of them with kills:

    pytest tests/faults/test_shared_sweep.py -m slow --kills=360
"""

import itertools
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from support.processes import ROOT, different_bits
from support.same_runs import read_lines

pytestmark = pytest.mark.slow

HOSTS = ("north", "south")
SWEEP = """
from seqjax.sweeps.space import product
def get_sweep():
    return product({"seed": [0, 1, 2, 3], "model.hidden_size": [4, 5]})
"""
# The same command under another host name, which writes down when it trains which group. A kill
# from outside is not a failure of the group, however often it comes.
WORKER = """
import os, runpy, socket, sys, time
sys.path.insert(0, os.getcwd())
from seqjax.sweeps import sweep

host, log = sys.argv.pop(1), sys.argv.pop(1)
socket.gethostname = lambda: host
sweep.MAX_FAILURES = 10**6
train = sweep.train_trials

def note(event, workdir):
    with open(log, "a") as file:
        file.write(f"{event} {workdir.name} {os.getpid()} {time.monotonic()}\\n")

def train_trials(trials, workdir, *args):
    note("begin", workdir)
    train(trials, workdir, *args)
    note("end", workdir)

sweep.train_trials = train_trials
runpy.run_module("experiments.sweep", run_name="__main__")
"""


def test_killed_workers_of_two_machines_end_every_trial_once(tmp_path, request, record_property):
    num_kills = request.config.getoption("--kills") // 3
    rng = random.Random(f"{request.config.getoption('--fault-seed')} shared")
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    (tmp_path / "sweep.py").write_text(SWEEP, encoding="utf-8")
    through, shared = tmp_path / "through", tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "mounted").mkdir()
    bind = ["mount", "--bind", shared, tmp_path / "mounted"]
    if subprocess.run(bind, capture_output=True, check=False).returncode == 0:
        request.addfinalizer(lambda: subprocess.run(["umount", bind[-1]], check=True))
    else:  # without the right to mount
        (tmp_path / "mounted").rmdir()
        (tmp_path / "mounted").symlink_to(shared)

    def start(directory: Path, host: str) -> subprocess.Popen:
        command = [sys.executable, tmp_path / "worker.py", host, f"{directory}.log"]
        command += ["--config=configs/word_completion.py", f"--sweep={tmp_path / 'sweep.py'}"]
        command += [f"--config.train.num_epochs={600 + 50 * num_kills}", "--num_groups=4"]
        command += ["--config.train.steps_per_call=20", "--config.train.log_every_steps=50"]
        command += ["--config.train.checkpoint_every_minutes=0.003", f"--workdir={directory}"]
        pipe, text = subprocess.PIPE, True
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=text)

    def start_on(host: str) -> subprocess.Popen:
        return start(shared if host == HOSTS[0] else tmp_path / "mounted", host)

    assert "8 trials: 8 finished" in finish(start(through, "alone"))
    workers = [(host, start_on(host)) for host in HOSTS for _ in range(2)]
    killed_at = {}
    for _ in range(num_kills):
        time.sleep(rng.uniform(0.5, 4.0))
        host, victim = workers.pop(rng.randrange(len(workers)))
        killed_at[str(victim.pid)] = time.monotonic()
        victim.kill()
        victim.communicate()
        workers.append((host, start_on(host)))
    for _, worker in workers:
        assert "8 trials: 8 finished" in finish(worker)

    times = defaultdict(list)
    for directory in (shared, tmp_path / "mounted"):
        for line in Path(f"{directory}.log").read_text().splitlines():
            event, group, pid, seconds = line.split()
            times[group, pid].append((event, float(seconds)))
    intervals = defaultdict(list)
    for (group, pid), events in times.items():
        for begin, end in zip(
            events[::2], [*events[1::2], ("end", killed_at.get(pid))], strict=False
        ):
            assert (begin[0], end[0]) == ("begin", "end") and end[1] is not None
            intervals[group].append((begin[1], end[1]))
    assert len(intervals) == 4
    for own in intervals.values():
        own.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))
    names = [line["name"] for line in read_lines(shared / "trials.jsonl")]
    assert names == sorted(path.name for path in (shared / "trials").iterdir())
    for name in ("trials.jsonl", "summary.csv"):
        assert (through / name).read_bytes() == (shared / name).read_bytes()
    bits = [different_bits(through / "trials" / n, shared / "trials" / n) for n in names]
    assert bits == [0] * 8
    taken = sum(len(own) for own in intervals.values())
    record_property(
        "fault",
        f"shared sweep    {num_kills} SIGKILLs of workers of two machines, 4 groups were taken "
        f"{taken} times, never by two: every trial ended once, 0 bits differ",
    )


def finish(worker: subprocess.Popen) -> str:
    out, errors = worker.communicate(timeout=600)
    assert worker.returncode == 0, errors
    return out
