"""Makes the directory of a run from a file that experiments.export wrote.

python -m experiments.import_weights --weights=cafe.safetensors --workdir=runs/cafe
python -m experiments.import_weights --weights=faq.safetensors --data=faq.csv --workdir=runs/faq
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.serving.export import import_run

WEIGHTS = flags.DEFINE_string("weights", None, "the file", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "the run's new directory", required=True)
DATA = {
    "name": flags.DEFINE_string("data", None, "data.name: the file with the run's texts"),
    "labels": flags.DEFINE_string("labels", None, "data.labels: the file with their labels"),
    "held_out": flags.DEFINE_string("held_out", None, "data.held_out: the file held out"),
}


def main() -> None:
    given = {field: flag.value for field, flag in DATA.items() if flag.value is not None}
    import_run(Path(WEIGHTS.value), Path(WORKDIR.value), given)


if __name__ == "__main__":
    sys.exit(launch(main))
