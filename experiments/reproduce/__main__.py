"""Reproduces every figure of the tutorials: what they print, ours beside it, and a verdict.

python -m experiments.reproduce
python -m experiments.reproduce --only=mnist_rows,layers --seeds=2
"""

import sys
from importlib import import_module

from absl import flags
from ml_collections import ConfigDict

from experiments.reproduce.ledger import NAMES, reproduce
from experiments.reproduce.show import save_ledger, show_ledger
from experiments.reproduce.trials import MANY
from seqjax.cli import launch, user_path
from seqjax.runs.signals import say
from seqjax.training.trials import start_devices

_ONLY = flags.DEFINE_list("only", [], f"of {', '.join(NAMES)}; by default all")
_SEEDS = flags.DEFINE_integer("seeds", MANY, "at most so many of each config")
_WORKDIR = flags.DEFINE_string("workdir", "runs/ledger", "directory of the runs and of the ledger")


def get_config(name: str, variant: str) -> ConfigDict:
    return import_module(f"configs.{name}").get_config(variant)


def main() -> None:
    directory = user_path(_WORKDIR.value)
    start_devices()
    sections, study = reproduce(_ONLY.value, get_config, directory, _SEEDS.value, say)
    show_ledger(sections)
    for path in save_ledger(sections, study, directory):
        say(str(path))


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command goes on from the last checkpoint"))
