"""Results of a sweep's trials, which of them is the best, and the files that hold them.

Trials are compared by what their config monitors, as result.json has it of the weights that are
kept; never by a test split. A figure that is no finite number is None.
"""

import csv
import io
import json
import math
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError, one_line
from seqjax.files import json_text, read_json
from seqjax.runs.workdir import RESULT
from seqjax.sweeps.trial import Trial

STATUSES = ("finished", "failed", "unfinished")
STATISTICS: Mapping[str, Callable[[Any], Any]] = {
    "median": np.median,
    "p5": lambda values: np.percentile(values, 5),
    "p95": lambda values: np.percentile(values, 95),
    "mean": np.mean,
    "std": lambda values: np.std(values, ddof=1) if len(values) > 1 else None,
}


class Entry(NamedTuple):
    """A trial of a sweep: its name, and what it changes in the sweep's config, by full name."""

    name: str
    overrides: dict[str, Any]
    trial: Trial


class Objective(NamedTuple):
    """What trials are compared by. The sign is 1 where more is better, and -1 where less is."""

    split: str
    metric: str
    sign: int

    @property
    def name(self) -> str:
        return f"{self.split}.{self.metric}"

    @property
    def mode(self) -> str:
        return "max" if self.sign > 0 else "min"

    def rank(self, value: float | None) -> tuple[bool, float]:
        """A key that sorts the best value first, and what is no finite number last."""
        if value is None or not math.isfinite(value):
            return True, 0.0
        return False, -self.sign * value


class Outcome(NamedTuple):
    """What came of a trial. Without a result all that is known of it is why."""

    entry: Entry
    status: str  # one of STATUSES
    reason: str = ""  # of a failure
    value: float | None = None  # of the objective; None if it is NaN or infinite
    result: Mapping[str, Any] = MappingProxyType({})  # result.json

    @property
    def metrics(self) -> dict[str, float | None]:
        """The result's figures as SPLIT.METRIC."""
        splits = {split: part for split, part in self.result.items() if isinstance(part, Mapping)}
        return {f"{s}.{metric}": x for s, part in splits.items() for metric, x in part.items()}


def objective(config: ConfigDict) -> Objective:
    """What trials of the config are compared by: `train.monitor`, or the last training loss where
    that is "epoch". Raises UserError where it would be a test split."""
    if config.train.monitor == "epoch":
        return Objective("train", "loss", -1)
    split, _, metric = config.train.monitor.partition(".")
    if split not in ("train", "valid"):
        raise UserError(
            f"train.monitor={config.train.monitor!r}: trials are compared by train or valid"
        )
    return Objective(split, metric, 1 if config.train.monitor_mode == "max" else -1)


def shared_objective(configs: Iterable[ConfigDict]) -> Objective:
    """What all trials are compared by; raises UserError unless it is one thing."""
    found = list(dict.fromkeys(objective(config) for config in configs))
    if len(found) != 1:
        names = " and ".join(f"{one.name} ({one.mode})" for one in found) or "nothing"
        raise UserError(
            f"trials cannot be compared by {names}: give all the same train.monitor and mode"
        )
    return found[0]


def read_outcome(entry: Entry) -> Outcome:
    """What came of a trial so far; raises UserError for a damaged file."""
    trial = entry.trial
    if (trial.directory / RESULT).exists():
        result = json.loads(json_text(read_json(trial.directory / RESULT)))  # NaN of old versions
        return Outcome(entry, "finished", "", _read_value(trial, result), result)
    return Outcome(entry, "failed" if trial.has_ended else "unfinished", trial.failure())


def best_of(outcomes: Iterable[Outcome], by: Objective) -> Outcome | None:
    """The best trial of the seeds with the best median; None if no value is a finite number."""
    for combination in combine(outcomes, by):
        if combination[0].value is not None:
            return combination[0]
    return None


def combine(outcomes: Iterable[Outcome], by: Objective) -> list[list[Outcome]]:
    """Trials that differ in nothing but the seed together, the best median and member first."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        kind = json.dumps(as_json(outcome.entry.trial.config) | {"seed": 0})
        found.setdefault(kind, []).append(outcome)
    ranked = [sorted(members, key=lambda one: by.rank(one.value)) for members in found.values()]
    return sorted(ranked, key=lambda members: by.rank(statistics(values_of(members))["median"]))


def values_of(outcomes: Iterable[Outcome]) -> list[float]:
    """The objective of those that finished with a number."""
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def statistics(values: Sequence[float]) -> dict[str, float | None]:
    """STATISTICS of finite values: 5 and 95 % percentiles, the sample's standard deviation, None
    where there are too few."""
    with np.errstate(invalid="ignore", over="ignore"):  # of values such as 1e308
        found = {name: of(values) if len(values) else None for name, of in STATISTICS.items()}
    return {name: None if x is None else float(x) for name, x in found.items()}


def count_statuses(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many there are of each status."""
    found = [outcome.status for outcome in outcomes]
    return {status: found.count(status) for status in STATUSES}


def told_counts(outcomes: Iterable[Outcome]) -> str:
    """The counts that are not 0, in words."""
    return ", ".join(
        f"{number} {status}" for status, number in count_statuses(outcomes).items() if number
    )


def overridden(entries: Iterable[Entry]) -> list[str]:
    """The fields that any trial overrides."""
    return list(dict.fromkeys(name for entry in entries for name in entry.overrides))


def varied(entries: Sequence[Entry]) -> list[str]:
    """The fields that are not the same in all trials."""
    return [
        name
        for name in overridden(entries)
        if len({repr(value_in(entry, name)) for entry in entries}) > 1
    ]


