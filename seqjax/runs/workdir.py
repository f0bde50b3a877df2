"""The directory of one run: who works in it, and whose run it holds."""

import contextlib
import fcntl
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from seqjax.config import differing_fields, load_config, make_config
from seqjax.errors import TRACEBACK_HINT, UserError, is_from_user_code
from seqjax.files import MAX_JSON_MEGABYTES, json_text, read_bounded, read_json, write_json
from seqjax.runs.checkpoint import newest_facts, steps_in
from seqjax.runs.identity import Identity, is_identity

CONFIG, FINGERPRINT, ENVIRONMENT = "config.json", "fingerprint.json", "environment.json"
CHECKPOINTS, RESULT, CHANGES, LOCK = "checkpoints", "result.json", "changes.jsonl", "lock"
_POLL_SECONDS = 0.05  # between two attempts to lock a directory
PACKAGES = ("seqjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class WorkdirLocked(UserError):
    """Another process trains in a directory."""


@contextlib.contextmanager
def lock_workdir(workdir: Path, wait_seconds: float = 0.0) -> Generator[str]:
    """Makes the directory, if need be, and keeps every other process from training in it.

    The system releases the lock when a process ends, however it ends. Yields the name of the last
    process that was killed while it held the lock, otherwise "". Raises UserError if the directory
    holds something else or cannot be written, and WorkdirLocked if another process holds the lock
    for longer than `wait_seconds`.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / LOCK).exists() and not is_run(workdir) and any(workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and no run: give a new --workdir")
        end = time.monotonic() + wait_seconds
        with contextlib.ExitStack() as stack:
            while True:
                lock = stack.enter_context((workdir / LOCK).open("a+", encoding="utf-8"))
                killed = _take(lock, workdir, end)
                if _is_at(lock, workdir / LOCK):  # otherwise it has been deleted meanwhile
                    break
            stack.enter_context(_locked_directory(workdir, end))
            try:
                yield killed
            finally:
                lock.truncate(0)
    except OSError as error:
        if is_from_user_code(error):
            raise
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise UserError(
                f"{workdir} is, or lies in, a file: give a directory as --workdir"
            ) from None
        raise UserError(
            f"cannot write to {workdir} ({error.strerror or error}): make it writable or make "
            "room, and the same command goes on from the last checkpoint; or give another "
            f"--workdir {TRACEBACK_HINT}"
        ) from None


def _take(lock: Any, workdir: Path, end: float) -> str:
    """Locks the open file and writes into it who holds it; returns who was killed holding it."""

    def holder() -> str:
        lock.seek(0)
        return lock.read().strip()

    _wait_for(lock.fileno(), workdir, end, holder)
    lock.seek(0)
    killed = lock.read().strip()
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return killed


def _wait_for(descriptor: int, workdir: Path, end: float, holder: Callable[[], str]) -> None:
    """Locks a file or directory; raises WorkdirLocked if another process holds it to the end."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise WorkdirLocked(
                    f"{workdir} is in use by {holder() or 'another process'}: wait for it, stop "
                    "it, or give another --workdir"
                ) from None
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _locked_directory(workdir: Path, end: float) -> Generator[None]:
    """Locks the directory itself too, where the file system can: the lock file may be deleted."""
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _wait_for(descriptor, workdir, end, str)
        yield
    finally:
        os.close(descriptor)


def _is_at(file: Any, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def is_run(workdir: Path) -> bool:
    """Whether a directory is one of a run."""
    return any((workdir / name).exists() for name in (CONFIG, FINGERPRINT, CHECKPOINTS))


def saved_identity(workdir: Path, say: Callable[[str], None]) -> Identity | None:
    """Whose run a directory holds; None if none was begun.

    What a damaged file should say is taken from the newest checkpoint, and told. Raises UserError
    where there is none.
    """
    try:
        saved = Identity(read_json(workdir / CONFIG), read_json(workdir / FINGERPRINT))
        if not is_identity(saved):
            raise UserError(f"{workdir / CONFIG} or {FINGERPRINT} is damaged: it is no JSON object")
        return saved
    except UserError as damage:
        saved = _identity_of_checkpoints(workdir)
        if saved:
            say(f"{damage}; it is taken from the newest checkpoint")
            return saved
        begun = (workdir / CONFIG).exists() and (workdir / FINGERPRINT).exists()
        if begun or steps_in(workdir / CHECKPOINTS):
            raise UserError(
                f"{damage}, and no checkpoint is whole: restore it from a copy, or give a new "
                "--workdir"
            ) from None
        return None


def load_run_config(workdir: Path, say: Callable[[str], None]) -> ConfigDict:
    """The config of a run, from its file or else from its newest checkpoint; or a UserError."""
    try:
        return load_config(workdir / CONFIG)
    except UserError as damage:
        if saved := _identity_of_checkpoints(workdir):
            say(f"{damage}; it is taken from the newest checkpoint")
            return make_config(saved.config)
        raise


def save_identity(workdir: Path, identity: Identity) -> None:
    """Writes whose run the directory holds, and what it runs on."""
    if not (workdir / ENVIRONMENT).exists():
        found = environment(identity.config["train"]["compute_dtype"])
        write_json(workdir / ENVIRONMENT, found | {"choice": identity.fingerprint["choice"]})
    write_json(workdir / CONFIG, identity.config)
    write_json(workdir / FINGERPRINT, identity.fingerprint)


def other_packages(workdir: Path) -> list[str]:
    """`package: old -> new` for each that is not as it was when the run was begun."""
    try:
        return differing_fields(read_json(workdir / ENVIRONMENT)["packages"], _packages())
    except (UserError, TypeError, KeyError):
        return []  # not worth an end: nothing is computed from it


def record_change(workdir: Path, step: int, changed: list[str], old: Identity) -> None:
    """Adds a line to changes.jsonl: from which step on what is different, and what was before."""
    result = read_json(workdir / RESULT) if (workdir / RESULT).exists() else None
    entry = {"step": step, "changed": changed, **old._asdict(), "result": result}
    with (workdir / CHANGES).open("a", encoding="utf-8") as file:
        file.write(json_text(entry) + "\n")
    (workdir / RESULT).unlink(missing_ok=True)


def earlier_identities(workdir: Path) -> list[Identity]:
    """The identities that the run had before changes that were allowed."""
    if not (workdir / CHANGES).exists():
        return []
    try:
        text = read_bounded(
            workdir / CHANGES, MAX_JSON_MEGABYTES, "it is not a file of a run"
        ).decode()
        entries = [json.loads(line) for line in text.splitlines()]
        return [Identity(**{k: entry[k] for k in Identity._fields}) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{workdir / CHANGES} is damaged ({error}): restore it from a copy, or delete it to "
            "use only checkpoints of the present config"
        ) from None


def environment(compute_dtype: str = "float32") -> dict[str, Any]:
    """What a run depends on: versions, devices, machine, matrix precision and git commit."""
    precision: Any = jax.config.jax_default_matmul_precision  # ty: ignore[missing-attribute]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "matrix_precision": {
            "compute_dtype": compute_dtype,
            "jax_default_matmul_precision": precision or "default",
        },
        "commit": _commit(),
    }


def _identity_of_checkpoints(workdir: Path) -> Identity | None:
    facts = newest_facts(workdir / CHECKPOINTS)
    found = Identity(facts["config"], facts["fingerprint"]) if facts else None
    return found if found and is_identity(found) else None


def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is in; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
