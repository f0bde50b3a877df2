"""Reads parallel text: pairs of texts, their labels, and splits that share no source text."""

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.data.batching import share_sizes, split_rows
from seqjax.data.text_files import check_characters, read_lines
from seqjax.errors import UserError, require, unknown_name
from seqjax.files import MAX_LINE, MAX_TEXT_MEGABYTES

_Row = tuple[int, list[str]]  # the number of its first line, and its cells

SHIPPED = {  # by name: a file under corpora/, and its form
    "cafe": ("cafe/dialogues.txt", "lines"),
    "wiki": ("wiki/wiki_qna.csv", "csv"),
    "tutorial_words": ("translation/tutorial_words.tsv", "tsv"),
    "tutorial_sentences": ("translation/tutorial_sentences.tsv", "tsv"),
    "reversed": ("reversed/reversed.tsv", "tsv"),
    "words": ("translation/words.tsv", "tsv"),
    "sentences": ("translation/sentences.tsv", "tsv"),
}

SHIPPED_LABELS = {"cafe": "cafe/intents.txt", "wiki": "wiki/facts.txt"}

# Pairs of columns that are found in a header without being named.
KNOWN_COLUMNS = (("q", "a"), ("question", "answer"), ("source", "target"))


def read_pairs(
    path: str,
    *,
    form: str = "lines",
    source_column: str = "",
    target_column: str = "",
    encoding: str = "utf-8",
    max_megabytes: float = MAX_TEXT_MEGABYTES,
) -> list[tuple[str, str]]:
    """Returns the (source, target) pairs of the file at `path`, or of a shipped corpus.

    `form` is "lines" (sources and targets alternate; blank lines may stand between pairs), "csv"
    (with a header) or "tsv" (no header, no quotes: the first two columns). The columns of
    KNOWN_COLUMNS are found in any case and order; name other columns, and those of a tsv with a
    header. Texts are returned in NFC and stripped, with "\\n" as their line end.

    Raises UserError, with file and line, for a pair that is not two texts, and for a file larger
    than `max_megabytes`.
    """
    name = path
    if path in SHIPPED:
        path, form = str(files("seqjax.data") / "corpora" / SHIPPED[path][0]), SHIPPED[path][1]
    if form not in _FORMS:
        raise unknown_name("form of pairs", form, _FORMS)
    named = (source_column, target_column)
    if any(named) and (form == "lines" or not all(named)):
        raise UserError(f"{name}: name both columns of a csv or tsv, or none")
    rows = _FORMS[form](name, _read_lines(name, path, max_megabytes, encoding))
    rows = ((number, cells) for number, cells in rows if any(cell.strip() for cell in cells))
    if form == "csv" or all(named):
        rows = _two_columns(name, rows, (named,) if all(named) else KNOWN_COLUMNS)
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
    """Returns the label of each pair, one per line of the file at `path`.

    If `path` is "", these are the labels that ship with `corpus`, or none. Raises UserError unless
    there is one label for each pair.
    """
    name = path or f"{corpus} (labels)"
    if not path and corpus not in SHIPPED_LABELS:
        return []
    path = path or str(files("seqjax.data") / "corpora" / SHIPPED_LABELS[corpus])
    labels = [line.strip() for line in _read_lines(name, path, max_megabytes, "utf-8")]
    if len(labels) != num_pairs or not all(labels):
        raise UserError(
            f"{name}: {len(labels)} labels, {labels.count('')} of them empty, for {num_pairs} "
            "pairs; write one line per pair"
        )
    return labels


