"""Tagged sentences: the shipped corpus, a user's file, the lexicon and the arrays."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from seqjax.data.text_files import TAGS, Sentence, encode_sentences, load_tagged_sentences, word_ids
from seqjax.errors import UserError

# Pronouns have a case, so each can stand on one side of the verb only.
PRONOUNS = {"he", "she", "we", "they", "him", "us", "them", "me"}


@pytest.fixture(scope="module")
def everyday() -> list[Sentence]:
    return load_tagged_sentences("everyday")


def words_tagged(sentences: list[Sentence], tag: str) -> set[str]:
    return {word for pairs in sentences for word, each in zip(*pairs, strict=True) if each == tag}


def test_tutorial_is_two_sentences() -> None:
    assert load_tagged_sentences("tutorial") == [
        (("John", "loves", "Jane"), ("S", "V", "O")),
        (("Jane", "loves", "Alex"), ("S", "V", "O")),
    ]


def test_everyday_sentences_are_distinct_and_short(everyday: list[Sentence]) -> None:
    assert len(everyday) >= 240
    assert len({words for words, _ in everyday}) == len(everyday)
    assert all(3 <= len(words) == len(tags) <= 8 for words, tags in everyday)
    assert all(word.isalpha() for words, _ in everyday for word in words)


def test_everyday_phrases_come_as_subject_verb_object(everyday: list[Sentence]) -> None:
    for _, tags in everyday:
        assert tuple(tag for tag, _ in itertools.groupby(tags)) == TAGS


def test_everyday_needs_more_than_the_word_or_its_position(everyday: list[Sentence]) -> None:
    subject, verb, object_ = (words_tagged(everyday, tag) for tag in TAGS)
    assert subject ^ object_ == PRONOUNS
    assert {"love", "paint", "water", "answer"} <= verb & subject & object_
    assert {tags[2] for _, tags in everyday} == set(TAGS)


def test_everyday_words_recur_so_that_few_are_unknown(everyday: list[Sentence]) -> None:
    words = [word for words, _ in everyday for word in words]
    assert min(Counter(words).values()) >= 2
    ids = word_ids(everyday[:-72])
    held_out = [word for words, _ in everyday[-72:] for word in words]
    assert sum(word not in ids for word in held_out) <= 0.03 * len(held_out)


def test_word_ids_are_sorted_from_one_whatever_the_order(everyday: list[Sentence]) -> None:
    ids = word_ids(everyday)
    assert list(ids) == sorted(ids)
    assert list(ids.values()) == list(range(1, len(ids) + 1))
    assert list(word_ids(everyday[::-1]).items()) == list(ids.items())


def test_sentences_can_be_read_back_from_the_arrays(everyday: list[Sentence]) -> None:
    ids = word_ids(everyday)
    names = ["", *ids]
    arrays = encode_sentences(everyday, ids)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
    for (words, tags), word, tag, length in zip(everyday, *arrays.values(), strict=True):
        assert tuple(names[i] for i in word[:length]) == words
        assert tuple(TAGS[i] for i in tag[:length]) == tags
        assert not word[length:].any() and not tag[length:].any()


def test_unknown_words_are_zero() -> None:
    train, test = load_tagged_sentences("tutorial")
    arrays = encode_sentences([test], word_ids([train]), max_length=5)
    assert arrays["word"].tolist() == [[1, 3, 0, 0, 0]]
    assert arrays["tag"].tolist() == [[0, 1, 2, 0, 0]]
    assert arrays["length"].tolist() == [3]


def test_width_is_the_longest_sentence_or_max_length(everyday: list[Sentence]) -> None:
    assert encode_sentences(everyday, {})["word"].shape == (len(everyday), 8)
    assert encode_sentences(everyday, {}, max_length=11)["tag"].shape == (len(everyday), 11)
    with pytest.raises(UserError, match="sentence 1, 'John loves Jane', has 3 .* max_length is 2;"):
        encode_sentences(load_tagged_sentences("tutorial"), {}, max_length=2)


def test_user_file_is_read_as_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffZoë/S  sees/V\tit/O\r\n\r\n1/2/S is/V half/O".encode())
    assert load_tagged_sentences(str(path)) == [
        (("Zoë", "sees", "it"), ("S", "V", "O")),
        (("1/2", "is", "half"), ("S", "V", "O")),
    ]


@pytest.mark.parametrize("token", ["cat", "cat/", "/S", "cat/X", "cat/s", "/"])
def test_bad_token_is_refused_with_file_line_and_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    (tmp_path / "mine.txt").write_text(f"a/S b/V c/O\n\na/S b/V {token}\n")
    monkeypatch.chdir(tmp_path)
    form = f"token '{token}' is not word/TAG with a TAG of S, V, O, such as cat/S"
    with pytest.raises(UserError, match=f"^mine.txt, line 3: {form}$"):
        load_tagged_sentences("mine.txt")


def test_empty_missing_and_unknown_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n")
    with pytest.raises(UserError, match="mine.txt, line 1: the tagged text is empty.*word/TAG"):
        load_tagged_sentences(str(tmp_path / "mine.txt"))
    (tmp_path / "mine.txt").write_text("a/S\x00b/V\n")
    with pytest.raises(UserError, match="mine.txt, line 1: control character U\\+0000"):
        load_tagged_sentences(str(tmp_path / "mine.txt"))
    with pytest.raises(UserError, match="cannot read the tagged text .*none.txt"):
        load_tagged_sentences(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="unknown tagged text 'everday': did you mean 'everyday'"):
        load_tagged_sentences("everday")
