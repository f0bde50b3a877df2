"""Two real processes, joined over the loopback address, train what one process trains."""

import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.commands import ROOT, assert_one_line, enter_empty, run_command
from support.distributed_runs import RUNS, STOPPED_AT
from support.processes import free_address, start, start_both
from support.same_runs import read_result
from support.toys import linear_config, read_json, tiny_config

import seqjax.plots
from seqjax.distributed.processes import LOST
from seqjax.tasks.registry import make_task
from seqjax.training.logger import read_records

PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
HEARTBEAT = 30  # seconds after which JAX itself would notice that a process has ended


def environment(cache: Path) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(cache)}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


def wait_for_ends(*processes: subprocess.Popen, seconds: float = 90) -> list[tuple[str, str, int]]:
    """Returns each process's (stdout, stderr, exit code); kills it after that many seconds."""
    try:
        return [
            (*process.communicate(timeout=seconds), process.returncode) for process in processes
        ]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


# One pair of processes that runs many checks in turn


@pytest.fixture(scope="module")
def both(tmp_path_factory, cache) -> Path:
    """The directory of two processes that share no files: see `distributed_runs.main`."""
    directory, address = tmp_path_factory.mktemp("both"), free_address()
    script = str(ROOT / "tests" / "support" / "distributed_runs.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(number), str(directory / f"process{number}")],
            env=environment(cache),
            **PIPES,
        )
        for number in range(2)
    ]
    main, other = wait_for_ends(*processes, seconds=200)
    # Process 1 sends itself the signal.
    message = "SIGTERM: saving, then exiting; once more exits at once\n"
    assert other == ("", message, 0), (main, other)
    assert main[1:] == ("", 0)
    return directory


def same_files(some: Path, other: Path) -> bool:
    records = [(run / "metrics.jsonl").read_bytes() for run in (some, other)]
    return records[0] == records[1] and read_result(some) == read_result(other)


def losses(run: Path) -> list[float]:
    """Returns the training and validation losses of all records, then those of the result."""
    records = [*read_records(run / "metrics.jsonl"), read_json(run / "result.json")]
    splits = ("train", "valid")
    return [record[split]["loss"] for record in records for split in splits if split in record]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_two_processes_end_where_one_does(name, both, single_run):
    two, one = both / "process0" / name, single_run(linear_config(**RUNS[name]))
    # Sums are taken in another order: a few units in the last place of float32.
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)
    names = [{p.name.partition(".tfevents")[0] for p in run.iterdir()} for run in (two, one)]
    assert names[0] == names[1]
    devices = f"{RUNS[name]['num_devices']} x cpu"
    assert read_json(two / "fingerprint.json")["devices"] == f"{devices} in 2 processes"
    assert read_json(one / "fingerprint.json")["devices"] == devices


@pytest.mark.slow
def test_only_process_0_has_a_directory(both):
    assert {path.name for path in both.iterdir()} == {"process0", "results0.json", "results1.json"}


@pytest.mark.slow
def test_what_processes_tell_each_other(both):
    for number in range(2):
        results = read_json(both / f"results{number}.json")
        assert results["gather"] == [[0.5, 1.5], [0, 7]]
        assert results["rows"] == [True, "bool"]
        assert results["broadcast"] == {"from": 0, "text": "가"}
        assert results["finished"] == read_json(both / "process0" / "epoch" / "result.json")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_resume(both):
    for number in range(2):
        message = read_json(both / f"results{number}.json")["stopped"]
        assert message.startswith(f"stopped and saved at step {STOPPED_AT} (epoch 3.25)")


@pytest.mark.slow
def test_a_vocabulary_is_fitted_once_and_sent(both, tmp_path):
    (path,) = make_task(tiny_config("word_translation")).save_fitted(tmp_path)
    for number in range(2):
        results = read_json(both / f"results{number}.json")
        assert results["vocabulary"] == path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_devices_that_cannot_be_shared_are_refused(both):
    for number in range(2):
        results = read_json(both / f"results{number}.json")
        assert results["three"] == "train.num_devices=3 must be a multiple of the 2 processes"
        assert results["six"] == "train.num_devices=6: the 2 processes have 4; 0 chooses"


# Processes started by command

WORDS = (
    "--config=configs/word_completion.py",
    "--config.model.hidden_size=8",
    "--config.train.num_epochs=600",
    "--config.train.eval_every_epochs=20",
    "--config.train.checkpoint_every_epochs=100",
    "--config.train.steps_per_call=20",
    "--config.train.num_devices=2",
)


