"""What a benchmark found, as a table, a file and a picture."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.benchmark.run import OURS, BenchmarkRow, Report
from seqjax.files import write_json
from seqjax.plots import draw_bars

_COLUMNS = (
    "workload",
    "peer",
    "ms a step",
    "min to max",
    "a second",
    "x ours",
    "of matmul",
    "MiB",
    "first step",
)


def show_report(report: Report) -> None:
    """Prints the table, and a line for each workload's ratio."""
    show(make_table(report))
    for workload, ratio in report.ratios.items():
        print(f"{workload}: ours takes {1 / ratio:.2f} of the best peer's time")


def show(table: Table) -> None:
    """Prints a table, wide enough where the output is a file."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


def make_table(report: Report) -> Table:
    """A line a row, the fastest of each workload first, and what was not measured last."""
    title = f"matrix products (float32): {report.matmul_gflops:.0f} GFLOP/s"
    table = Table(*_COLUMNS, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    last = ""
    for row in sort_rows(report.rows):
        if last and row.workload != last:
            table.add_section()
        table.add_row("" if row.workload == last else row.workload, *_cells(row))
        last = row.workload
    return table


def sort_rows(rows: list[BenchmarkRow]) -> list[BenchmarkRow]:
    """By workload as they were measured, then by time."""
    order = list(dict.fromkeys(row.workload for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.workload), row.median_ms or float("inf")))


def save_benchmark(report: Report, directory: Path) -> list[Path]:
    """Writes `benchmark.json` and `benchmark.png`; where to."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "benchmark.json", directory / "benchmark.png"]
    write_json(paths[0], _as_json(report))
    groups: dict[str, dict[str, float]] = {}
    for row in sort_rows(report.rows):
        if row.median_ms is not None:
            groups.setdefault(row.workload, {})[row.peer] = row.median_ms
    if groups:
        draw_bars(groups, "ms a step", OURS, paths[1])
    return paths if groups else paths[:1]


def _as_json(report: Report) -> dict[str, Any]:
    """The report with what one must know to make it again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "matmul_gflops": report.matmul_gflops,
        "best_peer_over_ours": report.ratios,
        "rows": [row._asdict() for row in report.rows],
    }


def _cells(row: BenchmarkRow) -> list[str]:
    if row.median_ms is None:
        return [f"{row.peer}: {row.note}"]
    name = row.peer if not row.note else f"{row.peer}: {row.note}"
    return [
        name,
        f"{row.median_ms:,.4g}",
        f"{row.min_ms:,.4g} to {row.max_ms:,.4g}",
        f"{row.per_second:,.0f} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.matmul_share:.0%}",
        f"{row.peak_memory_mib:,.0f}",
        f"{row.first_step_seconds:.1f} s",
    ]
