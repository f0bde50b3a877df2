"""Groups: each trial's run is, up to rounding, the one that it would be alone on one device; and
groups whose training fails or is killed."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.same_runs import (
    assert_same_arrays,
    assert_same_records,
    read_arrays,
    read_lines,
    read_result,
)
from support.toys import (
    evaluate,
    linear_config,
    linear_task,
    read_json,
    read_scalars,
    tiny_config,
    use_linear_task,
)

from seqjax.config import change_fields
from seqjax.errors import UserError
from seqjax.hparams import HParams
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.runs.workdir import CHECKPOINTS, LOCK
from seqjax.sweeps.sweep import divide, train_group
from seqjax.tasks.registry import TASKS, make_task
from seqjax.training.fit import fit, restore_best
from seqjax.training.programs import TrialParallel, group_key
from seqjax.training.setup import make_setup
from seqjax.training.trials import FAILURE, PAUSED, Trial


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    use_linear_task(monkeypatch)


def make_trials(directory: Path, config: ConfigDict, *changes: dict) -> list[Trial]:
    return [Trial(change_fields(config, own), directory / str(i)) for i, own in enumerate(changes)]


@pytest.fixture
def assert_as_alone(single_run) -> Callable[[Trial], None]:
    """The trial's records, result and weights are those of `fit`, up to rounding."""

    def check(trial: Trial) -> None:
        alone = single_run(trial.config)
        assert_same_records(trial.directory, alone)
        setup = make_setup(make_task(trial.config), trial.config)
        params, own = (restore_best(setup, path)[0] for path in (alone, trial.directory))
        assert_same_arrays(own, params)

    return check


def contents(directory: Path) -> list:
    """What two runs have in common that end with the same bits."""
    names = ("metrics.jsonl", "config.json", "fingerprint.json")
    return [read_result(directory), *((directory / name).read_bytes() for name in names)]


def weights_of(trial: Trial) -> list[bytes]:
    arrays = read_arrays(trial.directory)
    return [x.tobytes() for name, x in arrays.items() if name.startswith("best_params")]


SEEDS = [{"seed": seed} for seed in (3, 0, 7)]


@pytest.mark.parametrize("mapping", ["map", "vmap"])
def test_members_that_differ_in_seeds(mapping, tmp_path, assert_as_alone):
    config = linear_config(trial_mapping=mapping)
    trials = make_trials(tmp_path / "trials", config, *SEEDS)
    train_group(trials, tmp_path / "group")
    for trial in trials:
        assert_as_alone(trial)
    assert len({tuple(weights_of(trial)) for trial in trials}) == 3


# All that one program can be given, and what is read before it.
NUMBERS = {
    "optim.learning_rate": 0.003,
    "optim.clip_norm": 0.3,
    "optim.clip_value": 0.02,
    "optim.ema_decay": 0.6,
    "optim.name": "adamw(weight_decay=0.4)",
    "model.output_dropout": (0.4, 0.3),
    "model.input_dropout": (0.45,),
    "model.state_dropout": (0.1,),
}
INITIAL = {"model.kernel_init": "normal(0.2)", "model.output_bias_init": "ones", "seed": 5}


@pytest.mark.parametrize("mapping", [pytest.param("map", marks=pytest.mark.slow), "vmap"])
def test_members_that_differ_in_numbers(mapping, tmp_path, assert_as_alone):
    config = tiny_config("word_completion", num_epochs=3, trial_mapping=mapping).unlock()
    config.model.update(input_dropout=(0.2,), output_dropout=(0.2, 0.1), state_dropout=(0.3,))
    config.optim.update(
        name="adamw(weight_decay=0.1)", clip_norm=1.0, clip_value=0.1, ema_decay=0.9
    )
    config.optim.schedule = "cosine"
    trials = make_trials(tmp_path / "trials", config.lock(), {}, NUMBERS, INITIAL)
    assert len({group_key(trial.config) for trial in trials}) == 1
    train_group(trials, tmp_path / "group")
    for trial in trials:
        assert_as_alone(trial)
    assert len({tuple(weights_of(trial)) for trial in trials}) == len(trials)


