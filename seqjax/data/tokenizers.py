"""Tokenizers: each splits text into tokens and joins tokens to text, as a spec says.

A token that begins a word begins with a blank, so that joining is plain concatenation and restores
the spaces. `words`, `whitespace` and `characters` need no such mark.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from seqjax.data.morphemes import kiwi_join, kiwi_split, okt_morphs, okt_split
from seqjax.errors import UserError, unknown_name

RESERVED = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3 of every vocabulary
MAX_TOKENS = 10**7  # of a vocabulary that is read from a file
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
ANALYZERS: dict[str, Callable[[str], list[str]]] = {"okt": okt_morphs}
KERAS_FILTERS = dict.fromkeys(map(ord, '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'), " ")


class FittedTokenizer(NamedTuple):
    """The tokens of a vocabulary in the order of their ids, and the functions that use them."""

    tokens: list[str]
    split: Callable[[str], list[str]]  # text -> tokens
    join: Callable[[list[str]], str]  # tokens -> text
    unknown: str | None = UNKNOWN  # joined in for an unknown token; None drops unknown tokens
    show: Callable[[str], str] = str  # token -> readable text


class TokenizerSpec(NamedTuple):
    """How to fit a tokenizer to training texts, and how to open it again."""

    fit: Callable[[Iterable[str]], Any]  # texts in NFC -> the fitted model, as JSON
    open: Callable[[Any], FittedTokenizer]  # the fitted model -> the tokenizer


def _counted(
    split: Callable[[str], list[str]],
    join: Callable[[list[str]], str],
    size: int | None,
    unknown: str | None = UNKNOWN,
) -> TokenizerSpec:
    """Returns a tokenizer of the most frequent tokens; ties keep the order of the texts."""
    max_tokens = None if size is None else _num_tokens(size)

    def fit(texts: Iterable[str]) -> list[str]:
        counts = Counter(token for text in texts for token in split(text))
        return [token for token, _ in counts.most_common(max_tokens)]

    def open_model(tokens: list[str]) -> FittedTokenizer:
        _check_tokens(tokens)
        return FittedTokenizer(tokens, split, join, unknown)

    return TokenizerSpec(fit, open_model)


def _check_tokens(tokens: Any) -> None:
    """Raises TypeError or ValueError unless the tokens of a file are different strings."""
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TypeError("its tokens are not a list of strings")
    if len(tokens) > MAX_TOKENS or len(set(tokens)) < len(tokens):
        raise ValueError("its tokens are too many, or one is there twice")


def _num_tokens(size: Any) -> int:
    """Returns the number of ids that are left for tokens; raises UserError if there are none."""
    if not isinstance(size, int) or size <= len(RESERVED):
        raise UserError(f"vocabulary size={size!r}: write a number above the 4 reserved ids")
    return size - len(RESERVED)


def characters(size: int | None = None) -> TokenizerSpec:
    """Returns a tokenizer whose tokens are code points in NFC (for Korean: syllables)."""
    return _counted(list, "".join, size)


def jamo(size: int | None = None) -> TokenizerSpec:
    """Returns a tokenizer whose tokens are code points in NFD (for Korean: jamo)."""
    nfd = partial(unicodedata.normalize, "NFD")
    nfc = partial(unicodedata.normalize, "NFC")
    return _counted(lambda text: list(nfd(text)), lambda tokens: nfc("".join(tokens)), size)


def whitespace(size: int | None = None) -> TokenizerSpec:
    """Returns a tokenizer that splits at white space (for Korean: into eojeol)."""
    return _counted(str.split, " ".join, size)


def words(num_words: int | None = None, unknown: bool = True, analyzer: str = "") -> TokenizerSpec:
    """Returns a tokenizer whose tokens are words, split as Keras' `Tokenizer` splits them.

    Words are in lower case and without punctuation. An id is Keras' id + 3, so there are
    `num_words` - 1 words. `unknown=False` drops unknown words, as Keras does; `analyzer="okt"`
    first splits the text into Okt's morphemes.
    """
    if num_words is not None and (not isinstance(num_words, int) or num_words < 2):
        raise UserError(f"words(num_words={num_words!r}): write a number of 2 or more, or None")
    if analyzer and analyzer not in ANALYZERS:
        raise unknown_name("analyzer", analyzer, ANALYZERS)
    morphs = ANALYZERS.get(analyzer, lambda text: [text])

    def split(text: str) -> list[str]:
        text = " ".join(morphs(text)).lower().translate(KERAS_FILTERS)
        return [word for word in text.split(" ") if word]  # Keras keeps other white space too

    size = None if num_words is None else len(RESERVED) + num_words - 1
    return _counted(split, " ".join, size, UNKNOWN if unknown else None)


def kiwi(size: int | None = None) -> TokenizerSpec:
    """Returns a tokenizer whose tokens are Kiwi's morphemes and tags; needs the extra `ko`."""
    return _counted(kiwi_split, kiwi_join, size, f" {UNKNOWN}/SW")


