"""Word completion: predicts the last letter of a word from the letters before it."""

from pathlib import Path

import numpy as np

from seqjax.data.batching import share_sizes, split_rows
from seqjax.data.text_files import encode_words, load_words
from seqjax.errors import UserError
from seqjax.hparams import HParams
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, softmax, top_k_accuracy
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import one_hot
from seqjax.plots import draw_steps
from seqjax.tasks.base import STACK_RATES, Predict, Task, build_model, load_data

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_word_completion(config, _directory=None) -> Task:
    """Returns the task of a config: one-hot letters to the letter that completes the word."""
    splits = load_data(load_split_words, config)
    init, bind = build_model(Classifier, config, input_size=len(LETTERS), num_classes=len(LETTERS))

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        letters, target, weight = batch["letters"], batch["target"], batch["weight"]
        logits = bind(params)(one_hot(letters, len(LETTERS)), keys=keys, rates=hparams.model)
        return {
            "loss": cross_entropy(logits, target, weight),
            "accuracy": accuracy(logits, target, weight),
            "top5_accuracy": top_k_accuracy(logits, target, weight, k=5),
        }

    def predict(params, batch):
        return bind(params).every_step(one_hot(batch["letters"], len(LETTERS)))

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        return show_completions(splits, predict, directory)

    return Task(splits, init, loss_and_metrics, predict, show_examples, hparams=STACK_RATES)


def load_split_words(
    *,
    name: str,
    held_out: str,
    valid_share: float,
    test_share: float,
    max_megabytes: float,
    split_seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the rows of each split, "letters" int32 [N, L-1] and "target" int32 [N].

    `name` is a word list, of which shares are kept for validation and test. `held_out` is "" or
    names another list; its words that are not in the first list become the split "held_out".
    Raises UserError if there are no such words or if they have another length.
    """
    words = load_words(name, max_megabytes)
    sizes = share_sizes(len(words), valid=valid_share, test=test_share)
    splits = split_rows(_rows(words), sizes, split_seed)
    if held_out:
        known = set(words)
        others = [word for word in load_words(held_out, max_megabytes) if word not in known]
        if not others or len(others[0]) != len(words[0]):
            raise UserError(
                f"data.held_out={held_out!r} has no other words as long as {words[0]!r}"
            )
        splits["held_out"] = _rows(others)
    return splits


def _rows(words: list[str]) -> dict[str, np.ndarray]:
    letters = encode_words(words)
    return {"letters": letters[:, :-1], "target": letters[:, -1]}


def show_completions(splits, predict: Predict, directory: Path) -> list[str]:
    """Returns up to ten words of each split with predicted letters; draws those of "train"."""
    lines = []
    for split, rows in splits.items():
        probs = softmax(predict(split)[:10])
        prefixes = ["".join(LETTERS[i] for i in row) for row in rows["letters"][:10]]
        lines.append(f"{split}:")
        for prefix, target, row in zip(prefixes, rows["target"], probs, strict=False):
            best = np.argsort(-row[-1])[:3]
            verdict = "right" if best[0] == target else f"wrong, {prefix}{LETTERS[target]}"
            guesses = ", ".join(f"{LETTERS[i]} {row[-1, i]:.3f}" for i in best)
            lines.append(f"  {prefix}_ -> {prefix}{LETTERS[best[0]]}  ({guesses})  {verdict}")
        if split == "train":
            steps = [[f"{p[: t + 1]}_" for t in range(len(p))] for p in prefixes]
            draw_steps(list(probs), steps, LETTERS, directory / "steps.png")
    return lines
