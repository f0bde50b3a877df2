"""R4: five sentences into Korean, letter by letter."""

from experiments.reproduce.figure import Measure, lines_of
from experiments.reproduce.measure import final, lints, one, settings, sizes
from experiments.reproduce.trials import Spec, TrialSet
from experiments.reproduce.verdict import alike, holds
from seqjax.parameters import named_arrays, parameter_shapes

_NAME = "sentence_translation"
SENTENCES_DEFAULT, SENTENCES_FAITHFUL = Spec(_NAME), Spec(_NAME, "faithful")


def _pairs(study: TrialSet) -> str:
    """What is translated into what."""
    part = study.pairs(SENTENCES_FAITHFUL).splits["train"]
    return " · ".join(map("/".join, zip(part.sources, part.targets, strict=True)))


def _shifted(study: TrialSet) -> bool:
    """Whether each label is the input of the step after it, of texts from their first character."""
    text, rows = (
        study.pairs(SENTENCES_FAITHFUL).text,
        study.task(SENTENCES_FAITHFUL).splits["train"],
    )
    targets = study.pairs(SENTENCES_FAITHFUL).splits["train"].targets
    first = [text.target.decode(row[:1]) for row in rows["target"]]
    labels = [text.target.decode(row[1:]) for row in rows["target"]]
    return first == [t[0] for t in targets] and labels == [t[1:] for t in targets]


def _alphabets(study: TrialSet) -> tuple[int, int]:
    """Characters of either side, blanks among them and no reserved ones."""
    text = study.pairs(SENTENCES_FAITHFUL).text
    return text.source.size - text.first_id, text.target.size - text.first_id


def _lengths(study: TrialSet) -> tuple[int, int]:
    """Characters of the longest source and target."""
    text = study.pairs(SENTENCES_FAITHFUL).text
    return text.max_source_length, text.max_target_length


def _tensors(study: TrialSet) -> tuple[tuple[int, ...], ...]:
    """Shapes of one-hot sources, of the decoder's inputs and of its labels."""
    rows, (source, target) = study.task(SENTENCES_FAITHFUL).splits["train"], _alphabets(study)
    inputs, labels = rows["target"][:, :-1], rows["target"][:, 1:]
    return (*rows["source"].shape, source), (*inputs.shape, target), (*labels.shape, target)


def _kernels(*names: str) -> Measure:
    """Shapes of kernels of the model, as "encoder.layer_0.weights.w_x"."""

    def find(study: TrialSet) -> tuple[tuple[int, ...], ...]:
        arrays = dict(named_arrays(parameter_shapes(study.task(SENTENCES_FAITHFUL).init)))
        return tuple(arrays[name].shape for name in names)

    return one(find)


_line = lines_of(_NAME)


SENTENCE_FIGURES = [
    _line(
        "R4:36",
        "pairs",
        "Hello./안녕하세요. · How are you?/잘 지내니? · What is your name?/너의 이름이 뭐니? · "
        "I'm hungry./나 배고파. · How old are you?/너는 몇 살이니?",
        one(_pairs),
    ),
    _line("R4:50", "characters of sources and targets", (23, 24), one(_alphabets)),
    _line("R4:57", "longest source and target", (18, 10), one(_lengths)),
    _line(
        "R4:75",
        "shapes of sources, inputs and labels",
        ((5, 18, 23), (5, 10, 24), (5, 10, 24)),
        one(_tensors),
    ),
    _line(
        "R4:88",
        "the decoder reads the target from its first character, its labels are from the second",
        "yes",
        one(_shifted),
        holds,
    ),
    _line(
        "R4:112",
        "LSTM(32) of the encoder: kernels",
        ((23, 128), (32, 128)),
        _kernels("encoder.layer_0.weights.w_x", "encoder.layer_0.weights.w_h"),
    ),
    _line(
        "R4:133",
        "LSTM(32) of the decoder and Dense(24): kernels",
        ((24, 128), (32, 128), (32, 24)),
        _kernels("decoder.layer_0.weights.w_x", "decoder.layer_0.weights.w_h", "output.kernel"),
    ),
    _line(
        "R4:162",
        "parameters by layer, and all",
        (7_296, 7_168, 792, 15_256),
        sizes(SENTENCES_FAITHFUL),
    ),
    _line(
        "R4:162",
        "their size in float32 [KB of 1,024 bytes]",
        59.59,
        one(lambda study: round(sizes(SENTENCES_FAITHFUL)(study)[0][-1] * 4 / 1024, 2)),
    ),
    _line(
        "R4:190",
        "optimizer, batch, epochs at most",
        ("keras_adam", 1, 200),
        settings(SENTENCES_FAITHFUL, "optim.name", "train.batch_size", "train.num_epochs"),
    ),
    _line(
        "R4:185",
        "monitor, patience",
        ("train.loss", 5),
        settings(SENTENCES_FAITHFUL, "train.monitor", "train.patience"),
    ),
    _line(
        "R4:185",
        "epoch of the early stop",
        68,
        final(SENTENCES_FAITHFUL, "num_epochs"),
        alike,
        default=final(SENTENCES_DEFAULT, "train.exact_match"),
        default_is="share of the five sentences decoded exactly",
        note="200 where it never stops",
    ),
    _line("R4:9", "imports that nothing uses are refused (printed: 2)", "no", lints("F"), holds),
]
