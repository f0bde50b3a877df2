"""Ours of a figure: from configs, models, results, records and replies.

Each function gives a `Measure`: what finds our values in a study.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reproduce.figure import Explanation, Measure
from experiments.reproduce.trials import Spec, TrialSet
from seqjax.metrics import argmax
from seqjax.nn.dropout import row_keys
from seqjax.parameters import count_parameters, layer_sizes, parameter_shapes
from seqjax.training.logger import Record

TESTS = Path(__file__).parents[2] / "tests"  # of the checkout, where there is one


def one(find: Callable[[TrialSet], Any]) -> Measure:
    """A value that depends on no seed."""
    return lambda study: [find(study)]


def settings(spec: Spec, *fields: str) -> Measure:
    """The config's values of the fields, as in "train.batch_size"."""

    def find(study: TrialSet) -> Any:
        values = tuple(_field(study.config(spec), field) for field in fields)
        return values if len(values) > 1 else values[0]

    return one(find)


def sizes(spec: Spec) -> Measure:
    """The parameters of each layer and of all, of the model as it is built."""

    def find(study: TrialSet) -> Any:
        shapes = parameter_shapes(study.task(spec).init)
        counts = [layer.count for layer in layer_sizes(shapes)]
        return (*sorted(counts, reverse=True), count_parameters(shapes))

    return one(find)


def final(spec: Spec, field: str) -> Measure:
    """A figure of each trial's result.json, as in "test.accuracy"."""
    return lambda study: [_field(result, field) for result in study.trials(spec).results]


def curve(spec: Spec, metric: str, epochs: Sequence[int]) -> Measure:
    """A metric of the training records at some epochs."""

    def at(records: Sequence[Record]) -> tuple[float, ...]:
        return tuple(records[epoch - 1]["train"][metric] for epoch in epochs)

    return lambda study: [at(records) for records in study.trials(spec).records]


def first_below(spec: Spec, metric: str, bound: float) -> Measure:
    """The first epoch at which a metric of the records is below the bound, or infinity."""

    def of(records: Sequence[Record]) -> float:
        below = (record["epoch"] for record in records if record["train"][metric] < bound)
        return float(next(below, "inf"))

    return lambda study: [of(records) for records in study.trials(spec).records]


def replies(spec: Spec, question: str) -> Measure:
    """What each trial's model says, by the config's decoder."""

    def measure(study: TrialSet) -> list[str]:
        trials = study.trials(spec)
        text = trials.pairs.text
        batch = {"source": text.encode_sources([question])}
        said = [jax.device_get(trials.reply(params, batch)) for params in trials.params]
        return [text.target.decode(own.tokens[0]) for own in said]

    return measure


def under_dropout(spec: Spec, question: str) -> Measure:
    """What each trial's model says with dropout alive, fed the start and then padding as long as
    the question: R3's `translate`."""

    def measure(study: TrialSet) -> list[str]:
        trials = study.trials(spec)
        text = trials.pairs.text
        target = np.full((1, len(question) + 2), text.target.pad_id)
        target[:, 0] = text.target.bos_id
        batch = {"source": text.encode_sources([question]), "target": target}
        batch = jax.tree.map(jnp.asarray, batch)

        keys = [row_keys(jax.random.key(config.seed), 1) for config in trials.configs]
        both = zip(trials.params, keys, strict=True)
        logits = [trials.logits(params, batch, key)[0] for params, key in both]
        return [text.target.decode(argmax(text.known(x)) + text.first_id) for x in logits]

    return measure


def chat_answers(spec: Spec, question: str) -> Measure:
    """Whether each trial's chat would give its reply, or rather says that it does not know; it is
    calibrated on the training texts, of models that have no others."""

    def measure(study: TrialSet) -> list[bool]:
        trials = study.trials(spec)
        pairs, found = trials.pairs, []
        train = pairs.splits["train"]
        source = pairs.text.encode_sources(train.sources)
        responder = pairs.responder(trials.params[0])
        for params in trials.params:
            responder.params = params
            responder.calibrate(train, jax.device_get(trials.reply(params, {"source": source})))
            found.append(not responder.answer(question).abstains)
        return found

    return measure


def arbitrary(ours: Measure) -> Callable[[TrialSet], Explanation]:
    """Why a text is outside: whether none is that of half of the seeds."""

    def explain(study: TrialSet) -> Explanation:
        said = ours(study)
        most = max(map(said.count, said))
        told = f"{len(said)} seeds give {len(set(said))} different answers"
        return Explanation(f"{told}, the most frequent {most} times", 2 * most < len(said))

    return explain


def proved(file: str, test: str) -> Measure:
    """The test that proves it, by its name; nothing where a checkout has no such test."""

    def find(study: TrialSet) -> str:
        path = TESTS / f"{file}.py"
        there = path.exists() and re.search(
            rf"^def test_{test}\(", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        return f"tests/{file}.py: {test.replace('_', ' ')}" if there else ""

    return one(find)


def lints(rule: str) -> Measure:
    """Whether the project's linter refuses what that rule of its is about."""

    def find(study: TrialSet) -> bool:
        path = TESTS.parent / "pyproject.toml"
        settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return bool(settings) and rule in settings["tool"]["ruff"]["lint"]["select"]

    return one(find)


def compared(
    spec: Spec, first: str, second: str, is_right: Callable[[float, float], bool]
) -> Measure:
    """The medians of two figures of the results, if they compare as they should."""

    def find(study: TrialSet) -> str:
        a, b = (float(np.median(final(spec, name)(study))) for name in (first, second))
        return f"{first} {a:.3g}, {second} {b:.3g}" if is_right(a, b) else ""

    return one(find)


def _field(values: Any, field: str) -> Any:
    """`values[a][b]` for "a.b"."""
    for name in field.split("."):
        values = values[name]
    return values
