"""Pairs of texts: the forms that a file may have, and the faults that are refused by line."""

import csv
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data.parallel_text import SHIPPED, check_pairs, read_labels, read_pairs
from seqjax.errors import UserError
from seqjax.files import MAX_LINE

PAIRS = [("안녕하세요?", "네, 안녕하세요!"), ("Hi there", '"Hi", 여보세요')]

# Texts of one line as `read_pairs` returns them: in NFC, stripped, not empty.
texts = (
    st.text(st.sampled_from(" 네요,'\"?.가e") | st.characters(exclude_categories=["C", "Z"]))
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(bool)
)
cells = st.lists(texts, min_size=1, max_size=3).map("\n".join)


def lines_of(rows: list) -> str:
    return "".join(f"{source}\n{target}\n" for source, target in rows)


def tsv_of(rows: list) -> str:
    return "".join(f"{source}\t{target}\tCC-BY\n" for source, target in rows)


def csv_of(rows: list, header: tuple = ("q", "a")) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


WRITERS = {"lines": lines_of, "csv": csv_of, "tsv": tsv_of}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that writes the file "mine" and reads pairs from it."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(content: str | bytes, **options):
        data = content.encode() if isinstance(content, str) else content
        Path("mine").write_bytes(data)
        return read_pairs("mine", **options)

    return write_and_read


