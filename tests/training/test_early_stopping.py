"""Early stopping: the best evaluation, patience, and the number of steps of a call."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import linear_config, linear_task

from seqjax.errors import UserError
from seqjax.training.early_stopping import (
    TRAIN_EVAL,
    Progress,
    advance,
    check_monitors,
    derive_progress,
)
from seqjax.training.trainer import Pace


def run_of_values(values, **train) -> list[Progress]:
    """Returns the progress after each evaluation of a metric that takes these values."""
    config = linear_config(monitor="valid.accuracy", monitor_mode="max", **train)
    steps = [Progress()]
    for i, value in enumerate(values):
        record = {"epoch": 2 * (i + 1), "valid": {"accuracy": value}}
        steps.append(advance(steps[-1], record, config.train))
    return steps[1:]


def test_early_stopping_by_a_script():
    steps = run_of_values([0.5, 0.6, 0.6, 0.64, 0.66, 0.1, 0.1], min_delta=0.05, patience=3)
    assert [step.best_epoch for step in steps] == [2, 4, 4, 4, 10, 10, 10]
    assert [step.best_value for step in steps] == [0.5, 0.6, 0.6, 0.6, 0.66, 0.66, 0.66]
    assert [step.bad_evaluations for step in steps] == [0, 0, 1, 2, 0, 1, 2]
    assert not any(step.stopped for step in steps)
    assert [s.stopped for s in run_of_values([0.9, 0.8, 0.9, 0.7], patience=3)] == [0, 0, 0, 1]


@given(values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9))
def test_the_best_is_the_first_of_the_highest(values):
    for mode, pick in (("max", np.argmax), ("min", np.argmin)):
        config = linear_config(monitor="train.loss", monitor_mode=mode)
        progress = Progress()
        for i, value in enumerate(values):
            record = {"epoch": i + 1, "train": {"loss": -value}, TRAIN_EVAL: {"loss": value}}
            progress = advance(progress, record, config.train)
        best = int(pick(values))
        assert progress == Progress(len(values), values[best], best + 1, len(values) - 1 - best)


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9),
    patience=st.integers(1, 3),
)
def test_patience_counts_evaluations_without_improvement(values, patience):
    for i, step in enumerate(run_of_values(values, patience=patience)):
        split = max(0, i + 1 - patience)
        old, last = values[:split], values[split : i + 1]
        if not step.stopped:
            assert not old or max(last) > max(old)
        else:
            assert old and max(last) <= max(old)
            break


@given(
    values=st.lists(
        st.sampled_from([None, float("nan"), 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9
    ),
    patience=st.integers(0, 3),
)
def test_progress_follows_from_the_records_and_the_kept_epoch(values, patience):
    """Each evaluation is one of two epochs; a resumed run knows what the run knew."""
    train = linear_config(
        monitor="valid.accuracy", monitor_mode="max", patience=patience, min_delta=0.1
    ).train
    records, progress = [], Progress()
    for value in values:
        records.append({"epoch": len(records) + 1})
        records.append({"epoch": len(records) + 1, "valid": {"accuracy": value}})
        progress = advance(progress, records[-1], train)
        found = derive_progress(records, progress.best_epoch, progress.epoch, train)
        assert found == progress
        assert progress.best_value is None or np.isfinite(progress.best_value)


def test_a_new_monitor_starts_from_the_kept_weights():
    """The evaluations after them count as bad unless they are better under the new monitor."""
    accuracies, losses = [0.9, 0.5, 0.6, 0.4], [1.0, 0.8, 0.9, 0.95]
    records = [
        {"epoch": i + 1, "valid": {"accuracy": accuracy, "loss": loss}}
        for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    old = linear_config(monitor="valid.accuracy", monitor_mode="max", patience=5).train
    new = linear_config(monitor="valid.loss", patience=5).train
    assert derive_progress(records, 1, 4, old) == Progress(4, 0.9, 1, 3)
    assert derive_progress(records, 1, 4, new) == Progress(4, 1.0, 1, 2)
    assert derive_progress(records, 1, 4, old, patient_from=3) == Progress(4, 0.9, 1, 1)


def test_the_monitor_epoch_finds_every_epoch_better():
    config, progress = linear_config(monitor="epoch", monitor_mode="min", patience=1), Progress()
    for epoch in (1, 2, 3):
        progress = advance(progress, {"epoch": epoch, "train": {"loss": 0.0}}, config.train)
        assert progress == Progress(epoch, float(epoch), epoch)


@given(
    left=st.integers(1, 5000),
    fixed=st.integers(0, 9),
    seconds=st.lists(st.floats(0, 9), max_size=9),
)
def test_calls_make_every_step_whatever_they_take(left, fixed, seconds):
    pace, sizes = Pace(fixed), []
    while left > sum(sizes):
        sizes.append(pace.num_steps(left - sum(sizes)))
        assert 1 <= sizes[-1] <= left - sum(sizes[:-1])
        pace.took(seconds[len(sizes) % len(seconds)] if seconds else 1e-4, sizes[-1])
    if fixed:
        assert set(sizes[:-1]) <= {fixed}


def test_calls_grow_to_two_seconds_and_are_even():
    pace, sizes = Pace(0), []
    for _ in range(6):
        sizes.append(pace.num_steps(1000))
        pace.took(30.0 if len(sizes) == 1 else 0.01 * sizes[-1], sizes[-1])  # 30 s to compile
    assert sizes[:3] == [1, 1, 16]
    assert sizes[3:] == [200] * 3  # of 0.01 s each
    assert pace.num_steps(201) == 101 and pace.num_steps(100) == 100
    pace.took(60.0, 100)  # as when another job uses the cores
    assert pace.num_steps(1000) == 3


@pytest.mark.parametrize("monitor", ["epoch", "train.loss", "valid.loss", "valid.accuracy"])
def test_what_will_be_in_the_records_can_be_monitored(monitor):
    check_monitors(linear_task(), linear_config(monitor=monitor).train, None)


@pytest.mark.parametrize("monitor", ["test.loss", "loss", "valid", "valid.los", "", "valid.loss."])
def test_what_will_not_be_in_the_records_cannot_be_monitored(monitor):
    with pytest.raises(UserError, match="unknown train.monitor") as caught:
        check_monitors(linear_task(), linear_config(monitor=monitor).train, None)
    assert "valid.loss" in str(caught.value)
