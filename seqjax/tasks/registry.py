"""The tasks by name. Each has a file: its data, model, loss, metrics and examples."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from seqjax.distributed.processes import broadcast, is_main, num_processes
from seqjax.errors import unknown_name
from seqjax.files import write_text
from seqjax.tasks.base import Task, fitted_files
from seqjax.tasks.mnist_rows import make_mnist_rows
from seqjax.tasks.recall import make_recall
from seqjax.tasks.seq2seq import make_seq2seq
from seqjax.tasks.tagging import make_svo_tagging
from seqjax.tasks.word_completion import make_word_completion

TASKS: dict[str, Callable[..., Task]] = {
    "mnist_rows": make_mnist_rows,
    "recall": make_recall,
    "svo_tagging": make_svo_tagging,
    "text_pairs": make_seq2seq,
    "word_completion": make_word_completion,
}


def make_task(config, directory: Path | None = None) -> Task:
    """Returns the task that a config names; raises UserError for an unknown one or unusable data.

    What was fitted to the training data, such as a vocabulary, is read from the run in `directory`
    if it is there and is not fitted again. All processes of a run must call this function; they
    share what process 0 has read or fitted.
    """
    if config.task not in TASKS:
        raise unknown_name("task", config.task, TASKS)
    make = TASKS[config.task]
    if num_processes() > 1:
        return _make_alike(make, config, directory)
    return make(config, directory)


def _make_alike(make: Callable[..., Task], config, directory: Path | None) -> Task:
    """Returns the task in each of several processes, with the files that process 0 fitted."""
    with tempfile.TemporaryDirectory(prefix="seqjax-") as name:
        fitted = Path(name)
        task = make(config, directory) if is_main() else None
        for name, text in broadcast(task and fitted_files(task)).items():
            write_text(fitted / name, text)
        return task or make(config, fitted)
