"""Text models: padding, batch mates and spare ids change neither training nor replies."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import CELLS, assert_same
from support.texts import PAIRS, batch_of, make_text, random_params
from support.toys import get_config

from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError
from seqjax.models.text_to_text import DECODERS
from seqjax.nn.layers import one_hot
from seqjax.parameters import count_parameters, parameter_shapes
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq import token_metrics
from seqjax.tasks.seq2seq_data import load_seq2seq_data
from seqjax.training.setup import Evaluator

PAD, BOS, EOS, UNK = range(4)
ROWS, WIDE = 3, 10  # of a batch, and places for a source: four more than the longest needs


# Padding


@cache
def prepared(**changes):
    """Ids of every pair alone; and `run(batch)`, its loss, gradient, metrics and greedy replies."""
    text = make_text(**dict(changes, loss=dict(changes.get("loss", ()))))
    params = random_params(text)

    def measure(params, batch):
        metrics = token_metrics(text, text.logits(params, batch), batch, 0.1)
        return metrics["loss"].total, metrics

    @jax.jit
    def run(batch):
        (_, metrics), grads = jax.value_and_grad(measure, has_aux=True)(params, batch)
        replies = text.replies(params, batch)
        return grads, metrics, replies.scores, replies.tokens

    rows = [batch_of(text, [pair]) for pair in PAIRS]
    return [(row["source"][0][row["source"][0] > 0], row["target"][0]) for row in rows], run


def outcome(run, rows, places, width, own=0):
    """Results for the row `own`; the others have weight 0. `rows` may be fewer than ROWS."""
    source, target = np.zeros((ROWS, width), np.int32), []
    for row, (ids, labels), place in zip(source, rows, places, strict=False):
        row[place : place + len(ids)] = ids
        target.append(labels)
    target += [np.zeros_like(target[0])] * (ROWS - len(target))
    target = np.pad(target, ((0, 0), (0, width - 6)))
    weight = np.eye(ROWS, dtype=np.float32)[own]
    grads, metrics, scores, tokens = run({"source": source, "target": target, "weight": weight})
    return (grads, metrics, scores[own]), np.asarray(tokens[own])


def assert_close(ours, theirs):
    """Equal but for float32: the widths' sums over zeros are added, and fused, in another order.

    That moves a sum by units in its last place (6e-8 of its terms), for each of some 10 steps.
    """
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(theirs))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6 * largest), ours, theirs
    )


MODELS = {
    **{cell: {"cell": cell} for cell in CELLS},
    **{f"{cell}, dot": {"cell": cell, "attention": "dot"} for cell in CELLS},
    "both directions, additive": {"bidirectional": True, "attention": "additive"},
}
rows = st.integers(0, len(PAIRS) - 1)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10)
@given(batch=st.lists(rows, min_size=ROWS, max_size=ROWS), own=st.integers(0, 2), data=st.data())
def test_padding_and_batch_mates_do_not_matter(name, batch, own, data):
    every, run = prepared(**MODELS[name])
    room = [WIDE - len(every[i][0]) for i in batch]
    places = [data.draw(st.integers(0, most)) for most in room]
    got, tokens = outcome(run, [every[i] for i in batch], places, WIDE, own)
    # Alone, and without more columns than needed.
    want, want_tokens = outcome(run, [every[batch[own]]], [0], 6)
    assert_close(got, want)
    assert_same(tokens, want_tokens)


def test_padding_that_is_read_matters_and_batch_mates_do_not():
    every, run = prepared(loss=(("mask_padding", False),))
    alone, _ = outcome(run, every[:1], [0], 6)
    beside, _ = outcome(run, every, [0, 2, 1], 6)
    assert_close(beside, alone)
    for place, width in ((3, 6), (0, WIDE)):
        other, _ = outcome(run, every[:1], [place], width)
        assert abs(other[1]["cross_entropy"].total - alone[1]["cross_entropy"].total) > 0.01
        assert abs(other[2] - alone[2]) > 0.01


def test_sources_are_padded_on_the_side_that_the_config_says():
    before, behind = (make_text(data={"source_padding": side}) for side in ("pre", "post"))
    ids = before.source.encode("b")
    assert before.encode_sources(["b"]).tolist() == [[*[PAD] * 5, *ids]]
    assert behind.encode_sources(["b"]).tolist() == [[*ids, *[PAD] * 5]]
    with pytest.raises(UserError, match="data.source_padding='left' must be 'post' or 'pre'"):
        make_text(data={"source_padding": "left"})


def test_long_texts_are_cut_and_keep_start_and_end():
    text = make_text(data={"max_source_length": 2, "max_target_length": 3})
    assert text.encode_sources(["dabcab"]).tolist() == [text.source.encode("da")]
    (first,) = text.target.encode("나")
    assert text.encode_targets(["나다라가"]).tolist() == [[BOS, first, EOS]]


# Decoders


@cache
def deciding(spec, **model):
    """A model, and its decoder, compiled once for all seeds."""
    text = make_text(decode={"decoder": spec}, **model)
    return text, jax.jit(text.replies)


def decoded(spec, seed=0, **model):
    """A model, random weights, the batch of all pairs and what a decoder makes of it."""
    text, run = deciding(spec, **model)
    params, batch = random_params(text, seed), batch_of(text)
    return text, params, batch, run(params, batch)


@pytest.mark.parametrize("attention", ["none", "general"])
def test_a_beam_of_one_is_greedy(attention):
    finished = set()
    for seed in range(4):
        *_, greedy = decoded("greedy", seed, attention=attention)
        *_, beam = decoded("beam(beam_size=1)", seed, attention=attention)
        assert_same((beam.tokens, beam.finished), (greedy.tokens, greedy.finished))
        np.testing.assert_allclose(beam.scores, greedy.scores, rtol=1e-6)  # float32 sums
        finished |= set(greedy.finished.tolist())
    assert True in finished


@pytest.mark.parametrize("spec", ["greedy", "beam(beam_size=3, length_penalty=0.0)"])
def test_scores_are_the_models_own_log_probability(spec):
    text, params, batch, got = decoded(spec, seed=2, attention="dot")
    target = np.pad(got.tokens, ((0, 0), (1, 0)), constant_values=BOS)
    log_probs = jax.nn.log_softmax(jax.jit(text.logits)(params, batch | {"target": target}))
    own = np.take_along_axis(np.asarray(log_probs), got.tokens[..., None], -1)[..., 0]
    want = np.sum(own, axis=1, where=got.tokens > 0)
    np.testing.assert_allclose(got.scores, want, rtol=1e-5)  # float32: a step or all at once


def test_a_beam_finds_what_greedy_overlooks():
    better = 0
    for seed in range(4):
        *_, greedy = decoded("greedy", seed)
        *_, beam = decoded("beam(beam_size=8, length_penalty=0.0)", seed)
        better += int(np.sum(beam.scores > greedy.scores + 1e-3))
    assert better > 0


@pytest.mark.parametrize(
    "options", ["temperature=0.0", "top_k=1", "top_p=0.001", "temperature=9.0, top_k=2, top_p=0.1"]
)
def test_a_draw_without_a_choice_is_greedy(options):
    *_, greedy = decoded("greedy", attention="dot")
    *_, drawn = decoded(f"sample({options})", attention="dot")
    assert_same((drawn.tokens, drawn.finished), (greedy.tokens, greedy.finished))
    np.testing.assert_allclose(drawn.scores, greedy.scores, rtol=1e-6)  # float32 sums


HOT = "sample(temperature=3.0, top_p=0.95)"


def test_a_row_draws_the_same_reply_in_any_batch():
    text, params, batch, whole = decoded(HOT)
    _, run = deciding(HOT)
    assert len({tuple(row) for row in whole.tokens.tolist()}) == len(PAIRS)
    for index in map(np.array, ([3], [4, 0, 2], [1, 1, 1, 0, 4, 3, 2])):
        part = run(params, {"source": batch["source"][index]})
        assert_same(part.tokens, whole.tokens[index])
    source = np.pad(batch["source"], ((0, 0), (0, 4)))  # 4 more columns of padding
    assert_same(run(params, {"source": source}).tokens, whole.tokens)
    for size, devices in ((2, 1), (4, 2)):  # with rows that only fill the last batch
        evaluator = Evaluator(text.logits, text.replies, size, make_mesh(devices))
        assert_same(evaluator.predict(params, batch).tokens, whole.tokens)


def test_draws_are_a_function_of_the_seed_and_of_every_token():
    text, params, _, first = decoded(HOT)
    *_, same = decoded(HOT.replace(")", ", seed=0)"))
    *_, other = decoded(HOT.replace(")", ", seed=1)"))
    assert_same(same, first)
    assert np.all(np.any(other.tokens != first.tokens, axis=1))
    # Without weights, only the keys tell one source from another.
    flat = jax.tree.map(jnp.zeros_like, params)
    texts = ["a", "b", "ab", "ba", "aab", "abb", "aaaa", "bbbb"]
    source = jnp.asarray(text.encode_sources(texts))
    tokens = deciding(HOT)[1](flat, {"source": source}).tokens.tolist()
    assert len(set(map(tuple, tokens))) == len(texts)


def by_steps(text, params, batch, fed):
    """Most probable tokens, and their log-probabilities, of a decoder that is fed `fed [B, T]`."""
    model = text.bind(params)
    step = jax.jit(lambda state, token: model.decode_step(state, token))
    state, tokens, log_probs = text.encode(model, batch["source"]), [], []
    for token in fed.T:
        state, logits = step(state, token - text.first_id)
        logits = jax.nn.log_softmax(logits[:, : text.target.size - text.first_id])
        tokens.append(np.argmax(logits, axis=-1) + text.first_id)
        log_probs.append(np.max(logits, axis=-1))
    return np.stack(tokens, 1), np.stack(log_probs, 1)


def test_fed_padding_reads_start_and_then_only_padding():
    finished = set()
    for seed in range(3):
        text, params, batch, got = decoded("fed_padding", seed, cell="simple_rnn", embed_size=0)
        fed = np.pad(np.zeros_like(batch["source"]), ((0, 0), (1, 0)), constant_values=BOS)
        tokens, log_probs = by_steps(text, params, batch, fed)
        ended = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
        assert_same(got.tokens, np.where(ended, PAD, tokens))
        want = np.sum(log_probs, axis=1, where=~ended)
        np.testing.assert_allclose(got.scores, want, rtol=1e-5)  # float32
        assert_same(got.finished, np.any(tokens == EOS, axis=1))
        finished |= set(got.finished.tolist())
    assert finished == {True, False}


def test_teacher_forced_guesses_after_each_right_token():
    text = make_text(
        data={"boundaries": False},
        loss={"mask_padding": False},
        decode={"decoder": "teacher_forced"},
        embed_size=0,
    )
    params, batch = random_params(text), batch_of(text)
    got = jax.jit(text.replies)(params, batch)
    given_tokens = batch["target"][:, :-1]
    tokens, _ = by_steps(text, params, batch, given_tokens)
    want = np.concatenate([given_tokens[:, :1], tokens[:, :-1]], axis=1)
    assert_same(got.tokens, np.where(given_tokens > 0, want, PAD))
    assert not np.any(got.finished)


@pytest.mark.parametrize("spec", DECODERS)
@pytest.mark.parametrize("boundaries", [True, False])
def test_spare_ids_are_never_emitted(spec, boundaries):
    if not boundaries and spec != "teacher_forced":
        return  # these need start and end
    text = make_text(
        embed_size=5 * boundaries,
        data={"vocab_size": 30, "boundaries": boundaries},
        decode={"decoder": spec},
    )
    params, batch = random_params(text), batch_of(text)
    (size,) = params["output"]["bias"].shape
    assert size == 30 > text.target.size
    spare = np.s_[text.target.size - text.first_id :]
    params["output"]["bias"] = params["output"]["bias"].at[spare].set(50)  # by far the likeliest
    assert np.argmax(text.logits(params, batch), axis=-1).min() >= text.target.size - text.first_id
    tokens = jax.jit(text.replies)(params, batch).tokens
    assert np.max(tokens) < text.target.size
    assert all(isinstance(text.target.decode(row), str) for row in tokens)


def test_without_boundaries_there_is_no_embedding():
    with pytest.raises(UserError, match="boundaries=False leaves padding no id: set model.embed"):
        make_text(embed_size=5, data={"boundaries": False})


def test_the_configs_options_reach_the_decoder():
    text, _, _, got = decoded("greedy")
    long = make_text(decode={"min_length": 3}, data={"max_target_length": 9})
    tokens = np.asarray(jax.jit(long.replies)(random_params(long), batch_of(long)).tokens)
    assert tokens.shape == (5, 8) and got.tokens.shape == (5, 5)
    assert np.all(tokens[:, :3] > EOS)
    assert text.options.ban_unknown and not np.any(got.tokens == UNK)


@pytest.mark.parametrize(
    ("decode", "complaint"),
    [
        ({"decoder": "gredy"}, "unknown decode.decoder 'gredy': did you mean 'greedy'"),
        ({"decoder": "beam(size=2)"}, "options of beam: beam_size, length_penalty"),
        ({"decoder": "beam(beam_size=0)"}, r"beam_size=0\)': beam_size=0 must be in \[1, 1000\]"),
        ({"decoder": "sample(top_x=1)"}, "options of sample: temperature, top_k, top_p, seed"),
        ({"decoder": "sample(temperature=-1)"}, r"temperature=-1.0 must be in \[0, 1000\]"),
        ({"decoder": "sample(top_k=0)"}, r"'sample\(top_k=0\)': top_k=0 must be at least 1"),
        ({"decoder": "sample(top_k=2.5)"}, "top_k=2.5 must be of type int"),
        ({"decoder": "sample(top_p=2)"}, r"top_p=2.0 must be in \(0, 1\]"),
        ({"decoder": "sample(seed=-1)"}, "seed=-1 must be at least 0"),
        ({"min_length": 9}, "min_length=9"),
    ],
)
def test_a_decoder_that_cannot_be_is_one_line(decode, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        make_text(decode=decode)
    assert "\n" not in str(caught.value)


# Attention


def test_attention_weights_of_real_tokens_sum_to_one():
    text, params, batch, got = decoded("greedy", attention="dot", bidirectional=True)
    weights = np.asarray(jax.jit(text.attention)(params, batch["source"], got.tokens))
    assert weights.shape == (*got.tokens.shape, batch["source"].shape[1])
    real = batch["source"] > 0
    np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-6)  # a softmax of float32
    assert not np.any(weights * ~real[:, None])


def test_attention_looks_as_it_did_while_the_reply_was_made():
    text, params, batch, got = decoded("greedy", attention="dot")
    model, state = text.bind(params), text.encode(text.bind(params), batch["source"])
    token = jnp.full(len(PAIRS), BOS)
    weights = jax.jit(text.attention)(params, batch["source"], got.tokens)
    step = jax.jit(lambda state, token: model.decode(state, token[:, None]))
    for t in range(3):
        run = step(state, token)
        np.testing.assert_allclose(weights[:, t], run.weights[:, 0], rtol=1e-4, atol=1e-6)
        state, token = run.state, got.tokens[:, t]


def test_without_attention_there_are_no_weights():
    text, params, batch, got = decoded("greedy")
    assert text.attention(params, batch["source"], got.tokens) is None


# The tutorials' tensors


def test_without_boundaries_tensors_are_the_tutorials():
    config = get_config("sentence_translation", "faithful")
    task, text = make_task(config), load_seq2seq_data(config).text
    rows = task.splits["train"]
    inputs = one_hot(rows["source"] - text.first_id, text.source.size - text.first_id)
    outputs = one_hot(rows["target"][:, :-1] - text.first_id, text.target.size - text.first_id)
    assert inputs.shape == (5, 18, 23) and outputs.shape == (5, 10, 24)
    for x, ids in ((inputs, rows["source"]), (outputs, rows["target"][:, :-1])):
        assert_same(x.sum(-1), ids > 0)  # padding is a row of zeros
        assert np.all(x.sum((0, 1)) > 0)  # every symbol is used, none is reserved
    assert not np.any(rows["target"][:, -1])


def test_the_cafe_model_has_the_tutorials_parameters():
    config = get_config("cafe_chatbot", "faithful")
    # The config says how many rows there are; Okt, and the whole corpus, take their time.
    config.data.update(source_vocabulary="characters", pairs=PAIRS, test_share=0.2)
    task = make_task(config)
    assert count_parameters(parameter_shapes(task.init)) == 4_163_536
    shapes = {name: x.shape for name, x in task.splits["train"].items()}
    assert shapes == {"source": (4, 64), "target": (4, 65)}
