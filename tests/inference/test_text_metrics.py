"""Metrics of texts: counted by hand, and computed by sacrebleu itself."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data.parallel_text import Split
from seqjax.inference.text_metrics import (
    answers_by_intent,
    distinct,
    right_replies,
    signatures,
    text_metrics,
)

REFERENCES = ["네, 여섯 시에 엽니다.", "라떼를 권해 드려요.", "화장실은 왼쪽입니다."]
REPLIES = ["네, 여섯 시에 엽니다.", "라떼 권해 드려요.", "모르겠어요"]

words = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)


@given(texts=st.lists(words, max_size=5), n=st.integers(1, 3))
def test_distinct_n_grams_are_counted(texts, n):
    grams = []
    for text in texts:
        tokens = text.split()
        grams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert distinct(texts, n) == (len(set(grams)) / len(grams) if grams else 0)


def test_distinct_of_a_known_example():
    assert distinct(["a b a b", "a b"], 1) == 2 / 6
    assert distinct(["a b a b", "a b"], 2) == 2 / 4


def test_bleu_and_chrf_are_sacrebleus():
    metrics = text_metrics(REPLIES, REFERENCES)
    bleu = sacrebleu.corpus_bleu(REPLIES, [REFERENCES], tokenize="char")
    assert metrics["bleu"] == bleu.score > 0
    assert metrics["chrf"] == sacrebleu.corpus_chrf(REPLIES, [REFERENCES]).score > 0
    assert metrics["exact_match"] == 1 / 3
    assert "tok:char" in signatures() and "nrefs:1" in signatures()


@given(texts=st.lists(st.text("가나다 .", min_size=1, max_size=9), min_size=1, max_size=4))
def test_a_text_is_its_own_best_translation(texts):
    metrics = text_metrics(texts, texts)
    assert metrics["exact_match"] == 1
    # BLEU counts 4-grams: shorter texts have none and score 0.
    spaceless = max(len(text.replace(" ", "")) for text in texts)
    assert metrics["bleu"] == pytest.approx(100 if spaceless >= 4 else 0)


def test_nothing_right_is_0():
    metrics = text_metrics(["xxxx", ""], ["yyyy", "zz"])
    assert metrics == dict(exact_match=0, bleu=0, chrf=0, distinct_1=1, distinct_2=0)


def test_as_many_replies_as_references():
    with pytest.raises(ValueError):
        text_metrics(["a"], ["a", "b"])


TRAIN = Split(["q1", "q2", "q3"], ["네, 돼요.", "물론이죠!", "9시요"], ["can", "can", "open"])
TEST = Split(["q4", "q5", "q6"], ["가능해요", "가능해요", "9시요"], ["can", "can", "open"])


def test_every_answer_of_the_intent_is_right_wherever_it_stands():
    answers = answers_by_intent([TRAIN, TEST])
    assert answers == {"can": {"네, 돼요.", "물론이죠!", "가능해요"}, "open": {"9시요"}}
    is_right = right_replies(["물론이죠!", "9시요", "9시요"], TEST, answers)
    assert is_right.dtype == bool and is_right.tolist() == [True, False, True]


def test_right_replies_ignore_blanks_punctuation_and_case():
    answers = answers_by_intent([TRAIN, TEST])
    is_right = right_replies(["네 돼요", "네,돼 요?!", "8시요"], TEST, answers)
    assert is_right.tolist() == [True, True, False]
    split = Split(["q"], ["The_End"], ["x"])
    assert right_replies(["the end."], split, answers_by_intent([split])).all()


def test_without_labels_there_are_no_intents():
    assert answers_by_intent([Split(["q"], ["a"], [])]) == {}
    assert len(right_replies([], Split([], [], []), {})) == np.int64(0)
