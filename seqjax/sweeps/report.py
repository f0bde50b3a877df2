"""The tables of a sweep on the terminal, and the files that it leaves behind at its end."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from seqjax.errors import brief
from seqjax.files import whole_file, write_text
from seqjax.sweeps.plots import draw_sweep
from seqjax.sweeps.results import (
    STATUSES,
    Entry,
    Objective,
    Outcome,
    best_config,
    best_of,
    combine,
    count_statuses,
    objective,
    read_outcome,
    shared_objective,
    statistics,
    summary_csv,
    told_counts,
    trials_csv,
    trials_jsonl,
    value_in,
    values_of,
    varied,
)
from seqjax.sweeps.trial import Trial
from seqjax.training.early_stopping import Progress, advance
from seqjax.training.logger import Record

MOST_ROWS, MOST_LIVE_ROWS, MOST_REASONS = 20, 15, 10
LONGEST_CELL, LONGEST_REASON = 40, 300  # characters
_WIDE = 1000  # columns, where the output is no terminal
NONE_FINISHED = "no trial has finished with a number: there is no best.py and no sweep.png"
HEADLINE = "test.accuracy"  # of every task
SEED_COLUMNS = (*STATUSES, "median", "5 to 95 %", "mean ± std")
LOOK_SECONDS, LOOK_SHARE = 0.25, 0.05  # between two looks at trials; of all time


def show_table(entries: Sequence[Entry]) -> None:
    """Prints the best trials, how the others ended, and what seeds make of the same settings.

    Raises UserError as `save_report` does.
    """
    by = shared_objective(entry.trial.config for entry in entries)
    outcomes = [read_outcome(entry) for entry in entries]
    console, fields = _console(), varied(entries)
    finished = [one for one in outcomes if one.status == "finished"]
    tested = [HEADLINE] if any(HEADLINE in one.metrics for one in finished) else []
    rows = [
        [
            one.entry.name,
            *(value_in(one.entry, name) for name in fields),
            one.value,
            one.result["best_epoch"],
            *(one.metrics.get(name) for name in tested),
        ]
        for one in sorted(finished, key=lambda one: by.rank(one.value))
    ]
    header = ["trial", *fields, f"{by.name} ({by.mode})", "best epoch", *tested]
    _show_ranked(console, header, rows, "trials.csv")
    combinations = combine(outcomes, by)
    if len(combinations) < len(outcomes):  # seeds were swept
        fields = [name for name in fields if name != "seed"]
        rows = [_seeds_row(members, fields) for members in combinations]
        _show_ranked(console, [*fields, *SEED_COLUMNS], rows, "summary.csv")
    lines = [f"{len(entries)} trials: {told_counts(outcomes)}"]
    best = best_of(outcomes, by)
    lines.append(f"the best: trial {best.entry.name}" if best else NONE_FINISHED)
    reasons = Counter(brief(one.reason, LONGEST_REASON) for one in outcomes if one.reason)
    lines += [f"failed {n} x: {reason}" for reason, n in reasons.most_common(MOST_REASONS)]
    if (more := len(reasons) - MOST_REASONS) > 0:
        lines.append(f"and for {more} more reasons: trials.csv has them all")
    for line in lines:
        _say(console, line)


class LiveTable:
    """Shows how far trials are. A context manager.

    On a terminal a table of the best that are being trained, redrawn a few times a second at most;
    where the output is no terminal, a line for each trial that ends. Raises UserError for trials
    that cannot be compared.
    """

    def __init__(self, trials: Sequence[Trial]):
        if trials:
            shared_objective(trial.config for trial in trials)
        self._open = {trial.directory: trial for trial in trials}  # those that have not ended
        self._running: dict[Path, tuple[Trial, Progress, Record]] = {}
        self._ended = dict.fromkeys(("finished", "failed"), 0)
        self._console, self._look_at = _console(), -math.inf
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._look(tell=False)  # of what ended before
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._look()
        finally:
            self._live.stop()

    def watch(self, trial: Trial, records: Sequence[Record]) -> None:
        """Takes the records of a trial up to an evaluation, also of one that was not announced;
        without records only looks which trials have ended."""
        if records:
            self._open.setdefault(trial.directory, trial)
            _, progress, _ = self._running.get(trial.directory, (trial, Progress(), {}))
            progress = advance(progress, records[-1], trial.config.train)
            self._running[trial.directory] = trial, progress, records[-1]
        started = time.monotonic()
        if started >= self._look_at:
            self._look()
            took = time.monotonic() - started
            self._look_at = started + max(LOOK_SECONDS, took / LOOK_SHARE)

    def _look(self, tell: bool = True) -> None:
        """Finds the trials that have ended, and shows what is to be shown."""
        for directory, trial in list(self._open.items()):
            if trial.has_ended:
                del self._open[directory]
                self._running.pop(directory, None)
                outcome = read_outcome(Entry(directory.name, {}, trial))
                self._ended[outcome.status] += 1
                if tell and not self._console.is_interactive:
                    _say(self._console, self._line(outcome))
        if self._live.is_started:
            self._live.update(self._drawn(), refresh=True)

    def _line(self, outcome: Outcome) -> str:
        """What is told of a trial that has ended."""
        told, ended = outcome.reason, sum(self._ended.values())
        if outcome.status == "finished":
            name, epoch = objective(outcome.entry.trial.config).name, outcome.result["best_epoch"]
            told = f"{name} {_shown(outcome.value) or 'not a number'} at epoch {epoch}"
        line = f"trial {outcome.entry.name} {outcome.status}: {brief(told, LONGEST_REASON)}"
        return f"{line} ({ended} of {ended + len(self._open)})"

    def _drawn(self) -> Group:
        rows, by = [], None
        for trial, progress, record in self._running.values():
            by = objective(trial.config)
            last = {split: record.get(split, {}).get("loss") for split in ("train", "valid")}
            value = last["train"] if trial.config.train.monitor == "epoch" else progress.best_value
            epochs = f"{progress.epoch}/{trial.config.train.num_epochs}"
            rows.append((by.rank(value), [trial.directory.name, epochs, *last.values(), value]))
        rows = [row for _, row in sorted(rows, key=lambda ranked: ranked[0])]
        waiting = len(self._open) - len(rows)
        counts = {"training": len(rows), **self._ended, "waiting": waiting}
        line = Text(", ".join(f"{number} {what}" for what, number in counts.items()))
        if by is None:
            return Group(line)
        header = ["trial", "epoch", "train loss", "valid loss", f"best {by.name} ({by.mode})"]
        return Group(_table(header, rows[:MOST_LIVE_ROWS]), line)


def _seeds_row(members: Sequence[Outcome], fields: Sequence[str]) -> list[Any]:
    """The cells of trials that differ in nothing but the seed, as SEED_COLUMNS names them."""
    found = statistics(values_of(members))
    shown = {name: _shown(value) for name, value in found.items()}
    between = " to ".join(filter(None, (shown["p5"], shown["p95"])))
    spread = " ± ".join(filter(None, (shown["mean"], shown["std"])))  # of one seed there is none
    shared = [value_in(members[0].entry, name) for name in fields]
    return [*shared, *count_statuses(members).values(), found["median"], between, spread]


def _show_ranked(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[Any]], file: str
) -> None:
    """Prints rows, the best first, with their ranks."""
    shown = [[rank, *row] for rank, row in enumerate(rows[:MOST_ROWS], 1)]
    if shown:
        console.print(_table(["rank", *header], shown))
    if (more := len(rows) - MOST_ROWS) > 0:
        _say(console, f"and {more} more: {file} has them all")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    # As Text: in a plain string rich would read [bold] and :smile:.
    columns = [Column(Text(brief(name, LONGEST_CELL)), overflow="fold") for name in header]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    for column, value in zip(table.columns, rows[0] if rows else (), strict=False):
        column.justify = "right" if isinstance(value, int | float) else "left"
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else brief(str(value), LONGEST_CELL)


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def _console() -> Console:
    """The terminal, or where there is none lines of any length."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def save_report(entries: Sequence[Entry], directory: Path) -> list[Path]:
    """Writes `trials.jsonl`, `trials.csv`, `summary.csv` and, of trials that finished, `best.py`
    and `sweep.png`; where to. Raises UserError for a damaged trial, and for trials that cannot be
    compared."""
    by = shared_objective(entry.trial.config for entry in entries)
    outcomes = [read_outcome(entry) for entry in entries]
    texts = {
        "trials.jsonl": trials_jsonl(outcomes, by),
        "trials.csv": trials_csv(outcomes),
        "summary.csv": summary_csv(outcomes, by),
    }
    best = best_of(outcomes, by)
    if best is not None:
        texts["best.py"] = best_config(best, outcomes, by, directory / "best.py")
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    if best is not None:
        paths.append(directory / "sweep.png")
        with whole_file(paths[-1]) as beside:
            _draw(outcomes, best, by, beside)
    return paths


def _draw(outcomes: Sequence[Outcome], best: Outcome, by: Objective, path: Path) -> None:
    """Draws the trials whose objective is a number."""
    drawn = [one for one in outcomes if one.value is not None]
    fields = [name for name in varied([one.entry for one in outcomes]) if name != "seed"]
    draw_sweep(
        {name: [value_in(one.entry, name) for one in drawn] for name in fields},
        by.name,
        [one.value for one in drawn if one.value is not None],
        by.sign,
        next(i for i, one in enumerate(drawn) if one is best),
        told_counts(outcomes),
        path,
    )
