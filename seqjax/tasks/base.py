"""The interface of a task: data, model, loss, metrics, and examples to show a person.

`training/` knows this interface and no task, except that `load_run` makes one by its name; a task
knows nothing of optimizers, devices or checkpoints.
"""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from seqjax.data.batching import Rows
from seqjax.errors import UserError, check_keywords, keywords
from seqjax.hparams import HParams
from seqjax.metrics import Average, Metrics
from seqjax.nn.layers import functional
from seqjax.nn.stack import DROPOUTS, make_stack
from seqjax.parameters import parameter_shapes
from seqjax.typing import Batch, Params

# Given a split's name, returns the outputs of `Task.predict` for its rows, in order: nested arrays
# with a leading N.
Predict = Callable[[str], Any]

# The dropout rates of a stack, for the `hparams` of a task whose loss passes `rates` on to one.
STACK_RATES = tuple(f"model.{name}" for name in DROPOUTS)
RUN_OPTIONS = ("backend", "remat", "compute_dtype")  # fields of `train` that models take


class Task(NamedTuple):
    """A task, made from a config by a function in `seqjax/tasks/`."""

    # The rows of each split, as arrays with a common leading N: "train", and any other splits. The
    # columns of `data/streams.py` read them from disk.
    splits: Mapping[str, Rows]
    # key -> parameters
    init: Callable[[Key[Array, ""]], Params]
    # (params, batch, keys=None, step=None, hparams=HParams()) -> (sum, weight) by metric; "loss" is
    # minimised. Dropout is on where keys are given. `step`, the number of steps made before, is
    # given in training only; without it the loss has no label smoothing and no scheduled sampling,
    # so that losses of different configs can be compared. Numbers in `hparams` replace the
    # config's own.
    loss_and_metrics: Callable[..., Metrics]
    # (params, batch) -> one output for each row
    predict: Callable[[Params, Batch], Any]
    # (params, predict, directory) -> lines of text; writes pictures into the directory
    show_examples: Callable[[Params, Predict, Path], list[str]]
    # the metric that is shown beside the loss
    main_metric: str = "accuracy"
    # (predict, split, the split's mean metrics) -> metrics of whole outputs, for result.json
    corpus_metrics: Callable[[Predict, str, Mapping[str, float]], dict[str, float]] = lambda *_: {}
    # directory -> the paths of the files written there, which hold what was fitted to the training
    # data, such as a vocabulary; called before training starts
    save_fitted: Callable[[Path], list[Path]] = lambda directory: []
    # for fields of the training rows: the number of columns of each row beyond which there is only
    # padding that `loss_and_metrics` ignores; empty if rows cannot be cropped
    lengths: Mapping[str, np.ndarray] = MappingProxyType({})
    # the config's fields that `loss_and_metrics` reads from `hparams` where they stand there
    hparams: tuple[str, ...] = ()
    # what the task was made from, for code that knows the task; for text pairs a Seq2SeqData
    data: Any = None


def add_metric(task: Task, name: str, metric: Callable[[Any, Batch], Average]) -> Task:
    """Returns the task with one more metric, `metric(outputs, batch)` of `task.predict`'s outputs.

    The metric must give the rows that fill up a batch no weight: their `batch["weight"]` is 0. It
    is computed in evaluations without dropout only, so training costs no more. It is in the "valid"
    of records and in result.json, and `train.monitor` can name it. Raises UserError for a name that
    the task has already; that of a corpus metric is noticed only at the end of a run.
    """

    def check_new(names: Mapping[str, Any]) -> None:
        if name in names:
            raise UserError(f"the task has a metric {name!r} already: give another name")

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        metrics = task.loss_and_metrics(params, batch, keys, step=step, hparams=hparams)
        if step is not None or keys is not None:
            return metrics
        return {**metrics, name: metric(task.predict(params, batch), batch)}

    def corpus_metrics(predict: Predict, split: str, means: Mapping[str, float]):
        metrics = task.corpus_metrics(predict, split, means)
        check_new(metrics)
        return metrics

    check_new(metric_shapes(task))
    return task._replace(loss_and_metrics=loss_and_metrics, corpus_metrics=corpus_metrics)


def metric_shapes(task: Task, step: Any = None) -> Metrics:
    """Returns what an evaluation measures, or a training step of that number, as shapes."""
    row = {name: x[:1] for name, x in task.splits["train"].items()}
    row["weight"] = np.ones(1, np.float32)

    def measure(params, batch):
        return dict(task.loss_and_metrics(params, batch, step=step))

    return jax.eval_shape(measure, parameter_shapes(task.init), row)


def fitted_files(task: Task) -> dict[str, str]:
    """Returns the text of every file that the task fitted to the training data, by file name."""
    with tempfile.TemporaryDirectory(prefix="seqjax-") as name:
        return {
            path.name: path.read_text(encoding="utf-8") for path in task.save_fitted(Path(name))
        }


def load_data(load: Callable[..., Any], config: Any) -> Any:
    """Returns `load(**config.data)`.

    Raises UserError for a field that `load` does not read or declares with another type, and for
    one that is missing.
    """
    data = config.data
    check_section(config, "data", keywords(load))
    for name, parameter in inspect.signature(load).parameters.items():
        if name in data and type(data[name]) is not parameter.annotation:
            kind = parameter.annotation.__name__
            raise UserError(f"data.{name}={data[name]!r} is not of type {kind}")
    return load(**data)


def build_model(model: type, config: Any, **sizes: int) -> tuple[Callable, Callable]:
    """Returns `init(key) -> params` and `bind(params) -> module` of a model class.

    The class is called with the config's model options, and with `sizes`, which depend on the data.
    If it takes `**options`, it must hand them on to `make_stack`. Raises UserError for a field of
    config.model that the two do not read, or that is missing.
    """
    passed = *sizes, "rngs", *RUN_OPTIONS
    check_section(config, "model", keywords(model, make_stack, passed=passed))
    options = sizes | model_options(config)
    return functional(lambda rngs: model(rngs=rngs, **options))


def check_section(config: Any, section: str, known: Mapping[str, bool]) -> None:
    """Raises UserError for a field of a config's section that is not among the known keywords (see
    `keywords`), and for a required one that is missing."""
    check_keywords(section, config.get(section, {}), known, f"the task {config.task}")


def model_options(config: Any) -> dict[str, Any]:
    """Returns a config's model options and how to run the model over time."""
    return {**config.model, **{name: config.train[name] for name in RUN_OPTIONS}}