@pytest.mark.slow
def test_members_of_text_pairs_with_smoothing_and_word_dropout(tmp_path, assert_as_alone):
    config = tiny_config("cafe_chatbot", num_epochs=2).unlock()
    config.loss.label_smoothing = 0.1
    trials = make_trials(
        tmp_path / "trials",
        config.lock(),
        {},
        {
            "loss.label_smoothing": 0.3,
            "model.token_dropout": 0.5,
            "model.decoder_output_dropout": (0.1,),
        },
    )
    train_group(trials, tmp_path / "group")
    for trial in trials:
        assert_as_alone(trial)
    files = read_json(trials[0].directory / "fingerprint.json")["files"]
    assert files.keys() == {"vocabulary.json", "source_vocabulary.json"}


@pytest.mark.parametrize("loss", ["early", "plateau"])
def test_each_member_stops_by_itself(loss, tmp_path, assert_as_alone):
    config = linear_config(num_epochs=12, patience=1, monitor="valid.loss", min_delta=0.0)
    if loss == "plateau":
        config.unlock().optim.schedule = "plateau(patience=1)"
        config.lock()
    rates = [{"optim.learning_rate": rate} for rate in (0.01, 0.3, 3.0)]
    trials = make_trials(tmp_path / "trials", config, *rates)
    train_group(trials, tmp_path / "group")
    for trial in trials:
        assert_as_alone(trial)
    results = [read_json(trial.directory / "result.json") for trial in trials]
    assert len({result["num_epochs"] for result in results}) > 1
    assert any(result["best_epoch"] < result["num_epochs"] for result in results)


def test_a_member_that_fails_leaves_the_others_alone(tmp_path, assert_as_alone):
    changes = [{"seed": 1}, {"optim.learning_rate": 1e38}, {"seed": 2}, {"optim.clip_norm": -1.0}]
    trials = make_trials(tmp_path / "trials", linear_config(), *changes)
    train_group([trials[i] for i in (0, 1, 2)], tmp_path / "group")
    train_group([trials[3]], tmp_path / "other")
    assert trials[1].failure().startswith("at step ") and "\n" not in trials[1].failure()
    assert trials[3].failure() == "optim.clip_norm=-1.0 must be at least 0"
    assert not (trials[1].directory / "result.json").exists()
    for i in (0, 2):
        assert_as_alone(trials[i])


def test_what_cannot_be_begun_fails_alone(tmp_path, assert_as_alone):
    changes = [{"model.output_dropout": (rate,)} for rate in (0.2, 1.5, 0.3)]
    config = tiny_config("svo_tagging")
    trials = make_trials(tmp_path / "trials", config, *changes)
    train_group(trials, tmp_path / "group")
    assert [bool(trial.failure()) for trial in trials] == [False, True, False]
    assert "a dropout rate lies in [0, 1)" in trials[1].failure()
    assert_as_alone(trials[2])


class Interrupted(BaseException):
    """A kill, as far as files are concerned."""


def never(trial, records):
    raise Interrupted


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_group_goes_on_where_it_was(epoch, tmp_path):
    saving = dict(steps_per_call=3, checkpoint_every_minutes=1e-9)  # in the midst of every epoch
    config = linear_config(patience=1, monitor="valid.loss", num_epochs=6, **saving)
    whole = make_trials(tmp_path / "whole", config, *SEEDS)
    train_group(whole, tmp_path / "group")
    parts = make_trials(tmp_path / "parts", config, *SEEDS)

    def watch(trial, records):
        if trial == parts[-1] and records[-1]["epoch"] == epoch:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_group(parts, tmp_path / "other", watch)
    assert not any(trial.directory.exists() for trial in parts)
    seen = []
    train_group(parts, tmp_path / "other", lambda trial, records: seen.append(records[-1]["epoch"]))
    assert min(seen) == epoch
    for a, b in zip(whole, parts, strict=True):
        assert contents(a.directory) == contents(b.directory) and weights_of(a) == weights_of(b)
    train_group(parts, tmp_path / "other", never)  # nothing is left to do


def test_a_signal_saves_and_stops(tmp_path, monkeypatch, assert_as_alone):
    config = linear_config(steps_per_call=3)
    trials = make_trials(tmp_path / "trials", config, *SEEDS)

    class Asked(StopSignals):
        received = property(lambda self: 15, lambda self, number: None)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr("seqjax.sweeps.sweep.StopSignals", Asked)
        train_group(trials, tmp_path / "group")
    assert stopped.value.exit_code == 143
    assert [path.name for path in (tmp_path / "group" / CHECKPOINTS).iterdir()] == ["3"]
    train_group(trials, tmp_path / "group")
    assert_as_alone(trials[1])


