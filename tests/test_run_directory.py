"""Run directories: made once, opened again by the same config alone, never half written."""

import errno
import os
import subprocess
from pathlib import Path

import jax
import pytest
from toys import linear_config, read_json

from seqjax.config import load_config
from seqjax.errors import UserError
from seqjax.run_directory import environment, open_run_directory, write_json


def test_a_new_directory_holds_config_and_environment(tmp_path):
    workdir = tmp_path / "some" / "where"
    open_run_directory(workdir, linear_config())
    assert {path.name for path in workdir.iterdir()} == {"config.json", "environment.json"}
    assert load_config(workdir / "config.json").to_dict() == linear_config().to_dict()
    assert read_json(workdir / "environment.json") == environment()


def test_an_empty_directory_will_do_and_may_be_opened_again(tmp_path):
    for _ in range(2):
        open_run_directory(tmp_path, linear_config())


def test_another_config_is_refused_naming_the_fields(tmp_path):
    open_run_directory(tmp_path, linear_config())
    config = linear_config(patience=3)
    config.model.output_dropout = (0.5, 0.25)
    with pytest.raises(UserError) as caught:
        open_run_directory(tmp_path, config)
    assert str(caught.value).startswith(
        f"{tmp_path} holds a run of another config "
        "(model.output_dropout: (0.0,) -> (0.5, 0.25); train.patience: 0 -> 3): "
    )


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty and no run: give a new --workdir"):
        open_run_directory(tmp_path, linear_config())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_directory(inside, tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError, match="is, or lies in, a file: give a directory"):
        open_run_directory(path / "run" if inside else path, linear_config())


@pytest.mark.parametrize("method", ["mkdir", "write_text"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_directory_that_cannot_be_written_is_one_line(method, number, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError) as caught:
        open_run_directory(tmp_path / "run", linear_config())
    assert str(caught.value) == (
        f"cannot write to {tmp_path / 'run'} ({os.strerror(number)}): give another --workdir"
    )


def test_the_environment_names_versions_devices_and_commit(monkeypatch):
    found = environment()
    assert set(found) == {"python", "platform", "packages", "devices", "commit"}
    assert found["packages"]["jax"] == jax.__version__
    assert len(found["devices"]) == len(jax.devices())
    assert found["commit"] is None or len(found["commit"]) == 40

    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] is None


def test_a_json_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"accuracy": object()})
    assert read_json(path) == {"accuracy": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
