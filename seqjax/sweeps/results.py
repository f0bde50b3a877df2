"""The results of a sweep: how far its trials are, and at its end two files, a table and a picture.

Everything is read from the sweep's directory, because several workers may train the trials. Trials
are compared by the metric that their config monitors, as in result.json; never by a test split.
"""

import csv
import json
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from seqjax.config import as_json, find_field
from seqjax.errors import UserError, brief, one_line
from seqjax.files import json_text, read_json, whole_file, write_text
from seqjax.plots import draw_against
from seqjax.runs.workdir import RESULT
from seqjax.training.trials import PROGRESS, Trial, read_below

STATUSES = ("finished", "failed", "unfinished")
STATISTICS = {"median": median, "min": min, "max": max}  # over seeds
COUNTS = ("best_epoch", "num_epochs", "num_parameters")  # of a result
TRIALS_FILE, SUMMARY_FILE, PICTURE = "trials.jsonl", "summary.csv", "sweep.png"
MAX_ROWS, MAX_LIVE_ROWS, MAX_REASONS, MAX_PANELS = 20, 15, 10, 8
MAX_CELL, MAX_REASON = 40, 300  # characters
TESTED = "test.accuracy"  # a metric of every task
LOOK_SECONDS, LOOK_SHARE = 0.5, 0.05  # between two looks at the directory; of all time


class Objective(NamedTuple):
    """The metric SPLIT.METRIC that compares trials; the sign is 1 if more is better, else -1."""

    name: str
    sign: int

    def __str__(self) -> str:
        return f"{self.name} ({'max' if self.sign > 0 else 'min'})"

    def rank(self, value: float | None) -> tuple[bool, float]:
        """Returns a key that sorts the best value first and a missing value last."""
        return (True, 0.0) if value is None else (False, -self.sign * value)


def shared_objective(configs: Iterable[ConfigDict]) -> Objective:
    """Returns `train.monitor`, or the last training loss where that is "epoch".

    Raises UserError for configs with several objectives.
    """
    found = []
    for train in (config.train for config in configs):
        is_loss = train.monitor == "epoch"
        sign = 1 if train.monitor_mode == "max" and not is_loss else -1
        found.append(Objective("train.loss" if is_loss else train.monitor, sign))
    if len(names := dict.fromkeys(map(str, found))) > 1:
        told = f"trials cannot be compared by {' and '.join(names)}"
        raise UserError(f"{told}: give all the same train.monitor and mode")
    return found[0]


class Outcome(NamedTuple):
    """The state of a trial; one that has not finished has neither a value nor metrics."""

    trial: Trial
    status: str  # one of STATUSES
    reason: str  # of a failure, otherwise ""
    value: float | None  # of the objective; None if it is NaN or infinite
    result: Mapping[str, Any]  # result.json
    metrics: Mapping[str, float | None]  # of the result, as SPLIT.METRIC


def read_outcome(trial: Trial) -> Outcome:
    """Returns the state of a trial so far; raises UserError for a damaged file."""
    path, by = trial.directory / RESULT, shared_objective([trial.config])
    if not path.exists():
        status = "failed" if trial.has_ended else "unfinished"
        return Outcome(trial, status, trial.failure(), None, {}, {})
    result = json.loads(json_text(read_json(path)))  # results of version 0.1 may hold NaN
    try:
        splits = {split: part for split, part in result.items() if isinstance(part, dict)}
        metrics = {f"{s}.{name}": x for s, part in splits.items() for name, x in part.items()}
        value = None if metrics[by.name] is None else float(metrics[by.name])
        return Outcome(trial, "finished", "", value, result, metrics)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise UserError(f"{path} does not hold {by.name}: restore it from a copy") from None


