"""Columns of rows that stay on disk and are read batch by batch, for data larger than memory.

A column looks like an array: it has a `shape`, a `dtype` and a length, and `column[numbers]` reads
the rows of these numbers. `train.loop=step` trains on such columns.
"""

import codecs
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from seqjax.errors import UserError
from seqjax.files import sha256

BLOCK = 2**22  # bytes of a text that are searched for line ends at once
SAMPLE = 64  # rows that stand for what a function makes of all records
BOM = b"\xef\xbb\xbf"  # the byte-order mark that many editors write before UTF-8


def names_on_disk(rows: Mapping[str, Any]) -> list[str]:
    """Returns the names of the columns that are not arrays in memory."""
    return [
        name
        for name, column in rows.items()
        if isinstance(column, np.memmap) or not isinstance(column, np.ndarray | jax.Array)
    ]


def memory_mapped(folder: str | Path) -> dict[str, np.memmap]:
    """Returns a column for each .npy file of a folder, by the name of the file.

    Raises UserError for a folder without such files, for a file that cannot be mapped, and for
    columns of unequal lengths.
    """
    columns = {}
    for path in sorted(Path(folder).glob("*.npy")):
        try:
            columns[path.stem] = np.lib.format.open_memmap(path, "r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot map {path}: {error}") from error
    if not columns:
        raise UserError(f"{folder} holds no .npy file: save each column there with np.save")
    lengths = {name: len(x) if x.ndim else "no" for name, x in columns.items()}
    if len({*lengths.values()}) > 1 or "no" in lengths.values():
        listed = ", ".join(f"{name} has {length} rows" for name, length in lengths.items())
        raise UserError(f"the columns of {folder} must be of one length: {listed}")
    return columns


