"""Sweeps' reports: every trial once, honest statistics over seeds, the best, and the live table.

Trials are directories written by hand: nothing is trained.
"""

import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from support.same_runs import read_lines
from support.toys import assert_picture

import seqjax.plots
import seqjax.sweeps.results
from seqjax.config import base_config
from seqjax.errors import UserError, one_line
from seqjax.files import write_json
from seqjax.runs.workdir import RESULT
from seqjax.sweeps.results import LiveTable, report, shared_objective
from seqjax.training.trials import FAILURE, PROGRESS, Trial

RATE, CELL, DROPOUT = "optim.learning_rate", "model.cell", "model.output_dropout"
# Markup, control characters, line ends, quotes, bidi controls, mathematics, Hangul, nothing.
HOSTILE = ["[bold]네[/]", ":smile:", "a\x1b[2J\x07b", "a\r\nb\u2028c", '"""\\', "'\"\\", "\u202ex"]
HOSTILE += ["=1+1", "$x^2$", "{doc}", "뷁, 뷁", ""]


def make_trial(
    root: Path,
    number: int,
    value: float | None = None,
    *,
    reason: str = "",
    metrics: dict[str, float] | None = None,
    monitor: str = "valid.accuracy",
    mode: str = "max",
    **changes: Any,
) -> Trial:
    """A trial that ended with that objective after 3 epochs, failed, or goes on."""
    config = base_config("recall")
    config.train.update(monitor=monitor, monitor_mode=mode, num_epochs=3)
    changes = {name.replace("__", "."): x for name, x in changes.items()}
    config.update_from_flattened_dict(changes)
    trial = Trial(config.lock(), root / "trials" / f"{number:04}", changes)
    if value is not None or reason:
        trial.directory.mkdir(parents=True)
    if reason:
        write_json(trial.directory / FAILURE, {"reason": reason})
    elif value is not None:
        split, _, metric = monitor.replace("epoch", "train.loss").partition(".")
        result = {"test": metrics or {"loss": 0.5, "accuracy": 0.25}, split: {metric: value}}
        result |= {"best_epoch": 2, "num_epochs": 3, "num_parameters": 17}
        write_json(trial.directory / RESULT, result)
    return trial


def grid(root: Path, values: dict[str, list[float]], **options: Any) -> list[Trial]:
    """A trial a value, of the cells by name, with seeds 0, 1, ..."""
    cases = [(cell, seed, x) for cell, row in values.items() for seed, x in enumerate(row)]
    return [
        make_trial(root, i, value, model__cell=cell, seed=seed, **options)
        for i, (cell, seed, value) in enumerate(cases)
    ]


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(seqjax.sweeps.results, "draw_against", lambda *args: args[-1].touch())


def read_summary(directory: Path) -> list[dict[str, str]]:
    with (directory / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_trials(directory: Path) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (directory / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def show(trials: list[Trial], directory: Path, capsys) -> str:
    capsys.readouterr()
    report(trials, directory)
    return capsys.readouterr().out


def cells_of(text: str) -> list[list[str]]:
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    return [[cell.strip() for cell in row] for row in rows]


# What trials are compared by


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [
        ("valid.accuracy", "max", ("valid.accuracy", 1)),
        ("train.loss", "min", ("train.loss", -1)),
        ("epoch", "max", ("train.loss", -1)),
    ],
)
def test_trials_are_compared_by_what_they_monitor(no_picture, monitor, mode, expected, tmp_path):
    trial = make_trial(tmp_path, 0, 0.75, monitor=monitor, mode=mode)
    assert shared_objective([trial.config]) == expected
    report([trial], tmp_path)
    [line] = read_trials(tmp_path)
    assert (line["objective_name"], line["objective"]) == (expected[0], 0.75)


def test_trials_with_different_monitors_cannot_be_compared(tmp_path):
    trials = [make_trial(tmp_path, 0, 0.5), make_trial(tmp_path, 1, 0.5, mode="min")]
    with pytest.raises(UserError, match=r"valid.accuracy \(max\) and valid.accuracy \(min\)"):
        report(trials, tmp_path)


@pytest.mark.parametrize(
    "result", [[], {"best_epoch": 1}, {"valid": 3}, {"valid": {}}, {"valid": {"accuracy": "high"}}]
)
def test_a_damaged_trial_is_named(result, tmp_path):
    trial = make_trial(tmp_path, 0, 0.5)
    path = trial.directory / RESULT
    write_json(path, result)
    with pytest.raises(UserError, match=f"{path} does not hold valid.accuracy: restore it"):
        report([trial], tmp_path)


# Files

numbers = st.one_of(st.floats(width=32), st.sampled_from([0.5, 0.25]))
trials = st.lists(
    st.one_of(
        st.tuples(st.just("value"), numbers, st.sampled_from([*HOSTILE, "gru"])),
        st.tuples(st.just("reason"), st.sampled_from(HOSTILE[:-1]), st.text(max_size=5)),
        st.tuples(st.just("reason"), st.just(""), st.just("lstm")),  # goes on
    ),
    min_size=1,
    max_size=8,
)


@given(trials, st.sampled_from(["min", "max"]))
def test_every_trial_is_there_once_whatever_came_of_it(cases, mode):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.sweeps.results, "draw_against", lambda *args: args[-1].touch())
        root = Path(name)
        own = [
            make_trial(root, i, mode=mode, **{kind: x}, model__cell=cell)
            for i, (kind, x, cell) in enumerate(cases)
        ]
        report(own, root)
        lines = read_trials(root)
        assert [line["name"] for line in lines] == [trial.directory.name for trial in own]
        for (kind, x, cell), line in zip(cases, lines, strict=True):
            status = "finished" if kind == "value" else "failed" if x else "unfinished"
            assert (line["status"], line["overrides"]) == (status, {CELL: cell})
            assert line["reason"] == (x if status == "failed" else "")
            is_finite = status == "finished" and math.isfinite(x)
            assert line["objective"] == (x if is_finite else None)
        for status in ("finished", "failed", "unfinished"):
            there = sum(line["status"] == status for line in lines)
            assert sum(int(row[status]) for row in read_summary(root)) == there
        finite = any(kind == "value" and math.isfinite(x) for kind, x, _ in cases)
        assert (root / "sweep.png").exists() == finite


