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
from experiments.benchmark.table import save_report, show, show_report
from experiments.benchmark.workloads import WORKLOADS
from seqjax.cli import launch
from seqjax.runs.signals import say

NAMES = {"workloads": ", ".join(WORKLOADS), "peers": ", ".join(PEERS)}
WORKLOAD_NAMES = flags.DEFINE_list("workloads", [], f"of {NAMES['workloads']}; by default all")
PEER_NAMES = flags.DEFINE_list("peers", [], f"of {NAMES['peers']}; by default all")
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each peer")
SCALING = flags.DEFINE_bool("scaling", False, "how our time and memory grow with length and sizes")
OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "directory of benchmark.json and .png")


def main() -> None:
    if SCALING.value:
        points = measure_scaling(AXES, ROUNDS.value, say)
        show(scaling_table(points))
        for path in save_scaling(points, Path(OUTPUT.value)):
            say(str(path))
        return
    workloads, peers = find_workloads(WORKLOAD_NAMES.value), find_peers(PEER_NAMES.value)
    report = run_benchmark(workloads, peers, ROUNDS.value, say)
    show_report(report)
    for path in save_report(report, Path(OUTPUT.value)):
        say(str(path))


if __name__ == "__main__":
    sys.exit(launch(main))
