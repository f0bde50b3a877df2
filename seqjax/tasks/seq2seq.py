"""Text to text: translations, and questions with their answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.errors import UserError
from seqjax.inference.calibration import save_abstention
from seqjax.inference.retrieval import nearest_text
from seqjax.inference.text_metrics import exact_match, right_replies, signatures, text_metrics
from seqjax.losses import cross_entropy
from seqjax.metrics import Average, accuracy, sequence_accuracy
from seqjax.models.text_to_text import Replies, TextToText
from seqjax.plots import draw_attention, draw_lengths
from seqjax.tasks.base import Predict, Task
from seqjax.tasks.seq2seq_data import Seq2SeqData, load_seq2seq_data

NUM_SHOWN = 6


def make_seq2seq(config, directory: Path | None = None) -> Task:
    """The task of a config: source texts to target texts."""
    return make_seq2seq_task(load_seq2seq_data(config, directory), config)


def make_seq2seq_task(pairs: Seq2SeqData, config) -> Task:
    """The task of data and model that are there already."""
    text, smoothing = pairs.text, config.loss.label_smoothing
    if not 0 <= smoothing < 1:
        raise UserError(f"loss.label_smoothing={smoothing} must lie in [0, 1)")
    splits = {
        split: {
            "source": text.encode_sources(part.sources),
            "target": text.encode_targets(part.targets),
        }
        for split, part in pairs.parts.items()
    }

    def loss_and_metrics(params, batch, keys):
        return measure_tokens(text, text.logits(params, batch, keys), batch, smoothing)

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

    # Where padding is read as if it were text, or stands in front, no column is to be cut.
    can_cut = text.mask_padding and text.boundaries and text.source_padding == "post"
    lengths = text.lengths(splits["train"]) if can_cut else {}
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
    )


def measure_tokens(text: TextToText, logits: Any, batch: Any, smoothing: float) -> dict[str, Any]:
    """Loss and accuracies over real tokens; beside them those that count padding, where the
    config trains as the tutorials do: then "loss" is theirs too."""
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
        if not text.boundaries:  # R4: a label of zeros costs nothing, but counts
            padded = Average(metrics["loss"].total, padded.weight)
        metrics["loss"] = metrics["loss_padded"] = padded
        metrics["accuracy_padded"] = accuracy(logits, labels, everywhere)
    return metrics


def score_replies(pairs: Seq2SeqData, split: str, replies: Replies) -> dict[str, float]:
    """Figures of the replies as texts; off the training texts also those of two baselines."""
    text, part, train = pairs.text, pairs.parts[split], pairs.parts["train"]

    def right(said: Sequence[str]) -> float:
        if not part.labels:
            return exact_match(said, part.targets)
        return float(np.mean(right_replies(said, part, pairs.answers)))

    said = [text.target.decode(row) for row in replies.tokens]
    num_unknown, num_pieces = text.source.count_unknown(part.sources)
    scores = text_metrics(said, part.targets) | {
        "finished": float(np.mean(replies.finished)),
        "oov_rate": float(np.float32(num_unknown) / np.float32(max(num_pieces, 1))),
    }
    what = "intent_accuracy" if part.labels else "exact_match"
    scores[what] = right(said)
    if split != "train":
        nearest = nearest_text(tuple(train.sources))
        [(frequent, _)] = Counter(train.targets).most_common(1)
        scores[f"most_frequent_{what}"] = right([frequent] * len(said))
        scores[f"nearest_{what}"] = right(
            [train.targets[nearest(source).index] for source in part.sources]
        )
    return scores


def show_pairs(pairs: Seq2SeqData, params, predict: Predict, directory: Path) -> list[str]:
    """Some replies of each split; then, of a model that can answer, what `show_answers` does."""
    lines = [signatures()]
    for name, part in pairs.parts.items():
        lines.append(f"{name}:")
        rows = zip(part.sources[:NUM_SHOWN], part.targets, predict(name).tokens, strict=False)
        for source, target, tokens in rows:
            said = pairs.text.target.decode(tokens)
            lines.append(f"  {source} -> {said}" + ("" if said == target else f"  (not: {target})"))
    bounds = pairs.text.max_source_length, pairs.text.max_target_length
    draw_lengths(*token_counts(pairs), *bounds, directory / "lengths.png")
    if pairs.text.boundaries:
        lines += show_answers(pairs, params, predict, directory)
    return lines


def show_answers(pairs: Seq2SeqData, params, predict: Predict, directory: Path) -> list[str]:
    """Calibrates when to abstain, on the validation texts if there are any; answers what the
    config asks, with scores; draws where attention looked."""
    responder = pairs.responder(jax.device_get(params))
    split = "valid" if "valid" in pairs.parts else "train"
    abstention = responder.calibrate(pairs.parts[split], predict(split))
    save_abstention(abstention, directory)
    lines = [f"a chat gives answers of confidence {abstention.threshold:.2f} or more"]
    for question in pairs.ask:
        answer = responder.answer(question)
        lines.append(
            f"  {question} -> {answer.text}  (score {answer.score:.2f} nats, confidence "
            f"{answer.confidence:.2f}{', not given' if answer.abstains else ''})"
        )
    shown = pairs.parts["test" if "test" in pairs.parts else "train"].sources[:NUM_SHOWN]
    looks = [look for look in map(responder.explain, shown) if look and look.source]
    if looks:
        draw_attention(looks, directory / "attention.png")
    return lines


def token_counts(pairs: Seq2SeqData) -> tuple[list[int], list[int]]:
    """How many tokens the sources and the targets of all splits have."""
    text, parts = pairs.text, pairs.parts.values()
    sources = [len(text.source.encode(source)) for part in parts for source in part.sources]
    return sources, [len(text.target.encode(target)) for part in parts for target in part.targets]
