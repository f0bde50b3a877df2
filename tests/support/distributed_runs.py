"""What each of two processes runs for test_processes.py; arguments: `ADDRESS NUMBER DIRECTORY`.

Each process has a directory of its own, processN, and does not read the other's.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

import seqjax.plots
import seqjax.training.epoch
from seqjax.data.streams import memory_mapped
from seqjax.data.vocabulary import Vocabulary
from seqjax.distributed.mesh import SPLIT, gather_shards, make_mesh, shard
from seqjax.distributed.processes import broadcast, gather, is_main, start_processes
from seqjax.errors import UserError
from seqjax.runs.signals import Stopped
from seqjax.tasks.base import Task
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit
from seqjax.training.trainer import Trainer
from support.toys import linear_config, linear_task, tiny_config

TASK = linear_task()
RUNS = {
    "epoch": dict(num_devices=2, eval_every_epochs=3),
    "step": dict(num_devices=2, loop="step"),
    "four": dict(num_devices=4, dropout_at_test=True),
}
STOPPED_AT = 13  # of 24 steps


def from_disk(folder: Path) -> Task:
    """Returns the task with its training rows in files of a folder."""
    for name, column in TASK.splits["train"].items():
        np.save(folder / f"{name}.npy", column)
    return TASK._replace(splits={**TASK.splits, "train": memory_mapped(folder)})


def stop_and_resume(config: ConfigDict, workdir: Path) -> str:
    """Trains a run that a signal to process 1 stops, and resumes it; returns the stop message."""
    call = Trainer._call

    def call_and_ask(self, steps_left):
        call(self, steps_left)
        if self.now.step == STOPPED_AT and not is_main():
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.signals.received:
                time.sleep(0.01)

    config.train.steps_per_call = 1  # may differ between a run and its resumption
    chunks_of_three = mock.patch.object(seqjax.training.epoch, "CHUNK_STEPS", 3)
    with tempfile.TemporaryDirectory() as folder:
        task = from_disk(Path(folder))
        try:
            with mock.patch.object(Trainer, "_call", call_and_ask), chunks_of_three:
                fit(task, config, workdir)
        except Stopped as stopped:
            config.train.steps_per_call = 0
            fit(task, config, workdir)
            return stopped.message
    return "not stopped"


def vocabulary() -> str:
    """Returns the vocabulary file of a task; fitting one raises an error except in process 0."""
    unable = mock.patch.object(Vocabulary, "fit", side_effect=AssertionError)
    with contextlib.nullcontext() if is_main() else unable:
        task = make_task(tiny_config("word_translation"))
    with tempfile.TemporaryDirectory() as directory:
        (path,) = task.save_fitted(Path(directory))
        return path.read_text(encoding="utf-8")


def rows_back() -> list:
    """Returns whether `gather_shards` returns the rows that `shard` split, and a dtype."""
    mesh = make_mesh(4)
    rows = {"number": np.arange(8, dtype=np.int32), "flag": np.arange(16).reshape(8, 2) % 3 == 0}
    back = gather_shards(shard(rows, mesh, SPLIT))
    return [all(np.array_equal(back[name], rows[name]) for name in rows), str(back["flag"].dtype)]


def error_of(config: ConfigDict, workdir: Path) -> str:
    """Returns the message of the UserError that `fit` raises."""
    try:
        fit(TASK, config, workdir)
    except UserError as error:
        return str(error)
    return "nothing"


def main(address: str, number: int, directory: Path) -> None:
    seqjax.plots.save_figure = lambda figure, path: path.touch()
    jax.config.update("jax_num_cpu_devices", 2)
    start_processes(address, 2, number, detect=False, timeout_seconds=60)
    clock = time.perf_counter
    if not is_main():  # only process 0's clock may decide how many steps a call runs
        time.perf_counter = lambda: 1e6 * clock()
    results = {
        "gather": [gather(number + 0.5), gather(7 * number)],
        "broadcast": broadcast({"from": number, "text": "가" * (1 + number)}),
        "rows": rows_back(),
        "vocabulary": vocabulary(),
    }
    for name in ("epoch", "four"):
        fit(TASK, linear_config(**RUNS[name]), directory / name)
    results["stopped"] = stop_and_resume(linear_config(**RUNS["step"]), directory / "step")
    results["finished"] = fit(TASK, linear_config(**RUNS["epoch"]), directory / "epoch")
    results["three"] = error_of(linear_config(num_devices=3), directory / "three")
    results["six"] = error_of(linear_config(num_devices=6), directory / "six")
    path = directory.parent / f"results{number}.json"
    path.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
