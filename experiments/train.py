"""Trains the run that a config describes, or resumes it.

python -m experiments.train --config=configs/mnist_rows.py
python -m experiments.train --config=configs/mnist_rows.py:lstm --config.seed=1 --workdir=runs/a
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from seqjax.fit import fit
from seqjax.launch import default_workdir, launch, start_jax
from seqjax.parameters import check_parameters
from seqjax.tasks import make_task

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py[:VARIANT]; fields are set as --config.model.cell=gru"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory; by default runs/NAME")
RESUME = flags.DEFINE_enum(
    "resume", "exact", ["exact", "allow_changes"], "allow_changes: with another config or data"
)
DEBUG_NANS = flags.DEFINE_bool("debug_nans", False, "find the operation that gives no number")


def main() -> None:
    config = CONFIG.value
    start_jax(config.train)
    workdir = Path(WORKDIR.value) if WORKDIR.value else default_workdir()
    task = make_task(config, workdir)
    check_parameters(task.init)
    fit(
        task,
        config,
        workdir,
        allow_changes=RESUME.value == "allow_changes",
        debug_nans=DEBUG_NANS.value,
    )


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes from the last checkpoint"))
