"""R0's chatbot of a cafe: what its figures are, and why ours are not those.

Its corpus was not published: ours has other and longer answers, of which `faithful` takes as many.
How much of a batch is padding decides the tutorial's loss and accuracy, which count it. Of the
tutorial's positions as many are real as its second epoch gets wrong: by then padding is learnt.
"""

import re

import numpy as np

from experiments.reproduce.figure import Explanation, Measure
from experiments.reproduce.measure import curve, final, replies
from experiments.reproduce.trials import Spec, TrialSet
from seqjax.data.batching import steps_per_epoch

_NAME = "cafe_chatbot"
CAFE_DEFAULT = Spec(_NAME)
CAFE_FAITHFUL = Spec(_NAME, "faithful", (("train.num_epochs", 16),))  # as many as were printed
# The same shapes without Okt, which needs Java: two pairs, cut at blanks.
SHAPES = Spec(
    _NAME,
    "faithful",
    (
        ("data.pairs", (("문 여나요", "네 여덟 시 에 열어요"), ("커피 있나요", "네 있습니다"))),
        ("data.source_vocabulary", "words(num_words=1997, unknown=False)"),
        ("data.test_share", 0.0),
    ),
)
CAFE_EPOCHS = tuple(range(1, 17))
LOSS = (
    *(3.1125, 0.6049, 0.5686, 0.5580, 0.5391, 0.5338, 0.5397, 0.5245),
    *(0.5150, 0.5026, 0.4903, 0.4730, 0.4583, 0.4439, 0.4354, 0.4297),
)
ACCURACY = (
    *(0.832237, 0.909226, 0.910753, 0.910910, 0.910949, 0.911615, 0.911732, 0.911967),
    *(0.912202, 0.913142, 0.915414, 0.916158, 0.921483, 0.923363, 0.924264, 0.925321),
)
# What was asked of it unseen, the corpus' answer, and what it said: Okt's words.
DIALOGUES = (
    (
        "여기 기프티콘 되죠",
        "네 현금영수증 해드릴까 요",
        "아메리카노 티라미슈 세트 가격 은 만 원 입니다",
    ),
    (
        "네 에 테이크 아웃 도 가능한가요",
        "네 로 오시 면 테이크 아웃 잔 에 담아 드려요",
        "아뇨 현재 법적 으로 금지 하고 있어요",
    ),
    ("아메리카노 톨 사이즈 로 주세요", "따뜻한 거 로 드릴 까요", "다른 건 필요 없으신 가요"),
    ("진동 을 따로 주시나요", "주 번호 로 드리겠습니다", "네 초코 머핀 이랑 치즈케이크 있습니다"),
    ("자리 있나요", "네 있습니다", "네 자리 있습니다"),
    (
        "그럼 루이보스 밀크 티 하나",
        "네 알겠습니다",
        "여기 진동 벨 가지 고 계시다가 울리면 주문 한 음료 가져가세요",
    ),
    ("다음 에 무료 로 하고 엔 도장 찍어주세요", "네", "네 고객 님 결제 완료 되었습니다"),
    ("아메리카노 한 잔 에 얼마 죠", "입니다", "4000원 입니다"),
    ("얼마나", "바로 만들어 드릴게요", "오늘 딱 맞게 오셨네요"),
    ("카푸치노 는 로 주시 고 아메리카노 는 로", "네 더 없으세요", "결제 완료 되었습니다"),
    (
        "아메리카노 는 어떤 종류 가 있나요",
        "디카 페인 과 기본 아메리카노 2 종류 있습니다",
        "요즘 은 초코 케이크 가 제일 잘나가요",
    ),
    ("카카오 페이 로 결제 가능한가요", "네 가능합니다", "네 가능합니다"),
    (
        "오늘 의 커피 는 커피 로 하나요 맛 이",
        "아 네 오늘 은 과테말라 커피 입니다",
        "오늘 딱 맞게 오셨네요",
    ),
    (
        "머핀 은 뭐 가 제일",
        "블루베리 머핀 이 잘 나갑니다",
        "와이파이 비밀번호 는 종이 에 써져있습니다",
    ),
    ("현금 영수증 해주세요", "네 번호 찍어주세요", "네 번호 찍어주세요"),
    ("둘 다 톨 사이즈 로 주세요", "여기 서 드시고 요", "주문 이 따뜻하게 드릴 까요"),
)
REAL = 1 - ACCURACY[1]  # share of positions that are no padding
LOSS_OF_REAL = tuple(loss / REAL for loss in LOSS[1:])  # nats, once padding costs nothing
ACCURACY_OF_REAL = tuple((accuracy - (1 - REAL)) / REAL for accuracy in ACCURACY[1:])


def rows_of(count: int) -> bool:
    """Whether every printed accuracy is a number of right ones among 64 positions a row."""
    hits = np.array(ACCURACY) * count * 64
    return bool(np.all(np.abs(hits - np.round(hits)) < 0.02))


def num_pairs(study: TrialSet, split: str) -> int:
    """Pairs of a split of `faithful`."""
    return len(study.pairs(CAFE_FAITHFUL).splits[split].sources)


