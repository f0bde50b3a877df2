"""Replies to single texts, with how sure they are: what chat, page and reports share.

Every function is compiled once a run: texts are padded to the longest training text.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data.parallel_text import Split
from seqjax.decoding.beam_search import beam_search
from seqjax.decoding.sampling import advance, begin, sample
from seqjax.errors import UserError
from seqjax.inference.calibration import Abstention, calibrate, noise_questions
from seqjax.inference.retrieval import nearest_text
from seqjax.inference.text_metrics import Answers, right_replies
from seqjax.models.text_to_text import Replies, TextToText
from seqjax.nn.dropout import row_keys
from seqjax.typing import Params


class Answer(NamedTuple):
    """A reply, and what is known about it."""

    text: str
    score: float  # nats: the model's own log-probability of the reply
    confidence: float  # calibrated probability that it is right, in [0, 1]
    abstains: bool  # whether the confidence is below the run's threshold
    finished: bool  # False: cut off at the bound
    nearest: str  # the training question that the text resembles most
    similarity: float  # to it, in [0, 1]


class AttentionMap(NamedTuple):
    """Weights `[T, S]` of a source's tokens for each token of a reply, and what the tokens are."""

    weights: np.ndarray
    source: list[str]
    target: list[str]


class Responder:
    """A trained text model that answers, and what it was trained on.

    `answers` holds the right replies by intent, for splits with labels. Without an `abstention` it
    never abstains, and its confidence is the reply's probability.
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
                "this run's model has no start and end symbols: it was taught, as in the tutorial, "
                "but cannot begin an answer; train the default variant"
            )
        self.text, self.train, self.answers = text, train, answers
        self.params, self.abstention = params, abstention
        self._nearest = nearest_text(tuple(train.sources))
        self._run = _Compiled(text)

    def answer(self, question: str) -> Answer:
        """The reply of the config's decoder."""
        found = self._run.reply(self.params, self._encode([question]))
        return self._answer(question, found.tokens[0], found.scores[0], found.finished[0])

    def greedy(self, question: str) -> Answer:
        """The greedy reply, whatever the config's decoder is: at temperature 0 a draw is greedy."""
        return self.sample(question, 0.0, 0)

    def beam(self, question: str, beam_size: int, n_best: int) -> list[Answer]:
        """The best replies of a beam, the best first; fewer if there are not so many."""
        found = self._run.beam(self.params, self._encode([question]), beam_size, n_best)
        rows = zip(found.tokens[0], found.scores[0], found.finished[0], strict=True)
        return [self._answer(question, *row) for row in rows if np.isfinite(row[1])]

    def sample(self, question: str, temperature: float, seed: int) -> Answer:
        """A reply drawn at random."""
        keys = row_keys(jax.random.key(seed), 1)
        found = self._run.sample(
            self.params, self._encode([question]), keys, jnp.float32(temperature)
        )
        return self._answer(question, found.tokens[0], found.scores[0], found.finished[0])

    def stream(self, question: str) -> Iterator[str]:
        """The greedy reply as it grows: its text after each token."""
        text = self.text
        now = self._run.begin(self.params, self._encode([question]))
        for step in range(text.options.max_length):
            now = self._run.advance(self.params, now)
            yield text.target.decode(now.tokens[0, : step + 1])
            if now.finished[0]:
                break

    def explain(self, question: str) -> AttentionMap | None:
        """Where the reply's tokens looked, or None for a model without attention."""
        text = self.text
        source = self._encode([question])
        tokens = self._run.reply(self.params, source).tokens
        weights = self._run.attention(self.params, source, tokens)
        if weights is None:
            return None
        real, said = source[0] != text.source.pad_id, np.array(tokens[0]) != text.target.pad_id
        return AttentionMap(
            np.array(weights[0])[said][:, real],
            text.source.tokens(source[0][real]),
            text.target.tokens(np.array(tokens[0])[said]),
        )

    def calibrate(self, part: Split, replies: Replies) -> Abstention:
        """Weighs confidence on the replies to the part's sources and to as many of noise.

        A reply to noise is wrong. Without labels nobody can tell which replies are right, so all
        to real sources count as right: then it tells texts like those from others.
        """
        noise = noise_questions(self.train.sources, len(part.sources))
        noisy = self._run.reply(self.params, self._encode(noise))
        said = [self.text.target.decode(row) for row in replies.tokens]
        right = np.ones(len(said), bool)
        if part.labels:
            right = right_replies(said, part, self.answers)
        similar = [self._nearest(source).similarity for source in (*part.sources, *noise)]
        self.abstention = calibrate(
            np.concatenate([replies.scores, noisy.scores]),
            np.array(similar),
            np.concatenate([right, np.zeros(len(noise), bool)]),
        )
        return self.abstention

    def _encode(self, questions: Sequence[str]) -> np.ndarray:
        return self.text.encode_sources(questions)

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
    """The model's ways to reply, compiled on first use; parameters are arguments."""

    def __init__(self, text: TextToText):
        def start(params, source):
            return text.decode_step(params), text.encode(text.bind(params), source)

        def beam(params, source, beam_size, n_best):
            sizes = {"beam_size": beam_size, "n_best": n_best}
            return beam_search(*start(params, source), text.options, **sizes)

        def draw(params, source, keys, temperature):
            return sample(*start(params, source), text.options, keys, temperature=temperature)

        self.reply = jax.jit(lambda params, source: text.replies(params, {"source": source}))
        self.beam = jax.jit(beam, static_argnums=(2, 3))
        self.sample = jax.jit(draw)
        self.begin = jax.jit(lambda params, source: begin(start(params, source)[1], text.options))
        self.advance = jax.jit(
            lambda params, now: advance(text.decode_step(params), text.options, now)
        )
        self.attention = jax.jit(text.attention)
