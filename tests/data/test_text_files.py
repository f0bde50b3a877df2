"""Word lists: the shipped ones, the forms that a user's file may have, and refused faults."""

import re
from pathlib import Path

import numpy as np
import pytest

from seqjax.data.text_files import encode_words, load_words
from seqjax.errors import UserError

TUTORIAL = ["word", "wood", "deep", "dive", "cold", "cool", "load", "love", "kiss", "kind"]


def test_tutorial_words_keep_their_order() -> None:
    assert load_words("tutorial") == TUTORIAL


def test_common_words_are_many_sorted_distinct_and_new() -> None:
    words = load_words("common")
    assert len(words) >= 420
    assert words == sorted(set(words) - set(TUTORIAL))
    assert all(re.fullmatch("[a-z]{4}", word) for word in words)


@pytest.mark.parametrize("name", ["tutorial", "common"])
def test_letters_can_be_read_back_from_the_encoding(name: str) -> None:
    words = load_words(name)
    encoded = encode_words(words)
    assert encoded.dtype == np.int32
    assert encoded.shape == (len(words), 4)
    assert ["".join(chr(ord("a") + letter) for letter in row) for row in encoded] == words


def test_encoding_spans_0_to_25() -> None:
    assert encode_words(["az", "by"]).tolist() == [[0, 25], [1, 24]]


@pytest.mark.parametrize("words", [["sun", "rain"], ["Sun"], ["s?n"], [""], ["né"]])
def test_encoding_refuses_what_it_cannot_encode(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^word \d: "):
        encode_words(words)


@pytest.mark.parametrize(
    "data",
    [
        b"sun\nsky\n",
        b"sun\nsky",
        b"\xef\xbb\xbfsun\nsky\n",
        b"sun\r\nsky\r\n",
        b"sun\rsky",
        b"\n  sun \n\n\tsky\n\n",
    ],
)
def test_user_file_may_have_a_bom_crlf_and_blanks(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(data)
    assert load_words(str(path)) == ["sun", "sky"]


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"sun\n\nrain\n", "line 3: 'rain' has 4 letters but the first word has 3"),
        (b"sun\nSky\n", "line 2: 'Sky' is not one word"),
        (b"sun\nsk y\n", "line 2: 'sk y' is not one word"),
        ("sun\nété\n".encode(), "line 2: 'été' is not one word"),
        (b"a\nb\n", "line 1: 'a' is not one word of two or more letters"),
        (b"sun\nsky\nsun\n", "line 3: 'sun' is also at .*line 1; remove"),
        (b"sun\n\xe9t\xe9\n", "line 2: not UTF-8 text; save the file as UTF-8$"),
        (b"sun\ns\x00y\n", "line 2: control character U\\+0000; remove it"),
        ("sun\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"", "line 1: the word list is empty; write one lowercase word per line"),
        (b"\xef\xbb\xbf\r\n \n", "line 1: the word list is empty"),
    ],
)
def test_bad_user_file_is_refused_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, complaint: str
) -> None:
    (tmp_path / "mine.txt").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^mine.txt, " + complaint) as caught:
        load_words("mine.txt")
    assert "\n" not in str(caught.value)


def test_a_file_is_bounded_and_so_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("sun\nsky\n")
    assert load_words(str(tmp_path / "mine.txt"), 8e-6) == ["sun", "sky"]
    with pytest.raises(UserError, match="mine.txt is larger than 7e-06 MB: raise data.max_megab"):
        load_words(str(tmp_path / "mine.txt"), 7e-6)
    (tmp_path / "mine.txt").write_text("sun\n" + "x" * 131_073)
    with pytest.raises(UserError, match="mine.txt, line 2: longer than 131,072 characters"):
        load_words(str(tmp_path / "mine.txt"))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="word list 'comon': did you mean 'common'.*tutorial"):
        load_words("comon")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the word list .*none.txt: "):
        load_words(str(tmp_path / "none.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="cannot read the word list .*folder.txt: "):
        load_words(str(tmp_path / "folder.txt"))
