"""Evaluates the best weights of a run on every split, and shows examples.

python -m experiments.evaluate --workdir=runs/mnist_rows
"""

import sys

from absl import flags

from seqjax.cli import launch, user_path
from seqjax.training.fit import conclude, load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)


def main() -> None:
    workdir = user_path(_WORKDIR.value)
    _, lines = conclude(*load_run(workdir), workdir)
    for line in lines:
        print(line)


if __name__ == "__main__":
    sys.exit(launch(main))
