"""Measures peers side by side, in turns.

Every peer has a process of its own, alive all through and idle when it is not its turn. Rounds are
interleaved, each peer once in every round, so that a machine which slows down slows all of them.
"""

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmark.conditions import (
    CONDITIONS,
    busy_processes,
    environment_of,
    remark_of,
)
from experiments.benchmark.peers import OURS, PEERS, RATES, SOURCES, missing_packages
from experiments.benchmark.worker import PeerDied, Process
from experiments.benchmark.workloads import (
    MEMORY_PASSES,
    NOTHING,
    Suite,
    Workload,
    find_floor,
    throughput,
    weight_bytes,
)
from seqjax.errors import UserError, unknown_name

_TURN_SECONDS = 1.0
MATRIX_SIZE = 2048
LARGEST_DIFFERENCE = 1e-4  # relative, of first losses

Say = Callable[[str], None]


class BenchmarkRow(NamedTuple):
    """One peer on one workload. What was not measured is None, and `note` says why."""

    workload: str
    condition: str
    peer: str
    note: str = ""  # why it is not compared
    remark: str = ""  # what has to be known of its figures
    median_ms: float | None = None  # a step
    min_ms: float | None = None
    max_ms: float | None = None
    per_second: float | None = None  # of `unit`
    unit: str = ""
    ratio: float | None = None  # to our time: above 1 is slower than ours
    floor_ms: float | None = None  # a step at the machine's rates, by `find_floor`
    floor_of: str = ""  # matmul or weights, whichever decides the floor
    peak_memory_mib: float | None = None  # of the process
    added_memory_mib: float | None = None  # of these, since the libraries were imported
    reserved_mib: float | None = None  # what XLA reserves beside arguments and results
    first_step_seconds: float | None = None  # from weights to the first result, compilation too
    import_seconds: float | None = None
    version: dict[str, str] | None = None


class Best(NamedTuple):
    """Our time over that of the best peer: below 1, ours is the fastest."""

    share: float
    peer: str


class Report(NamedTuple):
    """All that a run of the benchmark found."""

    rows: list[BenchmarkRow]
    best: dict[str, dict[str, Best]]  # by condition and workload
    rates: dict[str, dict[str, dict[str, float]]]  # the machine's, by condition and workload


def find_workloads(names: Sequence[str], suite: Suite) -> list[Workload]:
    """Returns the suite's workloads of those names, or all; raises UserError for an unknown one."""
    known = {workload.name: workload for workload in suite.workloads}
    for name in names:
        if name not in known:
            raise unknown_name("workload", name, known)
    return [known[name] for name in names or known]


def find_peers(names: Sequence[str], suite: Suite) -> list[str]:
    """Returns the names of the peers, or the suite's, ours always first.

    Raises UserError for an unknown one.
    """
    for name in names:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    return [OURS, *[name for name in names or suite.peers if name != OURS]]


def run_benchmark(
    workloads: Sequence[Workload],
    peers: Sequence[str],
    conditions: Sequence[str],
    num_rounds: int,
    say: Say,
    environment: Mapping[str, str] = NOTHING,
) -> Report:
    """Measures each peer on each workload under each condition, one after the other."""
    if num_rounds < 1:
        raise UserError(f"--rounds={num_rounds} must be at least 1")
    report = Report([], {}, {})
    for workload in workloads:
        for condition in conditions:
            with busy_processes(CONDITIONS[condition].num_busy) as beside:
                rows, rates = measure_workload(
                    workload, peers, num_rounds, say, condition, environment
                )
                if any(process.poll() is not None for process in beside):
                    note = "not compared: a busy process has died"
                    rows = [row._replace(note=row.note or note) for row in rows]
            report.rows.extend(rows)
            report.rates.setdefault(condition, {})[workload.name] = rates
            if best := best_of(rows):
                report.best.setdefault(condition, {})[workload.name] = best
    return report