def by_setting(outcomes: Iterable[Outcome], by: Objective) -> list[list[Outcome]]:
    """Groups trials that differ only in the seed: the best median first, in it the best trial."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        setting = json.dumps(as_json(outcome.trial.config) | {"seed": 0})
        found.setdefault(setting, []).append(outcome)
    ranked = [sorted(members, key=lambda one: by.rank(one.value)) for members in found.values()]
    return sorted(ranked, key=lambda own: by.rank(compute(median, [one.value for one in own])))


def compute(statistic: Any, values: Iterable[float | None]) -> float | None:
    """Returns a statistic of those values that are finite, None if there are none."""
    finite = [value for value in values if value is not None]
    return statistic(finite) if finite else None


def varied(trials: Sequence[Trial]) -> list[str]:
    """Returns the fields, without the seed, that do not have the same value in all trials."""
    names = dict.fromkeys(name for trial in trials for name in trial.changes if name != "seed")
    return [n for n in names if len({repr(find_field(t.config, n)) for t in trials}) > 1]


def summarize_settings(settings: Sequence[Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Returns a row for each setting: its best trial, its fields, how many trials have which
    status, and STATISTICS over the seeds of the objective and of every metric."""
    outcomes = [one for members in settings for one in members]
    metrics, rows = sorted({name for one in outcomes for name in one.metrics}), []
    fields = varied([one.trial for one in outcomes])
    for members in settings:
        row: dict[str, Any] = {"best_trial": members[0].trial.name}
        row |= {name: find_field(members[0].trial.config, name) for name in fields}
        row |= {status: sum(one.status == status for one in members) for status in STATUSES}
        columns = {"objective": [one.value for one in members]}
        columns |= {name: [one.metrics.get(name) for one in members] for name in metrics}
        for name, column in columns.items():
            for kind, statistic in STATISTICS.items():
                row[f"{name}.{kind}"] = compute(statistic, column)
        rows.append(row)
    return rows


def trials_jsonl(outcomes: Iterable[Outcome], by: Objective) -> str:
    """Returns the text of `trials.jsonl`: a JSON object a trial, on a line of its own."""
    lines = []
    for one in outcomes:
        line: Any = {"name": one.trial.name, "overrides": one.trial.changes, "status": one.status}
        line |= {"reason": one.reason, "objective": one.value, "objective_name": by.name}
        line |= {name: one.result.get(name) for name in COUNTS}
        metrics = {split: x for split, x in one.result.items() if isinstance(x, Mapping)}
        lines.append(json_text(line | {"metrics": metrics}) + "\n")
    return "".join(lines)


