"""Checks of what the tutorials' weaknesses are about, each run on real models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reproduce.cafe import SHAPES
from experiments.reproduce.figure import Measure
from experiments.reproduce.layers import CASES, returned
from experiments.reproduce.measure import final, one
from experiments.reproduce.trials import Spec, TrialSet
from seqjax.data.vocabulary import Vocabulary
from seqjax.errors import UserError
from seqjax.metrics import Average, compute_means
from seqjax.models.text_to_text import TextToText

# The cafe's two models with two pairs, made small.
SMALL = (("model.embed_size", 8), ("model.hidden_size", 16), ("data.vocab_size", 0))
READS_PADDING = SHAPES._replace(changes=SHAPES.changes + SMALL)
MASKED = Spec(
    "cafe_chatbot",
    changes=(
        SHAPES.changes[0],
        ("data.source_vocabulary", "whitespace"),
        ("data.valid_share", 0.0),
        ("data.test_share", 0.0),
        *SMALL,
    ),
)
MORE = 7  # columns of padding


def moved_by_padding(spec: Spec) -> Measure:
    """How much some more padding in front of the questions changes the decoder's first state."""

    def find(study: TrialSet) -> float:
        text, params, source, _ = _fresh(study, spec)
        wider = np.pad(source, ((0, 0), (MORE, 0)), constant_values=text.source.pad_id)
        encode = jax.jit(lambda params, ids: text.encode(text.bind(params), ids).states)
        states = [encode(params, ids) for ids in (source, wider)]
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *states)
        return max(jax.tree.leaves(moved))

    return one(find)


def learnt_of_padding(spec: Spec) -> Measure:
    """The gradient that reaches padding's row of the questions' embedding: its greatest number."""

    def find(study: TrialSet) -> float:
        text, params, source, target = _fresh(study, spec)
        batch = {"source": jnp.asarray(source), "target": jnp.asarray(target)}
        square = jax.grad(lambda params: jnp.sum(text.logits(params, batch) ** 2))
        gradient = jax.jit(square)(params)
        table = gradient.get("source_embed", gradient["target_embed"])["embedding"]
        return float(jnp.abs(table[text.source.pad_id]).max())

    return one(find)


def misstepped(spec: Spec) -> Measure:
    """How far the decoder, one token at a time, is from its training in one pass."""

    def find(study: TrialSet) -> float:
        text, params, source, target = _fresh(study, spec)
        whole = jax.jit(text.logits)(
            params, {"source": jnp.asarray(source), "target": jnp.asarray(target)}
        )
        advance = jax.jit(lambda params, *now: text.bind(params).decode_step(*now))
        encode = jax.jit(lambda params, ids: text.encode(text.bind(params), ids))
        state, off = encode(params, jnp.asarray(source)), 0.0
        for step in range(4):
            state, logits = advance(params, state, jnp.asarray(target[:, step]))
            off = max(off, float(jnp.abs(logits - whole[:, step]).max()))
        return 0.0 if off < 1e-5 else off

    return one(find)


def unfit_tokens(spec: Spec) -> Measure:
    """Replies of random weights: how many say padding or start, or more than the bound allows."""

    def find(study: TrialSet) -> int:
        text, params, source, _ = _fresh(study, spec)
        tokens = np.asarray(jax.jit(text.replies)(params, {"source": jnp.asarray(source)}).tokens)
        ended = np.cumsum(tokens == text.target.eos_id, axis=1) > 0
        unfit = (tokens == text.target.pad_id) & ~ended | (tokens == text.target.bos_id)
        return int(unfit.sum()) + max(0, tokens.shape[1] - text.options.max_length)

    return one(find)


def ends_flagged(spec: Spec) -> Measure:
    """Whether of replies of random weights those are flagged that do not end, and no others."""

    def find(study: TrialSet) -> bool:
        text, params, source, _ = _fresh(study, spec)
        replies = jax.device_get(jax.jit(text.replies)(params, {"source": jnp.asarray(source)}))
        ends = (replies.tokens == text.target.eos_id).any(axis=1)
        return bool(np.array_equal(ends, replies.finished) and not ends.all())

    return one(find)


def cut_symbols(spec: Spec) -> Measure:
    """How many of start and end are lost when an answer is too long."""

    def find(study: TrialSet) -> int:
        text, *_ = _fresh(study, spec)
        [row] = text.encode_targets(["네 " * 100])
        return int(row[0] != text.target.bos_id) + int(row[-1] != text.target.eos_id)

    return one(find)


def vanished_words(vocabulary: str) -> Measure:
    """How many of two unknown words leave no trace in the ids."""

    def find(study: TrialSet) -> int:
        fitted = Vocabulary.fit(vocabulary, ["라떼 한 잔 주세요"])
        return 5 - len(fitted.encode("라떼 두 잔 또 주세요"))

    return one(find)


def refused(spec: Spec) -> Measure:
    """What is said of a config that cannot be; nothing if it can."""

    def find(study: TrialSet) -> str:
        try:
            study.task(spec)
        except UserError as error:
            return f"refused: {str(error).partition(':')[0]}"
        return ""

    return one(find)


def views_agree(study: TrialSet) -> bool:
    """Whether the four ways to call one layer of one set of weights show the same numbers."""
    sequences, state = {"return_sequences": True}, {"return_state": True}
    views = [returned(*CASES, **flags) for flags in ({}, state, sequences, sequences | state)]
    (last,), (_, h, _), (every,), (_, h2, _) = views
    return all(np.array_equal(last, other) for other in (h, every[:, :, -1], h2))


def mean_of_means(study: TrialSet) -> float:
    """Ten rows of which none is wrong and one that is: the mean, were each batch to weigh alike
    one half."""
    batches = Average(jnp.array([0.0, 1.0]), jnp.array([10.0, 1.0]))
    return compute_means({"loss": batches})["loss"]


def splits_of(spec: Spec, *metrics: str) -> Measure:
    """The splits for which a trial has all these metrics."""

    def find(study: TrialSet) -> tuple[str, ...]:
        [result, *_] = study.trials(spec).results
        parts = {name: part for name, part in result.items() if isinstance(part, dict)}
        return tuple(name for name, part in parts.items() if {*metrics} <= {*part})

    return one(find)


def ratio(spec: Spec, numerator: str, denominator: str) -> Measure:
    """Of two figures of each result."""

    def measure(study: TrialSet) -> list[float]:
        pairs = zip(final(spec, numerator)(study), final(spec, denominator)(study), strict=True)
        return [a / b for a, b in pairs]

    return measure


def _fresh(study: TrialSet, spec: Spec) -> tuple[TextToText, Any, np.ndarray, np.ndarray]:
    """The model with random weights, and its ids of sources and targets."""
    pairs = study.pairs(spec)
    train = pairs.splits["train"]
    ids = pairs.text.encode_sources(train.sources), pairs.text.encode_targets(train.targets)
    return pairs.text, jax.jit(pairs.text.init)(jax.random.key(0)), *ids
