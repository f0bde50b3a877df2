"""Sentences whose words are tagged subject, verb or object, and their encoding."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seqjax.data.lines import read_lines
from seqjax.errors import UserError
from seqjax.files import MAX_TEXT_MEGABYTES

TAGS = ("S", "V", "O")

Sentence = tuple[tuple[str, ...], tuple[str, ...]]  # words, tags


def load_tagged_sentences(name: str, max_megabytes: float = MAX_TEXT_MEGABYTES) -> list[Sentence]:
    """(words, tags) of each sentence of the shipped "tutorial" or "everyday" or of a .txt file.

    A file holds one sentence a line, tokens word/TAG separated by blanks.
    """
    form = f"word/TAG with a TAG of {', '.join(TAGS)}, such as cat/S"
    lines = f"tokens {form}, a sentence a line"
    sentences = []
    for place, line in read_lines(name, "svo", "tagged text", lines, max_megabytes):
        words, tags = [], []
        for token in line.split():
            word, _, tag = token.rpartition("/")
            if not word or tag not in TAGS:
                raise UserError(f"{place}: token {token!r} is not {form}")
            words.append(word)
            tags.append(tag)
        sentences.append((tuple(words), tuple(tags)))
    return sentences


def word_ids(sentences: Iterable[Sentence]) -> dict[str, int]:
    """The id of each word of the sentences, in sorted order from 1; 0 is left for unknown words."""
    lexicon = sorted({word for words, _ in sentences for word in words})
    return {word: number for number, word in enumerate(lexicon, start=1)}


def encode_sentences(
    sentences: Sequence[Sentence], ids: Mapping[str, int], max_length: int | None = None
) -> dict[str, np.ndarray]:
    """int32 "word" and "tag" [N, T], zero after each sentence's end, and "length" [N].

    T is `max_length` or that of the longest sentence. Words not in `ids` are 0.
    """
    length = np.array([len(words) for words, _ in sentences], np.int32)
    width = length.max(initial=0) if max_length is None else max_length
    word = np.zeros((len(sentences), width), np.int32)
    tag = np.zeros_like(word)
    for row, (words, tags) in enumerate(sentences):
        if len(words) > width:
            raise UserError(
                f"sentence {row + 1}, {' '.join(words)!r}, has {len(words)} words but max_length "
                f"is {width}; shorten the sentence or raise max_length"
            )
        word[row, : len(words)] = [ids.get(each, 0) for each in words]
        tag[row, : len(words)] = [TAGS.index(each) for each in tags]
    return {"word": word, "tag": tag, "length": length}
