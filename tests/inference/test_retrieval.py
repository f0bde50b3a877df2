"""The nearest text: TF-IDF against a plain oracle, whatever else is written of it."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.inference.retrieval import NearestText

texts = st.lists(
    st.text(st.sampled_from("abc 가나?"), max_size=8), min_size=1, max_size=6, unique=True
)


def grams(text):
    """N-grams of one to three characters of each word between blanks, by hand."""
    found = Counter()
    for word in re.sub(r"[^\w]", " ", text.lower()).split():
        padded = f" {word} "
        for size in (1, 2, 3):
            found.update(padded[i : i + size] for i in range(len(padded) - size + 1))
    return found


def cosines(known, question):
    """The cosine of a question with each of the known texts."""
    counts = [grams(text) for text in known]

    def vector(count):
        df = {gram: sum(gram in other for other in counts) for gram in count}
        return {
            gram: math.log(1 + n) * math.log((1 + len(known)) / max(df[gram], 1))
            for gram, n in count.items()
        }

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values())) or 1.0

    of_question, scores = vector(grams(question)), []
    for count in counts:
        v = vector(count)
        dot = sum(x * of_question.get(gram, 0.0) for gram, x in v.items())
        scores.append(dot / norm(v) / norm(of_question))
    return scores


@given(known=texts, question=st.text(st.sampled_from("abcd 가나!"), max_size=8))
def test_it_is_the_largest_cosine(known, question):
    want = cosines(known, question)
    got = NearestText(known)(question)
    assert got.similarity == pytest.approx(max(want), abs=1e-12)
    assert want[got.index] == pytest.approx(max(want), abs=1e-12)
    assert 0 <= got.similarity <= 1


@given(known=texts)
def test_a_known_text_is_nearest_to_itself(known):
    nearest = NearestText(known)
    for text in known:
        found = nearest(text)
        if grams(text):
            assert found.similarity == pytest.approx(1)
            assert cosines(known, text)[found.index] == pytest.approx(1)
        else:
            assert found.similarity == 0


@given(known=texts.filter(lambda known: len(known) > 1), data=st.data())
def test_a_text_left_out_is_never_found(known, data):
    but = data.draw(st.integers(0, len(known) - 1))
    found = NearestText(known)(known[but], but=but)
    assert found.index != but
    want = np.delete(cosines(known, known[but]), but).max()
    assert found.similarity == pytest.approx(want, abs=1e-12)


def test_of_equals_it_is_the_first_and_case_and_punctuation_count_nothing():
    nearest = NearestText(["영업시간 알려 주세요", "Is it open?", "is it OPEN"])
    assert nearest("IS IT OPEN!!") == (1, pytest.approx(1))
    assert nearest("영업시간, 알려 주세요.").index == 0


def test_rare_words_weigh_more_than_common_ones():
    known = ["커피 있어요", "녹차 있어요", "우유 있어요"]
    assert NearestText(known)("우유 주세요").index == 2
    assert NearestText(known)("xyz").similarity < 0.05  # words begin and end in a blank
