"""Lists of words of one length, and their letters as numbers."""

import re
from collections.abc import Sequence

import numpy as np

from seqjax.data.lines import read_lines
from seqjax.errors import UserError
from seqjax.files import MAX_TEXT_MEGABYTES


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
