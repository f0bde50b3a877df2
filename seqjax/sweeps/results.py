"""Results of a sweep's trials: by trial for `trials.jsonl`, and by setting for `summary.csv`.

Trials are compared by what their config monitors, as result.json has it of the weights that are
kept; never by a test split.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from statistics import median
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.files import json_text, read_json
from seqjax.runs.workdir import RESULT
from seqjax.training.trials import Trial

STATUSES = ("finished", "failed", "unfinished")
STATISTICS = {"median": median, "min": min, "max": max}  # over seeds
COUNTS = ("best_epoch", "num_epochs", "num_parameters")  # of a result


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

    Raises UserError for a test split, and for configs with several objectives.
    """
    found = []
    for train in (config.train for config in configs):
        is_loss = train.monitor == "epoch"
        if not is_loss and not train.monitor.startswith(("train.", "valid.")):
            raise UserError(
                f"train.monitor={train.monitor!r}: trials are compared by train or valid"
            )
        sign = 1 if train.monitor_mode == "max" and not is_loss else -1
        found.append(Objective("train.loss" if is_loss else train.monitor, sign))
    if len(names := dict.fromkeys(map(str, found))) > 1:
        raise UserError(
            f"trials cannot be compared by {' and '.join(names)}: give all the same "
            "train.monitor and mode"
        )
    return found[0]


class Outcome(NamedTuple):
    """The state of a trial; one that has not finished has neither a value nor metrics."""

    trial: Trial
    status: str  # one of STATUSES
    reason: str  # of a failure, otherwise ""
    value: float | None  # of the objective; None if it is NaN or infinite
    result: Mapping[str, Any]  # result.json
    metrics: Mapping[str, float | None]  # of the result, as SPLIT.METRIC

    @property
    def name(self) -> str:
        return self.trial.directory.name


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
    ranks = [by.rank(compute(median, [one.value for one in members])) for members in ranked]
    return [ranked[i] for i in sorted(range(len(ranked)), key=ranks.__getitem__)]


def compute(statistic: Any, values: Iterable[float | None]) -> float | None:
    """Returns a statistic of those values that are finite, None if there are none."""
    finite = [value for value in values if value is not None]
    return statistic(finite) if finite else None


def varied(trials: Sequence[Trial]) -> list[str]:
    """Returns the fields, without the seed, that do not have the same value in all trials."""
    names = dict.fromkeys(name for trial in trials for name in trial.changes if name != "seed")
    return [name for name in names if len({repr(value_in(trial, name)) for trial in trials}) > 1]


def value_in(trial: Trial, name: str) -> Any:
    """Returns the value of a field in a trial's config, None if it has no such field."""
    try:
        return reduce(getitem, name.split("."), trial.config)
    except (KeyError, TypeError):
        return None


def summarize_settings(settings: Sequence[Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Returns a row for each setting: its best trial, its fields, how many trials have which
    status, and STATISTICS over the seeds of the objective and of every metric."""
    outcomes = [one for members in settings for one in members]
    metrics, rows = sorted({name for one in outcomes for name in one.metrics}), []
    fields = varied([one.trial for one in outcomes])
    for members in settings:
        row: dict[str, Any] = {"best_trial": members[0].name}
        row |= {name: value_in(members[0].trial, name) for name in fields}
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
        line: dict[str, Any] = {
            "name": one.name,
            "overrides": one.trial.changes,
            "status": one.status,
        }
        line |= {"reason": one.reason, "objective": one.value, "objective_name": by.name}
        line |= {name: one.result.get(name) for name in COUNTS}
        metrics = {split: x for split, x in one.result.items() if isinstance(x, Mapping)}
        lines.append(json_text(line | {"metrics": metrics}) + "\n")
    return "".join(lines)


def summary_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of `summary.csv`, of the rows of `summarize_settings`."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
