"""Sweeps' reports: every trial once, honest figures over seeds, the best config, no text that acts.

Trials are directories written by hand: nothing is trained.
"""

import csv
import json
import math
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import matplotlib.text
import numpy as np
import pytest
from absl import flags
from hypothesis import given
from ml_collections import config_flags
from support.toys import assert_picture

import seqjax.sweeps.plots
import seqjax.sweeps.report
from seqjax.config import base_config
from seqjax.errors import UserError, one_line
from seqjax.files import write_json
from seqjax.runs.workdir import RESULT
from seqjax.sweeps.plots import draw_sweep, make_scale
from seqjax.sweeps.report import LiveTable, save_report, show_table
from seqjax.sweeps.results import Entry, objective
from seqjax.sweeps.trial import FAILURE, Trial

# ml_collections reads config files by a method that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

RATE, CELL, DROPOUT = "optim.learning_rate", "model.cell", "model.output_dropout"
# Markup, control characters, what ends a line, quotes, what turns text, a formula, what is no text.
HOSTILE = ["[bold]네[/]", ":smile:", "a\x1b[2J\x07b", "a\r\nb\u2028c", '"""\\', "'\"\\", "\u202ex"]
HOSTILE += ["=1+1", "@x", "\uff1d1", " \t-2+3", "$x^2$", "{doc}", "\ud800", "뷁, 뷁", ""]

RUN = ("=", "+", "-", "@", "\uff1d")  # what a spreadsheet takes for a formula


def make_entry(
    root: Path,
    number: int,
    value: float | None = None,
    *,
    reason: str = "",
    best_epoch: int = 2,
    metrics: dict[str, float] | None = None,
    monitor: str = "valid.accuracy",
    mode: str = "max",
    **overrides: Any,
) -> Entry:
    """A trial that ended with that objective after 3 epochs, failed, or goes on."""
    config = base_config("recall")
    config.train.update(monitor=monitor, monitor_mode=mode, num_epochs=3)
    overrides = {name.replace("__", "."): x for name, x in overrides.items()}
    config.update_from_flattened_dict(overrides)
    name = f"{number:04}"
    trial = Trial(config.lock(), root / "trials" / name)
    if value is not None or reason:
        trial.directory.mkdir(parents=True)
    if reason:
        write_json(trial.directory / FAILURE, {"reason": reason})
    elif value is not None:
        split, _, metric = monitor.replace("epoch", "train.loss").partition(".")
        result = {"test": metrics or {"loss": 0.5, "accuracy": 0.25}, split: {metric: value}}
        result |= {"best_epoch": best_epoch, "num_epochs": 3, "num_parameters": 17}
        write_json(trial.directory / RESULT, result)
    return Entry(name, overrides, trial)


def make_records(value: float | None, best_epoch: int = 2) -> list[dict]:
    """The records of three epochs; all metrics have the value at the best one."""
    return [
        {
            "epoch": epoch,
            "step": 4 * epoch,
            "learning_rate": 0.125,
            "train": {"loss": x, "accuracy": x},
            "valid": {"loss": x, "accuracy": x},
        }
        for epoch in (1, 2, 3)
        for x in [value if epoch == best_epoch else 0.0625 * epoch]
    ]


def grid(root: Path, values: dict[str, list[float]], **options: Any) -> list[Entry]:
    """A trial a value, of the cells by name, with seeds 0, 1, ..."""
    cases = [(cell, seed, x) for cell, row in values.items() for seed, x in enumerate(row)]
    return [
        make_entry(root, i, value, model__cell=cell, seed=seed, **options)
        for i, (cell, seed, value) in enumerate(cases)
    ]


def touch(*arguments: Any) -> None:
    """Draws nothing, in no time."""
    arguments[-1].touch()


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(seqjax.sweeps.report, "_draw", touch)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def load_best(path: Path, *args: str):
    """The config of best.py, as `experiments.train` gets it."""
    values, argv = flags.FlagValues(), ["train", f"--config={path}", *args]
    with mock.patch.object(sys, "argv", argv):  # where overrides are found
        config = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        values(argv)
    return config.value


