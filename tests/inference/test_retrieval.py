"""The retrieval baseline: its TF-IDF against a plain oracle, and its properties."""

import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.inference.retrieval import RetrievalBaseline

texts = st.lists(
    st.text(st.sampled_from("abc 가나?"), max_size=8), min_size=1, max_size=6, unique=True
)


def grams(text):
    """Counts n-grams of one to three characters of each word between blanks."""
    counts = Counter()
    for word in re.sub(r"[^\w]", " ", text.lower()).split():
        padded = f" {word} "
        for size in (1, 2, 3):
            counts.update(padded[i : i + size] for i in range(len(padded) - size + 1))
    return counts


def cosines(known, question):
    """The cosine similarity of a question to each of the known texts."""
    counts = [grams(text) for text in known]

    def vector(count):
        df = {gram: sum(gram in other for other in counts) for gram in count}
        return {
            gram: math.log(1 + n) * math.log((1 + len(known)) / max(df[gram], 1))
            for gram, n in count.items()
        }

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values())) or 1.0

    question_vector, scores = vector(grams(question)), []
    for count in counts:
        v = vector(count)
        dot = sum(x * question_vector.get(gram, 0.0) for gram, x in v.items())
        scores.append(dot / norm(v) / norm(question_vector))
    return scores


@given(known=texts, question=st.text(st.sampled_from("abcd 가나!"), max_size=8))
def test_it_is_the_largest_cosine(known, question):
    expected = cosines(known, question)
    match = RetrievalBaseline(known)(question)
    assert match.similarity == pytest.approx(max(expected), abs=1e-12)
    assert expected[match.index] == pytest.approx(max(expected), abs=1e-12)
    assert 0 <= match.similarity <= 1


@given(known=texts)
def test_a_known_text_is_nearest_to_itself(known):
    baseline = RetrievalBaseline(known)
    for text in known:
        match = baseline(text)
        if grams(text):
            assert match.similarity == pytest.approx(1)
            assert cosines(known, text)[match.index] == pytest.approx(1)
        else:
            assert match.similarity == 0


def test_ties_go_to_the_first_and_case_is_ignored():
    baseline = RetrievalBaseline(["영업시간 알려 주세요", "Is it open?", "is it OPEN"])
    assert baseline("IS IT OPEN!!") == (1, pytest.approx(1))
    assert baseline("영업시간, 알려 주세요.").index == 0


def test_rare_words_weigh_more_than_common_ones():
    known = ["커피 있어요", "녹차 있어요", "우유 있어요"]
    assert RetrievalBaseline(known)("우유 주세요").index == 2
    assert RetrievalBaseline(known)("xyz").similarity < 0.05  # words begin and end with a blank
