"""Sweeps: trained, thinned out, killed and gone on with, and refused in one line."""

import os
import runpy
import threading
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from support.commands import assert_one_line, enter_empty, run_command
from support.same_runs import assert_close, read_lines, read_result
from support.toys import (
    CONFIGS,
    linear_config,
    read_json,
    use_linear_task,
)

from seqjax.config import change_fields
from seqjax.errors import UserError
from seqjax.sweeps import sweep
from seqjax.sweeps.space import product, seeds
from seqjax.sweeps.sweep import GROUPS, load_sweep, run_sweep, rungs_of

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SEEDS = "--sweep=configs/sweeps/seeds.py:2"
RATES = {"optim.learning_rate": [0.003, 0.03, 0.3, 1.0]}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    use_linear_task(monkeypatch)


def rows_of(directory: Path) -> list[dict]:
    return read_lines(directory / "trials.jsonl")


def test_every_trial_is_trained_once_and_told(tmp_path, capsys):
    changes = product(seeds(2), RATES, {"train.batch_size": [5, 7]})
    trials = run_sweep(linear_config(), changes, tmp_path / "sweep")
    assert [trial.changes for trial in trials] == changes
    assert all((trial.directory / "result.json").exists() for trial in trials)
    assert len(rows_of(tmp_path / "sweep")) == 16
    assert not (tmp_path / "sweep" / GROUPS).exists()
    assert "16 trials: 16 finished" in capsys.readouterr().out
    before = {trial.directory.stat().st_mtime_ns for trial in trials}
    run_sweep(linear_config(), changes, tmp_path / "sweep")
    assert before == {trial.directory.stat().st_mtime_ns for trial in trials}


