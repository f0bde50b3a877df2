"""Sweeps as lists of changes: every combination once, only what the config takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import get_config, linear_config

from seqjax.config import change_fields
from seqjax.errors import UserError
from seqjax.sweeps.space import (
    MAX_TRIALS,
    choice,
    integer,
    log_uniform,
    product,
    random,
    seeds,
    uniform,
    zipped,
)

LISTS = st.lists(st.integers(), min_size=1, max_size=4, unique=True)


@given(LISTS, LISTS, LISTS)
def test_a_product_has_every_combination_once(a, b, c):
    trials = product({"a": a}, zipped({"b": b, "c": [-x for x in b]}), {"d": c})
    got = [tuple(trial.values()) for trial in trials]
    assert len(set(got)) == len(got) == len(a) * len(b) * len(c)
    assert all(
        list(trial) == ["a", "b", "c", "d"] and trial["c"] == -trial["b"] for trial in trials
    )


def test_seeds_are_counted_from_0():
    assert product(seeds(2), {"a": ["x"]}) == [{"seed": 0, "a": "x"}, {"seed": 1, "a": "x"}]


def test_values_are_plain_and_tuples_survive():
    trials = product({"a": np.linspace(0, 1, 3), "b": [(0.5,), (0.5, 0.0)]})
    assert {type(trial["a"]) for trial in trials} == {float}
    assert {trial["b"] for trial in trials} == {(0.5,), (0.5, 0.0)}


def test_draws_follow_the_seed_and_the_distributions():
    space = {
        "a": log_uniform(1e-4, 1.0),
        "b": integer(1, 3),
        "c": choice((0.1,), "x"),
        "d": uniform(-1, 1),
    }
    trials = random(2000, space, seed=3)
    assert trials == random(2000, space, seed=3) != random(2000, space, seed=4)
    a, b, c, d = zip(*(trial.values() for trial in trials), strict=True)
    assert min(a) >= 1e-4 and max(a) <= 1
    assert 0.45 < np.mean(np.array(a) < 1e-2) < 0.55  # half lie below the geometric mean
    assert set(b) == {1, 2, 3} and set(c) == {(0.1,), "x"} and abs(np.mean(d)) < 0.1
    assert {type(x) for x in (*a, *d)} == {float} and {type(x) for x in b} == {int}


def test_changes_are_applied_to_a_copy():
    config = linear_config()
    changed = change_fields(
        config, {"seed": 3, "optim.learning_rate": 1, "model.input_dropout": (0.1, 0.2)}
    )
    assert (changed.seed, changed.optim.learning_rate) == (3, 1.0)
    assert type(changed.optim.learning_rate) is float and changed.is_locked
    assert changed.model.input_dropout == (0.1, 0.2) and config.model.input_dropout == (0.0,)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optim.lr": 0.1}, "unknown config field 'optim.lr': did you mean"),
        ({"optim": 0.1}, "config field optim is a section"),
        ({"model.hidden_size": 3.5}, "model.hidden_size=3.5, but model.hidden_size is of type int"),
        ({"model.bidirectional": 1}, "of type bool"),
        ({"train.num_epochs": True}, "of type int"),
        ({"model.input_dropout": [0.5]}, "of type tuple"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate=nan must be"),
        ({"seed": 2**32}, "seed=4294967296 must be at most"),
    ],
)
def test_what_the_config_does_not_take_is_refused(changes, told):
    with pytest.raises(UserError) as error:
        change_fields(get_config("mnist_rows").lock(), changes)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: product({"a": []}), "a sweep of 0 trials"),
        (lambda: product(*({str(i): range(10)} for i in range(7))), "a sweep of 10,000,000 trials"),
        (lambda: seeds(0), "a sweep of 0 trials"),
        (lambda: seeds(MAX_TRIALS + 1), "it needs between 1 and 10,000"),
        (lambda: random(0, {}), "a sweep of 0 trials"),
        (lambda: product({"a": [1]}, {"a": [2]}), "sets a twice"),
        (lambda: zipped({"a": [1, 2], "b": [1]}), "a has 2, b has 1"),
        (lambda: product({"model.cell": "lstm"}), "give a list of values"),
        (lambda: product({"a": 3}), "give a list of values"),
        (lambda: random(1, {"a": 0.5}), "draws a from 0.5"),
        (lambda: log_uniform(0, 1), "above 0"),
        (lambda: uniform(2, 1), "the first bound must be below"),
        (choice, "at least one value"),
    ],
)
def test_what_is_no_sweep_is_refused(make, told):
    with pytest.raises(UserError) as error:
        make()
    assert told in str(error.value) and "\n" not in str(error.value)
