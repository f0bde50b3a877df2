"""Calibration: confidence separates right from wrong replies; its threshold is the best one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.errors import UserError
from seqjax.inference.calibration import (
    RIDGE,
    Abstention,
    calibrate,
    load_abstention,
    noise_questions,
    save_abstention,
)

numbers = st.floats(-1e3, 1e3)


@st.composite
def examples(draw):
    """Scores in nats, similarities and whether replies are right; with ties and outliers."""
    count = draw(st.integers(2, 25))
    some = {"min_size": count, "max_size": count}
    score = st.sampled_from([-0.1, -2.0]) | st.floats(-300, 0)
    similarity = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    return (
        np.array(draw(st.lists(score, **some)), np.float32),
        np.array(draw(st.lists(similarity, **some)), np.float32),
        np.array(draw(st.lists(st.booleans(), **some))),
    )


def confidences(abstention, scores, similarities):
    pairs = zip(scores.tolist(), similarities.tolist(), strict=True)
    return np.array([abstention.confidence(*pair) for pair in pairs])


def gain(is_given, right):
    """The number of right replies that are given minus that of wrong ones."""
    return np.sum(is_given & right) - np.sum(is_given & ~right)


@given(example=examples())
def test_no_threshold_is_better_on_the_examples(example):
    scores, similarities, right = example
    abstention = calibrate(*example)
    confidence = confidences(abstention, scores, similarities)
    thresholds = [0.0, 2.0, *confidence, *np.nextafter(confidence, 2)]
    best = max(gain(confidence >= threshold, right) for threshold in thresholds)
    assert gain(confidence >= abstention.threshold, right) == best
    assert 0 <= abstention.threshold <= 1


@given(example=examples())
def test_the_weights_are_those_of_the_ridge_regression(example):
    """The gradient of the penalized negative log-likelihood, a convex function, is zero."""
    scores, similarities, right = (np.asarray(x, np.float64) for x in example)
    abstention = calibrate(*example)
    error = confidences(abstention, scores, similarities) - right
    slopes = [
        np.sum(error) + 1e-6 * abstention.bias,
        np.sum(error * scores) + RIDGE * abstention.of_score,
        np.sum(error * similarities) + RIDGE * abstention.of_similarity,
    ]
    assert np.max(np.abs(slopes)) < 1e-4 * (1 + np.sum(np.abs(scores)))


@given(
    example=examples(),
    weights=st.tuples(numbers, numbers, numbers),
    at=st.tuples(st.floats(-50, 0), st.floats(0, 1)),
    more=st.floats(0, 5),
)
def test_confidence_rises_with_score_and_similarity(example, weights, at, more):
    bias, of_score, of_similarity = weights
    abstention = Abstention(bias, abs(of_score), abs(of_similarity), 0.5)
    score, similarity = at
    confidence = abstention.confidence(score, similarity)
    assert 0 <= confidence <= 1
    assert abstention.confidence(score + more, similarity) >= confidence
    assert abstention.confidence(score, similarity + more) >= confidence


@pytest.mark.parametrize("apart", ["score", "similarity"])
def test_what_separates_right_from_wrong_decides(apart):
    rng = np.random.default_rng(0)
    right = np.arange(40) < 20
    noise = rng.uniform(0, 1, 40)
    tells = right + rng.uniform(-0.3, 0.3, 40)
    abstention = calibrate(*((tells, noise) if apart == "score" else (noise, tells)), right)
    weights = {"score": abstention.of_score, "similarity": abstention.of_similarity}
    assert weights.pop(apart) > 1 > 2 * abs(*weights.values())
    pairs = (tells, noise) if apart == "score" else (noise, tells)
    assert np.array_equal(confidences(abstention, *pairs) >= abstention.threshold, right)


@pytest.mark.parametrize("right", [True, False])
def test_if_all_are_right_all_are_given_and_if_none_is_none(right):
    rng = np.random.default_rng(1)
    scores, similarities = rng.uniform(-9, 0, 12), rng.uniform(0, 1, 12)
    abstention = calibrate(scores, similarities, np.full(12, right))
    assert np.all((confidences(abstention, scores, similarities) >= abstention.threshold) == right)


def test_replies_of_one_score_stand_or_fall_together():
    abstention = calibrate(np.zeros(5), np.zeros(5), np.array([True, True, False, False, False]))
    assert abstention.confidence(0.0, 0.0) < abstention.threshold


def test_noise_is_fixed_and_keeps_characters_and_lengths():
    texts = ["커피 주세요", "네", "몇 시에 열어요?"]
    noise = noise_questions(texts, 200)
    assert noise == noise_questions(texts, 200)
    assert {len(text) for text in noise} == {len(text) for text in texts}
    assert set("".join(noise)) == set("".join(texts))
    assert len(set(noise)) > 100


@given(values=st.tuples(numbers, numbers, numbers, st.floats(0, 1)))
def test_what_is_saved_is_loaded(values, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    save_abstention(Abstention(*values), directory)
    assert load_abstention(directory) == Abstention(*values)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "abstention.json does not exist"),
        ("", "abstention.json is damaged"),
        ("{", "abstention.json is damaged"),
        ("\udcff", "abstention.json is damaged"),
        ("[1, 2]", "abstention.json is damaged"),
        ('{"bias": 1.0}', "abstention.json is damaged"),
        (json.dumps(dict.fromkeys(Abstention._fields, "much")), "abstention.json is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(content, complaint, tmp_path):
    if content is not None:
        data = content.encode("utf-8", "surrogateescape")
        (tmp_path / "abstention.json").write_bytes(data)
    with pytest.raises(UserError, match=complaint) as caught:
        load_abstention(tmp_path)
    assert "\n" not in str(caught.value)
    assert "run experiments.evaluate on it, or answer always with --abstain=off" in str(
        caught.value
    )
