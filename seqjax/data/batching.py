"""Splits rows of arrays, and draws batches of one static shape from them.

No row is dropped and none is counted twice: the last batch is padded with rows of weight 0.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from seqjax.data.bucketing import Buckets
from seqjax.errors import UserError, require
from seqjax.typing import Batch

Rows = Mapping[str, Any]  # arrays, or columns of `streams.py`, that share their leading axis


def count_rows(rows: Rows) -> int:
    """Returns the size of the leading axis that the arrays share."""
    return len(next(iter(rows.values())))


def share_sizes(total: int, **shares: float) -> dict[str, int]:
    """Returns the number of rows of each split, given its share of `total` rows.

    Raises UserError unless every share is in [0, 1).
    """
    for split, share in shares.items():
        require(f"data.{split}_share", share, 0 <= share < 1, "in [0, 1)")  # this refuses NaN too
    return {split: round(share * total) for split, share in shares.items()}


def split_rows(rows: Rows, sizes: Mapping[str, int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Returns random, disjoint splits of the given sizes, and the remaining rows as "train".

    The seed alone decides which rows are drawn. Raises UserError if no row remains to train on.
    """
    require("data.split_seed", seed, seed >= 0, "at least 0")
    total, num_held_out = count_rows(rows), sum(sizes.values())
    if min(sizes.values(), default=0) < 0 or num_held_out >= total:
        raise UserError(
            f"cannot hold out {num_held_out} of {total} rows: lower the sizes in config.data"
        )
    order = np.random.default_rng(seed).permutation(total)
    numbers, start = {"train": order[num_held_out:]}, 0
    for split, size in sizes.items():
        if size:
            numbers[split] = order[start : start + size]
        start += size
    # Each split keeps the order of the file, so that it is as readable as its source.
    return {
        split: {name: array[np.sort(index)] for name, array in rows.items()}
        for split, index in numbers.items()
    }


def check_batch_size(batch_size: int, total: int) -> None:
    """Raises UserError unless 1 <= batch_size <= total."""
    expected = f"between 1 and {total}, the number of training rows"
    require("train.batch_size", batch_size, 1 <= batch_size <= total, expected)


def steps_per_epoch(total: int, batch_size: int, drop_remainder: bool) -> int:
    """Returns the number of batches in one pass over `total` rows."""
    return total // batch_size if drop_remainder else -(-total // batch_size)


def epoch_order(
    key: Key[Array, ""], total: int, batch_size: int, drop_remainder: bool, num_devices: int
) -> tuple[Int[Array, "steps B"], Float[Array, "steps B"]]:
    """Returns the row numbers and weights of one epoch's batches, which the key alone determines.

    Each batch is padded with rows of weight 0 to a multiple of `num_devices` rows.
    """
    steps = steps_per_epoch(total, batch_size, drop_remainder)
    order = jax.random.permutation(key, total)[: steps * batch_size]
    filler = steps * batch_size - len(order)
    rows = jnp.pad(order, (0, filler)).reshape(steps, batch_size)
    weight = jnp.pad(jnp.ones(len(order), jnp.float32), (0, filler)).reshape(steps, batch_size)
    tail = ((0, 0), (0, -batch_size % num_devices))
    return jnp.pad(rows, tail), jnp.pad(weight, tail)


def bucketed_order(
    key: Key[Array, ""], buckets: Buckets, batch_size: int, num_devices: int
) -> tuple[Int[Array, "steps B"], Float[Array, "steps B"], Int[Array, " steps"]]:
    """Returns the row numbers, weights and buckets of one epoch's batches.

    All rows of a batch belong to one bucket, and the batches come in random order.
    """
    *keys, order_key = jax.random.split(key, buckets.num_buckets + 1)
    orders = []
    for bucket, (bucket_key, members) in enumerate(zip(keys, buckets.rows, strict=True)):
        size = (len(members), batch_size, False, num_devices)
        index, weight = epoch_order(bucket_key, *size)
        orders.append((jnp.asarray(members)[index], weight, jnp.full(len(index), bucket)))
    epoch = [jnp.concatenate(arrays) for arrays in zip(*orders, strict=True)]
    order = jax.random.permutation(order_key, len(epoch[2]))
    index, weight, bucket = (x[order] for x in epoch)
    return index, weight, bucket


def take_rows(rows: Rows, index: Any, weight: Any) -> Batch:
    """Returns the batch of the rows at `index` with their weights, from the host or a device."""
    return {name: array[index] for name, array in rows.items()} | {"weight": weight}


def eval_batches(rows: Rows, batch_size: int, num_devices: int) -> Iterator[tuple[Batch, int]]:
    """Yields every row once and in order, as (batch, number of real rows)."""
    total = count_rows(rows)
    size = min(batch_size, total)
    size += -size % num_devices
    for start in range(0, total, size):
        index = np.arange(start, start + size)
        num_real = min(size, total - start)
        weight = (index < total).astype(np.float32)
        yield take_rows(rows, np.minimum(index, total - 1), weight), num_real
