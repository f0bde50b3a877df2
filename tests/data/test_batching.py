"""Batches: every row comes once, padding rows have weight 0, and the key alone gives the order."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data.batching import (
    check_batch_size,
    count_rows,
    epoch_order,
    eval_batches,
    share_sizes,
    split_rows,
    steps_per_epoch,
    take_rows,
)
from seqjax.errors import UserError

sizes = st.sampled_from([1, 3, 7])  # every new size is a compilation
devices = st.sampled_from([1, 2, 8])


def order_of(key: int, total: int, batch_size: int, drop: bool, num_devices: int):
    """The row numbers and weights of an epoch, on the host."""
    order = epoch_order(jax.random.key(key), total, batch_size, drop, num_devices)
    return jax.device_get(order)


@given(total=sizes, batch_size=sizes, num_devices=devices, key=st.integers(0, 99))
def test_epochs_have_each_row_once_and_padding_weight_zero(total, batch_size, num_devices, key):
    batch_size = min(batch_size, total)
    rows, weight = order_of(key, total, batch_size, False, num_devices)
    assert rows.shape == weight.shape
    assert rows.shape == (-(-total // batch_size), batch_size + -batch_size % num_devices)
    assert set(np.unique(weight)) <= {0.0, 1.0}
    assert sorted(rows[weight == 1]) == list(range(total))
    assert rows.min() >= 0 and rows.max() < total  # a padding row is a copy of some row
    # Padding rows stand at the end of a batch, and only the last batch has fewer real rows.
    assert (np.diff(weight, axis=1) <= 0).all()
    assert (weight[:-1].sum(axis=1) == batch_size).all()


@given(total=sizes, batch_size=sizes, num_devices=devices, key=st.integers(0, 99))
def test_drop_remainder_leaves_out_exactly_the_remainder(total, batch_size, num_devices, key):
    batch_size = min(batch_size, total)
    rows, weight = order_of(key, total, batch_size, True, num_devices)
    real = rows[weight == 1]
    assert len(rows) == total // batch_size == steps_per_epoch(total, batch_size, True)
    assert len(real) == len(set(real)) == total - total % batch_size
    assert (weight.sum(axis=1) == batch_size).all()


def test_rows_left_out_differ_between_epochs():
    seen = [
        frozenset(order_of(key, total=11, batch_size=4, drop=True, num_devices=1)[0].flat)
        for key in range(8)
    ]
    assert len(set(seen)) > 1


@given(total=sizes, batch_size=sizes, key=st.integers(0, 99))
def test_order_is_a_function_of_the_key_and_not_of_the_devices(total, batch_size, key):
    batch_size = min(batch_size, total)
    first = order_of(key, total, batch_size, False, 1)
    again = order_of(key, total, batch_size, False, 1)
    wider = order_of(key, total, batch_size, False, 8)
    for x, y, z in zip(first, again, wider, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x, z[:, :batch_size])
        assert not z[:, batch_size:].any()


def test_orders_of_two_keys_differ():
    orders = [tuple(order_of(key, 40, 8, False, 1)[0].flat) for key in range(5)]
    assert len(set(orders)) == 5


@settings(max_examples=60)
@given(total=st.integers(1, 40), batch_size=st.integers(1, 60), num_devices=devices)
def test_evaluation_covers_the_rows_once_and_in_order(total, batch_size, num_devices):
    rows = {"x": np.arange(total), "y": np.arange(total)[:, None] * [1, 10]}
    seen, shapes = [], set()
    for batch, real in eval_batches(rows, batch_size, num_devices):
        assert batch["weight"].tolist() == [1.0] * real + [0.0] * (len(batch["weight"]) - real)
        np.testing.assert_array_equal(batch["y"], batch["x"][:, None] * [1, 10])
        seen += batch["x"][:real].tolist()
        shapes.add(batch["x"].shape)
    assert seen == list(range(total))
    assert len(shapes) == 1  # one static shape: one compilation
    (size,) = shapes.pop()
    assert size % num_devices == 0
    assert size < min(batch_size, total) + num_devices


def test_take_rows_takes_the_same_rows_on_host_and_device():
    rows = {"x": np.arange(12).reshape(6, 2), "y": np.arange(6)}
    index, weight = np.array([4, 0, 0]), np.array([1.0, 1.0, 0.0])
    host = take_rows(rows, index, weight)
    device = jax.jit(take_rows)(rows, index, weight)
    assert set(host) == {"x", "y", "weight"}
    for name, value in host.items():
        np.testing.assert_array_equal(value, device[name])
    assert host["x"].tolist() == [[8, 9], [0, 1], [0, 1]]
    assert count_rows(host) == 3


@settings(max_examples=60)
@given(
    total=st.integers(2, 60),
    valid=st.integers(0, 20),
    test=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_splits_are_disjoint_complete_and_in_file_order(total, valid, test, seed):
    rows = {"x": np.arange(total), "y": -np.arange(total)}
    if valid + test >= total:
        with pytest.raises(UserError, match=f"cannot hold out {valid + test} of {total} rows"):
            split_rows(rows, {"valid": valid, "test": test}, seed)
        return
    splits = split_rows(rows, {"valid": valid, "test": test}, seed)
    expected = {"train": total - valid - test, "valid": valid, "test": test}
    assert {name: count_rows(split) for name, split in splits.items()} == {
        name: size for name, size in expected.items() if size
    }
    assert next(iter(splits)) == "train"
    assert sorted(np.concatenate([split["x"] for split in splits.values()])) == list(range(total))
    for split in splits.values():
        assert (np.diff(split["x"]) > 0).all()
        np.testing.assert_array_equal(split["y"], -split["x"])
    again = split_rows(rows, {"valid": valid, "test": test}, seed)
    assert {n: p["x"].tolist() for n, p in splits.items()} == {
        n: p["x"].tolist() for n, p in again.items()
    }


def test_splits_differ_by_seed_and_only_by_seed():
    rows = {"x": np.arange(50)}
    valid = [tuple(split_rows(rows, {"valid": 10}, seed)["valid"]["x"]) for seed in range(5)]
    assert len(set(valid)) == 5
    # A second held-out split moves no row of the first, whose metrics stay comparable.
    both = split_rows(rows, {"valid": 10, "test": 5}, 0)
    assert tuple(both["valid"]["x"]) == valid[0]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    assert share_sizes(9, valid=0.0, test=0.25) == {"valid": 0, "test": 2}
    with pytest.raises(UserError, match=rf"^data.test_share={share} must be in \[0, 1\)$"):
        share_sizes(9, valid=0.5, test=share)


def test_a_negative_size_is_refused():
    with pytest.raises(UserError, match="cannot hold out -1 of 5 rows"):
        split_rows({"x": np.arange(5)}, {"valid": -1}, 0)


@pytest.mark.parametrize("batch_size", [0, -3, 11])
def test_a_batch_size_out_of_range_is_one_line(batch_size):
    with pytest.raises(UserError) as caught:
        check_batch_size(batch_size, 10)
    assert str(caught.value) == (
        f"train.batch_size={batch_size} must be between 1 and 10, the number of training rows"
    )


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_batch_size_in_range_is_accepted(batch_size):
    check_batch_size(batch_size, 10)
