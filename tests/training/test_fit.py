"""Runs: what they leave behind, that a stop changes nothing, and which weights they end with."""

import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support.same_runs import COSTS, read_result
from support.toys import (
    assert_picture,
    evaluate,
    linear_config,
    linear_task,
    read_json,
    read_scalars,
)

import seqjax.plots
from seqjax.distributed.choices import Choice, save_choice
from seqjax.errors import UserError
from seqjax.files import sha256
from seqjax.runs.checkpoint import newest, read_facts
from seqjax.runs.signals import Stopped
from seqjax.training.epoch import LOOPS, START, LoopOptions
from seqjax.training.fit import fit, restore_best
from seqjax.training.logger import MetricLogger, read_records
from seqjax.training.setup import make_setup, task_shape
from seqjax.training.train_step import init_train_state, make_keys
from seqjax.training.trainer import Trainer

TASK = linear_task()


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def finished(single_run) -> Path:
    """The directory of a run of six epochs, for tests that only read it."""
    return single_run(linear_config())


def contents(workdir: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    files = [path for path in workdir.rglob("*") if path.is_file()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def restore(workdir: Path, config: ConfigDict) -> dict:
    """The state and the best parameters of the newest checkpoint."""
    like = make_setup(TASK, config).arrays_like()
    return newest(workdir / "checkpoints", like, lambda facts: "", print).arrays


def equal(some, others) -> bool:
    """Whether two nests hold the same bits."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, some, others)))


def assert_same_end(some: Path, other: Path) -> None:
    """Asserts that two runs have the same records and results, to the last bit."""
    assert (some / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert read_result(some) == read_result(other)


class Killed(BaseException):
    """What no `except Exception` catches."""


def kill_at(monkeypatch, epoch: int) -> None:
    """Lets a run die once it has written the record of an epoch."""
    add = MetricLogger.add

    def add_and_die(self, records):
        add(self, records)
        if records[-1]["epoch"] == epoch:
            raise Killed

    monkeypatch.setattr(MetricLogger, "add", add_and_die)


def test_a_run_leaves_what_the_design_says(finished):
    names = {path.name for path in finished.iterdir()}
    events, examples = sorted(name for name in names if name.startswith("events.out."))
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "environment.json",
        "fingerprint.json",
        "lock",
        "metrics.jsonl",
        "result.json",
        events,
        examples,
    }
    assert read_json(finished / "config.json") == json.loads(linear_config().to_json())
    environment = read_json(finished / "environment.json")
    names = {"python", "platform", "packages", "devices", "matrix_precision", "commit", "choice"}
    assert set(environment) == names
    assert environment["choice"] == {"num_devices": 1, "microbatch_size": 32, "source": "rule"}
    assert environment["packages"]["jax"] == jax.__version__


def test_the_curves_of_a_run_are_drawn(tmp_path, monkeypatch):
    monkeypatch.undo()
    fit(TASK, linear_config(num_epochs=2), tmp_path / "run")
    assert_picture(tmp_path / "run" / "curves.png")


def test_records_are_one_json_object_an_epoch(finished):
    lines = (finished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records] == [4, 8, 12, 16, 20, 24]
    for record in records:
        assert set(record) == {"epoch", "step", "learning_rate", "train", "valid"}
        # The schedule's rate is a float32.
        np.testing.assert_allclose(record["learning_rate"], 0.05, rtol=1e-6)
        assert set(record["train"]) == set(record["valid"]) == {"loss", "accuracy"}


def test_the_result_is_nested_by_split(finished):
    result = read_json(finished / "result.json")
    counts = {"best_epoch", "num_epochs", "num_parameters"}
    assert set(result) == {"train", "valid", "test", *counts, *COSTS}
    assert 0 < result["compile_seconds"] < result["wall_seconds"]
    assert result["examples_per_second"] > 0 and result["peak_memory_bytes"] > 1e7
    for split in ("train", "valid", "test"):
        assert set(result[split]) == {"loss", "accuracy"}
    assert result["num_epochs"] == 6
    assert result["num_parameters"] == 21


def test_launching_a_finished_run_changes_nothing(finished, capsys):
    before = contents(finished)
    assert fit(TASK, linear_config(), finished) == read_json(finished / "result.json")
    assert "finished run of this config; nothing to do" in capsys.readouterr().out
    assert contents(finished) == before


RESUMED = {
    "plain": (5, {}, {}),
    "before the first checkpoint": (1, {}, {}),
    # The first epoch stays the best: the bad ones before the stop count, its weights are kept.
    "early stop": (3, dict(num_epochs=9, patience=4, min_delta=100.0), {}),
    "everything": (
        5,
        dict(loop="step", num_devices=2, monitor="epoch"),
        dict(schedule="plateau(patience=1)", ema_decay=0.5, accumulate_steps=3, clip_norm=1.0),
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_launched_again_ends_as_if_never_stopped(
    case, finished, tmp_path, monkeypatch, capsys
):
    epoch, train, optim = RESUMED[case]
    config = linear_config(**train)
    config.optim.update(optim)
    through, stopped = finished, tmp_path / "stopped"
    if config.to_dict() != linear_config().to_dict():
        through = tmp_path / "through"
        fit(TASK, config, through)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch)
        fit(TASK, config, stopped)
    assert [r["epoch"] for r in read_records(stopped / "metrics.jsonl")][-1] == epoch
    assert not (stopped / "result.json").exists()
    capsys.readouterr()
    fit(TASK, config, stopped)
    # A checkpoint was due every second epoch.
    epoch = epoch // 2 * 2
    resumed = f"resuming at step {4 * epoch} (epoch {epoch})\n"
    assert (resumed in capsys.readouterr().out) == (epoch > 0)
    assert_same_end(stopped, through)
    if case == "early stop":
        assert read_json(through / "result.json")["num_epochs"] == 5
        assert read_json(through / "result.json")["best_epoch"] == 1
    arrays = restore(stopped, config)
    assert equal(arrays, restore(through, config))
    if case == "everything":  # the weights to keep are the running mean
        state = arrays["state"]
        mean = optax.tree_utils.tree_get(state.opt_state, "ema")
        assert equal(arrays["best_params"], mean) and not equal(mean, state.params)


@pytest.mark.parametrize("steps_per_call", [0, 1, 3])
def test_a_run_stopped_in_mid_epoch_resumes_exactly(
    steps_per_call, finished, tmp_path, monkeypatch, capsys
):
    """At step 13 of 24, one step into the fourth epoch, with calls of other sizes before."""
    workdir, config = tmp_path / "run", linear_config(steps_per_call=steps_per_call)
    call = Trainer._call

    def call_and_ask(self, steps_left):
        call(self, steps_left)
        if self.now.step == 13:
            self.signals.received = signal.SIGTERM

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(Trainer, "_call", call_and_ask)
        fit(TASK, linear_config(steps_per_call=1, log_every_epochs=2), workdir)
    assert stopped.value.code == 143
    assert stopped.value.message.startswith("stopped and saved at step 13 (epoch 3.25): the same")
    capsys.readouterr()
    fit(TASK, config, workdir)
    assert "resuming at step 13 (epoch 3.25)\n" in capsys.readouterr().out
    assert_same_end(workdir, finished)
    assert equal(restore(workdir, config), restore(finished, config))
    assert read_json(workdir / "config.json")["train"]["steps_per_call"] == steps_per_call


def test_a_run_that_was_stopped_at_an_evaluation_has_saved_it(finished, tmp_path, monkeypatch):
    workdir, call = tmp_path / "run", Trainer._call

    def call_and_ask(self, steps_left):
        call(self, steps_left)
        self.signals.received = signal.SIGINT if self.now.step == 12 else None

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "_call", call_and_ask)
        fit(TASK, linear_config(steps_per_call=4), workdir)
    assert len(read_records(workdir / "metrics.jsonl")) == 3
    (saved,) = (p for p in (workdir / "checkpoints").iterdir() if p.name == "12")
    assert read_facts(saved)["evaluated"] == 3


def test_time_makes_checkpoints_in_the_middle_of_an_epoch(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    config = linear_config(checkpoint_every_minutes=1e-9, steps_per_call=3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        fit(TASK, config, workdir)
    # After three of an epoch's four steps, and so none was due at the evaluations.
    assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"15", "19"}
    fit(TASK, config, workdir)
    assert_same_end(workdir, finished)


def test_a_run_killed_while_it_concludes_trains_no_more(tmp_path, monkeypatch):
    config, workdir = linear_config(num_epochs=2), tmp_path / "run"
    fit(TASK, config, workdir)
    shutil.copytree(workdir, tmp_path / "before")
    (workdir / "result.json").unlink()
    kill_at(monkeypatch, 1)
    kill_at(monkeypatch, 2)
    fit(TASK, config, workdir)
    assert_same_end(workdir, tmp_path / "before")


def test_another_configs_directory_is_refused_naming_the_fields(finished):
    before = contents(finished)
    config = linear_config(num_epochs=7)
    config.seed = 1
    with pytest.raises(UserError) as caught:
        fit(TASK, config, finished)
    assert "seed: 0 -> 1; train.num_epochs: 6 -> 7" in str(caught.value)
    assert "\n" not in str(caught.value)
    after = contents(finished)
    assert after == before


def test_allowed_changes_are_recorded_and_the_run_goes_on(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    config, before = linear_config(num_epochs=8), read_json(workdir / "result.json")
    result = fit(TASK, config, workdir, allow_changes=True)
    assert "changed from step 24 on: train.num_epochs: 6 -> 8\n" in capsys.readouterr().out
    (line,) = (workdir / "changes.jsonl").read_text(encoding="utf-8").splitlines()
    entry = json.loads(line)
    assert (entry["step"], entry["changed"]) == (24, ["train.num_epochs: 6 -> 8"])
    assert entry["result"] == before and entry["config"] == read_json(finished / "config.json")
    assert result["num_epochs"] == 8 and read_json(workdir / "result.json") == result
    records = read_records(workdir / "metrics.jsonl")
    assert records[:6] == read_records(finished / "metrics.jsonl") and len(records) == 8
    assert evaluate(TASK, config, workdir) == read_result(workdir)
    # The new config is the run's own now, the old one is another's.
    fit(TASK, config, workdir)
    with pytest.raises(UserError, match="train.num_epochs: 8 -> 6"):
        fit(TASK, linear_config(), workdir)
    # A checkpoint of before the change is still of this run.
    for step in ("28", "32"):
        shutil.rmtree(workdir / "checkpoints" / step, ignore_errors=True)
    (workdir / "result.json").unlink()
    fit(TASK, config, workdir)
    assert read_result(workdir) == {name: x for name, x in result.items() if name not in COSTS}


def test_a_change_that_no_checkpoint_survives_changes_nothing(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = contents(workdir)
    config = linear_config()
    config.optim.name = "sgd"  # which keeps no moments
    with pytest.raises(UserError, match="cannot be used: .* no whole one is left: restore one"):
        fit(TASK, config, workdir, allow_changes=True)
    assert contents(workdir) == before


def test_other_data_is_refused_and_recorded_if_allowed(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    valid = TASK.splits["valid"] | {"label": 1 - TASK.splits["valid"]["label"] % 2}
    task = TASK._replace(splits={**TASK.splits, "valid": valid})
    with pytest.raises(UserError, match=r"other data \(the rows of valid\): give a new"):
        fit(task, linear_config(), workdir)
    fit(task, linear_config(), workdir, allow_changes=True)
    assert '"changed": ["the rows of valid"]' in (workdir / "changes.jsonl").read_text()


# What a task adds


def test_fitted_files_are_saved_once_before_the_first_step(tmp_path, monkeypatch, capsys):
    calls = []

    def save(directory: Path) -> list[Path]:
        calls.append(sorted(directory.iterdir()))
        (directory / "vocabulary.json").write_text("[]", encoding="utf-8")
        return [directory / "vocabulary.json"]

    task = TASK._replace(save_fitted=save)
    config, workdir = linear_config(num_epochs=2), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 1)
        fit(task, config, workdir)
    (there,) = calls
    assert [path.name for path in there] == ["lock"]
    for _ in range(2):  # resumed, then finished
        fit(task, config, workdir)
    assert len(calls) == 1
    digest = sha256(workdir / "vocabulary.json")
    assert read_json(workdir / "fingerprint.json")["files"] == {"vocabulary.json": digest}
    (workdir / "vocabulary.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match=r"another config or other data \(the file vocabulary"):
        fit(task, config, workdir)
    with pytest.raises(UserError, match=r"vocabulary.json is not the one of this run: restore"):
        evaluate(task, config, workdir)


def test_corpus_metrics_are_added_to_each_splits_metrics(tmp_path, capsys):
    def score(predict, split, means):
        return {"rows": float(len(predict(split))), "twice": 2 * means["loss"]}

    workdir = tmp_path / "run"
    result = fit(TASK._replace(corpus_metrics=score), linear_config(num_epochs=1), workdir)
    for split, size in (("train", 22), ("valid", 9), ("test", 5)):
        assert result[split]["rows"] == size
        assert result[split]["twice"] == 2 * result[split]["loss"]
    assert read_json(workdir / "result.json") == result
    assert "rows 22.0000" in capsys.readouterr().out


def test_the_best_weights_come_back_with_how_far_the_run_is(finished):
    setup = make_setup(TASK, linear_config())
    params, progress = restore_best(setup, finished)
    best = read_json(finished / "result.json")["best_epoch"]
    assert (progress.epoch, progress.best_epoch) == (6, best)
    assert equal(params, restore(finished, linear_config())["best_params"])


# The best weights


def test_the_result_and_what_is_printed_are_of_the_best_weights(tmp_path, capsys):
    # The highest loss is that of the first epoch: its weights must outlive five better ones.
    config = linear_config(monitor="train.loss", monitor_mode="max", dropout_at_test=True)
    result = fit(TASK, config, tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert result["best_epoch"] == 1 and result["num_epochs"] == 6
    alive = {name: result["valid"].pop(f"{name}_dropout") for name in ("loss", "accuracy")}
    assert result["valid"] == records[0]["valid"] != records[5]["valid"]
    assert alive["loss"] != result["valid"]["loss"]
    printed = capsys.readouterr().out
    for split in ("train", "valid", "test"):
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{split} (epoch 1)"))
        for name, value in result[split].items():
            assert f"{name} {value:.4f}" in line
    assert "row 0: class " in printed
    assert f"written to {tmp_path / 'run'}: " in printed


def test_the_monitor_epoch_keeps_the_last_weights(tmp_path):
    config = linear_config(monitor="epoch", monitor_mode="min", eval_every_epochs=4)
    result = fit(TASK, config, tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    # Evaluations come every so many epochs, and at the end.
    assert [record["epoch"] for record in records if "valid" in record] == [4, 6]
    assert result["best_epoch"] == 6
    assert result["valid"] == records[-1]["valid"]


@pytest.mark.parametrize("train", [dict(loop="step"), dict(num_devices=2)])
def test_loops_and_devices_give_the_same_result(train, finished, tmp_path):
    result = fit(TASK, linear_config(**train), tmp_path / "run")
    expected = read_json(finished / "result.json")
    assert result["best_epoch"] == expected["best_epoch"]
    for split in ("train", "valid", "test"):
        for name, value in result[split].items():
            # Sums in another order, over 24 steps: a few units in the last place of float32.
            np.testing.assert_allclose(value, expected[split][name], rtol=1e-6)


# Losses that are no number


def clock_task(limit: int):
    """The linear task with a clock that SGD of rate 1 moves on; its loss is NaN from a step on."""

    def init(key):
        return {**TASK.init(key), "clock": {"time": jnp.zeros(())}}

    def measure(params, batch, keys=None, **_):
        metrics, time = TASK.loss_and_metrics(params, batch, keys), params["clock"]["time"]
        total, weight = metrics["loss"]
        ticking = total - time * weight
        return metrics | {
            "loss": metrics["loss"]._replace(total=jnp.where(time >= limit, jnp.nan, ticking))
        }

    return TASK._replace(init=init, loss_and_metrics=measure)


def clock_config(**train) -> ConfigDict:
    config = linear_config(**train)
    config.optim.update(name="sgd", learning_rate=1.0)
    return config


def test_a_nan_names_its_step_and_keeps_the_last_checkpoint(tmp_path, capsys):
    task, config, workdir = clock_task(10), clock_config(), tmp_path / "run"
    with pytest.raises(UserError) as caught:
        fit(task, config, workdir)
    # The first ten steps are fine: three epochs of four steps each, less two.
    assert str(caught.value).startswith(
        "at step 11 (epoch 3, batch 3) the loss is nan; the checkpoint of step 8 stays: "
    )
    assert "\n" not in str(caught.value)
    records = read_records(workdir / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2]
    assert not (workdir / "result.json").exists()
    result = evaluate(task, config, workdir)
    assert result["num_epochs"] == 2
    assert result["valid"] == records[1]["valid"]


def test_a_nan_before_any_checkpoint_says_so(tmp_path):
    config = clock_config(eval_every_epochs=6)
    with pytest.raises(UserError, match=r"batch 3\) the loss is nan; nothing was saved yet"):
        fit(clock_task(10), config, tmp_path / "run")
    with pytest.raises(UserError, match="has no checkpoint yet: train it first"):
        evaluate(clock_task(10), config, tmp_path / "run")


def test_bad_steps_may_be_skipped_and_are_counted(tmp_path, capsys):
    """A batch with rows that are no numbers, met once an epoch."""
    rows = {name: x.copy() for name, x in TASK.splits["train"].items()}
    rows["x"][3] = np.nan
    task = TASK._replace(splits={**TASK.splits, "train": rows})
    with pytest.raises(UserError) as caught:
        fit(task, linear_config(), tmp_path / "strict")
    assert re.match(
        r"at step (\d) \(epoch 1, batch \1\) the loss is nan and the gradient of output.bias has 3 "
        r"of 3 elements such as nan; nothing was saved yet: ",
        str(caught.value),
    )
    with pytest.raises(UserError, match=r"\(epoch 4, .* \(3 steps were skipped before\)"):
        fit(task, linear_config(max_skipped_steps=3), tmp_path / "three")
    result = fit(task, linear_config(max_skipped_steps=6), tmp_path / "six")
    records = read_records(tmp_path / "six" / "metrics.jsonl")
    assert [record["skipped_steps"] for record in records] == [1] * 6
    assert all(np.isfinite(list(record["train"].values())).all() for record in records)
    assert records[-1]["train"]["loss"] < records[0]["train"]["loss"]
    assert np.isfinite(result["valid"]["loss"])


@pytest.mark.parametrize("loop", ["epoch", "step"])
def test_no_step_is_made_after_a_bad_one(loop, tmp_path):
    """The state stays as the bad step found it, though the call was to make more steps."""
    task, config = clock_task(10), clock_config(eval_every_epochs=6, loop=loop)
    setup = make_setup(task, config)
    make_loop = LOOPS[loop]
    options = LoopOptions(max_steps=24, num_epochs=6)
    run = make_loop(task.loss_and_metrics, setup.optimizer, setup.data, setup.mesh, options)
    params = jax.jit(task.init)(jax.random.key(0))
    state, log = run(init_train_state(params, setup.optimizer), make_keys(0), START, 24)
    assert int(state.step) == 11
    assert np.asarray(log.skipped)[:11].tolist() == [0] * 10 + [1]
    assert float(state.params["clock"]["time"]) == 10


def test_a_parameter_that_is_no_number_is_never_saved(tmp_path):
    """The last update of an epoch may be too large for float32, after a loss that was fine."""

    def measure(params, batch, keys=None, step=None, **_):
        metrics = TASK.loss_and_metrics(params, batch, keys)
        steep = jnp.where((-1 if step is None else step) == 7, -3e38, 0.0) * params["clock"]["time"]
        total, weight = metrics["loss"]
        return metrics | {"loss": metrics["loss"]._replace(total=total + steep * weight)}

    task, config = (
        clock_task(0)._replace(loss_and_metrics=measure),
        clock_config(monitor="train.loss"),
    )
    config.optim.learning_rate = 2.0
    task = task._replace(splits={"train": TASK.splits["train"]})
    with pytest.raises(UserError, match="after epoch 2 the parameter clock.time has 1 of 1 elemen"):
        fit(task, config, tmp_path / "run")
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_the_operation_that_gives_no_number_is_found(tmp_path):
    def measure(params, batch, keys=None, **_):
        metrics = TASK.loss_and_metrics(params, batch, keys)
        total, weight = metrics["loss"]
        return metrics | {"loss": metrics["loss"]._replace(total=total + jnp.log(-weight))}

    task = TASK._replace(loss_and_metrics=measure)
    with pytest.raises(UserError) as caught:
        fit(task, linear_config(), tmp_path / "run", debug_nans=True)
    assert "at step 1 (epoch 1, batch 1) the loss is nan" in str(caught.value)
    assert "encountered in log, called in test_fit.py, line " in str(caught.value)
    assert "jnp.log(-weight)" in str(caught.value)


# TensorBoard


def test_tensorboard_holds_the_records_scalars(finished):
    scalars = read_scalars(finished)
    speeds = {scalars.pop(key) for key in list(scalars) if key[0] == "examples_per_second"}
    assert min(speeds) > 0
    expected = {}
    for record in read_records(finished / "metrics.jsonl"):
        expected["learning_rate", record["step"]] = record["learning_rate"]
        for split in ("train", "valid"):
            for name, value in record[split].items():
                expected[f"{name}/{split}", record["step"]] = value
    assert set(scalars) == set(expected)
    for key, value in expected.items():
        assert scalars[key] == np.float32(value)


# Evaluation afterwards


def test_evaluate_returns_the_result_and_changes_no_file(finished, capsys):
    before = contents(finished)
    result = evaluate(TASK, linear_config(), finished)
    printed = capsys.readouterr().out
    assert result == read_result(finished)
    assert f"test (epoch {result['best_epoch']}): " in printed
    assert f"accuracy {result['test']['accuracy']:.4f}" in printed
    assert contents(finished) == before


def test_evaluating_no_run_makes_no_directory(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint yet: train it first"):
        evaluate(TASK, linear_config(), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# Settings that cannot be used


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (dict(batch_size=0), "train.batch_size=0 must be between 1 and 22, the number"),
        (dict(batch_size=23), "train.batch_size=23 must be between"),
        (dict(num_epochs=0), "train.num_epochs=0 must be at least 1"),
        (dict(eval_every_epochs=0), "train.eval_every_epochs=0 must be at least 1"),
        (dict(checkpoint_every_epochs=-1), "train.checkpoint_every_epochs=-1 must be at least 1"),
        (dict(monitor_mode="most"), "train.monitor_mode='most' must be 'min' or 'max'"),
        (dict(loop="epochs"), "unknown train.loop 'epochs': did you mean 'epoch'"),
        (dict(monitor="valid.acuracy"), "unknown train.monitor .* mean 'valid.accuracy'"),
        (dict(monitor="test.loss"), "unknown train.monitor 'test.loss'"),
        (dict(num_devices=9), "train.num_devices=9: this machine has 8; 0 chooses"),
        (dict(num_devices=-1), "train.num_devices=-1: this machine has 8"),
    ],
)
def test_an_unusable_setting_is_one_line_and_writes_nothing(train, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        fit(TASK, linear_config(**train), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_monitoring_a_missing_validation_split_is_refused(tmp_path):
    task = linear_task({"train": 9})
    with pytest.raises(UserError, match=r"unknown train.monitor 'valid.loss'.*train.loss"):
        fit(task, linear_config(), tmp_path / "run")
    result = fit(task, linear_config(num_epochs=1, monitor="train.loss"), tmp_path / "run")
    assert set(result) == {"train", "best_epoch", "num_epochs", "num_parameters", *COSTS}
    assert "valid" not in read_records(tmp_path / "run" / "metrics.jsonl")[0]


def test_a_resumed_run_keeps_its_choice(tmp_path, monkeypatch, capsys):
    """Another choice is measured while it is paused: it ends as a run without a pause."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = linear_config(num_devices=0, batch_size=8)
    shape = task_shape(TASK, config)
    save_choice(shape, Choice(4, 1, "measurement"))
    fit(TASK, config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        fit(TASK, config, tmp_path / "paused")
    save_choice(shape, Choice(2, 2, "measurement"))
    capsys.readouterr()
    fit(TASK, config, tmp_path / "paused")
    assert Choice(4, 1, "measurement").describe() in capsys.readouterr().out
    fit(TASK, config, tmp_path / "later")
    assert_same_end(tmp_path / "paused", tmp_path / "whole")
    sizes = {"whole": (4, 1), "paused": (4, 1), "later": (2, 2)}
    for name, (num_devices, microbatch_size) in sizes.items():
        found = read_json(tmp_path / name / "environment.json")["choice"]
        expected = {"num_devices": num_devices, "microbatch_size": microbatch_size}
        assert found == {**expected, "source": "measurement"}
    assert read_json(tmp_path / "later" / "fingerprint.json")["devices"] == "2 x cpu"