def test_a_group_waits_at_an_epoch_and_drops_members(tmp_path, assert_as_alone):
    config = linear_config(num_epochs=6)
    trials = make_trials(tmp_path / "trials", config, *SEEDS)
    values = []
    for _ in range(2):  # the second time there is nothing to train
        train_group(trials, tmp_path / "group", until=2)
        paused = read_json(tmp_path / "group" / PAUSED)
        assert {(found["epoch"], found["goes_on"]) for found in paused.values()} == {(2, True)}
        values.append({name: found["value"] for name, found in paused.items()})
    assert values[0] == values[1]
    train_group(trials, tmp_path / "group", dropped={trials[0].directory: 2})
    seen = [read_lines(trial.directory / "metrics.jsonl")[:2] for trial in trials]
    best = [min(record["valid"]["loss"] for record in records) for records in seen]
    assert values[0] == dict(zip("012", best, strict=True))
    assert read_json(trials[0].directory / "result.json")["num_epochs"] == 2
    assert_as_alone(trials[2])


def test_a_dropped_member_ends_at_its_epoch_after_any_start(tmp_path):
    """From nothing, or from a checkpoint as early as one can be."""
    config = linear_config(num_epochs=6, checkpoint_every_epochs=1)
    trials = make_trials(tmp_path / "trials", config, *SEEDS)
    train_group(trials, tmp_path / "group", until=1)
    train_group(trials, tmp_path / "group", dropped={trials[0].directory: 2})
    again = make_trials(tmp_path / "again", config, *SEEDS)
    train_group(again, tmp_path / "from nothing", dropped={again[0].directory: 2})
    for one, other in zip(trials, again, strict=True):
        assert contents(one.directory) == contents(other.directory)
    assert read_json(again[0].directory / "result.json")["num_epochs"] == 2


def test_memory_estimates_are_per_device_and_linear(tmp_path):
    config = linear_config(num_devices=2)
    setup = make_setup(make_task(config, tmp_path), config)

    def estimate(num_trials):
        return TrialParallel(setup, range(num_trials), HParams()).compile()

    size, state = 2, setup.arrays_like()["state"]
    bytes_of = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    a, b, c = (estimate(size * n) for n in (1, 101, 201))
    assert 100 * bytes_of <= b - a <= 100 * 8 * bytes_of  # once, and copies
    assert c - b == pytest.approx(b - a, rel=0.1)


def test_a_group_too_large_for_the_memory_is_trained_in_halves(
    tmp_path, monkeypatch, assert_as_alone
):
    trials = make_trials(tmp_path / "trials", linear_config(), *SEEDS)
    with monkeypatch.context() as patch:
        patch.setattr("seqjax.sweeps.sweep.device_bytes", lambda: 2.0)
        train_group(trials, tmp_path / "group", until=1)
    assert (tmp_path / "group" / "second" / "second").is_dir()
    train_group(trials, tmp_path / "group")  # halves go on, also where there is room for more
    for trial in trials:
        assert_as_alone(trial)


def test_a_group_that_goes_on_is_not_halved(tmp_path, monkeypatch, assert_as_alone):
    """Halves would begin again."""
    trials = make_trials(tmp_path / "trials", linear_config(), *SEEDS)
    train_group(trials, tmp_path / "group", until=1)
    monkeypatch.setattr("seqjax.sweeps.sweep.device_bytes", lambda: 2.0)
    epochs = []
    train_group(
        trials, tmp_path / "group", lambda trial, records: epochs.append(records[-1]["epoch"])
    )
    assert min(epochs) == 2
    assert_as_alone(trials[0])


def test_a_failed_trial_whose_directory_is_removed_fails_again(tmp_path):
    changes = [{"seed": 1}, {"optim.learning_rate": 1e38}]
    trials = make_trials(tmp_path / "trials", linear_config(), *changes)
    train_group(trials, tmp_path / "group", until=2)
    reason = trials[1].failure()
    shutil.rmtree(trials[1].directory)
    train_group(trials, tmp_path / "group")
    assert reason and trials[1].failure() == reason and not trials[0].failure()