def larger_corpus(study: TrialSet) -> Explanation:
    """Whether the test is the same share of a corpus that is larger than the tutorial's."""
    config, parts = study.config(CAFE_FAITHFUL), study.pairs(CAFE_FAITHFUL).splits
    corpus = sum(len(part.sources) for part in study.pairs(CAFE_DEFAULT).splits.values())
    share = len(parts["test"].sources) / corpus
    told = (
        f"its corpus is not published; ours has {corpus:,} pairs, of which {share:.1%} are held out"
    )
    return Explanation(told, corpus > 500 and abs(share - config.data.test_share) < 0.001)


def batches(study: TrialSet) -> tuple[int, int]:
    """Steps of an epoch, and rows of the last one."""
    config = study.config(CAFE_FAITHFUL)
    rows, size = config.data.train_size, config.train.batch_size
    return steps_per_epoch(rows, size, config.train.drop_remainder), (rows - 1) % size + 1


def vocabulary(study: TrialSet) -> tuple[int, bool, bool]:
    """Ids in all; whether both sides have the same ones; whether each has a table of its own."""
    config = study.config(CAFE_FAITHFUL)
    both, tables = not config.data.target_vocabulary, not config.model.share_embeddings
    return config.data.vocab_size, both, tables


def tensors(study: TrialSet) -> tuple[int, int, int]:
    """Widths of questions, of the decoder's inputs and of its labels."""
    rows = study.task(SHAPES).splits["train"]
    target = rows["target"]
    return rows["source"].shape[1], target[:, :-1].shape[1], target[:, 1:].shape[1]


def sides(study: TrialSet) -> tuple[str, str]:
    """On which side questions and answers are padded."""
    rows = study.task(SHAPES).splits["train"]
    questions, answers = ("post" if rows[name][0, 0] else "pre" for name in ("source", "target"))
    return questions, answers


def loss_is_diluted(study: TrialSet) -> Explanation:
    """Whether the tutorial's share of padding, for ours, gives about its loss."""
    own = 1 - np.median(final(CAFE_FAITHFUL, "train.padding_share")(study))
    guessed = 1 - np.median(curve(CAFE_FAITHFUL, "accuracy_padded", (2,))(study))
    masked = np.median(curve(CAFE_FAITHFUL, "cross_entropy", CAFE_EPOCHS[1:])(study), axis=0)
    ratio = masked * REAL / np.array(LOSS[1:])
    told = (
        f"its corpus is not published; of its positions {REAL:.1%} are real, of ours {own:.1%} "
        f"(guessed in the same way: {guessed:.1%}). With its share of padding our loss would be "
        f"{ratio.min():.2f} to {ratio.max():.2f} of the printed one"
    )
    return Explanation(told, abs(own - guessed) < 0.01 and 0.8 < ratio.min() <= ratio.max() < 1.25)


def accuracy_is_inflated(study: TrialSet) -> Explanation:
    """Whether without padding the two accuracies are about the same."""
    masked = np.median(curve(CAFE_FAITHFUL, "accuracy", CAFE_EPOCHS[1:])(study), axis=0)
    mean_off = float(np.abs(masked - np.array(ACCURACY_OF_REAL)).mean())
    told = (
        f"its corpus is not published, of which {1 - REAL:.1%} is padding; of real tokens it ends "
        f"at {ACCURACY_OF_REAL[-1]:.1%}, ours at {masked[-1]:.1%}, and over the epochs they are "
        f"{mean_off:.1%} apart in the mean"
    )
    return Explanation(told, mean_off < 0.03 and abs(masked[-1] - ACCURACY_OF_REAL[-1]) < 0.03)


def published(study: TrialSet) -> tuple[int, int]:
    """How many of the questions and answers of the printed dialogues are in our corpus."""
    parts = study.pairs(CAFE_DEFAULT).splits.values()
    ours = [
        {_letters(text) for part in parts for text in part.sources},
        {_letters(text) for part in parts for text in part.targets},
    ]
    questions, answers, _ = zip(*DIALOGUES, strict=True)
    return (
        sum(_letters(text) in ours[0] for text in questions),
        sum(_letters(text) in ours[1] for text in answers),
    )


def other_dialogues(study: TrialSet) -> Explanation:
    """Whether the printed dialogues are of a corpus that ours is not."""
    questions, answers = published(study)
    told = (
        f"its corpus is not published; of the {len(DIALOGUES)} printed questions {questions} are "
        f"in ours, and of their answers {answers}; they are of epoch 200 and 16 are trained here"
    )
    return Explanation(told, max(questions, answers) <= len(DIALOGUES) // 4)


def exact(spec: Spec) -> Measure:
    """The share of the printed dialogues in which each trial gives the corpus' answer."""

    def measure(study: TrialSet) -> list[float]:
        said = [[_letters(x) for x in replies(spec, q)(study)] for q, _, _ in DIALOGUES]
        answers = np.array([[_letters(answer)] for _, answer, _ in DIALOGUES])
        return (np.array(said) == answers).mean(axis=0).tolist()

    return measure


def _letters(text: str) -> str:
    """A text without blanks and marks, which Okt sets otherwise."""
    return re.sub(r"[\W_]", "", text)
