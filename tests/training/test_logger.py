"""The logger: whole records, none twice after a stop, and few lines without a terminal."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.toys import read_scalars

from seqjax.training import logger as logger_module
from seqjax.training.logger import (
    NUM_PLAIN_LINES,
    MetricLogger,
    StepsFile,
    add_examples,
    read_records,
    write_log,
)


def make_record(epoch: int, loss: float = 0.5) -> dict:
    metrics = {"loss": loss, "accuracy": 0.25}
    record = {"epoch": epoch, "step": 4 * epoch, "learning_rate": 0.125, "train": metrics}
    return record | {"valid": metrics}


def make_line(step: int, loss: float = 0.5) -> dict:
    line = {"step": step, "epoch": -(-step // 4), "learning_rate": 0.125, "loss": loss}
    return line | {"gradient_norm": 2.0}


def make_logger(
    workdir, *kept: dict, num_epochs: int = 10, log_every_epochs: int = 0
) -> MetricLogger:
    """Returns the logger of a run that goes on after the records that its checkpoint holds."""
    return MetricLogger(
        workdir,
        records=kept,
        step=kept[-1]["step"] if kept else 0,
        num_epochs=num_epochs,
        log_every_epochs=log_every_epochs,
        rows_per_epoch=22,
        main_metric="accuracy",
    )


def write_records(workdir, *epochs: int, loss: float = 0.5, kept: int = 0) -> None:
    """Writes the records of some epochs; the checkpoint holds those of the first `kept` epochs."""
    with make_logger(workdir, *map(make_record, range(1, kept + 1))) as logger:
        for epoch in epochs:
            logger.add_steps(
                [make_line(step, loss) for step in range(4 * epoch - 3, 4 * epoch + 1)]
            )
            logger.add([make_record(epoch, loss)])


def read_events(workdir: Path) -> list[Any]:
    """Returns the events with values in a directory's event files; `read_scalars` says how."""
    from tensorboardX.proto.event_pb2 import Event

    events, paths = [], sorted(workdir.glob("events.out.*"))
    for data in (path.read_bytes() for path in paths):
        while data:
            end = 12 + struct.unpack_from("<Q", data)[0]
            events.append(Event.FromString(data[12:end]))
            data = data[end + 4 :]
    return [event for event in events if event.summary.value]


def read_values(workdir: Path) -> dict[str, Any]:
    """Returns the last value of each tag in a directory's event files."""
    return {value.tag: value for event in read_events(workdir) for value in event.summary.value}


def test_records_are_there_as_soon_as_they_are_added(tmp_path):
    with make_logger(tmp_path) as logger:
        logger.add([make_record(1), make_record(2)])
        assert read_records(tmp_path / "metrics.jsonl") == [make_record(1), make_record(2)]


def test_a_resumed_run_writes_the_events_that_are_missing(tmp_path):
    write_records(tmp_path, 1, 2, 3)
    (events,) = tmp_path.glob("events.out.*")
    events.unlink()  # a killed run has not flushed them
    write_records(tmp_path, 3, kept=2)
    assert {step for tag, step in read_scalars(tmp_path) if tag == "loss/train"} == {4, 8, 12}


@pytest.mark.parametrize("torn", ["", '{"epoch": 5, "st', '{"epoch": 5}', "\0\0\0", "\n\n", None])
def test_a_resumed_run_restores_metrics_from_the_checkpoint(torn, tmp_path):
    write_records(tmp_path, 1, 2, 3, 4)
    path = tmp_path / "metrics.jsonl"
    with path.open("w" if torn is None else "a", encoding="utf-8") as file:
        file.write(torn or "")
    (events,) = tmp_path.glob("events.out.*")
    events.rename(tmp_path / "events.out.tfevents.0000000001.x")  # a name's time has whole seconds
    write_records(tmp_path, 3, 4, loss=0.75, kept=2)
    expected = [make_record(1), make_record(2), make_record(3, 0.75), make_record(4, 0.75)]
    assert read_records(path) == expected
    assert path.read_text(encoding="utf-8") == "".join(json.dumps(r) + "\n" for r in expected)
    assert len(list(tmp_path.glob("events.out.*"))) == 1
    scalars = read_scalars(tmp_path)
    losses = [scalars["loss/train", 4 * epoch] for epoch in (1, 2, 3, 4)]
    assert losses == [0.5, 0.5, 0.75, 0.75]


def test_a_run_begun_anew_keeps_no_old_record(tmp_path):
    write_records(tmp_path, 1, 2)
    write_records(tmp_path)
    assert read_records(tmp_path / "metrics.jsonl") == []
    assert not (tmp_path / "steps.jsonl").exists()


