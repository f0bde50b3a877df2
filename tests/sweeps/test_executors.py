"""Who trains the groups of a sweep: the same runs from all, whatever dies meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.same_runs import assert_same_trials
from support.toys import read_json, tiny_config

from seqjax.errors import UserError
from seqjax.sweeps import executors, workers
from seqjax.sweeps import ray as ray_tasks
from seqjax.sweeps.executors import EXECUTORS, local, on_ray, processes
from seqjax.sweeps.trial import Trial
from seqjax.sweeps.workers import Chunk, divide

ROOT = Path(__file__).parents[2]
PATHS = (ROOT, ROOT / "tests", Path(__file__).parent)
NUM_EPOCHS, FOR_EVER = 30, 10**6


def make_trials(directory: Path, num_trials: int = 4, **train) -> list[Trial]:
    """Trials of one group, whose runs are to lie in the directory."""
    trials, train = [], {"num_epochs": NUM_EPOCHS, "num_devices": 5} | train
    for seed in range(num_trials):
        config = tiny_config("word_completion", **train).unlock()
        config.seed, config.optim.learning_rate = seed, 0.01 * (1 + seed)
        trials.append(Trial(config.lock(), directory / f"trial{seed}"))
    return trials


def run(executor: Callable, chunks: list[Chunk], **options) -> list[tuple[str, int]]:
    """Trains all; what the watch was told, as (trial, epoch)."""
    told = []

    def watch(trial, records):
        told.extend((trial.directory.name, record["epoch"]) for record in records)

    ended = list(executor(chunks, watch=watch, **options))
    assert sorted(chunk.workdir for chunk in ended) == sorted(chunk.workdir for chunk in chunks)
    return told


def assert_same_runs(some: Path, other: Path, num_trials: int = 4) -> None:
    """Up to rounding: executors have other numbers of devices."""
    for name in (f"trial{i}" for i in range(num_trials)):
        assert_same_trials(some / name, other / name)


def holder(chunk: Chunk) -> int | None:
    """The process that trains a chunk."""
    lock = chunk.workdir / "lock"
    text = lock.read_text() if lock.exists() else ""
    return int(text.split()[1]) if text else None


def kill_once(chunk: Chunk) -> threading.Thread:
    """Kills the process that will train a chunk, as soon as it does."""

    def kill():
        while (pid := holder(chunk)) is None:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def all_epochs(*names: str, after: int = 0) -> list[tuple[str, int]]:
    return [(name, epoch) for name in names for epoch in range(after + 1, NUM_EPOCHS + 1)]


NAMES = [f"trial{i}" for i in range(4)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Workers that are killed as they compile leave nothing behind in the cache of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        yield


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> Path:
    """The runs that all others are compared with: one chunk, on eight devices."""
    directory = tmp_path_factory.mktemp("through")
    told = run(local, divide(make_trials(directory), 1, directory / "groups"))
    assert sorted(told) == all_epochs(*NAMES)
    return directory


# Division


def test_a_sweep_is_divided_by_group_keys_and_then_evenly():
    trials = make_trials(Path("runs"), 7)
    others = [Trial(c, Path(f"runs/x{c.seed}")) for c, _ in make_trials(Path(), 2, batch_size=5)]
    shuffled = [*trials[:3], *others, *trials[3:]]
    for num_workers, sizes in ((1, [7, 2]), (2, [7, 2]), (3, [4, 3, 2]), (4, [3, 2, 2, 2])):
        chunks = divide(shuffled, num_workers, Path("groups"))
        assert [len(chunk.trials) for chunk in chunks] == sizes
        held = [trial.directory for chunk in chunks for trial in chunk.trials]
        assert sorted(held) == sorted(trial.directory for trial in shuffled)
        assert len({chunk.workdir for chunk in chunks}) == len(sizes)
    assert len(divide(shuffled, 20, Path())) == 9
    assert divide([], 2, Path()) == []


def test_the_same_sweep_finds_its_directories_again():
    there = [c.workdir for c in divide(make_trials(Path("a")), 2, Path("groups"))]
    assert there == [c.workdir for c in divide(make_trials(Path("/b")), 2, Path("groups"))]
    other = make_trials(Path("a"))
    with other[0].config.unlocked():
        other[0].config.optim.learning_rate = 0.5
    assert there[1:] == [c.workdir for c in divide(other, 2, Path("groups"))][1:]
    assert there[0] != divide(other, 2, Path("groups"))[0].workdir


# Processes


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_all_end_as_in_one(through, tmp_path):
    chunks = divide(make_trials(tmp_path), 2, tmp_path / "groups")
    told = run(processes, chunks, num_workers=1, until=10)
    assert sorted(told) == [(name, epoch) for name in NAMES for epoch in range(1, 11)]
    assert not any(chunk.has_ended for chunk in chunks)
    killer = kill_once(chunks[0])
    told = run(processes, chunks, num_workers=2)
    killer.join()
    assert sorted(told) == all_epochs(*NAMES, after=10)  # from the checkpoint on
    assert_same_runs(through, tmp_path)
    assert run(processes, chunks, num_workers=2) == []  # and no process is started


class Doomed(executors.Worker):
    """Is killed when it is given anything to do with trial 3."""

    deaths = 0

    def begin(self, job: str) -> None:
        super().begin(job)
        if "trial3" in job:
            Doomed.deaths += 1
            self.process.kill()


@pytest.mark.slow
def test_a_chunk_whose_processes_all_die_fails_alone(through, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "Worker", Doomed)
    trials = make_trials(tmp_path)
    chunks = divide(trials, 2, tmp_path / "groups")
    told = run(processes, chunks, num_workers=1)
    assert sorted(told) == all_epochs("trial0", "trial1")
    log = tmp_path / "groups.log"
    assert trials[2].failure() == trials[3].failure()
    assert trials[3].failure() == (
        f"3 workers died: the last by SIGKILL, as when memory is short; see {log}"
    )
    assert Doomed.deaths == 3
    assert_same_runs(through, tmp_path, 2)


@pytest.mark.parametrize("executor", [local, processes])
@pytest.mark.slow
def test_a_directory_that_cannot_be_used_ends_no_trial(executor, tmp_path):
    [chunk] = divide(make_trials(tmp_path, 1), 1, tmp_path / "groups")
    chunk.workdir.mkdir(parents=True)
    (chunk.workdir / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and no run: give a new --workdir"):
        run(executor, [chunk])
    assert not chunk.has_ended


# A whole sweep that is disturbed


SWEEP = """
import sys
from pathlib import Path
from seqjax.sweeps.workers import divide
from seqjax.sweeps.executors import processes
from seqjax.cli import launch
from test_executors import FOR_EVER, make_trials