def value_in(entry: Entry, name: str) -> Any:
    """What a field is in a trial, whether it overrides it or not; None if it has no such field."""
    if name in entry.overrides:
        return entry.overrides[name]
    try:
        return reduce(getitem, name.split("."), entry.trial.config)
    except (KeyError, TypeError):
        return None


def _read_value(trial: Trial, result: Any) -> float | None:
    by = objective(trial.config)
    try:
        value = result[by.split][by.metric]
        return None if value is None else float(value)
    except (ValueError, TypeError, LookupError):
        raise UserError(
            f"{trial.directory / RESULT} does not say what {by.name} is: restore it from a copy"
        ) from None


COUNTS = ("best_epoch", "num_epochs", "num_parameters")  # of a result
_BEST_CONFIG = '''"""{doc}
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {{
{fields}
        }}
    )
'''


def trials_jsonl(outcomes: Iterable[Outcome], by: Objective) -> str:
    """A JSON object a trial, on a line of its own."""
    lines = [
        {
            "name": outcome.entry.name,
            "overrides": outcome.entry.overrides,
            "status": outcome.status,
            "reason": outcome.reason,
            "objective": outcome.value,
            "objective_name": by.name,
            **{name: outcome.result.get(name) for name in COUNTS},
            "metrics": {k: v for k, v in outcome.result.items() if isinstance(v, Mapping)},
        }
        for outcome in outcomes
    ]
    return "".join(json_text(line) + "\n" for line in lines)


def trials_csv(outcomes: Sequence[Outcome]) -> str:
    """A row a trial: its fields, what came of it, and a column SPLIT.METRIC for each figure."""
    fields, metrics = overridden(o.entry for o in outcomes), _metrics(outcomes)
    rows = [
        [
            outcome.entry.name,
            *(value_in(outcome.entry, name) for name in fields),
            outcome.status,
            outcome.reason,
            outcome.value,
            *(outcome.result.get(name) for name in COUNTS),
            *(outcome.metrics.get(name) for name in metrics),
        ]
        for outcome in outcomes
    ]
    return _csv(["name", *fields, "status", "reason", "objective", *COUNTS, *metrics], rows)


def summary_csv(outcomes: Sequence[Outcome], by: Objective) -> str:
    """A row for each set of trials that differ in nothing but the seed, the best median first: how
    many finished or did not, and statistics over the finished ones of every figure."""
    fields = [name for name in overridden(o.entry for o in outcomes) if name != "seed"]
    metrics, rows = _metrics(outcomes), []
    for members in combine(outcomes, by):
        columns = [values_of(members)]
        for name in metrics:
            columns.append([x for one in members if (x := one.metrics.get(name)) is not None])
        shared = [value_in(members[0].entry, name) for name in fields]
        figures = [x for values in columns for x in statistics(values).values()]
        rows.append([*shared, len(members), *count_statuses(members).values(), *figures])
    figures = [f"{name}.{kind}" for name in ("objective", *metrics) for kind in STATISTICS]
    return _csv([*fields, "seeds", *STATUSES, *figures], rows)


def best_config(best: Outcome, outcomes: Sequence[Outcome], by: Objective, path: Path) -> str:
    """The best trial's config as a config file that lies at the path, with every field."""
    entry, epoch = best.entry, best.result["best_epoch"]
    claim = f"Trial {entry.name}: {by.name} {best.value:.6g} ({by.mode}) at epoch {epoch}"
    combinations = combine(outcomes, by)
    [members] = [found for found in combinations if any(one is best for one in found)]
    if len(combinations) < len(outcomes):
        median = statistics(values_of(members))["median"]
        why = f"The best seed of those with the best median, {median:.6g} ({told_counts(members)})."
    else:
        why = f"The best of {len(outcomes)} trials."
    changes = ", ".join(f"{name}={value!r}" for name, value in entry.overrides.items())
    command = f"    python -m experiments.train --config={shlex.quote(str(path))}"
    doc = (f"{claim}.", "", why, f"Overrides: {changes or 'none'}.", "", command)
    return _BEST_CONFIG.format(
        doc="\n".join(map(_in_docstring, doc)),
        fields="\n".join(_code(entry.trial.config.to_dict(), " " * 12)),
    )


def _code(fields: Mapping[str, Any], indent: str) -> list[str]:
    """Lines of a dict, numbers and names before sections."""
    lines = []
    for name, value in sorted(fields.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name!r}: {{", *_code(value, f"{indent}    "), f"{indent}}},"]
        else:
            lines.append(f"{indent}{name!r}: {value!r},")
    return lines


def _in_docstring(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _metrics(outcomes: Iterable[Outcome]) -> list[str]:
    """All figures, sorted, so that columns do not depend on which trial has finished first."""
    return sorted({name for outcome in outcomes for name in outcome.metrics})


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Text that pandas and spreadsheets read; these need a mark at the start to know UTF-8."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(
        [[_cell(x) for x in row] for row in (header, *rows)]
    )
    text = file.getvalue()
    return text if text.isascii() else f"\ufeff{text}"


def _cell(value: Any) -> Any:
    """A number as it is; a text on one line, behind a ' where a spreadsheet would run it."""
    if value is None or isinstance(value, int | float):
        return value
    text = one_line(str(value))
    runs = unicodedata.normalize("NFKC", text).lstrip().startswith(("=", "+", "-", "@"))
    return f"'{text}" if runs else text