# What trials are compared by


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [
        ("valid.accuracy", "max", ("valid", "accuracy", 1)),
        ("train.loss", "min", ("train", "loss", -1)),
        ("epoch", "max", ("train", "loss", -1)),
    ],
)
def test_trials_are_compared_by_what_they_monitor(no_picture, monitor, mode, expected, tmp_path):
    entry = make_entry(tmp_path, 0, 0.75, monitor=monitor, mode=mode)
    assert objective(entry.trial.config) == expected
    save_report([entry], tmp_path)
    [line] = read_jsonl(tmp_path / "trials.jsonl")
    assert line["objective_name"] == ".".join(expected[:2])
    assert line["objective"] == 0.75


def test_no_trial_is_compared_by_a_test_split(tmp_path):
    entry = make_entry(tmp_path, 0, 0.75, monitor="test.accuracy")
    with pytest.raises(UserError, match="compared by train or valid"):
        objective(entry.trial.config)


@pytest.mark.parametrize("call", [save_report, lambda e, _: show_table(e), "live"])
def test_trials_with_different_monitors_cannot_be_compared(call, tmp_path):
    entries = [make_entry(tmp_path, 0, 0.5), make_entry(tmp_path, 1, 0.5, mode="min")]
    if call == "live":
        call = lambda entries, _: LiveTable([entry.trial for entry in entries])  # noqa: E731
    with pytest.raises(UserError, match=r"valid.accuracy \(max\) and valid.accuracy \(min\)"):
        call(entries, tmp_path)


@pytest.mark.parametrize(
    "result", [[], {"best_epoch": 1}, {"valid": 3}, {"valid": {}}, {"valid": {"accuracy": "high"}}]
)
def test_a_damaged_trial_is_named(result, tmp_path):
    entry = make_entry(tmp_path, 0, 0.5)
    path = entry.trial.directory / RESULT
    write_json(path, result)
    with pytest.raises(UserError, match=f"{path} does not say what valid.accuracy is: restore it"):
        save_report([entry], tmp_path)


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
    with tempfile.TemporaryDirectory() as name, mock.patch("seqjax.sweeps.report._draw", touch):
        root = Path(name)
        entries = [
            make_entry(root, i, mode=mode, **{kind: x}, model__cell=cell)
            for i, (kind, x, cell) in enumerate(cases)
        ]
        save_report(entries, root)
        names = [entry.name for entry in entries]
        lines, rows = read_jsonl(root / "trials.jsonl"), read_csv(root / "trials.csv")
        assert [line["name"] for line in lines] == [row["name"] for row in rows] == names
        for (kind, x, cell), line, row in zip(cases, lines, rows, strict=True):
            status = "finished" if kind == "value" else "failed" if x else "unfinished"
            assert line["status"] == row["status"] == status
            assert line["overrides"] == {CELL: cell}
            assert line["reason"] == (x if status == "failed" else "")
            shown = one_line(line["reason"])
            assert row["reason"] in (shown, f"'{shown}")
            if status == "finished" and math.isfinite(x):
                assert line["objective"] == float(row["objective"]) == x
            else:
                assert line["objective"] is None and row["objective"] == ""
        summary = read_csv(root / "summary.csv")
        for kind in ("finished", "failed", "unfinished"):
            there = sum(row["status"] == kind for row in rows)
            assert sum(int(row[kind]) for row in summary) == there
        finite = any(kind == "value" and math.isfinite(x) for kind, x, _ in cases)
        assert (root / "best.py").exists() == finite


