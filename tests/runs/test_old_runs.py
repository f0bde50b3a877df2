"""A finished run of an earlier version can be evaluated, exported and talked to."""

import shutil
from pathlib import Path

import pytest
from support.commands import run_command
from support.texts import QUESTIONS
from support.toys import read_json

import seqjax.config
import seqjax.plots
import seqjax.training.fit
from seqjax.config import base_config, load_config, make_config
from seqjax.errors import UserError
from seqjax.files import sha256
from seqjax.runs.identity import Identity, arrays_digest, differences
from seqjax.serving.repl import Chat, load_responder
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit

RUN = Path(__file__).parents[1] / "fixtures" / "run_of_version_0_1"


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """A copy of the run, which was trained by commit fccfcf0."""
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
    return shutil.copytree(RUN, tmp_path / "run")


def test_an_old_run_is_evaluated_with_its_figures(workdir, monkeypatch, capsys):
    code, out, err = run_command(monkeypatch, capsys, "evaluate", f"--workdir={workdir}")
    assert (code, err) == (0, "")
    train = read_json(workdir / "result.json")["train"]
    assert f"train (epoch 60): accuracy {train['accuracy']:.4f}" in out
    assert f"loss {train['loss']:.4f}" in out


def test_an_old_run_is_talked_to_and_exported(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seqjax.training.fit, "start_jax", lambda train: None)  # JAX runs already
    chat = Chat(load_responder(workdir))
    for question, answer, _ in QUESTIONS:
        assert [*chat.say(question)] == [f"{answer}\n"]
    export = ("export", f"--workdir={workdir}", f"--output={tmp_path / 'weights'}")
    assert run_command(monkeypatch, capsys, *export)[0] == 0


def test_the_data_of_an_old_run_has_its_old_digest(workdir):
    task = make_task(load_config(workdir / "config.json"), workdir)
    digests = {split: arrays_digest(rows) for split, rows in task.splits.items()}
    fingerprint = read_json(workdir / "fingerprint.json")
    assert digests == fingerprint["data"]
    assert sha256(workdir / "vocabulary.json") == fingerprint["files"]["vocabulary.json"]


def test_an_old_unfinished_run_is_refused_with_a_remedy(workdir):
    (workdir / "result.json").unlink()
    config = load_config(workdir / "config.json")
    with pytest.raises(UserError, match="it holds state.opt_state.*train in a new --workdir"):
        fit(make_task(config, workdir), config, workdir)


def test_a_field_that_came_later_has_its_old_meaning(monkeypatch):
    fields = read_json(RUN / "config.json")
    later = {"train.new_field": 0, "nowhere.size": 1, "train.batch_size": 99}
    later = seqjax.config.LATER_FIELDS | later
    monkeypatch.setattr(seqjax.config, "LATER_FIELDS", later)
    config = make_config(fields)
    assert (config.train.new_field, config.train.log_every_steps) == (0, 0)
    assert config.train.batch_size == fields["train"]["batch_size"]
    assert "nowhere" not in config
    new = Identity(seqjax.config.as_json(config), {})
    assert differences(Identity(fields, {}), new) == []
    new.config["train"]["new_field"] = 5
    assert differences(Identity(fields, {}), new) == ["train.new_field: 0 -> 5"]


def test_a_config_that_lacks_another_field_is_refused_by_name(workdir, monkeypatch):
    monkeypatch.setattr("seqjax.config.base_config", with_a_field(base_config))
    with pytest.raises(UserError, match=r"train\.depth is missing: is the config of another"):
        load_config(workdir / "config.json")


def with_a_field(make):
    def changed(task):
        config = make(task)
        config.train.depth = 1
        return config

    return changed
