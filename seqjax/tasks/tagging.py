"""Tagging: every word of a sentence is a subject, a verb or an object."""

from pathlib import Path

import numpy as np

from seqjax.data.batching import share_sizes, split_rows
from seqjax.data.text_files import (
    TAGS,
    Sentence,
    encode_sentences,
    load_tagged_sentences,
    word_ids,
)
from seqjax.hparams import HParams
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, sequence_accuracy, softmax
from seqjax.models.classifier import Tagger
from seqjax.nn.layers import one_hot
from seqjax.nn.unroll import length_mask
from seqjax.plots import draw_steps
from seqjax.tasks.base import STACK_RATES, Predict, Task, build_model, load_data


def make_svo_tagging(config, _directory=None) -> Task:
    """Returns the task of a config: one-hot words to tags, with padding masked by the lengths."""
    sentences = load_data(load_split_sentences, config)
    ids = word_ids(sentences["train"])
    splits = {split: encode_sentences(rows, ids) for split, rows in sentences.items()}
    vocab_size = len(ids)  # one_hot makes a row of zeros of id 0, an unknown word
    init, bind = build_model(Tagger, config, input_size=vocab_size, num_classes=len(TAGS))

    def logits_of(params, batch, keys=None, rates=None):
        xs = one_hot(batch["word"] - 1, vocab_size)
        return bind(params)(xs, lengths=batch["length"], keys=keys, rates=rates)

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        logits, tags = logits_of(params, batch, keys, hparams.model), batch["tag"]
        weight = batch["weight"][:, None] * length_mask(batch["length"], tags.shape[1])
        return {
            "loss": cross_entropy(logits, tags, weight),
            "accuracy": accuracy(logits, tags, weight),
            "sentence_accuracy": sequence_accuracy(logits, tags, weight),
        }

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        return show_tags(sentences, predict, directory)

    return Task(splits, init, loss_and_metrics, logits_of, show_examples, hparams=STACK_RATES)


def load_split_sentences(
    *,
    name: str,
    held_out: str,
    valid_share: float,
    test_share: float,
    max_megabytes: float,
    split_seed: int,
) -> dict[str, list[Sentence]]:
    """Returns the tagged sentences of each split.

    `name` is a tagged text, of which shares are kept for validation and test. `held_out` is "" or
    names another text, which becomes the split "held_out".
    """
    sentences = load_tagged_sentences(name, max_megabytes)
    sizes = share_sizes(len(sentences), valid=valid_share, test=test_share)
    numbers = split_rows({"number": np.arange(len(sentences))}, sizes, split_seed)
    splits = {split: [sentences[i] for i in rows["number"]] for split, rows in numbers.items()}
    if held_out:
        splits["held_out"] = load_tagged_sentences(held_out, max_megabytes)
    return splits


def show_tags(sentences: dict[str, list[Sentence]], predict: Predict, directory: Path) -> list[str]:
    """Returns up to six sentences of each split with predicted tags; draws those of "train"."""
    lines = []
    for split, rows in sentences.items():
        lines.append(f"{split}:")
        tables = []
        for (words, tags), logits in zip(rows[:6], predict(split), strict=False):
            probs = softmax(logits[: len(words)])
            tables.append(probs)
            best = [TAGS[i] for i in probs.argmax(-1)]
            tagged = zip(words, best, probs.max(-1), strict=True)
            tokens = " ".join(f"{word}/{tag} {p:.2f}" for word, tag, p in tagged)
            num_right = sum(a == b for a, b in zip(best, tags, strict=True))
            lines.append(f"  {tokens}  ({num_right} of {len(words)} right)")
        if split == "train":
            steps = [[f"{w}/{t}" for w, t in zip(*pair, strict=True)] for pair in rows[:6]]
            draw_steps(tables, steps, TAGS, directory / "steps.png")
    return lines
