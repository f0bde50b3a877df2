"""Figures of whole texts, on the host: exact match, BLEU, chrF, distinct n-grams, right intents."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from seqjax.data.parallel_text import Split

Answers = Mapping[str, frozenset[str]]  # the right answers by intent

# Korean words carry their particles, so words are no fair unit: BLEU counts characters.
_BLEU, _CHRF = BLEU(tokenize="char", effective_order=False), CHRF()


def text_metrics(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact match in [0, 1], BLEU of characters and chrF in [0, 100], distinct-1 and -2."""
    return {
        "exact_match": exact_match(replies, references),
        "bleu": _BLEU.corpus_score(list(replies), [list(references)]).score,
        "chrf": _CHRF.corpus_score(list(replies), [list(references)]).score,
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
    }


def exact_match(replies: Sequence[str], references: Sequence[str]) -> float:
    """How many replies are the very reference, in [0, 1]."""
    return sum(a == b for a, b in zip(replies, references, strict=True)) / len(replies)


def signatures() -> str:
    """How sacrebleu computed BLEU and chrF, for others to repeat."""
    for metric in (_BLEU, _CHRF):
        metric.corpus_score(["a"], [["a"]])  # before it has scored, a metric has no signature
    return f"BLEU {_BLEU.get_signature()}, chrF {_CHRF.get_signature()}"


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams of words (Li et al., 2016); 0 without any."""
    grams = []
    for text in texts:
        words = text.split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0


def answers_by_intent(parts: Iterable[Split]) -> Answers:
    """The answers that each intent has in any part; none without labels."""
    found = defaultdict(set)
    for part in parts:
        for intent, answer in zip(part.labels, part.targets, strict=bool(part.labels)):
            found[intent].add(answer)
    return {intent: frozenset(texts) for intent, texts in found.items()}


def right_replies(replies: Sequence[str], part: Split, answers: Answers) -> np.ndarray:
    """Which replies `[N]` to a labelled part are an answer of their source's intent.

    Letters and digits alone decide: vocabularies without blanks or punctuation can be right too.
    """
    known = {intent: {_letters(text) for text in texts} for intent, texts in answers.items()}
    pairs = zip(replies, part.labels, strict=True)
    return np.array([_letters(reply) in known[label] for reply, label in pairs], bool)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()