class TextLines:
    """The lines of a text file of any size, read by their numbers.

    A line ends with "\\n" or "\\r\\n", which is not part of it; the last one may lack its end. The
    offsets of all lines are kept in the file `index`, by default `PATH.lines.npy`, which is made
    again if the size or the modification time of the text has changed. Raises UserError if a file
    cannot be read or written, for a line that cannot be decoded, and if the text changes in use.
    """

    def __init__(self, path: str | Path, *, encoding: str = "utf-8", index: str | Path = ""):
        self.path, self.encoding = Path(path), encoding
        self._index_path = Path(index or f"{path}.lines.npy")
        try:
            newline = "\n".encode(encoding)
        except LookupError as error:
            raise UserError(f"{path}: {error}; give its encoding, such as utf-8") from error
        if newline != b"\n":
            raise UserError(f"{path}: lines are not found in {encoding}; save the text as utf-8")
        try:
            self._index = self._find_index()
        except OSError as error:
            where = error.filename or self.path
            raise UserError(f"cannot index {path}: {where}: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._index) - 2

    def __getitem__(self, number: int) -> str:
        return self.__getitems__([range(len(self))[number]])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[str]:
        """Returns the lines of these numbers, counted from 0."""
        rows = np.asarray(numbers, np.int64)
        starts, ends = self._index[rows + 1].tolist(), self._index[rows + 2].tolist()
        with self.path.open("rb", buffering=0) as file:
            if _stamp(file.fileno()) != (self._index[0], self._index[-1]):
                raise UserError(f"{self.path} has changed since it was indexed: start again")
            data = [os.pread(file.fileno(), b - a, a) for a, b in zip(starts, ends, strict=True)]
        return [self._decode(*line) for line in zip(rows.tolist(), data, strict=True)]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest of the file; computing it reads the file once."""
        return sha256(self.path)

    def _decode(self, number: int, data: bytes) -> str:
        try:
            return data.removesuffix(b"\n").removesuffix(b"\r").decode(self.encoding)
        except UnicodeDecodeError as error:
            place = f"{self.path}, line {number + 1}"
            raise UserError(f"{place}: not {self.encoding} text; give its encoding") from error

    def _find_index(self) -> np.ndarray:
        """Returns the stamp's time, the offset of each line, and the size of the text, uint64."""
        stamp = _stamp(self.path)
        try:
            index = np.lib.format.open_memmap(self._index_path, "r")
            if (index.dtype, index.ndim) == (np.uint64, 1) and (index[0], index[-1]) == stamp:
                return index
        except (FileNotFoundError, ValueError, EOFError, IndexError):
            pass  # There is none yet, or it is damaged.
        # Several processes may do this at once: each renames a file of its own.
        with tempfile.TemporaryDirectory(dir=self._index_path.parent, prefix=".lines-") as folder:
            beside, count = Path(folder) / "index.npy", 0
            with beside.open("wb") as file:
                _write_header(file, count)
                for numbers in chain([[stamp[0]]], self._offsets()):
                    file.write(np.asarray(numbers, "<u8").tobytes())
                    count += len(numbers)
                file.seek(0)
                _write_header(file, count)
            beside.replace(self._index_path)
        return np.lib.format.open_memmap(self._index_path, "r")

    def _offsets(self) -> Iterator[Sequence[int] | np.ndarray]:
        """Yields the offset of the first line, and the offset after the end of each line."""
        with self.path.open("rb") as file:
            has_bom = codecs.lookup(self.encoding).name == "utf-8" and file.read(len(BOM)) == BOM
            end = position = file.seek(len(BOM) if has_bom else 0)
            yield [position]
            while block := file.read(BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position + 1
                yield ends
                position, end = position + len(block), ends[-1] if ends.size else end
            if end < position:
                yield [position]


def _stamp(file: int | Path) -> tuple[int, int]:
    """Returns the modification time in nanoseconds and the size of a file."""
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size


def _write_header(file: BinaryIO, count: int) -> None:
    """Writes the header of a .npy file of so many uint64, of the same size for any number."""
    shape = {"descr": "<u8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, shape)


class _Records:
    """Reads records as rows. The last rows are kept, as each column asks for the same ones."""

    def __init__(self, source: Any, to_row: Callable[[Any], Mapping[str, Any]]):
        if not len(source):
            raise UserError("the source of the rows has no records")
        self.source, self._to_row = source, to_row
        self.like = self._row(source[0])  # the first row, whose shapes and dtypes all rows have
        self._numbers: np.ndarray | None = None
        self._rows: dict[str, np.ndarray] = {}
        for name, x in self.like.items():
            if x.dtype.kind in "OSU":
                raise UserError(f"{name!r} of the first record is not a number or an array of them")

    def _row(self, record: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(x) for name, x in self._to_row(record).items()}

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of the rows of these numbers; they must not be changed."""
        if self._numbers is None or not np.array_equal(numbers, self._numbers):
            wanted = numbers.tolist()
            read = getattr(
                self.source, "__getitems__", lambda some: map(self.source.__getitem__, some)
            )
            rows = {n: np.empty((len(wanted), *x.shape), x.dtype) for n, x in self.like.items()}
            for i, (number, record) in enumerate(zip(wanted, read(wanted), strict=True)):
                row = self._row(record)
                if _kinds(row) != _kinds(self.like):
                    raise UserError(
                        f"record {number} is {_describe(row)} but the first one is "
                        f"{_describe(self.like)}: make them alike in `to_row`"
                    )
                for name, x in row.items():
                    rows[name][i] = x
            self._numbers, self._rows = numbers, rows
        return self._rows


def _kinds(row: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (x.dtype, x.shape) for name, x in row.items()}


def _describe(row: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in sorted(row.items()))


class RecordColumn:
    """A column of the rows that are made of records when they are read."""

    def __init__(self, records: _Records, name: str, digest: str):
        self._records, self._name, self._digest = records, name, digest
        like = records.like[name]
        self.shape, self.dtype = (len(records.source), *like.shape), like.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns the rows of a number, a slice or an array of numbers, as NumPy does."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.dtype.kind not in "iu":
            raise IndexError(f"rows are read by their numbers, not by {index.dtype}")
        numbers = np.where(index < 0, index + len(self), index).reshape(-1)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"a number is not that of one of the {len(self)} rows")
        return self._records.read(numbers)[self._name].reshape((*index.shape, *self.shape[1:]))

    @cached_property
    def digest(self) -> str:
        """What stands for the rows in the identity of a run; "" if all rows have to be read.

        It is a digest of the source's own digest and of a sample of the rows.
        """
        known = self._digest or getattr(self._records.source, "digest", "")
        sample = self[np.linspace(0, len(self) - 1, SAMPLE).astype(int)]
        return sha256([known.encode(), sample.tobytes()]) if known else ""


def record_columns(
    source: Any, to_row: Callable[[Any], Mapping[str, Any]] = dict, *, digest: str = ""
) -> dict[str, RecordColumn]:
    """Returns the columns of the rows that `to_row` makes of records, each when it is read.

    The source has a length and gives a record by its number, as `TextLines`, the sources of Grain
    and `tfds.data_source` do; if it has `__getitems__`, that reads many records at once. `to_row`
    returns numbers and arrays by name, of the same shapes and dtypes for each record. `digest`
    stands for the records in the identity of a run; without it, or an attribute `digest` of the
    source, each start of a run reads all records to compute one.
    """
    records = _Records(source, to_row)
    return {name: RecordColumn(records, name, digest) for name in records.like}