def test_non_finite_values_are_null_and_empty_cells(no_picture, tmp_path, capsys):
    odd = {"accuracy": math.nan, "b": math.inf, "c": -math.inf, "d": 0.25}
    own = [make_trial(tmp_path, 0, 0.5, seed=0, metrics=odd)]
    own.append(make_trial(tmp_path, 1, math.nan, seed=1, metrics=odd | {"b": 4.0}))
    out = show(own, tmp_path, capsys)
    line, other = read_trials(tmp_path)
    assert line["metrics"]["test"] == {"accuracy": None, "b": None, "c": None, "d": 0.25}
    assert (other["status"], other["objective"]) == ("finished", None)
    [row] = read_summary(tmp_path)
    assert [row[f"test.{name}.median"] for name in odd] == ["", "4.0", "", "0.25"]
    assert (row["finished"], row["objective.median"]) == ("2", "0.5")
    assert cells_of(out) == [["0000", "0.5", "0.5", "0.5", "2", ""]]
    before = [(tmp_path / name).read_bytes() for name in ("trials.jsonl", "summary.csv")]
    path = own[1].directory / RESULT  # results of version 0.1 hold NaN
    path.write_text(path.read_text(encoding="utf-8").replace("null", "NaN"), encoding="utf-8")
    report(own, tmp_path)
    assert before == [(tmp_path / name).read_bytes() for name in ("trials.jsonl", "summary.csv")]


def test_a_summary_has_the_statistics_of_each_setting(no_picture, tmp_path):
    values = {"gru": [0.5, 0.75, 0.875, 0.25], "lstm": [0.625]}
    own = grid(tmp_path, values)
    own.append(make_trial(tmp_path, 7, reason="broke", model__cell="gru", seed=9))
    own.append(make_trial(tmp_path, 8, model__cell="simple_rnn", seed=0))
    own.append(make_trial(tmp_path, 9, 0.125, model__output_dropout=(0.5, 0.25)))
    report(own, tmp_path)
    rows = read_summary(tmp_path)
    assert list(rows[0])[:6] == ["best_trial", CELL, DROPOUT, "finished", "failed", "unfinished"]
    # By median, which is 0.625 twice. What a trial does not change is as its config has it.
    assert [[row[name] for name in list(row)[:6]] for row in rows] == [
        ["0002", "gru", "(0.0,)", "4", "1", "0"],
        ["0004", "lstm", "(0.0,)", "1", "0", "0"],
        ["0009", "lstm", "(0.5, 0.25)", "1", "0", "0"],
        ["0008", "simple_rnn", "(0.0,)", "0", "0", "1"],
    ]
    for row, numbers in zip(rows, [*values.values(), [0.125]], strict=False):
        for name, compute in {"median": np.median, "min": np.min, "max": np.max}.items():
            assert float(row[f"objective.{name}"]) == compute(numbers)
            assert float(row[f"test.loss.{name}"]) == 0.5
    assert rows[-1]["objective.median"] == rows[-1]["test.loss.max"] == ""