def measure_workload(
    workload: Workload,
    peers: Sequence[str],
    num_rounds: int,
    say: Say,
    condition: str = "quiet",
    environment: Mapping[str, str] = NOTHING,
) -> tuple[list[BenchmarkRow], dict[str, float]]:
    """Returns a row for each peer, and the machine's rates.

    They are the floating-point operations a second of a large matrix product (`matmul`), and the
    bytes a second of a pass over as many bytes as the workload's kernels have (`memory`).
    """
    rows: dict[str, BenchmarkRow] = {}
    running: dict[str, Running] = {}
    title = f"{workload.name}, {condition}"

    def each(action: Callable[[Running], Any]) -> None:
        """Does it to all peers; one that dies of it gets its row, and no other turn."""
        for peer, found in list(running.items()):
            try:
                action(found)
            except PeerDied as error:
                rows[peer] = BenchmarkRow(workload.name, condition, peer, f"died: {error}")
                del running[peer]

    with contextlib.ExitStack() as stack:

        def start(name: str, peer: str, measured: Workload) -> None:
            variables = {**environment, **environment_of(condition, SOURCES[peer].packages)}
            running[name] = Running(stack.enter_context(Process(peer, measured, variables)))
            each(lambda found: found.facts or found.start())

        of_machine = machine_workloads(workload)
        for name, (measured, _) in of_machine.items():
            start(name, RATES, measured)
        for peer in peers:
            if missing := missing_packages(peer):
                note = f"not installed: {', '.join(missing)} (pip install -e '.[bench]')"
                rows[peer] = BenchmarkRow(workload.name, condition, peer, note)
            else:
                say(f"{title}: {peer} starts")
                start(peer, peer, workload)
        for number in range(num_rounds):
            say(f"{title}: round {number + 1} of {num_rounds}")
            each(Running.take_turn)
        each(Running.stop)
    rates = {
        name: amount / running.pop(name).median
        for name, (_, amount) in of_machine.items()
        if name in running
    }
    ours = running.get(OURS)
    for peer, found in running.items():
        rows[peer] = make_row(workload, condition, peer, found, ours, rates)
    return [rows[peer] for peer in peers], rates


def machine_workloads(workload: Workload) -> dict[str, tuple[Workload, float]]:
    """Returns what measures the machine beside a workload, and how much a step of each does.

    The pass over memory reads two arrays and writes one, which together have the bytes of the
    workload's kernels; the bytes of its step count all three.
    """
    nothing = workload._replace(num_layers=0, num_rows=1, batch_size=1)
    size = max(1, weight_bytes(workload)[0] // 12)
    return {
        "matmul": (
            nothing._replace(kind="matmul", hidden_size=MATRIX_SIZE),
            2 * MATRIX_SIZE**3,
        ),
        "memory": (nothing._replace(kind="memory", hidden_size=size), 12 * size * MEMORY_PASSES),
    }


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
        """Returns the seconds of a step."""
        return statistics.median(self.seconds)

    def _run(self, num_steps: int) -> float:
        return self.process.ask(steps=num_steps)["seconds"]


def make_row(
    workload: Workload,
    condition: str,
    peer: str,
    found: Running,
    ours: Running | None,
    rates: dict[str, float],
) -> BenchmarkRow:
    """Returns the figures of a peer that was measured, beside ours if they were."""
    median = found.median
    amount, unit = throughput(workload)
    floor, floor_of = None, ""
    if len(rates) == 2 and workload.kind != "corpus":  # there a peer may leave out padding
        floor, floor_of = find_floor(workload, rates["matmul"], rates["memory"])
    facts = ("peak_memory_mib", "added_memory_mib", "reserved_mib", "first_step_seconds")
    return BenchmarkRow(
        workload.name,
        condition,
        peer,
        note=difference(found.facts, ours.facts) if ours else "not compared: ours did not run",
        remark=remark_of(condition, SOURCES[peer].packages),
        median_ms=median * 1e3,
        min_ms=min(found.seconds) * 1e3,
        max_ms=max(found.seconds) * 1e3,
        per_second=amount / median,
        unit=unit,
        ratio=median / ours.median if ours else None,
        floor_ms=None if floor is None else floor * 1e3,
        floor_of=floor_of,
        **{name: found.facts[name] for name in (*facts, "import_seconds", "version")},
    )


def difference(facts: dict[str, Any], ours: dict[str, Any]) -> str:
    """Returns what is different between a peer's first result and ours, or ""."""
    if "loss" in ours:
        loss, expected = facts["loss"], ours["loss"]
        same = math.isclose(loss, expected, rel_tol=LARGEST_DIFFERENCE)
        return "" if same else f"other result: first loss {loss:.6g}, ours {expected:.6g}"
    return "" if facts["tokens_digest"] == ours["tokens_digest"] else "other result: other tokens"


def best_of(rows: Sequence[BenchmarkRow]) -> Best | None:
    """Returns the fastest peer of one workload, or None if there is none.

    Only peers with our result count, and none of our own backends.
    """
    known = [(row.ratio, row.peer) for row in rows if row.ratio is not None and not row.note]
    others = [(ratio, peer) for ratio, peer in known if peer.partition(":")[0] != OURS]
    if not others:
        return None
    ratio, peer = min(others)
    return Best(1 / ratio, peer)
