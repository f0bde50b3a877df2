"""SIGKILL at random moments: the same command resumes, and ends with the same bits.

Ten kills in a usual run of the tests. A hundred, in about a quarter of an hour:

    pytest tests/faults/test_kills.py --kills=100
"""

import random
import signal
import time
from pathlib import Path

import pytest
from support.processes import different_bits, finish, start

pytestmark = pytest.mark.slow

RUNS = {
    "mnist_rows": (
        "--config.train.num_epochs=3",
        "--config.model.hidden_size=32",
        "--config.train.log_every_steps=7",
    ),
    "word_completion": ("--config.train.checkpoint_every_epochs=1",),
    "cafe_chatbot": (
        "--config.train.num_epochs=4",
        "--config.data.train_size=300",
        "--config.model.hidden_size=16",
        "--config.train.checkpoint_every_epochs=1",
    ),
}
MAX_KILLS = 5  # of one run, before it is left to end


@pytest.mark.parametrize("number", range(len(RUNS)), ids=list(RUNS))
def test_a_killed_run_ends_with_the_same_bits(number, tmp_path, request, record_property):
    name, args = list(RUNS.items())[number]
    kills = range(number, request.config.getoption("--kills"), len(RUNS))
    schedule = random.Random(f"{request.config.getoption('--fault-seed')} {name}")
    args = (f"--config=configs/{name}.py", *args)
    through = tmp_path / "through"
    finish(start(through, *args, cache=tmp_path / "cache"))
    began = time.monotonic()
    finish(start(tmp_path / "again", *args, cache=tmp_path / "cache"))
    seconds = time.monotonic() - began  # of a run whose programs are in the cache
    assert different_bits(through, tmp_path / "again") == 0
    lines = (through / "metrics.jsonl").read_text(encoding="utf-8").count("\n")

    left, runs, resumed = len(kills), 0, 0
    while left:
        runs += 1
        workdir, hits = tmp_path / f"run{runs}", min(left, schedule.randint(1, MAX_KILLS))
        for _ in range(hits):
            left -= kill_one(workdir, args, schedule, seconds, tmp_path / "cache")
        # Neither the size of calls nor how often a line is shown is part of what comes out.
        free = (f"--config.train.steps_per_call={schedule.choice([0, 1, 7, 50])}",)
        free += (f"--config.train.log_every_epochs={schedule.choice([0, 1, 3])}",)
        out = finish(start(workdir, *args, *free, cache=tmp_path / "cache"))
        resumed += "resuming at step" in out
        assert different_bits(through, workdir) == 0, workdir
    record_property(
        "fault",
        f"{name:15} {len(kills)} SIGKILLs in {runs} runs, {resumed} went on from a checkpoint: "
        f"0 bits differ, 0 of {lines} lines of metrics.jsonl lost or doubled",
    )


def kill_one(
    workdir: Path, args: tuple[str, ...], schedule: random.Random, seconds: float, cache: Path
) -> int:
    """Starts or resumes a run and kills it: some time after its start, or as it saves.

    Returns 0 if the run ended before that.
    """
    often = (f"--config.train.checkpoint_every_minutes={schedule.choice([1e-3, 5e-3])}",)
    often += (f"--config.train.steps_per_call={schedule.choice([0, 3, 20])}",)
    process = start(workdir, *args, *often, cache=cache)
    delay, saving = schedule.uniform(0, 1.2 * seconds), schedule.random() < 0.7
    saves, jitter = schedule.randint(1, 4), schedule.uniform(0, 0.03)
    began, seen = time.monotonic(), set()
    while process.poll() is None and (saving or time.monotonic() - began < delay):
        if saving:
            seen |= set(workdir.glob("checkpoints/*tmp*"))
            if len(seen) >= saves:
                time.sleep(jitter)
                break
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0
