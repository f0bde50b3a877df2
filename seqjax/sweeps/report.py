"""What a sweep shows: how far its trials are, and at its end one table and one picture.

How far trials are is read from the sweep's directory, whoever trains them.
"""

import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from seqjax.errors import UserError, brief
from seqjax.files import read_json, whole_file, write_text
from seqjax.plots import draw_against
from seqjax.sweeps.results import (
    Objective,
    by_setting,
    read_outcome,
    shared_objective,
    summarize_settings,
    summary_csv,
    trials_jsonl,
    value_in,
    varied,
)
from seqjax.training.trials import PROGRESS, Trial

TRIALS_FILE, SUMMARY_FILE, PICTURE = "trials.jsonl", "summary.csv", "sweep.png"
MAX_ROWS, MAX_LIVE_ROWS, MAX_REASONS, MAX_PANELS = 20, 15, 10, 8
MAX_CELL, MAX_REASON = 40, 300  # characters
TESTED = "test.accuracy"  # a metric of every task
LOOK_SECONDS, LOOK_SHARE = 0.5, 0.05  # between two looks at the directory; of all time
_NO_TERMINAL = 1000  # columns, where the output is not a terminal


class LiveTable:
    """Shows how far the trials of a directory are. A context manager.

    On a terminal it is a table of the best trials in training; where the output is not a terminal,
    a line for each trial that ends.
    """

    def __init__(self, find_trials: Callable[[], Sequence[Trial]], groups: Path):
        self._find_trials, self._groups = find_trials, groups
        self._ended: dict[str, str] = {}  # the status of each trial that has ended
        self._console, self._look_at = _console(), -math.inf
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._take_ended(tell=False)
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._take_ended()
        finally:
            self._live.stop()

    def look(self, *_: Any) -> None:
        """Reads the directory and shows the trials, unless it was read just now."""
        started = time.monotonic()
        if started >= self._look_at:
            self._take_ended()
            if self._live.is_started:
                self._live.update(self._render(), refresh=True)
            took = time.monotonic() - started
            self._look_at = started + max(LOOK_SECONDS, took / LOOK_SHARE)

    def _take_ended(self, tell: bool = True) -> None:
        trials = self._find_trials()
        for trial in trials:
            if trial.directory.name in self._ended or not trial.has_ended:
                continue
            one, by = read_outcome(trial), shared_objective([trial.config])
            self._ended[one.name] = one.status
            if tell and not self._console.is_interactive:
                value = _shown(one.value) or "not finite"
                result = one.reason or f"{by.name} {value} at epoch {one.result['best_epoch']}"
                line = f"trial {one.name} {one.status}: {brief(result, MAX_REASON)}"
                _print(self._console, f"{line} ({len(self._ended)} of {len(trials)})")

    def _render(self) -> Group:
        progress: dict[str, Any] = {}
        for path in self._groups.rglob(PROGRESS):
            with suppress(UserError):  # the group has ended meanwhile
                progress |= read_json(path)
        trials = {trial.directory.name: trial for trial in self._find_trials()}
        by = shared_objective(trial.config for trial in trials.values())
        names = sorted(trials.keys() & progress.keys() - self._ended)
        names.sort(key=lambda name: by.rank(progress[name][-1]))
        rows = []
        for name in names[:MAX_LIVE_ROWS]:
            epoch, *values = progress[name]
            rows.append([name, f"{epoch}/{trials[name].config.train.num_epochs}", *values])
        waiting = len(trials) - len(self._ended) - len(names)
        counts = {"training": len(names), "waiting": waiting, **Counter(self._ended.values())}
        header = ["trial", "epoch", "train loss", "valid loss", f"best {by}"]
        return Group(_table(header, rows), Text(_counted(counts)))


def report(trials: Sequence[Trial], directory: Path) -> None:
    """Writes the results of the sweep to files and prints them as one table.

    Raises UserError for a damaged trial, and for trials that cannot be compared.
    """
    by, outcomes = shared_objective(t.config for t in trials), [read_outcome(t) for t in trials]
    settings = by_setting(outcomes, by)
    rows, best = summarize_settings(settings), settings[0][0]
    write_text(directory / TRIALS_FILE, trials_jsonl(outcomes, by))
    write_text(directory / SUMMARY_FILE, summary_csv(rows))
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
        columns = {name: [value_in(one.trial, name) for one in drawn] for name in fields}
        values = [one.value or 0.0 for one in drawn]
        with whole_file(directory / PICTURE) as path:
            draw_against(columns, values, str(by), drawn.index(best), counts, path)
        files.append(PICTURE)
        config = shlex.quote(str(best.trial.directory))
        lines.append(f"the best is trial {best.name}; to train its config again:")
        lines.append(f"  python -m experiments.train --config={config} --workdir=NEW_DIRECTORY")
    console = _console()
    console.print(_summary_table(rows, len(trials) > len(rows), by))
    for line in [*lines, f"written to {directory}: {', '.join(files)}"]:
        _print(console, line)


def _summary_table(rows: Sequence[Mapping[str, Any]], has_seeds: bool, by: Objective) -> Table:
    """Returns the table of the first rows of the summary, without most of its columns."""
    names = list(rows[0])
    columns = {name: name for name in names[: names.index("finished")]}  # best trial and fields
    if has_seeds:
        columns |= {"objective.median": f"median {by}", "objective.min": "min"}
        columns |= {"objective.max": "max", "finished": "seeds"}
    else:
        columns["objective.median"] = str(by)
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


def _print(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def _console() -> Console:
    """Returns the terminal, or where there is none a console for lines of any length."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_NO_TERMINAL)
