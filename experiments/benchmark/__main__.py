"""Measures our speed beside Keras, PyTorch and Flax, as far as they are installed.

python -m experiments.benchmark --workloads=lstm,seq2seq --peers=keras:jax,torch
python -m experiments.benchmark --condition=quiet,busy,avx2
python -m experiments.benchmark --suite=lengths
python -m experiments.benchmark --suite=accelerator
python -m experiments.benchmark --compile
python -m experiments.benchmark --tune --workloads=mnist_rows:lstm,my_config.py
python -m experiments.benchmark --compare --record
"""

import sys
from pathlib import Path

from absl import flags

from experiments.benchmark.conditions import CONDITIONS, find_conditions
from experiments.benchmark.first_step import (
    find_configs,
    first_step_table,
    measure_first_steps,
    save_first_steps,
)
from experiments.benchmark.history import append_records, compare, make_records, read_records
from experiments.benchmark.machine import machine_facts
from experiments.benchmark.peers import PEERS
from experiments.benchmark.run import find_peers, find_workloads, run_benchmark
from experiments.benchmark.scaling import growth_table, save_growth
from experiments.benchmark.table import make_table, save_benchmark, shares_table, show
from experiments.benchmark.tune import tune, tune_table
from experiments.benchmark.workloads import SUITES
from seqjax.cli import launch
from seqjax.distributed.choices import choices_file
from seqjax.distributed.devices import user_cache
from seqjax.errors import UserError, require
from seqjax.runs.signals import say

_SUITE = flags.DEFINE_enum("suite", "tasks", list(SUITES), "which workloads are measured together")
_WORKLOADS = flags.DEFINE_list(
    "workloads", [], "of the suite, or configs of --compile and --tune; or all"
)
_PEERS = flags.DEFINE_list("peers", [], f"of {', '.join(PEERS)}; by default those of the suite")
_CONDITIONS = flags.DEFINE_list("condition", ["quiet"], f"of {', '.join(CONDITIONS)}")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each peer")
_COMPILE = flags.DEFINE_bool("compile", False, "seconds to the first train step of every config")
_TUNE = flags.DEFINE_bool("tune", False, "find out how runs are best divided on this machine")
_RECORD = flags.DEFINE_bool("record", False, "add our shares to the history of this machine")
_COMPARE = flags.DEFINE_bool("compare", False, "name the rows that are slower than recorded")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "directory of the results")


def refuse_with(name: str, *others: flags.FlagHolder) -> None:
    """Raises UserError for a flag that cannot be used together with the one of that name."""
    for flag in others:
        if flag.present:
            raise UserError(f"--{flag.name} cannot be used with {name}")


def main() -> None:
    output = Path(_OUTPUT.value)
    if _TUNE.value:
        require("--rounds", _ROUNDS.value, _ROUNDS.value >= 1, "at least 1")
        refuse_with("--tune", _SUITE, _PEERS, _CONDITIONS, _COMPILE, _RECORD, _COMPARE, _OUTPUT)
        show(tune_table(tune(find_configs(_WORKLOADS.value), _ROUNDS.value, say)))
        say(str(choices_file()))
        return
    if _COMPILE.value:
        refuse_with("--compile", _SUITE, _PEERS, _CONDITIONS, _ROUNDS, _RECORD, _COMPARE)
        steps = measure_first_steps(find_configs(_WORKLOADS.value), say)
        show(first_step_table(steps))
        say(str(save_first_steps(steps, machine_facts(), output)))
        return
    if _SUITE.value != "tasks" and (_RECORD.value or _COMPARE.value):
        raise UserError(f"--record and --compare are for --suite=tasks, not {_SUITE.value}")
    suite, machine = SUITES[_SUITE.value], machine_facts()
    report = run_benchmark(
        find_workloads(_WORKLOADS.value, suite),
        find_peers(_PEERS.value, suite),
        find_conditions(_CONDITIONS.value, machine["flags"]),
        _ROUNDS.value,
        say,
        suite.environment,
    )
    show(make_table(report))
    if report.best:
        print(shares_table(report))
    paths = save_benchmark(report, machine, output)
    if _SUITE.value in ("lengths", "sizes"):
        show(growth_table(report.rows))
        paths.append(save_growth(report.rows, output))
    history, records = user_cache() / "benchmark.jsonl", make_records(report, machine)
    if _COMPARE.value:
        for line in compare(read_records(history, say), records):
            print(line)
    if _RECORD.value:
        append_records(history, records)
        paths.append(history)
    for path in paths:
        say(str(path))


if __name__ == "__main__":
    sys.exit(launch(main))
