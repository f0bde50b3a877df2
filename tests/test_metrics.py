"""Metrics as sums and weights: counted by hand, added up in parts, divided once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import random_like

from seqjax.metrics import (
    Average,
    accuracy,
    compute_means,
    confusion_matrix,
    sequence_accuracy,
    top_k_accuracy,
)

B, T, C = 6, 3, 4
LOGITS = jnp.asarray(random_like(np.empty((B, T, C)), 0))
# Three rows are right at every step and three are wrong at some step.
LABELS = jnp.argmax(LOGITS, -1) + jnp.array(
    [[0] * 3, [1, 0, 0], [0] * 3, [0, 1, 1], [0] * 3, [1] * 3]
)
LABELS = LABELS % C
WEIGHT = jnp.array(
    [[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0.5, 0], [0, 0, 0], [1, 1, 1]], jnp.float32
)


def test_accuracy_is_the_share_of_the_weight_that_is_right():
    assert accuracy(LOGITS, LABELS, WEIGHT) == (3 + 2 + 2 + 1, 11.5)
    assert accuracy(LOGITS, LABELS, jnp.ones((B, T))) == (9 + 2 + 1, 18)
    assert accuracy(LOGITS[:, 0], LABELS[:, 0], WEIGHT[:, 0]) == (3, 4)


def test_sequence_accuracy_asks_for_every_weighted_step():
    # Row 1 is wrong only where the weight is 0; row 4 has no weight and does not count.
    assert sequence_accuracy(LOGITS, LABELS, WEIGHT) == (3, 5)
    assert sequence_accuracy(LOGITS, LABELS, jnp.ones((B, T))) == (3, 6)
    assert sequence_accuracy(LOGITS, LABELS, jnp.zeros((B, T))) == (0, 0)


@pytest.mark.parametrize("k", range(1, C + 1))
def test_top_k_counts_labels_among_the_k_largest(k):
    order = np.argsort(-np.asarray(LOGITS), axis=-1)[..., :k]
    hits = np.any(order == np.asarray(LABELS)[..., None], axis=-1)
    average = top_k_accuracy(LOGITS, LABELS, WEIGHT, k)
    assert average == (np.sum(hits * np.asarray(WEIGHT)), 11.5)
    if k == 1:
        assert average == accuracy(LOGITS, LABELS, WEIGHT)
    if k == C:
        assert average.total == average.weight


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_of_tied_classes_the_first_are_in(k):
    rng = np.random.default_rng(k)
    logits = rng.integers(-1, 2, size=(500, 12)).astype(np.float32)  # each value four times a row
    labels = rng.integers(12, size=500)
    ranked = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(jax.lax.top_k(logits, k)[1], ranked)
    hits = np.any(ranked == labels[:, None], axis=-1)
    each = jax.vmap(lambda *row: top_k_accuracy(*row, k).total)
    np.testing.assert_array_equal(each(logits, labels, np.ones(500, np.float32)), hits)


def test_a_model_that_tells_no_classes_apart_is_right_k_times_in_all():
    average = top_k_accuracy(jnp.zeros((26, 26)), jnp.arange(26), jnp.ones(26), k=5)
    assert average == (5, 26)


def test_a_model_that_says_nan_is_never_right():
    nothing = jnp.full((2, C), jnp.nan)
    assert top_k_accuracy(nothing, jnp.array([1, 2]), jnp.ones(2), 2) == (0, 2)
    some = jnp.array([[1.0, jnp.nan, 0.0, 0.5]])  # one class may have a larger logit than the label
    hits = [top_k_accuracy(some, jnp.array([0]), jnp.ones(1), k).total for k in (1, 2)]
    assert hits == [0, 1]


@pytest.mark.parametrize(
    "metric", [accuracy, sequence_accuracy, lambda *args: top_k_accuracy(*args, k=2)]
)
def test_rows_without_weight_may_hold_anything(metric):
    real = WEIGHT > 0
    for junk in (jnp.nan, jnp.inf, 1e30):
        logits, labels = jnp.where(real[..., None], LOGITS, junk), jnp.where(real, LABELS, 0)
        assert metric(logits, labels, WEIGHT) == metric(LOGITS, LABELS, WEIGHT)


@pytest.mark.parametrize("metric", [accuracy, sequence_accuracy])
def test_parts_add_up_to_the_whole(metric):
    parts = [metric(LOGITS[rows], LABELS[rows], WEIGHT[rows]) for rows in (np.s_[:2], np.s_[2:])]
    assert tuple(map(sum, zip(*parts, strict=True))) == metric(LOGITS, LABELS, WEIGHT)


@given(
    pairs=st.lists(
        st.tuples(st.floats(-10, 10, width=32), st.sampled_from([0.0, 0.5, 1.0])), min_size=1
    )
)
def test_means_are_divided_once(pairs):
    totals, weights = np.array(pairs, np.float32).T
    weights = np.append(weights, np.float32(1))  # so that the weights do not sum to 0
    totals = np.append(totals, np.float32(0))
    split = {"whole": Average(totals, weights), "steps": Average(totals[None], weights[:, None])}
    mean = sum(map(float, totals)) / sum(map(float, weights))
    assert compute_means(split) == {name: pytest.approx(mean, rel=1e-9, abs=1e-9) for name in split}


def test_means_are_summed_in_float64():
    """In float32, ones added to 2^24 would be lost."""
    totals = np.append(np.float32(2**24), np.ones(10_000, np.float32))
    means = compute_means({"m": Average(jnp.asarray(totals), jnp.array(1.0))})
    assert means == {"m": 2**24 + 10_000}
    assert type(means["m"]) is float


def test_confusion_matrix_has_labels_in_rows():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2, 0]), np.array([0, 1, 1, 0, 0, 2, 1])
    counts = confusion_matrix(labels, predicted, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    assert counts.trace() == np.sum(labels == predicted) and counts.dtype == np.int64
