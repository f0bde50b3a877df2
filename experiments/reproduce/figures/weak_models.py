"""R5, R2 to R4: the small models' weaknesses, shown in `faithful` where they can be, and mended."""

from operator import gt, ne

from experiments.reproduce.checks import ends_flagged, ratio, refused
from experiments.reproduce.figure import Explanation, Measure, lines_of, weaknesses_of
from experiments.reproduce.figures import completion, rows, sentences, tagging, words
from experiments.reproduce.layers import last_is_state
from experiments.reproduce.layers import sentences as two_sentences
from experiments.reproduce.measure import compared, final, given, one, proved, replies, settings
from experiments.reproduce.trials import Spec, Study
from experiments.reproduce.verdict import nearly_all, reported, to_two_digits, vanishes, varies
from seqjax.tasks.word_completion import LETTERS

of_tags, of_layers = weaknesses_of(tagging.NAME), weaknesses_of("layers")
of_completion, of_rows = weaknesses_of(completion.NAME), weaknesses_of(rows.NAME)
of_words, of_sentences = weaknesses_of(words.NAME), weaknesses_of(sentences.NAME)

UNREAD = Spec(tagging.NAME, changes=(("model.unread", 0.1),))
USELESS = Spec(words.NAME, changes=(("model.encoder_output_dropout", (0.5,)),))


def left_out(spec: Spec) -> Measure:
    """Training images that an epoch does not read."""

    def find(study: Study) -> int:
        read = rows.steps(spec)(study)[0] * study.config(spec).train.batch_size
        return max(0, rows.images(study)[0] - read)

    return one(find)


def prompt(study: Study) -> str:
    """The first word as the task shows it, in quotes."""
    letters = study.task(completion.FAITHFUL).splits["train"]["letters"][0]
    return repr("".join(LETTERS[i] for i in letters) + " ")


def other_code(study: Study) -> Explanation:
    """Whether the code that is shown would print something else."""
    shown = repr("word"[:-1] + " ")
    return Explanation(f"the code that is shown gives {shown}", shown == prompt(study))


FIGURES = [
    of_tags(
        "R2:160",
        "evaluated on the two sentences of training only",
        final(tagging.LSTM, "held_out.accuracy"),
        final(tagging.LSTM, "train.accuracy"),
        reported,
        note="accuracy of those, and of words of sentences never seen",
    ),
    of_tags("R2:114", "a setting that nothing reads", refused(UNREAD)),
    of_layers(
        "R2:397",
        "one layer's sequence beside another's state: the last output is the state",
        last_is_state("gru", 3, two_sentences, (2, 3, 4)),
    ),
    of_tags(
        "R2:531",
        "the GRU's loss is of one run, of other code [nats]",
        final(tagging.GRU, "train.loss"),
        rule=varies,
        note="over seeds, of `gru`",
    ),
    of_completion(
        "R3:181",
        "dropout is alive at the test",
        proved(
            "training/test_evaluator",
            "two_evaluations_are_bitwise_equal_and_a_key_brings_dropout_to_life",
        ),
        compared(completion.FAITHFUL, "train.loss_dropout", "train.loss", gt),
    ),
    of_words("R3:323", "dropout of an output that nothing reads", refused(USELESS)),
    of_words(
        "R3:390",
        "padding tells the decoder how long to speak",
        final(words.DEFAULT, "train.exact_match"),
        settings(words.FAITHFUL, "decode.decoder"),
        nearly_all,
        note="share of the six words that are right, decoded with its own letters",
    ),
    of_words(
        "R3:398",
        "an error where no end is said",
        ends_flagged(words.DEFAULT),
        note="replies of random weights: flagged are those, and only those, that do not end",
    ),
    of_words(
        "R3:415",
        "nonsense gets a confident translation: abcd has a reply",
        given(words.DEFAULT, "abcd"),
        one(lambda study: all(replies(words.FAITHFUL, "abcd")(study))),
        vanishes,
    ),
    of_completion(
        "R3:251",
        "accuracy of training words only",
        final(completion.DEFAULT, "held_out.accuracy"),
        final(completion.DEFAULT, "train.accuracy"),
        reported,
        note="accuracy of those, and of 566 words never seen",
    ),
    lines_of(completion.NAME)(
        "R3:244", "prompt of the first word", repr("w "), one(prompt), why=other_code
    ),
    of_rows(
        "R3:72",
        "transposes all outputs to use the last",
        proved("nn/test_stack", "the_last_output_is_that_of_the_last_valid_step"),
    ),
    of_rows(
        "R3:88",
        "images that an epoch leaves out",
        left_out(rows.DEFAULT),
        left_out(rows.FAITHFUL),
        vanishes,
    ),
    of_sentences(
        "R4:53",
        "ids depend on the hash seed",
        proved("data/test_vocabulary", "another_process_gives_the_same_ids"),
    ),
    of_sentences(
        "R4:88",
        "nothing can be generated",
        final(sentences.DEFAULT, "train.exact_match"),
        settings(sentences.FAITHFUL, "decode.decoder"),
        nearly_all,
        note="share of the five sentences that are right, decoded from start to end",
    ),
    lines_of(sentences.NAME)(
        "R4:190",
        "rows of zeros dilute the loss: share of the true one",
        0.64,
        ratio(sentences.FAITHFUL, "train.loss", "train.cross_entropy"),
        to_two_digits,
    ),
    of_sentences(
        "R4:190",
        "accuracy counts rows of zeros",
        final(sentences.DEFAULT, "train.accuracy"),
        compared(sentences.FAITHFUL, "train.accuracy_padded", "train.accuracy", ne),
        reported,
        note="of real characters",
    ),
    of_sentences(
        "R4:185",
        "the last weights are kept, not the best",
        proved("training/test_fit", "the_result_and_what_is_printed_are_of_the_best_weights"),
    ),
    of_sentences(
        "all",
        "no seeds, checkpoints, resuming, logs or tests",
        proved("training/test_fit", "a_killed_run_launched_again_ends_as_if_never_stopped"),
    ),
]
