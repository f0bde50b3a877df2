"""The texts that a sweep leaves behind: all trials, what seeds have in common, the best config.

Imports: outcomes, plain_text.
"""

import csv
import io
import json
import math
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqjax.outcomes import (
    STATISTICS,
    STATUSES,
    Objective,
    Outcome,
    combine,
    count,
    overridden,
    statistics,
    told_counts,
    value_in,
    values_of,
)
from seqjax.plain_text import one_line

COUNTS = ("best_epoch", "num_epochs", "num_parameters")  # of a result
BEST = '''"""{doc}
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
    """A JSON object a trial, on a line of its own. A number that JSON has not is a string: "NaN",
    "Infinity", "-Infinity", which `float` reads."""
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
    return "".join(json.dumps(_strict(line)) + "\n" for line in lines)


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
            columns.append([one.metrics[name] for one in members if name in one.metrics])
        shared = [value_in(members[0].entry, name) for name in fields]
        figures = [x for values in columns for x in statistics(values).values()]
        rows.append([*shared, len(members), *count(members).values(), *figures])
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
    return BEST.format(
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


def _strict(value: Any) -> Any:
    """The value with strings for numbers that are none in JSON."""
    if isinstance(value, Mapping):
        return {name: _strict(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


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
