"""Metrics of whole texts, on the host: exact match, BLEU, chrF, distinct n-grams, right intents."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from seqjax.data.parallel_text import Split

Answers = Mapping[str, frozenset[str]]  # the right answers by intent

# BLEU counts characters, because Korean words include their particles.
_BLEU, _CHRF = BLEU(tokenize="char", effective_order=False), CHRF()


def text_metrics(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Returns exact match, BLEU of characters, chrF, distinct-1 and distinct-2.

    BLEU and chrF are in [0, 100], the others in [0, 1]. Raises ValueError unless there are as many
    replies as references.
    """
    return {
        "exact_match": exact_match(replies, references),
        "bleu": _BLEU.corpus_score(list(replies), [list(references)]).score,
        "chrf": _CHRF.corpus_score(list(replies), [list(references)]).score,
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
    }


def exact_match(replies: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of replies that equal their reference, in [0, 1]."""
    return sum(a == b for a, b in zip(replies, references, strict=True)) / len(replies)


def signatures() -> str:
    """Returns sacrebleu's signatures of BLEU and chrF, with which others can repeat them."""
    for metric in (_BLEU, _CHRF):
        metric.corpus_score(["a"], [["a"]])  # a metric has no signature before it has scored
    return f"BLEU {_BLEU.get_signature()}, chrF {_CHRF.get_signature()}"


def distinct(texts: Iterable[str], n: int) -> float:
    """Returns the share of distinct n-grams among the n-grams of words (Li et al., 2016).

    It is 0 if there are no n-grams.
    """
    grams = []
    for text in texts:
        words = text.split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0


def answers_by_intent(splits: Iterable[Split]) -> Answers:
    """Returns the answers that each intent has in any of the splits; empty without labels."""
    answers = defaultdict(set)
    for split in splits:
        for intent, answer in zip(split.labels, split.targets, strict=bool(split.labels)):
            answers[intent].add(answer)
    return {intent: frozenset(texts) for intent, texts in answers.items()}


def right_replies(replies: Sequence[str], split: Split, answers: Answers) -> np.ndarray:
    """Returns bool `[N]`: True for a reply that is an answer to the intent of its source.

    Compares letters and digits only, because some vocabularies have no blanks or punctuation.
    """
    known = {intent: {_letters(text) for text in texts} for intent, texts in answers.items()}
    pairs = zip(replies, split.labels, strict=True)
    return np.array([_letters(reply) in known[intent] for reply, intent in pairs], bool)


def _letters(text: str) -> str:
    """Returns the letters and digits of the text, in lower case."""
    return re.sub(r"[\W_]", "", text).lower()
