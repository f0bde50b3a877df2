"""Responders: all decoders agree where they should, and noise is not answered."""

import json

import jax
import numpy as np
import pytest
from support.texts import PAIRS, QUESTIONS, batch_of, make_pairs, random_params, replies_of

import seqjax.plots
import seqjax.training.fit
from seqjax.config import base_config
from seqjax.errors import UserError
from seqjax.inference.calibration import noise_questions
from seqjax.inference.responder import Responder
from seqjax.models.text_to_text import Replies
from seqjax.serving.repl import load_responder

ASKED = [question for question, *_ in QUESTIONS]
STRANGE = ["라떼", "문 언제", "xyz?!", "", "여는 시간이 언제죠?" * 5]


@pytest.fixture(autouse=True)
def jax_has_started(monkeypatch):
    monkeypatch.setattr(seqjax.training.fit, "start_jax", lambda train: None)


@pytest.fixture(scope="module")
def responder(text_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.training.fit, "start_jax", lambda train: None)
        return load_responder(text_run)


def test_it_answers_what_it_was_taught(responder):
    for question, answer, _ in QUESTIONS:
        got = responder.answer(question)
        assert (got.text, got.finished, got.abstains) == (answer, True, False)
        assert got.nearest == question and got.similarity == pytest.approx(1)
        assert responder.abstention.threshold < got.confidence <= 1
        grown = [answer[: i + 1] for i in range(len(answer))]
        assert list(responder.stream(question)) == [*grown, answer]  # the end adds nothing


@pytest.mark.parametrize("question", [*ASKED[::3], *STRANGE])
def test_greedy_beam_of_one_stream_and_cold_sample_agree(responder, question):
    answer = responder.answer(question)
    (best,) = responder.beam(question, 1, 1)
    cold = responder.sample(question, temperature=0.0, seed=3)
    for other in (best, cold):
        assert (other.text, other.finished) == (answer.text, answer.finished)
        assert other.score == pytest.approx(answer.score, rel=1e-4, abs=1e-5)  # float32
    *_, last = texts = list(responder.stream(question))
    assert last == answer.text
    assert all(text.startswith(before) for before, text in zip(["", *texts], texts, strict=False))
    assert answer.score <= 0 and 0 <= answer.confidence <= 1


def test_a_beams_replies_differ_and_the_best_come_first(responder):
    replies = responder.beam(STRANGE[0], 4, 3)
    assert len({reply.text for reply in replies}) == len(replies) == 3
    encode = responder.text.target.encode
    ranks = [  # Wu et al.'s length penalty; the end is a token too
        reply.score / ((5 + len(encode(reply.text)) + reply.finished) / 6) ** 0.6
        for reply in replies
    ]
    assert ranks == sorted(ranks, reverse=True)


def test_fewer_hypotheses_than_asked_for_are_not_made_up():
    pairs = make_pairs(data={"max_target_length": 3, "pairs": (("a", "b"),)})
    params = random_params(pairs.text)
    # Replies of up to two tokens of three words, the ends included: "", "a", "b", "aa", ...
    replies = pairs.responder(params).beam("a", 12, 12)
    assert 3 <= len(replies) < 12
    assert all(np.isfinite(reply.score) for reply in replies)


def test_samples_are_a_function_of_the_seed(responder):
    def draw(seed, temperature=3.0):
        return responder.sample(ASKED[0], temperature, seed)

    assert draw(1) == draw(1)
    assert len({draw(seed).text for seed in range(6)}) > 3
    assert {draw(seed, 0.01).text for seed in range(3)} == {QUESTIONS[0][1]}


def test_top_k_and_top_p_restrict_a_sample(responder):
    """At this temperature nearly all replies are wrong, unless just one token is left."""
    free, cold, *filtered = (
        [responder.sample(ASKED[0], temperature, seed, **filters).text for seed in range(4)]
        for temperature, filters in (
            (4.0, {}),
            (0.0, {}),
            (4.0, {"top_k": 1}),
            (4.0, {"top_p": 1e-3}),
            (4.0, {"top_k": 1, "top_p": 1.0}),
        )
    )
    assert set(cold) == {QUESTIONS[0][1]} and len(set(free)) == 4
    assert all(texts == cold for texts in filtered)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be in [0, 1000]"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be in (0, 1]"),
    ],
)
def test_a_sample_out_of_range_is_refused(responder, choice, message):
    with pytest.raises(UserError) as caught:
        responder.sample(ASKED[0], **{"temperature": 1.0, "seed": 0} | choice)
    assert str(caught.value) == message


