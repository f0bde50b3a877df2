"""Replies to single texts, each with a confidence, for the chat, the page and the reports.

Texts are padded to the length of the longest training text, so each function is compiled once.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.data.parallel_text import Split
from seqjax.decoding.beam_search import beam_search
from seqjax.decoding.sampling import check_sampling, decode_token, sample, start_decoding
from seqjax.errors import UserError
from seqjax.inference.calibration import Abstention, calibrate, noise_questions
from seqjax.inference.retrieval import retrieval_baseline
from seqjax.inference.text_metrics import Answers, right_replies
from seqjax.models.text_to_text import Replies, TextToText
from seqjax.nn.dropout import row_keys
from seqjax.typing import Params


class Answer(NamedTuple):
    """A reply, its confidence, and the training question nearest to the question."""

    text: str
    score: float  # nats: the model's own log-probability of the reply
    confidence: float  # calibrated probability that the reply is right, in [0, 1]
    abstains: bool  # True if the confidence is below the run's threshold
    finished: bool  # False if the reply was cut off at the length bound
    nearest: str  # the training question most similar to the question
    similarity: float  # of the question to `nearest`, in [0, 1]


class AttentionMap(NamedTuple):
    """Attention weights `[T, S]` of each reply token on the source's tokens, and both as texts."""

    weights: np.ndarray
    source: list[str]
    target: list[str]


class Responder:
    """A trained text model that answers questions, and the data it was trained on.

    `answers` holds the right replies by intent, for splits with labels. Without an `abstention` the
    responder never abstains, and the confidence is the reply's probability. Raises UserError for a
    model without start and end tokens.
    """

    def __init__(
        self,
        text: TextToText,
        train: Split,
        answers: Answers,
        params: Params,
        abstention: Abstention | None = None,
    ):
        if not text.boundaries:
            raise UserError(
                "this run's model has no start and end tokens, as in the tutorial, so it cannot "
                "begin an answer; train the default variant"
            )
        self.text, self.train, self.answers = text, train, answers
        self.params, self.abstention = params, abstention
        self._nearest = retrieval_baseline(tuple(train.sources))
        self._run = _Compiled(text)

    def answer(self, question: str) -> Answer:
        """Returns the reply of the config's decoder."""
        return self._first(question, self._run.reply(self.params, self._encode([question])))

    def greedy(self, question: str) -> Answer:
        """Returns the greedy reply, whatever the config's decoder is: sampling at temperature 0."""
        return self.sample(question, 0.0, 0)

    def beam(self, question: str, beam_size: int, n_best: int) -> list[Answer]:
        """Returns the best replies of a beam in descending order, at most `n_best`."""
        best = self._run.beam(self.params, self._encode([question]), beam_size, n_best)
        rows = zip(best.tokens[0], best.scores[0], best.finished[0], strict=True)
        return [self._answer(question, *row) for row in rows if np.isfinite(row[1])]

    def sample(
        self,
        question: str,
        temperature: float,
        seed: int,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Answer:
        """Returns a reply drawn at random; the same arguments give the same reply.

        Raises UserError for a number out of its range.
        """
        check_sampling(temperature, top_k, top_p)
        keys, source = row_keys(jax.random.key(seed), 1), self._encode([question])
        drawn = self._run.sample(self.params, source, keys, top_k, temperature, top_p)
        return self._first(question, drawn)

    def stream(self, question: str) -> Iterator[str]:
        """Yields the greedy reply as it grows: its text after each token."""
        text = self.text
        now = self._run.start(self.params, self._encode([question]))
        for step in range(text.options.max_length):
            now = self._run.next(self.params, now)
            yield text.target.decode(now.tokens[0, : step + 1])
            if now.finished[0]:
                break

    def explain(self, question: str) -> AttentionMap | None:
        """Returns the attention map of `answer`'s reply, or None for a model without attention."""
        text = self.text
        source = self._encode([question])
        tokens = self._run.reply(self.params, source).tokens
        weights = self._run.attention(self.params, source, tokens)
        if weights is None:
            return None
        is_source = source[0] != text.source.pad_id
        is_target = np.array(tokens[0]) != text.target.pad_id
        return AttentionMap(
            np.array(weights[0])[is_target][:, is_source],
            text.source.tokens(source[0][is_source]),
            text.target.tokens(np.array(tokens[0])[is_target]),
        )

    def calibrate(self, part: Split, replies: Replies) -> Abstention:
        """Returns the abstention fitted to replies to a split's sources and to as many of noise.

        The responder uses it from now on. A reply to noise counts as wrong. Without labels the
        right replies are unknown, so all replies to real sources count as right: confidence then
        tells texts like the training texts from noise.
        """
        noise = noise_questions(self.train.sources, len(part.sources))
        to_noise = self._run.reply(self.params, self._encode(noise))
        texts = [self.text.target.decode(row) for row in replies.tokens]
        right = np.ones(len(texts), bool)
        if part.labels:
            right = right_replies(texts, part, self.answers)
        similar = [self._nearest(source).similarity for source in (*part.sources, *noise)]
        self.abstention = calibrate(
            np.concatenate([replies.scores, to_noise.scores]),
            np.array(similar),
            np.concatenate([right, np.zeros(len(noise), bool)]),
        )
        return self.abstention

    def _encode(self, questions: Sequence[str]) -> np.ndarray:
        return self.text.encode_sources(questions)

    def _first(self, question: str, rows: Any) -> Answer:
        """Returns the first of the decoded replies as an Answer."""
        return self._answer(question, rows.tokens[0], rows.scores[0], rows.finished[0])

    def _answer(self, question: str, tokens: Any, score: Any, finished: Any) -> Answer:
        match = self._nearest(question)
        score, confidence, abstains = float(score), float(np.exp(score)), False
        if self.abstention:
            confidence = self.abstention.confidence(score, match.similarity)
            abstains = confidence < self.abstention.threshold
        nearest = self.train.sources[match.index]
        text = self.text.target.decode(np.array(tokens))
        return Answer(text, score, confidence, abstains, bool(finished), nearest, match.similarity)


class _Compiled:
    """The model's decoders, compiled on first use; parameters are arguments."""

    def __init__(self, text: TextToText):
        def prepare(params, source):
            return text.decode_step(params), text.encode(text.bind(params), source)

        def beam(params, source, beam_size, n_best):
            sizes = {"beam_size": beam_size, "n_best": n_best}
            return beam_search(*prepare(params, source), text.options, **sizes)

        def draw(params, source, keys, top_k, temperature, top_p):
            choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            return sample(*prepare(params, source), text.options, keys, **choice)

        def start(params, source):
            return start_decoding(prepare(params, source)[1], text.options)

        def next_token(params, now):
            return decode_token(text.decode_step(params), text.options, now)

        self.reply = jax.jit(lambda params, source: text.replies(params, {"source": source}))
        self.beam = jax.jit(beam, static_argnums=(2, 3))
        self.sample = jax.jit(draw, static_argnums=3)
        self.start, self.next = jax.jit(start), jax.jit(next_token)
        self.attention = jax.jit(text.attention)
