"""Writes the best weights of a run into one file, with everything needed to use them.

python -m experiments.export --workdir=runs/cafe_chatbot --output=cafe.safetensors
"""

import sys

from absl import flags

from seqjax.cli import launch, user_path
from seqjax.runs.weights import WEIGHTS_FILE
from seqjax.serving.export import export_run

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
_FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors"], "format of the file")
_OUTPUT = flags.DEFINE_string("output", None, f"file to write; by default WORKDIR/{WEIGHTS_FILE}")


def main() -> None:
    workdir = user_path(_WORKDIR.value)
    export_run(workdir, user_path(_OUTPUT.value) if _OUTPUT.value else workdir / WEIGHTS_FILE)


if __name__ == "__main__":
    sys.exit(launch(main))