def test_a_signal_during_the_last_save_stops(tmp_path, monkeypatch):
    received = []

    class Asked(StopSignals):
        received = property(lambda self: received[-1] if received else None, lambda self, x: None)

    def read(path):
        received.append(15)
        return read_lines(path)

    trials = make_trials(tmp_path / "trials", linear_config(log_every_steps=1), *SEEDS)
    monkeypatch.setattr("seqjax.sweeps.sweep.StopSignals", Asked)
    monkeypatch.setattr("seqjax.training.trials.read_records", read)
    with pytest.raises(Stopped):
        train_group(trials, tmp_path / "group")
    assert all(trial.has_ended for trial in trials)


def test_a_disk_error_ends_no_trial(tmp_path):
    trials = make_trials(tmp_path / "trials", linear_config(), *SEEDS)
    (tmp_path / "group" / "0.steps.jsonl").mkdir(parents=True)  # where a file is written
    (tmp_path / "group" / LOCK).touch()
    for _ in range(4):
        with pytest.raises(UserError, match="Is a directory.*: make it writable or make room"):
            train_group(trials, tmp_path / "group")
    (tmp_path / "group" / "0.steps.jsonl").rmdir()
    train_group(trials, tmp_path / "group")
    assert not any(trial.failure() for trial in trials)


def test_numbers_that_a_task_does_not_read_are_refused(tmp_path, monkeypatch):
    make = TASKS["word_completion"]
    monkeypatch.setitem(TASKS, "word_completion", lambda *args: make(*args)._replace(hparams=()))
    rates = [{"model.input_dropout": (rate,)} for rate in (0.1, 0.2)]
    trials = make_trials(tmp_path / "trials", tiny_config("word_completion"), *rates)
    with pytest.raises(UserError, match="differ in model.input_dropout cannot share a program"):
        train_group(trials, tmp_path / "group")


def test_another_group_is_not_gone_on_with(tmp_path):
    config = linear_config()
    train_group(make_trials(tmp_path / "a", config, *SEEDS), tmp_path / "group", until=2)
    with pytest.raises(UserError, match="belongs to another run"):
        train_group(make_trials(tmp_path / "b", config, {"seed": 9}), tmp_path / "group")


@pytest.mark.parametrize("seeds", [SEEDS[:1], SEEDS])
def test_a_trial_is_a_run_that_can_be_evaluated_and_trained_on(seeds, tmp_path, assert_as_alone):
    config = linear_config(num_epochs=4, log_every_steps=3)
    trials = make_trials(tmp_path / "trials", config, *seeds)
    train_group(trials, tmp_path / "group")
    trial = trials[-1]
    assert_as_alone(trial)
    before = read_lines(trial.directory / "steps.jsonl")
    assert [line["step"] for line in before] == [3, 6, 9, 12, 15]
    scalars = read_scalars(trial.directory)
    records = read_lines(trial.directory / "metrics.jsonl")
    assert scalars["loss/valid", 16] == np.float32(records[-1]["valid"]["loss"])
    result = read_result(trial.directory)
    assert evaluate(linear_task(), trial.config, trial.directory) == result
    assert (trial.directory / "curves.png").exists()
    # The same command trains no more; with more epochs it ends as a run that had them all.
    assert fit(linear_task(), trial.config, trial.directory)["best_epoch"] == result["best_epoch"]
    longer = trial._replace(config=change_fields(trial.config, {"train.num_epochs": 6}))
    fit(linear_task(), longer.config, trial.directory, allow_changes=True)
    assert_as_alone(longer)
    assert read_lines(trial.directory / "steps.jsonl")[:5] == before


@pytest.mark.parametrize(
    "change",
    [
        {"model.hidden_size": 9},
        {"model.cell": "gru"},
        {"train.batch_size": 3},
        {"train.compute_dtype": "bfloat16"},
        {"optim.schedule": "cosine"},
        {"optim.clip_norm": 0.5},  # 0 clips nothing, and there is nothing to trace
        {"model.output_dropout": (0.0, 0.0)},
        {"optim.name": "adamw(weight_decay=0.0)"},
        {"optim.name": "adamw(weight_decay=0.1, b1=0.8)"},
    ],
)
def test_what_changes_the_program_makes_another_group(change):
    config = tiny_config("word_completion")
    config = change_fields(config, {"optim.name": "adamw(weight_decay=0.1)"})
    assert group_key(change_fields(config, change)) != group_key(config)


