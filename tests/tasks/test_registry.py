"""Tasks of users: their own errors keep the traceback, mistakes of their configs are one line."""

import traceback
from pathlib import Path

import numpy as np
import pytest
from support.commands import assert_one_line

import seqjax.training.fit
from seqjax.losses import cross_entropy
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import one_hot
from seqjax.tasks.base import Task, build_model, load_data
from seqjax.tasks.recall import make_sequences
from seqjax.tasks.registry import TASKS

# ml_collections reads config files by a method that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def make_mine(config, directory=None) -> Task:
    """A task as a user registers it; `train.monitor` says what goes wrong in it."""
    mistake = config.train.monitor
    if mistake == "wrong call":
        make_sequences(1)
    if mistake == "missing file":
        np.load("missing.npy")
    splits = load_data(make_sequences, config)
    init, bind = build_model(Classifier, config, input_size=2, num_classes=2)

    def logits_of(params, batch):
        return bind(params)(one_hot(batch["symbols"], 2))

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=None):
        labels, weight = batch["symbols"][:, 0], batch["weight"]
        return {"loss": cross_entropy(logits_of(params, batch), labels, weight)}

    def show_examples(params, predict, directory):
        return [Path("missing.txt").read_text(encoding="utf-8")]

    return Task(splits, init, loss_and_metrics, logits_of, show_examples, main_metric="loss")


@pytest.fixture
def train_mine(command, empty, monkeypatch):
    """Trains the task with changed fields; (exit code, standard output, standard error)."""
    monkeypatch.setitem(TASKS, "mine", make_mine)
    monkeypatch.setattr(seqjax.training.fit, "draw_curves", lambda *_: None)

    def train(*lines: str) -> tuple[int, str, str]:
        text = ["from seqjax.config import base_config", "def get_config():"]
        text += ["    config = base_config('mine')", *(f"    {line}" for line in lines)]
        (empty / "mine.py").write_text("\n".join([*text, "    return config"]), encoding="utf-8")
        return command("train", "--config=mine.py")

    return train


DATA = "config.data = dict(num_symbols=2, num_distractors=1, num_sequences=10, split_seed=0)"
TINY = "config.train.update(num_epochs=1, batch_size=2); config.model.hidden_size = 2"


@pytest.mark.parametrize(
    ("mistake", "error", "line"),
    [
        ("wrong call", TypeError, "make_sequences(1)"),
        ("missing file", FileNotFoundError, 'np.load("missing.npy")'),
        ("valid.loss", FileNotFoundError, "Path"),  # of show_examples, where the run is locked
    ],
)
def test_an_error_of_a_task_keeps_its_traceback(mistake, error, line, train_mine):
    with pytest.raises(error) as caught:
        train_mine(DATA, TINY, f"config.train.monitor = {mistake!r}")
    lines = [f.line for f in traceback.extract_tb(caught.tb) if f.filename == __file__]
    assert line in lines[-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("config.model.hiden_size = 2", "model.hiden_size is not read by the task mine: did you"),
        ("del config.model.hidden_size", "model.hidden_size is missing: the task mine reads it"),
        ("config.data.num_symbol = 2", "data.num_symbol is not read by the task mine: did you"),
        ("del config.data.split_seed", "data.split_seed is missing: the task mine reads it"),
        ("config.model.backend = 'scan'", "model.backend is not read by the task mine"),
        ("config.optim.momentm = 0.9", "optim.momentm is not read by the optimizer: known: "),
        ("config.train.num_epoch = 3", "train.num_epoch is not read by training: did you mean "),
        ("del config.train.patience", "train.patience is missing: training reads it"),
    ],
)
def test_a_wrong_config_of_a_task_is_one_line(line, expected, train_mine, empty):
    assert_one_line(train_mine(DATA, TINY, line), f"error: config.{expected}")
    assert not (empty / "runs").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "config.model.hiden_size = 2",
            "model.hiden_size is not read by the task text_pairs",
        ),
        (
            "config.model.output_dropout = (0.0,)",
            "model.output_dropout is not read",
        ),  # make_stack's
        ("config.data.max_sorce_length = 2", "data.max_sorce_length is not read"),
        ("config.decode.min_lenght = 2", "decode.min_lenght is not read"),
        ("config.decode.max_length = 2", "decode.max_length is not read"),  # data.max_target_length
        (
            "config.loss.smoothing = 0.1",
            "loss.smoothing is not read by the task text_pairs",
        ),
        ("del config.data.form", "data.form is missing: the task text_pairs reads it"),
        ("del config.decode", "decode.decoder is missing"),
    ],
)
def test_a_wrong_config_of_text_pairs_is_one_line(line, expected, command, empty):
    text = ["from seqjax.config import text_pairs_config", "def get_config():"]
    text += ["    config = text_pairs_config('cafe')", f"    {line}", "    return config"]
    (empty / "mine.py").write_text("\n".join(text), encoding="utf-8")
    assert_one_line(command("train", "--config=mine.py"), f"error: config.{expected}")
