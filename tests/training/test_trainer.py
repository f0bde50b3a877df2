"""The training loop: which weights are kept, and how runs go on under another config."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.same_runs import read_lines, read_result
from support.toys import linear_config, linear_task, read_json, read_scalars, use_linear_task

from seqjax.errors import UserError
from seqjax.runs.checkpoint import read_facts, steps_in
from seqjax.runs.signals import Stopped
from seqjax.tasks.base import Task
from seqjax.training.fit import fit, restore_best
from seqjax.training.setup import count_updates, make_setup
from seqjax.training.trainer import Trainer

TASK = linear_task()


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    use_linear_task(monkeypatch)


def records_of(workdir: Path) -> list[dict]:
    return read_lines(workdir / "metrics.jsonl")


def stop_at(step: int, config: ConfigDict, workdir: Path, task: Task = TASK) -> None:
    """Trains a run up to a step, as a signal would stop it there."""
    call = Trainer._call

    def call_and_ask(self, steps_left):
        call(self, steps_left)
        if self.now.step == step:
            self.signals.received = signal.SIGTERM

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "_call", call_and_ask)
        fit(task, config, workdir)


# Which weights are kept


def test_the_weights_kept_by_a_training_metric_are_those_that_had_it(tmp_path):
    """In full batches an epoch's mean loss is that of the weights before its only update."""
    config = linear_config(monitor="train.loss", batch_size=22, num_epochs=12)
    config.optim.update(name="sgd", learning_rate=30.0)
    result = fit(TASK, config, tmp_path / "run")
    records = records_of(tmp_path / "run")
    measured = [record["train_eval"]["loss"] for record in records]
    best = int(np.argmin(measured))
    assert result["best_epoch"] == best + 1
    # The same program measures both.
    assert {name: result["train"][name] for name in ("loss", "accuracy")} == records[best][
        "train_eval"
    ]
    assert int(np.argmin([record["train"]["loss"] for record in records])) != best
    setup = make_setup(TASK, config)
    params, _ = restore_best(setup, tmp_path / "run")
    assert setup.evaluator.metrics(params, TASK.splits["train"])["loss"] == measured[best]


def test_a_run_that_monitors_validation_does_not_measure_the_training_rows(single_run):
    assert all("train_eval" not in record for record in records_of(single_run(linear_config())))


# Another config, allowed


@pytest.mark.parametrize(
    ("train", "num_rows", "steps"),
    [
        (dict(batch_size=11), 22, 2),
        pytest.param(dict(batch_size=3), 22, 8, marks=pytest.mark.slow),
        pytest.param(dict(drop_remainder=True), 22, 3, marks=pytest.mark.slow),
        pytest.param({}, 36, 6, marks=pytest.mark.slow),
        ({}, 9, 2),
    ],
)
def test_a_run_goes_on_at_its_epoch_with_other_batches(train, num_rows, steps, tmp_path, capsys):
    workdir = tmp_path / "run"
    keeping = dict(monitor_mode="max", checkpoint_every_epochs=1)  # an early epoch is the best
    fit(TASK, linear_config(**keeping), workdir)
    before = records_of(workdir)
    sizes = {"train": num_rows, "valid": 9, "test": 5}
    task = TASK if num_rows == 22 else linear_task(sizes)
    config = linear_config(**keeping, num_epochs=8, **train)
    capsys.readouterr()
    fit(task, config, workdir, allow_changes=True)
    assert "resuming at step 24 (epoch 6)\n" in capsys.readouterr().out
    records = records_of(workdir)
    assert records[:6] == before
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert [record["step"] for record in records[6:]] == [24 + steps, 24 + 2 * steps]
    assert all("valid" in record for record in records)
    best = records[read_json(workdir / "result.json")["best_epoch"] - 1]["step"]
    assert best in [int(path.name) for path in steps_in(workdir / "checkpoints")]


def test_an_epoch_begins_again_if_its_batches_are_not_those_of_before(tmp_path, capsys):
    workdir = tmp_path / "run"
    stop_at(14, linear_config(steps_per_call=1), workdir)
    capsys.readouterr()
    fit(TASK, linear_config(batch_size=5), workdir, allow_changes=True)
    out = capsys.readouterr().out
    assert "resuming at step 14 (epoch 3.5)\nepoch 4 begins again: its batches are not" in out
    records = records_of(workdir)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records] == [4, 8, 12, 19, 24, 29]


def test_a_run_goes_on_with_another_interval_of_evaluations(tmp_path):
    """Two of four epochs were trained; then each epoch is to be evaluated."""
    workdir = tmp_path / "run"
    stop_at(10, linear_config(steps_per_call=1, eval_every_epochs=4), workdir)
    fit(TASK, linear_config(), workdir, allow_changes=True)
    records = records_of(workdir)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert ["valid" in record for record in records] == [False, False, True, True, True, True]


