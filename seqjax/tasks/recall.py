"""Recall: name the first symbol of a sequence after many distractors. A toy that tests memory."""

from pathlib import Path

import numpy as np

from seqjax.data.batching import split_rows
from seqjax.errors import UserError
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import functional, one_hot
from seqjax.parameters import check_memory
from seqjax.tasks.base import Predict, Task, load_data, model_options


def make_recall(config, _directory=None) -> Task:
    """The task of a config: random symbols, the first of which is the label."""
    splits = load_data(make_sequences, config.data)
    num_symbols = config.data.num_symbols
    init, bind = functional(
        lambda rngs: Classifier(
            input_size=num_symbols, num_classes=num_symbols, rngs=rngs, **model_options(config)
        )
    )

    def logits_of(params, batch, keys=None):
        return bind(params)(one_hot(batch["symbols"], num_symbols), keys=keys)

    def loss_and_metrics(params, batch, keys):
        logits, labels = logits_of(params, batch, keys), batch["symbols"][:, 0]
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

    return Task(splits, init, loss_and_metrics, logits_of, show_examples)


def make_sequences(
    *, num_symbols: int, num_distractors: int, num_sequences: int, split_seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Rows by split, "symbols" [N, 1 + distractors], a fifth each for validation and test."""
    limits = {"num_symbols": 2, "num_distractors": 0, "num_sequences": 5, "split_seed": 0}
    given = (num_symbols, num_distractors, num_sequences, split_seed)
    for (name, least), value in zip(limits.items(), given, strict=True):
        if value < least:
            raise UserError(f"data.{name}={value} must be at least {least}")
    num_bytes = 8 * num_sequences * (num_distractors + 4)  # drawn, put in order and split
    remedy = "lower data.num_sequences or data.num_distractors"
    check_memory(num_bytes, "to make the sequences", remedy)
    shape = (num_sequences, 1 + num_distractors)
    symbols = np.random.default_rng(split_seed).integers(num_symbols, size=shape, dtype=np.int32)
    fifth = num_sequences // 5
    return split_rows({"symbols": symbols}, {"valid": fifth, "test": fifth}, split_seed)