# Steps


def test_lines_of_steps_are_there_as_soon_as_they_are_added(tmp_path):
    path = tmp_path / "steps.jsonl"
    with make_logger(tmp_path) as logger:
        logger.add_steps([])
        assert not path.exists()
        logger.add_steps([make_line(1), make_line(2, math.nan)])
        assert read_records(path) == [make_line(1), make_line(2) | {"loss": None}]
        logger.add_steps([make_line(3)])
        assert len(read_records(path)) == 3
    assert read_scalars(tmp_path) == {
        ("step/learning_rate", 1): 0.125,
        ("step/loss", 1): 0.5,
        ("step/gradient_norm", 1): 2.0,
        ("step/learning_rate", 2): 0.125,
        ("step/gradient_norm", 2): 2.0,
        ("step/learning_rate", 3): 0.125,
        ("step/loss", 3): 0.5,
        ("step/gradient_norm", 3): 2.0,
    }


@pytest.mark.parametrize(
    "torn",
    [
        "",
        '{"step": 7, "ep',
        '{"step": 7}',
        '{"step": null}',
        "5",
        "\0\xff",
        pytest.param("[" * 10**5, id="deep"),
    ],
)
def test_a_resumed_run_repeats_the_lines_after_its_checkpoint(torn, tmp_path):
    write_records(tmp_path, 1, 2, 3)
    path = tmp_path / "steps.jsonl"
    with path.open("a", encoding="latin-1") as file:
        file.write(torn)
    write_records(tmp_path, 2, 3, loss=0.75, kept=1)
    expected = [make_line(step, 0.5 if step <= 4 else 0.75) for step in range(1, 13)]
    assert path.read_text(encoding="utf-8") == "".join(f"{json.dumps(x)}\n" for x in expected)
    scalars = read_scalars(tmp_path)
    for line in expected:
        assert scalars["step/loss", line["step"]] == line["loss"]


def test_a_checkpoint_within_an_epoch_keeps_the_lines_up_to_its_step(tmp_path):
    steps = StepsFile(tmp_path / "steps.jsonl", 0)
    steps.add([make_line(step) for step in range(1, 7)])
    steps = StepsFile(tmp_path / "steps.jsonl", 5)
    assert steps.lines == [make_line(step) for step in range(1, 6)]
    for step in (6, 7):
        steps.add([make_line(step, 0.75)])
    lines = read_records(tmp_path / "steps.jsonl")
    assert [(line["step"], line["loss"]) for line in lines[4:]] == [(5, 0.5), (6, 0.75), (7, 0.75)]


# TensorBoard


def test_event_files_are_flushed_now_and_then(tmp_path, monkeypatch):
    with make_logger(tmp_path) as logger:
        logger.add([make_record(1)])
        assert not read_scalars(tmp_path)  # a flush of every event would take most of the time
        monkeypatch.setattr(logger_module, "FLUSH_SECONDS", -1.0)
        logger.add_steps([make_line(5)])
        assert {("loss/train", 4), ("step/loss", 5)} <= set(read_scalars(tmp_path))


def test_the_log_of_a_trial_is_that_of_a_run(tmp_path):
    run, trial = tmp_path / "run", tmp_path / "trial"
    run.mkdir()
    trial.mkdir()
    write_records(run, 1, 2)
    lines = read_records(run / "steps.jsonl")
    write_log(trial, [make_record(1), make_record(2)], lines)
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert (trial / name).read_bytes() == (run / name).read_bytes()
    expected = read_scalars(run)
    del expected["examples_per_second", 4], expected["examples_per_second", 8]
    assert read_scalars(trial) == expected
    assert [event.step for event in read_events(trial)] == [4, 8, *range(1, 9)]  # one each


def test_a_trial_without_lines_of_steps_has_no_file_of_them(tmp_path):
    write_log(tmp_path, [], [])
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["events", "metrics"]


