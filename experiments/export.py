"""Writes a run's best weights into one file, with all that is needed to use them.

python -m experiments.export --workdir=runs/cafe_chatbot --output=cafe.safetensors
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.runs.weights import WEIGHTS_FILE
from seqjax.serving.export import export_run

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory", required=True)
FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors"], "of the file")
OUTPUT = flags.DEFINE_string("output", None, f"the file; by default WORKDIR/{WEIGHTS_FILE}")


def main() -> None:
    workdir = Path(WORKDIR.value)
    export_run(workdir, Path(OUTPUT.value) if OUTPUT.value else workdir / WEIGHTS_FILE)


if __name__ == "__main__":
    sys.exit(launch(main))