def test_a_run_that_ends_within_an_interval_is_evaluated_and_saved(tmp_path):
    """It was stopped after two of four epochs; then these two are to be all."""
    workdir = tmp_path / "run"
    stop_at(8, linear_config(steps_per_call=1, eval_every_epochs=4), workdir)
    with pytest.raises(UserError, match="has no evaluated weights yet"):
        restore_best(make_setup(TASK, linear_config()), workdir)
    short = linear_config(num_epochs=2)
    result = fit(TASK, short, workdir, allow_changes=True)
    assert (result["num_epochs"], result["best_epoch"]) == (2, 2)
    params, progress = restore_best(make_setup(TASK, short), workdir)
    assert progress.best_epoch == 2
    metrics = make_setup(TASK, short).evaluator.metrics(params, TASK.splits["valid"])
    assert metrics == result["valid"] == records_of(workdir)[-1]["valid"]


def test_a_run_cannot_end_before_the_step_where_it_is(tmp_path):
    workdir = tmp_path / "run"
    stop_at(10, linear_config(steps_per_call=1), workdir)
    config = linear_config(num_epochs=2)
    with pytest.raises(UserError, match="num_epochs=2: the run is at epoch 2.5, .* at least 3"):
        fit(TASK, config, workdir, allow_changes=True)


