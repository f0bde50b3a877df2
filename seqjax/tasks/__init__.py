"""Tasks by name. One file a task: its data, model, loss and what it shows a person."""

from collections.abc import Callable

from seqjax.errors import UserError, unknown_name
from seqjax.task import Task
from seqjax.tasks.mnist_rows import make_mnist_rows
from seqjax.tasks.recall import make_recall
from seqjax.tasks.svo_tagging import make_svo_tagging
from seqjax.tasks.word_completion import make_word_completion

TASKS: dict[str, Callable[..., Task]] = {
    "mnist_rows": make_mnist_rows,
    "recall": make_recall,
    "svo_tagging": make_svo_tagging,
    "word_completion": make_word_completion,
}


def make_task(config) -> Task:
    """The task that a config names; raises UserError for an unknown one or unusable data."""
    if config.task not in TASKS:
        raise unknown_name("task", config.task, TASKS)
    try:
        return TASKS[config.task](config)
    except TypeError as error:  # a field that the task does not read, or one that it misses
        if "argument" not in str(error):
            raise
        raise UserError(f"this config is not one of the task {config.task}: {error}") from error
