"""Trains the trials of a sweep, many in one program, or goes on with them.

python -m experiments.sweep --config=configs/word_completion.py --sweep=configs/sweeps/seeds.py
python -m experiments.sweep --config=configs/mnist_rows.py --sweep=configs/sweeps/mnist_cells.py
"""

import sys
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from seqjax.executors import EXECUTORS
from seqjax.launch import launch, start_jax
from seqjax.optuna_search import run_search
from seqjax.search_space import Search
from seqjax.sweep import load_sweep, run_sweep

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py[:VARIANT]; fields are set as --config.model.cell=gru"
)
SWEEP = flags.DEFINE_string("sweep", None, "configs/sweeps/NAME.py[:ARGUMENT]", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "the sweep's directory; by default runs/sweeps/...")
EXECUTOR = flags.DEFINE_enum("executor", "local", list(EXECUTORS), "who trains the groups")
NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "of processes and ray; 0 = one a core")
ADDRESS = flags.DEFINE_string("address", "", "of a Ray cluster; by default one on this machine")
HALVING = flags.DEFINE_integer("halving", 0, "k: only the best k-th goes on, again and again")
STORAGE = flags.DEFINE_string("storage", "", "of Optuna: sqlite:///FILE or journal:FILE")
STUDY = flags.DEFINE_string("study", "", "of Optuna: the name that machines share; by default NAME")


def main() -> None:
    config, sweep = CONFIG.value, load_sweep(SWEEP.value)
    start_jax(config.train, num_devices=0)  # members are shared out, whatever a run alone would use
    directory = Path(WORKDIR.value or f"runs/sweeps/{default_workdir().name}-{sweep_name()}")
    executor = partial(
        EXECUTORS[EXECUTOR.value], num_workers=NUM_WORKERS.value, address=ADDRESS.value
    )
    if isinstance(sweep, Search):
        study = STUDY.value or directory.name
        run_search(config, sweep, directory, executor, storage=STORAGE.value, study=study)
    else:
        run_sweep(config, sweep, directory, executor, halving=HALVING.value)


if __name__ == "__main__":
    sys.exit(launch(main, "interrupted: the same command resumes"))
