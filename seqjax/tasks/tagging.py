"""Part-of-speech tagging: every word of a sentence as subject, verb or object."""

from pathlib import Path

import numpy as np

from seqjax.data.batching import split_rows
from seqjax.data.text_files import (
    TAGS,
    Sentence,
    encode_sentences,
    load_tagged_sentences,
    word_ids,
)
from seqjax.losses import cross_entropy
from seqjax.metrics import accuracy, sequence_accuracy, softmax
from seqjax.models.classifier import Tagger
from seqjax.nn.layers import functional, one_hot
from seqjax.nn.unroll import length_mask
from seqjax.plots import draw_steps
from seqjax.tasks.base import Predict, Task, load_data, model_options, share_sizes


def make_svo_tagging(config, _directory=None) -> Task:
    """The task of a config: one-hot words to tags, padding masked by the sentences' lengths."""
    sentences = load_data(load_split_sentences, config.data)
    ids = word_ids(sentences["train"])
    splits = {split: encode_sentences(part, ids) for split, part in sentences.items()}
    vocab_size = len(ids)  # id 0, a word never seen in training, becomes a row of zeros
    init, bind = functional(
        lambda rngs: Tagger(
            input_size=vocab_size, num_classes=len(TAGS), rngs=rngs, **model_options(config)
        )
    )

    def logits_of(params, batch, keys=None):
        xs = one_hot(batch["word"] - 1, vocab_size)
        return bind(params)(xs, lengths=batch["length"], keys=keys)

    def loss_and_metrics(params, batch, keys):
        logits, tags = logits_of(params, batch, keys), batch["tag"]
        weight = batch["weight"][:, None] * length_mask(batch["length"], tags.shape[1])
        return {
            "loss": cross_entropy(logits, tags, weight),
            "accuracy": accuracy(logits, tags, weight),
            "sentence_accuracy": sequence_accuracy(logits, tags, weight),
        }

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        return show_tags(sentences, predict, directory)

    return Task(splits, init, loss_and_metrics, logits_of, show_examples)


def load_split_sentences(
    *,
    name: str,
    held_out: str,
    valid_share: float,
    test_share: float,
    max_megabytes: float,
    split_seed: int,
) -> dict[str, list[Sentence]]:
    """Tagged sentences by split; shares and `held_out` are as in word completion."""
    sentences = load_tagged_sentences(name, max_megabytes)
    sizes = share_sizes(len(sentences), valid=valid_share, test=test_share)
    numbers = split_rows({"number": np.arange(len(sentences))}, sizes, split_seed)
    parts = {split: [sentences[i] for i in rows["number"]] for split, rows in numbers.items()}
    if held_out:
        parts["held_out"] = load_tagged_sentences(held_out, max_megabytes)
    return parts


def show_tags(sentences: dict[str, list[Sentence]], predict: Predict, directory: Path) -> list[str]:
    """Up to six sentences of each split with tags and probabilities; draws those of "train"."""
    lines = []
    for split, part in sentences.items():
        lines.append(f"{split}:")
        tables = []
        for (words, tags), logits in zip(part[:6], predict(split), strict=False):
            odds = softmax(logits[: len(words)])
            tables.append(odds)
            best = [TAGS[i] for i in odds.argmax(-1)]
            said = [f"{w}/{t} {p:.2f}" for w, t, p in zip(words, best, odds.max(-1), strict=True)]
            right = sum(a == b for a, b in zip(best, tags, strict=True))
            lines.append(f"  {' '.join(said)}  ({right} of {len(words)} right)")
        if split == "train":
            steps = [[f"{w}/{t}" for w, t in zip(*pair, strict=True)] for pair in part[:6]]
            draw_steps(tables, steps, TAGS, directory / "steps.png")
    return lines
