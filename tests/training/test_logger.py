"""The logger: whole records, none twice after a stop, and few lines without a terminal."""

import json

import pytest
from support.toys import read_scalars

from seqjax.training.logger import NUM_PLAIN_LINES, MetricLogger, read_records


def make_record(epoch: int, loss: float = 0.5) -> dict:
    metrics = {"loss": loss, "accuracy": 0.25}
    record = {"epoch": epoch, "step": 4 * epoch, "learning_rate": 0.125, "train": metrics}
    return record | {"valid": metrics}


def make_logger(
    workdir, *kept: dict, num_epochs: int = 10, log_every_epochs: int = 0
) -> MetricLogger:
    return MetricLogger(
        workdir,
        records=kept,
        num_epochs=num_epochs,
        log_every_epochs=log_every_epochs,
        rows_per_epoch=22,
        main_metric="accuracy",
    )


def write_records(workdir, *epochs: int, loss: float = 0.5, kept: int = 0) -> None:
    """Writes the records of some epochs; the checkpoint holds those of the first `kept` epochs."""
    with make_logger(workdir, *map(make_record, range(1, kept + 1))) as logger:
        for epoch in epochs:
            logger.add([make_record(epoch, loss)])


def test_records_are_there_as_soon_as_they_are_added(tmp_path):
    with make_logger(tmp_path) as logger:
        logger.add([make_record(1), make_record(2)])
        assert read_records(tmp_path / "metrics.jsonl") == [make_record(1), make_record(2)]


def test_a_resumed_run_writes_the_events_that_are_missing(tmp_path):
    write_records(tmp_path, 1, 2, 3)
    (events,) = tmp_path.glob("events.out.*")
    events.unlink()  # they are written in the background, up to minutes later
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
    scalars = read_scalars(tmp_path)
    losses = [scalars["loss/train", 4 * epoch] for epoch in (1, 2, 3, 4)]
    assert losses == [0.5, 0.5, 0.75, 0.75]


def test_a_run_begun_anew_keeps_no_old_record(tmp_path):
    write_records(tmp_path, 1, 2)
    write_records(tmp_path)
    assert read_records(tmp_path / "metrics.jsonl") == []


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
