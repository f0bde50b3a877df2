"""Trains the run that a config describes, or resumes it.

python -m experiments.train --config=configs/mnist_rows.py
python -m experiments.train --config=configs/mnist_rows.py:lstm --config.seed=1 --workdir=runs/a

Several processes train one run together, each started by the same command with its own process_id:

python -m experiments.train --config=configs/mnist_rows.py --coordinator_address=10.0.0.1:1234 \
    --num_processes=2 --process_id=0
srun python -m experiments.train --config=configs/mnist_rows.py --distributed
"""

import re
import sys

from absl import flags
from ml_collections import config_flags

from seqjax.cli import default_workdir, launch, user_path
from seqjax.distributed.devices import start_jax
from seqjax.distributed.processes import start_processes
from seqjax.errors import UserError
from seqjax.parameters import check_parameters
from seqjax.runs.output import expendable_output
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "configs/NAME.py[:VARIANT], or a run's directory; fields are set as --config.model.cell=gru",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run; by default runs/NAME")
_RESUME = flags.DEFINE_enum(
    "resume",
    "exact",
    ["exact", "allow_changes"],
    "allow_changes: resume with a changed config or changed data",
)
_DEBUG_NANS = flags.DEFINE_bool(
    "debug_nans", False, "find the operation whose result is not finite"
)
_PROFILE = flags.DEFINE_string(
    "profile",
    "",
    "START:STEPS, the steps to trace into WORKDIR/profile, for xprof and Perfetto",
)
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT on which process 0 listens")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "number of processes that train together"
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, from 0")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "take the address and numbers from Slurm, Open MPI, Kubernetes or a TPU pod",
)
_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "seconds to wait for the other processes"
)


def main() -> None:
    config = _CONFIG.value
    start_jax(config.train.num_devices)
    start_processes(
        _ADDRESS.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        detect=_DISTRIBUTED.value,
        timeout_seconds=_TIMEOUT.value,
    )
    workdir = user_path(_WORKDIR.value) if _WORKDIR.value else default_workdir()
    task = make_task(config, workdir)
    check_parameters(task.init)
    with expendable_output():
        fit(
            task,
            config,
            workdir,
            allow_changes=_RESUME.value == "allow_changes",
            debug_nans=_DEBUG_NANS.value,
            profile=_read_profile(_PROFILE.value),
        )


def _read_profile(text: str) -> tuple[int, int]:
    """Returns the first step and the number of steps to trace; 0 steps trace nothing."""
    if not text:
        return 0, 0
    if not (found := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)):
        raise UserError(f"--profile={text!r} must be START:STEPS, such as 100:20")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes from the last checkpoint"))
