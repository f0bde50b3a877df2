"""Checkpoints of a run, through Orbax.

Each one is whole: the arrays, and beside them all that belongs to them, as a JSON object ("facts").
So one alone is all that resuming needs. Orbax checks no sums; here every checkpoint carries the
SHA-256 digests of its files, written before the rename that makes it a checkpoint.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from functools import cache
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.distributed.packing import layout, pack, unpack
from seqjax.errors import UserError
from seqjax.files import json_text, read_json, sha256, write_json

NUM_LATEST = 2  # kept beside the best one
DIGESTS, ARRAYS, FACTS = "digests.json", "arrays", "facts"
# Orbax stamps these after the digests were taken, and reading needs neither.
STAMPS = {"_CHECKPOINT_METADATA", "commit_success.txt"}


class Checkpoint(NamedTuple):
    """One checkpoint that holds what it should."""

    step: int
    arrays: Any
    facts: dict[str, Any]


class Damaged(Exception):
    """A directory that is no whole checkpoint of this run; the message says why."""


class Checkpoints:
    """Writes checkpoints into a directory, by step, in the background.

    The latest are kept and the one of the best evaluation so far.
    """

    def __init__(self, directory: Path):
        import orbax.checkpoint as ocp  # a second of imports: only where it is used

        self._args = ocp.args
        self._best_step: int | None = None
        policy = ocp.checkpoint_managers.AnyPreservationPolicy(
            [ocp.checkpoint_managers.LatestN(NUM_LATEST), self]
        )
        directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                cleanup_tmp_directories=True,
                # Process 0 writes alone, and waits for no other.
                create=False,
                multiprocessing_options=_alone(),
                # In the background, a directory that cannot be made is waited for, for ever.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                temporary_path_class=_digested_path(),
            ),
        )

    def prepare(
        self, step: int, arrays: Any, facts: dict[str, Any], best_step: int
    ) -> Callable[[], None]:
        """Copies a nest of arrays and a JSON object; the function that starts to write them.

        So the devices may go on, and overwrite the arrays, before any file is made. `best_step` is
        not to be deleted. The function raises UserError if the save before it failed.
        """
        args = self._args
        arrays = jax.device_get(arrays)
        buffer = pack(arrays)
        # With its step, so that no directory can pass for another.
        whole = json.loads(json_text({"step": step, "layout": layout(arrays), **facts}))
        items = {ARRAYS: args.StandardSave({"bytes": buffer}), FACTS: args.JsonSave(whole)}

        def save() -> None:
            self._best_step = best_step
            with _failures():
                if step in self._manager.all_steps():  # saved before it was evaluated
                    self._manager.delete(step)
                saved = self._manager.save(step, args=args.Composite(**items))
            assert saved, f"step {step} is not later than every checkpoint"

        return save

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's question which ones to keep, beside the latest."""
        return [checkpoint.step == self._best_step for checkpoint in checkpoints]

    def close(self) -> None:
        """Waits for the last save; raises UserError if it failed."""
        with _failures():
            self._manager.wait_until_finished()
        self._manager.close()


class NoCheckpoints(Checkpoints):
    """What the processes beside process 0 write."""

    def __init__(self) -> None: ...
    def close(self) -> None: ...
    def prepare(self, *args: Any, **options: Any) -> Callable[[], None]:
        return lambda: None


