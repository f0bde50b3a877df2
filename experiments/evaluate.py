"""Evaluates a run's best weights on every split, and shows what a person can judge.

python -m experiments.evaluate --workdir=runs/mnist_rows
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.config import load_config
from seqjax.fit import evaluate
from seqjax.launch import launch, start_jax
from seqjax.tasks import make_task

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory", required=True)


def main() -> None:
    config = load_config(Path(WORKDIR.value) / "config.json")
    start_jax(config.train)
    evaluate(make_task(config, Path(WORKDIR.value)), config, Path(WORKDIR.value))


if __name__ == "__main__":
    sys.exit(launch(main))