def okt(size: int | None = None) -> TokenizerSpec:
    """Returns a tokenizer whose tokens are Okt's morphemes; needs the extra `okt`."""
    return _counted(okt_split, _join_words, size, f" {UNKNOWN}")


def _join_words(tokens: list[str]) -> str:
    return "".join(tokens).removeprefix(" ")


def byte_bpe(size: int = 1000) -> TokenizerSpec:
    """Returns a tokenizer by byte-pair encoding of UTF-8, which has no unknown tokens.

    Raises UserError for a size below 260.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    num_tokens = _num_tokens(size)
    if num_tokens < len(alphabet):
        raise UserError(f"byte_bpe(size={size}): too small for 4 reserved ids and 256 bytes")
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False
    )
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    decoder = decoders.ByteLevel()

    def fit(texts: Iterable[str]) -> dict[str, Any]:
        return _train(models.BPE(), pre_tokenizer, trainer, texts)

    def open_model(model: dict[str, Any]) -> FittedTokenizer:
        ids, merges = model["model"]["vocab"], model["model"]["merges"]
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        tokens = sorted(ids, key=ids.__getitem__)
        _check_tokens(tokens)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("its ids are not 0, 1, 2, ...")
        if not ids.keys() >= {*alphabet, *(part for a, b in pairs for part in (a, b, a + b))}:
            raise ValueError("it lacks a byte, or the token of a merge")
        return FittedTokenizer(
            tokens,
            _splitter(models.BPE(ids, pairs), pre_tokenizer),
            lambda tokens: decoder.decode(tokens).removeprefix(" "),
            show=lambda token: decoder.decode([token]),
        )

    return TokenizerSpec(fit, open_model)


def unigram(size: int = 1000) -> TokenizerSpec:
    """Returns a tokenizer by SentencePiece's unigram language model.

    A small text gives fewer than `size` ids.
    """
    missing = "\uffff"  # not a character, so no text can contain it
    trainer = trainers.UnigramTrainer(
        vocab_size=_num_tokens(size) + 1,
        unk_token=missing,
        special_tokens=[missing],
        show_progress=False,
    )

    pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")

    def fit(texts: Iterable[str]) -> dict[str, Any]:
        try:
            model = _train(models.Unigram(), pre_tokenizer, trainer, texts)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"unigram(size={size}): {error}; raise the size") from error
        unknown, *vocab = model["model"]["vocab"]
        # The trainer orders tokens of equal score at random. It also gives random scores, just
        # above the lowest one, to single characters that are too rare to be tokens. Both are
        # undone here.
        low = min((score for _, score in vocab), default=0.0)
        rare = low + 1e-4 * len(vocab)
        vocab = [(low if len(t) == 1 and score <= rare else score, t) for t, score in vocab]
        ordered = sorted((-round(score, 6), token) for score, token in vocab)
        model["model"]["vocab"] = [unknown, *([token, -cost] for cost, token in ordered)]
        return model

    def open_model(model: dict[str, Any]) -> FittedTokenizer:
        vocab = [(token, float(score)) for token, score in model["model"]["vocab"]]
        tokens = [token for token, _ in vocab]
        _check_tokens(tokens)
        if tokens[0] != missing or not all(math.isfinite(score) for _, score in vocab):
            raise ValueError("its first token is another one, or a score is not finite")
        unigrams = models.Unigram(vocab, unk_id=0, byte_fallback=False)
        return FittedTokenizer(tokens[1:], _splitter(unigrams, pre_tokenizer), _join_words)

    return TokenizerSpec(fit, open_model)


def _train(model, pre_tokenizer, trainer, texts: Iterable[str]) -> dict[str, Any]:
    """Returns the JSON of a tokenizer trained on the texts, each with a blank before it."""
    tokenizer = _pipeline(model, pre_tokenizer)
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def _splitter(model: models.Model, pre_tokenizer: Any) -> Callable[[str], list[str]]:
    """Returns the function that splits a text by the vocabulary of a file.

    Nothing else of the file is used: a stranger's normalizer or pre-tokenizer may take for ever.
    """
    tokenizer = _pipeline(model, pre_tokenizer)
    return lambda text: tokenizer.encode(text).tokens


def _pipeline(model: models.Model, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


TOKENIZERS: dict[str, Callable[..., TokenizerSpec]] = {
    "characters": characters,
    "jamo": jamo,
    "whitespace": whitespace,
    "words": words,
    "kiwi": kiwi,
    "okt": okt,
    "byte_bpe": byte_bpe,
    "unigram": unigram,
}
