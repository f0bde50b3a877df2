"""Trains the trials of a sweep, many in one compiled program, or resumes them.

python -m experiments.sweep --config=configs/word_completion.py --sweep=configs/sweeps/seeds.py
python -m experiments.sweep --config=configs/mnist_rows.py --sweep=configs/sweeps/mnist_cells.py

A process that is started by the same command on the same directory, on this machine or another, is
one more worker of the sweep:

srun -n 8 python -m experiments.sweep --config=configs/mnist_rows.py --sweep=...
python -m experiments.sweep --config=... --sweep=... --num_workers=4
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from seqjax.cli import default_workdir, launch, user_path
from seqjax.errors import UserError
from seqjax.runs.output import expendable_output
from seqjax.sweeps.optuna import run_search
from seqjax.sweeps.space import Search
from seqjax.sweeps.sweep import Look, Workers, load_sweep, run_sweep, started_by
from seqjax.sweeps.workers import (
    LOG,
    RayWorker,
    end_with_parent,
    run_workers,
    start_ray,
    start_worker,
)
from seqjax.training.trials import start_devices

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "configs/NAME.py[:VARIANT], or a run's directory; fields are set as --config.model.cell=gru",
)
_SWEEP = flags.DEFINE_string("sweep", "", "configs/sweeps/NAME.py[:ARGUMENT]")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the sweep; by default runs/sweeps/NAME"
)
_WORKERS = flags.DEFINE_integer("num_workers", 1, "number of processes that train groups of trials")
_GROUPS = flags.DEFINE_integer(
    "num_groups", 0, "smallest number of groups of trials; 0 = as many as workers, or Slurm's tasks"
)
_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "ray"], "where the workers run: on this machine or by Ray"
)
_ADDRESS = flags.DEFINE_string(
    "address", "", "address of a Ray cluster; by default one on this machine"
)
_HALVING = flags.DEFINE_integer(
    "halving", 0, "k: keep the best 1/k of the trials at each rung; 0 = all"
)
_STORAGE = flags.DEFINE_string(
    "storage", "", "storage of the Optuna study: sqlite:///FILE or journal:FILE"
)
_STUDY = flags.DEFINE_string("study", "", "name of the Optuna study")


def main() -> None:
    if not _SWEEP.value:
        raise UserError("--sweep is missing: give a file, as --sweep=configs/sweeps/seeds.py")
    config, sweep = _CONFIG.value, load_sweep(_SWEEP.value)
    place = default_workdir().resolve()  # of a run, whose config it may be
    of_sweep = f"{place.parents[1].name}-" if place.parent.name == "trials" else ""
    name = f"{of_sweep}{place.name}-{Path(_SWEEP.value.partition(':')[0]).stem}"
    directory = user_path(_WORKDIR.value or f"runs/sweeps/{name}")
    _check_flags(isinstance(sweep, Search))
    end_with_parent()
    workers = _workers(directory)
    if workers is None:
        start_devices()
        _check_devices()
    slurm = os.environ.get("SLURM_NTASKS", "")
    num_groups = _GROUPS.value or _WORKERS.value * int(slurm if slurm.isdecimal() else 1)
    options: dict[str, Any] = {"num_groups": num_groups, "workers": workers}
    with expendable_output():
        if isinstance(sweep, Search):
            study = {"storage": _STORAGE.value, "study": _STUDY.value or name}
            run_search(config, sweep, directory, **options, **study)
        else:
            run_sweep(config, sweep, directory, **options, halving=_HALVING.value)


def _workers(directory: Path) -> Workers | None:
    """Returns the function that runs other processes as workers; None if this is the only one."""
    count, log = _WORKERS.value, directory / LOG
    command = [sys.executable, "-m", "experiments.sweep", *sys.argv[1:]]
    command += [f"--workdir={directory}", "--num_workers=1", "--executor=local", "--address="]

    def run(look: Look) -> None:
        ray = start_ray(_ADDRESS.value) if _EXECUTOR.value == "ray" else None

        def start(index: int) -> Any:
            if ray:
                return RayWorker(ray, command, log, index, count)
            return start_worker(command, log, count, index)

        run_workers(start, count, log, look)

    return None if count == 1 and _EXECUTOR.value == "local" else run


def _check_devices() -> None:
    """Raises UserError if other workers of this machine would use the same accelerators."""
    _, number = started_by()
    if number > 1 and jax.default_backend() != "cpu":
        raise UserError(
            f"--num_workers={number}: the trials of one worker already share all accelerators of "
            "this machine: leave it out"
        )


def _check_flags(is_search: bool) -> None:
    """Raises UserError for flags that nothing would read."""
    for flag, least in ((_WORKERS, 1), (_GROUPS, 0)):
        if flag.value < least:
            raise UserError(f"--{flag.name}={flag.value} must be at least {least}")
    if _ADDRESS.value and _EXECUTOR.value != "ray":
        raise UserError("--address is for --executor=ray: add it")
    if is_search and _HALVING.value:
        raise UserError("--halving is for sweeps of fixed trials: leave it out with Optuna")
    for flag in () if is_search else (_STORAGE, _STUDY):
        if flag.value:
            raise UserError(f"--{flag.name} is for a sweep that is a Search: leave it out")


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes"))
