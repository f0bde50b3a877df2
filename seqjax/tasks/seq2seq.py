"""The sequence-to-sequence task: translation, and answers to questions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seqjax.errors import require
from seqjax.hparams import HParams
from seqjax.inference.calibration import save_abstention
from seqjax.inference.retrieval import retrieval_baseline
from seqjax.inference.text_metrics import exact_match, right_replies, signatures, text_metrics
from seqjax.losses import cross_entropy
from seqjax.metrics import Average, accuracy, sequence_accuracy
from seqjax.models.seq2seq import RATES
from seqjax.models.text_to_text import Replies, TextToText
from seqjax.plots import draw_attention, draw_lengths
from seqjax.tasks.base import Predict, Task
from seqjax.tasks.seq2seq_data import Seq2SeqData, load_seq2seq_data

NUM_SHOWN = 6  # pairs of each split
HPARAMS = ("loss.label_smoothing", *(f"model.{name}" for name in RATES))


def make_seq2seq(config, directory: Path | None = None) -> Task:
    """Returns the task of a config, from source texts to target texts."""
    return make_seq2seq_task(load_seq2seq_data(config, directory), config)


def make_seq2seq_task(pairs: Seq2SeqData, config) -> Task:
    """Returns the task of data and a model that are already loaded."""
    text, smoothing = pairs.text, config.loss.label_smoothing
    require("loss.label_smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
    splits = {
        split: {
            "source": text.encode_sources(part.sources),
            "target": text.encode_targets(part.targets),
        }
        for split, part in pairs.splits.items()
    }

    def loss_and_metrics(params, batch, keys=None, step=None, hparams=HParams()):
        logits = text.logits(params, batch, keys, step, hparams.model)
        share = hparams.loss.get("label_smoothing", smoothing)
        is_smoothed = smoothing and step is not None  # else losses could not be compared
        return token_metrics(text, logits, batch, share if is_smoothed else 0.0)

    def corpus_metrics(
        predict: Predict, split: str, means: Mapping[str, float]
    ) -> dict[str, float]:
        shares = {
            "perplexity": float(np.exp(means["cross_entropy"])),
            "padding_share": float(np.mean(splits[split]["target"][:, 1:] == text.target.pad_id)),
        }
        return shares | score_replies(pairs, split, predict(split))

    def show_examples(params, predict: Predict, directory: Path) -> list[str]:
        return show_pairs(pairs, params, predict, directory)

    # Columns may be cropped only where padding is masked and stands behind the text.
    can_crop = text.mask_padding and text.boundaries and text.source_padding == "post"
    lengths = text.lengths(splits["train"]) if can_crop else {}
    return Task(
        splits,
        text.init,
        loss_and_metrics,
        text.replies,
        show_examples,
        "accuracy",
        corpus_metrics,
        pairs.save_fitted,
        lengths,
        HPARAMS,
        pairs,
    )


def token_metrics(
    text: TextToText, logits: Any, batch: Any, smoothing: float | Float[Array, ""]
) -> dict[str, Any]:
    """Returns the loss and accuracies over real tokens, as (sum, weight) by name.

    Where the config reads padding as text, as the tutorials do, "loss" counts padding, and the
    figures that count it are added under names that end in `_padded`.
    """
    labels = batch["target"][:, 1:]
    real = labels != text.target.pad_id
    labels = jnp.maximum(labels - text.first_id, 0)
    everywhere = jnp.broadcast_to(batch["weight"][:, None], labels.shape)
    weight = everywhere * real
    metrics = {
        "loss": cross_entropy(logits, labels, weight, smoothing),
        "cross_entropy": cross_entropy(logits, labels, weight),
        "accuracy": accuracy(logits, labels, weight),
        "sequence_accuracy": sequence_accuracy(logits, labels, weight),
    }
    if not text.mask_padding:
        padded = cross_entropy(logits, labels, everywhere, smoothing)
        if not text.boundaries:  # tutorial R4: padding adds 0 to the sum, 1 to the weight
            padded = Average(metrics["loss"].total, padded.weight)
        metrics["loss"] = metrics["loss_padded"] = padded
        metrics["accuracy_padded"] = accuracy(logits, labels, everywhere)
    return metrics


def score_replies(pairs: Seq2SeqData, split: str, replies: Replies) -> dict[str, float]:
    """Returns metrics of a split's replies as texts, and of two baselines except on "train"."""
    text, data, train = pairs.text, pairs.splits[split], pairs.splits["train"]

    def share_right(texts: Sequence[str]) -> float:
        if not data.labels:
            return exact_match(texts, data.targets)
        return float(np.mean(right_replies(texts, data, pairs.answers)))

    texts = [text.target.decode(row) for row in replies.tokens]
    num_unknown, num_tokens = text.source.count_unknown(data.sources)
    scores = text_metrics(texts, data.targets) | {
        "finished": float(np.mean(replies.finished)),
        "oov_rate": float(np.float32(num_unknown) / np.float32(max(num_tokens, 1))),
    }
    metric = "intent_accuracy" if data.labels else "exact_match"
    scores[metric] = share_right(texts)
    if split != "train":
        nearest = retrieval_baseline(tuple(train.sources))
        [(frequent, _)] = Counter(train.targets).most_common(1)
        scores[f"most_frequent_{metric}"] = share_right([frequent] * len(texts))
        scores[f"nearest_{metric}"] = share_right(
            [train.targets[nearest(source).index] for source in data.sources]
        )
    return scores


