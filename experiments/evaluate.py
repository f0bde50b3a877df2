"""Evaluates a run's best weights on every split, and shows what a person can judge.

python -m experiments.evaluate --workdir=runs/mnist_rows
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.fit import evaluate
from seqjax.launch import launch, start_jax
from seqjax.run_directory import load_run_config
from seqjax.stop_signals import say
from seqjax.tasks import make_task

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory", required=True)


def main() -> None:
    config = load_run_config(Path(WORKDIR.value), say)
    start_jax(config.train)
    evaluate(make_task(config, Path(WORKDIR.value)), config, Path(WORKDIR.value))


if __name__ == "__main__":
    sys.exit(launch(main))
