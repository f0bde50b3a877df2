"""The loss as a sum and a weight, which positions without weight do not change."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import assert_same, random_like, relative_error

from seqjax.losses import cross_entropy

B, T, C = 4, 3, 5
LOGITS = random_like(np.empty((B, T, C)), 0, scale=2.0)
LABELS = np.random.default_rng(1).integers(C, size=(B, T), dtype=np.int32)

loss = jax.jit(cross_entropy)
gradient = jax.jit(
    jax.grad(lambda logits, labels, weight: cross_entropy(logits, labels, weight)[0])
)

weights = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=B * T, max_size=B * T).map(
    lambda numbers: np.float32(numbers).reshape(B, T)
)


def by_hand(logits, labels, weight):
    """The loss as (sum, weight) and its gradient by the logits, in float64."""
    shares, weight = np.exp(np.float64(logits)), np.float64(weight)
    shares /= shares.sum(-1, keepdims=True)
    of_label = np.take_along_axis(shares, labels[..., None], -1)[..., 0]
    slopes = (shares - np.eye(C)[labels]) * weight[..., None]
    return np.sum(-np.log(of_label) * weight), np.sum(weight), slopes


@given(weight=weights)
def test_it_is_the_weighed_sum_of_nats(weight):
    total, total_weight = loss(LOGITS, LABELS, weight)
    expected, expected_weight, slopes = by_hand(LOGITS, LABELS, weight)
    assert total == pytest.approx(expected, rel=1e-6) and total_weight == expected_weight  # float32
    np.testing.assert_allclose(gradient(LOGITS, LABELS, weight), slopes, atol=1e-6)


@given(weight=weights)
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_what_weighs_nothing_does_not_get_through(junk, weight):
    real = weight[..., None] > 0
    spoilt = np.where(real, LOGITS, np.float32(junk))
    labels = np.where(weight > 0, LABELS, np.int32(-100))  # not a class
    assert_same(loss(spoilt, labels, weight), loss(LOGITS, LABELS, weight))
    slopes = gradient(spoilt, labels, weight)
    assert_same(slopes, gradient(LOGITS, LABELS, weight))
    assert not np.any(np.where(real, 0, slopes))


smoothings = st.sampled_from([0.0, 0.1, 0.5, 0.9])
smoothed = jax.jit(cross_entropy, static_argnums=3)
smoothed_gradient = jax.jit(jax.grad(lambda *args: cross_entropy(*args)[0]), static_argnums=3)


@given(weight=weights, smoothing=smoothings)
def test_a_smoothed_label_is_shared_out_over_all_classes_alike(weight, smoothing):
    shares = np.exp(np.float64(LOGITS))
    shares /= shares.sum(-1, keepdims=True)
    labels = (1 - smoothing) * np.eye(C)[LABELS] + smoothing / C
    expected = np.sum(-np.sum(labels * np.log(shares), -1) * weight)
    total, total_weight = smoothed(LOGITS, LABELS, weight, smoothing)
    assert total == pytest.approx(expected, rel=1e-6) and total_weight == np.sum(weight)  # float32
    slopes = smoothed_gradient(LOGITS, LABELS, weight, smoothing)
    np.testing.assert_allclose(slopes, (shares - labels) * weight[..., None], atol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_smoothing_lets_nothing_through_either(junk):
    weight = np.float32(np.arange(B * T).reshape(B, T) % 2)
    spoilt = np.where(weight[..., None] > 0, LOGITS, np.float32(junk))
    assert_same(smoothed(spoilt, LABELS, weight, 0.1), smoothed(LOGITS, LABELS, weight, 0.1))
    slopes = smoothed_gradient(spoilt, LABELS, weight, 0.1)
    assert_same(slopes, smoothed_gradient(LOGITS, LABELS, weight, 0.1))
    assert not np.any(slopes[weight == 0])


def test_without_smoothing_the_loss_is_the_plain_one():
    weight = np.ones((B, T), np.float32)
    assert_same(smoothed(LOGITS, LABELS, weight, 0.0), loss(LOGITS, LABELS, weight))


def test_what_weighs_something_does():
    spoilt = LOGITS.copy()
    spoilt[0, 0, 0] = np.nan
    assert np.isnan(loss(spoilt, LABELS, np.ones((B, T))).total)


@given(weight=weights)
def test_parts_add_up_to_the_whole(weight):
    parts = [loss(LOGITS[rows], LABELS[rows], weight[rows]) for rows in (np.s_[:2], np.s_[2:])]
    total = jax.tree.map(lambda *xs: sum(map(np.float64, xs)), *parts)
    expected = loss(LOGITS, LABELS, weight)
    assert total.weight == expected.weight
    assert total.total == pytest.approx(float(expected.total), rel=1e-6)  # float32


def test_no_weight_at_all_is_a_sum_of_zero():
    assert loss(LOGITS, LABELS, np.zeros((B, T))) == (0, 0)


def test_even_logits_cost_the_log_of_the_number_of_classes():
    total, weight = loss(np.zeros((2, 26)), np.array([0, 25]), np.ones(2))
    assert total / weight == pytest.approx(np.log(26), rel=1e-6)


def test_it_works_on_rows_and_on_steps():
    steps = loss(LOGITS, LABELS, np.ones((B, T)))
    rows = loss(LOGITS.reshape(-1, C), LABELS.reshape(-1), np.ones(B * T))
    assert relative_error(rows, steps) < 1e-6
