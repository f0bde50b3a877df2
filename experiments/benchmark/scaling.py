"""How time and memory grow with one size, in the suites `lengths` and `sizes`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.benchmark.run import BenchmarkRow
from experiments.benchmark.workloads import BASE, split_name
from seqjax.plots import draw_scaling

_FIGURES = {
    "median_ms": "ms a step",
    "added_memory_mib": "MiB of the process, beside the libraries",
    "reserved_mib": "MiB that XLA reserves",
}
_LEAST_POINTS = 3  # of a power


def growth(points: Sequence[tuple[float, float]]) -> float:
    """Returns the exponent of the power of the size that fits the larger half of points best."""
    sizes, values = np.log(points[len(points) // 2 - 1 :]).T
    return float(np.polyfit(sizes, values, 1)[0])


def lines_of(rows: Sequence[BenchmarkRow], figure: str) -> dict[tuple[str, str], list]:
    """Returns the points (size, figure) by axis and peer, as far as they were measured."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        axis, size = split_name(row.workload)
        if value := getattr(row, figure):
            found.setdefault((axis, row.peer), []).append((float(size), float(value)))
    return found


def growth_table(rows: Sequence[BenchmarkRow]) -> Table:
    """Returns for each axis and peer the powers by which time and memory grow."""
    base = ", ".join(f"{name} {size}" for name, size in BASE.items())
    table = Table("axis", "peer", *_FIGURES.values(), title=f"a step of an LSTM ({base}) grows as")
    lines = {figure: lines_of(rows, figure) for figure in _FIGURES}
    for key in lines["median_ms"]:
        found = [lines[figure].get(key, []) for figure in _FIGURES]
        powers = [f"size ^ {growth(x):.2f}" if len(x) >= _LEAST_POINTS else "" for x in found]
        table.add_row(*key, *powers)
    return table


def save_growth(rows: Sequence[BenchmarkRow], directory: Path) -> Path:
    """Writes `scaling.png`, one panel for each axis and figure; returns where to."""
    panels: dict[tuple[str, str], dict[str, list]] = {}
    for figure, unit in _FIGURES.items():
        for (axis, peer), line in lines_of(rows, figure).items():
            panels.setdefault((axis, unit), {})[peer] = line
    draw_scaling(panels, directory / "scaling.png")
    return directory / "scaling.png"
