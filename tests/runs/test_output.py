"""Runs whose output cannot be written: they continue, and say so once."""

import os
import sys

import pytest
from support.processes import finish, start
from support.toys import read_json

from seqjax.runs.output import expendable_output

RUN = ("--config=configs/word_completion.py", "--config.train.num_epochs=40")


class Broken:
    """A stream that fails from the second write on."""

    encoding = "utf-8"

    def __init__(self):
        self.written = []

    def write(self, text):
        if self.written:
            raise BrokenPipeError(32, "Broken pipe")
        self.written.append(text)

    def flush(self):
        if self.written:
            raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise ValueError


def test_output_that_breaks_is_told_and_ends_nothing(monkeypatch, capfd):
    stream = Broken()
    monkeypatch.setattr(sys, "stdout", stream)
    with expendable_output():
        print("one", end="")
        print("two", end="")
        assert sys.stdout.encoding == "utf-8"
    assert sys.stdout is stream and stream.written == ["one"]
    assert (
        "standard output cannot be written (Broken pipe): the run goes on" in capfd.readouterr().err
    )


def test_without_an_output_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with expendable_output():
        print("nobody reads this")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pipe", "full"])
def test_a_run_without_a_reader_is_finished(place, tmp_path):
    cache, options = tmp_path / "cache", {}
    if place == "full":
        options["stdout"] = os.open("/dev/full", os.O_WRONLY)
    process = start(tmp_path / "run", *RUN, cache=cache, **options)
    if place == "pipe":
        process.stdout.close()
        process.stdout = None
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    reason = {"pipe": "Broken pipe", "full": "No space left on device"}[place]
    expected = f"standard output cannot be written ({reason}): the run goes on without it\n"
    assert errors == expected
    assert read_json(tmp_path / "run" / "result.json")["num_epochs"] == 40


@pytest.mark.slow
def test_a_terminal_that_is_not_utf_8_gets_other_characters(tmp_path):
    variables = {"PYTHONIOENCODING": "latin-1"}
    args = ("--config=configs/word_translation.py", "--config.train.num_epochs=2")
    out = finish(start(tmp_path / "run", *args, cache=tmp_path / "cache", variables=variables))
    assert "?" in out and (tmp_path / "run" / "result.json").exists()
