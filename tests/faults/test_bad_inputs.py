"""Bad inputs, made by machine: each is one line and exit code 2, or a run that is valid after all.

What was tried is told at the end of the tests' output.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.errors import JaxRuntimeError
from support.commands import ROOT, assert_one_line, launch_quietly, run_command
from support.fuzz import (
    GOOD,
    HOSTILE,
    VARIANTS,
    damaged,
    damaged_objects,
    forged_vocabularies,
    is_named,
    leaves,
    small_config,
    specs,
    write_small,
)
from support.texts import make_pairs, random_params
from support.toys import few_digits, trace_step

import seqjax.files
import seqjax.tasks.registry
import seqjax.training.fit
from seqjax.data import images
from seqjax.data.parallel_text import read_pairs
from seqjax.data.text_files import load_tagged_sentences, load_words
from seqjax.errors import UserError, one_line
from seqjax.files import write_json
from seqjax.inference.calibration import Abstention
from seqjax.inference.responder import Responder
from seqjax.runs.workdir import lock_workdir
from seqjax.serving.repl import CHAT_DECODERS, COMMANDS, Chat
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit
from seqjax.training.setup import make_setup

# ml_collections reads config files by a method that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def command(empty, monkeypatch, capfd):
    return partial(run_command, monkeypatch, capfd)


# Configs


def only_set_up(task, config, workdir, **options) -> None:
    """In place of `fit`: a config is valid if a step and a prediction can be traced."""
    trace_step(config, make_setup(task, config))


# One config of each task in the fast tests; the others differ from them in values only.
OF_EACH_TASK = {small_config(variant).task: variant for variant in reversed(VARIANTS)}.values()
FUZZED = [
    pytest.param(variant, marks=[] if variant in OF_EACH_TASK else [pytest.mark.slow])
    for variant in VARIANTS
]


@pytest.mark.parametrize("variant", FUZZED)
def test_every_field_of_every_config(variant, command, empty, monkeypatch, record_property):
    write_small(empty)
    monkeypatch.setattr(images, "load_mnist", few_digits)
    monkeypatch.setattr(seqjax.training.fit, "fit", only_set_up)
    names, refused, valid = sorted(leaves(small_config(variant))), {}, 0
    for field in names:
        value = Random(f"{variant} {field}").choice((*HOSTILE, *specs(field)))
        code, out, err = command(
            "train", f"--config=small.py:{variant}", f"--config.{field}={value}"
        )
        assert not (empty / "runs").exists()
        if code == 0:
            valid += 1
            assert out == err == ""
        else:
            refused[field, value] = err
            assert_one_line((code, out, err), "error: ")
            assert is_named(field, value, err, names), (field, value, err)
            assert len(err) < 1100
    assert len(refused) > 0.6 * len(names)
    record_property("fault", f"{variant}: {len(refused)} settings refused, {valid} valid after all")


# Texts


READERS = {
    "csv": partial(read_pairs, form="csv"),
    "tsv": partial(read_pairs, form="tsv"),
    "lines": partial(read_pairs, form="lines"),
    "words": load_words,
    "tagged": load_tagged_sentences,
}


@pytest.mark.parametrize("form", GOOD)
def test_damaged_texts(form, tmp_path, record_property):
    path, refused, read = tmp_path / "mine.txt", {}, set()

    @settings(max_examples=150)
    @given(damaged(GOOD[form].encode()))
    def damage(data):
        path.write_bytes(data)
        code, out, err = launch_quietly(lambda: READERS[form](str(path)))
        if code == 0:
            read.add(data)
        else:
            refused[data] = err
            assert_one_line((code, out, err), f"error: {path}")
            assert re.search(r"mine.txt(, line \d+)?: \S.*[a-z]", err)

    damage()
    assert len(refused) >= 40 and len(read) >= 5
    record_property("fault", f"{form} file: {len(refused)} refused, {len(read)} valid after all")


# The directory of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of text pairs, if not for long."""
    directory = tmp_path_factory.mktemp("trained")
    write_small(directory)
    config = small_config("reverse-default")
    with contextlib.chdir(directory):
        fit(make_task(config, directory / "run"), config, directory / "run")
    return directory / "run"


@pytest.fixture
def run(trained, empty) -> Path:
    """A copy of it, with the files that its config names."""
    write_small(empty)
    shutil.copytree(trained, empty / "run")
    return empty / "run"


TRAIN = ("train", "--config=small.py:reverse-default")


