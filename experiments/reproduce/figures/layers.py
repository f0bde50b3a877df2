"""R0's return flags and R2's study of layers: shapes, sizes and parameter counts."""

from typing import Any

from experiments.reproduce.figure import Figure, Measure, lines_of
from experiments.reproduce.layers import (
    CASES,
    NUM_DRAWS,
    count,
    counts,
    first_weights,
    follows,
    last_is_state,
    magnitude,
    normal_inputs,
    output_is_state,
    sentence_inputs,
    shapes,
    shapes_of,
    uniform_inputs,
)
from experiments.reproduce.measure import one
from experiments.reproduce.verdict import holds, in_size, root_mean_square
from seqjax.nn.layers import Bidirectional

_GRU = "gru(reset_after=False)"  # the form of the paper
_SEQUENCE, _STATE = {"return_sequences": True}, {"return_state": True}
_BOTH = _SEQUENCE | _STATE
_EIGHT = ("lstm", 8, uniform_inputs, (1, 3, 4))
_TAGGER, _GRUS = ("lstm", 3, sentence_inputs, (2, 3, 4)), ("gru", 3, sentence_inputs, (2, 3, 4))
_DRAWN = (
    f"root mean square; no seed was set, so ours is of {NUM_DRAWS} draws: met, if in their size"
)


_line = lines_of("layers")


def _size_of(source: str, what: str, values: tuple[float, ...], ours: Measure) -> Figure:
    """Of numbers that were printed, only the size can be compared."""
    return _line(source, what, root_mean_square(values), ours, in_size, note=_DRAWN)


def _number(source: str, what: str, printed: Any, ours: Any) -> Figure:
    """A count, or several."""
    return _line(source, what, printed, one(lambda study: ours()))


