"""What the package says of its runs, from their weights files by NumPy alone: the same figures,
classes, tags and tokens. The data of the tutorials stand here once more, as they print them."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, cycle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support import numpy_reader
from support.numpy_reader import Translator, measure, one_hot, read_sequences, read_weights
from support.oracles import random_like
from support.texts import PAIRS, QUESTIONS, random_params
from support.toys import get_config, read_json
from support.tutorials import SENTENCES, TAUGHT, TOLERANCE, UNSEEN, WORDS

from seqjax.config import as_json, base_config, text_pairs_config
from seqjax.data import images
from seqjax.data.parallel_text import Split
from seqjax.data.vocabulary import Vocabulary
from seqjax.metrics import compute_means
from seqjax.models.classifier import Classifier
from seqjax.nn.layers import functional
from seqjax.parameters import named_arrays, parameter_shapes
from seqjax.runs.weights import WeightsFile, write_weights
from seqjax.serving.export import export_run
from seqjax.tasks import mnist_rows
from seqjax.tasks.base import Task
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq import make_seq2seq_task
from seqjax.tasks.seq2seq_data import load_seq2seq_data
from seqjax.training.early_stopping import Progress
from seqjax.training.fit import fit

pytestmark = pytest.mark.slow

READER = Path(numpy_reader.__file__)
CORPORA = Path(mnist_rows.__file__).parents[1] / "data" / "corpora"


class Run(NamedTuple):
    """A trained run, as the package left it and as it gives it away."""

    workdir: Path
    result: dict[str, Any]  # result.json
    outputs: dict[str, Any]  # of the task's `predict`, by split
    file: numpy_reader.WeightsFile


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """And draws nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqjax.training.fit.draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Callable[..., Run]:
    """`run(name, variant)` of a config in configs/, trained once."""

    @cache
    def trained(name: str, variant: str = "default") -> Run:
        folder = tmp_path_factory.mktemp("run")
        return train(quick_config(name, variant), folder)

    return trained


def quick_config(name: str, variant: str) -> ConfigDict:
    """A shipped config as it is, but for what would take long: fewer rows, units or epochs."""
    config = get_config(name, variant)
    config.model.recurrent_init = "glorot_uniform"  # to draw orthogonal ones compiles for long
    if name == "mnist_rows":
        config.data.valid_size = 100
        config.train.update(num_epochs=1, batch_size=20)
    if name == "sentence_translation":
        config.train.update(num_epochs=60, patience=0)
    if name == "cafe_chatbot":
        config.model.update(embed_size=16, hidden_size=16, token_dropout=0.0)
        config.model.update(input_dropout=(0.0,), decoder_output_dropout=(0.0,))
        config.data.pairs = tuple(TAUGHT[name].items())
        config.data.update(source_vocabulary="unigram(size=40)", valid_share=0.0, test_share=0.0)
        config.train.update(num_epochs=40, batch_size=4)
    config.train.update(monitor="epoch", num_devices=1)
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = config.train.num_epochs
    return config.lock()


def train(config: ConfigDict, folder: Path) -> Run:
    """A run of the config and its export; one of texts has the split "unseen" besides."""
    workdir, path, outputs = folder / "run", folder / "weights.safetensors", {}
    is_text = config.task == "text_pairs"
    task = task_with_unseen(config) if is_text else make_task(config, workdir)

    def keep(params, predict, directory) -> list[str]:  # in place of pictures
        outputs.update({split: predict(split) for split in task.splits})
        return []

    fit(task._replace(show_examples=keep), config, workdir)
    export_run(workdir, path)
    return Run(workdir, read_json(workdir / "result.json"), outputs, read_weights(path))


def task_with_unseen(config: ConfigDict) -> Task:
    pairs = load_seq2seq_data(config)
    sources, targets = zip(*unseen(pairs.splits["train"].targets).items(), strict=True)
    pairs.splits["unseen"] = Split([*sources], [*targets], [])
    return make_seq2seq_task(pairs, config)


def unseen(targets: Iterable[str]) -> dict[str, str]:
    """Sources that are in no corpus, each with a target, if a wrong one, to have figures of."""
    return dict(zip(UNSEEN, cycle(targets), strict=False))


