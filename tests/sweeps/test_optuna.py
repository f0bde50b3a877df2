"""Optuna's proposals: trained in batches, told once, shared by two processes, resumed, refused."""

import subprocess
import sys
from functools import partial

import pytest
from support.commands import ROOT
from support.toys import (
    linear_config,
    read_json,
    use_linear_task,
)

import seqjax.sweeps.optuna
from seqjax.errors import UserError
from seqjax.sweeps.executors import EXECUTORS
from seqjax.sweeps.space import Search, choice, integer, log_uniform, uniform
from seqjax.sweeps.trial import save_failure

optuna = pytest.importorskip("optuna")
from seqjax.sweeps.optuna import PROPOSALS, run_search  # noqa: E402

local = EXECUTORS["local"]
RATE = {"optim.learning_rate": log_uniform(1e-3, 1.0)}
SPACE = RATE | {
    "train.batch_size": integer(5, 7),
    "model.input_dropout": choice((0.0,), (0.5, 0.25)),
}
SEARCH, RATES = Search(SPACE, num_trials=7, batch_size=3), Search(RATE, 7, 3)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    use_linear_task(monkeypatch)


class Ends:
    """An executor that trains nothing: trials end at once, as failures; killed at its k-th call."""

    def __init__(self, killed_at: int = 0):
        self.calls, self.killed_at = [], killed_at

    def __call__(self, chunks, **options):
        self.calls.append(chunks)
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        for chunk in chunks:
            for trial in chunk.trials:
                save_failure(trial, "not trained")
            yield chunk


def search_in(directory, executor=None, search=RATES, config=None, **options):
    return run_search(config or linear_config(), search, directory, executor or Ends(), **options)


def open_study(storage: str, name: str = "seqjax"):
    if storage.startswith("journal:"):
        backend = optuna.storages.journal.JournalFileBackend(storage.removeprefix("journal:"))
        storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(storage=storage, study_name=name)


def told_by(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_a_search_goes_on_where_it_was(tmp_path):
    """Each batch is trained by itself and once, a killed one in its own directories."""
    killed, resumed, search = Ends(killed_at=2), Ends(), Search(RATE, 9, 3)
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "killed", killed, search)
    entries = search_in(tmp_path / "killed", resumed, search, num_workers=3)
    trained = [
        [trial.directory.name for chunk in chunks for trial in chunk.trials]
        for chunks in (killed.calls[0], *resumed.calls)
    ]
    assert trained == [["0000", "0001", "0002"], ["0003", "0004", "0005"], ["0006", "0007", "0008"]]
    assert resumed.calls[0] == killed.calls[1]
    assert [len(chunks) for chunks in resumed.calls] == [1, 3]
    study = open_study(f"journal:{tmp_path / 'killed' / 'study.log'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 9
    whole = search_in(tmp_path / "whole", search=search)
    assert [entry.overrides for entry in entries] == [entry.overrides for entry in whole]
    assert len({entry.trial.config.optim.learning_rate for entry in whole}) == 9


@pytest.mark.parametrize("place", ["ask", "note"])
def test_proposals_that_a_kill_left_behind(place, tmp_path, monkeypatch):
    """Those that are whole are trained, others do not count."""

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if place == "ask":
            patch.setattr(optuna.trial.Trial, "set_user_attr", kill)
        else:
            patch.setattr(seqjax.sweeps.optuna, "write_json", kill)
        search_in(tmp_path / "a")
    entries = search_in(tmp_path / "a")
    first = 1 if place == "ask" else 0
    assert [int(entry.name) for entry in entries] == list(range(first, first + 7))


def test_who_shares_a_study_proposes_something_else(tmp_path):
    storage = f"journal:{tmp_path / 'study.log'}"
    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            search_in(tmp_path / name, Ends(killed_at=1), storage=storage)
    trials = open_study(storage).trials
    assert len(trials) == len({trial.params["optim.learning_rate"] for trial in trials}) == 6


def test_a_full_study_has_nothing_left(tmp_path, capsys):
    storage = f"journal:{tmp_path / 'study.log'}"
    search_in(tmp_path / "a", storage=storage)
    capsys.readouterr()
    assert search_in(tmp_path / "b", storage=storage) == []
    told = f"study 'seqjax' has its 7 trials: none is left for {tmp_path / 'b'}\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (Search({"optim.lr": uniform(0, 1)}, 3), "unknown config field 'optim.lr'"),
        (Search({"optim.learning_rate": [0.1, 0.2]}, 3), "draws optim.learning_rate from [0.1, 0."),
        (Search({"model.hidden_size": uniform(1, 3)}, 3), "model.hidden_size is of type int"),
        (Search({"model.cell": choice("lstm", 3)}, 3), "the sweep sets model.cell=3"),
        (Search({"seed": integer(0, 2**32)}, 3), "seed=4294967296 must be at most"),
        (Search({"optim.name": choice("adam", "sgd(")}, 3), "optimizer 'sgd('"),
        (Search({"train.monitor": choice("epoch", "valid.loss")}, 3), "trials cannot be compared"),
        (Search({}, 3), "Search({}): give a dict"),
        (RATES._replace(num_trials=10_001), "a sweep of 10,001 trials"),
        (RATES._replace(num_trials=7.0), "Search(num_trials=7.0): give a whole number"),
        (RATES._replace(batch_size=0), "Search(batch_size=0): give a whole number of at least 1"),
    ],
)
def test_a_search_that_cannot_be_begun_is_one_line(search, told, tmp_path):
    with pytest.raises(UserError) as error:
        search_in(tmp_path / "a", search=search)
    assert told in told_by(error) and not (tmp_path / "a").exists()