def test_the_columns_are_those_of_the_fields_and_figures(no_picture, tmp_path):
    entries = [
        make_entry(tmp_path, 0, reason="broke", seed=0, optim__learning_rate=0.1),
        make_entry(tmp_path, 1, 0.75, seed=1, model__output_dropout=(0.5, 0.25)),
        make_entry(tmp_path, 2, 0.5, seed=1, metrics={"loss": 2.0, "bleu": 9.0}),
    ]
    save_report(entries, tmp_path)
    [failed, row, other] = read_csv(tmp_path / "trials.csv")
    figures = ["test.accuracy", "test.bleu", "test.loss", "valid.accuracy"]
    assert list(row) == [
        *("name", "seed", RATE, DROPOUT, "status", "reason", "objective"),
        *("best_epoch", "num_epochs", "num_parameters", *figures),
    ]
    # what a trial does not override is as its config has it
    assert (row[RATE], row[DROPOUT], failed[DROPOUT]) == ("0.001", "(0.5, 0.25)", "(0.0,)")
    assert [row[name] for name in figures] == ["0.25", "", "0.5", "0.75"]
    assert [other[name] for name in figures] == ["", "9.0", "2.0", "0.5"]
    assert (row["num_parameters"], failed["num_parameters"]) == ("17", "")
    line = read_jsonl(tmp_path / "trials.jsonl")[1]
    assert line["metrics"] == {"test": {"loss": 0.5, "accuracy": 0.25}, "valid": {"accuracy": 0.75}}
    assert line["overrides"] == {"seed": 1, DROPOUT: [0.5, 0.25]}
    assert (line["best_epoch"], line["num_epochs"], line["num_parameters"]) == (2, 3, 17)


def test_what_is_no_number_is_null_and_an_empty_cell(no_picture, tmp_path, capsys):
    odd = {"accuracy": math.nan, "b": math.inf, "c": -math.inf, "d": 0.25}
    entries = [make_entry(tmp_path, 0, 0.5, seed=0, metrics=odd)]
    entries.append(make_entry(tmp_path, 1, math.nan, seed=1, metrics=odd | {"b": 4.0}))
    save_report(entries, tmp_path)
    row, other = read_csv(tmp_path / "trials.csv")
    assert [row[f"test.{name}"] for name in odd] == ["", "", "", "0.25"]
    assert (row["objective"], other["objective"], other["test.b"]) == ("0.5", "", "4.0")
    told, other = read_jsonl(tmp_path / "trials.jsonl")
    assert told["metrics"]["test"] == {"accuracy": None, "b": None, "c": None, "d": 0.25}
    assert (other["status"], other["objective"]) == ("finished", None)
    [row] = read_csv(tmp_path / "summary.csv")
    assert [row[f"test.{name}.median"] for name in odd] == ["", "4.0", "", "0.25"]
    assert (row["finished"], row["objective.median"]) == ("2", "0.5")
    shown = [line.split("│")[1:-1] for line in show(entries, capsys).splitlines() if "│" in line]
    shown = [[cell.strip() for cell in cells] for cells in shown]
    assert shown[:2] == [["1", "0000", "0", "0.5", "2", ""], ["2", "0001", "1", "", "2", ""]]