def exported(config: ConfigDict, params: Any, folder: Path) -> numpy_reader.WeightsFile:
    """What the reader reads of any parameters, with the vocabularies in the folder."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    arrays = {name: np.asarray(x) for name, x in named_arrays(params)}
    write_weights(
        folder / "weights", WeightsFile(as_json(config), Progress()._asdict(), texts, arrays)
    )
    return read_weights(folder / "weights")


def assert_same_figures(found: Mapping[str, float], result: Mapping[str, float]) -> None:
    assert found["accuracy"] == result["accuracy"]
    assert found["loss"] == pytest.approx(result["loss"], rel=TOLERANCE, abs=TOLERANCE)


def assert_same_tokens(ours: Sequence[Sequence[int]], theirs: np.ndarray) -> None:
    """Token for token; the package pads."""
    assert [[*row, *[0] * (theirs.shape[1] - len(row))] for row in ours] == theirs.tolist()


def assert_same_replies(reader: Translator, sources: Sequence[str], replies: Any) -> list[str]:
    """The same tokens of about the same probability; the replies as texts."""
    tokens, scores = zip(*map(reader.reply, sources), strict=True)
    assert_same_tokens(tokens, np.asarray(replies.tokens))
    np.testing.assert_allclose(scores, replies.scores, rtol=TOLERANCE, atol=TOLERANCE)
    return [reader.target.decode(row) for row in tokens]


# Sequences to classes


def test_words_are_completed_with_the_same_letters(run):
    done = run("word_completion")
    common = (CORPORA / "words" / "common.txt").read_text().split()
    for split, words in (("train", WORDS), ("held_out", [w for w in common if w not in WORDS])):
        letters = np.array([list(word.encode()) for word in words]) - ord("a")
        logits, steps = read_sequences(done.file, one_hot(letters[:, :-1], 26))
        assert_same_figures(measure(logits, letters[:, -1]), done.result[split])
        theirs = done.outputs[split].argmax(axis=-1)
        np.testing.assert_array_equal(logits.argmax(axis=-1), theirs[:, -1])
        np.testing.assert_array_equal(steps.argmax(axis=-1), theirs)


@pytest.mark.parametrize("variant", ["default", "gru"])
def test_sentences_get_the_same_tags(run, variant):
    done = run("svo_tagging", variant)
    everyday = (CORPORA / "svo" / "everyday.txt").read_text().splitlines()
    splits = {"train": SENTENCES, "held_out": everyday}
    known = sorted({token.rpartition("/")[0] for token in " ".join(SENTENCES).split()})
    for split, lines in splits.items():
        logits, tags = [], []
        for line, theirs in zip(lines, done.outputs[split], strict=True):
            tokens = [token.rpartition("/") for token in line.split()]
            words, _, of_words = zip(*tokens, strict=True)
            ids = [known.index(word) if word in known else -1 for word in words]
            _, steps = read_sequences(done.file, one_hot(ids, len(known)))
            assert steps.argmax(axis=-1).tolist() == theirs[: len(words)].argmax(axis=-1).tolist()
            logits.append(steps)
            tags += ["SVO".index(tag) for tag in of_words]
        assert_same_figures(measure(np.concatenate(logits), np.array(tags)), done.result[split])


def test_digits_are_read_as_the_same(run, monkeypatch):
    with np.load(CORPORA / "mnist" / "mnist.npz") as arrays:
        few = {name: arrays[name][: 1_100 if "train" in name else 500] for name in arrays.files}
    monkeypatch.setattr(images, "load_mnist", lambda: few)
    done = run("mnist_rows")
    assert 0.4 < done.result["test"]["accuracy"] < 1
    logits, _ = read_sequences(done.file, few["x_test"] / 255)
    assert_same_figures(measure(logits, few["y_test"].astype(int)), done.result["test"])
    theirs = done.outputs["test"].argmax(axis=-1)
    np.testing.assert_array_equal(logits.argmax(axis=-1), theirs)


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru", "gru(reset_after=False)"])
def test_bidirectional_stacks_are_read_at_any_length(cell, tmp_path):
    config = base_config("any")
    config.model.update(cell=cell, hidden_size=5, num_layers=2, bidirectional=True)
    sizes = {"input_size": 4, "num_classes": 3}
    init, bind = functional(lambda rngs: Classifier(**sizes, **config.model, rngs=rngs))
    params = random_like(parameter_shapes(init), seed=1)
    xs, lengths = random_like(jax.ShapeDtypeStruct((5, 6, 4), np.float32), seed=2), np.arange(1, 6)

    def both(params, xs, lengths):
        return bind(params)(xs, lengths=lengths), bind(params).every_step(xs, lengths=lengths)

    whole, steps = jax.jit(both)(params, xs, lengths)
    file = exported(config, params, tmp_path)
    for row, length in enumerate(lengths):
        ours = read_sequences(file, xs[row, :length])
        for logits, theirs in zip(ours, (whole[row], steps[row, :length]), strict=True):
            np.testing.assert_allclose(logits, theirs, rtol=TOLERANCE, atol=TOLERANCE)


# Text to text


@pytest.mark.parametrize("name", TAUGHT)
def test_replies_are_the_same_token_for_token(run, name):
    done, taught = run(name), TAUGHT[name]
    reader = Translator(done.file, taught.keys(), taught.values())
    decode = Vocabulary.load(done.workdir / "vocabulary.json").decode
    for split, pairs in {"train": taught, "unseen": unseen(taught.values())}.items():
        result, replies = done.result[split], done.outputs[split]
        assert_same_figures(reader.measure(pairs.items()), result)
        said = assert_same_replies(reader, [*pairs], replies)
        assert said == [decode(row) for row in replies.tokens]
        right = sum(reply == target for reply, target in zip(said, pairs.values(), strict=True))
        assert right / len(pairs) == result["exact_match"]
        assert len(set(said)) > 2  # it tells sources apart


MODELS = {
    "dot": {"model.cell": "simple_rnn", "model.attention": "dot", "model.embed_size": 0},
    "dot of two directions": {
        "model.cell": "gru(reset_after=False)",
        "model.attention": "dot",
        "model.bidirectional": True,
        "decode.ban_unknown": False,
        "decode.min_length": 3,
    },
    "general": {
        "model.attention": "general",
        "model.bidirectional": True,
        "model.input_feeding": True,
    },
    "additive": {
        "model.cell": "gru",
        "model.attention": "additive",
        "model.share_embeddings": True,
        "model.tie_output": True,
        "loss.mask_padding": False,
    },
    "none": {"model.num_layers": 2, "model.bidirectional": True, "data.vocab_size": 20},
    "fed padding": {
        "seed": 1,  # of weights by which some replies end
        "model.embed_size": 0,
        "decode.decoder": "fed_padding",
        "decode.min_length": 4,
    },
    "teacher forced": {
        "model.embed_size": 0,
        "data.boundaries": False,
        "loss.mask_padding": False,
        "decode.decoder": "teacher_forced",
    },
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_every_kind_of_translator_with_any_weights(changes, tmp_path):
    config = text_pairs_config("any")
    config.model.update(embed_size=5, hidden_size=6)
    config.data.pairs = PAIRS
    config.update_from_flattened_dict(changes)
    pairs = load_seq2seq_data(config)
    task, params = make_seq2seq_task(pairs, config), random_params(pairs.text, config.seed)
    pairs.save_fitted(tmp_path)
    reader = Translator(exported(config, params, tmp_path), *zip(*PAIRS, strict=True))
    more = [("abba", "다라"), ("zebra and more", "가나다라가나다라"), ("", "다라")]
    sources, targets = zip(*PAIRS, *more, strict=True)
    batch = {
        "source": pairs.text.encode_sources(sources),
        "target": pairs.text.encode_targets(targets),
        "weight": np.ones(len(sources), np.float32),
    }
    both = jax.jit(
        lambda params, batch: (
            task.loss_and_metrics(params, batch, None),
            task.predict(params, batch),
        )
    )
    metrics, replies = both(params, batch)
    assert_same_figures(reader.measure([*PAIRS, *more]), compute_means(metrics))
    if reader.boundaries:
        said = assert_same_replies(reader, sources, replies)
        assert len(set(said)) > 2
    else:
        tokens = [reader.continued(*pair) for pair in (*PAIRS, *more)]
        assert_same_tokens(tokens, np.asarray(replies.tokens))


SPECS = [
    "characters",
    "whitespace",
    "words",
    "words(num_words=9, unknown=False)",
    "unigram(size=60)",
]


@pytest.fixture(scope="module", params=SPECS)
def vocabularies(request, tmp_path_factory) -> tuple[Vocabulary, numpy_reader.Vocabulary]:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    texts = [*chain(*(texts[:2] for texts in QUESTIONS)), "Is there Wi-Fi? Yes, there is."]
    theirs = Vocabulary.fit(request.param, texts)
    theirs.save(path)
    return theirs, numpy_reader.Vocabulary(path.read_text(encoding="utf-8"))


# Pieces of known words, and of others; "라" in one code point and in two; all kinds of blanks.
TEXTS = (
    "라떼",
    "라",
    "\u1105\u1161",
    "있",
    "어요?",
    "Wi",
    "wi",
    "-FI",
    "there",
    "é",
    " ",
    "\t",
    "\n",
)


@given(parts=st.lists(st.sampled_from(TEXTS)), ids=st.lists(st.integers(0, 11)))
def test_texts_have_the_same_ids_and_ids_the_same_text(vocabularies, parts, ids):
    theirs, ours = vocabularies
    text = "".join(parts)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


# The reader


def test_the_reader_is_short_and_knows_nothing_but_numpy():
    source = READER.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert "numpy" in names and names - {"numpy"} <= sys.stdlib_module_names - {"importlib"}


def test_it_translates_where_nothing_else_is_loaded(run):
    done, pairs = run("word_translation"), [*TAUGHT["word_translation"].items()]
    path = done.workdir.parent / "weights.safetensors"
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(READER.parent)!r})\n"
        "from numpy_reader import Translator, read_weights\n"
        f"pairs = {pairs!r}\n"
        f"reader = Translator(read_weights(pathlib.Path({str(path)!r})), *zip(*pairs))\n"
        "print(ascii([reader.target.decode(reader.reply(source)[0]) for source, _ in pairs]))\n"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'seqjax', 'jax', 'flax', 'safetensors', 'tokenizers'})\n"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [ascii([target for _, target in pairs]), "set()"]
