"""R3's first model: MNIST, one row of pixels a step."""

import jax
import numpy as np

from experiments.reproduce.figure import Measure, lines_of
from experiments.reproduce.measure import curve, final, one, settings, sizes
from experiments.reproduce.trials import MANY, Spec, TrialSet
from experiments.reproduce.verdict import alike, higher, lower_curve
from seqjax.data.batching import steps_per_epoch
from seqjax.tasks.mnist_rows import brightness

_NAME = "mnist_rows"
ROWS_DEFAULT, ROWS_FAITHFUL = Spec(_NAME), Spec(_NAME, "faithful")
_EPOCHS = tuple(range(1, 20, 3))
_ADAM = ("optim.name", "optim.learning_rate")


def images(study: TrialSet) -> tuple[int, ...]:
    """How many there are by split."""
    splits = study.task(ROWS_FAITHFUL).splits
    return tuple(len(splits[name]["label"]) for name in ("train", "valid", "test"))


def _image_shape(study: TrialSet) -> tuple[int, ...]:
    """Rows of an image, pixels of a row, and classes."""
    train = study.task(ROWS_FAITHFUL).splits["train"]
    return *train["image"].shape[1:], int(train["label"].max()) + 1


def _pixels(study: TrialSet) -> tuple[float, float]:
    """The least and the greatest brightness that the model reads."""
    read = brightness(study.task(ROWS_FAITHFUL).splits["train"]["image"][:1000])
    return float(read.min()), float(read.max())


def steps(spec: Spec) -> Measure:
    """Steps of an epoch."""

    def find(study: TrialSet) -> int:
        train = study.config(spec).train
        return steps_per_epoch(images(study)[0], train.batch_size, train.drop_remainder)

    return one(find)


def _readout_spread(study: TrialSet) -> list[float]:
    """Standard deviation of the readout's first weights, by seed."""
    init = jax.jit(study.task(ROWS_FAITHFUL).init)
    params = [init(jax.random.key(seed)) for seed in range(MANY)]
    return [float(np.std(tree["output"]["kernel"])) for tree in params]


_line = lines_of(_NAME)


ROW_FIGURES = [
    _line("R3:21", "images to train, validate and test", (55_000, 5_000, 10_000), one(images)),
    _line("R3:21", "brightness, least and greatest", (0.0, 1.0), one(_pixels)),
    _line(
        "R3:45",
        "rate, epochs, batch, units",
        (0.001, 20, 512, 128),
        settings(
            ROWS_FAITHFUL,
            "optim.learning_rate",
            "train.num_epochs",
            "train.batch_size",
            "model.hidden_size",
        ),
    ),
    _line("R3:45", "rows, pixels of each, classes", (28, 28, 10), one(_image_shape)),
    _line(
        "R3:61",
        "readout, first weights and biases",
        ("normal(1)", "normal(1)"),
        settings(ROWS_FAITHFUL, "model.output_kernel_init", "model.output_bias_init"),
    ),
    _line("R3:61", "readout, standard deviation", 1.0, _readout_spread, alike),
    _line("R3:64", "cell", "simple_rnn", settings(ROWS_FAITHFUL, "model.cell")),
    _line("R3:64", "parameters by layer, and all", (20_096, 1_290, 21_386), sizes(ROWS_FAITHFUL)),
    _line(
        "R3:81",
        "Adam of TF1, its rate",
        ("keras_adam(eps=1e-8)", 0.001),
        settings(ROWS_FAITHFUL, *_ADAM),
    ),
    _line("R3:88", "steps an epoch", 107, steps(ROWS_FAITHFUL)),
    _line(
        "R3:106",
        "average cost of an epoch [nats]",
        (1.004, 0.210, 0.140, 0.113, 0.098, 0.084, 0.072),
        curve(ROWS_FAITHFUL, "loss", _EPOCHS),
        lower_curve,
        default=curve(ROWS_DEFAULT, "loss", _EPOCHS),
        epochs=_EPOCHS,
    ),
    _line(
        "R3:125",
        "accuracy on the test images",
        0.9719,
        final(ROWS_FAITHFUL, "test.accuracy"),
        higher,
        default=final(ROWS_DEFAULT, "test.accuracy"),
    ),
]
