"""R3's second model: the last letter of a word."""

from typing import Any

import jax
import numpy as np

from experiments.reproduce.figure import lines_of
from experiments.reproduce.measure import curve, final, one, settings, sizes
from experiments.reproduce.trials import Spec, Study
from experiments.reproduce.verdict import higher, lower_curve
from seqjax.data.text_files import encode_words, load_words
from seqjax.tasks.word_completion import LETTERS

NAME = "word_completion"
DEFAULT, FAITHFUL = Spec(NAME), Spec(NAME, "faithful")
EPOCHS = tuple(range(1, 29, 3))


def first_row(study: Study) -> tuple[Any, ...]:
    """The letters that are read of the first word, and the one to be found."""
    rows = study.task(FAITHFUL).splits["train"]
    return tuple(rows["letters"][0].tolist()), int(rows["target"][0])


def forget_bias(study: Study) -> float:
    """Of the first layer as it is first made: the only part of its bias that is not 0."""
    params = jax.jit(study.task(FAITHFUL).init)(jax.random.key(0))
    bias = np.asarray(params["stack"]["layer_0"]["weights"]["b"])
    [value] = set(bias[bias != 0].tolist())
    return value


line = lines_of(NAME)


FIGURES = [
    line(
        "R3:137",
        "letters, numbers of a and z",
        (26, 0, 25),
        one(lambda study: (len(LETTERS), *encode_words(["az"])[0].tolist())),
    ),
    line("R3:147", "word, as it is read", ((22, 14, 17), 3), one(first_row)),
    line(
        "R3:199",
        "words",
        "word wood deep dive cold cool load love kiss kind",
        one(lambda study: " ".join(load_words("tutorial"))),
    ),
    line(
        "R3:161",
        "rate, epochs, batch, units",
        (0.01, 30, 10, 64),
        settings(
            FAITHFUL,
            "optim.learning_rate",
            "train.num_epochs",
            "train.batch_size",
            "model.hidden_size",
        ),
    ),
    line(
        "R3:179",
        "layers, cell, dropout of each layer's output",
        (2, "lstm", (0.5, 0.0)),
        settings(FAITHFUL, "model.num_layers", "model.cell", "model.output_dropout"),
    ),
    line(
        "R3:179",
        "parameters by layer, and all",
        (33_024, 23_296, 1_690, 58_010),
        sizes(FAITHFUL),
    ),
    line("R3:179", "forget bias", 1.0, one(forget_bias)),
    line("R3:195", "Adam of TF1", "keras_adam(eps=1e-8)", settings(FAITHFUL, "optim.name")),
    line(
        "R3:213",
        "cost under dropout [nats]",
        (
            *(3.248800, 1.919196, 0.800599, 0.524708, 0.752066),
            *(0.287689, 0.306339, 0.412427, 0.211083, 0.107284),
        ),
        curve(FAITHFUL, "loss", EPOCHS),
        lower_curve,
        default=curve(DEFAULT, "loss", EPOCHS),
        epochs=EPOCHS,
    ),
    line(
        "R3:251",
        "accuracy on the ten training words, dropout alive",
        1.0,
        final(FAITHFUL, "train.accuracy_dropout"),
        higher,
        default=final(DEFAULT, "train.accuracy"),
        default_is="dropout off",
    ),
]
