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
from experiments.reproduce.trials import Spec, Study
from experiments.reproduce.verdict import lower_curve, occurs, usually
from seqjax.parameters import parameter_shapes

NAME = "word_translation"
DEFAULT, FAITHFUL = Spec(NAME), Spec(NAME, "faithful")
EPOCHS = tuple(range(1, 97, 5))
SAID = {"word": "단어", "wodr": "나무", "love": "사랑", "loev": "사랑", "abcd": "사랑"}


def pairs(study: Study) -> str:
    """What is translated into what."""
    part = study.pairs(FAITHFUL).splits["train"]
    return " ".join(map("/".join, zip(part.sources, part.targets, strict=True)))


def first_row(study: Study) -> tuple[str, str, str]:
    """What encoder and decoder read of the first pair, and what the decoder is to say."""
    text, rows = study.pairs(FAITHFUL).text, study.task(FAITHFUL).splits["train"]
    source, target = rows["source"][0], rows["target"][0]
    read, said = text.target.tokens(target[:-1]), text.target.tokens(target[1:])
    return " ".join(text.source.tokens(source)), " ".join(read), " ".join(said)


def symbols(study: Study) -> tuple[int, int]:
    """How many the encoder and the decoder tell apart."""
    shapes = parameter_shapes(study.task(FAITHFUL).init)
    layers = (shapes[side]["layer_0"]["weights"]["w_x"] for side in ("encoder", "decoder"))
    encoder, decoder = (layer.shape[0] for layer in layers)
    return encoder, decoder


line = lines_of(NAME)


def translation(word: str, printed: str) -> Figure:
    taught = word in ("word", "love")
    ours = under_dropout(FAITHFUL, word)
    return line(
        "R3:411",
        f"translation of {word}",
        printed,
        ours,
        usually if taught else occurs,
        default=replies(DEFAULT, word),
        default_is="decoded with its own letters",
        note=f"met where at least {'half' if taught else '5 %'} of the seeds say {printed}"
        f"{', which all read b and c as one unknown letter' * (word == 'abcd')}",
        why=arbitrary(ours),
    )


FIGURES = [
    line(
        "R3:282",
        "symbols of encoder and decoder",
        (41, 41),
        one(symbols),
        note="of 41 rows ours uses 29: letters of no word are one unknown letter",
    ),
    line(
        "R3:288",
        "pairs",
        "word/단어 wood/나무 game/놀이 girl/소녀 kiss/키스 love/사랑",
        one(pairs),
    ),
    line(
        "R3:292",
        "first pair: encoder's input, decoder's input, labels",
        ("w o r d", "<bos> 단 어", "단 어 <eos>"),
        one(first_row),
    ),
    line(
        "R3:308",
        "rate, units, epochs, batch",
        (0.01, 128, 100, 6),
        settings(
            FAITHFUL,
            "optim.learning_rate",
            "model.hidden_size",
            "train.num_epochs",
            "train.batch_size",
        ),
    ),
    line(
        "R3:321",
        "cell, dropout of the decoder's output",
        ("simple_rnn", (0.5,)),
        settings(FAITHFUL, "model.cell", "model.decoder_output_dropout"),
    ),
    line(
        "R3:321",
        "parameters by layer, and all",
        (21_760, 21_760, 5_289, 48_809),
        sizes(FAITHFUL),
    ),
    line("R3:339", "Adam of TF1", "keras_adam(eps=1e-8)", settings(FAITHFUL, "optim.name")),
    line(
        "R3:357",
        "cost under dropout [nats]",
        (
            *(3.789763, 0.275871, 0.171605, 0.067686, 0.025324, 0.007600, 0.002211),
            *(0.005184, 0.001348, 0.000941, 0.024831, 0.001072, 0.000815, 0.000429),
            *(0.001309, 0.000507, 0.001037, 0.000600, 0.000123, 0.000368),
        ),
        curve(FAITHFUL, "loss", EPOCHS),
        lower_curve,
        default=final(DEFAULT, "train.loss"),
        default_is="after all epochs, without dropout",
        epochs=EPOCHS,
    ),
    line(
        "R3:389",
        "decoder",
        "fed_padding",
        settings(FAITHFUL, "decode.decoder"),
        default=final(DEFAULT, "train.exact_match"),
        default_is="share of the six words decoded right, greedily",
    ),
    *(translation(word, printed) for word, printed in SAID.items()),
]
