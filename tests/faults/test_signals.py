"""Signals, a second process and full disks: processes that save, give way, or say what is wrong."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import ROOT, different_bits, finish, start

pytestmark = pytest.mark.slow

# A run of many short epochs, which is saved seldom: what a signal saves is its own doing.
LONG = (
    "--config=configs/word_completion.py",
    "--config.train.num_epochs=1000",
    "--config.train.eval_every_epochs=250",
    "--config.train.checkpoint_every_epochs=1000",
    "--config.train.steps_per_call=1",
    "--config.train.num_devices=2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def through(tmp_path_factory, cache) -> Path:
    workdir = tmp_path_factory.mktemp("through") / "run"
    finish(start(workdir, *LONG, cache=cache))
    return workdir


def wait_for(holds, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def records(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_the_middle_of_an_epoch_and_exits(number, through, tmp_path, cache):
    workdir = tmp_path / "run"
    process = start(workdir, *LONG, cache=cache)
    wait_for(lambda: records(workdir) >= 250, process)
    time.sleep(0.1)  # some way on from there, or at it where the machine is slow
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    saying, saved = err.splitlines()
    assert saying == f"{number.name}: saving, then exiting; once more exits at once"
    step = re.fullmatch(
        r"stopped and saved at step (\d+) .*: the same command resumes there", saved
    )
    assert step and 250 <= int(step[1]) < 1000, saved
    assert (workdir / "checkpoints" / step[1]).is_dir()
    assert not (workdir / "result.json").exists()
    # With another number of steps a call, and a line an epoch.
    free = ("--config.train.steps_per_call=0", "--config.train.log_every_epochs=1")
    out = finish(start(workdir, *LONG, *free, cache=cache))
    assert f"resuming at step {step[1]} (epoch " in out
    assert different_bits(through, workdir) == 0


def test_a_signal_before_the_first_step_exits_at_once(tmp_path):
    process = start(tmp_path / "run", *LONG, cache=tmp_path / "empty")
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)  # then it compiles
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert records(tmp_path / "run") == 0  # it did not go on to the end of a call
    assert err == "SIGTERM: nothing is lost; the same command resumes from the last checkpoint\n"


SLOW_SAVE = """
import sys, time
from seqjax.runs.checkpoint import Checkpoints
Checkpoints.prepare = lambda self, *args: time.sleep(3600)
sys.argv[0] = "experiments/train.py"
import runpy
runpy.run_module("experiments.train", run_name="__main__")
"""


def test_a_second_signal_exits_at_once(tmp_path, cache, through):
    command = [sys.executable, "-c", SLOW_SAVE, f"--workdir={tmp_path / 'run'}", *LONG]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    wait_for(lambda: records(tmp_path / "run") >= 250, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("SIGINT: saving, then exiting")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)  # the save would take an hour
    assert process.returncode == 130
    assert err.startswith("SIGINT: what was not saved is lost; the same command resumes from the ")


def test_the_error_of_a_second_process_names_the_first(through, tmp_path, cache):
    workdir = tmp_path / "run"
    first = start(workdir, *LONG, cache=cache)
    wait_for((workdir / "metrics.jsonl").exists, first)
    second = start(workdir, *LONG, cache=cache)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert re.fullmatch(rf"error: {workdir} is in use by process {first.pid} on .*: wait .*\n", err)
    first.kill()
    first.communicate()
    finish(start(workdir, *LONG, cache=cache))  # the lock of a dead process is no lock
    assert different_bits(through, workdir) == 0


def test_many_processes_racing_for_a_directory_are_one_run(through, tmp_path, cache):
    workdir = tmp_path / "run"
    racers = [start(workdir, *LONG, cache=cache) for _ in range(3)]
    codes = []
    for racer in racers:
        _, err = racer.communicate(timeout=300)
        codes.append(racer.returncode)
        assert racer.returncode == 0 or (racer.returncode == 2 and "is in use by" in err), err
    assert 0 in codes
    assert different_bits(through, workdir) == 0


# Disks that are full


OFTEN = (*LONG, "--config.train.eval_every_epochs=50", "--config.train.checkpoint_every_epochs=50")


def mounted(directory: Path, kilobytes: int) -> bool:
    """Whether a small file system could be mounted there: by root, or where users may."""
    directory.mkdir()
    options = f"size={kilobytes}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    return (
        bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.parametrize("kilobytes", [300, 600, 900])
def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(kilobytes, tmp_path, cache):
    through = tmp_path / "through"
    finish(start(through, *OFTEN, cache=cache))
    small = tmp_path / "small"
    if mounted(small, kilobytes):
        limit = None
    else:  # files that may not grow are what is left
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 40,) * 2)  # noqa: E731
    workdir = small / "run"
    try:
        process = start(workdir, *OFTEN, cache=cache, preexec_fn=limit)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert err.startswith("error: cannot ") and err.count("\n") == 1, err
        assert re.search(os.strerror(errno.ENOSPC) + "|" + os.strerror(errno.EFBIG), err), err
        if limit is None:
            shutil.copytree(small, tmp_path / "large")  # make room
            workdir = tmp_path / "large" / "run"
        finish(start(workdir, *OFTEN, cache=cache))
        assert different_bits(through, workdir) == 0
    finally:
        subprocess.run(["umount", str(small)], capture_output=True)


def into_file(directory: Path) -> None:
    directory.rename(directory.with_name("taken"))
    directory.touch()


def read_only(directory: Path) -> None:
    directory.chmod(0o500)


# Root may write whatever the permissions are.
REVOKED = {"a file in its place": into_file} | ({"read-only": read_only} if os.getuid() else {})


@pytest.mark.parametrize("how", REVOKED)
def test_unwritable_checkpoints_end_a_run_with_one_line(how, tmp_path, cache):
    through, workdir = tmp_path / "through", tmp_path / "run"
    finish(start(through, *OFTEN, cache=cache))
    process = start(workdir, *OFTEN, cache=cache)
    wait_for(lambda: records(workdir) >= 100, process)
    REVOKED[how](workdir / "checkpoints")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.startswith("error: cannot save a checkpoint: ") and err.count("\n") == 1, err
    (workdir / "checkpoints").chmod(0o700)
    if (workdir / "taken").exists():
        (workdir / "checkpoints").unlink()
        (workdir / "taken").rename(workdir / "checkpoints")
    finish(start(workdir, *OFTEN, cache=cache))
    assert different_bits(through, workdir) == 0