def test_a_configs_draws_are_those_of_its_evaluation():
    pairs = make_pairs(decode={"decoder": "sample(temperature=3.0, top_k=4, seed=2)"})
    params = random_params(pairs.text)
    responder = pairs.responder(params)
    replies = replies_of(pairs.text, params, batch_of(pairs.text))
    assert len(set(replies)) > 2
    for (question, _), reply in zip(PAIRS, replies, strict=True):
        assert responder.answer(question).text == reply


def test_attention_is_explained_token_by_token(responder):
    look = responder.explain(ASKED[4])
    assert look.weights.shape == (len(look.target), len(look.source))
    assert look.source == [letter.replace(" ", "▁") for letter in ASKED[4]]
    answer = QUESTIONS[4][1].replace(" ", "▁")
    assert look.target == [*answer, "<eos>"]
    np.testing.assert_allclose(look.weights.sum(-1), 1, rtol=1e-6)  # a softmax of float32


def test_without_attention_there_is_nothing_to_explain():
    pairs = make_pairs()
    assert pairs.responder(random_params(pairs.text)).explain("abc") is None


def test_noise_is_not_answered(responder):
    noise = noise_questions(ASKED, 40)
    assert np.mean([responder.answer(question).abstains for question in noise]) > 0.9


def test_calibration_counts_wrong_replies_as_wrong(responder):
    """Of two equal models, the one calibrated on wrong replies gives fewer."""
    text, part = responder.text, responder.train
    replies = responder._run.reply(responder.params, text.encode_sources(part.sources))
    replies = Replies(*map(np.asarray, replies))
    other = Responder(text, part, responder.answers, responder.params)
    good = other.calibrate(part, replies)
    assert other.abstention == good == responder.abstention
    wrong = replies._replace(tokens=replies.tokens[::-1])  # answers of the other intent
    other.calibrate(part, wrong)
    assert all(other.answer(question).abstains for question in ASKED)


def test_without_labels_texts_are_told_from_noise(responder):
    part = responder.train._replace(labels=[])
    other = Responder(responder.text, part, {}, responder.params)
    replies = other._run.reply(other.params, other.text.encode_sources(ASKED))
    other.calibrate(part, Replies(*map(np.asarray, replies)))
    assert not any(other.answer(question).abstains for question in ASKED)
    noise = noise_questions(ASKED, 20)
    assert np.mean([other.answer(question).abstains for question in noise]) > 0.8


def test_without_calibration_confidence_is_the_probability(text_run):
    responder = load_responder(text_run, abstain=False)
    for question in (ASKED[0], *STRANGE):
        answer = responder.answer(question)
        assert not answer.abstains
        assert answer.confidence == pytest.approx(np.exp(answer.score))


def test_a_model_without_start_and_end_is_refused():
    pairs = make_pairs(
        data={"boundaries": False},
        loss={"mask_padding": False},
        decode={"decoder": "teacher_forced"},
        embed_size=0,
    )
    with pytest.raises(UserError, match="cannot begin an answer; train the default") as caught:
        pairs.responder({})
    assert "\n" not in str(caught.value)


def test_every_question_has_one_shape(responder):
    """One compilation each: a long question, an empty one and an unknown one trace no more."""
    responder.answer(ASKED[0])
    responder.sample(ASKED[0], 1.0, 0)
    size, num_samplers = responder._run.reply._cache_size(), responder._run.sample._cache_size()
    for question in STRANGE:
        responder.answer(question)
        list(responder.stream(question))
        responder.sample(question, 0.1 * len(question), 1)
    assert responder._run.reply._cache_size() == size
    assert responder._run.next._cache_size() == 1
    assert responder._run.sample._cache_size() == num_samplers


# Runs


def test_a_loaded_run_answers_as_the_trained_one_did(text_run, responder):
    (line,) = (text_run / "abstention.json").read_text(encoding="utf-8").splitlines()[4:5]
    assert float(line.split()[1]) == responder.abstention.threshold
    again = load_responder(text_run)
    assert again.answer(ASKED[1]) == responder.answer(ASKED[1])
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(again.params))


def test_a_run_that_cannot_answer_is_one_line(text_run, tmp_path):
    def complaint():
        with pytest.raises(UserError) as caught:
            load_responder(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "config.json does not exist: is " in complaint()
    text = (text_run / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(base_config("recall").to_dict()), "utf-8")
    assert "is a run of recall: give a run of text_pairs" in complaint()
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert "has no checkpoint yet: train it first" in complaint()
    for name in ("checkpoints", "vocabulary.json"):
        (tmp_path / name).symlink_to(text_run / name)
    assert "abstention.json does not exist; run experiments.evaluate on it" in complaint()
