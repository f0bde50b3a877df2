"""R5: the tutorials' weaknesses, each shown in `faithful` where it can be, and mended in the
default. Imports: checks, measure."""

from operator import gt, lt, ne
from typing import Any

from seqjax.ledger.cafe import DEFAULT as CAFE
from seqjax.ledger.cafe import FAITHFUL as CAFE_FAITHFUL
from seqjax.ledger.cafe import SHAPES
from seqjax.ledger.checks import (
    MASKED,
    cut_symbols,
    learnt_of_padding,
    mean_of_means,
    misstepped,
    moved_by_padding,
    ratio,
    refused,
    splits_of,
    unfit_tokens,
    vanished_words,
    views_agree,
)
from seqjax.ledger.figure import Explanation, Figure, Measure
from seqjax.ledger.figures import completion, rows, sentences, tagging, wiki, words
from seqjax.ledger.layers import last_is_state
from seqjax.ledger.layers import sentences as tagged
from seqjax.ledger.measure import compared, final, given, one, proved, replies, settings
from seqjax.ledger.trials import Spec, Study
from seqjax.ledger.verdict import (
    BETTERED,
    OUTSIDE,
    Rule,
    fixed,
    lower,
    same,
    to_two_digits,
    vanishes,
)

UNREAD = Spec(tagging.NAME, changes=(("model.unread", 0.1),))
USELESS = Spec(words.NAME, changes=(("model.encoder_output_dropout", (0.5,)),))


def weakness(
    source: str,
    config: str,
    what: str,
    faithful: Measure | None,
    default: Measure,
    rule: Rule = fixed,
    **more: Any,
) -> Figure:
    """What is wrong, how `faithful` shows it, and how the default does not."""
    return Figure(source, config, what, None, rule, faithful or (lambda s: []), default, **more)


def left_out(spec: Spec) -> Measure:
    """Training images that an epoch does not read."""

    def find(study: Study) -> int:
        read = rows.steps(spec)(study)[0] * study.config(spec).train.batch_size
        return max(0, rows.images(study)[0] - read)

    return one(find)


def other_code(study: Study) -> Explanation:
    """Whether the code that is shown would print something else."""
    shown = ["word"[:-1] + " "]
    return Explanation(f"the code that is shown gives {shown[0]!r}", shown != ["w "])


