"""The speed history of the user's machines: one JSON object a line, in the user's cache folder."""

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmark.run import Best, Report
from seqjax.files import json_text

_READ = ("date", "condition", "processor", "cores")  # beside the shares
LARGEST_RISE = 1.10  # of our share of the best peer's time, before a row is named


def make_records(report: Report, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a record for each condition."""
    return [
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "condition": condition,
            **{name: machine[name] for name in ("processor", "cores", "versions")},
            "best": found,
        }
        for condition, found in report.best.items()
    ]


def append_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Adds the records to the file; a last line that was cut off stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if old and not old.endswith(b"\n") else "")
        for record in records:
            best = {workload: best._asdict() for workload, best in record["best"].items()}
            file.write(f"{json_text(record | {'best': best})}\n")


def read_records(path: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the records of the file, the oldest first; says which lines it cannot read."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            best = {name: Best(float(x["share"]), x["peer"]) for name, x in record["best"].items()}
            records.append({name: record[name] for name in _READ} | {"best": best})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            say(f"{path}, line {number}: damaged, skipped")
    return records


def compare(records: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each row whose share rose by more than 10 %, and one if none did.

    Each row is compared with the last record of the same machine and condition that has it.
    """
    lines, num_compared = [], 0
    for record in new:
        known = {
            workload: (old["date"], best)
            for old in records
            if all(old[name] == record[name] for name in ("processor", "cores", "condition"))
            for workload, best in old["best"].items()
        }
        for workload in filter(known.get, record["best"]):
            num_compared += 1
            best, (date, old) = record["best"][workload], known[workload]
            if best.share > LARGEST_RISE * old.share:
                lines.append(
                    f"{workload}, {record['condition']}: slower: ours takes {best.share:.2f} of "
                    f"the time of {best.peer}; it took {old.share:.2f} of that of {old.peer} "
                    f"at {date}"
                )
    if not num_compared:
        return ["nothing to compare with: there is no record of this machine (--record)"]
    return lines or [f"none of {num_compared} rows is more than 10 % slower than recorded"]
