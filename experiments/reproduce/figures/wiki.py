"""R1's chatbot of general knowledge; of its training nothing was printed."""

from experiments.reproduce.figure import Explanation, lines_of
from experiments.reproduce.layers import count
from experiments.reproduce.measure import final, lints, one, proved, settings
from experiments.reproduce.trials import Spec, TrialSet
from experiments.reproduce.verdict import holds, unprinted
from seqjax.data.parallel_text import KNOWN_COLUMNS, SHIPPED

_NAME = "wiki_chatbot"
WIKI_DEFAULT, WIKI_FAITHFUL = Spec(_NAME), Spec(_NAME, "faithful")
_AS_LONG = WIKI_FAITHFUL._replace(changes=(("data.test_share", 0.0),))


def _shifted(study: TrialSet) -> tuple[bool, ...]:
    """Whether the decoder's input begins with the start symbol, and its labels hold the end."""
    text, rows = study.pairs(WIKI_FAITHFUL).text, study.task(WIKI_FAITHFUL).splits["train"]
    inputs, labels = rows["target"][:, :-1], rows["target"][:, 1:]
    return bool((inputs[:, 0] == text.target.bos_id).all()), bool(
        (labels == text.target.eos_id).any(axis=1).all()
    )


def widths(study: TrialSet, spec: Spec = WIKI_FAITHFUL) -> tuple[int, int]:
    """To how many tokens questions and answers are padded: without start or end."""
    text = study.pairs(spec).text
    return text.max_source_length, text.max_target_length - 1


def _printed_widths(study: TrialSet) -> tuple[int, int]:
    """The same of texts that are as long as the tutorial's longest."""
    pair = " ".join(["말"] * 117), " ".join(["말"] * 127)
    return widths(study, _AS_LONG._replace(changes=(("data.pairs", (pair,)), *_AS_LONG.changes)))


def longest(study: TrialSet) -> tuple[int, int]:
    """Tokens of the longest training question, and of the longest answer with its end."""
    pairs = study.pairs(WIKI_FAITHFUL)
    train, text = pairs.splits["train"], pairs.text
    return (
        max(len(text.source.encode(question)) for question in train.sources),
        max(len(text.target.encode(answer)) for answer in train.targets) + 1,
    )


def _rows_of_test(study: TrialSet) -> int:
    """How many there are."""
    return len(study.pairs(WIKI_FAITHFUL).splits["test"].sources)


def _smaller_corpus(study: TrialSet) -> Explanation:
    """Whether our whole corpus has fewer rows than the tutorial holds out."""
    parts = study.pairs(WIKI_FAITHFUL).splits
    rows = sum(len(part.sources) for part in parts.values())
    told = f"its corpus is not published; ours has {rows:,} rows in all"
    return Explanation(told, rows < 2500 and {*parts} == {"train", "test"})


def held_out(study: TrialSet) -> bool:
    """Whether no test question is one of training or validation."""
    parts = study.pairs(WIKI_DEFAULT).splits
    seen = {*parts["train"].sources, *parts["valid"].sources}
    return bool(parts["test"].sources) and not seen & set(parts["test"].sources)


_line = lines_of(_NAME)


WIKI_FIGURES = [
    _line(
        "R1:39",
        "form and columns of the corpus",
        ("csv", ("q", "a")),
        one(lambda study: (SHIPPED["wiki"][1], KNOWN_COLUMNS[0])),
    ),
    _line(
        "R1:53", "start begins the decoder's inputs, end its labels", (True, True), one(_shifted)
    ),
    _line(
        "R1:53",
        "two vocabularies, unlimited, no unknown word",
        ("words(unknown=False)",) * 2,
        settings(WIKI_FAITHFUL, "data.source_vocabulary", "data.target_vocabulary"),
    ),
    _line(
        "R1:66",
        "widths of questions and answers, where the longest have 117 words and 127",
        (117, 128),
        one(_printed_widths),
    ),
    _line("R1:66", "padding of questions", "post", settings(WIKI_FAITHFUL, "data.source_padding")),
    _line(
        "R1:78",
        "rows that are test and validation at once",
        2500,
        one(_rows_of_test),
        default=one(lambda study: len(study.pairs(WIKI_DEFAULT).splits["test"].sources)),
        why=_smaller_corpus,
    ),
    _line(
        "R1:102",
        "encoder: embedding, units",
        (50, 50),
        settings(WIKI_FAITHFUL, "model.embed_size", "model.hidden_size"),
    ),
    _line(
        "R1:105",
        "LSTM(50) on 50 features: parameters",
        20_200,
        one(lambda s: count("lstm", 50, 50)),
    ),
    _line(
        "R1:114",
        "decoder starts at the encoder's state; its own embedding",
        ("none", False),
        settings(WIKI_FAITHFUL, "model.attention", "model.share_embeddings"),
    ),
    _line(
        "R1:129",
        "optimizer, batch, epochs",
        ("rmsprop", 128, 100),
        settings(WIKI_FAITHFUL, "optim.name", "train.batch_size", "train.num_epochs"),
    ),
    _line(
        "R1:129",
        "accuracy after training, counting padding",
        None,
        final(WIKI_FAITHFUL, "train.accuracy_padded"),
        unprinted,
        default=final(WIKI_DEFAULT, "test.intent_accuracy"),
        default_is="an answer of the question's intent, unseen questions",
    ),
    _line(
        "R1:140",
        "one step of the decoder is its training, step by step",
        "yes",
        proved("models/test_seq2seq", "steps_reproduce_teacher_forcing"),
        holds,
    ),
    _line(
        "R1:161",
        "a chat replies to every line",
        "yes",
        proved("serving/test_repl", "each_line_of_input_gets_one_line"),
        holds,
    ),
    _line("R1:37", "imports that nothing uses are refused (printed: 1)", "no", lints("F"), holds),
]