def test_texts_are_read_back_from_the_files_as_they_are(no_picture, tmp_path):
    own = [make_trial(tmp_path, i, 0.5, model__cell=text) for i, text in enumerate(HOSTILE)]
    report(own, tmp_path)
    assert sorted(row[CELL] for row in read_summary(tmp_path)) == sorted(HOSTILE)
    assert [line["overrides"][CELL] for line in read_lines(tmp_path / "trials.jsonl")] == HOSTILE


# The table


@pytest.mark.parametrize(("mode", "best"), [("max", "0004"), ("min", "0005")])
def test_the_best_has_the_best_median_and_not_the_luckiest_seed(
    no_picture, mode, best, tmp_path, capsys
):
    good, bad = {"max": (1.0, 0.0), "min": (0.0, 1.0)}[mode]
    lucky, steady = [good, bad, bad], [0.5, 0.625, 0.375]
    own = grid(tmp_path, {"lucky": lucky, "steady": steady}, mode=mode)
    own.append(make_trial(tmp_path, 6, reason="broke", mode=mode, model__cell="steady", seed=3))
    lines = show(own, tmp_path, capsys).splitlines()
    place = lines.index(f"the best is trial {best}; to train its config again:")
    config = tmp_path / "trials" / best
    expected = f"  python -m experiments.train --config={config} --workdir=NEW_DIRECTORY"
    assert lines[place + 1] == expected
    assert lines[-1] == f"written to {tmp_path}: trials.jsonl, summary.csv, sweep.png"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_non_finite_value_is_never_the_best(mode, no_picture, tmp_path, capsys):
    values = [math.nan, -math.inf, math.inf, 0.5, 0.25]
    own = [make_trial(tmp_path, i, x, mode=mode, model__cell=f"{i}") for i, x in enumerate(values)]
    rows = cells_of(show(own, tmp_path, capsys))
    expected = ["0003", "0004"] if mode == "max" else ["0004", "0003"]
    assert [row[0] for row in rows] == [*expected, "0000", "0001", "0002"]
    for infinite in own[1:3]:
        assert "there is no best one" in show([infinite], tmp_path, capsys)


def test_without_a_finished_trial_there_is_no_best(tmp_path, capsys):
    own = [make_trial(tmp_path, 0, reason="broke"), make_trial(tmp_path, 1)]
    own.append(make_trial(tmp_path, 2, math.nan))
    assert "no trial has finished with a finite value" in show(own, tmp_path, capsys)
    there = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert there == {"trials.jsonl", "summary.csv"}


def test_the_table_has_the_best_first(no_picture, tmp_path, capsys):
    own = [
        make_trial(tmp_path, i, (i * 7 % 25) / 32, optim__learning_rate=2.0**-i) for i in range(25)
    ]
    out = show(own, tmp_path, capsys)
    header = [cell.strip() for cell in out.splitlines()[1].strip("┃").split("┃")]
    assert header == ["best_trial", RATE, "valid.accuracy (max)", "test.accuracy"]
    rows = cells_of(out)
    values = [float(row[2]) for row in rows]
    assert values == pytest.approx([i / 32 for i in range(24, 4, -1)], 1e-3)
    assert rows[0] == ["0007", "0.007812", "0.75", "0.25"]
    assert "and 5 more: summary.csv has them all\n25 trials: 25 finished\n" in out


