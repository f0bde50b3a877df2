"""Optuna's proposals: trained in batches, told once, shared by workers, resumed, refused."""

import threading
import time
from collections import Counter

import pytest
from support.processes import finish, start
from support.toys import linear_config, read_json, use_linear_task

from seqjax.errors import UserError
from seqjax.sweeps import sweep
from seqjax.sweeps.space import Search, choice, integer, log_uniform, uniform
from seqjax.training.trials import save_failure

optuna = pytest.importorskip("optuna")
from seqjax.sweeps.optuna import run_search  # noqa: E402

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
    """Trains nothing: the trials of a group end at once, as failures; it is killed at its k-th."""

    def __init__(self, killed_at: int = 0):
        self.calls, self.killed_at = [], killed_at

    def __call__(self, trials, workdir, *options):
        self.calls.append([trial.directory.name for trial in trials])
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        for trial in trials:
            save_failure(trial, "not trained")


def search_in(directory, train=None, search=RATES, config=None, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train_trials", train or Ends())
        return run_search(config or linear_config(), search, directory, **options)


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
    trials = run_search(config, SEARCH, tmp_path / "a", storage=storage, study="s")
    study = open_study(storage, "s")
    assert len(trials) == len(study.trials) == 7
    for trial, proposal in zip(trials, study.trials, strict=True):
        result = read_json(trial.directory / "result.json")
        assert proposal.value == pytest.approx(result["valid"]["loss"])
        assert trial.config.optim.learning_rate == proposal.params["optim.learning_rate"]
        assert repr(trial.config.model.input_dropout) == proposal.params["model.input_dropout"]
        assert proposal.user_attrs["batch"] == proposal.number // 3
    assert len({trial.config.optim.learning_rate for trial in trials}) == 7


def test_a_search_goes_on_where_it_was(tmp_path):
    """Each batch is trained by itself and once, by the groups that the search began with."""
    killed, resumed, search = Ends(killed_at=2), Ends(), Search(RATE, 9, 3)
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "killed", killed, search)
    trials = search_in(tmp_path / "killed", resumed, search, num_groups=3)
    batches = [["0000", "0001", "0002"], ["0003", "0004", "0005"], ["0006", "0007", "0008"]]
    assert [killed.calls[0], *resumed.calls] == batches
    study = open_study(f"journal:{tmp_path / 'killed' / 'study.log'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 9
    whole = search_in(tmp_path / "whole", search=search)
    assert [trial.changes for trial in trials] == [trial.changes for trial in whole]
    assert len({trial.config.optim.learning_rate for trial in whole}) == 9
    parts = Ends()
    search_in(tmp_path / "parts", parts, search, num_groups=3)
    assert [len(call) for call in parts.calls] == [1] * 9


def test_proposals_that_a_kill_left_behind_do_not_count(tmp_path, monkeypatch):
    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.trial.Trial, "set_user_attr", kill)
        search_in(tmp_path / "a")
    trials = search_in(tmp_path / "a")
    assert [int(trial.directory.name) for trial in trials] == list(range(1, 8))


def test_a_worker_that_finds_the_study_full_waits_for_the_others(tmp_path, monkeypatch):
    config, train, began = linear_config(num_epochs=2), sweep.train_trials, threading.Event()
    search, directory, ended = Search(RATE, 3, 3), tmp_path / "a", []

    def wait(trials, *options):
        began.set()
        time.sleep(1.5)  # the other worker looks several times
        assert not ended
        train(trials, *options)

    def join():
        began.wait(60)
        ended.append(run_search(config, search, directory))

    monkeypatch.setattr(sweep, "train_trials", wait)
    thread = threading.Thread(target=join)
    thread.start()
    trials = run_search(config, search, directory)
    thread.join()
    assert ended == [trials] and all((x.directory / "result.json").exists() for x in trials)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_workers_train_each_batch_once(kind, tmp_path, monkeypatch):
    """Workers are threads here, each with a connection of its own."""
    config, train = linear_config(num_epochs=2), sweep.train_trials
    times, both = Counter(), threading.Barrier(2)

    def count(trials, workdir, *options):
        times[threading.current_thread().name, workdir] += 1
        if len(times) <= 2:  # each has a batch at the same time
            both.wait(60)
        train(trials, workdir, *options)

    monkeypatch.setattr(sweep, "train_trials", count)
    path = tmp_path / "study"
    options = {"storage": {"journal": f"journal:{path}", "sqlite": f"sqlite:///{path}"}[kind]}
    args = (config, Search(RATE, 12, 3), tmp_path / "a")
    threads = [threading.Thread(target=run_search, args=args, kwargs=options) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name for name, _ in times} == {thread.name for thread in threads}
    assert sorted(Counter(workdir for _, workdir in times.elements()).values()) == [1] * 4
    study = open_study(options["storage"])
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    assert len({trial.params["optim.learning_rate"] for trial in study.trials}) == 12


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
    storage = f"journal:{tmp_path / 'study.log'}"
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "a", Ends(killed_at=2), storage=storage)
    for options in ({}, {"storage": f"journal:{tmp_path / 'other.log'}"}):
        with pytest.raises(UserError, match="holds another sweep: give a new --workdir"):
            search_in(tmp_path / "a", **options)
    assert not (tmp_path / "other.log").exists() and not (tmp_path / "a" / "study.log").exists()
    (tmp_path / "study.log").unlink()
    with pytest.raises(UserError) as error:
        search_in(tmp_path / "a", storage=storage)
    assert f"study.log is not that of {tmp_path / 'a'}: give another" in told_by(error)
    assert "or restore the storage from a copy" in told_by(error)


def test_the_study_of_another_directory_is_refused(tmp_path):
    storage = f"journal:{tmp_path / 'study.log'}"
    search_in(tmp_path / "a", storage=storage)
    with pytest.raises(UserError) as error:
        search_in(tmp_path / "b", storage=storage)
    expected = f"study 'seqjax' in {storage} is not that of {tmp_path / 'b'}: give another --study"
    assert told_by(error).startswith(expected)
    assert len(search_in(tmp_path / "b", storage=storage, study="other")) == 7


@pytest.mark.parametrize(
    "options",
    [
        {"search": RATES._replace(space={"seed": integer(0, 3)})},
        {"config": linear_config(num_epochs=2)},
        {"config": linear_config(monitor_mode="max")},
    ],
)
def test_another_search_does_not_go_on_here(options, tmp_path):
    search_in(tmp_path / "a")
    with pytest.raises(UserError, match="holds another sweep: give a new --workdir"):
        search_in(tmp_path / "a", **options)


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path):
    lines = ("from seqjax.sweeps.space import Search, log_uniform", "def get_sweep():")
    space = '{"optim.learning_rate": log_uniform(1e-3, 1e-1)}'
    text = "\n".join([*lines, f"    return Search({space}, num_trials=6, batch_size=2)"])
    (tmp_path / "search.py").write_text(text, encoding="utf-8")
    args = ("--config=configs/word_completion.py", "--config.train.num_epochs=2")
    args += (f"--sweep={tmp_path / 'search.py'}", "--num_workers=2")
    out = finish(start(tmp_path / "a", *args, cache=tmp_path / "cache", entry="sweep"))
    assert "6 trials: 6 finished" in out
    study = open_study(f"journal:{tmp_path / 'a' / 'study.log'}", "word_completion-search")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6
