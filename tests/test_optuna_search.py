"""Optuna's proposals: trained in batches, told once, shared by two processes, resumed."""

import subprocess
import sys

import pytest
from commands import ROOT
from toys import compiled_once, linear_config, linear_task, quick_compile, read_json

import seqjax.pictures
import seqjax.sweep_pictures
from seqjax.errors import UserError
from seqjax.executors import EXECUTORS
from seqjax.search_space import Search, choice, integer, log_uniform
from seqjax.tasks import TASKS

optuna = pytest.importorskip("optuna")
from seqjax.optuna_search import PROPOSALS, run_search  # noqa: E402

local = EXECUTORS["local"]
SPACE = {
    "optim.learning_rate": log_uniform(1e-3, 1.0),
    "train.batch_size": integer(5, 7),
    "model.input_dropout": choice((0.0,), (0.5, 0.25)),
}
SEARCH = Search(SPACE, num_trials=7, batch_size=3)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(tmp_path_factory):
    with quick_compile(), compiled_once(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "linear", lambda config, directory: linear_task())
    for module in (seqjax.pictures, seqjax.sweep_pictures):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: path.touch())


def open_study(storage: str, name: str):
    return optuna.load_study(storage=storage, study_name=name)


def test_proposals_are_trained_and_told(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    config = linear_config(num_epochs=2)
    entries = run_search(config, SEARCH, tmp_path / "a", local, storage=storage, study="s")
    study = open_study(storage, "s")
    assert len(entries) == len(study.trials) == 7
    for entry, trial in zip(entries, study.trials, strict=True):
        result = read_json(entry.trial.directory / "result.json")
        assert trial.value == pytest.approx(result["valid"]["loss"])
        assert entry.trial.config.optim.learning_rate == trial.params["optim.learning_rate"]
        assert repr(entry.trial.config.model.input_dropout) == trial.params["model.input_dropout"]
    assert len({entry.trial.config.optim.learning_rate for entry in entries}) == 7


def test_a_search_goes_on_where_it_was(tmp_path, monkeypatch):
    config = linear_config(num_epochs=2)
    calls = []

    def breaks(chunks, **options):
        calls.append(chunks)
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield from local(chunks, **options)

    with pytest.raises(KeyboardInterrupt):
        run_search(config, SEARCH, tmp_path / "a", breaks)
    asked = read_json(tmp_path / "a" / PROPOSALS)
    entries = run_search(config, SEARCH, tmp_path / "a", local)
    assert len(asked) == 3 and [int(entry.name) for entry in entries[:3]] == [n for n, _ in asked]
    study = open_study(
        optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "a" / "study.log"))
        ),
        "seqjax",
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7 and len(entries) == 7


@pytest.mark.parametrize("storage", ["mysql://nowhere", "sqlite:////no/such/place.db"])
def test_a_storage_that_cannot_be_used_is_one_line(storage, tmp_path):
    with pytest.raises(UserError) as error:
        run_search(linear_config(), SEARCH, tmp_path / "a", local, storage=storage)
    assert str(error.value).startswith(f"--storage={storage} cannot be used (")
    assert "\n" not in str(error.value)


def test_two_processes_share_a_study(tmp_path):
    (tmp_path / "search.py").write_text(
        """
from seqjax.search_space import Search, log_uniform
def get_sweep():
    return Search({"optim.learning_rate": log_uniform(1e-3, 1e-1)}, num_trials=6, batch_size=2)
""",
        encoding="utf-8",
    )
    storage = f"journal:{tmp_path / 'study.log'}"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.sweep"),
                "--config=configs/word_completion.py",
                "--config.train.num_epochs=2",
                f"--sweep={tmp_path / 'search.py'}",
                f"--workdir={tmp_path / name}",
                f"--storage={storage}",
                "--study=shared",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = open_study(optuna.storages.JournalStorage(backend), "shared")
    own = [{number for number, _ in read_json(tmp_path / name / PROPOSALS)} for name in ("a", "b")]
    assert own[0] and own[1] and not own[0] & own[1]
    assert own[0] | own[1] == {trial.number for trial in study.trials}
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    assert 6 <= len(study.trials) <= 7  # both may ask for the last ones at once