def test_the_table_says_how_trials_failed_and_what_seeds_make(no_picture, tmp_path, capsys):
    own = grid(tmp_path, {"gru": [0.5, 0.25, 0.75], "lstm": [0.625]})
    reasons = ["broke [bold]now[/]\nx", "broke [bold]now[/]\nx", "y" * 999, *"abcdefghij"]
    for i, reason in enumerate(reasons):
        own.append(make_trial(tmp_path, 10 + i, reason=reason, model__cell="gru", seed=10 + i))
    own.append(make_trial(tmp_path, 40, model__cell="lstm", seed=8))
    out = show(own, tmp_path, capsys)
    assert "18 trials: 4 finished, 13 failed, 1 unfinished\n" in out
    assert out.count("broke") == 1 and "failed 2 x: broke [bold]now[/] x\n" in out
    assert f"failed 1 x: {'y' * 300}…\n" in out and out.count("failed 1 x") == 9
    assert "and for 2 more reasons: trials.jsonl has them all" in out
    assert cells_of(out) == [
        ["0003", "lstm", "0.625", "0.625", "0.625", "1", "0.25"],
        ["0002", "gru", "0.5", "0.25", "0.75", "3", "0.25"],
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_shown_as_they_are(no_picture, terminal, tmp_path, capsys, monkeypatch):
    if terminal:
        be_terminal(monkeypatch)
    finished = [make_trial(tmp_path, i, 0.5, model__cell=x) for i, x in enumerate(HOSTILE)]
    reasons = [*HOSTILE[:8], "long " * 59]
    failed = [make_trial(tmp_path, 90 + i, reason=x) for i, x in enumerate(reasons)]
    cells, told = show(finished, tmp_path, capsys), show(failed, tmp_path, capsys)
    for text in HOSTILE:
        assert one_line(text).strip() in cells
    for text in reasons:
        assert f"failed 1 x: {one_line(text)}" in told
    out = cells + told
    assert not {*"\a\r\u2028\u202e"} & {*out} and "\x1b[2J" not in out


def be_terminal(monkeypatch, width: int = 200) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))


# While trials run


