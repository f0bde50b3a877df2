"""A task that compiles quickly, small versions of the shipped configs, and helpers for both."""

import json
import runpy
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from ml_collections import ConfigDict

import seqjax.plots
import seqjax.training.programs
from seqjax.config import base_config
from seqjax.data.batching import take_rows
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy
from seqjax.nn.dropout import dropout
from seqjax.tasks.base import Task
from seqjax.tasks.registry import TASKS, make_task
from seqjax.training.fit import conclude, fit, restore_best
from seqjax.training.setup import Setup, make_setup
from seqjax.training.train_step import make_train_step

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_FEATURES, NUM_CLASSES = 6, 3
SIZES = {"train": 22, "valid": 9, "test": 5}


def use_linear_task(monkeypatch) -> None:
    """Registers the task `linear`, draws no pictures, and trains trials on two devices."""
    monkeypatch.setitem(TASKS, "linear", lambda config, directory: linear_task())
    monkeypatch.setattr(seqjax.training.programs, "NUM_DEVICES", 2)
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


def linear_task(sizes: Mapping[str, int] = SIZES) -> Task:
    """Returns softmax regression with dropout, on rows that follow a noisy linear rule."""
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(NUM_FEATURES, NUM_CLASSES))

    def make_rows(num_rows: int) -> dict[str, np.ndarray]:
        x = rng.normal(size=(num_rows, NUM_FEATURES))
        scores = x @ rule + rng.normal(size=(num_rows, NUM_CLASSES))
        return {"x": x.astype(np.float32), "label": scores.argmax(-1).astype(np.int32)}

    def init(key):
        kernel = 0.1 * jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES))
        return {"output": {"kernel": kernel, "bias": jnp.zeros(NUM_CLASSES)}}

    def predict(params, batch, keys=None):
        x = dropout(keys, jnp.asarray(batch["x"]), 0.3)
        return x @ params["output"]["kernel"] + params["output"]["bias"]

    def measure(params, batch, keys=None, **_):
        logits, label, weight = predict(params, batch, keys), batch["label"], batch["weight"]
        label, weight = jnp.asarray(label), jnp.asarray(weight)
        return {
            "loss": cross_entropy(logits, label, weight),
            "accuracy": accuracy(logits, label, weight),
        }

    def show(params, predict, directory: Path) -> list[str]:
        return [f"row {i}: class {x.argmax()}" for i, x in enumerate(predict("train")[:2])]

    splits = {split: make_rows(size) for split, size in sizes.items()}
    return Task(splits, init, measure, predict, show)


def linear_config(**train: Any) -> ConfigDict:
    """Returns a config of the linear task; keywords set fields of `train`."""
    config = base_config("linear")
    config.optim.learning_rate = 0.05
    config.train.batch_size = 7
    config.train.num_epochs = 6
    config.train.checkpoint_every_epochs = 2
    config.train.num_devices = 1
    config.train.update(train)
    return config.lock()


def train_single_run(config: ConfigDict, directory: Path) -> None:
    """Trains a run of the config without drawing pictures."""
    with pytest.MonkeyPatch.context() as patch:
        use_linear_task(patch)
        fit(make_task(config), config, directory)


def evaluate(task: Task, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Returns the metrics of a run's best weights, as experiments/evaluate.py prints them."""
    setup = make_setup(task, config)
    result, lines = conclude(setup, *restore_best(setup, workdir), workdir)
    print(*lines, sep="\n")
    return result


def trace_step(config: ConfigDict, setup: Setup) -> tuple[Any, Any]:
    """Traces a train step and a prediction; returns the step's state and log as shapes."""
    state = setup.arrays_like()["state"]
    index = np.zeros(config.train.batch_size, np.int32)
    batch = take_rows(setup.data.rows, index, np.ones(len(index), np.float32))
    step = make_train_step(setup.task.loss_and_metrics, setup.optimizer)
    jax.eval_shape(setup.task.predict, state.params, batch)
    return jax.eval_shape(step, state, batch, jax.random.key(0))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_scalars(workdir: Path) -> dict[tuple[str, int], float]:
    """Returns the scalars that TensorBoard shows of a directory, by tag and step.

    An event file is a TFRecord: each record follows its length (8 bytes) and its checksum (4 bytes)
    and is followed by another checksum. The start of a session deletes all steps from its own on.
    """
    from tensorboardX.proto.event_pb2 import Event  # the run has imported it without torch

    scalars: dict[tuple[str, int], float] = {}
    for path in sorted(workdir.glob("events.out.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])
            start += length + 16
            if event.HasField("session_log"):
                scalars = {key: x for key, x in scalars.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag, event.step] = value.simple_value
    return scalars


def assert_picture(path: Path) -> None:
    """Asserts that the file is a PNG with something drawn on it."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 50
    levels = np.round(255 * pixels).astype(np.int64) @ 256 ** np.arange(pixels.shape[-1])
    assert len(np.unique(levels)) > 10  # NumPy sorts colours faster as one number than as rows


def get_config(name: str, variant: str = "default") -> ConfigDict:
    """Returns the config of a file in configs/."""
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)


def tiny_config(name: str, variant: str = "default", **train: Any) -> ConfigDict:
    """Returns the config of a file in configs/, made small; keywords set fields of `train`."""
    config = get_config(name, variant)
    config.model.hidden_size = 3
    config.train.num_epochs = 1
    config.train.batch_size = min(config.train.batch_size, 16)
    config.train.num_devices = 1
    if name == "recall":
        config.data.update(num_sequences=40, num_distractors=3)
    if name == "mnist_rows":
        config.data.valid_size = 8
    if config.task == "text_pairs":
        make_texts_few(config)
    config.train.update(train)
    return config.lock()


def make_texts_few(config: ConfigDict) -> None:
    """Replaces the corpus, which takes seconds to read, by a dozen short training pairs."""
    letters = "abcd가나다"
    pairs = [(letters[i % 7 :], letters[: 1 + i % 5] + letters[i % 4]) for i in range(20)]
    pairs = [(f"{i} {source}", f"{target} {i % 3}") for i, (source, target) in enumerate(pairs)]
    config.data.update(pairs=tuple(pairs), train_size=12, source_vocabulary="characters")
    config.data.target_vocabulary = "characters" if config.data.target_vocabulary else ""
    config.data.max_source_length = min(config.data.max_source_length, 9)
    config.data.max_target_length = min(config.data.max_target_length, 9)
    config.data.vocab_size = min(config.data.vocab_size, 50)
    config.model.embed_size = min(config.model.embed_size, 4)
    config.train.batch_size = min(config.train.batch_size, 12)


def few_digits() -> dict[str, np.ndarray]:
    """Returns what `load_mnist` does, with 24 and 16 images whose first pixel is their number."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 24), ("test", 16)):
        arrays[f"x_{split}"] = rng.integers(256, size=(size, 28, 28), dtype=np.uint8)
        arrays[f"x_{split}"][:, 0, 0] = np.arange(size)
        arrays[f"y_{split}"] = (np.arange(size) % 10).astype(np.uint8)
    return arrays
