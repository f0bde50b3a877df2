"""Sweeps: trained, thinned out, killed and gone on with, and refused in one line."""

import csv
import runpy
from pathlib import Path

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

from seqjax.errors import UserError
from seqjax.sweeps.executors import EXECUTORS
from seqjax.sweeps.space import apply, product, seeds
from seqjax.sweeps.sweep import GROUPS, load_sweep, run_sweep, rungs_of

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
local = EXECUTORS["local"]
SEEDS = "--sweep=configs/sweeps/seeds.py:2"
RATES = {"optim.learning_rate": [0.003, 0.03, 0.3, 1.0]}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    use_linear_task(monkeypatch)


def rows_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_trial_is_trained_once_and_told(tmp_path, capsys):
    changes = product(seeds(2), RATES, {"train.batch_size": [5, 7]})
    entries = run_sweep(linear_config(), changes, tmp_path / "sweep", local)
    assert [entry.overrides for entry in entries] == changes
    assert all((entry.trial.directory / "result.json").exists() for entry in entries)
    assert len(rows_of(tmp_path / "sweep")) == 16
    assert not (tmp_path / "sweep" / GROUPS).exists()
    assert "16 trials: 16 finished" in capsys.readouterr().out
    before = {entry.trial.directory.stat().st_mtime_ns for entry in entries}
    run_sweep(linear_config(), changes, tmp_path / "sweep", local)
    assert before == {entry.trial.directory.stat().st_mtime_ns for entry in entries}


def test_what_fails_is_told_and_the_others_are_unharmed(tmp_path, capsys):
    changes = product({"optim.learning_rate": [0.03, 1e38, 0.3], "optim.clip_norm": [0.0, -1.0]})
    run_sweep(linear_config(), changes, tmp_path / "sweep", local)
    told = capsys.readouterr().out
    assert "6 trials: 2 finished, 4 failed" in told
    assert "optim.clip_norm=-1.0 must be at least 0" in told and "at step " in told
    rows = rows_of(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished", *["failed"] * 3, "finished", "failed"]


def test_halving_keeps_the_best(tmp_path):
    config = linear_config(num_epochs=8, monitor="valid.loss")
    assert rungs_of(config, 2) == [1, 2, 4]
    changes = product(seeds(2), RATES)
    entries = run_sweep(config, changes, tmp_path / "halved", local, halving=2)
    results = [read_json(entry.trial.directory / "result.json") for entry in entries]
    assert sorted(result["num_epochs"] for result in results) == [1, 1, 1, 1, 2, 2, 4, 8]
    decided = read_json(tmp_path / "halved" / "halving.json")
    assert {epoch: len(names) for epoch, names in decided.items()} == {"1": 4, "2": 2, "4": 1}
    whole = run_sweep(config, changes, tmp_path / "whole", local)
    # The one that is left has been trained as without halving, and was the best at each rung.
    last = max(range(8), key=lambda i: results[i]["num_epochs"])
    alone = whole[last].trial.directory
    left = entries[last].trial.directory
    assert (left / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    assert read_result(left) == read_result(alone)
    first = [read_records(entry)[0]["valid"]["loss"] for entry in whole]
    dropped = {int(name) for name in decided["1"]}
    assert max(first[i] for i in set(range(8)) - dropped) < min(first[i] for i in dropped)


@pytest.mark.parametrize(
    "rung", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(None, marks=pytest.mark.slow)]
)
def test_a_halved_sweep_goes_on_with_other_workers(rung, tmp_path):
    """It is broken off before and behind a rung, with a checkpoint as early as one can be."""
    config = linear_config(num_epochs=8, monitor="valid.loss", checkpoint_every_epochs=1)
    changes = product(seeds(2), RATES)
    run_sweep(config, changes, tmp_path / "whole", local, halving=2)

    def breaks(chunks, *, until=None, **options):
        """Trains one chunk of those of this rung."""
        for number, chunk in enumerate(local(chunks, until=until, **options)):
            if until == rung and number == 0:
                raise KeyboardInterrupt
            yield chunk

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, changes, tmp_path / "broken", breaks, num_workers=3, halving=2)
    run_sweep(config, changes, tmp_path / "broken", local, num_workers=1, halving=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert read_json(whole / "halving.json") == read_json(broken / "halving.json")
    assert_close(read_lines(whole / "trials.jsonl"), read_lines(broken / "trials.jsonl"))
    with pytest.raises(UserError, match="holds another sweep"):
        run_sweep(config, changes, tmp_path / "broken", local, halving=4)


def test_what_ends_at_a_rung_takes_no_place_at_the_next(tmp_path):
    """Also where the failed trial's chunk has only ended ones left."""
    config = linear_config(num_epochs=8, monitor="valid.loss")
    changes = product({"optim.learning_rate": [0.003, 1e38, 0.03, 0.3]})
    kept = []
    for workers in (1, 4):
        run_sweep(config, changes, tmp_path / f"{workers}", local, workers, halving=2)
        kept.append(read_json(tmp_path / f"{workers}" / "halving.json"))
    assert kept[0] == kept[1]


def read_records(entry) -> list[dict]:
    import json

    text = (entry.trial.directory / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_another_sweep_does_not_go_on_here(tmp_path):
    run_sweep(linear_config(num_epochs=1), seeds(2), tmp_path, local)
    with pytest.raises(UserError, match="holds another sweep: give a new --workdir"):
        run_sweep(linear_config(num_epochs=1), seeds(3), tmp_path, local)


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
        assert all(apply(config, changes).is_locked for changes in trials)


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
        ("other", "get_sweep() must return what product() gives"),
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
        ((SEEDS, "--num_workers=2"), "--num_workers is for --executor=processes or ray"),
        (
            (SEEDS, "--executor=processes", "--num_workers=-1"),
            "--num_workers=-1 must be at least 0",
        ),
        ((SEEDS, "--address=here:1"), "--address is for --executor=ray"),
        ((SEEDS, "--executor=ray", "--address=here:1"), "--address needs --num_workers"),
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


def test_a_seed_that_is_none_fails_alone(tmp_path, capsys):
    run_sweep(linear_config(), product({"seed": [0, 1, -1]}), tmp_path / "sweep", local)
    assert "3 trials: 2 finished, 1 failed" in capsys.readouterr().out


def test_values_of_numpy_are_written_as_python_has_them(tmp_path):
    rates = np.array([0.03, 0.3], np.float32)
    changes = product({"optim.learning_rate": rates, "optim.betas": [(np.float32(0.5),)]})
    config = linear_config()
    with config.unlocked():
        config.optim.betas = (0.9,)
    assert apply(config, changes[0]).optim.betas == (0.5,)
    assert type(apply(config, changes[0]).optim.betas[0]) is float


def test_a_full_disk_ends_no_trial(tmp_path, monkeypatch):
    """It ends the sweep, which goes on when there is room."""

    def full(*args):
        raise UserError("no space left: make room, and the same command goes on")

    changes = seeds(2)
    with monkeypatch.context() as patch:
        patch.setattr("seqjax.training.trainer.to_facts", full)
        with pytest.raises(UserError, match="make room"):
            run_sweep(linear_config(), changes, tmp_path / "sweep", local)
    entries = run_sweep(linear_config(), changes, tmp_path / "sweep", local)
    assert all((entry.trial.directory / "result.json").exists() for entry in entries)
