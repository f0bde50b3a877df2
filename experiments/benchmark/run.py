"""Measures peers side by side, in turns.

Every peer has a process of its own, alive all through and idle when it is not its turn. Rounds are
interleaved, each peer once in every round, so that a machine which slows down slows all of them.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmark.peers import OURS, PEERS, missing_packages
from experiments.benchmark.process import PeerDied, Process
from experiments.benchmark.workloads import WORKLOADS, Workload, num_flops, throughput
from seqjax.errors import UserError, unknown_name

_TURN_SECONDS = 1.0
MATRIX_SIZE = 2048
LARGEST_DIFFERENCE = 1e-4  # relative, of first losses

Say = Callable[[str], None]


class BenchmarkRow(NamedTuple):
    """One peer on one workload. What was not measured is None, and `note` says why."""

    workload: str
    peer: str
    note: str = ""
    median_ms: float | None = None  # a step
    min_ms: float | None = None
    max_ms: float | None = None
    per_second: float | None = None  # of `unit`
    unit: str = ""
    ratio: float | None = None  # to our time: above 1 is slower than ours
    matmul_share: float | None = None  # of the machine's rate of matrix products
    peak_memory_mib: float | None = None
    first_step_seconds: float | None = None  # from weights to the first result, compilation too
    import_seconds: float | None = None
    version: dict[str, str] | None = None


class Report(NamedTuple):
    """All that a run of the benchmark found."""

    rows: list[BenchmarkRow]
    ratios: dict[str, float]  # by workload: the best peer's time over ours
    matmul_gflops: float


def find_workloads(names: Sequence[str]) -> list[Workload]:
    """The workloads of those names, or all; raises UserError for an unknown one."""
    for name in names:
        if name not in WORKLOADS:
            raise unknown_name("workload", name, WORKLOADS)
    return [WORKLOADS[name] for name in names or WORKLOADS]


def find_peers(names: Sequence[str]) -> list[str]:
    """The names of the peers, or all, ours always first; raises UserError for an unknown one."""
    for name in names:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    return [OURS, *[name for name in names or PEERS if name != OURS]]


def run_benchmark(
    workloads: Sequence[Workload], peers: Sequence[str], num_rounds: int, say: Say
) -> Report:
    """Measures each peer on each workload, one workload after the other."""
    if num_rounds < 1:
        raise UserError(f"--rounds={num_rounds} must be at least 1")
    rows: list[BenchmarkRow] = []
    rates: list[float] = []
    for workload in workloads:
        found, rate = measure_workload(workload, peers, num_rounds, say)
        rows += found
        rates.append(rate)
    return Report(rows, ratios_of(rows), statistics.median(rates) / 1e9)


def measure_workload(
    workload: Workload, peers: Sequence[str], num_rounds: int, say: Say
) -> tuple[list[BenchmarkRow], float]:
    """A row for each peer, and the machine's matrix products in operations a second."""
    rows: dict[str, BenchmarkRow] = {}
    running: dict[str, Running] = {}
    rates: list[float] = []

    def each(action: Callable[[Running], Any]) -> None:
        """Does it to all peers; one that dies of it gets its row, and no other turn."""
        for peer, found in list(running.items()):
            try:
                action(found)
            except PeerDied as error:
                rows[peer] = BenchmarkRow(workload.name, peer, f"died: {error}")
                del running[peer]

    with contextlib.ExitStack() as stack:
        for peer in peers:
            if missing := missing_packages(peer):
                note = f"not installed: {', '.join(missing)} (pip install -e '.[bench]')"
                rows[peer] = BenchmarkRow(workload.name, peer, note)
            else:
                say(f"{workload.name}: {peer} starts")
                running[peer] = Running(stack.enter_context(Process(peer, workload)))
                each(lambda found: found.facts or found.start())
        multiply = make_matmul()
        for number in range(num_rounds):
            say(f"{workload.name}: round {number + 1} of {num_rounds}")
            rates.append(multiply())
            each(Running.take_turn)
        each(Running.stop)
    rate = statistics.median(rates)
    ours = running.get(OURS)
    for peer, found in running.items():
        rows[peer] = make_row(workload, peer, found, ours, rate)
    return [rows[peer] for peer in peers], rate


class Running:
    """A peer between its turns."""

    def __init__(self, process: Process):
        self.process = process
        self.facts: dict[str, Any] = {}
        self.num_steps = 1  # of a turn
        self.seconds: list[float] = []  # a step, of each turn

    def start(self) -> None:
        """Waits for the first step, and finds how many take about a turn; they warm up, too."""
        self.facts = self.process.start()
        while (seconds := self._run(self.num_steps)) < _TURN_SECONDS / 4:
            self.num_steps *= 4
        wanted = max(1, round(self.num_steps * _TURN_SECONDS / seconds))
        if wanted != self.num_steps:
            self._run(wanted)
        self.num_steps = wanted

    def take_turn(self) -> None:
        """Measures some steps."""
        self.seconds.append(self._run(self.num_steps) / self.num_steps)

    def stop(self) -> None:
        """Asks for what is known at the end only."""
        self.facts |= self.process.ask(stop=True)

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def _run(self, num_steps: int) -> float:
        return self.process.ask(steps=num_steps)["seconds"]


def make_matmul() -> Callable[[], float]:
    """A function that measures float32 operations a second in one product on all cores."""
    product = jax.jit(jnp.matmul)
    square = jnp.ones((MATRIX_SIZE, MATRIX_SIZE), jnp.float32)
    product(square, square).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        product(square, square).block_until_ready()
        return 2 * MATRIX_SIZE**3 / (time.perf_counter() - start)

    return measure


def make_row(
    workload: Workload, peer: str, found: Running, ours: Running | None, rate: float
) -> BenchmarkRow:
    """The figures of a peer that was measured, beside ours if they were."""
    median = found.median
    amount, unit = throughput(workload)
    facts = ("peak_memory_mib", "first_step_seconds", "import_seconds", "version")
    return BenchmarkRow(
        workload.name,
        peer,
        note=difference(found.facts, ours.facts) if ours else "not compared: ours did not run",
        median_ms=median * 1e3,
        min_ms=min(found.seconds) * 1e3,
        max_ms=max(found.seconds) * 1e3,
        per_second=amount / median,
        unit=unit,
        ratio=median / ours.median if ours else None,
        matmul_share=num_flops(workload) / median / rate,
        **{name: found.facts[name] for name in facts},
    )


def difference(facts: dict[str, Any], ours: dict[str, Any]) -> str:
    """ "" where a peer's first result is ours, else what is different."""
    if "loss" in ours:
        loss, expected = facts["loss"], ours["loss"]
        same = math.isclose(loss, expected, rel_tol=LARGEST_DIFFERENCE)
        return "" if same else f"other result: first loss {loss:.6g}, ours {expected:.6g}"
    return "" if facts["tokens_digest"] == ours["tokens_digest"] else "other result: other tokens"


def ratios_of(rows: Sequence[BenchmarkRow]) -> dict[str, float]:
    """By workload the time of the best peer over ours: above 1, ours is the fastest.

    Only peers with our result count.
    """
    ratios: dict[str, float] = {}
    for row in rows:
        if row.peer != OURS and row.ratio is not None and not row.note:
            ratios[row.workload] = min(row.ratio, ratios.get(row.workload, math.inf))
    return ratios