def contents(directory: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize("args", [TRAIN, ("evaluate",), ("chat",)])
def test_damaged_vocabularies(args, command, run, record_property):
    path = run / "vocabulary.json"
    good = path.read_text(encoding="utf-8")
    refused = {}
    for text in (*damaged_objects(good), *forged_vocabularies(good)):
        path.write_text(text, encoding="utf-8")
        before = contents(run)
        outcome = command(*args, "--workdir=run")
        assert_one_line(outcome, "error: ")
        assert "run" in outcome[2] or "vocabulary" in outcome[2]
        assert contents(run) == before
        refused[text] = outcome[2]
    assert len(refused) >= 30
    record_property("fault", f"vocabulary.json, {args[0]}: {len(refused)} refused")


@pytest.mark.parametrize("name", ["evaluate", "chat"])
def test_damaged_configs_of_runs(name, command, run, record_property):
    path = run / "config.json"
    good = path.read_text(encoding="utf-8")
    shutil.rmtree(run / "checkpoints")  # or it would be taken from there
    refused = set()
    for text in damaged_objects(good):
        path.write_text(text, encoding="utf-8")
        assert_one_line(command(name, "--workdir=run"), "error: ")
        refused.add(text)
    assert len(refused) >= 100
    record_property("fault", f"config.json, {name}: {len(refused)} refused")


def only_held(task, config, workdir, **options) -> None:
    """In place of `fit`: a directory that can be locked can be used."""
    with lock_workdir(workdir):
        raise UserError("the directory was taken")


# Paths beside those that exist: a file, a run, a directory that is none, a link to itself.
PATHS = (
    "few.tsv",
    "few.tsv/run",
    "other",
    "loop.txt",
    "loop.txt/run",
    "run/config.json",
    "/dev/null",
    "/dev/null/run",
    "/proc/run",
    "a" * 300,
    "a/" * 3000,
    "\udcff/../few.tsv",
    "few.tsv/\x1b[2J\n",
)
NOWHERE = ("nowhere", "other", "empty", "", " ", "\x1b[2J\n", "\u202e", "..", ".")


@pytest.mark.parametrize("name", ["train", "evaluate", "chat", "demo"])
def test_directories_that_hold_no_run(name, command, run, monkeypatch, record_property):
    (run.parent / "other").mkdir()
    (run.parent / "other" / "letter.txt").write_text("dear", encoding="utf-8")
    (run.parent / "empty").mkdir()
    monkeypatch.setattr(seqjax.training.fit, "fit", only_held)
    monkeypatch.setitem(sys.modules, "gradio", mock.MagicMock())  # leaves loops and sockets open
    before, refused = contents(run.parent), set()
    for path in PATHS if name == "train" else PATHS + NOWHERE:
        args = TRAIN if name == "train" else (name,)
        outcome = command(*args, f"--{'chat' if name == 'demo' else 'workdir'}={path}")
        assert_one_line(outcome, "error: ")
        assert "was taken" not in outcome[2]
        assert contents(run.parent) == before
        refused.add(path)
    record_property("fault", f"directory, {name}: {len(refused)} refused")


# Chats


@pytest.fixture(scope="module")
def responder() -> Responder:
    pairs = make_pairs(attention="dot")
    return pairs.responder(random_params(pairs.text), Abstention(0.0, 0.0, 0.0, 0.5))


def test_lines_of_a_chat(responder, record_property):
    chats = [Chat(responder, decoder) for decoder in CHAT_DECODERS]
    refused, answered = set(), set()
    commands = st.sampled_from(COMMANDS).filter(":quit".__ne__)
    numbers = st.integers().map(str) | st.floats().map(str) | st.text(max_size=9)
    orders = st.tuples(commands, numbers).map(" ".join)
    anything = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too

    @settings(max_examples=150)
    @given(anything | st.text("abcd 가나", max_size=9) | orders)
    def say(line):
        for chat in chats:
            said = "".join(chat.say(line))
            lines = said.removesuffix("\n").split("\n")
            assert said.endswith("\n") or chat.ended
            assert all(one_line(said) == said for said in lines)
            if line.startswith(":") and ("unknown" in said or "takes" in said or "alone" in said):
                refused.add(line)
                assert len(lines) == 1
            else:
                answered.add(line)

    say()
    assert len(refused) >= 20 and len(answered) >= 60
    told = f"{len(refused)} commands refused, {len(answered)} lines answered"
    record_property("fault", f"chat: {told}")


# What the machine lacks


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "out of memory: lower train.batch_size"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of\nmemory"), "out of memory: lower train.b"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), "a b: Permission denied"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, expected, tmp_path):
    with mock.patch.object(seqjax.files.json, "dumps", side_effect=error):  # called by seqjax
        outcome = launch_quietly(lambda: write_json(tmp_path / "any.json", 1))
    assert_one_line(outcome, f"error: {expected}")
    assert outcome[2].endswith(" (--traceback shows where)\n")
    with pytest.raises(type(error)):  # raised by code of the user's, as which this file counts
        launch_quietly(raising(error.with_traceback(None)))


def raising(error: Exception) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "main", [lambda: Path("missing").stat(), lambda: os.stat("missing"), lambda: np.load("missing")]
)
def test_a_missing_file_of_the_users_code_is_a_bug(main, empty):
    with pytest.raises(FileNotFoundError):  # also where a library has opened it
        launch_quietly(main)


def test_an_entry_point_without_room_ends_in_one_line(command, monkeypatch):
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(seqjax.tasks.registry, "make_task", full)  # called by experiments/train.py
    assert_one_line(command("train", "--config=configs/recall.py"), "No space left on device")


def test_a_bug_of_ours_keeps_its_traceback():
    for error in (JaxRuntimeError("INTERNAL: "), ValueError("x"), OverflowError()):
        with pytest.raises(type(error)):
            launch_quietly(raising(error))


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("experiments.chat --workdir=run <&-", "standard input is closed"),
        ("experiments.chat --workdir=run <<< abc > /dev/full", "No space left on device"),
        ("experiments.chat --help > /dev/full", "No space left on device"),
    ],
)
def test_closed_and_full_streams_are_one_line(shell, expected, run):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m {shell}"],
        cwd=run.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), expected)
