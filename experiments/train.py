"""Trains the run that a config describes, or resumes it.

python -m experiments.train --config=configs/mnist_rows.py
python -m experiments.train --config=configs/mnist_rows.py:lstm --config.seed=1 --workdir=runs/a

Several processes train one run together, each started by the same command with its own number:

python -m experiments.train --config=configs/mnist_rows.py --coordinator_address=10.0.0.1:1234 \
    --num_processes=2 --process_id=0
srun python -m experiments.train --config=configs/mnist_rows.py --distributed
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from seqjax.cli import default_workdir, launch
from seqjax.distributed.devices import start_jax
from seqjax.distributed.processes import start_processes
from seqjax.parameters import check_parameters
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py[:VARIANT]; fields are set as --config.model.cell=gru"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory; by default runs/NAME")
RESUME = flags.DEFINE_enum(
    "resume", "exact", ["exact", "allow_changes"], "allow_changes: with another config or data"
)
DEBUG_NANS = flags.DEFINE_bool("debug_nans", False, "find the operation that gives no number")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT, where process 0 listens")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "that train together")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "this one's number, from 0")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "the three from Slurm, Open MPI, Kubernetes or a TPU pod"
)
TIMEOUT = flags.DEFINE_integer("initialization_timeout", 300, "seconds to wait for each other")


def main() -> None:
    config = CONFIG.value
    start_jax(config.train)
    start_processes(
        ADDRESS.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        detect=DISTRIBUTED.value,
        timeout_seconds=TIMEOUT.value,
    )
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
