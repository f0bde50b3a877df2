"""Parallel text from files: pairs, their labels, and splits that share no source text."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data.batching import split_rows
from seqjax.errors import UserError, unknown_name
from seqjax.files import MAX_LINE, MAX_TEXT_MEGABYTES, check_line, read_text_file

Row = tuple[int, list[str]]  # the number of its first line, and its cells

SHIPPED = {  # name: file under corpora/, and its form
    "cafe": ("cafe/dialogues.txt", "lines"),
    "wiki": ("wiki/wiki_qna.csv", "csv"),
    "tutorial_words": ("translation/tutorial_words.tsv", "tsv"),
    "tutorial_sentences": ("translation/tutorial_sentences.tsv", "tsv"),
    "reversed": ("reversed/reversed.tsv", "tsv"),
    "words": ("translation/words.tsv", "tsv"),
    "sentences": ("translation/sentences.tsv", "tsv"),
}

LABELS = {"cafe": "cafe/intents.txt", "wiki": "wiki/facts.txt"}

COLUMNS = (("q", "a"), ("question", "answer"), ("source", "target"))  # known without being named
# Of control characters only those that separate cells and lines belong into a text. Bytes that are
# no text in the file's encoding arrive as lone surrogates.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]|(?P<undecodable>[\ud800-\udfff])")


def read_pairs(
    path: str,
    *,
    form: str = "lines",
    source_column: str = "",
    target_column: str = "",
    encoding: str = "utf-8",
    max_megabytes: float = MAX_TEXT_MEGABYTES,
) -> list[tuple[str, str]]:
    """(source, target) of each pair in the file at `path`, or in the shipped corpus of that name.

    `form` is "lines" (sources and targets alternate; blank lines may stand between pairs), "csv"
    (with a header) or "tsv" (no header, no quotes: the first two columns). Columns q,a and
    question,answer and source,target are found in any case and order; others, and those of a tsv
    with a header, are to be named. Texts come in NFC, stripped, with "\\n" as their line end.

    Raises UserError, with file and line, for whatever is not two texts, and for a file larger than
    `max_megabytes`.
    """
    name = path
    if path in SHIPPED:
        path, form = str(files("seqjax.data") / "corpora" / SHIPPED[path][0]), SHIPPED[path][1]
    if form not in FORMS:
        raise unknown_name("form of pairs", form, FORMS)
    named = (source_column, target_column)
    if any(named) and (form == "lines" or not all(named)):
        raise UserError(f"{name}: name both columns of a csv or tsv, or none")
    rows: Iterator[Row] = FORMS[form](name, _lines(name, path, encoding, max_megabytes))
    rows = ((number, cells) for number, cells in rows if any(cell.strip() for cell in cells))
    if form == "csv" or all(named):
        rows = _two_columns(name, rows, (named,) if all(named) else COLUMNS)
    pairs = []
    for number, cells in rows:
        if len(cells) < 2:
            raise UserError(f"{name}, line {number}: no second text; put a tab between the two")
        pairs.append(_clean_pair(f"{name}, line {number}", *cells[:2]))
    if not pairs:
        raise UserError(f"{name}: holds no pairs; write at least one source and target")
    return pairs


def read_labels(
    path: str, corpus: str, num_pairs: int, max_megabytes: float = MAX_TEXT_MEGABYTES
) -> list[str]:
    """The label of each pair, a line each, from the file at `path`; none for "".

    With "", a shipped corpus has its own, if any. Raises UserError unless there is one a pair.
    """
    name = path or f"{corpus} (labels)"
    if not path and corpus not in LABELS:
        return []
    path = path or str(files("seqjax.data") / "corpora" / LABELS[corpus])
    labels = [line.strip() for line in _lines(name, path, "utf-8", max_megabytes)]
    if len(labels) != num_pairs or not all(labels):
        raise UserError(
            f"{name}: {len(labels)} labels, {labels.count('')} of them empty, for {num_pairs} "
            "pairs; write one line a pair"
        )
    return labels


def check_pairs(pairs: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """The pairs that a config gives directly, cleaned and checked like those of a file."""
    checked = []
    for number, pair in enumerate(pairs, start=1):
        place = f"pair {number}"
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise UserError(f"{place}: {pair!r} is not two texts; write (source, target)")
        for text in pair:
            _check_characters(place, text, "Unicode")
        checked.append(_clean_pair(place, *pair))
    return checked


def _lines(name: str, path: str, encoding: str, max_megabytes: float) -> Iterator[str]:
    """The lines of the file, one at a time, each checked and ending in "\\n"."""
    try:
        # A byte-order mark, which many editors write, is no part of the text.
        codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        data = io.BytesIO(read_text_file(Path(path), max_megabytes))
        with io.TextIOWrapper(data, encoding=codec, errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                check_line(f"{name}, line {number}", line.rstrip("\n"))
                _check_characters(f"{name}, line {number}", line, encoding)
                yield line
    except OSError as error:
        remedy = f"give the path of a file or one of {', '.join(SHIPPED)}"
        reason = error.strerror or error
        raise UserError(f"cannot read the pairs {name}: {reason}; {remedy}") from error
    except (LookupError, UnicodeError) as error:
        raise UserError(f"{name}: {error}; give the file's encoding, as utf-8 or cp949") from error


def _check_characters(place: str, text: str, encoding: str) -> None:
    """Nothing for a text without control characters and undecodable bytes, else a UserError."""
    bad = UNFIT.search(text)
    if bad and bad["undecodable"]:
        remedy = "save the file as UTF-8 or give its encoding, as cp949"
        raise UserError(f"{place}: not {encoding} text; {remedy}")
    if bad:
        raise UserError(
            f"{place}: control character U+{ord(bad[0]):04X}; remove it, or mend the encoding"
        )


def _clean_pair(place: str, source: str, target: str) -> tuple[str, str]:
    def clean(role: str, text: str) -> str:
        if not text.strip():
            raise UserError(f"{place}: the {role} is empty; write a text or remove the pair")
        return unicodedata.normalize("NFC", text.strip())

    return clean("source", source), clean("target", target)


def _alternating(name: str, lines: Iterable[str]) -> Iterator[Row]:
    """Two lines a row. A blank line inside a pair would shift all that follow: it is refused."""
    first: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        if first is None:
            first = (number, line) if line.strip() else None
        elif line.strip():
            yield first[0], [first[1], line]
            first = None
        else:
            break
    if first is not None:
        raise UserError(f"{name}, line {first[0]}: no line answers it; write one or remove it")


def _comma_separated(name: str, lines: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)  # of the whole process: its default, unless that was changed
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    number = 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1  # a quoted cell may hold lines
    except csv.Error as error:
        raise UserError(f"{name}, line {number}: {error}; mend the quotes") from error


def _tab_separated(name: str, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        yield number, line.rstrip("\n").split("\t")


FORMS = {"lines": _alternating, "csv": _comma_separated, "tsv": _tab_separated}


def _two_columns(
    name: str, rows: Iterator[Row], wanted: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """The source and target cells of the rows below the header."""
    number, header = next(rows, (1, []))
    keys = [_key(cell) for cell in header]
    found = [two for two in wanted if all(_key(column) in keys for column in two)]
    if not found:
        known = " or ".join(",".join(two) for two in wanted)
        raise UserError(
            f"{name}, line {number}: the header {','.join(header)[:60]!r} has no columns {known}; "
            "name two of its columns as source_column and target_column"
        )
    source, target = (keys.index(_key(column)) for column in found[0])
    for number, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{name}, line {number}: {len(cells)} cells, but the header has {len(header)}; "
                "in a csv, put quotes around cells that hold commas"
            )
        yield number, [cells[source], cells[target]]


def _key(column: str) -> str:
    return unicodedata.normalize("NFC", column.strip()).casefold()


class Split(NamedTuple):
    """One split: texts in file order, and their labels, or none."""

    sources: list[str]
    targets: list[str]
    labels: list[str]


def load_corpus(
    *,
    name: str,
    pairs: Sequence[Sequence[str]],
    labels: str,
    form: str,
    source_column: str,
    target_column: str,
    encoding: str,
    max_megabytes: float,
    valid_share: float,
    test_share: float,
    train_size: int,
    split_seed: int,
) -> dict[str, Split]:
    """Parts by split: `pairs` as they stand, or those of `name`, a shipped corpus or a file.

    Pairs with the same source fall into the same part, so that none is held out of what is
    trained on; `train_size` keeps only so many training pairs, 0 all of them. A label names the
    intent of a source, of which every target is a right answer.
    """
    for field, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise UserError(f"data.{field}={share} must lie in [0, 1)")
    if pairs:
        found = check_pairs(pairs)
    else:
        found = read_pairs(
            name,
            form=form,
            source_column=source_column,
            target_column=target_column,
            encoding=encoding,
            max_megabytes=max_megabytes,
        )
    tags = read_labels(labels, "" if pairs else name, len(found), max_megabytes)
    numbers = {source: i for i, source in enumerate(dict.fromkeys(s for s, _ in found))}
    sizes = {
        split: round(share * len(numbers))
        for split, share in (("valid", valid_share), ("test", test_share))
    }
    groups = split_rows({"group": np.arange(len(numbers))}, sizes, split_seed)
    split_of = {group: split for split, rows in groups.items() for group in rows["group"]}
    parts = {split: Split([], [], []) for split in groups}
    for i, (source, target) in enumerate(found):
        part = parts[split_of[numbers[source]]]
        part.sources.append(source)
        part.targets.append(target)
        part.labels.extend(tags[i : i + 1])
    if train_size < 0:
        raise UserError(f"data.train_size={train_size} must be at least 0")
    train = parts["train"]
    if 0 < train_size < len(train.sources):
        chosen = np.random.default_rng(split_seed).permutation(len(train.sources))[:train_size]
        parts["train"] = Split(
            *([texts[i] for i in np.sort(chosen)] if texts else [] for texts in train)
        )
    return parts
