"""R3's second model: the last letter of a word."""

from typing import Any

import jax
import numpy as np

from experiments.reproduce.figure import lines_of
from experiments.reproduce.measure import curve, final, one, settings, sizes
from experiments.reproduce.trials import Spec, TrialSet
from experiments.reproduce.verdict import higher, lower_curve
from seqjax.data.text_files import encode_words, load_words
from seqjax.tasks.word_completion import LETTERS

_NAME = "word_completion"
COMPLETION_DEFAULT, COMPLETION_FAITHFUL = Spec(_NAME), Spec(_NAME, "faithful")
_EPOCHS = tuple(range(1, 29, 3))


def _first_row(study: TrialSet) -> tuple[Any, ...]:
    """The letters that are read of the first word, and the one to be found."""
    rows = study.task(COMPLETION_FAITHFUL).splits["train"]
    return tuple(rows["letters"][0].tolist()), int(rows["target"][0])


def _forget_bias(study: TrialSet) -> float:
    """Of the first layer as it is first made: the only part of its bias that is not 0."""
    params = jax.jit(study.task(COMPLETION_FAITHFUL).init)(jax.random.key(0))
    bias = np.asarray(params["stack"]["layer_0"]["weights"]["b"])
    [value] = set(bias[bias != 0].tolist())
    return value


_line = lines_of(_NAME)


COMPLETION_FIGURES = [
    _line(
        "R3:137",
        "letters, numbers of a and z",
        (26, 0, 25),
        one(lambda study: (len(LETTERS), *encode_words(["az"])[0].tolist())),
    ),
    _line("R3:147", "word, as it is read", ((22, 14, 17), 3), one(_first_row)),
    _line(
        "R3:199",
        "words",
        "word wood deep dive cold cool load love kiss kind",
        one(lambda study: " ".join(load_words("tutorial"))),
    ),
    _line(
        "R3:161",
        "rate, epochs, batch, units",
        (0.01, 30, 10, 64),
        settings(
            COMPLETION_FAITHFUL,
            "optim.learning_rate",
            "train.num_epochs",
            "train.batch_size",
            "model.hidden_size",
        ),
    ),
    _line(
        "R3:179",
        "layers, cell, dropout of each layer's output",
        (2, "lstm", (0.5, 0.0)),
        settings(COMPLETION_FAITHFUL, "model.num_layers", "model.cell", "model.output_dropout"),
    ),
    _line(
        "R3:179",
        "parameters by layer, and all",
        (33_024, 23_296, 1_690, 58_010),
        sizes(COMPLETION_FAITHFUL),
    ),
    _line("R3:179", "forget bias", 1.0, one(_forget_bias)),
    _line(
        "R3:195", "Adam of TF1", "keras_adam(eps=1e-8)", settings(COMPLETION_FAITHFUL, "optim.name")
    ),
    _line(
        "R3:213",
        "cost under dropout [nats]",
        (
            *(3.248800, 1.919196, 0.800599, 0.524708, 0.752066),
            *(0.287689, 0.306339, 0.412427, 0.211083, 0.107284),
        ),
        curve(COMPLETION_FAITHFUL, "loss", _EPOCHS),
        lower_curve,
        default=curve(COMPLETION_DEFAULT, "loss", _EPOCHS),
        epochs=_EPOCHS,
    ),
    _line(
        "R3:251",
        "accuracy on the ten training words, dropout alive",
        1.0,
        final(COMPLETION_FAITHFUL, "train.accuracy_dropout"),
        higher,
        default=final(COMPLETION_DEFAULT, "train.accuracy"),
        default_is="dropout off",
    ),
]
