"""Reads text files that ship with the package or belong to the user: lines, words, and tagged
sentences."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from seqjax.errors import UserError, unknown_name
from seqjax.files import MAX_TEXT_MEGABYTES, check_line, read_text_file

# Control characters other than tabs and line ends do not belong in a text. Bytes that cannot be
# decoded arrive as lone surrogates.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]|(?P<undecodable>[\ud800-\udfff])")


def read_lines(
    name: str, path: Path, what: str, remedy: str, max_megabytes: float, encoding: str = ""
) -> Iterator[str]:
    """Yields the lines of a text file, in which every line end has become "\\n".

    An empty `encoding` is UTF-8. For messages, `name` is how the user calls the file, `what` is
    what it holds, and `remedy` says what to do if it cannot be read. Raises UserError for a file
    that cannot be read or is larger than `max_megabytes`, and, with the line's number, for a line
    that is too long, that cannot be decoded or that holds control characters.
    """
    try:
        # A byte-order mark, which many editors write, is not part of the text.
        is_utf_8 = codecs.lookup(encoding or "utf-8").name == "utf-8"
        data = io.BytesIO(read_text_file(path, max_megabytes))
        codec = "utf-8-sig" if is_utf_8 else encoding
        with io.TextIOWrapper(data, encoding=codec, errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                place = f"{name}, line {number}"
                check_line(place, line.rstrip("\n"))
                check_characters(place, line, encoding)
                yield line
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read the {what} {name}: {reason}; {remedy}") from error
    except (LookupError, UnicodeError) as error:
        remedy = "give the file's encoding, such as utf-8 or cp949"
        raise UserError(f"{name}: {error}; {remedy}") from error


def check_characters(place: str, text: str, encoding: str) -> None:
    """Raises UserError for a text with control characters or undecodable bytes.

    `encoding` is the one that the user has chosen, or "" where there is no choice.
    """
    unfit = _UNFIT.search(text)
    if unfit and unfit["undecodable"]:
        remedy = " or give its encoding, such as cp949" if encoding else ""
        raise UserError(f"{place}: not {encoding or 'UTF-8'} text; save the file as UTF-8{remedy}")
    if unfit:
        raise UserError(
            f"{place}: control character U+{ord(unfit[0]):04X}; remove it, or correct the encoding"
        )


def _non_blank_lines(
    name: str, folder: str, what: str, form: str, max_megabytes: float
) -> list[tuple[str, str]]:
    """Returns (place, line) for each non-blank line, as in ("my.txt, line 3", "cat").

    Lines are stripped; places are for messages. `name` is the stem of a text in corpora/`folder` or
    the path of a .txt file. For messages, `what` says what the text is and `form` what its lines
    must be.
    """
    if name.endswith(".txt"):
        path = Path(name)
    else:
        corpus = files("seqjax.data") / "corpora" / folder
        stems = [file.name[:-4] for file in corpus.iterdir() if file.name.endswith(".txt")]
        if name not in stems:
            raise unknown_name(what, name, [*stems, "<path>.txt"])
        path = Path(str(corpus / f"{name}.txt"))
    lines = read_lines(name, path, what, "give the path of a text file", max_megabytes)
    non_blank = [
        (f"{name}, line {number}", line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not non_blank:
        raise UserError(f"{name}, line 1: the {what} is empty; write {form}")
    return non_blank


def load_words(name: str, max_megabytes: float = MAX_TEXT_MEGABYTES) -> list[str]:
    """Returns the words of the shipped list "tutorial" or "common", or of a .txt file.

    A file must hold one word per line: distinct words of one length, of the letters a to z only.
    """
    form = "one lowercase word per line"
    lines = _non_blank_lines(name, "words", "word list", form, max_megabytes)
    length = len(lines[0][1])
    places: dict[str, str] = {}
    for place, word in lines:
        _check_word(place, word, length)
        if word in places:
            raise UserError(f"{place}: {word!r} is also at {places[word]}; remove one of them")
        places[word] = place
    return list(places)


def encode_words(words: Sequence[str]) -> np.ndarray:
    """Returns int32 [words, letters], a=0 to z=25; raises UserError unless all words fit."""
    for number, word in enumerate(words, start=1):
        _check_word(f"word {number}", word, len(words[0]))
    return np.array([[ord(letter) - ord("a") for letter in word] for word in words], np.int32)


def _check_word(place: str, word: str, length: int) -> None:
    """Raises UserError, with the place, unless the word is `length` letters a to z."""
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
    """Returns (words, tags) for each sentence of the shipped "tutorial" or "everyday" or a file.

    A .txt file must hold one sentence per line, as word/TAG tokens separated by blanks.
    """
    token_form = f"word/TAG with a TAG of {', '.join(TAGS)}, such as cat/S"
    form = f"tokens {token_form}, one sentence per line"
    sentences = []
    for place, line in _non_blank_lines(name, "svo", "tagged text", form, max_megabytes):
        words, tags = [], []
        for token in line.split():
            word, _, tag = token.rpartition("/")
            if not word or tag not in TAGS:
                raise UserError(f"{place}: token {token!r} is not {token_form}")
            words.append(word)
            tags.append(tag)
        sentences.append((tuple(words), tuple(tags)))
    return sentences


def word_ids(sentences: Iterable[Sentence]) -> dict[str, int]:
    """Returns the id of each word, from 1 in sorted order; 0 is left to unknown words."""
    lexicon = sorted({word for words, _ in sentences for word in words})
    return {word: number for number, word in enumerate(lexicon, start=1)}


def encode_sentences(
    sentences: Sequence[Sentence], ids: Mapping[str, int], max_length: int | None = None
) -> dict[str, np.ndarray]:
    """Returns int32 "word" and "tag" [N, T], which are 0 after each sentence, and "length" [N].

    T is `max_length`, or the length of the longest sentence. Words that are not in `ids` are 0.
    Raises UserError for a sentence longer than `max_length`.
    """
    length = np.array([len(words) for words, _ in sentences], np.int32)
    num_steps = length.max(initial=0) if max_length is None else max_length
    word = np.zeros((len(sentences), num_steps), np.int32)
    tag = np.zeros_like(word)
    for row, (words, tags) in enumerate(sentences):
        if len(words) > num_steps:
            raise UserError(
                f"sentence {row + 1}, {' '.join(words)!r}, has {len(words)} words but max_length "
                f"is {num_steps}; shorten the sentence or raise max_length"
            )
        word[row, : len(words)] = [ids.get(each, 0) for each in words]
        tag[row, : len(words)] = [TAGS.index(each) for each in tags]
    return {"word": word, "tag": tag, "length": length}
