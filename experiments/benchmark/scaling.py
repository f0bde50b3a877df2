"""How time and memory of a gradient grow with its sizes, for each backend.

One LSTM, its last output, the gradient of every weight; all but one size stay as in `BASE`.
"""

import datetime
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from seqjax.files import write_json
from seqjax.nn.backends import find_unroll
from seqjax.nn.cells import lstm
from seqjax.nn.cudnn import has_cudnn
from seqjax.plots import draw_scaling

BASE = {"num_steps": 64, "hidden_size": 128, "batch_size": 32}
INPUT_SIZE = 28
AXES = {
    "num_steps": (28, 64, 256, 1024, 4096),
    "hidden_size": (64, 128, 256, 512, 1024, 2048),
    "batch_size": (1, 8, 32, 128, 512),
}
_TURN_SECONDS = 0.3


class Point(NamedTuple):
    """One size under one backend."""

    axis: str
    size: int
    backend: str  # `remat` is the fused pass in windows that are computed twice
    median_ms: float  # of a gradient
    min_ms: float
    max_ms: float
    temporary_mib: float  # what XLA sets aside beside arguments and results
    compile_seconds: float
    gflops: float  # of matrix products in a second, counting 3 forward passes


def backends() -> dict[str, tuple[str, bool]]:
    """Names, and the options of `find_unroll`."""
    found = {"scan": ("scan", False), "fused": ("fused", False), "remat": ("fused", True)}
    return found | ({"cudnn": ("cudnn", False)} if has_cudnn() else {})


def measure_scaling(
    axes: Mapping[str, Sequence[int]], num_rounds: int, say: Callable[[str], None]
) -> list[Point]:
    """A point for every axis, size and backend; backends take turns at each size."""
    points = []
    for axis, sizes in axes.items():
        for size in sizes:
            say(f"{axis} {size}")
            made = {name: Gradient({**BASE, axis: size}, *how) for name, how in backends().items()}
            for _ in range(num_rounds):
                for gradient in made.values():
                    gradient.take_turn()
            points += [gradient.point(axis, size, name) for name, gradient in made.items()]
    return points


class Gradient:
    """A compiled gradient and its arguments."""

    def __init__(self, sizes: dict[str, int], backend: str, remat: bool):
        num_steps, hidden_size, batch_size = sizes.values()
        cell, run = lstm(), find_unroll(backend, remat)
        keys = jax.random.split(jax.random.key(0))
        params = cell.init(keys[0], INPUT_SIZE, hidden_size)
        xs = jax.random.normal(keys[1], (num_steps, batch_size, INPUT_SIZE))

        def loss(params: Any, xs: Any) -> Any:
            end, _ = run(cell, params, cell.initial_state(batch_size, hidden_size), xs)
            return jnp.sum(jnp.square(end.h))

        start = time.perf_counter()
        self.compiled: Any = jax.jit(jax.grad(loss)).lower(params, xs).compile()
        self.compile_seconds = time.perf_counter() - start
        self.arguments = params, xs
        self.seconds: list[float] = []
        self.flops = 6 * num_steps * batch_size * (INPUT_SIZE + hidden_size) * 4 * hidden_size
        self.num_runs = 1
        self._run()
        while (seconds := self._run() * self.num_runs) < _TURN_SECONDS / 4:
            self.num_runs *= 4
        self.num_runs = max(1, round(self.num_runs * _TURN_SECONDS / seconds))

    def take_turn(self) -> None:
        """Measures some gradients."""
        self.seconds.append(self._run())

    def point(self, axis: str, size: int, backend: str) -> Point:
        """What was measured."""
        median = statistics.median(self.seconds)
        return Point(
            axis,
            size,
            backend,
            median * 1e3,
            min(self.seconds) * 1e3,
            max(self.seconds) * 1e3,
            self.compiled.memory_analysis().temp_size_in_bytes / 2**20,
            self.compile_seconds,
            self.flops / median / 1e9,
        )

    def _run(self) -> float:
        """Seconds of one gradient, of `num_runs`."""
        start = time.perf_counter()
        for _ in range(self.num_runs):
            found = self.compiled(*self.arguments)
        jax.block_until_ready(found)
        return (time.perf_counter() - start) / self.num_runs


def growth(points: Sequence[Point], figure: str) -> float:
    """The exponent of the power of the size that fits the figures of the larger half best."""
    half = points[len(points) // 2 - 1 :]
    sizes = np.log([point.size for point in half])
    return float(np.polyfit(sizes, np.log([getattr(point, figure) for point in half]), 1)[0])


def of_each(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points by axis and backend."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.axis, point.backend), []).append(point)
    return found


def scaling_table(points: Sequence[Point]) -> Table:
    """A line a point, and for each axis and backend by which powers time and memory grow."""
    base = ", ".join(f"{name} {size}" for name, size in BASE.items())
    columns = ("axis", "size", "backend", "ms", "min to max", "GFLOP/s", "MiB", "compiled in")
    table = Table(*columns, title=f"a gradient of an LSTM ({base})")
    for column in table.columns[3:]:
        column.justify = "right"
    for (axis, backend), of_one in of_each(points).items():
        for p in of_one:
            spread, seconds = f"{p.min_ms:,.3g} to {p.max_ms:,.3g}", f"{p.compile_seconds:.1f} s"
            figures = (f"{p.median_ms:,.4g}", spread, f"{p.gflops:,.0f}", f"{p.temporary_mib:,.1f}")
            table.add_row(axis, str(p.size), backend, *figures, seconds)
        if len(of_one) > 2:
            powers = [growth(of_one, name) for name in ("median_ms", "temporary_mib")]
            said = [f"size ^ {power:.2f}" for power in powers]
            table.add_row(axis, "grows as", backend, said[0], "", "", said[1], "")
        table.add_section()
    return table


def save_scaling(points: Sequence[Point], directory: Path) -> list[Path]:
    """Writes `scaling.json` and `scaling.png`; where to."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "scaling.json", directory / "scaling.png"]
    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "base": BASE,
    }
    write_json(paths[0], facts | {"points": [point._asdict() for point in points]})
    panels: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for name, unit in (("median_ms", "ms a gradient"), ("temporary_mib", "MiB")):
        for (axis, backend), of_one in of_each(points).items():
            line = [(float(point.size), float(getattr(point, name))) for point in of_one]
            panels.setdefault((axis, unit), {})[backend] = line
    draw_scaling(panels, paths[1])
    return paths