# Division


def word_trials(directory: Path, num_trials: int, **train) -> list[Trial]:
    config = tiny_config("word_completion", **train)
    return make_trials(directory, config, *({"seed": seed} for seed in range(num_trials)))


def test_a_sweep_is_divided_by_group_keys_and_then_evenly():
    trials, others = word_trials(Path("a"), 7), word_trials(Path("b"), 2, batch_size=5)
    shuffled = [*trials[:3], *others, *trials[3:]]
    for num_groups, sizes in ((1, [7, 2]), (2, [4, 3, 2]), (3, [3, 2, 2, 2]), (9, [1] * 9)):
        groups = divide(shuffled, num_groups, Path("groups"))
        assert [len(group.trials) for group in groups] == sizes
        held = [trial.directory for group in groups for trial in group.trials]
        assert sorted(held) == sorted(trial.directory for trial in shuffled)
        assert len({group.workdir for group in groups}) == len(sizes)
    assert len(divide(shuffled, 20, Path())) == 9


def test_the_same_trials_find_their_directories_again():
    there = [group.workdir for group in divide(word_trials(Path("a"), 4), 2, Path("groups"))]
    assert there == [g.workdir for g in divide(word_trials(Path("/b"), 4), 2, Path("groups"))]
    other = word_trials(Path("a"), 4)
    with other[0].config.unlocked():
        other[0].config.optim.learning_rate = 0.5
    found = [group.workdir for group in divide(other, 2, Path("groups"))]
    assert found[0] != there[0] and found[1] == there[1]


# Failures


def fail(trial, records):
    raise RuntimeError(f"two\nlines at epoch {records[-1]['epoch']}")


def test_a_group_that_fails_three_times_ends_with_the_reason(tmp_path, capfd):
    """Each attempt goes on from the checkpoint; a new checkpoint begins the count again."""
    config = linear_config(num_epochs=6, checkpoint_every_epochs=2)
    trials, epochs = make_trials(tmp_path / "trials", config, *SEEDS), []

    def fail_at_4(trial, records):
        epochs.append(records[-1]["epoch"])
        if records[-1]["epoch"] >= 4:
            fail(trial, records)

    train_group(trials, tmp_path / "group", fail)
    train_group(trials, tmp_path / "group", fail)
    assert not any(trial.has_ended for trial in trials)
    for _ in range(3):
        assert not any(trial.has_ended for trial in trials)
        train_group(trials, tmp_path / "group", fail_at_4)
    assert min(epochs[4 * len(trials) :]) == 3  # from the checkpoint of epoch 2 on
    for trial in trials:
        expected = "training failed 3 times: RuntimeError: two lines at epoch 4"
        assert trial.failure() == expected
        assert read_json(trial.directory / "config.json")["seed"] == trial.config.seed
    assert capfd.readouterr().err.count("Traceback") == 5  # of the user's own code, perhaps
    assert not (tmp_path / "group").exists()


def die(workdir: Path) -> None:
    """Leaves the lock file of a process that was killed while it trained."""
    workdir.mkdir(exist_ok=True)
    (workdir / LOCK).write_text("process 7 on node\n")


def test_a_group_whose_worker_is_killed_three_times_ends_with_the_reason(tmp_path):
    trials = word_trials(tmp_path / "trials", 2)
    for _ in range(2):
        die(tmp_path / "group")
        with pytest.raises(Interrupted):
            train_group(trials, tmp_path / "group", never)
    assert not any(trial.has_ended for trial in trials)
    die(tmp_path / "group")
    train_group(trials, tmp_path / "group", never)
    reason = "process 7 on node was killed, as when memory is short"
    for trial in trials:
        assert (
            read_json(trial.directory / FAILURE)["reason"] == f"training failed 3 times: {reason}"
        )


def test_a_worker_that_was_asked_to_stop_was_not_killed(tmp_path):
    """A second Ctrl-C ends the process at once; the lock then names nobody."""
    code = """
import os, signal, sys
from pathlib import Path
from seqjax.sweeps import sweep

def train(*args):
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

sweep.train_trials = train
sweep.train_group([sweep.Trial(None, Path("trial"))], Path("group"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130 and "SIGINT: nothing is lost" in done.stderr
    assert (tmp_path / "group" / LOCK).read_text() == ""
