"""What came of a sweep's trials, and which of them is the best. Imports: trial, report.

Trials are compared by what their config monitors, at their best epoch; never by a test split.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.files import read_json
from seqjax.report import read_records
from seqjax.run_directory import RESULT
from seqjax.trial import RECORDS, Trial

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
    value: float | None = None  # of the objective
    result: Mapping[str, Any] = MappingProxyType({})  # result.json

    @property
    def metrics(self) -> dict[str, float]:
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
        result = read_json(trial.directory / RESULT)
        return Outcome(entry, "finished", "", _read_value(trial, result), result)
    return Outcome(entry, "failed" if trial.has_ended else "unfinished", trial.failure())


def best_of(outcomes: Iterable[Outcome], by: Objective) -> Outcome | None:
    """The best trial of the seeds with the best median; None if no value is a finite number."""
    for combination in combine(outcomes, by):
        first = combination[0]
        if first.value is not None and math.isfinite(first.value):
            return first
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
    """The objective of those that finished."""
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def statistics(values: Sequence[float]) -> dict[str, float | None]:
    """STATISTICS of values: 5 and 95 % percentiles, the sample's standard deviation, None where
    there are too few; NaN of a NaN, and between a number and an infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = {name: of(values) if len(values) else None for name, of in STATISTICS.items()}
    return {name: None if x is None else float(x) for name, x in found.items()}


def count(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many there are of each status."""
    found = [outcome.status for outcome in outcomes]
    return {status: found.count(status) for status in STATUSES}


def told_counts(outcomes: Iterable[Outcome]) -> str:
    """The counts that are not 0, in words."""
    return ", ".join(f"{number} {status}" for status, number in count(outcomes).items() if number)


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


def _read_value(trial: Trial, result: Mapping[str, Any]) -> float:
    by, path = objective(trial.config), trial.directory / RECORDS
    try:
        records = read_records(path)
        if trial.config.train.monitor != "epoch":
            records = [record for record in records if record["epoch"] == result["best_epoch"]]
        return float(records[-1][by.split][by.metric])
    except (OSError, ValueError, TypeError, LookupError):
        raise UserError(
            f"{path} does not say what {by.name} was at the best epoch: restore it from a copy"
        ) from None