def test_a_task_without_its_main_metric_is_refused(tmp_path):
    task = TASK._replace(main_metric="accurracy")
    with pytest.raises(UserError, match="unknown Task.main_metric 'accurracy'.*'accuracy'"):
        fit(task, linear_config(), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        dict(patience=50),
        pytest.param(dict(patience=0), marks=pytest.mark.slow),
        pytest.param(dict(num_epochs=20), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_stopped_early_goes_on_under_another_rule(change, tmp_path):
    stopping = dict(num_epochs=9, patience=2, min_delta=100.0)
    fit(TASK, linear_config(**stopping), tmp_path / "run")
    assert read_json(tmp_path / "run" / "result.json")["num_epochs"] == 3
    config = linear_config(**stopping | change)
    result = fit(TASK, config, tmp_path / "run", allow_changes=True)
    # More epochs give the same patience again, of two evaluations.
    assert result["num_epochs"] == (5 if "num_epochs" in change else 9)
    assert result["best_epoch"] == 1
    assert len(records_of(tmp_path / "run")) == result["num_epochs"]
    alone = fit(TASK, linear_config(**stopping | change | {"patience": 0}), tmp_path / "alone")
    assert alone["num_epochs"] >= 9
    assert records_of(tmp_path / "alone")[: result["num_epochs"]] == records_of(tmp_path / "run")


@pytest.mark.slow
def test_a_longer_patience_counts_the_evaluations_before(tmp_path):
    stopping = dict(num_epochs=9, patience=2, min_delta=100.0)
    fit(TASK, linear_config(**stopping), tmp_path / "run")
    config = linear_config(**stopping | {"patience": 4})
    assert fit(TASK, config, tmp_path / "run", allow_changes=True)["num_epochs"] == 5


def test_another_learning_rate_is_used_from_the_next_step_on(tmp_path):
    fit(TASK, linear_config(), tmp_path / "run")
    config = linear_config(num_epochs=7)
    config.optim.learning_rate = 0.01
    fit(TASK, config, tmp_path / "run", allow_changes=True)
    rates = [record["learning_rate"] for record in records_of(tmp_path / "run")]
    assert rates == [np.float32(0.05)] * 6 + [np.float32(0.01)]


@pytest.mark.parametrize(
    ("optim", "train"),
    [
        ({}, dict(num_epochs=9)),
        pytest.param(dict(accumulate_steps=3), {}, marks=pytest.mark.slow),
        pytest.param({}, dict(batch_size=3), marks=pytest.mark.slow),
    ],
)
def test_the_schedule_of_a_run_that_goes_on_ends_with_it(optim, train, tmp_path):
    """Its length is the number of updates made and to come, so no update has the rate 0."""
    config = linear_config()
    config.optim.update(name="sgd", schedule="cosine", accumulate_steps=2)
    stop_at(14, linear_copy(config, steps_per_call=1), tmp_path / "run")
    changed = linear_copy(config, **train)
    changed.optim.update(optim)
    fit(TASK, changed, tmp_path / "run", allow_changes=True)
    setup = make_setup(TASK, changed)
    steps = setup.data.steps_per_epoch
    left = steps * changed.train.num_epochs - 3 * steps - (2 if steps == 4 else 0)
    total = 7 + -(-left // changed.optim.accumulate_steps)
    last = records_of(tmp_path / "run")[-1]["learning_rate"]
    # A cosine in float32, whose argument is near pi.
    expected = 0.05 * 0.5 * (1 + np.cos(np.pi * (total - 1) / total))
    np.testing.assert_allclose(last, expected, rtol=1e-4)


def linear_copy(config: ConfigDict, **train) -> ConfigDict:
    copied = config.copy_and_resolve_references()
    copied.train.update(train)
    return copied


def test_a_plateau_follows_the_monitor_and_survives_a_stop(tmp_path):
    config = linear_config(num_epochs=8)
    plateau = (
        "plateau(factor=0.5, patience=1, min_delta=100.0, monitor='valid.accuracy', mode='max')"
    )
    config.optim.schedule = plateau
    fit(TASK, config, tmp_path / "whole")
    rates = [record["learning_rate"] for record in records_of(tmp_path / "whole")]
    # The first value is the best; each later one is bad, and the epoch after it is slower.
    np.testing.assert_allclose(rates, [0.05, 0.05, *(0.05 / 2 ** np.arange(1.0, 7))], rtol=1e-6)
    stop_at(18, linear_copy(config, steps_per_call=1), tmp_path / "parts")
    fit(TASK, config, tmp_path / "parts")
    assert records_of(tmp_path / "parts") == records_of(tmp_path / "whole")
    assert read_result(tmp_path / "parts") == read_result(tmp_path / "whole")


def test_a_metric_that_a_plateau_cannot_follow_is_named(tmp_path):
    config = linear_config()
    config.optim.schedule = "plateau(monitor='valid.los')"
    with pytest.raises(UserError, match=r"optim.schedule: monitor 'valid.los'.*'valid.loss'"):
        fit(TASK, config, tmp_path / "run")


@pytest.mark.parametrize(("steps", "updates"), [(1, 24), (5, 5), (24, 1)])
def test_the_number_of_updates_is_that_of_whole_and_cut_windows(steps, updates):
    config = linear_config()
    config.optim.accumulate_steps = steps
    assert count_updates(config, make_setup(TASK, config).data) == updates


def test_more_accumulated_steps_than_the_run_has_are_refused(tmp_path):
    config = linear_config()
    config.optim.accumulate_steps = 25
    with pytest.raises(UserError, match="accumulate_steps=25 must be at least 1 and at most 24"):
        fit(TASK, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What is logged of steps


def test_steps_are_logged_with_norms_and_never_twice(tmp_path, monkeypatch):
    config = linear_config(log_every_steps=5)
    fit(TASK, config, tmp_path / "whole")
    lines = read_lines(tmp_path / "whole" / "steps.jsonl")
    assert [(line["step"], line["epoch"]) for line in lines] == [(5, 2), (10, 3), (15, 4), (20, 5)]
    for line in lines:
        assert set(line) == {
            *("step", "epoch", "learning_rate", "loss", "accuracy"),
            *("gradient_norm", "update_norm", "parameter_norm"),
        }
    scalars = read_scalars(tmp_path / "whole")
    assert scalars["step/gradient_norm", 10] == np.float32(lines[1]["gradient_norm"])
    stop_at(17, linear_copy(config, steps_per_call=1), tmp_path / "parts")
    path = tmp_path / "parts" / "steps.jsonl"
    with path.open("a", encoding="utf-8") as file:  # as a kill after the checkpoint may leave it
        file.write('{"step": 20, "epoch": 5, "loss": 9.0}\n{"step": 2')
    fit(TASK, config, tmp_path / "parts")
    assert path.read_bytes() == (tmp_path / "whole" / "steps.jsonl").read_bytes()


def test_a_trace_of_some_steps_is_written_and_changes_nothing(tmp_path, monkeypatch, single_run):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path, **_: calls.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    steps, call = [], Trainer._call

    def call_and_note(self, steps_left):
        call(self, steps_left)
        steps.append((self.now.step, list(calls)))

    monkeypatch.setattr(Trainer, "_call", call_and_note)
    fit(TASK, linear_config(), tmp_path / "run", profile=(6, 4))
    there = str(tmp_path / "run" / "profile")
    assert dict(steps)[6] == [] and dict(steps)[8] == dict(steps)[10] == [there]
    assert calls == [there, "stop"]
    assert records_of(tmp_path / "run") == records_of(single_run(linear_config()))


@pytest.mark.parametrize("profile", [(20, 5), (25, 1)])
def test_steps_to_trace_that_a_run_does_not_have_are_refused(profile, tmp_path):
    with pytest.raises(UserError, match=r"--profile=2\d:\d: the run has the steps 0 to 24"):
        fit(TASK, linear_config(), tmp_path / "run", profile=profile)


def test_checkpoints_are_strict_json_and_hold_no_decision(single_run):
    newest = steps_in(single_run(linear_config()) / "checkpoints")[0]
    text = (newest / "facts" / "metadata").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    assert "stopped" not in text and read_facts(newest)["format"] == 2
