"""The retrieval baseline: finds the most similar training text by TF-IDF of character n-grams.

A network has to beat its answers; `:why` shows its match; calibration uses its similarity.
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
    """The most similar text."""

    index: int
    similarity: float  # cosine, in [0, 1]


class RetrievalBaseline:
    """Finds the most similar of some texts; weights are log(1 + count) log((1 + N) / df)."""

    def __init__(self, texts: Sequence[str]):
        counts = [_ngrams(text) for text in texts]
        document_frequency = Counter(gram for count in counts for gram in count)
        self._num_texts = len(texts)
        self._idf = {
            gram: math.log((1 + len(texts)) / df) for gram, df in document_frequency.items()
        }
        # For each n-gram: the numbers of the texts that contain it, and its weights in them.
        index: dict[str, tuple[list[int], list[float]]] = {gram: ([], []) for gram in self._idf}
        for number, count in enumerate(counts):
            for gram, weight in self._weights(count).items():
                index[gram][0].append(number)
                index[gram][1].append(weight)
        self._index = {gram: (np.array(i), np.array(w)) for gram, (i, w) in index.items()}

    def __call__(self, text: str) -> Match:
        """Returns the text that is most similar to `text`; of several, the first one."""
        scores = np.zeros(self._num_texts)
        for gram, weight in self._weights(_ngrams(text)).items():
            if gram in self._index:
                numbers, weights = self._index[gram]
                scores[numbers] += weight * weights
        best = int(np.argmax(scores))
        return Match(best, float(np.clip(scores[best], 0, 1)))

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        """Returns weights of norm 1; an n-gram that none of the texts has counts as the rarest."""
        highest = math.log(1 + self._num_texts)
        weights = {g: math.log1p(n) * self._idf.get(g, highest) for g, n in count.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {gram: weight / norm for gram, weight in weights.items()}


@lru_cache(maxsize=1)
def retrieval_baseline(texts: tuple[str, ...]) -> RetrievalBaseline:
    """Returns the baseline of these texts, cached because all splits search the same texts."""
    return RetrievalBaseline(texts)


def _ngrams(text: str) -> Counter[str]:
    """Returns the n-grams of words with a blank on both sides, without punctuation and case."""
    words = [f" {word} " for word in re.findall(r"\w+", text.lower())]
    return Counter(w[i : i + n] for w in words for n in NGRAMS for i in range(len(w) - n + 1))
