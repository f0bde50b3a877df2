"""Trains the trials of a sweep, many in one compiled program, or resumes them.

python -m experiments.sweep --config=configs/word_completion.py --sweep=configs/sweeps/seeds.py
python -m experiments.sweep --config=configs/mnist_rows.py --sweep=configs/sweeps/mnist_cells.py
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from seqjax.cli import default_workdir, launch
from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError
from seqjax.sweeps.executors import EXECUTORS
from seqjax.sweeps.optuna import run_search
from seqjax.sweeps.space import Search
from seqjax.sweeps.sweep import load_sweep, run_sweep
from seqjax.sweeps.workers import start_devices

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py[:VARIANT]; fields are set as --config.model.cell=gru"
)
_SWEEP = flags.DEFINE_string("sweep", "", "configs/sweeps/NAME.py[:ARGUMENT]")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the sweep; by default runs/sweeps/NAME"
)
_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", list(EXECUTORS), "what trains the groups of trials"
)
_WORKERS = flags.DEFINE_integer(
    "num_workers", 0, "number of workers of processes and ray; 0 = by cores"
)
_ADDRESS = flags.DEFINE_string(
    "address", "", "address of a Ray cluster; by default one on this machine"
)
_HALVING = flags.DEFINE_integer(
    "halving", 0, "k: keep the best 1/k of the trials at each rung; 0 = all"
)
_STORAGE = flags.DEFINE_string(
    "storage", "", "storage of an Optuna study: sqlite:///FILE or journal:FILE"
)
_STUDY = flags.DEFINE_string("study", "", "name of the Optuna study, which machines may share")


def main() -> None:
    if not _SWEEP.value:
        raise UserError("--sweep is missing: give a file, as --sweep=configs/sweeps/seeds.py")
    config, sweep = _CONFIG.value, load_sweep(_SWEEP.value)
    name = f"{default_workdir().name}-{Path(_SWEEP.value.partition(':')[0]).stem}"
    directory = Path(_WORKDIR.value or Path("runs/sweeps") / name)
    _check_flags(isinstance(sweep, Search))
    start_devices(config.train, num_cores())
    options: dict[str, Any] = {}
    if _EXECUTOR.value != "local":
        options["num_workers"] = _WORKERS.value
    if _EXECUTOR.value == "ray":
        options["address"] = _ADDRESS.value
    executor = partial(EXECUTORS[_EXECUTOR.value], **options)
    num_workers = 1 if _EXECUTOR.value == "local" else _WORKERS.value or num_cores()
    if isinstance(sweep, Search):
        study = _STUDY.value or name
        run_search(
            config, sweep, directory, executor, num_workers, storage=_STORAGE.value, study=study
        )
    else:
        run_sweep(config, sweep, directory, executor, num_workers, halving=_HALVING.value)


def _check_flags(is_search: bool) -> None:
    """Raises UserError for flags that nothing would read."""
    if _EXECUTOR.value == "local" and _WORKERS.value:
        raise UserError("--num_workers is for --executor=processes or ray: leave it out, or add it")
    if _WORKERS.value < 0:
        raise UserError(f"--num_workers={_WORKERS.value} must be at least 0")
    if _ADDRESS.value and _EXECUTOR.value != "ray":
        raise UserError("--address is for --executor=ray: add it")
    if _ADDRESS.value and not _WORKERS.value:
        raise UserError("--address needs --num_workers: how many groups the cluster trains at once")
    if is_search and _HALVING.value:
        raise UserError("--halving is for sweeps of fixed trials: leave it out with Optuna")
    for flag in () if is_search else (_STORAGE, _STUDY):
        if flag.value:
            raise UserError(f"--{flag.name} is for a sweep that is a Search: leave it out")


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes"))
