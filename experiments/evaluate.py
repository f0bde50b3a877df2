"""Evaluates a run's best weights on every split, and shows what a person can judge.

python -m experiments.evaluate --workdir=runs/mnist_rows
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.distributed.devices import start_jax
from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config
from seqjax.tasks.registry import make_task
from seqjax.training.fit import evaluate

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory", required=True)


def main() -> None:
    config = load_run_config(Path(WORKDIR.value), say)
    start_jax(config.train)
    evaluate(make_task(config, Path(WORKDIR.value)), config, Path(WORKDIR.value))


if __name__ == "__main__":
    sys.exit(launch(main))
