"""Length buckets: rows of similar lengths are cropped to one shape, so that batches hold little
padding.

Each bucket has a static shape of its own, for which the train step is compiled once.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seqjax.errors import require
from seqjax.typing import Batch

RowLengths = Mapping[str, Int[np.ndarray, " N"]]  # by field: the number of columns each row needs


class Buckets(NamedTuple):
    """The length of each field in each bucket, and the rows that belong to it."""

    lengths: tuple[Mapping[str, int], ...]  # by bucket: the number of columns of each field
    rows: tuple[Int[np.ndarray, " n"], ...]  # by bucket: the numbers of its rows

    @property
    def num_buckets(self) -> int:
        return len(self.lengths)

    def crop(self, batch: Batch, bucket: int) -> Batch:
        """Returns the batch with its fields cropped to the lengths of a bucket.

        All rows of the batch must belong to that bucket.
        """
        lengths = self.lengths[bucket]
        return {
            name: x[:, : lengths.get(name)] if name in lengths else x for name, x in batch.items()
        }

    def describe(self, row_lengths: RowLengths) -> str:
        """Returns one line with the buckets' shapes and the share of padding in their rows."""
        num_real = sum(int(np.sum(lengths)) for lengths in row_lengths.values())
        num_uncropped = sum(len(lengths) * int(np.max(lengths)) for lengths in row_lengths.values())
        buckets = zip(self.lengths, self.rows, strict=True)
        num_cropped = sum(len(rows) * sum(lengths.values()) for lengths, rows in buckets)
        shapes = ", ".join(" + ".join(map(str, lengths.values())) for lengths in self.lengths)
        names = " + ".join(row_lengths)
        return (
            f"{self.num_buckets} length buckets of {names}: {shapes}; padding "
            f"{1 - num_real / num_cropped:.1%} of all positions, "
            f"{1 - num_real / num_uncropped:.1%} in one bucket"
        )


def find_buckets(row_lengths: RowLengths, num_buckets: int, batch_size: int) -> Buckets:
    """Returns at most `num_buckets` buckets, so that an epoch's batches have few positions.

    Sorts the rows by their lengths and divides them by dynamic programming, which minimises the
    sum of (number of batches) x (positions in a batch) over the buckets; tries several ways to
    sort and keeps the best. Raises UserError for fewer than one bucket.
    """
    require("train.num_buckets", num_buckets, num_buckets >= 1, "at least 1")
    names = list(row_lengths)
    rows = np.stack([row_lengths[name] for name in names], axis=1)
    shapes, shape_of_row, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    orders = [np.argsort(shapes.sum(axis=1), kind="stable")]
    orders += [np.lexsort((shapes.sum(axis=1), lengths)) for lengths in shapes.T]
    divisions = [_divide(shapes[order], counts[order], num_buckets, batch_size) for order in orders]
    _, lengths = min(divisions, key=lambda cost_and_lengths: cost_and_lengths[0])
    # A row may also fit into a smaller bucket than the one that its neighbours were put into.
    lengths = lengths[np.argsort(lengths.sum(axis=1), kind="stable")]
    fits = (shapes[:, None] <= lengths[None]).all(axis=2)
    bucket_of_row = np.argmax(fits, axis=1)[shape_of_row.reshape(-1)]
    used = np.unique(bucket_of_row)
    return Buckets(
        tuple(dict(zip(names, map(int, lengths[k]), strict=True)) for k in used),
        tuple(np.flatnonzero(bucket_of_row == k) for k in used),
    )


def _divide(
    shapes: Int[np.ndarray, "U F"], counts: Int[np.ndarray, " U"], max_buckets: int, batch_size: int
) -> tuple[float, Int[np.ndarray, "K F"]]:
    """Returns the smallest number of positions, and the lengths of the buckets that reach it.

    The shapes are divided in the given order; `counts` are the numbers of rows of each shape.
    """
    total = len(shapes)
    num_before = np.concatenate([[0], np.cumsum(counts)])
    best = np.full((max_buckets + 1, total + 1), np.inf)
    best[:, 0] = 0
    cut = np.zeros((max_buckets + 1, total + 1), int)
    for end in range(1, total + 1):
        # For a bucket of the shapes start..end, for every start: its length, and its rows rounded
        # up to whole batches.
        length = np.maximum.accumulate(shapes[:end][::-1], axis=0)[::-1].sum(axis=1)
        rows = -(-(num_before[end] - num_before[:end]) // batch_size) * batch_size
        for k in range(1, max_buckets + 1):
            costs = best[k - 1, :end] + rows * length
            cut[k, end] = np.argmin(costs)
            best[k, end] = costs[cut[k, end]]
    ends, k = [total], int(np.argmin(best[:, total]))
    cost = float(best[k, total])
    while ends[-1]:
        ends.append(int(cut[k, ends[-1]]))
        k -= 1
    return cost, np.stack([shapes[a:b].max(axis=0) for a, b in pairwise(ends[::-1])])
