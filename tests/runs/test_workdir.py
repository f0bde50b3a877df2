"""Run directories: one process at a time, and whose run they hold."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import jax
import pytest
from support.toys import linear_config, read_json

import seqjax.runs.workdir
from seqjax.distributed.choices import Choice
from seqjax.errors import UserError
from seqjax.files import write_json
from seqjax.runs.identity import Identity, kept_choice
from seqjax.runs.workdir import (
    WorkdirLocked,
    earlier_identities,
    environment,
    load_run_config,
    lock_workdir,
    other_packages,
    record_change,
    save_identity,
    saved_identity,
)

CHOICE = {"num_devices": 1, "microbatch_size": 32, "source": "rule"}
FINGERPRINT = {"choice": CHOICE, "data": {"train": "ab"}, "files": {}, "devices": "1 x cpu"}
IDENTITY = Identity(json.loads(linear_config().to_json()), FINGERPRINT)


def fail(line: str) -> None:
    raise AssertionError(line)


def test_what_was_saved_comes_back(tmp_path):
    save_identity(tmp_path, IDENTITY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "environment.json",
        "fingerprint.json",
    }
    assert load_run_config(tmp_path, fail).to_dict() == linear_config().to_dict()
    assert saved_identity(tmp_path, fail) == IDENTITY
    assert read_json(tmp_path / "environment.json") == {**environment(), "choice": CHOICE}


@pytest.mark.parametrize(
    "found",
    [None, [], {}, {"num_devices": 1}]
    + [CHOICE | change for change in ({"num_devices": 0}, {"microbatch_size": -1}, {"more": 1})]
    + [CHOICE | {"num_devices": size} for size in ("2", None, [2], 1.5)],
)
def test_a_damaged_choice_is_not_kept(found):
    assert kept_choice(IDENTITY) == Choice(**CHOICE)
    assert kept_choice(Identity({}, FINGERPRINT | {"choice": found})) is None


def test_nobody_begun_nothing_in_a_new_directory(tmp_path):
    assert saved_identity(tmp_path / "new", fail) is None
    with lock_workdir(tmp_path / "some" / "where"):
        assert saved_identity(tmp_path / "some" / "where", fail) is None
    with lock_workdir(tmp_path / "some" / "where"):  # an empty one will do, and again
        pass


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    told = "is not empty and no run: give a new --workdir"
    with pytest.raises(UserError, match=told), lock_workdir(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_changes_are_recorded_with_what_was_before(tmp_path):
    save_identity(tmp_path, IDENTITY)
    write_json(tmp_path / "result.json", {"loss": 1.5})
    record_change(tmp_path, 12, ["seed: 0 -> 1"], IDENTITY)
    record_change(tmp_path, 20, ["seed: 1 -> 2"], IDENTITY)
    assert not (tmp_path / "result.json").exists()
    first, second = map(json.loads, (tmp_path / "changes.jsonl").read_text().splitlines())
    assert (first["step"], first["changed"]) == (12, ["seed: 0 -> 1"])
    assert first["result"] == {"loss": 1.5} and second["result"] is None
    assert earlier_identities(tmp_path) == [IDENTITY, IDENTITY]
    (tmp_path / "changes.jsonl").write_text('{"step', encoding="utf-8")
    with pytest.raises(UserError, match=r"changes.jsonl is damaged \("):
        earlier_identities(tmp_path)


def test_other_packages_are_named(tmp_path):
    save_identity(tmp_path, IDENTITY)
    assert other_packages(tmp_path) == []
    old = environment()
    old["packages"]["jax"] = "0.0.1"
    write_json(tmp_path / "environment.json", old)
    assert other_packages(tmp_path) == [f"jax: '0.0.1' -> {jax.__version__!r}"]


def hold_elsewhere(workdir: Path) -> subprocess.Popen:
    """A process that works in a directory until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from seqjax.runs.workdir import lock_workdir\n"
        "with lock_workdir(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(workdir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    process.stdout.readline()
    return process


def test_a_locked_directory_is_refused_until_its_owner_dies(tmp_path):
    with hold_elsewhere(tmp_path) as other:
        with pytest.raises(UserError) as caught, lock_workdir(tmp_path):
            pass
        where = f"process {other.pid} on {socket.gethostname()}"
        assert str(caught.value).startswith(f"{tmp_path} is in use by {where}: wait for it")
        other.kill()
        other.wait()
        assert str(other.pid) in (tmp_path / "lock").read_text(encoding="utf-8")
        with lock_workdir(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / "lock").read_text(encoding="utf-8")
    assert (tmp_path / "lock").read_text(encoding="utf-8") == ""


def test_a_deleted_lock_file_lets_nobody_in(tmp_path):
    with hold_elsewhere(tmp_path) as other:
        (tmp_path / "lock").unlink()
        told = "is in use by another process: wait for it"
        with pytest.raises(WorkdirLocked, match=told), lock_workdir(tmp_path):
            pass
        other.kill()
    with lock_workdir(tmp_path):
        pass


def test_a_lock_file_that_is_replaced_is_locked_anew(tmp_path, monkeypatch):
    """As where the directory of a group is removed between opening the file and locking it."""
    take, taken = seqjax.runs.workdir._take, []

    def replace(lock, workdir, end):
        if not taken:
            (tmp_path / "lock").unlink()
        taken.append(lock)
        return take(lock, workdir, end)

    monkeypatch.setattr(seqjax.runs.workdir, "_take", replace)
    with lock_workdir(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text(encoding="utf-8")
        assert len(taken) == 2


def test_a_lock_is_waited_for(tmp_path):
    with hold_elsewhere(tmp_path) as other:
        threading.Timer(0.3, other.kill).start()
        with lock_workdir(tmp_path, wait_seconds=60) as killed:
            assert killed.startswith(f"process {other.pid} on ")
    with lock_workdir(tmp_path) as killed:
        assert killed == ""


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_directory(inside, tmp_path):
    path = tmp_path / "file"
    path.touch()
    told = "is, or lies in, a file: give a directory"
    with pytest.raises(UserError, match=told), lock_workdir(path / "run" if inside else path):
        pass


@pytest.mark.parametrize("method", ["mkdir", "open"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_directory_that_cannot_be_written_is_one_line(method, number, tmp_path, monkeypatch):
    refuse = mock.Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError) as caught, lock_workdir(tmp_path / "run"):
        pass
    reason = os.strerror(number)
    assert str(caught.value).startswith(f"cannot write to {tmp_path / 'run'} ({reason}): make ")


def test_the_environment_names_versions_devices_and_commit(monkeypatch):
    found = environment()
    names = {"python", "platform", "packages", "devices", "matrix_precision", "commit"}
    assert set(found) == names
    assert found["packages"]["jax"] == jax.__version__
    assert len(found["devices"]) == len(jax.devices())
    assert found["commit"] is None or len(found["commit"]) == 40

    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] is None
