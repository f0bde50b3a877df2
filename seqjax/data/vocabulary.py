"""Vocabularies: text to ids and back."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsInt

import numpy as np
from jaxtyping import Int

from seqjax.data.tokenizers import KINDS, RESERVED
from seqjax.errors import UserError
from seqjax.files import read_json, write_text
from seqjax.hparams import from_spec
from seqjax.typing import SpecialIds

FORMAT, VERSION = "seqjax vocabulary", 1


class Vocabulary:
    """Text to ids and back, by a spec such as `characters` or `byte_bpe(size=1000)`.

    Text is taken in NFC, so that its two Unicode forms give the same ids. Ids 0 to 3 are padding,
    start, end and unknown; no text encodes to the first three.
    """

    pad_id, bos_id, eos_id, unk_id = SpecialIds()

    def __init__(self, spec: str, model: Any):
        """For `fit` and `load`; `model` is the JSON that the spec's kind was fitted to."""
        self.spec, self._model = spec, model
        self._pieces = from_spec("vocabulary", spec, KINDS).open(model)
        self._names = [*RESERVED, *self._pieces.names]
        self._ids = {name: i for i, name in enumerate(self._pieces.names, len(RESERVED))}

    @classmethod
    def fit(cls, spec: str, texts: Iterable[str]) -> "Vocabulary":
        """The vocabulary of the training texts; equal texts in equal order give equal ids.

        Raises UserError for a spec that cannot be read or met, and for texts without content.
        """
        vocabulary = cls(spec, from_spec("vocabulary", spec, KINDS).fit(map(_nfc, texts)))
        if not vocabulary._ids:
            raise UserError(f"vocabulary {spec}: the training texts are empty; give some text")
        return vocabulary

    @property
    def size(self) -> int:
        """Number of ids, the reserved ones included."""
        return len(self._names)

    @property
    def num_reserved(self) -> int:
        """Number of reserved ids, the first ones."""
        return len(RESERVED)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without start and end."""
        ids = self._lookup(text)
        return ids if self._pieces.unknown else [i for i in ids if i != self.unk_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of the ids up to the first end symbol, without padding and start."""
        pieces = []
        for i in map(int, ids):
            if i == self.eos_id:
                break
            if i == self.unk_id and self._pieces.unknown:
                pieces.append(self._pieces.unknown)
            if i >= len(RESERVED):
                pieces.append(self._names[i])
        return self._pieces.join(pieces)

    def tokens(self, ids: Iterable[SupportsInt]) -> list[str]:
        """What each id stands for, to be looked at: blanks are shown as in "▁word"."""
        shown = (self._names[i] if i < len(RESERVED) else self._show(i) for i in map(int, ids))
        return list(shown)

    def count_unknown(self, texts: Iterable[str]) -> tuple[int, int]:
        """(how many of the texts' pieces are unknown, how many pieces there are)."""
        ids = [i for text in texts for i in self._lookup(text)]
        return ids.count(self.unk_id), len(ids)

    def save(self, path: Path) -> None:
        """Writes the vocabulary as JSON, whole or not at all."""
        value = self._content() | {"sha256": self.digest()}
        write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """The vocabulary that was saved there, never fitted anew.

        Raises UserError for a file that is missing, foreign, of another version or damaged.
        """
        remedy = "give the vocabulary.json of a run"
        try:
            value = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path} is no vocabulary of seqjax; {remedy}")
        if value.get("version") != VERSION:
            raise UserError(
                f"{path} has format version {value.get('version')}, but this seqjax reads "
                f"{VERSION}; use the seqjax that wrote it, or train anew"
            )
        digest = value.pop("sha256", "")
        if digest != _sha256(value):
            raise UserError(f"{path} is damaged: its sha256 does not match; restore it from a copy")
        try:
            return cls(value["spec"], value["model"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # `tokenizers` raises just anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{path} is no vocabulary of seqjax ({reason}); {remedy}") from error

    def digest(self) -> str:
        """sha256 of the vocabulary's content: equal for equal vocabularies."""
        return _sha256(self._content())

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "spec": self.spec, "model": self._model}

    def _lookup(self, text: str) -> list[int]:
        return [self._ids.get(piece, self.unk_id) for piece in self._pieces.split(_nfc(text))]

    def _show(self, i: int) -> str:
        return self._pieces.show(self._names[i]).replace(" ", "▁")


def encode_batch(
    vocabulary: Vocabulary,
    texts: Iterable[str],
    max_length: int | None = None,
    *,
    add_bos: bool,
    add_eos: bool,
    padding: Literal["post", "pre"] = "post",
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Ids of the texts, padded to `max_length` (None: to the longest), and their lengths.

    A text that is too long loses its end, but neither its start nor its end symbol.
    """
    bos, eos = [vocabulary.bos_id] * add_bos, [vocabulary.eos_id] * add_eos
    room = None if max_length is None else max_length - add_bos - add_eos
    if room is not None and room < 1:
        raise UserError(f"max_length={max_length} leaves no room for text; raise it")
    rows = [bos + vocabulary.encode(text)[:room] + eos for text in texts]
    return pad(rows, max_length, padding=padding)


def pad(
    rows: Sequence[Sequence[int]],
    max_length: int | None = None,
    *,
    padding: Literal["post", "pre"] = "post",
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """The rows as one array, filled up with padding behind ("post") or before them, and lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    width = int(lengths.max(initial=0)) if max_length is None else max_length
    ids = np.full((len(rows), width), Vocabulary.pad_id, np.int32)
    for row, out in zip(rows, ids, strict=True):
        start = width - len(row) if padding == "pre" else 0
        out[start : start + len(row)] = row
    return ids, lengths


def _nfc(text: str) -> str:
    """The text in NFC, with "?" for bytes that a terminal could not decode."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