FIGURES = [
    weakness(
        "R0:285",
        "cafe_chatbot",
        "accuracy counts padding",
        compared(CAFE_FAITHFUL, "train.accuracy_padded", "train.accuracy", gt),
        final(CAFE, "test.accuracy"),
        default_is="of real tokens of unseen answers",
    ),
    weakness(
        "R0:185",
        "cafe_chatbot",
        "loss averages over padding",
        compared(CAFE_FAITHFUL, "train.loss", "train.cross_entropy", lt),
        proved("test_text_pairs", "loss_and_accuracy_are_of_real_tokens"),
    ),
    weakness(
        "R0:252",
        "cafe_chatbot",
        "7 pads more in front of a question move its state by",
        moved_by_padding(SHAPES),
        moved_by_padding(MASKED),
        vanishes,
    ),
    weakness(
        "R0:189",
        "cafe_chatbot",
        "a short last batch weighs like a whole one",
        None,
        one(lambda study: mean_of_means(study) == 1 / 11),
    ),
    weakness(
        "R0:256",
        "cafe_chatbot",
        "start and end symbols that truncation cuts off",
        None,
        cut_symbols(MASKED),
        lambda printed, theirs, ours: BETTERED if ours == [0] else OUTSIDE,
    ),
    weakness(
        "R0:237",
        "cafe_chatbot",
        "unknown words vanish (of two)",
        vanished_words("words(unknown=False)"),
        vanished_words("words"),
        vanishes,
    ),
    weakness(
        "R0:163",
        "cafe_chatbot",
        "a loop in Python decodes one row, a model call a token",
        None,
        proved("test_decode", "decoding_stops_when_every_row_has_ended"),
    ),
    weakness(
        "R0:230",
        "cafe_chatbot",
        "no validation, no figure of the test",
        None,
        splits_of(CAFE, "loss", "bleu", "chrf", "perplexity", "intent_accuracy"),
        lambda printed, _, ours: BETTERED if {"valid", "test"} <= {*ours[0]} else OUTSIDE,
    ),
    weakness(
        "R0:8",
        "layers",
        "four different layers show four ways to call one",
        None,
        one(views_agree),
    ),
    weakness(
        "R0:87",
        "cafe_chatbot",
        "no dropout, attention or early stop",
        settings(SHAPES, "model.attention", "model.input_dropout", "train.patience"),
        settings(CAFE, "model.attention", "model.input_dropout", "train.patience"),
        lambda printed, theirs, ours: BETTERED if theirs != ours else OUTSIDE,
    ),
    weakness(
        "R1:104",
        "wiki_chatbot",
        "a mask after the embedding masks nothing: gradient of padding's row",
        learnt_of_padding(SHAPES),
        learnt_of_padding(MASKED),
        vanishes,
    ),
    weakness(
        "R1:173",
        "wiki_chatbot",
        "a reply may never end, or say padding",
        None,
        one(lambda study: unfit_tokens(MASKED)(study) == [0]),
    ),
    weakness(
        "R1:150",
        "wiki_chatbot",
        "the decoder's graph is of another length than its calls",
        None,
        one(lambda study: misstepped(MASKED)(study) == [0.0]),
    ),
    weakness(
        "R1:58",
        "wiki_chatbot",
        "vocabulary fitted before the split; test is validation",
        None,
        proved("test_text_pairs", "what_is_held_out_is_in_no_vocabulary"),
    ),
    weakness(
        "R1:97",
        "wiki_chatbot",
        "comments name other widths than the code",
        None,
        one(lambda study: wiki.widths(study) == wiki.longest(study)),
    ),
    weakness(
        "R2:160",
        tagging.NAME,
        "evaluated on the two sentences of training only",
        None,
        final(tagging.LSTM, "held_out.accuracy"),
        default_is="of words of sentences never seen",
    ),
    weakness("R2:114", tagging.NAME, "a setting that nothing reads", None, refused(UNREAD)),
    weakness(
        "R2:397",
        "layers",
        "one layer's sequence is printed beside another's state",
        None,
        last_is_state("gru", 3, tagged, (2, 3, 4)),
    ),
    Figure(
        "R2:531",
        tagging.NAME,
        "the GRU's loss is of one run [nats]",
        1.022,
        lower,
        final(tagging.GRU, "train.loss"),
        note="printed: the median of 512 runs of Keras",
    ),
    weakness(
        "R3:181",
        completion.NAME,
        "dropout is alive at the test",
        compared(completion.FAITHFUL, "train.loss_dropout", "train.loss", gt),
        proved(
            "test_evaluate", "two_evaluations_are_bitwise_equal_and_a_key_brings_dropout_to_life"
        ),
    ),
    weakness(
        "R3:323", words.NAME, "dropout of an output that nothing reads", None, refused(USELESS)
    ),
    weakness(
        "R3:390",
        words.NAME,
        "padding tells the decoder how long to speak",
        settings(words.FAITHFUL, "decode.decoder"),
        final(words.DEFAULT, "train.exact_match"),
        default_is="of the six words, decoded with its own letters",
    ),
    weakness(
        "R3:398",
        words.NAME,
        "an error where no end is said",
        None,
        final(words.DEFAULT, "train.finished"),
        default_is="of replies end; the others are flagged",
    ),
    weakness(
        "R3:415",
        words.NAME,
        "nonsense gets a confident translation",
        one(lambda study: bool(all(replies(words.FAITHFUL, "abcd")(study)))),
        given(words.DEFAULT, "abcd"),
        vanishes,
    ),
    weakness(
        "R3:251",
        completion.NAME,
        "accuracy of training words only",
        None,
        final(completion.DEFAULT, "held_out.accuracy"),
        default_is="of 566 words never seen",
    ),
    Figure(
        "R3:244",
        completion.NAME,
        "prompt of the first word",
        "w ",
        same,
        one(lambda study: "wor_"),
        why=other_code,
    ),
    weakness(
        "R3:72",
        rows.NAME,
        "transposes all outputs to use the last",
        None,
        proved("test_stack", "the_last_output_is_that_of_the_last_valid_step"),
    ),
    weakness(
        "R3:88",
        rows.NAME,
        "images that an epoch leaves out",
        left_out(rows.FAITHFUL),
        left_out(rows.DEFAULT),
        vanishes,
    ),
    weakness(
        "R4:53",
        sentences.NAME,
        "ids depend on the hash seed",
        None,
        proved("test_vocabulary", "another_process_gives_the_same_ids"),
    ),
    weakness(
        "R4:88",
        sentences.NAME,
        "nothing can be generated",
        settings(sentences.FAITHFUL, "decode.decoder"),
        final(sentences.DEFAULT, "train.exact_match"),
        default_is="of the five sentences, decoded from start to end",
    ),
    Figure(
        "R4:190",
        sentences.NAME,
        "rows of zeros dilute the loss: share of the true one",
        0.64,
        to_two_digits,
        ratio(sentences.FAITHFUL, "train.loss", "train.cross_entropy"),
    ),
    weakness(
        "R4:190",
        sentences.NAME,
        "accuracy counts rows of zeros",
        compared(sentences.FAITHFUL, "train.accuracy_padded", "train.accuracy", ne),
        final(sentences.DEFAULT, "train.accuracy"),
        default_is="of real characters",
    ),
    weakness(
        "R4:185",
        sentences.NAME,
        "the last weights are kept, not the best",
        None,
        proved("test_fit", "the_result_and_what_is_printed_are_of_the_best_weights"),
    ),
    weakness(
        "all",
        sentences.NAME,
        "no seeds, checkpoints, resuming, logs or tests",
        None,
        proved("test_fit", "a_killed_run_launched_again_ends_as_if_never_stopped"),
    ),
]
