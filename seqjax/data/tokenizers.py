"""How text falls into pieces, by a spec: the kinds of vocabulary.

A piece that begins a word begins with its blank, so that joining is plain concatenation and gives
the spaces back. `words`, `whitespace` and `characters` need no such mark.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from seqjax.data.morphemes import kiwi_join, kiwi_split, okt_morphs, okt_split
from seqjax.errors import UserError, unknown_name

RESERVED = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3 of every vocabulary
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
ANALYZERS: dict[str, Callable[[str], list[str]]] = {"okt": okt_morphs}
KERAS_FILTERS = dict.fromkeys(map(ord, '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'), " ")


class Pieces(NamedTuple):
    """What the ids of a vocabulary stand for, in order, and the way from text to them and back."""

    names: list[str]
    split: Callable[[str], list[str]]
    join: Callable[[list[str]], str]
    unknown: str | None = UNKNOWN  # joined in for an unknown piece; None: unknown pieces vanish
    show: Callable[[str], str] = str


class TokenizerSpec(NamedTuple):
    """How pieces are found in training texts, and used."""

    fit: Callable[[Iterable[str]], Any]  # texts in NFC -> the model, as JSON
    open: Callable[[Any], Pieces]


def _counted(
    split: Callable[[str], list[str]],
    join: Callable[[list[str]], str],
    size: int | None,
    unknown: str | None = UNKNOWN,
) -> TokenizerSpec:
    """The kind whose ids are the pieces, most frequent first; equals keep the texts' order."""
    limit = None if size is None else _room(size)

    def fit(texts: Iterable[str]) -> list[str]:
        counts = Counter(piece for text in texts for piece in split(text))
        return [piece for piece, _ in counts.most_common(limit)]

    return TokenizerSpec(fit, lambda names: Pieces(names, split, join, unknown))


def _room(size: Any) -> int:
    """How many pieces a vocabulary of `size` ids has room for."""
    if not isinstance(size, int) or size <= len(RESERVED):
        raise UserError(f"vocabulary size={size!r}: write a number above the 4 reserved ids")
    return size - len(RESERVED)


def characters(size: int | None = None) -> TokenizerSpec:
    """Code points of the text in NFC: for Korean, syllables."""
    return _counted(list, "".join, size)


def jamo(size: int | None = None) -> TokenizerSpec:
    """Code points of the text in NFD: for Korean, consonants and vowels."""
    split = partial(unicodedata.normalize, "NFD")
    join = partial(unicodedata.normalize, "NFC")
    return _counted(lambda text: list(split(text)), lambda pieces: join("".join(pieces)), size)


def whitespace(size: int | None = None) -> TokenizerSpec:
    """Whatever stands between blanks: for Korean, eojeol."""
    return _counted(str.split, " ".join, size)


def words(num_words: int | None = None, unknown: bool = True, analyzer: str = "") -> TokenizerSpec:
    """Words as Keras' `Tokenizer` finds them: id = Keras' id + 3, so `num_words` - 1 of them.

    `unknown=False` drops unknown words, as Keras does; `analyzer="okt"` cuts into Okt's morphemes
    first. Punctuation and case are lost.
    """
    if num_words is not None and (not isinstance(num_words, int) or num_words < 2):
        raise UserError(f"words(num_words={num_words!r}): write a number of 2 or more, or None")
    if analyzer and analyzer not in ANALYZERS:
        raise unknown_name("analyzer", analyzer, ANALYZERS)
    morphs = ANALYZERS.get(analyzer, lambda text: [text])

    def split(text: str) -> list[str]:
        text = " ".join(morphs(text)).lower().translate(KERAS_FILTERS)
        return [word for word in text.split(" ") if word]  # other white space is left, as in Keras

    size = None if num_words is None else len(RESERVED) + num_words - 1
    return _counted(split, " ".join, size, UNKNOWN if unknown else None)


def kiwi(size: int | None = None) -> TokenizerSpec:
    """Kiwi's morphemes with their tags. Needs the extra `ko`."""
    return _counted(kiwi_split, kiwi_join, size, f" {UNKNOWN}/SW")


def okt(size: int | None = None) -> TokenizerSpec:
    """Okt's morphemes. Needs the extra `okt`."""
    return _counted(okt_split, _join_words, size, f" {UNKNOWN}")


def _join_words(pieces: list[str]) -> str:
    return "".join(pieces).removeprefix(" ")


def byte_bpe(size: int = 1000) -> TokenizerSpec:
    """Byte-pair encoding of UTF-8: no text has unknown pieces. Needs a size of 260 or more."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    room = _room(size)
    if room < len(alphabet):
        raise UserError(f"byte_bpe(size={size}): too small for 4 reserved ids and 256 bytes")
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    decoder = decoders.ByteLevel()

    def fit(texts: Iterable[str]) -> dict[str, Any]:
        return _train(
            models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer, texts
        )

    def open_model(model: dict[str, Any]) -> Pieces:
        ids = model["model"]["vocab"]
        return Pieces(
            sorted(ids, key=ids.get),
            _splitter(model),
            lambda pieces: decoder.decode(pieces).removeprefix(" "),
            show=lambda piece: decoder.decode([piece]),
        )

    return TokenizerSpec(fit, open_model)


def unigram(size: int = 1000) -> TokenizerSpec:
    """SentencePiece's unigram language model: at most `size` ids, fewer for a small text."""
    missing = "\uffff"  # not a character, so that no text can hold it
    trainer = trainers.UnigramTrainer(
        vocab_size=_room(size) + 1, unk_token=missing, special_tokens=[missing], show_progress=False
    )

    def fit(texts: Iterable[str]) -> dict[str, Any]:
        pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
        try:
            model = _train(models.Unigram(), pre_tokenizer, trainer, texts)
        except Exception as error:  # the library's own: raised as a bare Exception
            raise UserError(f"unigram(size={size}): {error}; raise the size") from error
        unknown, *vocab = model["model"]["vocab"]
        # The trainer orders equal scores at random, and gives single characters that are too rare
        # to be pieces scores just above the lowest one, also at random. Undo both.
        low = min((score for _, score in vocab), default=0.0)
        rare = low + 1e-4 * len(vocab)
        vocab = [(low if len(p) == 1 and score <= rare else score, p) for p, score in vocab]
        ordered = sorted((-round(score, 6), piece) for score, piece in vocab)
        model["model"]["vocab"] = [unknown, *([piece, -cost] for cost, piece in ordered)]
        return model

    def open_model(model: dict[str, Any]) -> Pieces:
        names = [piece for piece, _ in model["model"]["vocab"][1:]]
        return Pieces(names, _splitter(model), _join_words)

    return TokenizerSpec(fit, open_model)


def _train(model, pre_tokenizer, trainer, texts: Iterable[str]) -> dict[str, Any]:
    """The JSON of a tokenizer trained on the texts, each with a blank before its first word."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def _splitter(model: dict[str, Any]) -> Callable[[str], list[str]]:
    tokenizer = Tokenizer.from_str(json.dumps(model))
    return lambda text: tokenizer.encode(text).tokens


KINDS: dict[str, Callable[..., TokenizerSpec]] = {
    "characters": characters,
    "jamo": jamo,
    "whitespace": whitespace,
    "words": words,
    "kiwi": kiwi,
    "okt": okt,
    "byte_bpe": byte_bpe,
    "unigram": unigram,
}