LAYER_FIGURES = [
    _number("R0:8", "return flags: shape of the input", (1, 4, 5), lambda: CASES[3]),
    _line("R0:15", "LSTM(3), last output: shape", (1, 3), shapes(*CASES)),
    _size_of(
        "R0:15",
        "LSTM(3), last output",
        (-0.24535894, -0.27312386, -0.0538178),
        magnitude(0, *CASES),
    ),
    _number("R0:15", "LSTM(3) on 5 features: parameters", 108, lambda: count("lstm", 5, 3)),
    _line(
        "R0:15",
        "first weights: Glorot's kernel, orthogonal recurrent one, forget bias",
        (True, True, 1.0),
        one(first_weights),
        note="orthogonal gate by gate, where Keras makes the whole matrix so",
    ),
    _line("R0:27", "output, h and c: shapes", ((1, 3),) * 3, shapes(*CASES, **_STATE)),
    _line("R0:27", "the output is h", "yes", output_is_state(*CASES), holds),
    _size_of("R0:27", "h", (-0.10527468, -0.12779412, -0.19543421), magnitude(1, *CASES, **_STATE)),
    _size_of("R0:27", "c", (-0.17647648, -0.4138779, -0.28452817), magnitude(2, *CASES, **_STATE)),
    _line("R0:43", "every output: shape", (1, 4, 3), shapes(*CASES, **_SEQUENCE)),
    _size_of(
        "R0:43",
        "every output, last row",
        (-0.51375395, -0.1825685, -0.39207292),
        magnitude(0, *CASES, last=True, **_SEQUENCE),
    ),
    _line(
        "R0:57",
        "every output, h and c: shapes",
        ((1, 4, 3), (1, 3), (1, 3)),
        shapes(*CASES, **_BOTH),
    ),
    _line("R0:57", "the last of every output is h", "yes", last_is_state(*CASES), holds),
    _size_of("R0:57", "h", (0.08037872, 0.49555954, -0.15872242), magnitude(1, *CASES, **_BOTH)),
    _size_of("R0:57", "c", (0.13251474, 0.63943154, -1.1759439), magnitude(2, *CASES, **_BOTH)),
    _number("R2:23", "study of layers: shape of the input", (1, 3, 4), lambda: _EIGHT[3]),
    _line("R2:29", "LSTM(8), last output: shape", (1, 8), shapes(*_EIGHT)),
    _size_of(
        "R2:29",
        "LSTM(8), last output",
        (
            *(0.05510229, -0.15806057, -0.0120617, 0.21166593),
            *(-0.00374101, 0.13033758, -0.04504932, 0.12556145),
        ),
        magnitude(0, *_EIGHT),
    ),
    _number("R2:29", "LSTM(8) on 4 features: parameters", 416, lambda: count("lstm", 4, 8)),
    _line(
        "R2:37",
        "every output, h and c: shapes",
        ((1, 3, 8), (1, 8), (1, 8)),
        shapes(*_EIGHT, **_BOTH),
    ),
    _line("R2:37", "the last of every output is h", "yes", last_is_state(*_EIGHT), holds),
    _number(
        "R2:37",
        "arrays that SimpleRNN, GRU and LSTM return",
        (2, 2, 3),
        lambda: tuple(
            len(shapes_of(cell, *_EIGHT[1:], **_BOTH)) for cell in ("simple_rnn", "gru", "lstm")
        ),
    ),
    _line("R2:64", "Bidirectional(LSTM(8)): shape", (1, 16), shapes(*_EIGHT, bidirectional=True)),
    _number(
        "R2:64",
        "Bidirectional(LSTM(8)): parameters",
        832,
        lambda: count("lstm", 4, 8, Bidirectional),
    ),
    _line(
        "R2:117",
        "LSTM(3), every output, h and c: shapes",
        ((2, 3, 3), (2, 3), (2, 3)),
        shapes(*_TAGGER, **_BOTH),
    ),
    _number("R2:296", "LSTM(7) on 5 features: parameters", 364, lambda: count("lstm", 5, 7)),
    _number("R2:310", "LSTM: 4 x (units + inputs + 1) x units", True, lambda: follows("lstm", 4)),
    _number(
        "R2:319",
        "LSTM(5) on 10 features, Dense(1), all: parameters",
        (320, 6, 326),
        lambda: counts(("lstm", 10, 5), num_classes=1),
    ),
    _number(
        "R2:348",
        "LSTM(5), LSTM(7), Dense(1), all: parameters",
        (320, 364, 8, 692),
        lambda: counts(("lstm", 10, 5), ("lstm", 5, 7), num_classes=1),
    ),
    _line("R2:383", "GRU(3), last output: shape", (2, 3), shapes(*_GRUS)),
    _size_of(
        "R2:383",
        "GRU(3), last output",
        (-0.3331254, 0.15914953, -0.20464015, -0.226817, 0.35800463, -0.16532332),
        magnitude(0, *_GRUS),
    ),
    _line(
        "R2:394", "GRU(3), every output and h: shapes", ((2, 3, 3), (2, 3)), shapes(*_GRUS, **_BOTH)
    ),
    _size_of(
        "R2:394",
        "GRU(3), h",
        (0.10870809, 0.3283546, -0.2419539, -0.13706805, -0.10124536, -0.31973392),
        magnitude(1, *_GRUS, **_BOTH),
    ),
    _number(
        "R2:419",
        "GRU(3) on 4 features: parameters without and with reset_after",
        (72, 81),
        lambda: (count(_GRU, 4, 3), count("gru", 4, 3)),
    ),
    _number(
        "R2:569",
        "GRU(9) on 10 features, GRU(6), Dense(3), all: parameters",
        (540, 288, 21, 849),
        lambda: counts((_GRU, 10, 9), (_GRU, 9, 6), num_classes=3),
    ),
    _number(
        "R2:569",
        "the two GRUs with reset_after: parameters",
        (567, 306),
        lambda: (count("gru", 10, 9), count("gru", 9, 6)),
    ),
    _number(
        "R2:569",
        "GRU(9), every output of 2 steps and of 5: shapes",
        ((1, 2, 9), (1, 5, 9)),
        lambda: tuple(
            shapes_of(_GRU, 9, normal_inputs, (1, steps, 10), **_SEQUENCE)[0] for steps in (2, 5)
        ),
    ),
    _number("R2:590", "GRU: 3 x (units + inputs + 1) x units", True, lambda: follows(_GRU, 3)),
]
