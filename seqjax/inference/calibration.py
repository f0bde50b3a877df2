"""When not to answer: the confidence in a reply, calibrated on held-out questions.

A reply is more likely to be right if the model finds it probable and if the question resembles one
that the model was trained on. A logistic regression weighs the two; the model's probability alone
is high for nonsense too.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax.errors import UserError
from seqjax.files import read_json, write_json

RIDGE = 1.0  # the penalty on the weights; 1 counts as much as one example
ABSTENTION_FILE = "abstention.json"


class Abstention(NamedTuple):
    """A logistic regression, and the confidence below which a reply is withheld."""

    bias: float
    of_score: float  # the weight of the reply's log-probability
    of_similarity: float  # the weight of the question's similarity
    threshold: float

    def confidence(self, score: float, similarity: float) -> float:
        """Returns the probability that a reply is right, in [0, 1].

        `score` is the log-probability of the reply in nats, `similarity` that of the question to
        the most similar training question, in [0, 1].
        """
        weights = (self.bias, self.of_score, self.of_similarity)
        return float(_probability(weights, score, similarity))


def calibrate(scores: np.ndarray, similarities: np.ndarray, right: np.ndarray) -> Abstention:
    """Returns the regression that is fitted to examples `[N]`, and the best threshold on them.

    The best threshold maximises the number of right replies given minus that of wrong ones.
    """
    features = np.stack([np.ones(len(scores)), scores, similarities], axis=1).astype(np.float64)
    weights = np.zeros(3)
    penalty = np.diag([1e-6, RIDGE, RIDGE])
    for _ in range(50):  # Newton's method
        probs = _sigmoid(features @ weights)
        gradient = features.T @ (probs - right) + penalty @ weights
        hessian = (features * (probs * (1 - probs))[:, None]).T @ features + penalty
        weights = weights - np.linalg.solve(hessian, gradient)
    probs = _probability(weights, *features.T[1:])
    order = np.argsort(-probs, kind="stable")
    gain = np.concatenate([[0], np.cumsum(np.where(right[order], 1, -1))])
    bounds = np.concatenate([[1.0], probs[order], [0.0]])
    gain[bounds[:-1] == bounds[1:]] = -len(probs) - 1  # no threshold separates equal probabilities
    num_given = int(np.argmax(gain))
    threshold = float((bounds[num_given] + bounds[num_given + 1]) / 2)
    return Abstention(*map(float, weights), threshold=threshold)


def noise_questions(texts: Sequence[str], count: int) -> list[str]:
    """Returns questions that have no answer: strings of random characters from the texts.

    Their lengths are drawn from the lengths of the texts.
    """
    rng = np.random.default_rng(0)
    characters = sorted(set("".join(texts)))
    lengths = rng.choice([len(text) for text in texts], size=count)
    return ["".join(rng.choice(characters, size=length)) for length in lengths]


def save_abstention(abstention: Abstention, directory: Path) -> None:
    """Writes the calibration into the directory of its run."""
    write_json(directory / ABSTENTION_FILE, abstention._asdict())


def load_abstention(directory: Path) -> Abstention:
    """Returns the calibration of a run; raises UserError if it cannot be read."""
    remedy = "run experiments.evaluate on it, or answer always with --abstain=off"
    path = directory / ABSTENTION_FILE
    try:
        fields = {name: float(value) for name, value in read_json(path).items()}
        if not all(map(math.isfinite, fields.values())):
            raise ValueError("its numbers must be finite")
        return Abstention(**fields)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def _probability(weights: Any, score: Any, similarity: Any) -> Any:
    """Returns the regression's probability, bit-identical for one reply and for many.

    So that equal replies get equal probabilities, it does not use a matrix product.
    """
    return _sigmoid(weights[0] + weights[1] * score + weights[2] * similarity)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