def check_pairs(pairs: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Returns the pairs that a config contains, cleaned and checked like those of a file."""
    checked = []
    for number, pair in enumerate(pairs, start=1):
        place = f"pair {number}"
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise UserError(f"{place}: {pair!r} is not two texts; write (source, target)")
        for text in pair:
            check_characters(place, text, "Unicode")
        checked.append(_clean_pair(place, *pair))
    return checked


def _read_lines(name: str, path: str, max_megabytes: float, encoding: str) -> Iterator[str]:
    remedy = f"give the path of a file or one of {', '.join(SHIPPED)}"
    return read_lines(name, Path(path), "pairs", remedy, max_megabytes, encoding)


def _clean_pair(place: str, source: str, target: str) -> tuple[str, str]:
    def clean(role: str, text: str) -> str:
        if not text.strip():
            raise UserError(f"{place}: the {role} is empty; write a text or remove the pair")
        return unicodedata.normalize("NFC", text.strip())

    return clean("source", source), clean("target", target)


def _alternating(name: str, lines: Iterable[str]) -> Iterator[_Row]:
    """Yields rows of two lines; refuses a blank line inside a pair, which would shift all later
    pairs."""
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


def _comma_separated(name: str, lines: Iterable[str]) -> Iterator[_Row]:
    csv.field_size_limit(MAX_LINE)  # Python's default, which other code may have changed
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    number = 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1  # a quoted cell may hold lines
    except csv.Error as error:
        raise UserError(f"{name}, line {number}: {error}; correct the quotes") from error


def _tab_separated(name: str, lines: Iterable[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        yield number, line.rstrip("\n").split("\t")


_FORMS = {"lines": _alternating, "csv": _comma_separated, "tsv": _tab_separated}


def _two_columns(
    name: str, rows: Iterator[_Row], candidates: Sequence[tuple[str, str]]
) -> Iterator[_Row]:
    """Yields the source and target cells of the rows below the header.

    Their columns are the first of `candidates` that the header has.
    """
    number, header = next(rows, (1, []))
    keys = [_key(cell) for cell in header]
    matches = [pair for pair in candidates if all(_key(column) in keys for column in pair)]
    if not matches:
        known = " or ".join(",".join(pair) for pair in candidates)
        raise UserError(
            f"{name}, line {number}: the header {','.join(header)[:60]!r} has no columns {known}; "
            "name two of its columns as source_column and target_column"
        )
    source, target = (keys.index(_key(column)) for column in matches[0])
    for number, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{name}, line {number}: {len(cells)} cells, but the header has {len(header)}; "
                "in a csv, put quotes around cells that hold commas"
            )
        yield number, [cells[source], cells[target]]


def _key(column: str) -> str:
    """Returns the name of a column in a form that can be compared."""
    return unicodedata.normalize("NFC", column.strip()).casefold()


class Split(NamedTuple):
    """One split of parallel text in file order; `labels` is empty if there are none."""

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
    """Returns the splits of `pairs` or, if there are none, of a shipped corpus or a file.

    Pairs with the same source go into the same split, so that no held-out source is trained on.
    `train_size` keeps only that many training pairs; 0 keeps all. A label names the intent of a
    source: every target with the same label is a right answer. Raises UserError for texts, labels
    or numbers that cannot be used.
    """
    require("data.train_size", train_size, train_size >= 0, "at least 0")
    if pairs:
        texts = check_pairs(pairs)
    else:
        texts = read_pairs(
            name,
            form=form,
            source_column=source_column,
            target_column=target_column,
            encoding=encoding,
            max_megabytes=max_megabytes,
        )
    intents = read_labels(labels, "" if pairs else name, len(texts), max_megabytes)
    group_of = {source: i for i, source in enumerate(dict.fromkeys(s for s, _ in texts))}
    sizes = share_sizes(len(group_of), valid=valid_share, test=test_share)
    groups = split_rows({"group": np.arange(len(group_of))}, sizes, split_seed)
    split_of = {group: split for split, rows in groups.items() for group in rows["group"]}
    splits = {split: Split([], [], []) for split in groups}
    for i, (source, target) in enumerate(texts):
        split = splits[split_of[group_of[source]]]
        split.sources.append(source)
        split.targets.append(target)
        split.labels.extend(intents[i : i + 1])
    train = splits["train"]
    if 0 < train_size < len(train.sources):
        chosen = np.random.default_rng(split_seed).permutation(len(train.sources))[:train_size]
        splits["train"] = Split(
            *([field[i] for i in np.sort(chosen)] if field else [] for field in train)
        )
    return splits
