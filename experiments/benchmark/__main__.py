"""Measures our speed beside Keras, PyTorch and Flax, as far as they are installed.

python -m experiments.benchmark --workloads=lstm,seq2seq --peers=keras:jax,torch
python -m experiments.benchmark --scaling
"""

import sys
from pathlib import Path

from absl import flags

from experiments.benchmark.peers import PEERS
from experiments.benchmark.run import find_peers, find_workloads, run_benchmark
from experiments.benchmark.scaling import AXES, measure_scaling, save_scaling, scaling_table
from experiments.benchmark.table import save_benchmark, show, show_report
from experiments.benchmark.workloads import WORKLOADS
from seqjax.cli import launch
from seqjax.runs.signals import say

_NAMES = {"workloads": ", ".join(WORKLOADS), "peers": ", ".join(PEERS)}
_WORKLOAD_NAMES = flags.DEFINE_list("workloads", [], f"of {_NAMES['workloads']}; by default all")
_PEER_NAMES = flags.DEFINE_list("peers", [], f"of {_NAMES['peers']}; by default all")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each peer")
_SCALING = flags.DEFINE_bool("scaling", False, "how our time and memory grow with length and sizes")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "directory of benchmark.json and .png")


def main() -> None:
    if _SCALING.value:
        points = measure_scaling(AXES, _ROUNDS.value, say)
        show(scaling_table(points))
        for path in save_scaling(points, Path(_OUTPUT.value)):
            say(str(path))
        return
    workloads, peers = find_workloads(_WORKLOAD_NAMES.value), find_peers(_PEER_NAMES.value)
    report = run_benchmark(workloads, peers, _ROUNDS.value, say)
    show_report(report)
    for path in save_benchmark(report, Path(_OUTPUT.value)):
        say(str(path))


if __name__ == "__main__":
    sys.exit(launch(main))
