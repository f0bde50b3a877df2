"""A nest of arrays as one array of bytes.

Orbax takes longer over many small arrays than over one: twice as long, of a few layers.
"""

import math
from typing import Any

import jax
import numpy as np

from seqjax.parameters import named_arrays


def layout(tree: Any) -> list[list[Any]]:
    """Name, dtype and shape of each array, or of what has a dtype and a shape, as JSON has them."""
    return [[name, str(x.dtype), list(x.shape)] for name, x in named_arrays(tree)]


def num_bytes(tree: Any) -> int:
    """How many bytes `pack` makes of such a nest."""
    return sum(_size(x) for x in jax.tree.leaves(tree))


def pack(tree: Any) -> np.ndarray:
    """A copy of the arrays' bytes, one array after the other: uint8 [num_bytes]."""
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(-1).view(np.uint8) for x in leaves])


def unpack(packed: np.ndarray, like: Any) -> Any:
    """The nest that was packed, which had the structure, dtypes and shapes of `like`."""
    leaves, start = [], 0
    for x in jax.tree.leaves(like):
        end = start + _size(x)
        leaves.append(packed[start:end].view(x.dtype).reshape(x.shape))
        start = end
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _size(x: Any) -> int:
    return int(x.dtype.itemsize) * math.prod(x.shape)