@pytest.mark.parametrize("form", WRITERS)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_what_is_written_is_read(form: str, rows: list, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("pairs") / "mine"
    path.write_text(WRITERS[form](rows), encoding="utf-8", newline="")
    assert read_pairs(str(path), form=form) == rows


@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_quoted_cells_may_hold_lines(rows: list, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("pairs") / "mine"
    for end in ("\n", "\r\n", "\r"):
        path.write_text(csv_of(rows).replace("\n", end), encoding="utf-8", newline="")
        assert read_pairs(str(path), form="csv") == rows


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
def test_encodings_and_line_ends(read, form: str, end: str, encoding: str) -> None:
    text = WRITERS[form](PAIRS).replace("\n", end)
    argument = "utf-8" if encoding == "utf-8-sig" else encoding  # the byte-order mark is dropped
    for content in (text, text.removesuffix(end), text + end + " " + end):
        data = content.encode(encoding)
        assert read(data, form=form, encoding=argument) == PAIRS


def test_blank_lines_may_stand_between_pairs(read) -> None:
    assert read("\n a \nb\n\n\nc\n\td\n\n") == [("a", "b"), ("c", "d")]
    assert read("\na\tb\n\t\nc\td\n", form="tsv") == [("a", "b"), ("c", "d")]
    assert read('\nq,a\n\n"a",b\n,\nc,"d"', form="csv") == [("a", "b"), ("c", "d")]


LONG = "x" * (MAX_LINE + 1)
KOREAN = {"source_column": "English", "target_column": "한국어"}


@pytest.mark.parametrize(
    "form, content, options",
    [
        ("csv", "Q,A,label\nx,y,0", {}),
        ("csv", "label, a ,q\n0,y,x", {}),
        ("csv", "id,Question,Answer\n7, x ,\ty", {}),
        ("csv", "TARGET,source\ny,x", {}),
        ("csv", 'a,q\n"y", "x"', {}),
        ("csv", "q,a,한국어,english\n1,2,y,x", KOREAN),
        ("tsv", "한국어\tn\tEnglish\ny\t1\tx", KOREAN),
        ("tsv", "x\ty\tz", {}),
    ],
)
def test_columns_are_found(read, form: str, content: str, options: dict) -> None:
    assert read(content, form=form, **options) == [("x", "y")]
    decomposed = unicodedata.normalize("NFD", content)
    assert read(decomposed, form=form, **options) == [("x", "y")]


def test_texts_come_in_nfc(read) -> None:
    rows = [("카페", "café")]
    assert read(unicodedata.normalize("NFD", lines_of(rows))) == rows
    assert check_pairs([[unicodedata.normalize("NFD", text) for text in rows[0]]]) == rows


def test_tsv_takes_quotes_as_they_are(read) -> None:
    assert read('"a\tb "c" \n', form="tsv") == [('"a', 'b "c"')]


def test_pairs_may_be_given() -> None:
    assert check_pairs((("Hello.", " 안녕하세요. "), ["a", "b\nc"])) == [
        ("Hello.", "안녕하세요."),
        ("a", "b\nc"),
    ]


def test_shipped_corpora_go_by_their_names() -> None:
    assert all(len(read_pairs(name)) >= 5 for name in SHIPPED)
    assert read_pairs("tutorial_words", form="csv")[-1] == ("love", "사랑")  # `form` is ignored
    assert read_pairs("tutorial_sentences")[2] == ("What is your name?", "너의 이름이 뭐니?")


@pytest.mark.parametrize(
    "content, options, complaint",
    [
        ("a\nb\nc\n", {}, ", line 3: no line answers it; write one or remove it"),
        ("a\nb\nc\n\nd\n", {}, ", line 3: no line answers it"),
        ("a\nb\x00\n", {}, ", line 2: control character U\\+0000; remove it"),
        ("a\rb\r\x1b[0m\rd", {}, ", line 3: control character U\\+001B"),
        ("a\nb\u0085c\n", {}, ", line 2: control character U\\+0085"),
        (b"a\nb\nc\n\xb3\xd7\n", {}, ", line 4: not utf-8 text; .* encoding, such as cp949"),
        (b"a\n\xff\xff", {"encoding": "cp949"}, ", line 2: not cp949 text"),
        ("a\nb".encode("utf-16"), {}, ", line 1: not utf-8 text"),
        (b"\xff\xfea\x00\n\x00b", {"encoding": "utf-16"}, ": .*utf-16|, line 2: .*"),
        ("a\nb", {"encoding": "cp94"}, ": unknown encoding: cp94; give the file's encoding"),
        ("a\nb", {"encoding": "rot13"}, ": 'rot13' is not a text encoding.*; give the file's"),
        ("", {}, ": holds no pairs; write at least one"),
        ("\ufeff \r\n", {}, ": holds no pairs"),
        ("a\tb\n\tc\n", {"form": "tsv"}, ", line 2: the source is empty; write a text"),
        ("a\tb\nc\t \n", {"form": "tsv"}, ", line 2: the target is empty"),
        ("a\tb\nc d\n", {"form": "tsv"}, ", line 2: no second text; put a tab"),
        ("", {"form": "csv"}, ", line 1: the header '' has no columns q,a or question,answer or"),
        ("q,a\n", {"form": "csv"}, ": holds no pairs"),
        ("x,y\n1,2", {"form": "csv"}, ", line 1: the header 'x,y' has no columns q,a or .*name"),
        ("q,a\n1,2", {"form": "csv"} | KOREAN, ", line 1: .* no columns English,한국어; name"),
        ('q,a\n"1\n2",3\n4,5,6\n', {"form": "csv"}, ", line 4: 3 cells, but the header has 2"),
        ('q,a\n"1\n2",3\n4\n', {"form": "csv"}, ", line 4: 1 cells"),
        ('q,a\n"1\n2",3\n"",5\n', {"form": "csv"}, ", line 4: the source is empty"),
        ('q,a\n1,2\n"3\n4",5\n"6,7\n8,9\n', {"form": "csv"}, ", line 5: unexpected end.*quotes"),
        ('q,a\n"3"4,5\n', {"form": "csv"}, ", line 2: ',' expected after '\"'; correct the quotes"),
        ("q,a\n" + '"' + "1,2\n" * 50_000, {"form": "csv"}, ", line 2: field larger than"),
        ("q,a\n1,2\n3," + LONG, {"form": "csv"}, ", line 3: longer than 131,072 charac"),
        ("a\n" + LONG, {}, ", line 2: longer than 131,072 .*; break it into several"),
        ("a\tb\n" * 2_001, {"form": "tsv", "max_megabytes": 0.008}, " is larger than 0.008 MB"),
        ("a\nb", {"max_megabytes": 0.0}, None),
        ("a\nb", {"max_megabytes": float("nan")}, None),
        ("q,a\n1,2\n3,\x0b", {"form": "csv"}, ", line 3: control character U\\+000B"),
        ("a\nb", {"form": "xml"}, None),
        ("a\nb", {"source_column": "q", "target_column": "a"}, ": name both columns of a csv"),
        ("a\tb", {"form": "tsv", "target_column": "a"}, ": name both columns of a csv or tsv"),
    ],
)
def test_bad_file_is_refused_in_one_line(read, content, options: dict, complaint) -> None:
    others = "unknown form of pairs 'xml': known: csv|data.max_megabytes=.* must be a number"
    expected = f"^mine{complaint}" if complaint else others
    with pytest.raises(UserError, match=expected) as caught:
        read(content, **options)
    assert "\n" not in str(caught.value)


def test_a_file_and_a_line_of_the_largest_size_are_read(read) -> None:
    text = "x" * MAX_LINE
    assert read(f"q\n{text}\n", max_megabytes=(MAX_LINE + 3) / 1e6) == [("q", text)]
    assert read(f"q,a\nq,{text[2:]}\n", form="csv") == [("q", text[2:])]


def test_labels_are_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("one\n" * 300, encoding="utf-8")
    assert len(read_labels(str(tmp_path / "labels"), "", 300, 0.0012)) == 300
    with pytest.raises(UserError, match="labels is larger than 0.0011 MB: raise data.max_mega"):
        read_labels(str(tmp_path / "labels"), "", 300, 0.0011)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for name in ("none.txt", "."):
        with pytest.raises(
            UserError, match="cannot read the pairs .*; give the path of a file or one of cafe"
        ):
            read_pairs(str(tmp_path / name))


@pytest.mark.parametrize(
    "pair, complaint",
    [
        (("a",), r"pair 2: \('a',\) is not two texts; write \(source, target\)"),
        ("ab", "pair 2: 'ab' is not two texts"),
        (("a", "b", "c"), "pair 2: .* is not two texts"),
        (("a", " "), "pair 2: the target is empty"),
        (("a\x00", "b"), "pair 2: control character U\\+0000"),
        (("a", "b\r\nc"), "pair 2: control character U\\+000D; remove it"),
        (("a", "\ud800"), "pair 2: not Unicode text"),
    ],
)
def test_bad_given_pair_is_refused(pair, complaint: str) -> None:
    with pytest.raises(UserError, match=f"^{complaint}"):
        check_pairs([("x", "y"), pair])
