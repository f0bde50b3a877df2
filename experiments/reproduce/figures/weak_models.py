"""R5, R2 to R4: the small models' weaknesses, shown in `faithful` where they can be, and mended."""

from operator import gt, ne

from experiments.reproduce.checks import ends_flagged, ratio, refused
from experiments.reproduce.figure import Explanation, Measure, lines_of, weaknesses_of
from experiments.reproduce.figures import rows, tagging
from experiments.reproduce.figures.completion import COMPLETION_DEFAULT, COMPLETION_FAITHFUL
from experiments.reproduce.figures.rows import ROWS_DEFAULT, ROWS_FAITHFUL
from experiments.reproduce.figures.sentences import SENTENCES_DEFAULT, SENTENCES_FAITHFUL
from experiments.reproduce.figures.words import WORDS_DEFAULT, WORDS_FAITHFUL
from experiments.reproduce.layers import last_is_state, sentence_inputs
from experiments.reproduce.measure import (
    chat_answers,
    compared,
    final,
    one,
    proved,
    replies,
    settings,
)
from experiments.reproduce.trials import Spec, TrialSet
from experiments.reproduce.verdict import nearly_all, reported, to_two_digits, vanishes, varies
from seqjax.tasks.word_completion import LETTERS

_of_tags, _of_layers = weaknesses_of("svo_tagging"), weaknesses_of("layers")
_of_completion, _of_rows = weaknesses_of("word_completion"), weaknesses_of("mnist_rows")
_of_words, _of_sentences = weaknesses_of("word_translation"), weaknesses_of("sentence_translation")

_UNREAD = Spec("svo_tagging", changes=(("model.unread", 0.1),))
_USELESS = Spec("word_translation", changes=(("model.encoder_output_dropout", (0.5,)),))


def _left_out(spec: Spec) -> Measure:
    """Training images that an epoch does not read."""

    def find(study: TrialSet) -> int:
        read = rows.steps(spec)(study)[0] * study.config(spec).train.batch_size
        return max(0, rows.images(study)[0] - read)

    return one(find)


def _prompt(study: TrialSet) -> str:
    """The first word as the task shows it, in quotes."""
    letters = study.task(COMPLETION_FAITHFUL).splits["train"]["letters"][0]
    return repr("".join(LETTERS[i] for i in letters) + " ")


def _other_code(study: TrialSet) -> Explanation:
    """Whether the code that is shown would print something else."""
    shown = repr("word"[:-1] + " ")
    return Explanation(f"the code that is shown gives {shown}", shown == _prompt(study))


MODEL_WEAKNESSES = [
    _of_tags(
        "R2:160",
        "evaluated on the two sentences of training only",
        final(tagging.LSTM_TAGGER, "held_out.accuracy"),
        final(tagging.LSTM_TAGGER, "train.accuracy"),
        reported,
        note="accuracy of those, and of words of sentences never seen",
    ),
    _of_tags("R2:114", "a setting that nothing reads", refused(_UNREAD)),
    _of_layers(
        "R2:397",
        "one layer's sequence beside another's state: the last output is the state",
        last_is_state("gru", 3, sentence_inputs, (2, 3, 4)),
    ),
    _of_tags(
        "R2:531",
        "the GRU's loss is of one run, of other code [nats]",
        final(tagging.GRU_TAGGER, "train.loss"),
        rule=varies,
        note="over seeds, of `gru`",
    ),
    _of_completion(
        "R3:181",
        "dropout is alive at the test",
        proved(
            "training/test_evaluator",
            "evaluations_are_bit_identical_and_keys_add_dropout",
        ),
        compared(COMPLETION_FAITHFUL, "train.loss_dropout", "train.loss", gt),
    ),
    _of_words("R3:323", "dropout of an output that nothing reads", refused(_USELESS)),
    _of_words(
        "R3:390",
        "padding tells the decoder how long to speak",
        final(WORDS_DEFAULT, "train.exact_match"),
        settings(WORDS_FAITHFUL, "decode.decoder"),
        nearly_all,
        note="share of the six words that are right, decoded with its own letters",
    ),
    _of_words(
        "R3:398",
        "an error where no end is said",
        ends_flagged(WORDS_DEFAULT),
        note="replies of random weights: flagged are those, and only those, that do not end",
    ),
    _of_words(
        "R3:415",
        "nonsense gets a confident translation: abcd has a reply",
        chat_answers(WORDS_DEFAULT, "abcd"),
        one(lambda study: all(replies(WORDS_FAITHFUL, "abcd")(study))),
        vanishes,
    ),
    _of_completion(
        "R3:251",
        "accuracy of training words only",
        final(COMPLETION_DEFAULT, "held_out.accuracy"),
        final(COMPLETION_DEFAULT, "train.accuracy"),
        reported,
        note="accuracy of those, and of 566 words never seen",
    ),
    lines_of("word_completion")(
        "R3:244", "prompt of the first word", repr("w "), one(_prompt), why=_other_code
    ),
    _of_rows(
        "R3:72",
        "transposes all outputs to use the last",
        proved("nn/test_stack", "the_last_output_is_that_of_the_last_valid_step"),
    ),
    _of_rows(
        "R3:88",
        "images that an epoch leaves out",
        _left_out(ROWS_DEFAULT),
        _left_out(ROWS_FAITHFUL),
        vanishes,
    ),
    _of_sentences(
        "R4:53",
        "ids depend on the hash seed",
        proved("data/test_vocabulary", "another_process_gives_the_same_ids"),
    ),
    _of_sentences(
        "R4:88",
        "nothing can be generated",
        final(SENTENCES_DEFAULT, "train.exact_match"),
        settings(SENTENCES_FAITHFUL, "decode.decoder"),
        nearly_all,
        note="share of the five sentences that are right, decoded from start to end",
    ),
    lines_of("sentence_translation")(
        "R4:190",
        "rows of zeros dilute the loss: share of the true one",
        0.64,
        ratio(SENTENCES_FAITHFUL, "train.loss", "train.cross_entropy"),
        to_two_digits,
    ),
    _of_sentences(
        "R4:190",
        "accuracy counts rows of zeros",
        final(SENTENCES_DEFAULT, "train.accuracy"),
        compared(SENTENCES_FAITHFUL, "train.accuracy_padded", "train.accuracy", ne),
        reported,
        note="of real characters",
    ),
    _of_sentences(
        "R4:185",
        "the last weights are kept, not the best",
        proved("training/test_fit", "the_result_and_what_is_printed_are_of_the_best_weights"),
    ),
    _of_sentences(
        "all",
        "no seeds, checkpoints, resuming, logs or tests",
        proved("training/test_fit", "a_killed_run_launched_again_ends_as_if_never_stopped"),
    ),
]
