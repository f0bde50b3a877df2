"""Recall, a toy task that tests memory: name the first symbol after many distractors."""

from pathlib import Path

import numpy as np

from seqjax.data.batching import split_rows
from seqjax.errors import require
from seqjax.hparams import HParams
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import one_hot
from seqjax.parameters import check_memory
from seqjax.tasks.base import STACK_RATES, Predict, Task, build_model, load_data


def make_recall(config, _directory=None) -> Task:
    """Returns the task of a config: sequences of random symbols, labelled by their first symbol."""
    splits = load_data(make_sequences, config)
    num_symbols = config.data.num_symbols
    init, bind = build_model(Classifier, config, input_size=num_symbols, num_classes=num_symbols)

    def logits_of(params, batch, keys=None, rates=None):
        xs = one_hot(batch["symbols"], num_symbols)
        return bind(params)(xs, keys=keys, rates=rates)

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        logits, labels = logits_of(params, batch, keys, hparams.model), batch["symbols"][:, 0]
        return {
            "loss": cross_entropy(logits, labels, batch["weight"]),
            "accuracy": accuracy(logits, labels, batch["weight"]),
        }

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        answers = predict("test")[:5].argmax(-1)
        return [
            f"{' '.join(map(str, row[:8]))} ... -> {answer}"
            for row, answer in zip(splits["test"]["symbols"], answers, strict=False)
        ]

    return Task(splits, init, loss_and_metrics, logits_of, show_examples, hparams=STACK_RATES)


def make_sequences(
    *, num_symbols: int, num_distractors: int, num_sequences: int, split_seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the rows of each split, "symbols" int32 [N, 1 + distractors].

    Validation and test get a fifth of the sequences each. Raises UserError for a number out of its
    range and for more sequences than fit into memory.
    """
    require("data.num_symbols", num_symbols, num_symbols >= 2, "at least 2")
    require("data.num_distractors", num_distractors, num_distractors >= 0, "at least 0")
    require("data.num_sequences", num_sequences, num_sequences >= 5, "at least 5")
    require("data.split_seed", split_seed, split_seed >= 0, "at least 0")
    num_bytes = 8 * num_sequences * (num_distractors + 4)  # the symbols, an order and the splits
    remedy = "lower data.num_sequences or data.num_distractors"
    check_memory(num_bytes, "to make the sequences", remedy)
    shape = (num_sequences, 1 + num_distractors)
    symbols = np.random.default_rng(split_seed).integers(num_symbols, size=shape, dtype=np.int32)
    fifth = num_sequences // 5
    return split_rows({"symbols": symbols}, {"valid": fifth, "test": fifth}, split_seed)
