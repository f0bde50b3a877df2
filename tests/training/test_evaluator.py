"""Evaluation: means over all rows, for any batch size and number of devices; dropout is off."""

from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toys import linear_task

from seqjax.distributed.mesh import make_mesh
from seqjax.training.setup import Evaluator

TASK = linear_task({"train": 23})
ROWS = TASK.splits["train"]


@cache
def params():
    return jax.device_get(TASK.init(jax.random.key(1)))


@cache
def make_evaluator(batch_size: int, num_devices: int) -> Evaluator:
    return Evaluator(TASK.loss_and_metrics, TASK.predict, batch_size, make_mesh(num_devices))


def by_hand(num_rows: int) -> tuple[dict[str, float], np.ndarray]:
    """Returns metrics and logits computed in float64 by NumPy."""
    output = params()["output"]
    logits = ROWS["x"][:num_rows].astype(np.float64) @ output["kernel"] + output["bias"]
    label = ROWS["label"][:num_rows]
    label_logits = logits[np.arange(num_rows), label]
    loss = np.mean(np.log(np.exp(logits).sum(axis=-1)) - label_logits)
    return {"loss": loss, "accuracy": np.mean(logits.argmax(-1) == label)}, logits


@settings(max_examples=12)
@given(
    num_rows=st.sampled_from([1, 5, 22, 23]),
    batch_size=st.sampled_from([1, 5, 30]),
    num_devices=st.sampled_from([1, 2, 8]),
)
def test_metrics_and_predictions_are_those_by_hand(num_rows, batch_size, num_devices):
    evaluator = make_evaluator(batch_size, num_devices)
    rows = {name: value[:num_rows] for name, value in ROWS.items()}
    expected, logits = by_hand(num_rows)
    metrics = evaluator.metrics(params(), rows)
    assert set(metrics) == set(expected)
    assert all(type(value) is float for value in metrics.values())
    for name, value in metrics.items():
        # The logits and the sums of at most 30 of them are float32, the expected values float64.
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    predicted = evaluator.predict(params(), rows)
    assert predicted.shape == logits.shape
    np.testing.assert_allclose(predicted, logits, rtol=1e-5, atol=1e-6)


def test_evaluations_are_bit_identical_and_keys_add_dropout():
    evaluator = make_evaluator(5, 2)
    first, again = (evaluator.metrics(params(), ROWS) for _ in range(2))
    assert first == again
    alive = [evaluator.metrics(params(), ROWS, jax.random.key(seed)) for seed in (0, 0, 1)]
    assert alive[0] == alive[1]
    assert len({first["loss"], alive[0]["loss"], alive[2]["loss"]}) == 3


@pytest.mark.parametrize("num_devices", [2, 8])
def test_live_dropout_is_the_same_on_any_number_of_devices(num_devices):
    key = jax.random.key(0)
    expected = make_evaluator(8, 1).metrics(params(), ROWS, key)
    metrics = make_evaluator(8, num_devices).metrics(params(), ROWS, key)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)  # sums in another order


def test_every_batch_draws_other_masks():
    """All rows of the split are equal, but active dropout must treat each of them differently."""
    rows = {name: np.repeat(value[:1], 6, axis=0) for name, value in ROWS.items()}
    evaluator = make_evaluator(1, 1)
    one = {name: value[:1] for name, value in rows.items()}
    key = jax.random.key(0)
    assert evaluator.metrics(params(), rows, key) != evaluator.metrics(params(), one, key)


def test_predictions_may_be_nests_of_arrays():
    def predict(params, batch):
        return {"twice": 2 * batch["x"], "pair": (batch["label"], batch["x"][:, 0])}

    evaluator = Evaluator(TASK.loss_and_metrics, predict, 5, make_mesh(2))
    outputs = evaluator.predict(params(), ROWS)
    np.testing.assert_array_equal(outputs["twice"], 2 * ROWS["x"])
    np.testing.assert_array_equal(outputs["pair"][0], ROWS["label"])
    np.testing.assert_array_equal(outputs["pair"][1], ROWS["x"][:, 0])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_one_shape_a_split_is_one_compilation(num_devices):
    traces = []

    def measure(params, batch, keys=None, **_):
        traces.append(batch["x"].shape)
        return TASK.loss_and_metrics(params, batch, keys)

    evaluator = Evaluator(measure, TASK.predict, 5, make_mesh(num_devices))
    for _ in range(2):
        evaluator.metrics(params(), ROWS)
    assert len(traces) == 1


@pytest.mark.parametrize(("batch_size", "num_devices"), [(5, 2), (5, 8), (23, 1), (1, 1)])
def test_live_dropout_is_the_same_in_any_batches(batch_size, num_devices):
    key = jax.random.key(0)
    expected = make_evaluator(8, 1).metrics(params(), ROWS, key)
    metrics = make_evaluator(batch_size, num_devices).metrics(params(), ROWS, key)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)  # sums in another order
