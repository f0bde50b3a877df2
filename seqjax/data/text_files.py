"""Texts that ship with the package or belong to the user: lines, words, and tagged sentences."""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from seqjax.errors import UserError, unknown_name
from seqjax.files import MAX_TEXT_MEGABYTES, check_line, read_text_file


def read_lines(
    name: str, folder: str, what: str, form: str, max_megabytes: float
) -> list[tuple[str, str]]:
    """Each non-blank line, stripped, after its place ("my.txt, line 3") for use in messages.

    `name` is the stem of a text in corpora/`folder` or the path of a .txt file. `what` says what
    the text is and `form` what its lines must be, both for messages. Raises UserError for a file
    that is not there, is larger than `max_megabytes`, or holds no such text.
    """
    if name.endswith(".txt"):
        source = Path(name)
    else:
        corpus = files("seqjax.data") / "corpora" / folder
        stems = [path.name[:-4] for path in corpus.iterdir() if path.name.endswith(".txt")]
        if name not in stems:
            raise unknown_name(what, name, [*stems, "<path>.txt"])
        source = Path(str(corpus / f"{name}.txt"))
    try:
        data = read_text_file(source, max_megabytes)
    except OSError as error:
        message = f"cannot read the {what} {name}: {error.strerror}; give the path of a text file"
        raise UserError(message) from error
    lines = []
    # Bytes are split before they are decoded, so that a bad byte has a line number.
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        place = f"{name}, line {number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text; save the file as UTF-8") from error
        check_line(place, line)
        if line:
            lines.append((place, line))
    if not lines:
        raise UserError(f"{name}, line 1: the {what} is empty; write {form}")
    return lines


def load_words(name: str, max_megabytes: float = MAX_TEXT_MEGABYTES) -> list[str]:
    """The words of the shipped list "tutorial" or "common", or of the .txt file at that path.

    A file holds one word a line, all distinct, of one length and of the letters a to z only.
    """
    lines = read_lines(name, "words", "word list", "one lowercase word a line", max_megabytes)
    length = len(lines[0][1])
    places: dict[str, str] = {}
    for place, word in lines:
        _check_word(place, word, length)
        if word in places:
            raise UserError(f"{place}: {word!r} is also at {places[word]}; remove one of them")
        places[word] = place
    return list(places)


def encode_words(words: Sequence[str]) -> np.ndarray:
    """int32 [words, letters], a=0 to z=25, of words of one length."""
    for number, word in enumerate(words, start=1):
        _check_word(f"word {number}", word, len(words[0]))
    return np.array([[ord(letter) - ord("a") for letter in word] for word in words], np.int32)


def _check_word(place: str, word: str, length: int) -> None:
    """Nothing for a word of `length` letters a to z, else a UserError that names the place."""
    if not re.fullmatch("[a-z]{2,}", word):
        raise UserError(f"{place}: {word!r} is not one word of two or more letters a to z")
    if len(word) != length:
        raise UserError(
            f"{place}: {word!r} has {len(word)} letters but the first word has {length}; "
            "use words of one length"
        )


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
