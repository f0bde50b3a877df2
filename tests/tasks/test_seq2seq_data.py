"""Text pairs as runs: vocabularies that are fitted once, figures that say what they say."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracles import assert_same
from support.texts import PAIRS, QUESTIONS, batch_of, make_pairs, random_params, run_config
from support.toys import evaluate, read_json

import seqjax.data.parallel_text
import seqjax.plots
import seqjax.training.fit
from seqjax.config import text_pairs_config
from seqjax.data.vocabulary import Vocabulary
from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError
from seqjax.hparams import HParams
from seqjax.models.text_to_text import Replies
from seqjax.nn.dropout import row_keys
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq import make_seq2seq_task, score_replies, token_counts
from seqjax.tasks.seq2seq_data import load_seq2seq_data
from seqjax.training.fit import fit
from seqjax.training.setup import Evaluator


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A config of two vocabularies, and the directory of its run of one epoch."""
    directory = tmp_path_factory.mktemp("finished")
    config = run_config(directory)
    config.data.target_vocabulary = "whitespace"
    config.train.update(num_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
        fit(make_task(config, directory / "run"), config, directory / "run")
    return config, directory / "run"


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of it, to be changed."""
    config, workdir = finished
    return config, Path(shutil.copytree(workdir, tmp_path / "run"))


# Vocabularies


def test_one_vocabulary_or_two():
    both = make_pairs().text
    assert both.source is both.target and both.target.size == 4 + 8
    two = make_pairs(data={"target_vocabulary": "characters"}).text
    assert (two.source.size, two.target.size) == (4 + 4, 4 + 4)


def test_lengths_come_from_training_texts_or_the_config():
    text = make_pairs().text
    assert (text.max_source_length, text.max_target_length) == (6, 4 + 2)
    text = make_pairs(data={"max_source_length": 9, "max_target_length": 5}).text
    assert (text.max_source_length, text.max_target_length) == (9, 5)
    assert text.options.max_length == 4  # the start is given


def test_what_is_held_out_is_in_no_vocabulary():
    pairs = make_pairs(data={"test_share": 0.2})
    (held_out,) = pairs.splits["test"].sources
    train = {*"".join(pairs.splits["train"].sources + pairs.splits["train"].targets)}
    assert set(pairs.text.source.tokens(range(4, pairs.text.source.size))) == train
    assert set(held_out) <= set("abcd")


def test_a_runs_vocabularies_are_saved_before_it_trains(tmp_path, monkeypatch):
    config, workdir = run_config(tmp_path), tmp_path / "run"
    task = make_task(config, workdir)
    monkeypatch.setattr(seqjax.training.fit, "_train", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(task, config, workdir)
    vocabulary = Vocabulary.load(workdir / "vocabulary.json")
    assert vocabulary.digest() == load_seq2seq_data(config).text.target.digest()
    assert not (workdir / "source_vocabulary.json").exists()


def test_another_corpus_leaves_a_runs_ids_as_they_are(trained, monkeypatch, capsys):
    config, workdir = trained
    before = make_task(config, workdir)
    swapped = [(answer, question) for question, answer, _ in QUESTIONS]
    monkeypatch.setattr(seqjax.data.parallel_text, "read_pairs", lambda *args, **options: swapped)
    text, fresh = load_seq2seq_data(config, workdir).text, load_seq2seq_data(config).text
    for side, name in (("source", "source_vocabulary.json"), ("target", "vocabulary.json")):
        saved = Vocabulary.load(workdir / name)
        assert getattr(text, side).digest() == saved.digest() != getattr(fresh, side).digest()
    files = {name: (workdir / name).read_bytes() for name in ("vocabulary.json", "result.json")}
    result = evaluate(make_task(config, workdir), config, workdir)
    assert np.isfinite(result["train"]["loss"])
    assert files == {name: (workdir / name).read_bytes() for name in files}
    # Asked what it was taught, in spite of the file, it sees the ids that it was taught with.
    np.testing.assert_array_equal(
        text.encode_sources([question for question, *_ in QUESTIONS])[:, :5],
        before.splits["train"]["source"][:, :5],
    )


@pytest.mark.parametrize("name", ["vocabulary.json", "source_vocabulary.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_run_without_its_vocabulary_is_one_line(name, damage, trained):
    config, workdir = trained
    path = workdir / name
    text = path.read_text(encoding="utf-8")
    if damage == "gone":
        path.unlink()
    else:
        changed = text[:30] if damage == "cut" else text.replace("요", "욧")
        assert changed != text
        path.write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=str(path)) as caught:
        make_task(config, workdir)
    assert "\n" not in str(caught.value)


# Figures


def test_scores_of_perfect_replies_and_of_baselines(tmp_path):
    config = run_config(tmp_path)
    with config.unlocked():
        config.data.update(test_share=0.25, split_seed=1)  # two answers of known letters
    pairs = load_seq2seq_data(config)
    part, train = pairs.splits["test"], pairs.splits["train"]
    replies = Replies(
        pairs.text.encode_targets(part.targets)[:, 1:], np.zeros(2, np.float32), np.ones(2, bool)
    )
    scores = score_replies(pairs, "test", replies)
    assert scores["intent_accuracy"] == scores["exact_match"] == scores["finished"] == 1
    assert [scores["bleu"], scores["chrf"]] == pytest.approx([100, 100])
    frequent = max(set(train.targets), key=train.targets.count)
    expected = [frequent in pairs.answers[label] for label in part.labels]
    assert scores["most_frequent_intent_accuracy"] == np.mean(expected)
    assert scores["nearest_intent_accuracy"] == 1  # the words say what it is about
    known, asked = {*"".join(train.sources + train.targets)}, "".join(part.sources)
    unknown = sum(letter not in known for letter in asked)
    assert unknown and scores["oov_rate"] == pytest.approx(unknown / len(asked))
    assert "nearest_intent_accuracy" not in score_replies(
        pairs,
        "train",
        Replies(pairs.text.encode_targets(train.targets), np.zeros(6, "f"), np.ones(6, bool)),
    )


def measured(**changes):
    """A model, its task, random weights, the metrics of the training rows and its replies."""
    pairs = make_pairs(**changes)
    task, params = make_seq2seq_task(pairs, text_pairs_config("")), random_params(pairs.text)
    evaluator, rows = (
        Evaluator(task.loss_and_metrics, task.predict, 5, make_mesh(1)),
        task.splits["train"],
    )
    metrics = evaluator.metrics(params, rows)
    return pairs, task, metrics, params, lambda split: evaluator.predict(params, rows)


def by_hand(pairs, task, params):
    """Nats and hits of every label, and the labels."""
    rows = task.splits["train"]
    logits = jax.jit(pairs.text.logits)(params, dict(rows))
    labels = rows["target"][:, 1:]
    classes = np.maximum(labels - pairs.text.first_id, 0)
    own = np.take_along_axis(np.float64(jax.nn.log_softmax(logits)), classes[..., None], -1)
    return -own[..., 0], np.argmax(logits, -1) == classes, labels


def test_loss_and_accuracy_are_of_real_tokens():
    pairs, task, got, params, _ = measured()
    nats, hits, labels = by_hand(pairs, task, params)
    real = labels > 0
    assert got["loss"] == got["cross_entropy"] == pytest.approx(nats[real].mean(), rel=1e-5)
    assert got["accuracy"] == pytest.approx(hits[real].mean())
    assert "loss_padded" not in got


def test_padding_that_counts_is_counted_and_named():
    pairs, task, got, params, _ = measured(loss={"mask_padding": False})
    nats, hits, labels = by_hand(pairs, task, params)
    assert got["loss"] == got["loss_padded"] == pytest.approx(nats.mean(), rel=1e-5)
    assert got["cross_entropy"] == pytest.approx(nats[labels > 0].mean(), rel=1e-5)
    assert got["accuracy_padded"] == pytest.approx(hits.mean())
    assert got["accuracy"] == pytest.approx(hits[labels > 0].mean())


def test_labels_of_zeros_cost_nothing_but_count():
    """R4's, without boundaries: Keras' cross-entropy of a row of zeros is 0."""
    changes = {"data": {"boundaries": False}, "loss": {"mask_padding": False}, "embed_size": 0}
    pairs, task, got, params, _ = measured(decode={"decoder": "teacher_forced"}, **changes)
    nats, hits, labels = by_hand(pairs, task, params)
    assert got["loss"] == pytest.approx(np.where(labels > 0, nats, 0).mean(), rel=1e-5)
    assert got["accuracy_padded"] == pytest.approx(hits.mean())


def test_perplexity_and_padding_share():
    _, task, got, _, predict = measured()
    scores = task.corpus_metrics(predict, "train", got)
    assert scores["perplexity"] == pytest.approx(np.exp(got["cross_entropy"]))
    real = sum(len(target) + 1 for _, target in PAIRS)  # the end counts
    assert scores["padding_share"] == pytest.approx(1 - real / (5 * 5))


def test_token_counts_are_of_all_splits():
    pairs = make_pairs(data={"test_share": 0.2})
    sources, targets = token_counts(pairs)
    assert sorted(sources) == sorted(len(source) for source, _ in PAIRS)
    assert sorted(targets) == sorted(len(target) for _, target in PAIRS)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_labels_are_smoothed_in_training_only(mask_padding):
    """A sweep over smoothing would compare losses that do not measure the same."""
    pairs = make_pairs(loss={"mask_padding": mask_padding})
    params, batch = random_params(pairs.text), batch_of(pairs.text)
    keys, step = row_keys(jax.random.key(1), len(PAIRS)), jnp.int32(0)

    def metrics(smoothing, *args):
        config = text_pairs_config("")
        config.loss.label_smoothing = smoothing
        task, hparams = (
            make_seq2seq_task(pairs, config),
            HParams({}, {"label_smoothing": jnp.float32(smoothing)}),
        )
        return jax.jit(lambda: dict(task.loss_and_metrics(params, batch, *args, hparams=hparams)))()

    for evaluation in ((), (keys,)):  # without dropout and with it
        assert_same(metrics(0.3, *evaluation), metrics(0.0, *evaluation))
    plain, smoothed = metrics(0.0, keys, step), metrics(0.3, keys, step)
    changed = {name for name in plain if plain[name].total != smoothed[name].total}
    assert changed == ({"loss"} if mask_padding else {"loss", "loss_padded"})


@pytest.mark.parametrize("smoothing", [1.0, -0.1])
def test_label_smoothing_out_of_range_is_one_line(smoothing, tmp_path):
    config = run_config(tmp_path)
    config.loss.label_smoothing = smoothing
    with pytest.raises(UserError, match=f"loss.label_smoothing={smoothing} must be in"):
        make_task(config)


def test_what_is_printed_shows_replies_and_how_they_were_scored(trained, capsys):
    config, workdir = trained
    evaluate(make_task(config, workdir), config, workdir)
    out = capsys.readouterr().out
    assert "BLEU nrefs:1|" in out and "\ntrain:\n  몇 시에 여나요? -> " in out
    assert "a chat gives answers of confidence " in out and "\n  라떼요? -> " in out
    assert json.loads((workdir / "abstention.json").read_text("utf-8"))["threshold"] >= 0
    assert read_json(workdir / "result.json")["train"]["intent_accuracy"] >= 0
