"""Part-of-speech tagging: every word of a sentence as subject, verb or object."""

from pathlib import Path

import numpy as np

from seqjax.data.batches import split_rows
from seqjax.data.tagging import TAGS, encode_sentences, load_tagged_sentences, word_ids
from seqjax.layers import functional, one_hot
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, sequence_accuracy
from seqjax.models.tagger import Tagger
from seqjax.pictures import draw_steps
from seqjax.task import Predict, Task
from seqjax.unroll import length_mask


def make_svo_tagging(config) -> Task:
    """The task of a config: one-hot words to tags, padding masked by the sentences' lengths."""
    splits, words = load_split_sentences(**config.data)
    vocab_size = len(words) - 1  # id 0, a word never seen in training, is a row of zeros
    init, bind = functional(
        lambda rngs: Tagger(input_size=vocab_size, num_classes=len(TAGS), rngs=rngs, **config.model)
    )

    def logits_of(params, batch, keys=None):
        xs = one_hot(batch["word"] - 1, vocab_size)
        return bind(params)(xs, lengths=batch["length"], keys=keys)

    def measure(params, batch, keys):
        logits, tags = logits_of(params, batch, keys), batch["tag"]
        weight = batch["weight"][:, None] * length_mask(batch["length"], tags.shape[1])
        return {
            "loss": cross_entropy(logits, tags, weight),
            "accuracy": accuracy(logits, tags, weight),
            "sentence_accuracy": sequence_accuracy(logits, tags, weight),
        }

    def show(predict: Predict, directory: Path) -> list[str]:
        return show_tags(splits, words, predict, directory)

    return Task(splits, init, measure, logits_of, show)


def load_split_sentences(
    *, name: str, held_out: str, valid_share: float, test_share: float, split_seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Rows by split, "word", "tag" [N, T] and "length" [N], and the words by id.

    The lexicon is that of the training sentences; shares and `held_out` as in word completion.
    """
    sentences = load_tagged_sentences(name)
    sizes = {
        s: round(share * len(sentences))
        for s, share in (("valid", valid_share), ("test", test_share))
    }
    numbers = split_rows({"number": np.arange(len(sentences))}, sizes, split_seed)
    parts = {split: [sentences[i] for i in rows["number"]] for split, rows in numbers.items()}
    if held_out:
        parts["held_out"] = load_tagged_sentences(held_out)
    ids = word_ids(parts["train"])
    return {split: encode_sentences(part, ids) for split, part in parts.items()}, ["?", *ids]


def show_tags(splits, words: list[str], predict: Predict, directory: Path) -> list[str]:
    """Up to six sentences of each split with tags and probabilities; draws those of "train"."""
    lines = []
    for split, rows in splits.items():
        lines.append(f"{split}:")
        tables, steps = [], []
        logits = predict(split)[:6]
        for row, length, tags, ids in zip(
            logits, rows["length"], rows["tag"], rows["word"], strict=False
        ):
            odds = np.exp(row[:length] - row[:length].max(-1, keepdims=True))
            odds /= odds.sum(-1, keepdims=True)
            tables.append(odds)
            steps.append(
                [f"{words[i]}/{TAGS[t]}" for i, t in zip(ids, tags[:length], strict=False)]
            )
            said = " ".join(
                f"{words[i]}/{TAGS[best]} {p[best]:.2f}"
                for i, best, p in zip(ids, odds.argmax(-1), odds, strict=False)
            )
            right = int(np.sum(odds.argmax(-1) == tags[:length]))
            lines.append(f"  {said}  ({right} of {length} right)")
        if split == "train":
            draw_steps(tables, steps, TAGS, directory / "steps.png")
    return lines