def newest(
    directory: Path, like: Any, is_foreign: Callable[[dict[str, Any]], str], say: Callable
) -> Checkpoint | None:
    """The newest checkpoint that is whole, its arrays shaped `like`; None if there is none at all.

    `like` is a dict with some or all of the arrays that were saved: the others are not returned.
    `is_foreign` says of a checkpoint's facts why they are not this run's, or "". What is passed
    over is told to `say`, a line each. Raises UserError if there are checkpoints but no whole one.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is no directory: remove it, or give a new --workdir")
    passed_over = []
    for path in steps_in(directory):
        try:
            facts = read_facts(path)
            if reason := is_foreign(facts):
                raise Damaged(f"it belongs to another run ({reason})")
            found = Checkpoint(int(path.name), _read_arrays(path, facts, like), facts)
        except Damaged as damage:
            passed_over.append(f"checkpoint {path} cannot be used: {damage}")
            continue
        for line in passed_over:
            say(f"{line}; going back to step {found.step}")
        return found
    if passed_over:
        raise UserError(
            f"{'; '.join(passed_over)}; no whole one is left: restore one from a copy, or train "
            "in a new --workdir"
        )
    return None


def newest_facts(directory: Path) -> dict[str, Any] | None:
    """The facts of the newest whole checkpoint of whatever run; None without one."""
    for path in steps_in(directory):
        with contextlib.suppress(Damaged):
            return read_facts(path)
    return None


def read_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's facts; raises Damaged unless its files are those that were written."""
    if not path.is_dir():
        raise Damaged("it is no directory")
    if not any(path.iterdir()):
        raise Damaged("it is empty")
    try:
        digests = read_json(path / DIGESTS)
        links = [p for p in path.rglob("*") if p.is_symlink()]
        files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
        if links:
            raise Damaged(f"{links[0].relative_to(path)} is a link")
        for name in sorted({*digests, *files} - STAMPS - {DIGESTS}):
            if name not in files:
                raise Damaged(f"{name} is missing")
            if name not in digests:
                raise Damaged(f"{name} does not belong to it")
            if sha256(path / name) != digests[name]:
                raise Damaged(f"{name} is not as it was written (SHA-256)")
        facts = read_json(path / FACTS / "metadata")
        if facts["step"] != int(path.name):
            raise Damaged(f"it is the one of step {facts['step']}")
        return facts
    except UserError as error:
        raise Damaged(str(error).removeprefix(f"{path}/")) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(getattr(error, "strerror", None) or str(error)) from None


def set_aside_after(directory: Path, step: int) -> None:
    """Renames what claims to be a checkpoint of a later step: the run will write that one anew."""
    for path in steps_in(directory):
        if int(path.name) > step:
            aside = path.with_name(f"{path.name}.damaged")
            if aside.is_dir():
                shutil.rmtree(aside)
            path.rename(aside)


def steps_in(directory: Path) -> list[Path]:
    """What has the name of a step, newest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (path for path in directory.iterdir() if path.name.isdecimal()),
        key=lambda path: -int(path.name),
    )


def _read_arrays(path: Path, facts: dict[str, Any], like: Any) -> Any:
    import orbax.checkpoint as ocp

    expected, stored = layout(like), facts["layout"]
    used = [name.split(".")[0] in like for name, *_ in stored]
    both = zip_longest(compress(stored, used), expected, fillvalue=["nothing"])
    for there, here in both:
        if there != here:
            raise Damaged(f"it holds {' '.join(map(str, there))}, not {' '.join(map(str, here))}")
    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for _, dtype, shape in stored]
    host = {"bytes": np.empty(sum(sizes), np.uint8)}
    try:
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
        arrays = ocp.Checkpointer(handler, multiprocessing_options=_alone()).restore(
            (path / ARRAYS).absolute(), args=ocp.args.StandardRestore(host)
        )
    except Exception as error:  # Orbax and TensorStore raise all kinds
        raise Damaged(str(error).strip().splitlines()[0]) from None
    ends = np.cumsum(sizes)
    parts = [
        arrays["bytes"][end - n : end] for n, end in compress(zip(sizes, ends, strict=True), used)
    ]
    return unpack(np.concatenate(parts), like)


def _alone() -> Any:
    """Orbax' word for a process that neither waits for others nor is waited for."""
    import orbax.checkpoint as ocp

    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})


@cache
def _digested_path() -> Any:
    """The class of what is no checkpoint yet: it gets its digests, then its name."""
    from orbax.checkpoint.path import atomicity

    class DigestedPath(atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            directory = Path(self.get())
            if self.get_final().name.isdecimal():  # not for each of its items
                files = [path for path in directory.rglob("*") if path.is_file()]
                names = {path.relative_to(directory).as_posix(): path for path in files}
                digests = {name: sha256(names[name]) for name in sorted(names.keys() - STAMPS)}
                write_json(directory / DIGESTS, digests)
            await super().finalize()

    return DigestedPath


@contextlib.contextmanager
def _failures() -> Generator[None]:
    """Whatever a save raises, as one line: a run that cannot be saved must not go on."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise all kinds
        code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
        reason = reason or str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot save a checkpoint: {reason}; the one before it stays: make room, and the same "
            "command resumes from there"
        ) from error
