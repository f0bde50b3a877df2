"""R3's third model: six words into Korean, letter by letter."""

from experiments.reproduce.figure import Figure, lines_of
from experiments.reproduce.measure import (
    arbitrary,
    curve,
    final,
    one,
    replies,
    settings,
    sizes,
    under_dropout,
)
from experiments.reproduce.trials import Spec, TrialSet
from experiments.reproduce.verdict import lower_curve, occurs, usually
from seqjax.parameters import parameter_shapes

_NAME = "word_translation"
WORDS_DEFAULT, WORDS_FAITHFUL = Spec(_NAME), Spec(_NAME, "faithful")
WORDS_EPOCHS = tuple(range(1, 97, 5))
SAID = {"word": "단어", "wodr": "나무", "love": "사랑", "loev": "사랑", "abcd": "사랑"}


def _pairs(study: TrialSet) -> str:
    """What is translated into what."""
    part = study.pairs(WORDS_FAITHFUL).splits["train"]
    return " ".join(map("/".join, zip(part.sources, part.targets, strict=True)))


def _first_row(study: TrialSet) -> tuple[str, str, str]:
    """What encoder and decoder read of the first pair, and what the decoder is to say."""
    text, rows = study.pairs(WORDS_FAITHFUL).text, study.task(WORDS_FAITHFUL).splits["train"]
    source, target = rows["source"][0], rows["target"][0]
    read, said = text.target.tokens(target[:-1]), text.target.tokens(target[1:])
    return " ".join(text.source.tokens(source)), " ".join(read), " ".join(said)


def _symbols(study: TrialSet) -> tuple[int, int]:
    """How many the encoder and the decoder tell apart."""
    shapes = parameter_shapes(study.task(WORDS_FAITHFUL).init)
    layers = (shapes[side]["layer_0"]["weights"]["w_x"] for side in ("encoder", "decoder"))
    encoder, decoder = (layer.shape[0] for layer in layers)
    return encoder, decoder


_line = lines_of(_NAME)


def _translation(word: str, printed: str) -> Figure:
    taught = word in ("word", "love")
    ours = under_dropout(WORDS_FAITHFUL, word)
    return _line(
        "R3:411",
        f"translation of {word}",
        printed,
        ours,
        usually if taught else occurs,
        default=replies(WORDS_DEFAULT, word),
        default_is="decoded with its own letters",
        note=f"met where at least {'half' if taught else '5 %'} of the seeds say {printed}"
        f"{', which all read b and c as one unknown letter' * (word == 'abcd')}",
        why=arbitrary(ours),
    )


WORD_FIGURES = [
    _line(
        "R3:282",
        "symbols of encoder and decoder",
        (41, 41),
        one(_symbols),
        note="of 41 rows ours uses 29: letters of no word are one unknown letter",
    ),
    _line(
        "R3:288",
        "pairs",
        "word/단어 wood/나무 game/놀이 girl/소녀 kiss/키스 love/사랑",
        one(_pairs),
    ),
    _line(
        "R3:292",
        "first pair: encoder's input, decoder's input, labels",
        ("w o r d", "<bos> 단 어", "단 어 <eos>"),
        one(_first_row),
    ),
    _line(
        "R3:308",
        "rate, units, epochs, batch",
        (0.01, 128, 100, 6),
        settings(
            WORDS_FAITHFUL,
            "optim.learning_rate",
            "model.hidden_size",
            "train.num_epochs",
            "train.batch_size",
        ),
    ),
    _line(
        "R3:321",
        "cell, dropout of the decoder's output",
        ("simple_rnn", (0.5,)),
        settings(WORDS_FAITHFUL, "model.cell", "model.decoder_output_dropout"),
    ),
    _line(
        "R3:321",
        "parameters by layer, and all",
        (21_760, 21_760, 5_289, 48_809),
        sizes(WORDS_FAITHFUL),
    ),
    _line("R3:339", "Adam of TF1", "keras_adam(eps=1e-8)", settings(WORDS_FAITHFUL, "optim.name")),
    _line(
        "R3:357",
        "cost under dropout [nats]",
        (
            *(3.789763, 0.275871, 0.171605, 0.067686, 0.025324, 0.007600, 0.002211),
            *(0.005184, 0.001348, 0.000941, 0.024831, 0.001072, 0.000815, 0.000429),
            *(0.001309, 0.000507, 0.001037, 0.000600, 0.000123, 0.000368),
        ),
        curve(WORDS_FAITHFUL, "loss", WORDS_EPOCHS),
        lower_curve,
        default=final(WORDS_DEFAULT, "train.loss"),
        default_is="after all epochs, without dropout",
        epochs=WORDS_EPOCHS,
    ),
    _line(
        "R3:389",
        "decoder",
        "fed_padding",
        settings(WORDS_FAITHFUL, "decode.decoder"),
        default=final(WORDS_DEFAULT, "train.exact_match"),
        default_is="share of the six words decoded right, greedily",
    ),
    *(_translation(word, printed) for word, printed in SAID.items()),
]