def test_what_fails_is_told_and_the_others_are_unharmed(tmp_path, capsys):
    changes = product({"optim.learning_rate": [0.03, 1e38, 0.3], "optim.clip_norm": [0.0, -1.0]})
    run_sweep(linear_config(), changes, tmp_path / "sweep")
    told = capsys.readouterr().out
    assert "6 trials: 2 finished, 4 failed" in told
    assert "optim.clip_norm=-1.0 must be at least 0" in told and "at step " in told
    rows = rows_of(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished", *["failed"] * 3, "finished", "failed"]


def test_halving_keeps_the_best(tmp_path):
    config = linear_config(num_epochs=8, monitor="valid.loss")
    assert rungs_of(config, 2) == [1, 2, 4]
    changes = product(seeds(2), RATES)
    trials = run_sweep(config, changes, tmp_path / "halved", halving=2)
    results = [read_json(trial.directory / "result.json") for trial in trials]
    assert sorted(result["num_epochs"] for result in results) == [1, 1, 1, 1, 2, 2, 4, 8]
    decided = read_json(tmp_path / "halved" / "halving.json")
    assert {epoch: len(names) for epoch, names in decided.items()} == {"1": 4, "2": 2, "4": 1}
    whole = run_sweep(config, changes, tmp_path / "whole")
    # The one that is left has been trained as without halving, and was the best at each rung.
    last = max(range(8), key=lambda i: results[i]["num_epochs"])
    alone = whole[last].directory
    left = trials[last].directory
    assert (left / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    assert read_result(left) == read_result(alone)
    first = [read_records(trial)[0]["valid"]["loss"] for trial in whole]
    dropped = {int(name) for name in decided["1"]}
    assert max(first[i] for i in set(range(8)) - dropped) < min(first[i] for i in dropped)


@pytest.mark.parametrize(
    "rung", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(None, marks=pytest.mark.slow)]
)
def test_a_halved_sweep_goes_on_with_the_groups_that_it_began_with(rung, tmp_path, monkeypatch):
    """It is broken off before and behind a rung, with a checkpoint as early as one can be."""
    config = linear_config(num_epochs=8, monitor="valid.loss", checkpoint_every_epochs=1)
    changes, trained = product(seeds(2), RATES), []
    run_sweep(config, changes, tmp_path / "whole", halving=2)
    train = sweep.train_trials

    def breaks(trials, workdir, signals, watch, until, *options):
        """Trains one group of those of this rung."""
        if until == rung and trained:
            raise KeyboardInterrupt
        train(trials, workdir, signals, watch, until, *options)
        trained.extend([workdir] * (until == rung))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "train_trials", breaks)
        run_sweep(config, changes, tmp_path / "broken", num_groups=3, halving=2)
    run_sweep(config, changes, tmp_path / "broken", halving=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert read_json(whole / "halving.json") == read_json(broken / "halving.json")
    assert_close(rows_of(whole), rows_of(broken))
    with pytest.raises(UserError, match="holds another sweep"):
        run_sweep(config, changes, tmp_path / "broken", halving=4)


def test_what_ends_at_a_rung_takes_no_place_at_the_next(tmp_path):
    """Also where the failed trial's group has only ended ones left."""
    config = linear_config(num_epochs=8, monitor="valid.loss")
    changes = product({"optim.learning_rate": [0.003, 1e38, 0.03, 0.3]})
    kept = []
    for num_groups in (1, 4):
        directory = tmp_path / f"{num_groups}"
        run_sweep(config, changes, directory, num_groups=num_groups, halving=2)
        kept.append(read_json(directory / "halving.json"))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("halving", [0, 2])
def test_two_workers_train_each_group_once(halving, tmp_path, monkeypatch):
    """Workers are threads here; their locks are as those of processes."""
    config = linear_config(num_epochs=8, monitor="valid.loss")
    changes, times, train = product(seeds(2), RATES), Counter(), sweep.train_trials
    both = threading.Barrier(2)

    def count(trials, workdir, signals, watch, until, *options):
        times[threading.current_thread().name, workdir, until] += 1
        if len(times) <= 2:  # each has a group at the same time
            both.wait(60)
        train(trials, workdir, signals, watch, until, *options)

    run_sweep(config, changes, tmp_path / "alone", num_groups=4, halving=halving)
    monkeypatch.setattr(sweep, "train_trials", count)
    options = {"num_groups": 4, "halving": halving}
    args = (config, changes, tmp_path / "shared")
    threads = [threading.Thread(target=run_sweep, args=args, kwargs=options) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name for name, *_ in times} == {thread.name for thread in threads}
    groups = Counter((workdir, until) for _, workdir, until in times.elements())
    assert set(groups.values()) == {1}
    for name in ("trials.jsonl", "summary.csv", *(["halving.json"] if halving else [])):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


def read_records(trial) -> list[dict]:
    import json

    text = (trial.directory / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_another_sweep_does_not_go_on_here(tmp_path):
    run_sweep(linear_config(num_epochs=1), seeds(2), tmp_path)
    with pytest.raises(UserError, match="holds another sweep: give a new --workdir"):
        run_sweep(linear_config(num_epochs=1), seeds(3), tmp_path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.py")), ids=lambda p: p.stem)
def test_shipped_sweeps_fit_the_configs_that_they_are_for(path):
    sweep = load_sweep(str(path))
    named = [name for name in CONFIGS.glob("*.py") if f"configs/{name.name}" in path.read_text()]
    for config in named or CONFIGS.glob("*.py"):
        config = runpy.run_path(str(config))["get_config"]()
        trials = (
            sweep
            if isinstance(sweep, list)
            else [{name: own.options[0] for name, own in sweep.space.items()}]
        )
        assert all(change_fields(config, changes).is_locked for changes in trials)


SWEEPS = {
    "unknown": "def get_sweep(): return product({'optim.lr': [0.1]})",
    "type": "def get_sweep(): return product({'model.hidden_size': [0.1]})",
    "empty": "def get_sweep(): return product({'seed': []})",
    "many": "def get_sweep(): return product(*({f'data.x{i}': range(10)} for i in range(7)))",
    "syntax": "def get_sweep(: pass",
    "none": "x = 1",
    "other": "def get_sweep(): return 'abc'",
    "optimizer": "def get_sweep(): return product({'optim.name': ['adam', 'adam(']})",
    "mixed": "def get_sweep(): return product({'train.monitor': ['epoch', 'train.accuracy']})",
}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unknown", "trial 0: unknown config field 'optim.lr'"),
        ("type", "model.hidden_size=0.1, but model.hidden_size is of type int"),
        ("empty", "a sweep of 0 trials"),
        ("many", "a sweep of 10,000,000 trials"),
        ("syntax", "line 2: invalid syntax: def get_sweep(: pass"),
        ("none", "get_sweep"),
        ("other", "get_sweep() must return what product() returns"),
        ("mixed", "cannot be compared"),
        ("optimizer", "trial 1: cannot read optimizer 'adam('"),
        ("missing", "sweep file missing.py does not exist"),
    ],
)
def test_a_bad_sweep_is_one_line(name, told, tmp_path, monkeypatch, capfd):
    enter_empty(tmp_path, monkeypatch)
    if name in SWEEPS:
        text = f"from seqjax.sweeps.space import product\n{SWEEPS[name]}\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    args = ("--config=configs/word_completion.py", f"--sweep={name}.py")
    assert_one_line(run_command(monkeypatch, capfd, "sweep", *args), told)
    assert not (tmp_path / "runs").exists()  # the next, right one is not "another sweep"


def test_an_error_of_a_sweep_keeps_its_traceback(tmp_path, monkeypatch, capfd):
    enter_empty(tmp_path, monkeypatch)
    (tmp_path / "mine.py").write_text("def get_sweep():\n    return 1 / 0", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        run_command(monkeypatch, capfd, "sweep", "--config=configs/recall.py", "--sweep=mine.py")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "--sweep is missing"),
        (("--sweep=configs/sweeps/seeds.py:x",), "the number of seeds=x must be a whole number"),
        (("--sweep=configs/sweeps/seeds.py:10000000000",), "a sweep of 10,000,000,000 trials"),
        ((SEEDS, "--halving=2", "--config.train.eval_every_epochs=0"), "must be at least 1"),
        ((SEEDS, "--num_workers=0"), "--num_workers=0 must be at least 1"),
        ((SEEDS, "--num_groups=-1"), "--num_groups=-1 must be at least 0"),
        ((SEEDS, "--executor=processes"), "should be one of <local|ray>"),
        ((SEEDS, "--address=here:1"), "--address is for --executor=ray"),
        ((SEEDS, "--storage=journal:x"), "--storage is for a sweep that is a Search"),
        ((SEEDS, "--study=x"), "--study is for a sweep that is a Search"),
        (("--sweep=configs/sweeps/seeds.py:2", "--halving=1"), "--halving=1: give 2 or more"),
        (("--sweep=configs/sweeps/mnist_search.py", "--halving=2"), "leave it out with Optuna"),
    ],
)
def test_bad_flags_are_one_line(args, told, tmp_path, monkeypatch, capfd):
    enter_empty(tmp_path, monkeypatch)
    args = ("--config=configs/mnist_rows.py", *args)
    assert_one_line(run_command(monkeypatch, capfd, "sweep", *args), told)