class LiveTable:
    """Shows how far trials are: a table of the best in training, or without a terminal a line for
    each trial that ends. A context manager."""

    def __init__(self, find_trials: Callable[[], Sequence[Trial]], groups: Path):
        self._find_trials, self._groups = find_trials, groups
        self._ended: dict[str, str] = {}  # the status of each trial that has ended
        self._look_at = -math.inf
        self._live = Live(console=_console(), auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._take_ended(tell=False)
        if self._live.console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()
        self._take_ended()

    def look(self, *_: Any) -> None:
        """Reads the directory and shows the trials, unless it was read just now."""
        started = time.monotonic()
        if started >= self._look_at:
            with suppress(UserError):  # a storage that is busy does not end training
                self._take_ended()
                if self._live.is_started:
                    self._live.update(self._render(), refresh=True)
            took = time.monotonic() - started
            self._look_at = started + max(LOOK_SECONDS, took / LOOK_SHARE)

    def _take_ended(self, tell: bool = True) -> None:
        trials = self._find_trials()
        for trial in trials:
            if trial.name in self._ended or not trial.has_ended:
                continue
            one, by = read_outcome(trial), shared_objective([trial.config])
            self._ended[one.trial.name] = one.status
            if tell and not self._live.console.is_interactive:
                value = _shown(one.value) or "not finite"
                result = one.reason or f"{by.name} {value} at epoch {one.result['best_epoch']}"
                line = f"trial {one.trial.name} {one.status}: {brief(result, MAX_REASON)}"
                print(f"{line} ({len(self._ended)} of {len(trials)})", flush=True)

    def _render(self) -> Group:
        progress = read_below(self._groups, PROGRESS)
        trials = {trial.name: trial for trial in self._find_trials()}
        if not trials:  # nothing has been proposed yet
            return Group()
        by = shared_objective(trial.config for trial in trials.values())
        names = sorted(trials.keys() & progress.keys() - self._ended)
        names.sort(key=lambda name: by.rank(progress[name][-1]))
        rows = []
        for name in names[:MAX_LIVE_ROWS]:
            epoch, *values = progress[name]
            rows.append([name, f"{epoch}/{trials[name].config.train.num_epochs}", *values])
        counts = {"training": len(names), "waiting": len(trials) - len(self._ended) - len(names)}
        counts |= Counter(self._ended.values())
        header = ["trial", "epoch", "train loss", "valid loss", f"best {by}"]
        return Group(*[_table(header, rows)][: len(rows)], Text(_counted(counts)))


def report(trials: Sequence[Trial], directory: Path) -> None:
    """Writes the results of the sweep to files and prints them as one table.

    Raises UserError for a damaged trial, and for trials that cannot be compared.
    """
    by, outcomes = shared_objective(t.config for t in trials), [read_outcome(t) for t in trials]
    settings = by_setting(outcomes, by)
    rows, best = summarize_settings(settings), settings[0][0]
    write_text(directory / TRIALS_FILE, trials_jsonl(outcomes, by))
    with whole_file(directory / SUMMARY_FILE) as path, path.open("w", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    counts, files = _counted(Counter(one.status for one in outcomes)), [TRIALS_FILE, SUMMARY_FILE]
    lines = [f"{len(trials)} trials: {counts}"]
    if (more := len(rows) - MAX_ROWS) > 0:
        lines.insert(0, f"and {more} more: {SUMMARY_FILE} has them all")
    reasons = Counter(brief(one.reason, MAX_REASON) for one in outcomes if one.reason)
    lines += [f"failed {n} x: {reason}" for reason, n in reasons.most_common(MAX_REASONS)]
    if (more := len(reasons) - MAX_REASONS) > 0:
        lines.append(f"and for {more} more reasons: {TRIALS_FILE} has them all")
    if best.value is None:
        lines.append("no trial has finished with a finite value: there is no best one")
    else:
        drawn = [one for one in outcomes if one.value is not None]
        fields = varied([one.trial for one in drawn])[:MAX_PANELS] or ["seed"]
        columns = {name: [find_field(one.trial.config, name) for one in drawn] for name in fields}
        values = [one.value or 0.0 for one in drawn]
        with whole_file(directory / PICTURE) as path:
            title = f"{directory.name}: {counts}"
            draw_against(columns, values, str(by), drawn.index(best), title, path)
        files.append(PICTURE)
        config = shlex.quote(str(best.trial.directory))
        lines.append(f"the best is trial {best.trial.name}; to train its config again:")
        lines.append(f"  python -m experiments.train --config={config} --workdir=NEW_DIRECTORY")
    _console().print(_summary_table(rows, len(trials) > len(rows), by))
    for line in [*lines, f"written to {directory}: {', '.join(files)}"]:
        print(one_line(line))


def _summary_table(rows: Sequence[Mapping[str, Any]], has_seeds: bool, by: Objective) -> Table:
    """Returns the table of the first rows of the summary, without most of its columns."""
    names = list(rows[0])
    columns = {name: name for name in names[: names.index("finished")]}  # best trial and fields
    columns["objective.median"] = f"median {by}" if has_seeds else str(by)
    if has_seeds:
        columns |= {"objective.min": "min", "objective.max": "max", "finished": "seeds"}
    if f"{TESTED}.median" in rows[0]:
        columns[f"{TESTED}.median"] = f"median {TESTED}" if has_seeds else TESTED
    shown = [[row[name] for name in columns] for row in rows[:MAX_ROWS]]
    return _table([*columns.values()], shown)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    # As Text: in a plain string rich would read [bold] and :smile:.
    table = Table(*(Column(Text(brief(name, MAX_CELL)), overflow="fold") for name in header))
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    for column, value in zip(table.columns, rows[0] if rows else (), strict=False):
        column.justify = "right" if isinstance(value, int | float) else "left"
    return table


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else brief(str(value), MAX_CELL)


def _console() -> Console:
    """Returns the terminal, or where there is none a console for lines of any length."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)