def start_by_slurm(workdir: Path, cache: Path) -> list[subprocess.Popen]:
    """Starts two processes with the environment variables that Slurm's `srun` sets."""
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    ids = [{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(2)]
    return [
        start(directory, *WORDS, "--distributed", cache=cache, variables=job | own)
        for directory, own in zip((workdir, workdir.with_name("other")), ids, strict=True)
    ]


def wait_for_records(workdir: Path, number: int, processes: list[subprocess.Popen]) -> None:
    end, path = time.monotonic() + 120, workdir / "metrics.jsonl"
    while not path.exists() or path.read_text(encoding="utf-8").count("\n") < number:
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            pytest.fail(str(wait_for_ends(*processes, seconds=1)))
        time.sleep(0.01)


@pytest.mark.slow
def test_after_a_kill_the_other_ends_and_both_resume(tmp_path, cache):
    alone = start(tmp_path / "alone", *WORDS, cache=cache)
    workdir = tmp_path / "run"
    for victim, records in ((1, 140), (0, 240)):  # a checkpoint is due every 100
        processes = start_both(workdir, *WORDS, cache=cache)
        wait_for_records(workdir, records, processes)
        processes[victim].kill()
        killed = time.monotonic()
        [(_, err, code)] = wait_for_ends(processes[1 - victim])
        assert time.monotonic() - killed < HEARTBEAT
        assert code != 0 and err == f"error: {LOST}\n", err
        processes[victim].communicate()
    main, other = wait_for_ends(*start_by_slurm(workdir, cache))
    assert (main[1:], other) == (("", 0), ("", "", 0))
    step = re.search(r"resuming at step (\d+) ", main[0])
    assert step and int(step[1]) >= 200, main
    assert wait_for_ends(alone)[0][2] == 0
    assert same_files(workdir, tmp_path / "alone")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_processes_with_other_configs_are_told_which(tmp_path, cache):
    (_, main_err, main_code), (_, err, code) = wait_for_ends(
        *start_both(tmp_path / "run", *WORDS, cache=cache, others=["--config.seed=1"])
    )
    message = "error: process 1 does not have the config and data of process 0 (config.seed: 0 -> 1"
    assert code == 2 and err.startswith(message) and err.count("\n") == 1
    assert main_code != 0 and main_err == f"error: {LOST}\n"


@pytest.mark.slow
def test_a_directory_that_process_0_cannot_use_ends_both(tmp_path, cache):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").touch()
    (_, main_err, main_code), (_, err, code) = wait_for_ends(
        *start_both(tmp_path / "run", *WORDS, cache=cache)
    )
    assert main_code == 2 and main_err.count("\n") == 1
    assert "run is not empty and no run: give a new --workdir" in main_err
    assert code != 0 and err == f"error: {LOST}\n"


@pytest.mark.slow
def test_no_cluster_is_one_line(tmp_path, cache):
    [(out, err, code)] = wait_for_ends(
        start(tmp_path / "run", *WORDS, "--distributed", cache=cache)
    )
    expected = (
        "--distributed finds no Slurm, Open MPI, Kubernetes (with jax[k8s]) or TPU pod here: "
    )
    assert_one_line((code, out, err), expected)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.slow
def test_nobody_at_the_address_is_one_line(number, tmp_path, cache):
    address = free_address()
    flags = (f"--coordinator_address={address}", "--num_processes=2", "--initialization_timeout=1")
    process = start(tmp_path / "run", *WORDS, *flags, f"--process_id={number}", cache=cache)
    [(out, err, code)] = wait_for_ends(process)
    expected = f"not all processes met at {address} within 1 s: start them all, each with its "
    assert_one_line((code, out, err), expected)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    enter_empty(tmp_path, monkeypatch)
    return partial(run_command, monkeypatch, capsys, "train", "--config=configs/recall.py")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "num_processes=2 process_id=0",
            "--coordinator_address is missing: give --coordinator_add",
        ),
        ("coordinator_address=a:1 process_id=0", "--num_processes is missing: give --coordinator"),
        ("coordinator_address=a:1 num_processes=2", "--process_id is missing: give --coordinator"),
        ("distributed process_id=0", "--distributed finds out --process_id itself: give only one"),
        ("coordinator_address=a num_processes=2 process_id=0", "=a must be HOST:PORT, such as 10"),
        ("coordinator_address=a:0 num_processes=2 process_id=0", "=a:0 must be HOST:PORT"),
        ("coordinator_address=a:99999 num_processes=2 process_id=0", "=a:99999 must be HOST:PORT"),
        ("coordinator_address=:1 num_processes=2 process_id=0", "=:1 must be HOST:PORT"),
        (
            "coordinator_address=a:1 num_processes=0 process_id=0",
            "--num_processes=0 must be at lea",
        ),
        (
            "coordinator_address=a:1 num_processes=2 process_id=2",
            "--process_id=2 must be between 0 and 1",
        ),
        ("coordinator_address=a:1 num_processes=2 process_id=-1", "=-1 must be between 0 and 1"),
        ("coordinator_address=a:1 num_processes=2 process_id=x", "--process_id=x"),
        ("distributed initialization_timeout=0", "--initialization_timeout=0 must be at least 1"),
    ],
)
def test_a_mistaken_flag_is_one_line(flags, expected, command):
    assert_one_line(command(*(f"--{flag}" for flag in flags.split())), expected)
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_port_that_is_taken_is_one_line(command):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = (f"--coordinator_address={address}", "--num_processes=2", "--process_id=0")
        assert_one_line(command(*flags), f"={address}: cannot listen there (Address already in use")