def test_workers_of_one_machine_do_not_share_its_accelerators(tmp_path, monkeypatch, capfd):
    enter_empty(tmp_path, monkeypatch)
    monkeypatch.setenv("SEQJAX_SWEEP_WORKER", f"{os.getppid()} 2")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    outcome = run_command(monkeypatch, capfd, "sweep", "--config=configs/recall.py", SEEDS)
    assert_one_line(outcome, "--num_workers=2: the trials of one worker already share all")


def test_a_seed_that_is_none_fails_alone(tmp_path, capsys):
    run_sweep(linear_config(), product({"seed": [0, 1, -1]}), tmp_path / "sweep")
    assert "3 trials: 2 finished, 1 failed" in capsys.readouterr().out


def test_values_of_numpy_are_written_as_python_has_them(tmp_path):
    rates = np.array([0.03, 0.3], np.float32)
    changes = product({"optim.learning_rate": rates, "optim.betas": [(np.float32(0.5),)]})
    config = linear_config()
    with config.unlocked():
        config.optim.betas = (0.9,)
    assert change_fields(config, changes[0]).optim.betas == (0.5,)
    assert type(change_fields(config, changes[0]).optim.betas[0]) is float


def test_a_full_disk_ends_no_trial(tmp_path, monkeypatch):
    """It ends the sweep, which goes on when there is room."""

    def full(*args):
        raise UserError("no space left: make room, and the same command goes on")

    changes = seeds(2)
    with monkeypatch.context() as patch:
        patch.setattr("seqjax.training.trainer.to_facts", full)
        with pytest.raises(UserError, match="make room"):
            run_sweep(linear_config(), changes, tmp_path / "sweep")
    trials = run_sweep(linear_config(), changes, tmp_path / "sweep")
    assert all((trial.directory / "result.json").exists() for trial in trials)