directory = Path(sys.argv.pop())

def main():
    chunks = divide(make_trials(directory, num_epochs=FOR_EVER), 2, directory / "groups")
    watch = lambda trial, records: print(trial.directory.name, records[0]["epoch"], flush=True)
    for chunk in processes(chunks, watch=watch, num_workers=2):
        pass

sys.exit(launch(main))
"""


@contextmanager
def started_sweep(directory: Path) -> Iterator[subprocess.Popen]:
    """The sweep in a process of its own, which leads a group like that of a terminal."""
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(directory)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield sweep
    finally:
        sweep.kill()
        sweep.communicate()


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process, not of this one, runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def read_until_all_train(sweep: subprocess.Popen) -> dict[str, int]:
    """The first epoch of each chunk's first trial."""
    epochs = {}
    while not {"trial0", "trial2"} <= epochs.keys():
        line = sweep.stdout.readline()
        assert line, sweep.stderr.read()
        name, epoch = line.split()
        epochs.setdefault(name, int(epoch))
    return epochs


def saved_steps(chunks: list[Chunk]) -> list[int]:
    return [max(map(int, os.listdir(chunk.workdir / "checkpoints"))) for chunk in chunks]


@pytest.mark.slow
def test_a_sweep_is_stopped_by_ctrl_c_and_by_a_kill_and_goes_on(tmp_path):
    chunks = divide(make_trials(tmp_path, num_epochs=FOR_EVER), 2, tmp_path / "groups")
    with started_sweep(tmp_path) as sweep:
        assert set(read_until_all_train(sweep).values()) == {1}
        pids = [holder(chunk) for chunk in chunks]
        os.killpg(sweep.pid, signal.SIGINT)
        _, err = sweep.communicate(timeout=60)  # its trials would be trained for ever
    assert sweep.returncode == 130
    assert err.splitlines() == [
        "SIGINT: saving, then exiting; once more exits at once",
        "stopped; what was trained is saved: the same command resumes there",
    ]
    assert not any(map(is_alive, pids))
    steps = saved_steps(chunks)

    with started_sweep(tmp_path) as sweep:
        first = read_until_all_train(sweep)
        pids = [holder(chunk) for chunk in chunks]
    for epoch, step in zip((first["trial0"], first["trial2"]), steps, strict=True):
        assert epoch in (step, step + 1)  # an epoch is a step here, and was told or not
    wait_for(lambda: not any(map(is_alive, pids)), seconds=60)
    assert all(new >= old for new, old in zip(saved_steps(chunks), steps, strict=True))