def test_results_of_earlier_versions_say_nan(no_picture, tmp_path):
    entries = [make_entry(tmp_path, i, x, metrics={"b": x}) for i, x in enumerate([0.5, math.nan])]
    names = [path.name for path in save_report(entries, tmp_path)][:3]
    before = [(tmp_path / name).read_bytes() for name in names]
    path = entries[1].trial.directory / RESULT
    path.write_text(path.read_text(encoding="utf-8").replace("null", "NaN"), encoding="utf-8")
    save_report(entries, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_runs_in_a_spreadsheet(no_picture, text, tmp_path):
    entries = [make_entry(tmp_path, 0, 0.5, model__cell=text)]
    entries.append(make_entry(tmp_path, 1, reason=text or "x", model__cell=text))
    save_report(entries, tmp_path)
    for file in ("trials.csv", "summary.csv"):
        data = (tmp_path / file).read_bytes()
        assert data.startswith(b"\xef\xbb\xbf") != data.isascii()  # without it Excel reads cp949
        for row in read_csv(tmp_path / file):
            for cell in row.values():
                assert not cell.lstrip().startswith(RUN)
            shown = one_line(text)
            assert row[CELL] == (f"'{shown}" if shown.lstrip().startswith(RUN) else shown)


def test_a_summary_is_what_numpy_says(no_picture, tmp_path):
    values = {"gru": [0.5, 0.75, 0.875, 0.25], "lstm": [0.625]}
    entries = grid(tmp_path, values)
    entries.append(make_entry(tmp_path, 7, reason="broke", model__cell="gru", seed=9))
    entries.append(make_entry(tmp_path, 8, model__cell="simple_rnn", seed=0))
    save_report(entries, tmp_path)
    rows = {row[CELL]: row for row in read_csv(tmp_path / "summary.csv")}
    assert list(rows) == ["gru", "lstm", "simple_rnn"]  # by median, 0.625 twice
    assert "seed" not in rows["gru"]
    counts = {cell: [row[k] for k in ("seeds", "finished", "failed")] for cell, row in rows.items()}
    assert counts == {
        "gru": ["5", "4", "1"],
        "lstm": ["1", "1", "0"],
        "simple_rnn": ["1", "0", "0"],
    }
    assert [row["unfinished"] for row in rows.values()] == ["0", "0", "1"]
    for cell, numbers in values.items():
        expected = {"median": np.median(numbers), "mean": np.mean(numbers)}
        expected |= {"p5": np.quantile(numbers, 0.05), "p95": np.quantile(numbers, 0.95)}
        for name, x in expected.items():
            assert float(rows[cell][f"objective.{name}"]) == pytest.approx(x)
            assert float(rows[cell][f"test.loss.{name}"]) == 0.5
    deviation = np.sqrt(np.sum((np.array(values["gru"]) - 0.59375) ** 2) / 3)
    assert float(rows["gru"]["objective.std"]) == pytest.approx(deviation)
    assert rows["lstm"]["objective.std"] == rows["simple_rnn"]["objective.median"] == ""


# The best


@pytest.mark.parametrize(("mode", "best"), [("max", "0004"), ("min", "0005")])
def test_the_best_has_the_best_median_and_not_the_luckiest_seed(no_picture, mode, best, tmp_path):
    good, bad = {"max": (1.0, 0.0), "min": (0.0, 1.0)}[mode]
    lucky, steady = [good, bad, bad], [0.5, 0.625, 0.375]
    entries = grid(tmp_path, {"lucky": lucky, "steady": steady}, mode=mode)
    entries.append(make_entry(tmp_path, 6, reason="broke", mode=mode, model__cell="steady", seed=3))
    save_report(entries, tmp_path)
    text = (tmp_path / "best.py").read_text()
    value = 0.625 if mode == "max" else 0.375
    assert text.startswith(f'"""Trial {best}: valid.accuracy {value} ({mode}) at epoch 2.')
    assert "the best median, 0.5 (3 finished, 1 failed)" in text
    assert load_best(tmp_path / "best.py").seed == int(best) - 3


@pytest.mark.parametrize("text", HOSTILE)
def test_the_best_config_is_read_as_it_was(no_picture, text, tmp_path):
    settings = {"seed": 7, "model__output_dropout": (0.25, 0.5), "model__bidirectional": True}
    root = tmp_path / "a 'b\" \\ {c}"
    entry = make_entry(root, 0, 0.5, model__cell=text, optim__learning_rate=1e-5, **settings)
    worse = make_entry(root, 1, 0.25)
    save_report([worse, entry], root)
    config = load_best(root / "best.py")
    assert config.to_dict() == entry.trial.config.to_dict()
    assert type(config.model.output_dropout) is tuple
    assert load_best(root / "best.py", "--config.seed=8").seed == 8
    source = (root / "best.py").read_text(encoding="utf-8")
    doc = compile(source, "best.py", "exec").co_consts[0]
    assert "Trial 0000: valid.accuracy 0.5 (max) at epoch 2." in doc
    assert "model.output_dropout=(0.25, 0.5), model.bidirectional=True" in doc
    assert "The best of 2 trials." in doc
    command = ["python", "-m", "experiments.train", f"--config={root}/best.py"]
    assert shlex.split(doc.splitlines()[-1]) == command
    save_report([worse, entry], root)
    assert (root / "best.py").read_text(encoding="utf-8") == source
    assert not list(root.glob("*.tmp"))
    save_report([entry], tmp_path / "a\x1b[2J\n")
    assert "a [2J /best.py" in (tmp_path / "a\x1b[2J\n" / "best.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_never_the_best(mode, no_picture, tmp_path, capsys):
    values = [math.nan, -math.inf, math.inf, 0.5, 0.25]
    cases = [
        make_entry(tmp_path, i, x, mode=mode, model__cell=f"{i}") for i, x in enumerate(values)
    ]
    save_report(cases, tmp_path)
    rows = show(cases, capsys).splitlines()[3:8]
    expected = ["0003", "0004"] if mode == "max" else ["0004", "0003"]
    assert [row.split("│")[2].strip() for row in rows] == [*expected, "0000", "0001", "0002"]
    assert load_best(tmp_path / "best.py").model.cell == expected[0][-1]
    for infinite in cases[1:3]:
        assert len(save_report([infinite], tmp_path)) == 3  # no best


def test_without_a_finished_trial_there_is_no_best(tmp_path, capsys):
    entries = [make_entry(tmp_path, 0, reason="broke"), make_entry(tmp_path, 1)]
    entries.append(make_entry(tmp_path, 2, math.nan))
    paths = save_report(entries, tmp_path)
    there = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in paths} == there == {"trials.jsonl", "trials.csv", "summary.csv"}
    show_table(entries)
    assert "there is no best.py and no sweep.png" in capsys.readouterr().out


# Tables


def show(entries, capsys) -> str:
    capsys.readouterr()
    show_table(entries)
    return capsys.readouterr().out


def test_the_table_has_the_best_first(tmp_path, capsys):
    entries = [
        make_entry(tmp_path, i, (i * 7 % 25) / 32, optim__learning_rate=2.0**-i) for i in range(25)
    ]
    lines = show(entries, capsys).splitlines()
    header = [cell.strip() for cell in lines[1].strip("┃").split("┃")]
    assert header == ["rank", "trial", RATE, "valid.accuracy (max)", "best epoch", "test.accuracy"]
    rows = [[x.strip() for x in line.strip("│").split("│")] for line in lines if line[:1] == "│"]
    assert [row[0] for row in rows] == [f"{i}" for i in range(1, 21)]
    assert [float(row[3]) for row in rows] == pytest.approx(
        [i / 32 for i in range(24, 4, -1)], 1e-3
    )
    assert rows[0] == ["1", "0007", "0.007812", "0.75", "2", "0.25"]
    assert "and 5 more: trials.csv has them all" in lines
    assert "25 trials: 25 finished" in lines


def test_the_table_says_how_trials_failed_and_what_seeds_make(tmp_path, capsys):
    entries = grid(tmp_path, {"gru": [0.5, 0.25, 0.75], "lstm": [0.625]})
    reasons = ["broke [bold]now[/]\nx", "broke [bold]now[/]\nx", "y" * 999, *"abcdefghij"]
    for i, reason in enumerate(reasons):
        entries.append(make_entry(tmp_path, 10 + i, reason=reason, model__cell="gru", seed=10 + i))
    entries.append(make_entry(tmp_path, 40, model__cell="lstm", seed=8))
    out = show(entries, capsys)
    assert "18 trials: 4 finished, 13 failed, 1 unfinished\nthe best: trial 0003\n" in out
    assert out.count("broke") == 1 and "failed 2 x: broke [bold]now[/] x\n" in out
    assert f"failed 1 x: {'y' * 300}…\n" in out and out.count("failed 1 x") == 9
    assert "and for 2 more reasons: trials.csv has them all" in out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line[:1] == "│"]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert rows[-2] == ["1", "lstm", "1", "0", "1", "0.625", "0.625 to 0.625", "0.625"]
    assert rows[-1] == ["2", "gru", "3", "13", "0", "0.5", "0.275 to 0.725", "0.5 ± 0.25"]


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_shown_as_they_are(terminal, tmp_path, capsys, monkeypatch):
    if terminal:
        be_terminal(monkeypatch)
    finished = [make_entry(tmp_path, i, 0.5, model__cell=x) for i, x in enumerate(HOSTILE)]
    reasons = [*HOSTILE[:8], "long " * 59]
    failed = [make_entry(tmp_path, 90 + i, reason=x) for i, x in enumerate(reasons)]
    finished[0].overrides["a[/b]"] = 1
    cells, told = show(finished, capsys), show(failed, capsys)
    assert "a[/b]" in cells
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


