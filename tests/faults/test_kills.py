"""SIGKILL at random moments: the same command resumes, and ends with the same bits.

Ten kills in a usual run of the tests. A hundred, in about a quarter of an hour:

    pytest tests/faults/test_kills.py -m slow --kills=100
"""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.processes import different_bits, finish, start, start_both

from seqjax.distributed.processes import LOST

pytestmark = pytest.mark.slow

TABLES = ("trials.jsonl", "summary.csv")
MAX_KILLS = 5  # of one run, before it is left to end

Start = Callable[..., list[subprocess.Popen]]  # (workdir, *args, cache=...) -> its processes


def start_one(workdir: Path, *args: str, cache: Path) -> list[subprocess.Popen]:
    return [start(workdir, *args, "--config.train.num_devices=2", cache=cache)]


def start_two(workdir: Path, *args: str, cache: Path) -> list[subprocess.Popen]:
    # A process that is killed before they have met is waited for so long.
    return start_both(workdir, *args, "--initialization_timeout=60", cache=cache)


def start_trials(workdir: Path, *args: str, cache: Path) -> list[subprocess.Popen]:
    path = workdir.with_name("sweep.py")
    changes = {"seed": [0, 1, 2], "model.hidden_size": [4, 5]}
    lines = ("from seqjax.sweeps.space import product", f"get_sweep = lambda: product({changes})")
    path.write_text("\n".join(lines), encoding="utf-8")
    return [start(workdir, f"--sweep={path}", *args, cache=cache, entry="sweep")]


class Case(NamedTuple):
    """A command, and flags that may differ whenever it is started."""

    start: Start
    args: tuple[str, ...]
    free: bool = True


CASES = {
    "mnist_rows": Case(
        start_one,
        (
            "--config=configs/mnist_rows.py",
            "--config.train.num_epochs=3",
            "--config.model.hidden_size=32",
            "--config.train.log_every_steps=7",
        ),
    ),
    "word_completion": Case(
        start_one,
        ("--config=configs/word_completion.py", "--config.train.checkpoint_every_epochs=1"),
    ),
    "cafe_chatbot": Case(
        start_one,
        (
            "--config=configs/cafe_chatbot.py",
            "--config.train.num_epochs=4",
            "--config.data.train_size=300",
            "--config.model.hidden_size=16",
            "--config.train.checkpoint_every_epochs=1",
        ),
    ),
    "two_processes": Case(
        start_two,
        (
            "--config=configs/word_completion.py",
            "--config.train.num_epochs=600",
            "--config.train.log_every_steps=50",
            "--config.train.num_devices=2",
        ),
    ),
    "sweep": Case(
        start_trials,
        (
            "--config=configs/word_completion.py",
            "--config.train.num_epochs=600",
            "--config.train.log_every_steps=50",
            "--config.train.steps_per_call=20",
            "--config.train.checkpoint_every_minutes=0.003",
        ),
        free=False,  # a sweep's settings are those it began with
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path, request, record_property):
    case, number = CASES[name], list(CASES).index(name)
    kills = range(number, request.config.getoption("--kills"), len(CASES))
    schedule = random.Random(f"{request.config.getoption('--fault-seed')} {name}")
    through, again, cache = (tmp_path / part for part in ("through", "again", "cache"))
    finish_all(case.start(through, *case.args, cache=cache))
    began = time.monotonic()
    finish_all(case.start(again, *case.args, cache=cache))
    seconds = time.monotonic() - began  # of a run whose programs are in the cache
    assert all_different_bits(through, again) == 0

    left, runs, resumed = len(kills), 0, 0
    while left:
        runs += 1
        workdir, hits = tmp_path / f"run{runs}", min(left, schedule.randint(1, MAX_KILLS))
        for _ in range(hits):
            left -= kill_one(case, workdir, schedule, seconds, cache)
        # Neither the size of calls nor how often a line is shown is part of what comes out.
        free = (f"--config.train.steps_per_call={schedule.choice([0, 1, 7, 50])}",)
        free += (f"--config.train.log_every_epochs={schedule.choice([0, 1, 3])}",)
        saved = any(checkpoints_in(workdir))
        out = finish_all(case.start(workdir, *case.args, *free * case.free, cache=cache))
        resumed += saved if name == "sweep" else "resuming at step" in out
        assert all_different_bits(through, workdir) == 0, workdir
    num_lines = sum(path.read_bytes().count(b"\n") for path in log_files(through))
    record_property(
        "fault",
        f"{name:15} {len(kills)} SIGKILLs in {runs} runs, {resumed} went on from a checkpoint: "
        f"0 bits differ, 0 of {num_lines} lines of the logs lost or doubled",
    )


def kill_one(
    case: Case, workdir: Path, schedule: random.Random, seconds: float, cache: Path
) -> int:
    """Starts or resumes a run and kills it: some time after its start, or as it saves.

    One of several processes is killed, and the others end by themselves. Returns 0 if the run ended
    before that.
    """
    often = (f"--config.train.checkpoint_every_minutes={schedule.choice([1e-3, 5e-3])}",)
    often += (f"--config.train.steps_per_call={schedule.choice([0, 3, 20])}",)
    processes = case.start(workdir, *case.args, *often * case.free, cache=cache)
    victim = schedule.choice(processes)
    delay, saving = schedule.uniform(0, 1.2 * seconds), schedule.random() < 0.7
    saves, jitter = schedule.randint(1, 4), schedule.uniform(0, 0.03)
    began, seen = time.monotonic(), set()
    while victim.poll() is None and (saving or time.monotonic() - began < delay):
        if saving:
            seen |= {path for path in checkpoints_in(workdir) if "tmp" in path.name}
            if len(seen) >= saves:
                time.sleep(jitter)
                break
        time.sleep(0.001)
    victim.kill()
    victim.communicate()
    killed = victim.returncode != 0
    assert victim.returncode in (0, -signal.SIGKILL)
    for process in processes:
        if process is not victim:
            _, err = process.communicate(timeout=180)
            told = any(text in err for text in (LOST, "not all processes met"))
            assert process.returncode == 0 or (killed and told), err
    return killed


def checkpoints_in(workdir: Path) -> list[Path]:
    """Returns the checkpoints of a run or of a sweep's groups, also those half written."""
    patterns = ("checkpoints/*", "groups/*/checkpoints/*")
    try:
        return [path for pattern in patterns for path in workdir.glob(pattern)]
    except FileNotFoundError:  # the groups of a sweep have just been removed
        return []


def log_files(workdir: Path) -> list[Path]:
    return [path for name in ("metrics", "steps") for path in workdir.rglob(f"{name}.jsonl")]


def all_different_bits(some: Path, other: Path) -> int:
    """Returns how many bits differ between two runs, or between all trials of two sweeps."""
    if not (some / "trials").is_dir():
        return different_bits(some, other)
    names = [sorted(path.name for path in (run / "trials").iterdir()) for run in (some, other)]
    assert names[0] == names[1]
    assert not (other / "groups").exists()
    tables = [b"".join((run / name).read_bytes() for name in TABLES) for run in (some, other)]
    assert tables[0] == tables[1]
    return sum(different_bits(some / "trials" / n, other / "trials" / n) for n in names[0])


def finish_all(processes: list[subprocess.Popen]) -> str:
    """Waits until all processes end without an error; returns what the first one printed."""
    first, *_ = [finish(process) for process in processes]
    return first
