"""R5, R0 and R1: the chatbots' weaknesses, shown in `faithful` where they can be, and mended."""

from operator import gt, lt
from typing import Any

from experiments.reproduce.cafe import CAFE_DEFAULT, CAFE_FAITHFUL
from experiments.reproduce.checks import (
    MASKED,
    READS_PADDING,
    cut_symbols,
    learnt_of_padding,
    mean_of_means,
    misstepped,
    moved_by_padding,
    splits_of,
    unfit_tokens,
    vanished_words,
    views_agree,
)
from experiments.reproduce.figure import weaknesses_of
from experiments.reproduce.figures import wiki
from experiments.reproduce.measure import compared, final, one, proved, settings
from experiments.reproduce.verdict import BETTERED, OUTSIDE, none_left, reported, vanishes

_of_cafe, _of_wiki = weaknesses_of("cafe_chatbot"), weaknesses_of("wiki_chatbot")
_of_layers = weaknesses_of("layers")
_AGAINST_OVERFITTING = ("model.attention", "model.input_dropout", "train.patience")


def _have_tests(printed: Any, faithful: Any, default: Any) -> str:
    """Bettered: validation and test have these figures."""
    return BETTERED if {"valid", "test"} <= {*default[0]} else OUTSIDE


def _differ(printed: Any, faithful: Any, default: Any) -> str:
    """Bettered: each setting is another one."""
    both = zip(faithful[0], default[0], strict=True)
    return BETTERED if all(theirs != ours for theirs, ours in both) else OUTSIDE


CHATBOT_WEAKNESSES = [
    _of_cafe(
        "R0:285",
        "accuracy counts padding",
        final(CAFE_DEFAULT, "test.accuracy"),
        compared(CAFE_FAITHFUL, "train.accuracy_padded", "train.accuracy", gt),
        reported,
        note="of real tokens of unseen answers",
    ),
    _of_cafe(
        "R0:185",
        "loss averages over padding",
        proved("tasks/test_seq2seq_data", "loss_and_accuracy_are_of_real_tokens"),
        compared(CAFE_FAITHFUL, "train.loss", "train.cross_entropy", lt),
    ),
    _of_cafe(
        "R0:252",
        "seven more pads in front of a question move its state by",
        moved_by_padding(MASKED),
        moved_by_padding(READS_PADDING),
        vanishes,
    ),
    _of_cafe(
        "R0:189",
        "a short last batch weighs like a whole one: mean of 0 (10 rows) and 1 (1 row)",
        one(mean_of_means),
        one(lambda study: (0.0 + 1.0) / 2),
        rule=lambda printed, faithful, default: BETTERED if default == [1 / 11] else OUTSIDE,
    ),
    _of_cafe(
        "R0:256",
        "start and end symbols that truncation cuts off",
        cut_symbols(MASKED),
        rule=none_left,
    ),
    _of_cafe(
        "R0:237",
        "unknown words that leave no trace, of two",
        vanished_words("words"),
        vanished_words("words(unknown=False)"),
        vanishes,
    ),
    _of_cafe(
        "R0:163",
        "a loop in Python decodes one row, a model call a token",
        proved("decoding/test_sampling", "decoding_stops_when_every_row_has_ended"),
    ),
    _of_cafe(
        "R0:230",
        "no validation, and no figure of the test: splits that have BLEU, perplexity and more",
        splits_of(CAFE_DEFAULT, "loss", "bleu", "chrf", "perplexity", "intent_accuracy"),
        rule=_have_tests,
    ),
    _of_layers("R0:8", "four layers show four ways to call one", one(views_agree)),
    _of_cafe(
        "R0:87",
        "nothing against overfitting: attention, dropout, patience",
        settings(CAFE_DEFAULT, *_AGAINST_OVERFITTING),
        settings(CAFE_FAITHFUL, *_AGAINST_OVERFITTING),
        _differ,
    ),
    _of_wiki(
        "R1:104",
        "a mask after the embedding masks nothing: gradient of padding's row",
        learnt_of_padding(MASKED),
        learnt_of_padding(READS_PADDING),
        vanishes,
    ),
    _of_wiki(
        "R1:173",
        "a reply may never end, or say padding: such tokens",
        unfit_tokens(MASKED),
        rule=none_left,
    ),
    _of_wiki(
        "R1:150",
        "calls of another shape than training: difference of logits",
        misstepped(MASKED),
        rule=none_left,
    ),
    _of_wiki(
        "R1:58",
        "vocabulary fitted before the split",
        proved("tasks/test_seq2seq_data", "what_is_held_out_is_in_no_vocabulary"),
    ),
    _of_wiki(
        "R1:78",
        "test is validation: no question of the test is one of training or validation",
        one(wiki.held_out),
    ),
    _of_wiki(
        "R1:97",
        "comments name other widths than the code: ours are those of the texts",
        one(lambda study: wiki.widths(study) == wiki.longest(study)),
    ),
]
