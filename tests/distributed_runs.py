"""What test_distributed.py has each of two processes do: `ADDRESS NUMBER DIRECTORY` as arguments.

The directory is theirs in turn: process N writes into processN, and finds nothing of the other's.
"""

import json
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import jax
from ml_collections import ConfigDict
from toys import linear_config, linear_task, quick_compile, tiny_config

import seqjax.pictures
from seqjax.data.vocabulary import Vocabulary
from seqjax.errors import UserError
from seqjax.fit import fit
from seqjax.processes import broadcast, gather, is_main, start_processes
from seqjax.stop_signals import Stopped
from seqjax.tasks import make_task
from seqjax.training import Training

TASK = linear_task()
RUNS = {
    "epoch": dict(num_devices=2),
    "step": dict(num_devices=2, loop="step"),
    "four": dict(num_devices=4, dropout_at_test=True),
}
STOPPED_AT = 13  # of 24 steps


def stop_and_resume(workdir: Path) -> str:
    """A run that a signal to process 1 stops, and that then goes on; what it said."""
    call = Training._call

    def call_and_ask(self, steps_left):
        call(self, steps_left)
        if self.step == STOPPED_AT and not is_main():
            self.signals.received = signal.SIGTERM

    try:
        with mock.patch.object(Training, "_call", call_and_ask):
            fit(TASK, linear_config(num_devices=2, steps_per_call=1), workdir)
    except Stopped as stopped:
        fit(TASK, linear_config(num_devices=2), workdir)
        return stopped.message
    return "not stopped"


def fit_by_two_clocks(workdir: Path) -> None:
    """Steps a call by the time that they take, where one clock runs a million times faster."""
    true = time.perf_counter
    clock = true if is_main() else lambda: 1e6 * true()
    config = linear_config(num_devices=2, eval_every_epochs=6)
    with mock.patch.object(time, "perf_counter", clock):
        fit(TASK, config, workdir)


def translate(workdir: Path) -> None:
    """Texts, with a vocabulary that only process 0 fits."""
    config = tiny_config("word_translation", num_devices=2)
    unable = mock.patch.object(Vocabulary, "fit", side_effect=AssertionError)
    with mock.MagicMock() if is_main() else unable:
        task = make_task(config, workdir)
    fit(task, config, workdir)


def mistake(config: ConfigDict, workdir: Path) -> str:
    try:
        fit(TASK, config, workdir)
    except UserError as error:
        return str(error)
    return "none"


def main(address: str, number: int, directory: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    start_processes(address, 2, number, detect=False, timeout_seconds=60)
    said = {
        "gather": [gather(number + 0.5), gather(7 * number)],
        "broadcast": broadcast({"from": number, "text": "가" * (1 + number)}),
    }
    seqjax.pictures._save = lambda figure, path: path.touch()
    with quick_compile():
        for name, train in RUNS.items():
            fit(TASK, linear_config(**train), directory / name)
        said["stopped"] = stop_and_resume(directory / "stopped")
        fit_by_two_clocks(directory / "clocks")
        translate(directory / "translation")
    said["finished"] = fit(TASK, linear_config(**RUNS["epoch"]), directory / "epoch")
    said["three"] = mistake(linear_config(num_devices=3), directory / "three")
    said["six"] = mistake(linear_config(num_devices=6), directory / "six")
    (directory.parent / f"said{number}.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
