"""R0's chatbot of a cafe, line by line."""

from experiments.reproduce import cafe
from experiments.reproduce.cafe import DEFAULT, EPOCHS, FAITHFUL, SHAPES
from experiments.reproduce.figure import Figure, lines_of
from experiments.reproduce.measure import curve, final, one, proved, replies, settings, sizes
from experiments.reproduce.verdict import higher, higher_curve, holds, lower_curve, occurs
from seqjax.data.parallel_text import SHIPPED

line = lines_of(cafe.NAME)


def proof(source: str, what: str, printed: str, file: str, test: str) -> Figure:
    return line(source, what, printed, proved(file, test), holds)


def reply(question: str, printed: str) -> Figure:
    """What it says to a printed question; of the default, what that makes of it."""
    return line(
        "R0:332",
        f"reply to {question}",
        printed,
        replies(FAITHFUL, question),
        occurs,
        default=replies(DEFAULT, question),
        default_is="of our corpus",
        why=cafe.other_dialogues,
    )


FIGURES = [
    line(
        "R0:81",
        "LSTMs, Dense, embeddings, all: parameters",
        (1_312_768, 1_312_768, 1_026_000, 256_000, 256_000, 4_163_536),
        sizes(SHAPES),
    ),
    line(
        "R0:81",
        "rows and width of embeddings, units",
        (2000, 128, 512),
        settings(SHAPES, "data.vocab_size", "model.embed_size", "model.hidden_size"),
    ),
    proof(
        "R0:102",
        "the decoder goes on from the encoder's h and c",
        "yes",
        "models/test_seq2seq",
        "steps_reproduce_teacher_forcing",
    ),
    line(
        "R0:142",
        "share of its own tokens in the decoder's inputs in training",
        "off",
        settings(SHAPES, "loss.scheduled_sampling"),
    ),
    proof(
        "R0:153",
        "greedy from the start symbol to the end, 64 steps at most",
        "yes",
        "decoding/test_sampling",
        "every_decoder_keeps_every_promise",
    ),
    line(
        "R0:153",
        "steps of a reply at most",
        64,
        one(lambda study: study.pairs(SHAPES).text.options.max_length),
    ),
    proof(
        "R0:179",
        "a step is a gradient and an update",
        "yes",
        "training/test_train_step",
        "a_step_is_value_and_grad_and_an_update",
    ),
    line(
        "R0:181",
        "widths of questions, decoder's inputs and labels",
        (64, 64, 64),
        one(cafe.tensors),
    ),
    line(
        "R0:207",
        "form of the corpus: question and answer by turns",
        "lines",
        one(lambda study: SHIPPED["cafe"][1]),
    ),
    line(
        "R0:208",
        "words",
        'words(num_words=1997, unknown=False, analyzer="okt")',
        settings(FAITHFUL, "data.source_vocabulary"),
    ),
    line("R0:219", "share that is held out", 0.2, settings(FAITHFUL, "data.test_share")),
    line(
        "R0:237",
        "ids in all, one vocabulary for both sides, two tables",
        (2000, True, True),
        one(cafe.vocabulary),
    ),
    line("R0:250", "padding of questions and answers", ("pre", "post"), one(cafe.sides)),
    line(
        "R0:250",
        "longest question and answer",
        (64, 65),
        settings(FAITHFUL, "data.max_source_length", "data.max_target_length"),
    ),
    line("R0:269", "steps an epoch, rows of the last", (13, 15), one(cafe.batches)),
    line(
        "R0:280",
        "Keras' Adam, its rate, padding counts",
        ("keras_adam", 0.001, False),
        settings(FAITHFUL, "optim.name", "optim.learning_rate", "loss.mask_padding"),
    ),
    line(
        "R0:290",
        "epochs (16 of them printed, as many trained here)",
        200,
        settings(FAITHFUL._replace(changes=()), "train.num_epochs"),
    ),
    line("R0:302", "training pairs", 399, one(lambda study: cafe.rows(study, "train"))),
    line(
        "R0:302",
        "test pairs",
        101,
        one(lambda study: cafe.rows(study, "test")),
        default=one(lambda study: len(study.pairs(DEFAULT).splits["test"].sources)),
        default_is="of a tenth, and as many to validate",
        why=cafe.larger_corpus,
    ),
    line(
        "R0:302",
        "each accuracy is a number of hits in 399 x 64 positions",
        "yes",
        one(lambda study: cafe.rows_of(399)),
        holds,
    ),
    line(
        "R0:302",
        "loss counting padding [nats]",
        cafe.LOSS,
        curve(FAITHFUL, "loss", EPOCHS),
        lower_curve,
        default=final(DEFAULT, "test.cross_entropy"),
        default_is="nats a real token of unseen answers",
        epochs=EPOCHS,
        why=cafe.loss_is_diluted,
    ),
    line(
        "R0:302",
        "accuracy counting padding",
        cafe.ACCURACY,
        curve(FAITHFUL, "accuracy_padded", EPOCHS),
        higher_curve,
        default=final(DEFAULT, "test.accuracy"),
        default_is="of real tokens of unseen answers",
        epochs=EPOCHS,
        why=cafe.accuracy_is_inflated,
    ),
    line(
        "R0:302",
        "loss of real tokens [nats], derived",
        cafe.LOSS_OF_REAL,
        curve(FAITHFUL, "cross_entropy", EPOCHS[1:]),
        lower_curve,
        epochs=EPOCHS[1:],
        note=f"the printed loss over the {cafe.REAL:.1%} of positions that are real",
    ),
    line(
        "R0:302",
        "accuracy of real tokens, derived",
        cafe.ACCURACY_OF_REAL,
        curve(FAITHFUL, "accuracy", EPOCHS[1:]),
        higher_curve,
        epochs=EPOCHS[1:],
        note=f"the printed accuracy, without {1 - cafe.REAL:.1%} of padding",
    ),
    proof(
        "R0:322",
        "questions, answers and replies are shown",
        "yes",
        "tasks/test_seq2seq_data",
        "what_is_printed_shows_replies_and_how_they_were_scored",
    ),
    line(
        "R0:332",
        "share of the 16 replies that are the very answer",
        2 / 16,
        cafe.exact(FAITHFUL),
        higher,
        default=final(DEFAULT, "test.intent_accuracy"),
        default_is="an answer of the question's intent, of our unseen questions",
        why=cafe.other_dialogues,
    ),
    *(reply(question, said) for question, _, said in cafe.DIALOGUES),
]
