"""What a benchmark found, as tables, files and a picture."""

import datetime
import io
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmark.conditions import CONDITIONS
from experiments.benchmark.peers import OURS
from experiments.benchmark.run import BenchmarkRow, Report
from seqjax.files import write_json, write_text
from seqjax.plots import draw_bars

_COLUMNS = (
    "workload",
    "peer",
    "ms a step",
    "min to max",
    "a second",
    "x ours",
    "floor",
    "x floor",
    "MiB",
    "added",
    "XLA's",
    "first step",
)


def show(table: Table) -> None:
    """Prints a table, wide enough where the output is a file."""
    console = Console() if sys.stdout.isatty() else Console(width=180)
    console.print(table)


def make_table(report: Report) -> Table:
    """Returns a line a row, the fastest first of each workload under each condition."""
    caption = "\n".join(
        f"{workload}, {condition}: matrix products {rates['matmul'] / 1e9:,.0f} GFLOP/s, "
        f"memory {rates['memory'] / 1e9:,.0f} GB/s"
        for condition, by_workload in report.rates.items()
        for workload, rates in by_workload.items()
        if len(rates) == 2
    )
    table = Table(*_COLUMNS, caption=caption)
    for column in table.columns[2:]:
        column.justify = "right"
    last = ("", "")
    for row in sort_rows(report.rows):
        now = (row.workload, row.condition)
        if last[0] and now != last:
            table.add_section()
        table.add_row("" if now == last else ", ".join(now), *_cells(row))
        last = now
    return table


def shares_table(report: Report) -> str:
    """Returns our share of the best peer's time, as Markdown, with a column a condition."""
    conditions = [name for name in CONDITIONS if name in report.best]
    workloads = dict.fromkeys(row.workload for row in report.rows)
    lines = [("workload", *conditions), ("---",) * (1 + len(conditions))]
    for workload in workloads:
        found = [report.best[condition].get(workload) for condition in conditions]
        lines.append((workload, *(f"{best.share:.2f}" if best else "" for best in found)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sort_rows(rows: list[BenchmarkRow]) -> list[BenchmarkRow]:
    """Returns the rows by workload and condition as they were measured, then by time."""
    found: dict[tuple[str, str], list[BenchmarkRow]] = {}
    for row in rows:
        found.setdefault((row.workload, row.condition), []).append(row)
    by_time = [sorted(x, key=lambda row: row.median_ms or float("inf")) for x in found.values()]
    return [row for group in by_time for row in group]


def save_benchmark(report: Report, machine: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes `benchmark.json`, `benchmark.md` and `benchmark.png`; returns where to."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"benchmark.{ending}" for ending in ("json", "md", "png")]
    write_json(paths[0], _as_json(report, machine))
    text = io.StringIO()
    Console(file=text, width=180).print(make_table(report))
    write_text(paths[1], f"{shares_table(report)}\n\n```\n{text.getvalue()}```\n")
    groups: dict[str, dict[str, float]] = {}
    for row in sort_rows(report.rows):
        if row.median_ms is not None:
            best = report.best.get(row.condition, {}).get(row.workload)
            share = f": {best.share:.2f} of the best peer's time" if best else ""
            title = f"{row.workload}, {row.condition}{share}"
            groups.setdefault(title, {})[row.peer] = row.median_ms
    if groups:
        draw_bars(groups, "ms a step", OURS, paths[2])
    return paths if groups else paths[:2]


def _as_json(report: Report, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report with what one must know to make it again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "rates": report.rates,
        "share_of_best_peer": {
            condition: {workload: best._asdict() for workload, best in found.items()}
            for condition, found in report.best.items()
        },
        "rows": [row._asdict() for row in report.rows],
    }


def _cells(row: BenchmarkRow) -> list[str]:
    name = ": ".join(filter(None, [row.peer, row.note, row.remark]))
    if row.median_ms is None:
        return [name]
    floor = row.floor_ms
    return [
        name,
        f"{row.median_ms:,.4g}",
        f"{row.min_ms:,.4g} to {row.max_ms:,.4g}",
        f"{row.per_second:,.0f} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if floor is None else f"{floor:,.3g} {row.floor_of}",
        "" if floor is None else f"{row.median_ms / floor:,.1f}",
        f"{row.peak_memory_mib:,.0f}",
        f"{row.added_memory_mib:,.0f}",
        "" if row.reserved_mib is None else f"{row.reserved_mib:,.1f}",
        f"{row.first_step_seconds:.1f} s",
    ]
