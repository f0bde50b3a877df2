"""Columns on disk equal arrays in memory, whichever rows are read; the index finds every line of a
text; and a file that cannot be used is named in an error."""

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import seqjax.data.streams
import seqjax.runs.identity
from seqjax.data.batching import take_rows
from seqjax.data.streams import (
    RecordColumn,
    TextLines,
    memory_mapped,
    names_on_disk,
    record_columns,
)
from seqjax.errors import UserError
from seqjax.runs.identity import arrays_digest


def make_arrays(num_rows: int = 11) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(256, size=(num_rows, 3, 2), dtype=np.uint8),
        "label": rng.integers(10, size=num_rows, dtype=np.int32),
    }


def save(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


class Source:
    """A source of records in plain Python, which counts what it reads."""

    def __init__(self, records: list):
        self.records, self.num_read = records, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int):
        self.num_read += 1
        return self.records[number]


def records_of(arrays: dict[str, np.ndarray]) -> list[dict]:
    return [{name: x[i] for name, x in arrays.items()} for i in range(len(arrays["label"]))]


def read_all(lines: TextLines) -> list[str]:
    return [lines[i] for i in range(len(lines))]


# Memory-mapped arrays


def test_memory_mapped_columns_are_the_arrays(tmp_path):
    arrays = make_arrays()
    columns = memory_mapped(save(tmp_path, arrays))
    assert names_on_disk(columns) == ["image", "label"] and names_on_disk(arrays) == []
    index = np.array([[3, 0], [10, 3]])
    batch = take_rows(columns, index, np.ones((2, 2), np.float32))
    for name, array in arrays.items():
        assert type(batch[name]) is np.ndarray  # a copy in memory
        np.testing.assert_array_equal(batch[name], array[index])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros((2, 3))}, "of one length: a has 3 rows, b has 2 rows"),
        ({"a": np.zeros(()), "b": np.zeros(2)}, "of one length: a has no rows, b has 2 rows"),
        ({"a": np.zeros(())}, "of one length: a has no rows"),
        ({}, "holds no .npy file: save each column there with np.save"),
    ],
)
def test_columns_that_cannot_be_rows_are_one_line(arrays, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        memory_mapped(save(tmp_path, arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_file_that_cannot_be_mapped_is_named(content, tmp_path):
    path = save(tmp_path, make_arrays()) / "label.npy"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)  # None: cut off
    with pytest.raises(UserError, match=r"cannot map .*label\.npy: "):
        memory_mapped(tmp_path)


# Lines of texts

TEXTS = {
    "empty": b"",
    "one": b"a",
    "ended": b"a\n",
    "not ended": b"a\nbc",
    "empty lines": b"\n\nx\n\n",
    "crlf": b"a\r\nbc\r\n\r\nd",
    "mixed": b"a\r\nb\rc\n\rd\n",
    "korean": "가나\n다\n\n라마바".encode(),
    "other line ends": "a\u2028b\x0cc\x85d\n가\u2029".encode(),
    "bom": b"\xef\xbb\xbf" + "가\nb\n".encode(),
    "only a bom": b"\xef\xbb\xbf",
    "many": b"".join(b"%d\n" % i for i in range(500)),
}


@pytest.mark.parametrize("block", [2, 3, 2**22])
@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_those_between_newlines(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(seqjax.data.streams, "BLOCK", block)
    path = tmp_path / "text.txt"
    path.write_bytes(TEXTS[name])
    # Of Python's text files, one with newline="\n" ends lines there only.
    with io.TextIOWrapper(io.BytesIO(TEXTS[name]), encoding="utf-8-sig", newline="\n") as file:
        expected = [line.removesuffix("\n").removesuffix("\r") for line in file]
    lines = TextLines(path)
    assert read_all(lines) == expected
    some = [len(expected) - 1, 0, len(expected) - 1] if expected else []
    assert lines.__getitems__(some) == [expected[i] for i in some]
    with pytest.raises(IndexError):
        lines[len(expected)]
    index = np.load(f"{path}.lines.npy")
    assert (index.dtype, len(index)) == (np.uint64, len(expected) + 2)


def test_an_index_is_made_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(seqjax.data.streams, "BLOCK", 2**16)
    path = tmp_path / "text.txt"
    path.write_bytes(b"\n" * 2**20)
    tracemalloc.start()
    assert len(TextLines(path)) == 2**20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21 < Path(f"{path}.lines.npy").stat().st_size


def test_an_encoding_is_used_and_what_it_cannot_read_has_a_line_number(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("a\n가나\n".encode("cp949"))
    assert read_all(TextLines(path, encoding="cp949")) == ["a", "가나"]
    lines = TextLines(path)
    assert lines[0] == "a"
    with pytest.raises(UserError, match="text.txt, line 2: not utf-8 text; give its encoding"):
        lines[1]
    with pytest.raises(UserError, match="lines are not found in utf-16; save the text as utf-8"):
        TextLines(path, encoding="utf-16")
    with pytest.raises(UserError, match="unknown encoding: utf-99"):
        TextLines(path, encoding="utf-99")


def test_an_index_is_made_once_and_again_when_the_text_has_changed(tmp_path, monkeypatch):
    path, index = tmp_path / "text.txt", tmp_path / "elsewhere.npy"
    path.write_text("a\nb\n")
    made, offsets = [], TextLines._offsets

    def count(self):
        made.append(self.path)
        return offsets(self)

    monkeypatch.setattr(TextLines, "_offsets", count)
    first = TextLines(path, index=index)
    assert read_all(TextLines(path, index=index)) == ["a", "b"] and len(made) == 1
    path.write_text("a\nb\nc\n")  # another size
    with pytest.raises(UserError, match="text.txt has changed since it was indexed: start again"):
        first[0]
    assert read_all(TextLines(path, index=index)) == ["a", "b", "c"] and len(made) == 2
    path.write_text("a\n\nbc\n")  # another time
    os.utime(path, ns=(1, 1))
    assert read_all(TextLines(path, index=index)) == ["a", "", "bc"] and len(made) == 3
    for damage in (b"", b"no index", index.read_bytes()[:-3]):
        index.write_bytes(damage)
        assert read_all(TextLines(path, index=index)) == ["a", "", "bc"]
    np.save(index, np.zeros(0, np.uint64))
    assert len(TextLines(path, index=index)) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "elsewhere.npy"}


def test_a_text_or_an_index_that_cannot_be_opened_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot index .*no\.txt: .*No such file or directory"):
        TextLines(tmp_path / "no.txt")
    path = tmp_path / "text.txt"
    path.write_text("a\n")
    with pytest.raises(UserError, match=r"cannot index .*text\.txt: .*nowhere.*: No such file"):
        TextLines(path, index=tmp_path / "nowhere" / "index.npy")


def test_a_text_is_encoded_when_it_is_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ab\nc\n\n", encoding="utf-8")
    encoded = []

    def to_row(line: str) -> dict:
        encoded.append(line)
        ids = np.zeros(3, np.int32)
        ids[: len(line)] = list(line.encode())
        return {"ids": ids, "length": np.int32(len(line))}

    columns = record_columns(TextLines(path), to_row)
    assert {name: (x.shape, x.dtype) for name, x in columns.items()} == {
        "ids": ((3, 3), np.int32),
        "length": ((3,), np.int32),
    }
    encoded.clear()
    assert columns["ids"][[1, 0]].tolist() == [[99, 0, 0], [97, 98, 0]]
    assert columns["length"][[1, 0]].tolist() == [1, 2] and encoded == ["c", "ab"]


# Records


INDICES = [2, -1, np.int32(4), slice(2, 9, 3), slice(None), slice(-2, None), [5, 5, -11]]
INDICES += [np.array([[1, 2], [10, 0]]), np.zeros((2, 0), int)]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_rows_of_records_are_those_of_arrays(index):
    arrays = make_arrays()
    columns = record_columns(Source(records_of(arrays)))
    for name, array in arrays.items():
        rows = columns[name][index]
        assert (rows.dtype, rows.shape) == (array.dtype, array[index].shape)
        np.testing.assert_array_equal(rows, array[index])
        assert columns[name].shape == array.shape and len(columns[name]) == len(array)


@pytest.mark.parametrize("index", [11, -12, [0, 11], [True] * 11, [0.0]])
def test_rows_that_are_not_there_raise_an_index_error(index):
    with pytest.raises(IndexError):
        record_columns(Source(records_of(make_arrays())))["label"][index]


def test_a_record_is_read_once_for_all_columns():
    source = Source(records_of(make_arrays()))
    columns = record_columns(source)
    source.num_read = 0
    take_rows(columns, np.array([[4, 5], [6, 0]]), np.ones((2, 2)))
    assert source.num_read == 4


def test_records_that_are_no_rows_are_refused():
    with pytest.raises(UserError, match="the source of the rows has no records"):
        record_columns(Source([]))
    with pytest.raises(UserError, match="'b' of the first record is not a number or an array"):
        record_columns(Source([{"a": 1, "b": "text"}]))
    ragged = [{"a": np.zeros(2)}, {"a": np.zeros(3)}]
    message = r"record 1 is a float64\[3\] but the first one is a float64\[2\]: make them alike"
    with pytest.raises(UserError, match=message):
        record_columns(Source(ragged))["a"][:]


# The identity of a run


def test_rows_have_one_digest_wherever_they_are(tmp_path, monkeypatch):
    arrays = make_arrays() | {"nothing": np.zeros((11, 0))}
    expected = arrays_digest(arrays)
    monkeypatch.setattr(seqjax.runs.identity, "PART_BYTES", 13)  # two rows of "image"
    mapped = memory_mapped(save(tmp_path, make_arrays()))
    source = Source(records_of(make_arrays()))
    records = record_columns(source)
    for columns in (arrays, mapped, records):
        assert arrays_digest({**columns, "nothing": arrays["nothing"]}) == expected
    arrays["label"][10] += 1
    assert arrays_digest(arrays) != expected
    assert arrays_digest({"scalar": np.float32(1)}) != arrays_digest({"scalar": np.float32(2)})


def test_a_digest_of_the_source_stands_for_its_rows(tmp_path):
    path = tmp_path / "text.txt"

    def digest(text: str, factor: int = 1) -> str:
        path.write_text(text)
        lines = TextLines(path, index=tmp_path / f"{len(text)}.npy")
        return arrays_digest(record_columns(lines, lambda line: {"n": factor * len(line)}))

    assert digest("a\nb\n") == digest("a\nb\n")
    assert len({digest("a\nb\n"), digest("a\nc\n"), digest("a\nb\n", 2)}) == 3
    source = Source([{"n": 1}] * 1000)
    columns = record_columns(source, digest="version 1")
    assert arrays_digest(columns) != arrays_digest(record_columns(source, digest="version 2"))
    assert source.num_read < 200


# Grain


@pytest.mark.slow
def test_an_array_record_file_is_read_through_grain(tmp_path):
    grain = pytest.importorskip("grain")
    from array_record.python.array_record_module import ArrayRecordWriter

    arrays, path = make_arrays(), str(tmp_path / "rows.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    for image, label in zip(arrays["image"], arrays["label"], strict=True):
        writer.write(image.tobytes() + label.tobytes())
    writer.close()

    def to_row(record: bytes) -> dict:
        image = np.frombuffer(record[:6], np.uint8).reshape(3, 2)
        return {"image": image, "label": np.frombuffer(record[6:], np.int32)[0]}

    source = grain.sources.ArrayRecordDataSource(path)
    columns = record_columns(source, to_row)
    assert all(isinstance(x, RecordColumn) for x in columns.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(
            columns[name][np.array([[7, 0], [10, 7]])], array[[[7, 0], [10, 7]]]
        )
    assert arrays_digest(columns) == arrays_digest(arrays)
