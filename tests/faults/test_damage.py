"""Damaged run directories: what is wrong is named in one line, and the newest good state used.

Each case damages a copy of one run, which was killed in its last epoch, and launches it again. A
run that goes on must end with the bits of one that was never stopped; one that is refused must
stay as it is.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from absl import flags
from support.processes import different_bits
from support.toys import linear_config, linear_task

import seqjax.plots
from seqjax.cli import launch
from seqjax.tasks.base import Task
from seqjax.training.fit import fit
from seqjax.training.logger import MetricLogger

# The checkpoints of the killed run: the latest two, and that of the best epoch.
NEWEST, BEFORE, BEST = "checkpoints/20", "checkpoints/16", "checkpoints/12"
FROM_START = 0


def task_with_vocabulary(directory_text: str = '{"a": 1}', task: Task | None = None) -> Task:
    """The linear task, with a file that is fitted to its data."""

    def save(directory: Path) -> list[Path]:
        (directory / "vocabulary.json").write_text(directory_text, encoding="utf-8")
        return [directory / "vocabulary.json"]

    return (task or linear_task())._replace(save_fitted=save)


def config(**fields: Any):
    """A config whose third epoch is the best, saved after every epoch."""
    made = linear_config(checkpoint_every_epochs=1, monitor="valid.accuracy", monitor_mode="max")
    with made.unlocked():
        made.seed = 6
        made.update(fields)
    return made


TASK = task_with_vocabulary()


class Killed(BaseException):
    """What no `except Exception` catches."""


def run_until_the_last_epoch(workdir: Path, task: Task = TASK, **fields: Any) -> None:
    """A run that dies before its last checkpoint is written."""
    add = MetricLogger.add

    def add_and_die(self, records):
        add(self, records)
        if records[-1]["epoch"] == 6:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MetricLogger, "add", add_and_die)
        fit(task, config(**fields), workdir)


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
        patch.setattr(sys, "argv", ["train"])  # `launch` would read pytest's own
        patch.setattr(flags, "FLAGS", flags.FlagValues())  # and other tests' flags
        yield


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("through") / "run"
    fit(TASK, config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed, and runs beside it that are another's."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    run_until_the_last_epoch(workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "16", "20"]
    run_until_the_last_epoch(workdir.with_name("seed"), seed=1)
    run_until_the_last_epoch(workdir.with_name("rate"), optim=dict(learning_rate=0.01))
    fewer = linear_task({"train": 23, "valid": 9, "test": 5})
    run_until_the_last_epoch(workdir.with_name("data"), task_with_vocabulary(task=fewer))
    return workdir


# Ways of damage, of a file or directory


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def into_file(path: Path) -> None:
    remove(path)
    path.touch()


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path) -> None:

    elsewhere = Path(str(path.resolve().parent.parent.parent) + ".elsewhere")
    shutil.copytree(path, elsewhere)
    shutil.rmtree(path)
    path.symlink_to(elsewhere)


def write(text: str, mode: str = "w") -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)

    return damage


def beside(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: write(text)(path.with_name(name))


def edit(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        fields = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(fields | {key: value}), encoding="utf-8")

    return change


def copy_of(other: str, step: str) -> Callable[[Path], None]:
    """Puts a checkpoint of a run (beside this one's original) where another one is, or none."""

    def copy(path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)
        shutil.copytree(path.parents[1] / ".." / other / "checkpoints" / step, path)

    return copy


class Case(NamedTuple):
    what: str  # glob of the files, of which the largest is damaged
    damage: Callable[[Path], None]
    goes_on_at: int | None  # the step; None if the run is refused
    told: str  # of the line that says so; "" if there is nothing to say


PASSED = "checkpoints/20 cannot be used: "
CASES = {
    # a file of a checkpoint
    "a bit of the weights": Case(f"{NEWEST}/arrays/*/d/*", flip, 16, PASSED + "arrays/"),
    "half of the weights": Case(f"{NEWEST}/arrays/*/d/*", halve, 16, PASSED + "arrays/"),
    "no weights": Case(f"{NEWEST}/arrays/*/d/*", empty, 16, PASSED + "arrays/"),
    "a file of weights gone": Case(f"{NEWEST}/arrays/*/d/*", remove, 16, "is missing"),
    "weights a directory": Case(f"{NEWEST}/arrays/*/d/*", into_directory, 16, "is missing"),
    "all weights gone": Case(f"{NEWEST}/arrays", remove, 16, "is missing"),
    "weights are a link": Case(f"{NEWEST}/arrays", into_link, 16, "arrays is a link"),
    "a bit of the tree": Case(f"{NEWEST}/arrays/_METADATA", flip, 16, "arrays/_METADATA is not"),
    "a bit of the index": Case(f"{NEWEST}/arrays/manifest.ocdbt", flip, 16, "manifest.ocdbt is no"),
    "a bit of the facts": Case(f"{NEWEST}/facts/metadata", flip, 16, "facts/metadata is not as it"),
    "half of the facts": Case(f"{NEWEST}/facts/metadata", halve, 16, "facts/metadata is not as it"),
    "the facts gone": Case(f"{NEWEST}/facts", remove, 16, "facts/commit_success.txt is missing"),
    "a bit of the digests": Case(f"{NEWEST}/digests.json", flip, 16, PASSED),
    "the digests gone": Case(f"{NEWEST}/digests.json", remove, 16, "digests.json does not exist"),
    "digests are a list": Case(f"{NEWEST}/digests.json", write("[]"), 16, PASSED),
    "digests of depth 1e5": Case(f"{NEWEST}/digests.json", write("[" * 10**5), 16, PASSED),
    "digests of elsewhere": Case(
        f"{NEWEST}/digests.json", edit("../../config.json", "0"), 16, "../../config.json is missing"
    ),
    "a bit of Orbax's stamp": Case(f"{NEWEST}/_CHECKPOINT_METADATA", flip, 20, ""),
    "Orbax's stamps gone": Case(f"{NEWEST}/commit_success.txt", remove, 20, ""),
    "a file too many": Case(f"{NEWEST}/arrays", lambda p: (p / "x").touch(), 16, "arrays/x does"),
    # a whole checkpoint
    "an empty directory": Case(NEWEST, empty, 16, "it is empty"),
    "an empty later step": Case(
        "checkpoints", lambda p: (p / "24").mkdir(), 20, "checkpoints/24 cannot be used: it is emp"
    ),
    "a file of that name": Case(NEWEST, into_file, 16, "it is no directory"),
    "the newest gone": Case(NEWEST, remove, 16, ""),
    "a save that was cut off": Case(
        "checkpoints", lambda p: shutil.copytree(p / "20", p / "24.orbax-checkpoint-tmp"), 20, ""
    ),
    "strange names": Case("checkpoints", lambda p: (p / "best").mkdir(), 20, ""),
    "an older step's copy": Case(NEWEST, copy_of("run", "16"), 16, "it is the one of step 16"),
    "another seed's": Case(NEWEST, copy_of("seed", "20"), 16, "another run (seed: 1 -> 6)"),
    "another rate's": Case(NEWEST, copy_of("rate", "20"), 16, "learning_rate: 0.01 -> 0.05"),
    "other data's": Case(NEWEST, copy_of("data", "20"), 16, "the rows of train"),
    "the two latest": Case("checkpoints/[12][06]/facts/m*", flip, 12, "16 cannot be used: facts/"),
    "all of them": Case("checkpoints/*/facts/metadata", flip, None, "no whole one is left: resto"),
    "no checkpoints": Case("checkpoints", remove, FROM_START, ""),
    "checkpoints a file": Case("checkpoints", into_file, None, "checkpoints is no directory"),
    # the run's own files
    "config gone": Case("config.json", remove, 20, "config.json does not exist; it is taken from"),
    "half a config": Case("config.json", halve, 20, "config.json is damaged: "),
    "an empty config": Case("config.json", empty, 20, "config.json is damaged: "),
    "config of depth 1e5": Case("config.json", write("[" * 10**5), 20, "config.json is damaged: "),
    "config a list": Case("config.json", write("[1]"), 20, "it is no JSON object; it is taken"),
    "config not UTF-8": Case("config.json", lambda p: p.write_bytes(b"\xff{}"), 20, "damaged: "),
    "config edited": Case("config.json", edit("seed", 7), None, "other data (seed: 7 -> 6)"),
    "config a directory": Case("config.json", into_directory, None, "(Is a directory): make it"),
    "fingerprint gone": Case("fingerprint.json", remove, 20, "fingerprint.json does not exist; it"),
    "half a fingerprint": Case("fingerprint.json", halve, 20, "fingerprint.json is damaged: "),
    "devices edited": Case("fingerprint.json", edit("devices", "8 x cpu"), None, "8 x cpu -> 1 x"),
    "environment gone": Case("environment.json", remove, 20, ""),
    "half an environment": Case("environment.json", halve, 20, ""),
    "vocabulary edited": Case("vocabulary.json", write("{}"), None, "(the file vocabulary.json)"),
    "vocabulary gone": Case("vocabulary.json", remove, None, "(the file vocabulary.json): give"),
    "records gone": Case("metrics.jsonl", remove, 20, ""),
    "half of the records": Case("metrics.jsonl", halve, 20, ""),
    "records twice": Case("metrics.jsonl", write('{"epoch": 6}\n' * 2, "a"), 20, ""),
    "records a directory": Case("metrics.jsonl", into_directory, None, "Is a directory"),
    "events gone": Case("events.out.*", remove, 20, ""),
    "noise as events": Case("events.out.*", write("\0\1"), 20, ""),
    "noise in the lock": Case("lock", write("process 1 on elsewhere\n"), 20, ""),
    "lock a directory": Case("lock", into_directory, None, "Is a directory"),
    "changes of noise": Case("lock", beside("changes.jsonl", '{"st'), None, "is damaged ("),
    "half a result": Case("lock", beside("result.json", '{"tes'), 20, "result.json is damaged: "),
}


def contents(workdir: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(workdir)): path.read_bytes() if path.is_file() else None
        for path in sorted(workdir.rglob("*"))
    }


