"""What a task is: data, model, loss and what to show a person.

`training` knows this and no task; a task knows nothing of optimizers, devices or checkpoints.
"""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from seqjax.errors import UserError
from seqjax.metrics import Metrics
from seqjax.typing import Batch, Params, RowKeys

# From the outputs of `predict` on a split's rows, in order: nested arrays with a leading N.
Predict = Callable[[str], Any]


class Task(NamedTuple):
    """A task, made from a config by a function in `seqjax/tasks/`."""

    # Rows by split: "train" always, others as the task has them. Arrays with a leading N in common.
    splits: Mapping[str, Mapping[str, np.ndarray]]
    # key -> parameters
    init: Callable[[Key[Array, ""]], Params]
    # (params, batch, keys) -> sums and weights; "loss" is trained on. keys=None evaluates.
    loss_and_metrics: Callable[[Params, Batch, RowKeys | None], Metrics]
    # (params, batch) -> one output a row
    predict: Callable[[Params, Batch], Any]
    # (params, predict, directory) -> lines for a person; writes pictures into the directory
    show_examples: Callable[[Params, Predict, Path], list[str]]
    # the metric that is shown beside the loss
    main_metric: str = "accuracy"
    # (predict, split, its means) -> figures of whole outputs, for result.json
    corpus_metrics: Callable[[Predict, str, Mapping[str, float]], dict[str, float]] = lambda *_: {}
    # directory -> writes what was fitted to the training data, before training starts; which files
    save_fitted: Callable[[Path], list[Path]] = lambda directory: []
    # by field of the training rows: how many of its columns a row needs, where the others do not
    # change what `loss_and_metrics` gives; empty where rows cannot be cut
    lengths: Mapping[str, np.ndarray] = MappingProxyType({})


def fitted_files(task: Task) -> dict[str, str]:
    """The text of every file that the task has fitted to the training data, by file name."""
    with tempfile.TemporaryDirectory(prefix="seqjax-") as name:
        return {
            path.name: path.read_text(encoding="utf-8") for path in task.save_fitted(Path(name))
        }


def load_data(load: Callable[..., Any], data: Any) -> Any:
    """`load(**data)`; raises UserError for a field that is not of the type that `load` declares."""
    for name, parameter in inspect.signature(load).parameters.items():
        if name in data and type(data[name]) is not parameter.annotation:
            kind = parameter.annotation.__name__
            raise UserError(f"data.{name}={data[name]!r} is not of type {kind}")
    return load(**data)


def share_sizes(total: int, **shares: float) -> dict[str, int]:
    """How many of `total` rows each split gets; raises UserError for no share below 1."""
    for split, share in shares.items():
        if not 0 <= share < 1:  # so written, a NaN is refused
            raise UserError(f"data.{split}_share={share} must lie in [0, 1)")
    return {split: round(share * total) for split, share in shares.items()}


def model_options(config: Any) -> dict[str, Any]:
    """What a config says of its model, and of how to run it over time."""
    return {**config.model, "backend": config.train.backend, "remat": config.train.remat}
