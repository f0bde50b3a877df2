"""Trains the trials of a sweep, many in one program, or goes on with them.

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

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py[:VARIANT]; fields are set as --config.model.cell=gru"
)
SWEEP = flags.DEFINE_string("sweep", "", "configs/sweeps/NAME.py[:ARGUMENT]")
WORKDIR = flags.DEFINE_string("workdir", None, "the sweep's directory; by default runs/sweeps/...")
EXECUTOR = flags.DEFINE_enum("executor", "local", list(EXECUTORS), "who trains the groups")
WORKERS = flags.DEFINE_integer("num_workers", 0, "of processes and ray; 0 = as the cores allow")
ADDRESS = flags.DEFINE_string("address", "", "of a Ray cluster; by default one on this machine")
HALVING = flags.DEFINE_integer("halving", 0, "k: only the best k-th goes on, and so again; 0 = all")
STORAGE = flags.DEFINE_string("storage", "", "of an Optuna study: sqlite:///FILE or journal:FILE")
STUDY = flags.DEFINE_string("study", "", "the study's name, which machines may share")


def main() -> None:
    if not SWEEP.value:
        raise UserError("--sweep is missing: give a file, as --sweep=configs/sweeps/seeds.py")
    config, sweep = CONFIG.value, load_sweep(SWEEP.value)
    name = f"{default_workdir().name}-{Path(SWEEP.value.partition(':')[0]).stem}"
    directory = Path(WORKDIR.value or Path("runs/sweeps") / name)
    _check_flags(isinstance(sweep, Search))
    start_devices(config.train, num_cores())
    options: dict[str, Any] = {}
    if EXECUTOR.value != "local":
        options["num_workers"] = WORKERS.value
    if EXECUTOR.value == "ray":
        options["address"] = ADDRESS.value
    executor = partial(EXECUTORS[EXECUTOR.value], **options)
    num_workers = 1 if EXECUTOR.value == "local" else WORKERS.value or num_cores()
    if isinstance(sweep, Search):
        study = STUDY.value or name
        run_search(
            config, sweep, directory, executor, num_workers, storage=STORAGE.value, study=study
        )
    else:
        run_sweep(config, sweep, directory, executor, num_workers, halving=HALVING.value)


def _check_flags(is_search: bool) -> None:
    """Raises UserError for flags that nothing would read."""
    if EXECUTOR.value == "local" and WORKERS.value:
        raise UserError("--num_workers is for --executor=processes or ray: leave it out, or add it")
    if WORKERS.value < 0:
        raise UserError(f"--num_workers={WORKERS.value} must be at least 0")
    if ADDRESS.value and EXECUTOR.value != "ray":
        raise UserError("--address is for --executor=ray: add it")
    if ADDRESS.value and not WORKERS.value:
        raise UserError("--address needs --num_workers: how many groups the cluster trains at once")
    if is_search and HALVING.value:
        raise UserError("--halving is for sweeps of fixed trials: leave it out with Optuna")
    for flag in () if is_search else (STORAGE, STUDY):
        if flag.value:
            raise UserError(f"--{flag.name} is for a sweep that is a Search: leave it out")


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes"))