@pytest.fixture
def look_always(monkeypatch):
    monkeypatch.setattr(seqjax.sweeps.results, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(seqjax.sweeps.results, "LOOK_SHARE", math.inf)


def save_progress(root: Path, **trials: list) -> None:
    """Writes the epoch, losses and best value of trials as a worker does, by name."""
    (root / "groups" / "x" / "first").mkdir(parents=True, exist_ok=True)
    own = {name.removeprefix("t"): values for name, values in trials.items()}
    write_json(root / "groups" / "x" / "first" / PROGRESS, own)


def test_without_a_terminal_every_end_is_a_line(look_always, tmp_path, capsys):
    own = [make_trial(tmp_path, i, 0.5 if i == 0 else None) for i in range(4)]
    with LiveTable(lambda: own, tmp_path / "groups") as table:
        table.look()
        assert capsys.readouterr().out == ""
        make_trial(tmp_path, 1, 0.75)
        table.look()
        expected = "trial 0001 finished: valid.accuracy 0.75 at epoch 2 (2 of 4)\n"
        assert capsys.readouterr().out == expected
        make_trial(tmp_path, 2, reason="[bold]no\n\x1b[2Jnumber")
        table.look()
        assert capsys.readouterr().out == "trial 0002 failed: [bold]no  [2Jnumber (3 of 4)\n"
        make_trial(tmp_path, 3, math.nan)
    expected = "trial 0003 finished: valid.accuracy not finite at epoch 2 (4 of 4)\n"
    assert capsys.readouterr().out == expected


def test_a_terminal_shows_the_best_trials_of_all_workers(
    look_always, tmp_path, capsys, monkeypatch
):
    be_terminal(monkeypatch)
    own = [make_trial(tmp_path, i) for i in range(22)]
    values = {f"t{i:04}": [2, 0.5, 0.25, 0.5 + i / 64] for i in range(20)}
    save_progress(tmp_path, **values | {"t0002": [1, None, None, None], "t9": [1, 1, 1, 1]})
    with LiveTable(lambda: own, tmp_path / "groups") as table:
        make_trial(tmp_path, 0, 0.5)
        make_trial(tmp_path, 1, reason="broke")
        table.look()
        out = capsys.readouterr().out
        rows = cells_of(out)
        assert rows[0] == ["0019", "2/3", "0.5", "0.25", "0.7969"]  # the best so far
        assert [row[0] for row in rows] == [f"{i:04}" for i in range(19, 4, -1)]
        assert "18 training, 2 waiting, 1 finished, 1 failed" in out
        save_progress(tmp_path, **{k: values[k] for k in ("t0003",)} | {"t0002": [1, *[None] * 3]})
        own[:] = own[:4]  # a search has others with time
        table.look()
        assert cells_of(capsys.readouterr().out)[-1] == ["0002", "1/3", "", "", ""]
    assert "trial 0000 finished" not in capsys.readouterr().out


def test_the_directory_is_read_at_most_twice_a_second_and_a_twentieth_of_the_time(
    tmp_path, monkeypatch
):
    now, looks, cost = [0.0], [], [0.0]

    def take(self, tell=True):
        looks.append(now[0])
        now[0] += cost[0]

    monkeypatch.setattr(LiveTable, "_take_ended", take)
    monkeypatch.setattr(seqjax.sweeps.results.time, "monotonic", lambda: now[0])
    with LiveTable(list, tmp_path) as table:
        for seconds, most in ((0.0, 20), (0.125, 5)):
            cost[0], end = seconds, now[0] + 10
            looks.clear()
            while now[0] < end:
                table.look()
                now[0] += 1 / 128
            assert most - 2 <= len(looks) <= most


# The picture


def drawn(trials, root, monkeypatch) -> list[Any]:
    """The axes of the sweep's picture."""
    figures = []
    save = seqjax.plots.save_figure

    def keep(figure, path):
        save(figure, path)
        figures.append(figure)

    with monkeypatch.context() as patch:
        patch.setattr(seqjax.plots, "save_figure", keep)
        report(trials, root)
    assert_picture(root / "sweep.png")
    return figures[0].axes


def points(axis) -> list[tuple[float, float]]:
    return [tuple(point) for point in axis.collections[0].get_offsets().tolist()]


def test_seeds_alone_are_an_axis(tmp_path, monkeypatch):
    values = [0.5, 0.75, 0.875]
    own = [make_trial(tmp_path, i, x, seed=i) for i, x in enumerate(values)]
    own.append(make_trial(tmp_path, 9, reason="broke", seed=9))
    [axis] = drawn(own, tmp_path, monkeypatch)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("seed", "valid.accuracy (max)")
    assert points(axis) == [*enumerate(values)]
    assert axis.collections[1].get_offsets().tolist() == [[2, 0.875]]
    assert axis.figure.get_suptitle() == f"{tmp_path.name}: 3 finished, 1 failed"
    bytes_before = (tmp_path / "sweep.png").read_bytes()
    report(own, tmp_path)
    assert (tmp_path / "sweep.png").read_bytes() == bytes_before


def test_each_field_is_a_panel_of_numbers_or_strips(tmp_path, monkeypatch):
    cases = [(c, r, b) for c in ("gru", "$뷁$") for r in (0.001, 0.1) for b in (True, False)]
    own = [
        make_trial(
            tmp_path,
            i,
            0.875 - i / 32,
            mode="min",
            model__cell=cell,
            optim__learning_rate=rate,
            model__bidirectional=both,
        )
        for i, (cell, rate, both) in enumerate(cases)
    ]
    own.append(make_trial(tmp_path, 90, math.inf, mode="min", model__cell="simple_rnn"))
    cell, rate, both = drawn(own, tmp_path, monkeypatch)
    assert [axis.get_xlabel() for axis in (cell, rate, both)] == [CELL, RATE, "model.bidirectional"]
    assert [text.get_text() for text in cell.get_xticklabels()] == ["gru", r"\$뷁\$"]
    assert rate.get_xscale() == "log" and both.get_xscale() == "linear"
    values = [0.875 - i / 32 for i in range(8)]
    assert points(cell) == [*zip([0.0] * 4 + [1.0] * 4, values, strict=True)]
    assert points(rate) == [*zip([0.001, 0.001, 0.1, 0.1] * 2, values, strict=True)]
    medians = [np.median(values[:4]), np.median(values[4:])]
    assert [*cell.lines[0].get_ydata()] == medians
    assert cell.collections[1].get_offsets().tolist() == [[1, values[-1]]]


def test_texts_of_a_picture_are_as_they_are_written(tmp_path, monkeypatch):
    own = [make_trial(tmp_path, i, 0.5, model__cell=text) for i, text in enumerate(HOSTILE)]
    [axis] = drawn(own, tmp_path, monkeypatch)
    ticks = [text.get_text().replace(r"\$", "$") for text in axis.get_xticklabels()]
    assert ticks == [one_line(text) for text in HOSTILE]


def test_a_picture_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*arguments):
        arguments[-1].write_text("half of one")
        raise OSError("disk full")

    (tmp_path / "sweep.png").write_text("the last one")
    monkeypatch.setattr(seqjax.sweeps.results, "draw_against", fail)
    with pytest.raises(OSError, match="disk full"):
        report([make_trial(tmp_path, 0, 0.5)], tmp_path)
    assert (tmp_path / "sweep.png").read_text() == "the last one"


@pytest.mark.parametrize(("num_fields", "num_trials"), [(1, 1), (1, 60), (2, 1), (8, 60)])
def test_pictures_of_every_size(num_fields, num_trials, tmp_path):
    rng = np.random.default_rng(0)
    kinds = [lambda: rng.uniform(size=num_trials).tolist(), lambda: ["a" * 99, "b"] * num_trials]
    columns = {f"field {i}": kinds[i % 2]()[:num_trials] for i in range(num_fields)}
    values = rng.uniform(size=num_trials).tolist()
    seqjax.plots.draw_against(columns, values, "valid.loss", 0, "some", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")