def show_pairs(pairs: Seq2SeqData, params, predict: Predict, directory: Path) -> list[str]:
    """Returns lines with some replies of each split and those of `show_answers`; draws lengths."""
    lines = [signatures()]
    for name, data in pairs.splits.items():
        lines.append(f"{name}:")
        rows = zip(data.sources[:NUM_SHOWN], data.targets, predict(name).tokens, strict=False)
        for source, target, tokens in rows:
            reply = pairs.text.target.decode(tokens)
            lines.append(
                f"  {source} -> {reply}" + ("" if reply == target else f"  (not: {target})")
            )
    bounds = pairs.text.max_source_length, pairs.text.max_target_length
    draw_lengths(*token_counts(pairs), *bounds, directory / "lengths.png")
    if pairs.text.boundaries:
        lines += show_answers(pairs, params, predict, directory)
    return lines


def show_answers(pairs: Seq2SeqData, params, predict: Predict, directory: Path) -> list[str]:
    """Returns lines with answers to the questions of `data.ask`, and draws attention weights.

    Calibrates the confidence below which a chat abstains, on "valid" if there is one.
    """
    responder = pairs.responder(jax.device_get(params))
    split = "valid" if "valid" in pairs.splits else "train"
    abstention = responder.calibrate(pairs.splits[split], predict(split))
    save_abstention(abstention, directory)
    lines = [f"a chat gives answers of confidence {abstention.threshold:.2f} or more"]
    for question in pairs.ask:
        answer = responder.answer(question)
        lines.append(
            f"  {question} -> {answer.text}  (score {answer.score:.2f} nats, confidence "
            f"{answer.confidence:.2f}{', not given' if answer.abstains else ''})"
        )
    shown = pairs.splits["test" if "test" in pairs.splits else "train"].sources[:NUM_SHOWN]
    maps = [map_ for map_ in map(responder.explain, shown) if map_ and map_.source]
    if maps:
        draw_attention(maps, directory / "attention.png")
    return lines


def token_counts(pairs: Seq2SeqData) -> tuple[list[int], list[int]]:
    """Returns the numbers of tokens of the sources and of the targets of all splits."""
    text, splits = pairs.text, pairs.splits.values()
    sources = [len(text.source.encode(source)) for split in splits for source in split.sources]
    targets = [len(text.target.encode(target)) for split in splits for target in split.targets]
    return sources, targets
