"""Measures our speed beside Keras, PyTorch and Flax, as far as they are installed.

python -m experiments.benchmark --workloads=lstm,seq2seq --peers=keras:jax,torch
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.benchmark.peers import PEERS
from seqjax.benchmark.run import find_peers, find_workloads, run_benchmark
from seqjax.benchmark.table import save_report, show_report
from seqjax.benchmark.workloads import WORKLOADS
from seqjax.launch import launch
from seqjax.stop_signals import say

NAMES = {"workloads": ", ".join(WORKLOADS), "peers": ", ".join(PEERS)}
WORKLOAD_NAMES = flags.DEFINE_list("workloads", [], f"of {NAMES['workloads']}; by default all")
PEER_NAMES = flags.DEFINE_list("peers", [], f"of {NAMES['peers']}; by default all")
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each peer")
OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "directory of benchmark.json and .png")


def main() -> None:
    workloads, peers = find_workloads(WORKLOAD_NAMES.value), find_peers(PEER_NAMES.value)
    report = run_benchmark(workloads, peers, ROUNDS.value, say)
    show_report(report)
    for path in save_report(report, Path(OUTPUT.value)):
        say(str(path))


if __name__ == "__main__":
    sys.exit(launch(main))
