"""Rows by length: a few shapes to which rows are cut, so that little of a batch is padding.

Every bucket is a static shape of its own, so as many are compiled as there are buckets.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seqjax.errors import UserError
from seqjax.typing import Batch

Lengths = Mapping[str, Int[np.ndarray, " N"]]  # by field: how many columns a row needs of it


class Buckets(NamedTuple):
    """Which rows are cut to which widths."""

    widths: tuple[Mapping[str, int], ...]  # by bucket: the columns that stay of each field
    members: tuple[Int[np.ndarray, " n"], ...]  # by bucket: the numbers of its rows

    @property
    def number(self) -> int:
        return len(self.widths)

    def crop(self, batch: Batch, bucket: int) -> Batch:
        """The batch of rows of that bucket without the columns that are padding in all of them."""
        widths = self.widths[bucket]
        return {
            name: x[:, : widths.get(name)] if name in widths else x for name, x in batch.items()
        }

    def describe(self, lengths: Lengths) -> str:
        """A line: the shapes, and the share of padding in the rows they hold."""
        real = sum(int(np.sum(of_field)) for of_field in lengths.values())
        whole = sum(len(of_field) * int(np.max(of_field)) for of_field in lengths.values())
        pairs = zip(self.widths, self.members, strict=True)
        cut = sum(len(rows) * sum(widths.values()) for widths, rows in pairs)
        shapes = ", ".join(" + ".join(map(str, widths.values())) for widths in self.widths)
        names = " + ".join(lengths)
        return (
            f"{self.number} length buckets of {names}: {shapes}; "
            f"padding {1 - real / cut:.1%} of all positions, {1 - real / whole:.1%} in one bucket"
        )


def find_buckets(lengths: Lengths, num_buckets: int, batch_size: int) -> Buckets:
    """At most so many buckets, which leave the fewest positions in an epoch's batches.

    The rows, in an order of their lengths, are divided where the sum over buckets of batches times
    their size is least, by dynamic programming; of several orders the best one counts. Raises
    UserError for fewer than one bucket.
    """
    if num_buckets < 1:
        raise UserError(f"train.num_buckets={num_buckets} must be at least 1")
    names = list(lengths)
    rows = np.stack([lengths[name] for name in names], axis=1)
    kinds, kind_of_row, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    orders = [np.argsort(kinds.sum(axis=1), kind="stable")]
    orders += [np.lexsort((kinds.sum(axis=1), of_field)) for of_field in kinds.T]
    found = [_divide(kinds[order], counts[order], num_buckets, batch_size) for order in orders]
    _, widths = min(found, key=lambda cost_and_widths: cost_and_widths[0])
    # A row may fit into a smaller bucket than its neighbours in that order.
    widths = widths[np.argsort(widths.sum(axis=1), kind="stable")]
    fits = (kinds[:, None] <= widths[None]).all(axis=2)
    bucket = np.argmax(fits, axis=1)[kind_of_row.reshape(-1)]
    used = np.unique(bucket)
    return Buckets(
        tuple(dict(zip(names, map(int, widths[k]), strict=True)) for k in used),
        tuple(np.flatnonzero(bucket == k) for k in used),
    )


def _divide(
    kinds: Int[np.ndarray, "U F"], counts: Int[np.ndarray, " U"], most: int, batch_size: int
) -> tuple[float, Int[np.ndarray, "K F"]]:
    """The fewest positions that kinds in this order can be divided into, and the widths for it."""
    total = len(kinds)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.full((most + 1, total + 1), np.inf)
    best[:, 0] = 0
    cut = np.zeros((most + 1, total + 1), int)
    for end in range(1, total + 1):
        # Of the buckets start..end, for every start: rows in whole batches, times their widths.
        widths = np.maximum.accumulate(kinds[:end][::-1], axis=0)[::-1].sum(axis=1)
        rows = -(-(before[end] - before[:end]) // batch_size) * batch_size
        for k in range(1, most + 1):
            costs = best[k - 1, :end] + rows * widths
            cut[k, end] = np.argmin(costs)
            best[k, end] = costs[cut[k, end]]
    ends, k = [total], int(np.argmin(best[:, total]))
    cost = float(best[k, total])
    while ends[-1]:
        ends.append(int(cut[k, ends[-1]]))
        k -= 1
    return cost, np.stack([kinds[a:b].max(axis=0) for a, b in pairwise(ends[::-1])])
