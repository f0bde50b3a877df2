"""When not to answer: how sure a reply is, calibrated on held-out questions.

Two things speak for a reply: that the model finds it probable, and that the question resembles one
it was trained on. A logistic regression weighs them; a network alone is sure of nonsense too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax.errors import UserError
from seqjax.files import read_json, write_json

RIDGE = 1.0  # on the weights, in units of one example
FILE = "abstention.json"


class Abstention(NamedTuple):
    """A reply of lower confidence than `threshold` is better not given."""

    bias: float
    of_score: float
    of_similarity: float
    threshold: float

    def confidence(self, score: float, similarity: float) -> float:
        """How probably the reply is right, in [0, 1], from its log-probability in nats and the
        question's similarity to the nearest one trained on."""
        return float(_odds((self.bias, self.of_score, self.of_similarity), score, similarity))


def calibrate(scores: np.ndarray, similarities: np.ndarray, right: np.ndarray) -> Abstention:
    """The regression on examples `[N]` and the threshold that is best on them: with the most right
    replies given, less the wrong ones."""
    features = np.stack([np.ones(len(scores)), scores, similarities], axis=1).astype(np.float64)
    weights = np.zeros(3)
    penalty = np.diag([1e-6, RIDGE, RIDGE])
    for _ in range(50):  # Newton's steps
        odds = _sigmoid(features @ weights)
        gradient = features.T @ (odds - right) + penalty @ weights
        hessian = (features * (odds * (1 - odds))[:, None]).T @ features + penalty
        weights = weights - np.linalg.solve(hessian, gradient)
    odds = _odds(weights, *features.T[1:])
    order = np.argsort(-odds, kind="stable")
    gain = np.concatenate([[0], np.cumsum(np.where(right[order], 1, -1))])
    bounds = np.concatenate([[1.0], odds[order], [0.0]])
    gain[bounds[:-1] == bounds[1:]] = -len(odds) - 1  # no threshold comes between equals
    best = int(np.argmax(gain))  # so many of the surest are given
    return Abstention(*map(float, weights), threshold=float((bounds[best] + bounds[best + 1]) / 2))


def noise_questions(texts: Sequence[str], count: int) -> list[str]:
    """Questions that nothing answers: as long as real ones, of the same characters at random."""
    rng = np.random.default_rng(0)
    characters = sorted(set("".join(texts)))
    lengths = rng.choice([len(text) for text in texts], size=count)
    return ["".join(rng.choice(characters, size=length)) for length in lengths]


def save_abstention(abstention: Abstention, directory: Path) -> None:
    """Writes it into the run's directory."""
    write_json(directory / FILE, abstention._asdict())


def load_abstention(directory: Path) -> Abstention:
    """What the run in the directory was calibrated to; raises UserError if there is none."""
    remedy = "run experiments.evaluate on it, or answer always with --abstain=off"
    try:
        fields = read_json(directory / FILE)
        return Abstention(**{name: float(value) for name, value in fields.items()})
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{directory / FILE} is damaged ({error}); {remedy}") from None


def _odds(weights: Any, score: Any, similarity: Any) -> Any:
    """The same to the last bit for one reply and for many: equal replies get equal odds."""
    return _sigmoid(weights[0] + weights[1] * score + weights[2] * similarity)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
