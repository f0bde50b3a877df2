"""Vocabularies, which map text to ids and back."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsInt

import numpy as np
from jaxtyping import Int

from seqjax.data.tokenizers import RESERVED, TOKENIZERS
from seqjax.errors import UserError
from seqjax.files import read_json, sha256, write_text
from seqjax.hparams import from_spec
from seqjax.typing import SpecialIds

_FORMAT, _VERSION = "seqjax vocabulary", 1


class Vocabulary:
    """Maps text to ids and back, by a spec such as `characters` or `byte_bpe(size=1000)`.

    Text is normalised to NFC, so that equivalent Unicode texts give the same ids. Ids 0 to 3 are
    padding, start, end and unknown; encoding a text never gives the first three.
    """

    pad_id, bos_id, eos_id, unk_id = SpecialIds()

    def __init__(self, spec: str, model: Any):
        """Use `fit` or `load` instead; `model` is the JSON of the spec's fitted tokenizer."""
        self.spec, self._model = spec, model
        self._tokenizer = from_spec("vocabulary", spec, TOKENIZERS).open(model)
        self._tokens = [*RESERVED, *self._tokenizer.tokens]
        self._ids = {token: i for i, token in enumerate(self._tokenizer.tokens, len(RESERVED))}

    @classmethod
    def fit(cls, spec: str, texts: Iterable[str]) -> "Vocabulary":
        """Returns the vocabulary of the training texts.

        The same texts in the same order give the same ids.

        Raises UserError for a spec that cannot be read or fitted, and for texts without content.
        """
        vocabulary = cls(spec, from_spec("vocabulary", spec, TOKENIZERS).fit(map(_nfc, texts)))
        if not vocabulary._ids:
            raise UserError(f"vocabulary {spec}: the training texts are empty; give some text")
        return vocabulary

    @property
    def size(self) -> int:
        """The number of ids, including the reserved ones."""
        return len(self._tokens)

    @property
    def num_reserved(self) -> int:
        """The number of reserved ids, which are the first ones."""
        return len(RESERVED)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text, without start and end."""
        ids = self._lookup(text)
        return ids if self._tokenizer.unknown else [i for i in ids if i != self.unk_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Returns the text of the ids up to the first end symbol, without padding and start."""
        tokens = []
        for i in map(int, ids):
            if i == self.eos_id:
                break
            if i == self.unk_id and self._tokenizer.unknown:
                tokens.append(self._tokenizer.unknown)
            if i >= len(RESERVED):
                tokens.append(self._tokens[i])
        return self._tokenizer.join(tokens)

    def tokens(self, ids: Iterable[SupportsInt]) -> list[str]:
        """Returns the token of each id in readable form, with blanks shown as in "▁word"."""
        return [self._tokens[i] if i < len(RESERVED) else self._show(i) for i in map(int, ids)]

    def count_unknown(self, texts: Iterable[str]) -> tuple[int, int]:
        """Returns (number of unknown tokens, number of tokens) in the texts."""
        ids = [i for text in texts for i in self._lookup(text)]
        return ids.count(self.unk_id), len(ids)

    def save(self, path: Path) -> None:
        """Writes the vocabulary as JSON; the file is replaced as a whole or not at all."""
        value = self._content() | {"sha256": self.digest()}
        write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Returns the vocabulary that was saved at `path`.

        Raises UserError for a file that is missing, damaged, of another version or not a
        vocabulary.
        """
        remedy = "give the vocabulary.json of a run"
        try:
            value = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from None
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise UserError(f"{path} is not a vocabulary of seqjax; {remedy}")
        if value.get("version") != _VERSION:
            raise UserError(
                f"{path} has format version {value.get('version')}, but this seqjax reads "
                f"{_VERSION}; use the seqjax that wrote it, or train anew"
            )
        digest = value.pop("sha256", "")
        if digest != _sha256(value):
            raise UserError(f"{path} is damaged: its sha256 does not match; restore it from a copy")
        try:
            return cls(value["spec"], value["model"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # `tokenizers` may raise any exception
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{path} is not a vocabulary of seqjax ({reason}); {remedy}") from error

    def digest(self) -> str:
        """Returns the sha256 of the vocabulary's content, in hexadecimal."""
        return _sha256(self._content())

    def _content(self) -> dict[str, Any]:
        return {"format": _FORMAT, "version": _VERSION, "spec": self.spec, "model": self._model}

    def _lookup(self, text: str) -> list[int]:
        return [self._ids.get(token, self.unk_id) for token in self._tokenizer.split(_nfc(text))]

    def _show(self, i: int) -> str:
        return self._tokenizer.show(self._tokens[i]).replace(" ", "▁")


def encode_batch(
    vocabulary: Vocabulary,
    texts: Iterable[str],
    max_length: int | None = None,
    *,
    add_bos: bool,
    add_eos: bool,
    padding: Literal["post", "pre"] = "post",
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Returns the texts' ids, padded to `max_length` (None: to the longest), and lengths.

    A text that is too long is cut at its end, but keeps its start and end symbols. Raises UserError
    if `max_length` leaves no room for text.
    """
    bos, eos = [vocabulary.bos_id] * add_bos, [vocabulary.eos_id] * add_eos
    max_tokens = None if max_length is None else max_length - add_bos - add_eos
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_length={max_length} leaves no room for text; raise it")
    rows = [bos + vocabulary.encode(text)[:max_tokens] + eos for text in texts]
    return pad(rows, max_length, padding=padding)


def pad(
    rows: Sequence[Sequence[int]],
    max_length: int | None = None,
    *,
    padding: Literal["post", "pre"] = "post",
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Returns the rows as one array and their lengths.

    Padding is put after ("post") or before ("pre") the ids of a row.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    num_steps = int(lengths.max(initial=0)) if max_length is None else max_length
    ids = np.full((len(rows), num_steps), Vocabulary.pad_id, np.int32)
    for row, out in zip(rows, ids, strict=True):
        start = num_steps - len(row) if padding == "pre" else 0
        out[start : start + len(row)] = row
    return ids, lengths


def _nfc(text: str) -> str:
    """Returns the text in NFC, with "?" for each byte that a terminal could not decode."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return sha256([canonical.encode("utf-8", "surrogatepass")])
