"""R0's chatbot of a cafe: what its figures are, and why ours are not those. Imports: measure.

Its corpus was not published: ours has other and longer answers, of which `faithful` takes as many.
How much of a batch is padding decides the tutorial's loss and accuracy, which count it. Of the
tutorial's positions as many are real as its second epoch gets wrong: by then padding is learnt.
"""

import numpy as np

from seqjax.data.batches import steps_per_epoch
from seqjax.ledger.figure import Explanation
from seqjax.ledger.measure import curve, final
from seqjax.ledger.trials import Spec, Study

NAME = "cafe_chatbot"
DEFAULT = Spec(NAME)
FAITHFUL = Spec(NAME, "faithful", (("train.num_epochs", 16),))  # as many as were printed
# The same shapes without Okt, which needs Java: two pairs, cut at blanks.
SHAPES = Spec(
    NAME,
    "faithful",
    (
        ("data.pairs", (("문 여나요", "네 여덟 시 에 열어요"), ("커피 있나요", "네 있습니다"))),
        ("data.source_vocabulary", "words(num_words=1997, unknown=False)"),
        ("data.test_share", 0.0),
    ),
)
EPOCHS = tuple(range(1, 17))
LOSS = (
    *(3.1125, 0.6049, 0.5686, 0.5580, 0.5391, 0.5338, 0.5397, 0.5245),
    *(0.5150, 0.5026, 0.4903, 0.4730, 0.4583, 0.4439, 0.4354, 0.4297),
)
ACCURACY = (
    *(0.832237, 0.909226, 0.910753, 0.910910, 0.910949, 0.911615, 0.911732, 0.911967),
    *(0.912202, 0.913142, 0.915414, 0.916158, 0.921483, 0.923363, 0.924264, 0.925321),
)
REAL = 1 - ACCURACY[1]  # share of positions that are no padding
LOSS_OF_REAL = tuple(loss / REAL for loss in LOSS[1:])  # nats, once padding costs nothing
ACCURACY_OF_REAL = tuple((accuracy - (1 - REAL)) / REAL for accuracy in ACCURACY[1:])


def rows_of(count: int) -> bool:
    """Whether every printed accuracy is a number of right ones among 64 positions a row."""
    hits = np.array(ACCURACY) * count * 64
    return bool(np.all(np.abs(hits - np.round(hits)) < 0.02))


def batches(study: Study) -> tuple[int, int]:
    """Steps of an epoch, and rows of the last one."""
    config = study.config(FAITHFUL)
    rows, size = config.data.train_size, config.train.batch_size
    return steps_per_epoch(rows, size, config.train.drop_remainder), (rows - 1) % size + 1


def vocabulary(study: Study) -> tuple[int, bool, bool]:
    """Ids in all; whether both sides have the same ones; whether each has a table of its own."""
    config = study.config(FAITHFUL)
    both, tables = not config.data.target_vocabulary, not config.model.share_embeddings
    return config.data.vocab_size, both, tables


def tensors(study: Study) -> tuple[int, int, int]:
    """Widths of questions, of the decoder's inputs and of its labels."""
    rows = study.task(SHAPES).splits["train"]
    target = rows["target"]
    return rows["source"].shape[1], target[:, :-1].shape[1], target[:, 1:].shape[1]


def sides(study: Study) -> tuple[str, str]:
    """On which side questions and answers are padded."""
    rows = study.task(SHAPES).splits["train"]
    questions, answers = ("post" if rows[name][0, 0] else "pre" for name in ("source", "target"))
    return questions, answers


def loss_is_diluted(study: Study) -> Explanation:
    """Whether the tutorial's share of padding, for ours, gives about its loss."""
    own = 1 - np.median(final(FAITHFUL, "train.padding_share")(study))
    guessed = 1 - np.median(curve(FAITHFUL, "accuracy_padded", (2,))(study))
    masked = np.median(curve(FAITHFUL, "cross_entropy", EPOCHS[1:])(study), axis=0)
    ratio = masked * REAL / np.array(LOSS[1:])
    told = (
        f"its corpus is not published; of its positions {REAL:.1%} are real, of ours {own:.1%} "
        f"(guessed in the same way: {guessed:.1%}). With its share of padding our loss would be "
        f"{ratio.min():.2f} to {ratio.max():.2f} of the printed one"
    )
    return Explanation(told, abs(own - guessed) < 0.01 and 0.8 < ratio.min() <= ratio.max() < 1.25)


def accuracy_is_inflated(study: Study) -> Explanation:
    """Whether the tutorial's share of padding, for ours, gives about its accuracy."""
    masked = np.median(curve(FAITHFUL, "accuracy", EPOCHS[1:])(study), axis=0)
    inflated = 1 - REAL + REAL * masked
    off = np.abs(inflated - np.array(ACCURACY[1:])).max()
    told = (
        f"its corpus is not published; with its {1 - REAL:.1%} of padding ours would end at "
        f"{inflated[-1]:.1%} and be {off:.1%} off at the most"
    )
    return Explanation(told, bool(off < 0.01))


def replies_come_later(study: Study) -> Explanation:
    """Whether the tutorial, too, could have no whole reply right where ours stops."""
    theirs, ours = ACCURACY_OF_REAL[-1], np.median(curve(FAITHFUL, "accuracy", (16,))(study))
    told = (
        "its corpus is not published, and its replies are of epoch 200: at the 16th, the last that "
        f"is printed, {theirs:.1%} of its real tokens are right, and {ours:.1%} of ours"
    )
    return Explanation(told, bool(max(theirs, ours) < 0.25 and abs(theirs - ours) < 0.05))
