"""A sample of the ledger, once more: its lines of trained models, by NumPy alone from the weights
files of the same trials, figure for figure and token for token."""

import re

import numpy as np
import pytest
from support.numpy_reader import Translator, measure, one_hot, read_sequences, read_weights
from support.toys import get_config
from support.tutorials import SENTENCES, TAUGHT, TOLERANCE, WORDS

from experiments.reproduce.figures import SECTIONS, tagging
from experiments.reproduce.figures.completion import COMPLETION_DEFAULT
from experiments.reproduce.figures.sentences import SENTENCES_DEFAULT
from experiments.reproduce.figures.words import SAID, WORDS_DEFAULT
from experiments.reproduce.trials import TrialSet
from seqjax.serving.export import export_run

pytestmark = pytest.mark.slow

SEEDS = 2


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Trials of the configs as they are shipped."""
    yield TrialSet(get_config, tmp_path_factory.mktemp("ledger"), SEEDS)


def figure_of(config, what):
    """The one figure of a config whose text begins so."""
    figures = [figure for part in SECTIONS.values() for figure in part]
    [figure] = [f for f in figures if f.config == config and f.what.startswith(what)]
    return figure


def files_of(study, spec):
    """What NumPy reads of each trial."""
    files = []
    for workdir in study.trials(spec).workdirs:
        path = workdir.with_suffix(".safetensors")
        if not path.exists():
            export_run(workdir, path)
        files.append(read_weights(path))
    assert len(files) == SEEDS
    return files


def test_words_are_completed_as_the_ledger_says(study):
    figure = figure_of("word_completion", "accuracy on the ten training words")
    letters = np.array([list(word.encode()) for word in WORDS]) - ord("a")
    found = []
    for file in files_of(study, COMPLETION_DEFAULT):
        logits, _ = read_sequences(file, one_hot(letters[:, :-1], 26))
        found.append(measure(logits, letters[:, -1])["accuracy"])
    assert figure.default(study) == found


def test_sentences_are_tagged_as_the_ledger_says(study):
    known = sorted({token.rpartition("/")[0] for token in " ".join(SENTENCES).split()})
    pairs = [re.findall(r"(\w+)/(\w)", line) for line in SENTENCES]
    ids = np.array([[known.index(word) for word, _ in row] for row in pairs])
    tags = np.array([["SVO".index(tag) for _, tag in row] for row in pairs])
    loss, right = (
        figure_of("svo_tagging", what)
        for what in ("LSTM, loss after 100 epochs", "LSTM, share of the six tags")
    )
    for spec, losses, shares in (
        (tagging.LSTM_TAGGER, loss.faithful(study), right.faithful(study)),
        (tagging.CONVERGED, loss.default(study), right.default(study)),
    ):
        for file, its_loss, share in zip(files_of(study, spec), losses, shares, strict=True):
            _, logits = read_sequences(file, one_hot(ids, len(known)))
            found = measure(logits, tags)
            assert its_loss == pytest.approx(found["loss"], rel=TOLERANCE, abs=TOLERANCE)
            assert share == found["accuracy"]


@pytest.mark.parametrize("word", SAID)
def test_words_are_translated_as_the_ledger_says(study, word):
    figure = figure_of("word_translation", f"translation of {word}")
    taught = TAUGHT["word_translation"]
    found = []
    for file in files_of(study, WORDS_DEFAULT):
        reader = Translator(file, taught.keys(), taught.values())
        found.append(reader.target.decode(reader.reply(word)[0]))
    assert figure.default(study) == found


def test_sentences_are_translated_as_the_ledger_says(study):
    figure = figure_of("sentence_translation", "epoch of the early stop")
    taught = TAUGHT["sentence_translation"]
    trials = study.trials(SENTENCES_DEFAULT)
    ids = trials.pairs.text.encode_sources([*taught])
    shares = []
    for file, params in zip(files_of(study, SENTENCES_DEFAULT), trials.params, strict=True):
        reader = Translator(file, taught.keys(), taught.values())
        tokens = [reader.reply(source)[0] for source in taught]
        theirs = np.asarray(trials.reply(params, {"source": ids}).tokens)
        assert [[*row, *[0] * (theirs.shape[1] - len(row))] for row in tokens] == theirs.tolist()
        said = [reader.target.decode(row) for row in tokens]
        shares.append(float(np.mean([a == b for a, b in zip(said, taught.values(), strict=True)])))
    assert figure.default(study) == shares
