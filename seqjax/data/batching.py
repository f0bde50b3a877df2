"""Rows of arrays into batches of one static shape.

Nothing is dropped and nothing counted twice: a last batch is filled up with rows of weight 0.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from seqjax.data.bucketing import Buckets
from seqjax.errors import UserError
from seqjax.typing import Batch

Rows = Mapping[str, Any]  # arrays with one leading axis in common


def num_rows(rows: Rows) -> int:
    """How many rows the arrays share."""
    return len(next(iter(rows.values())))


def split_rows(rows: Rows, sizes: Mapping[str, int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Disjoint parts of the given sizes, and what is left as "train", chosen by the seed alone.

    Raises UserError if nothing would be left to train on.
    """
    if seed < 0:
        raise UserError(f"data.split_seed={seed} must be at least 0")
    total, held = num_rows(rows), sum(sizes.values())
    if min(sizes.values(), default=0) < 0 or held >= total:
        raise UserError(f"cannot hold out {held} of {total} rows: lower the sizes in config.data")
    order = np.random.default_rng(seed).permutation(total)
    parts, start = {"train": order[held:]}, 0
    for name, size in sizes.items():
        if size:
            parts[name] = order[start : start + size]
        start += size
    # In file order, so that a part reads like its source.
    return {
        name: {key: value[np.sort(part)] for key, value in rows.items()}
        for name, part in parts.items()
    }


def check_batch_size(batch_size: int, total: int) -> None:
    """Raises UserError unless 1 <= batch_size <= total."""
    if not 1 <= batch_size <= total:
        raise UserError(
            f"train.batch_size={batch_size} must lie between 1 and the {total} training rows"
        )


def steps_per_epoch(total: int, batch_size: int, drop_remainder: bool) -> int:
    """Batches in one pass over `total` rows."""
    return total // batch_size if drop_remainder else -(-total // batch_size)


def epoch_order(
    key: Key[Array, ""], total: int, batch_size: int, drop_remainder: bool, num_devices: int
) -> tuple[Int[Array, "steps B"], Float[Array, "steps B"]]:
    """One epoch's row numbers and weights, a pure function of the key.

    Every batch is filled up, with weight 0, to a multiple of `num_devices` rows.
    """
    steps = steps_per_epoch(total, batch_size, drop_remainder)
    order = jax.random.permutation(key, total)[: steps * batch_size]
    filler = steps * batch_size - len(order)
    rows = jnp.pad(order, (0, filler)).reshape(steps, batch_size)
    weight = jnp.pad(jnp.ones(len(order)), (0, filler)).reshape(steps, batch_size)
    tail = ((0, 0), (0, -batch_size % num_devices))
    return jnp.pad(rows, tail), jnp.pad(weight, tail)


def bucketed_order(
    key: Key[Array, ""], buckets: Buckets, batch_size: int, num_devices: int
) -> tuple[Int[Array, "steps B"], Float[Array, "steps B"], Int[Array, " steps"]]:
    """One epoch's row numbers, weights and buckets: each batch of one bucket, in random order."""
    *keys, last = jax.random.split(key, buckets.number + 1)
    parts = []
    for number, (of_bucket, members) in enumerate(zip(keys, buckets.members, strict=True)):
        size = (len(members), batch_size, False, num_devices)
        index, weight = epoch_order(of_bucket, *size)
        parts.append((jnp.asarray(members)[index], weight, jnp.full(len(index), number)))
    whole = [jnp.concatenate(of_buckets) for of_buckets in zip(*parts, strict=True)]
    order = jax.random.permutation(last, len(whole[2]))
    index, weight, number = (x[order] for x in whole)
    return index, weight, number


def take_rows(rows: Rows, index: Any, weight: Any) -> Batch:
    """The batch of the rows at `index`, with their weights. Works on host and device arrays."""
    return {key: value[index] for key, value in rows.items()} | {"weight": weight}


def eval_batches(rows: Rows, batch_size: int, num_devices: int) -> Iterator[tuple[Batch, int]]:
    """Every row once and in order, as (batch, how many of its rows are real)."""
    total = num_rows(rows)
    size = min(batch_size, total)
    size += -size % num_devices
    for start in range(0, total, size):
        index = np.arange(start, start + size)
        real = min(size, total - start)
        weight = (index < total).astype(np.float32)
        yield take_rows(rows, np.minimum(index, total - 1), weight), real
