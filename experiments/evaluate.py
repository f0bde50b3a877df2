"""Evaluates the best weights of a run on every split, and shows examples.

python -m experiments.evaluate --workdir=runs/mnist_rows
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.training.fit import conclude, load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)


def main() -> None:
    workdir = Path(_WORKDIR.value)
    conclude(*load_run(workdir), workdir)


if __name__ == "__main__":
    sys.exit(launch(main))