def look_always(monkeypatch) -> None:
    monkeypatch.setattr(seqjax.sweeps.report, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(seqjax.sweeps.report, "LOOK_SHARE", math.inf)


def test_where_nobody_looks_on_every_end_is_a_line(tmp_path, capsys, monkeypatch):
    look_always(monkeypatch)
    trials = [make_entry(tmp_path, i, 0.5 if i == 0 else None).trial for i in range(4)]
    with LiveTable(trials) as table:
        for trial in trials[1:]:
            table.watch(trial, make_records(0.5)[:1])
        make_entry(tmp_path, 1, 0.75)
        table.watch(trials[2], make_records(0.5)[1:2])
        assert capsys.readouterr().out == (
            "trial 0001 finished: valid.accuracy 0.75 at epoch 2 (2 of 4)\n"
        )
        make_entry(tmp_path, 2, reason="[bold]no\n\x1b[2Jnumber")
        table.watch(trials[3], ())
        assert capsys.readouterr().out == "trial 0002 failed: [bold]no  [2Jnumber (3 of 4)\n"
        make_entry(tmp_path, 3, 0.25)
    assert capsys.readouterr().out.startswith("trial 0003 finished: valid.accuracy 0.25")


def test_an_end_without_a_number_is_told(tmp_path, capsys, monkeypatch):
    look_always(monkeypatch)
    trial = make_entry(tmp_path, 0).trial
    with LiveTable([trial]):
        make_entry(tmp_path, 0, math.nan)
    told = "trial 0000 finished: valid.accuracy not a number at epoch 2 (1 of 1)\n"
    assert capsys.readouterr().out == told


def test_a_terminal_shows_the_best_that_are_trained(tmp_path, capsys, monkeypatch):
    be_terminal(monkeypatch)
    look_always(monkeypatch)
    trials = [make_entry(tmp_path, i).trial for i in range(22)]
    with LiveTable(trials) as table:
        for i, trial in enumerate(trials[:20]):
            table.watch(trial, make_records(0.5 + i / 64)[:2])
        make_entry(tmp_path, 0, 0.5)
        make_entry(tmp_path, 1, reason="broke")
        capsys.readouterr()
        table.watch(trials[19], [make_records(0.0625)[2]])
        out = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert rows[0] == ["0019", "3/3", "0.1875", "0.1875", "0.7969"]  # the best so far
    assert [row[0] for row in rows] == [f"{i:04}" for i in range(19, 4, -1)]
    assert "18 training, 1 finished, 1 failed, 2 waiting" in out
    assert "0000" not in out and "trial 0000 finished" not in capsys.readouterr().out


def test_a_terminal_shows_trials_without_a_number_last(tmp_path, capsys, monkeypatch):
    be_terminal(monkeypatch)
    look_always(monkeypatch)
    trials = [make_entry(tmp_path, i).trial for i in range(2)]
    with LiveTable(trials) as table:
        table.watch(trials[0], make_records(None)[:2])
        capsys.readouterr()
        table.watch(trials[1], make_records(0.5)[:2])
        out = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert rows[0] == ["0001", "2/3", "0.5", "0.5", "0.5"]
    assert rows[1] == ["0000", "2/3", "", "", ""]


def test_a_terminal_is_drawn_at_most_four_times_a_second(tmp_path, capsys, monkeypatch):
    be_terminal(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(seqjax.sweeps.report.time, "monotonic", lambda: now[0])
    trial = make_entry(tmp_path, 0).trial
    with LiveTable([trial]) as table:
        capsys.readouterr()
        num_drawn = 0
        for i in range(1000):  # in 10 s
            now[0] = i / 100
            table.watch(trial, make_records(0.5)[:1])
            num_drawn += "training" in capsys.readouterr().out
    assert 38 <= num_drawn <= 41


def test_looking_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    now, looks = [0.0], []

    def look(self, tell=True):  # at thousands of trials
        looks.append(now[0])
        now[0] += 0.125

    monkeypatch.setattr(LiveTable, "_look", look)
    monkeypatch.setattr(seqjax.sweeps.report.time, "monotonic", lambda: now[0])
    trial = make_entry(tmp_path, 0).trial
    with LiveTable([trial]) as table:
        while now[0] < 10:
            table.watch(trial, make_records(0.5)[:1])
            now[0] += 0.125
        assert 4 <= len(looks) - 1 <= 5  # the first one is of what ended before


def test_where_the_last_weights_are_kept_the_last_loss_is_shown(tmp_path, capsys, monkeypatch):
    be_terminal(monkeypatch)
    trial = make_entry(tmp_path, 0, monitor="epoch").trial
    with LiveTable([]) as table:  # of trials that a sampler finds as it goes
        capsys.readouterr()
        table.watch(trial, make_records(0.5)[:2])
        out = capsys.readouterr().out
    assert "best train.loss (min)" in out and "1 training, 0 finished, 0 failed, 0 waiting" in out
    [row] = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
    assert [cell.strip() for cell in row] == ["0000", "2/3", "0.5", "0.5", "0.5"]


# Pictures


def drawn(entries, root, monkeypatch) -> tuple[list[str], Any]:
    """The texts of the sweep's picture, and its one axis."""
    figures = []
    save = seqjax.sweeps.plots.save_figure

    def keep(figure, path):
        save(figure, path)
        figures.append(figure)

    with monkeypatch.context() as patch:
        patch.setattr(seqjax.sweeps.plots, "save_figure", keep)
        save_report(entries, root)
    assert_picture(root / "sweep.png")
    texts = []
    for text in figures[0].findobj(matplotlib.text.Text):
        shown, is_math = text._preprocess_math(text.get_text())
        assert not is_math or "mathdefault" in shown  # that of logarithmic axes
        texts.append(shown)
    return texts, figures[0].axes[0]


def test_seeds_alone_are_dots_about_their_median(tmp_path, monkeypatch):
    values = [0.5, 0.75, 0.875]
    entries = [make_entry(tmp_path, i, x, seed=i) for i, x in enumerate(values)]
    entries.append(make_entry(tmp_path, 9, reason="broke", seed=9))
    texts, axis = drawn(entries, tmp_path, monkeypatch)
    bytes_before = (tmp_path / "sweep.png").read_bytes()
    save_report(entries, tmp_path)
    assert (tmp_path / "sweep.png").read_bytes() == bytes_before
    assert {"valid.accuracy", "median 0.75", "3 finished, 1 failed"} <= {*texts}
    dots, best = axis.collections
    assert [*dots.get_offsets()[:, 0]] == values and [*best.get_offsets()[:, 0]] == [0.875]


def test_a_picture_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*arguments):
        arguments[-1].write_text("half of one")
        raise OSError("disk full")

    entries = [make_entry(tmp_path, 0, 0.5)]
    (tmp_path / "sweep.png").write_text("the last one")
    monkeypatch.setattr(seqjax.sweeps.report, "_draw", fail)
    with pytest.raises(OSError, match="disk full"):
        save_report(entries, tmp_path)
    assert (tmp_path / "sweep.png").read_text() == "the last one"


@pytest.mark.parametrize(("most", "kind"), [(0.03125, "linear"), (0.0625, "log")])
def test_one_field_is_an_axis(most, kind, tmp_path, monkeypatch):
    rates = [2**-9, 2**-8, most]
    entries = [
        make_entry(tmp_path, i, 0.5 + i / 8, seed=i % 2, optim__learning_rate=rate)
        for i, rate in enumerate(rates + rates[:1] * 2)
    ]
    _, axis = drawn(entries, tmp_path, monkeypatch)
    assert axis.get_xscale() == kind and axis.get_yscale() == "linear"
    dots = axis.collections[0].get_offsets()
    assert [tuple(dot) for dot in dots] == [
        (x, 0.5 + i / 8) for i, x in enumerate(rates + rates[:1] * 2)
    ]
    assert [*axis.lines[0].get_ydata()] == [0.875, 0.625, 0.75]  # medians


def test_losses_of_all_sizes_lie_on_a_logarithmic_axis(tmp_path, monkeypatch):
    values = [0.01, 0.5]
    entries = [make_entry(tmp_path, i, x, mode="min", seed=i) for i, x in enumerate(values)]
    texts, axis = drawn(entries, tmp_path, monkeypatch)
    assert axis.get_xscale() == "log" and "valid.accuracy\n(log)" in texts
    entries = [make_entry(tmp_path, i, x, seed=i) for i, x in enumerate(values, 2)]
    assert drawn(entries, tmp_path, monkeypatch)[1].get_xscale() == "linear"  # a share


def test_texts_of_a_picture_are_as_they_are_written(tmp_path, monkeypatch):
    entries = [make_entry(tmp_path, i, 0.5, model__cell=text) for i, text in enumerate(HOSTILE)]
    texts, _ = drawn(entries, tmp_path, monkeypatch)
    assert {one_line(text) for text in HOSTILE} <= {*texts}


def test_several_fields_are_parallel_axes(tmp_path, monkeypatch):
    cases = [(c, r, b) for c in ("gru", "뷁") for r in (0.001, 0.01, 0.1) for b in (True, False)]
    entries = [
        make_entry(
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
    entries.append(make_entry(tmp_path, 90, math.inf, mode="min", model__cell="simple_rnn"))
    texts, axis = drawn(entries, tmp_path, monkeypatch)
    names = {CELL, f"{RATE}\n(log)", "model.bidirectional", "valid.accuracy"}
    assert names | {"gru", "뷁", "0.001", "0.01", "0.1", "True", "False", "0.875"} <= {*texts}
    assert "simple_rnn" not in texts  # whose objective no axis has
    [lines] = axis.collections
    ends = [line[-1, 1] for line in lines.get_segments()]
    assert ends == sorted(ends, reverse=True) and (ends[0], ends[-1]) == (1, 0)  # the best on top
    shades = lines.get_array()
    assert [*shades] == sorted(shades)
    assert len({line[0, 1] for line in lines.get_segments()}) == 12  # beside one another
    assert [*axis.lines[0].get_xdata()] == [0, 1, 2, 3]
    assert axis.lines[0].get_ydata()[-1] == 0


def test_a_scale_is_of_numbers_or_of_things():
    assert make_scale("x", [3, 1, 2.5]).places.tolist() == [3, 1, 2.5]
    assert make_scale("x", [(0.5,), (0.25, 1.0), (0.5,)]).places.tolist() == [1, 0, 1]
    assert make_scale("x", [True, False]).things == ["False", "True"]
    assert make_scale("x", ["b", 1, None]).places.tolist() == [0, 1, 2]
    assert not make_scale("x", [0.0, 100.0]).is_log
    assert not make_scale("x", [-100.0, -1.0]).is_log


@pytest.mark.parametrize(("num_fields", "num_trials"), [(0, 1), (1, 1), (1, 60), (2, 1), (7, 60)])
def test_pictures_of_every_size(num_fields, num_trials, tmp_path):
    rng = np.random.default_rng(0)
    kinds = [lambda: rng.uniform(size=num_trials).tolist(), lambda: ["a" * 99, "b"] * num_trials]
    fields = {f"field {i}": kinds[i % 2]()[:num_trials] for i in range(num_fields)}
    values = rng.uniform(size=num_trials).tolist()
    draw_sweep(fields, "valid.loss", values, -1, 0, "some", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")
