"""R0's chatbot of a cafe, line by line."""

from experiments.reproduce import cafe
from experiments.reproduce.cafe import CAFE_DEFAULT, CAFE_EPOCHS, CAFE_FAITHFUL, SHAPES
from experiments.reproduce.figure import Figure, lines_of
from experiments.reproduce.measure import curve, final, one, proved, replies, settings, sizes
from experiments.reproduce.verdict import higher, higher_curve, holds, lower_curve, occurs
from seqjax.data.parallel_text import SHIPPED

_line = lines_of("cafe_chatbot")


def _proof(source: str, what: str, printed: str, file: str, test: str) -> Figure:
    return _line(source, what, printed, proved(file, test), holds)


def _reply(question: str, printed: str) -> Figure:
    """What it says to a printed question; of the default, what that makes of it."""
    return _line(
        "R0:332",
        f"reply to {question}",
        printed,
        replies(CAFE_FAITHFUL, question),
        occurs,
        default=replies(CAFE_DEFAULT, question),
        default_is="of our corpus",
        why=cafe.other_dialogues,
    )


CAFE_FIGURES = [
    _line(
        "R0:81",
        "LSTMs, Dense, embeddings, all: parameters",
        (1_312_768, 1_312_768, 1_026_000, 256_000, 256_000, 4_163_536),
        sizes(SHAPES),
    ),
    _line(
        "R0:81",
        "rows and width of embeddings, units",
        (2000, 128, 512),
        settings(SHAPES, "data.vocab_size", "model.embed_size", "model.hidden_size"),
    ),
    _proof(
        "R0:102",
        "the decoder goes on from the encoder's h and c",
        "yes",
        "models/test_seq2seq",
        "steps_reproduce_teacher_forcing",
    ),
    _line(
        "R0:142",
        "share of its own tokens in the decoder's inputs in training",
        "off",
        settings(SHAPES, "loss.scheduled_sampling"),
    ),
    _proof(
        "R0:153",
        "greedy from the start symbol to the end, 64 steps at most",
        "yes",
        "decoding/test_sampling",
        "every_decoder_keeps_every_promise",
    ),
    _line(
        "R0:153",
        "steps of a reply at most",
        64,
        one(lambda study: study.pairs(SHAPES).text.options.max_length),
    ),
    _proof(
        "R0:179",
        "a step is a gradient and an update",
        "yes",
        "training/test_train_step",
        "a_step_is_value_and_grad_and_an_update",
    ),
    _line(
        "R0:181",
        "widths of questions, decoder's inputs and labels",
        (64, 64, 64),
        one(cafe.tensors),
    ),
    _line(
        "R0:207",
        "form of the corpus: question and answer by turns",
        "lines",
        one(lambda study: SHIPPED["cafe"][1]),
    ),
    _line(
        "R0:208",
        "words",
        'words(num_words=1997, unknown=False, analyzer="okt")',
        settings(CAFE_FAITHFUL, "data.source_vocabulary"),
    ),
    _line("R0:219", "share that is held out", 0.2, settings(CAFE_FAITHFUL, "data.test_share")),
    _line(
        "R0:237",
        "ids in all, one vocabulary for both sides, two tables",
        (2000, True, True),
        one(cafe.vocabulary),
    ),
    _line("R0:250", "padding of questions and answers", ("pre", "post"), one(cafe.sides)),
    _line(
        "R0:250",
        "longest question and answer",
        (64, 65),
        settings(CAFE_FAITHFUL, "data.max_source_length", "data.max_target_length"),
    ),
    _line("R0:269", "steps an epoch, rows of the last", (13, 15), one(cafe.batches)),
    _line(
        "R0:280",
        "Keras' Adam, its rate, padding counts",
        ("keras_adam", 0.001, False),
        settings(CAFE_FAITHFUL, "optim.name", "optim.learning_rate", "loss.mask_padding"),
    ),
    _line(
        "R0:290",
        "epochs (16 of them printed, as many trained here)",
        200,
        settings(CAFE_FAITHFUL._replace(changes=()), "train.num_epochs"),
    ),
    _line("R0:302", "training pairs", 399, one(lambda study: cafe.num_pairs(study, "train"))),
    _line(
        "R0:302",
        "test pairs",
        101,
        one(lambda study: cafe.num_pairs(study, "test")),
        default=one(lambda study: len(study.pairs(CAFE_DEFAULT).splits["test"].sources)),
        default_is="of a tenth, and as many to validate",
        why=cafe.larger_corpus,
    ),
    _line(
        "R0:302",
        "each accuracy is a number of hits in 399 x 64 positions",
        "yes",
        one(lambda study: cafe.rows_of(399)),
        holds,
    ),
    _line(
        "R0:302",
        "loss counting padding [nats]",
        cafe.LOSS,
        curve(CAFE_FAITHFUL, "loss", CAFE_EPOCHS),
        lower_curve,
        default=final(CAFE_DEFAULT, "test.cross_entropy"),
        default_is="nats a real token of unseen answers",
        epochs=CAFE_EPOCHS,
        why=cafe.loss_is_diluted,
    ),
    _line(
        "R0:302",
        "accuracy counting padding",
        cafe.ACCURACY,
        curve(CAFE_FAITHFUL, "accuracy_padded", CAFE_EPOCHS),
        higher_curve,
        default=final(CAFE_DEFAULT, "test.accuracy"),
        default_is="of real tokens of unseen answers",
        epochs=CAFE_EPOCHS,
        why=cafe.accuracy_is_inflated,
    ),
    _line(
        "R0:302",
        "loss of real tokens [nats], derived",
        cafe.LOSS_OF_REAL,
        curve(CAFE_FAITHFUL, "cross_entropy", CAFE_EPOCHS[1:]),
        lower_curve,
        epochs=CAFE_EPOCHS[1:],
        note=f"the printed loss over the {cafe.REAL:.1%} of positions that are real",
    ),
    _line(
        "R0:302",
        "accuracy of real tokens, derived",
        cafe.ACCURACY_OF_REAL,
        curve(CAFE_FAITHFUL, "accuracy", CAFE_EPOCHS[1:]),
        higher_curve,
        epochs=CAFE_EPOCHS[1:],
        note=f"the printed accuracy, without {1 - cafe.REAL:.1%} of padding",
    ),
    _proof(
        "R0:322",
        "questions, answers and replies are shown",
        "yes",
        "tasks/test_seq2seq_data",
        "what_is_printed_shows_replies_and_how_they_were_scored",
    ),
    _line(
        "R0:332",
        "share of the 16 replies that are the very answer",
        2 / 16,
        cafe.exact(CAFE_FAITHFUL),
        higher,
        default=final(CAFE_DEFAULT, "test.intent_accuracy"),
        default_is="an answer of the question's intent, of our unseen questions",
        why=cafe.other_dialogues,
    ),
    *(_reply(question, said) for question, _, said in cafe.DIALOGUES),
]
