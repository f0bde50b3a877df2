"""The nearest known text: TF-IDF of character n-grams. Imports nothing of seqjax.

A baseline that a network has to beat, what `:why` shows, and how familiar a question is.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

NGRAMS = (1, 2, 3)


class Match(NamedTuple):
    """Which of the known texts is nearest."""

    index: int
    similarity: float  # cosine, in [0, 1]


class NearestText:
    """Finds the nearest of the given texts; weights are log(1 + count) log((1 + N) / df)."""

    def __init__(self, texts: Sequence[str]):
        counts = [_ngrams(text) for text in texts]
        frequency = Counter(gram for count in counts for gram in count)
        self._rarity = {gram: math.log((1 + len(texts)) / df) for gram, df in frequency.items()}
        self._num_texts = len(texts)
        # For each n-gram the texts that have it, and its weight there.
        index: dict[str, tuple[list[int], list[float]]] = {gram: ([], []) for gram in frequency}
        for number, count in enumerate(counts):
            for gram, weight in self._weights(count).items():
                index[gram][0].append(number)
                index[gram][1].append(weight)
        self._index = {gram: (np.array(i), np.array(w)) for gram, (i, w) in index.items()}

    def __call__(self, text: str, *, but: int = -1) -> Match:
        """The nearest of the texts, the first of equals, leaving out number `but`."""
        scores = np.zeros(self._num_texts)
        for gram, weight in self._weights(_ngrams(text)).items():
            if gram in self._index:
                numbers, weights = self._index[gram]
                scores[numbers] += weight * weights
        if but >= 0:
            scores[but] = -1.0
        best = int(np.argmax(scores))
        return Match(best, float(np.clip(scores[best], 0, 1)))

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        """Weights of norm 1; an n-gram that no text has is as rare as can be."""
        rarest = math.log(1 + self._num_texts)
        weights = {g: math.log1p(n) * self._rarity.get(g, rarest) for g, n in count.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {gram: weight / norm for gram, weight in weights.items()}


@lru_cache(maxsize=1)
def nearest_text(texts: tuple[str, ...]) -> NearestText:
    """The index of these texts, kept: the splits of a run and its replies all ask the same one."""
    return NearestText(texts)


def _ngrams(text: str) -> Counter[str]:
    """The n-grams of the text's words, each within its blanks, without punctuation and case."""
    words = [f" {word} " for word in re.findall(r"\w+", text.lower())]
    return Counter(w[i : i + n] for w in words for n in NGRAMS for i in range(len(w) - n + 1))