def test_a_trial_shows_its_hyper_parameters_beside_its_result(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    optim = {"learning_rate": 0.5, "name": "adam", "nesterov": True, "betas": [1], "decay": None}
    result = {"valid": {"loss": 0.25, "bleu": None, "chrf": math.nan}, "best_epoch": 2}
    write_log(tmp_path, [make_record(3)], [], {"seed": 1, "optim": optim}, result)
    values = read_values(tmp_path)
    start, experiment = (
        HParamsPluginData.FromString(values[f"_hparams_/{name}"].metadata.plugin_data.content)
        for name in ("session_start_info", "experiment")
    )
    fields = start.session_start_info.hparams
    assert {name: getattr(x, x.WhichOneof("kind")) for name, x in fields.items()} == {
        "seed": 1.0,
        "optim.learning_rate": 0.5,
        "optim.name": "adam",
        "optim.nesterov": True,
        "optim.betas": "[1]",
        "optim.decay": "None",
    }
    names = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert names == {"valid.loss", "best_epoch"}
    scalars = read_scalars(tmp_path)
    assert (scalars["valid.loss", 12], scalars["best_epoch", 12]) == (0.25, 2.0)


def test_examples_and_pictures_are_added_beside_the_runs_own_events(tmp_path):
    write_records(tmp_path, 1)
    pictures = [tmp_path / f"{name}.png" for name in ("curves", "missing", "damaged", "grey")]
    Image.new("RGB", (7, 5), "red").save(pictures[0])
    pictures[2].touch()
    Image.new("L", (2, 3)).save(pictures[3])
    add_examples(tmp_path, ["*a*  <unk> \\_", "", "# 나\tb\nc"], pictures, 4)
    values = read_values(tmp_path)
    (text,) = values["examples/text_summary"].tensor.string_val
    assert text.decode() == "    *a*  <unk> \\_\n    \n    # 나 b c"
    images = {tag: x.image for tag, x in values.items() if x.HasField("image")}
    assert {t: (x.width, x.height, x.colorspace) for t, x in images.items()} == {
        "curves": (7, 5, 3),
        "grey": (2, 3, 1),
    }
    assert images["curves"].encoded_image_string == pictures[0].read_bytes()
    assert {event.step for event in read_events(tmp_path)} == {1, 2, 3, 4}
    assert "loss/train" in values  # the new file has not replaced the run's of the same second


# What is printed


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_lines_come_as_often_as_asked(every, epochs, tmp_path, capsys):
    with make_logger(tmp_path, num_epochs=5, log_every_epochs=every) as logger:
        for epoch in range(1, 6):
            logger.add([make_record(epoch)])
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split("/")[0].removeprefix("epoch ")) for line in lines] == epochs


@pytest.mark.parametrize(("num_epochs", "per_call"), [(1, 1), (20, 1), (500, 1), (500, 7)])
def test_where_there_is_no_terminal_a_run_says_few_lines(num_epochs, per_call, tmp_path, capsys):
    with make_logger(tmp_path, num_epochs=num_epochs) as logger:
        for first in range(1, num_epochs + 1, per_call):
            epochs = range(first, min(first + per_call, num_epochs + 1))
            logger.add([make_record(epoch) for epoch in epochs])
    lines = capsys.readouterr().out.splitlines()
    assert min(num_epochs, NUM_PLAIN_LINES) <= len(lines) <= NUM_PLAIN_LINES + 1
    for line in lines:
        assert line.startswith("epoch ") and line.endswith(" s left")
        assert "train loss 0.5000 accuracy 0.2500  valid loss 0.5000 accuracy 0.2500" in line
        assert " examples/s" in line
    assert lines[-1].startswith(f"epoch {num_epochs}/{num_epochs} ")


def test_a_metric_that_is_no_number_is_shown_and_left_out_of_the_events(tmp_path, capsys):
    record = make_record(10) | {"valid": {"loss": None, "accuracy": math.nan}}
    with make_logger(tmp_path) as logger:
        logger.add([record])
    assert "valid loss n/a accuracy nan" in capsys.readouterr().out
    (written,) = read_records(tmp_path / "metrics.jsonl")
    assert written["valid"] == {"loss": None, "accuracy": None}
    tags = {tag for tag, _ in read_scalars(tmp_path)}
    assert "loss/train" in tags and not tags & {"loss/valid", "accuracy/valid"}


def test_a_run_without_validation_is_reported_too(tmp_path, capsys):
    record = {name: x for name, x in make_record(10).items() if name != "valid"}
    with make_logger(tmp_path) as logger:
        logger.add([record])
    assert "valid" not in capsys.readouterr().out
    assert {tag for tag, _ in read_scalars(tmp_path)} == {
        "loss/train",
        "accuracy/train",
        "learning_rate",
        "examples_per_second",
    }


def test_on_a_terminal_one_bar_shows_the_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat the output as a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with make_logger(tmp_path, num_epochs=3) as logger:
        logger.say("a message")
        for epoch in (1, 2, 3):
            logger.add([make_record(epoch)])
    out = capsys.readouterr().out
    assert "a message" in out
    assert "3/3" in out and "train loss 0.5000 accuracy 0.2500" in out
    assert " s left" not in out
