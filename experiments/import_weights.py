"""Makes a run's directory from a file that experiments.export wrote.

python -m experiments.import_weights --weights=cafe.safetensors --workdir=runs/cafe
python -m experiments.import_weights --weights=faq.safetensors --data=faq.csv --workdir=runs/faq
"""

import sys

from absl import flags

from seqjax.cli import launch, user_path
from seqjax.serving.export import import_run

_WEIGHTS = flags.DEFINE_string("weights", None, "file to import", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "new directory of the run", required=True)
_DATA = {
    "name": flags.DEFINE_string("data", None, "data.name: file with the run's texts"),
    "labels": flags.DEFINE_string("labels", None, "data.labels: file with the labels of the texts"),
    "held_out": flags.DEFINE_string(
        "held_out", None, "data.held_out: file with the held-out texts"
    ),
}


def main() -> None:
    data = {field: flag.value for field, flag in _DATA.items() if flag.value is not None}
    import_run(user_path(_WEIGHTS.value), user_path(_WORKDIR.value), data)


if __name__ == "__main__":
    sys.exit(launch(main))