def test_bounds_are_of_the_kind_that_is_drawn():
    with pytest.raises(UserError, match=r"integer\(1.5, 3\): both bounds must be of type int"):
        integer(1.5, 3)
    assert [type(bound) for bound in uniform(0, 1).options] == [float, float]


@pytest.mark.parametrize("storage", ["mysql://nowhere", "sqlite:////no/such/place.db"])
def test_a_storage_that_cannot_be_used_is_one_line(storage, tmp_path):
    with pytest.raises(UserError) as error:
        search_in(tmp_path / "a", storage=storage)
    assert told_by(error).startswith(f"--storage={storage} cannot be used (")
    assert len(search_in(tmp_path / "a")) == 7  # and keeps nobody from another one


@pytest.mark.parametrize("method", ["ask", "tell"])
def test_a_storage_that_fails_is_one_line(method, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("database is locked\n(Background on this error at: ...)")

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(optuna.study.Study, method, fail)
        search_in(tmp_path / "a")
    assert "study.log cannot be used (database is locked)" in told_by(error)
    assert len(search_in(tmp_path / "a")) == 7


def test_another_storage_does_not_go_on_here(tmp_path):
    begin = partial(search_in, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        begin(Ends(killed_at=2), storage=f"journal:{tmp_path / 'study.log'}")
    for options in ({}, {"storage": f"journal:{tmp_path / 'other.log'}"}):
        with pytest.raises(UserError, match="holds another sweep: give a new --workdir"):
            begin(**options)
    assert not (tmp_path / "other.log").exists() and not (tmp_path / "a" / "study.log").exists()
    (tmp_path / "study.log").unlink()
    with pytest.raises(UserError) as error:
        begin(storage=f"journal:{tmp_path / 'study.log'}")
    assert "study.log does not have trial 0 as this sweep noted it: restore" in told_by(error)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"search": RATES._replace(space={"seed": integer(0, 3)})}, "space.optim.learning_rate"),
        ({"config": linear_config(num_epochs=2)}, "config.train.num_epochs: 6 -> 2"),
        ({"config": linear_config(monitor_mode="max")}, "monitor_mode: 'min' -> 'max'"),
    ],
)
def test_another_sweep_s_study_is_refused(options, told, tmp_path):
    storage = f"journal:{tmp_path / 'study.log'}"
    search_in(tmp_path / "a", storage=storage)
    with pytest.raises(UserError) as error:
        search_in(tmp_path / "b", storage=storage, **options)
    assert told in told_by(error) and "give another --study" in told_by(error)
    assert told_by(error).startswith(f"study 'seqjax' in {storage} is of another sweep (")


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    (tmp_path / "search.py").write_text(
        """
from seqjax.sweeps.space import Search, log_uniform
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
    study = open_study(storage, "shared")
    own = [
        {number for batch in read_json(tmp_path / name / PROPOSALS) for number, _ in batch}
        for name in ("a", "b")
    ]
    assert own[0] and own[1] and not own[0] & own[1]
    assert own[0] | own[1] == {trial.number for trial in study.trials}
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    assert 6 <= len(study.trials) <= 8  # both may ask for the last batch of two at once
