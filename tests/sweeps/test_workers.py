"""Workers: the same command on the same directory, killed, stopped, replaced, and on Ray."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.processes import finish, start
from support.same_runs import assert_close, assert_same_trials, read_lines

from seqjax.errors import UserError
from seqjax.runs.signals import Stopped
from seqjax.sweeps import workers
from seqjax.sweeps.results import SUMMARY_FILE, TRIALS_FILE
from seqjax.sweeps.sweep import GROUPS
from seqjax.sweeps.workers import LOG, RayWorker, run_workers, start_ray
from seqjax.training import trials

NAMES = [f"{i:04}" for i in range(8)]
SWEEP = """
from seqjax.sweeps.space import product
def get_sweep():
    return product({"seed": [0, 1, 2, 3], "model.hidden_size": [4, 5]})
"""
TRAINING = (
    "--config=configs/word_completion.py",
    "--config.train.num_epochs=600",
    "--config.train.steps_per_call=20",
    "--config.train.checkpoint_every_minutes=0.003",
)


def start_sweep(directory: Path, *args: str, **options) -> subprocess.Popen:
    """Starts a worker of the sweep, or the process that starts them."""
    path = directory.with_suffix(".py")
    path.write_text(SWEEP, encoding="utf-8")
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    args = (f"--sweep={path}", *TRAINING, *args)
    return start(directory, *args, cache=cache, entry="sweep", **options)


def holders(directory: Path) -> list[int]:
    """Returns the processes that train a group now, once there are some, or none at the end."""
    end = time.monotonic() + 90
    while time.monotonic() < end and not (directory / TRIALS_FILE).exists():
        texts = [path.read_text() for path in directory.glob(f"{GROUPS}/*/lock")]
        if found := [int(text.split()[1]) for text in texts if text]:
            return found
        time.sleep(0.02)
    return []


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> Path:
    """The sweep that all others are compared with: by one worker."""
    directory = tmp_path_factory.mktemp("sweeps") / "through"
    assert "8 trials: 8 finished" in finish(start_sweep(directory))
    return directory


def assert_same_sweep(some: Path, other: Path) -> None:
    """Asserts that two sweeps have the same results up to rounding, by file and by trial."""
    assert_close(*(read_lines(path / TRIALS_FILE) for path in (some, other)))
    heads = [(path / SUMMARY_FILE).read_text().partition("\n")[0] for path in (some, other)]
    assert heads[0] == heads[1] and not (other / GROUPS).exists()
    for name in NAMES:
        assert_same_trials(some / "trials" / name, other / "trials" / name)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_all_end_as_with_one(through, tmp_path):
    sweep = start_sweep(tmp_path / "sweep", "--num_workers=2")
    victim, *_ = holders(tmp_path / "sweep")
    os.kill(victim, signal.SIGKILL)
    assert "8 trials: 8 finished" in finish(sweep)
    assert_same_sweep(through, tmp_path / "sweep")


@pytest.mark.slow
def test_a_sweep_is_stopped_by_ctrl_c_and_by_a_kill_and_goes_on(through, tmp_path):
    directory = tmp_path / "sweep"
    sweep = start_sweep(directory, "--num_workers=2", start_new_session=True)
    pids = holders(directory)
    os.killpg(sweep.pid, signal.SIGINT)
    _, errors = sweep.communicate(timeout=90)
    assert sweep.returncode == 130
    assert errors.splitlines() == [
        "SIGINT: saving, then exiting; once more exits at once",
        "stopped; the training so far is saved: the same command resumes there",
    ]
    assert pids and not any(map(is_alive, pids))

    sweep = start_sweep(directory, "--num_workers=2")
    pids = holders(directory)
    sweep.kill()
    sweep.communicate()
    wait_for(lambda: not any(map(is_alive, pids)))  # they save and end with it
    finish(start_sweep(directory))
    assert_same_sweep(through, directory)


# Without training


class Fake:
    """A worker that ends with a code after some looks; None: only when it is asked to."""

    def __init__(self, code: int | None, looks: int = 1):
        self.code, self.looks, self.ended = code, looks, []

    def poll(self) -> int | None:
        self.looks -= 1
        return self.code if self.looks < 0 else None

    def terminate(self) -> None:
        self.ended.append("terminate")

    def wait(self, timeout: float) -> None:
        self.ended.append("wait")
        raise subprocess.TimeoutExpired("fake", timeout)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.001)


def run_fakes(codes: list[list[int | None]], log: Path, look: Any = lambda: None) -> list[Fake]:
    """Runs workers, the first of which ends with the first codes in turn, and so on."""
    started = []

    def start(index: int) -> Fake:
        started.append(Fake(codes[index].pop(0)))
        return started[-1]

    run_workers(start, len(codes), log, look)
    return started


def test_only_killed_workers_are_started_again(quick, tmp_path):
    looks = []
    started = run_fakes([[-9, -15, 0], [2]], tmp_path / LOG, lambda: looks.append(1))
    assert len(started) == 4 and len(looks) >= 4
    assert not any(worker.ended for worker in started)


def test_workers_that_are_killed_for_ever_are_not_started_for_ever(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RESTARTS", 2)
    with pytest.raises(UserError, match=r"no worker came to the end \(exit codes \[-4, -4, -4\]"):
        run_fakes([[-4] * 9], tmp_path / LOG)


def test_where_no_worker_comes_to_the_end_its_error_is_told(quick, tmp_path):
    (tmp_path / LOG).write_text("error: of an earlier start\n")

    def look():
        with (tmp_path / LOG).open("a") as log:
            log.write("error: no space left: make room\ntrial 0000 finished\n")

    with pytest.raises(UserError) as error:
        run_fakes([[2], [1]], tmp_path / LOG, look)
    expected = f"no space left: make room (exit codes [2, 1]; see {tmp_path / LOG})"
    assert str(error.value) == expected
    with pytest.raises(UserError, match="no worker came to the end"):
        run_fakes([[2], [1]], tmp_path / LOG)


def test_a_signal_ends_all_workers(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "STOP_SECONDS", 0.01)
    started, looks = [], []

    def start(index: int) -> Fake:
        started.append(Fake(None))
        return started[-1]

    def look():
        if not looks:  # a second signal would end this process
            os.kill(os.getpid(), signal.SIGTERM)
        looks.append(1)

    with pytest.raises(Stopped) as stopped:
        run_workers(start, 2, tmp_path / LOG, look)
    assert stopped.value.exit_code == 143
    assert [worker.ended for worker in started] == [["terminate", "wait"]] * 2


def test_two_devices_at_least_train_a_group(monkeypatch):
    asked = []
    monkeypatch.setattr(trials, "start_jax", asked.append)
    for num_cores in (1, 2, 5):
        monkeypatch.setattr(trials, "num_cores", lambda n=num_cores: n)
        trials.start_devices()
    assert asked == [2, 2, 5]


CHILD = """
import os, sys, time
from seqjax.sweeps.workers import end_with_parent
end_with_parent()
print(os.getpid(), sorted(os.sched_getaffinity(0)), flush=True)
time.sleep(600)
"""
PARENT = """
import os, sys
from pathlib import Path
from seqjax.sweeps.workers import start_worker
command = [sys.executable, "-c", sys.argv[1]]
start_worker(command, Path("log"), len(os.sched_getaffinity(0)), 0)
sys.stdin.read()
"""


def test_a_worker_has_its_share_of_the_cores_and_ends_with_its_parent(tmp_path):
    log, pipe = tmp_path / "log", subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=tmp_path, stdin=pipe)
    wait_for(lambda: log.exists() and log.read_text().endswith("]\n"))
    pid, cores = log.read_text().split(" ", 1)
    assert cores == f"[{min(os.sched_getaffinity(0))}]\n"
    parent.kill()
    parent.communicate()
    wait_for(lambda: not is_alive(int(pid)))


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine, for all tests that need one."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ray = start_ray("")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_s_workers_are_replaced_and_all_end_as_with_one(through, tmp_path, cluster):
    sweep = start_sweep(tmp_path / "sweep", "--executor=ray", "--num_workers=2")
    victim, *_ = holders(tmp_path / "sweep")
    os.kill(victim, signal.SIGKILL)
    out, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0 and errors == "" and "8 trials: 8 finished" in out
    assert_same_sweep(through, tmp_path / "sweep")


@pytest.mark.slow
def test_what_ends_a_task_of_ray_ends_its_worker(cluster, tmp_path):
    """A worker that is asked to stop is; one whose task has died counts as killed."""
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    command = [sys.executable, "-c", f"{code}; time.sleep(600)"]
    worker = RayWorker(cluster, command, tmp_path / LOG, 0, 1)
    assert worker.wait(0.1) is None
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    worker.terminate()
    assert worker.wait(60.0) == -9
    wait_for(lambda: not is_alive(pid))
    killed = RayWorker(cluster, ["sh", "-c", "kill -9 $PPID; sleep 600"], tmp_path / LOG, 0, 1)
    wait_for(lambda: killed.poll() is not None)
    assert killed.poll() == -9


@pytest.mark.slow
def test_a_node_that_does_not_see_the_directory_is_named(tmp_path, cluster):
    worker = RayWorker(cluster, ["true"], tmp_path / "elsewhere" / LOG, 0, 1)
    with pytest.raises(UserError, match=r"^node \S+ does not see .*elsewhere: work in directories"):
        wait_for(lambda: worker.poll() is not None)


@pytest.mark.slow
def test_a_cluster_that_cannot_be_reached_is_named_at_once():
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster at '{address}' .*refused"):
            start_ray(address)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'seqjax\[ray\]'"):
        start_ray("")