def test_forty_ways_and_more():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_run_goes_on_or_is_refused(
    name, killed, through, tmp_path, capfd, record_property
):
    case, workdir = CASES[name], tmp_path / "run"
    shutil.copytree(killed, workdir)
    for other in ("seed", "rate", "data"):
        (tmp_path / other).symlink_to(killed.with_name(other))
    damaged = sorted(workdir.glob(case.what), key=lambda p: p.stat().st_size)
    for path in damaged if "checkpoints/[" in case.what or "/*/f" in case.what else damaged[-1:]:
        case.damage(path)
    before = contents(workdir)
    capfd.readouterr()
    code = launch(lambda: fit(TASK, config(), workdir))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    (line,) = [line for line in lines if case.told and case.told in line][-1:] or [""]
    assert bool(line) == bool(case.told), err
    # Two, where two are passed over, or something was found before what cannot be mended.
    most = 2 if name in ("the two latest", "config a directory") else bool(case.told)
    assert len(lines) <= most, err
    if case.goes_on_at is None:
        assert code == 2 and line.startswith("error: ")
        assert contents(workdir) == before
        came = "refused, nothing touched"
    else:
        found = re.search(r"resuming at step (\d+)", out)
        assert int(found[1] if found else 0) == case.goes_on_at, out
        assert (code, different_bits(through, workdir)) == (0, 0), err
        came = f"goes on at step {case.goes_on_at}, ends with the same bits"
    shown = line.removeprefix("error: ").replace(f"{workdir}/", "").replace(f"{workdir}", "RUN")
    record_property("fault", f"{name:22} {came:44} {shown}")


def test_what_a_run_went_back_from_is_kept_aside(killed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(killed, workdir)
    flip(workdir / NEWEST / "digests.json")
    damaged = contents(workdir / NEWEST)
    assert launch(lambda: fit(TASK, config(), workdir)) == 0
    assert contents(workdir / f"{NEWEST}.damaged") == damaged
    np.testing.assert_equal((workdir / NEWEST).is_dir(), True)