def test_two_devices_at_least_train_a_group(monkeypatch):
    asked = []
    monkeypatch.setattr(workers, "start_jax", lambda train, num_devices: asked.append(num_devices))
    for num_cores in (0, 1, 2, 5):
        workers.start_devices(tiny_config("word_completion").train, num_cores)
    assert asked == [2, 2, 2, 5]


# Mistakes, ours and others'


def test_what_goes_wrong_in_a_chunk_is_told_by_its_trials(tmp_path, monkeypatch):
    trials = make_trials(tmp_path, 2)
    chunks = divide(trials, 2, tmp_path / "groups")

    def train_group(trials, *args, **options):
        if trials[0].directory.name == "trial0":
            raise RuntimeError("two\nlines")

    monkeypatch.setattr(workers, "train_group", train_group)
    run(local, chunks)
    assert [trial.failure() for trial in trials] == ["RuntimeError: two lines", ""]
    assert read_json(trials[0].directory / "config.json")["seed"] == 0


@pytest.mark.slow
def test_a_group_that_another_process_trains_is_waited_for(tmp_path, monkeypatch):
    [chunk] = divide(make_trials(tmp_path, 1), 1, tmp_path / "groups")
    monkeypatch.setattr(workers, "IN_USE_SECONDS", 0.5)
    code = "import sys; from pathlib import Path; from seqjax.runs.workdir import lock_workdir\n"
    code += "with lock_workdir(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(chunk.workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"is in use by process {other.pid}"):
            run(local, [chunk])
        other.stdin.close()
    assert not chunk.has_ended  # it did not fail


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine, for all tests that need one."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ray = ray_tasks.start_ray("", 2)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_replaces_a_worker_and_all_end_as_in_one(through, tmp_path, monkeypatch, cluster):
    chunks = divide(make_trials(tmp_path), 2, tmp_path / "groups")
    run(local, chunks, until=10)  # on eight devices, and then on two
    victim, died = str(chunks[0].workdir), tmp_path / "died"

    def once(job):
        if victim in job and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ray_tasks.do_job_on_node(job)

    monkeypatch.setattr(ray_tasks, "do_job_on_node", once)
    assert sorted(run(on_ray, chunks)) == all_epochs(*NAMES, after=10)
    assert died.exists()
    assert_same_runs(through, tmp_path)


@pytest.mark.slow
def test_a_chunk_whose_ray_workers_all_die_fails_alone(tmp_path, monkeypatch, cluster, capfd):
    trials = make_trials(tmp_path, 2)
    chunks = divide(trials, 2, tmp_path / "groups")

    def doomed(job):
        if "trial1" in job:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"failed": ""}, []

    monkeypatch.setattr(ray_tasks, "do_job_on_node", doomed)
    run(on_ray, chunks)
    assert trials[0].failure() == ""
    assert trials[1].failure().startswith("3 workers died: The worker died unexpectedly")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_node_that_does_not_see_the_directory_is_named(tmp_path, monkeypatch, cluster):
    chunks = divide(make_trials(tmp_path, 1), 1, tmp_path / "groups")
    monkeypatch.setattr(
        ray_tasks,
        "do_job_on_node",
        lambda job: ray_tasks.do_job_on_node(job.replace("groups", "elsewhere")),
    )
    with pytest.raises(UserError, match=r"node \S+ does not see .*elsewhere.*: give a directory"):
        run(on_ray, chunks)
    assert not chunks[0].has_ended


@pytest.mark.slow
def test_more_cpus_than_a_node_has_are_refused(cluster):
    with pytest.raises(UserError, match="num_cpus=3: no node of the Ray cluster has more than 2"):
        run(on_ray, [], num_cpus=3)


@pytest.mark.slow
def test_a_cluster_that_cannot_be_reached_is_named_at_once(monkeypatch):
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster at '{address}' .*refused"):
            list(on_ray([], address=address))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'seqjax\[ray\]'"):
        list(EXECUTORS["ray"]([]))
