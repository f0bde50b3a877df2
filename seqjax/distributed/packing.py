"""Packs a tree of arrays into one array of bytes, and unpacks it.

Orbax writes and reads one array faster than many small ones: in half the time for a model of a few
layers.
"""

import math
from typing import Any

import jax
import numpy as np

from seqjax.parameters import named_arrays


def layout(tree: Any) -> list[list[Any]]:
    """Returns the name, dtype and shape of each array (or ShapeDtypeStruct), as JSON holds them."""
    return [[name, str(x.dtype), list(x.shape)] for name, x in named_arrays(tree)]


def pack(tree: Any) -> np.ndarray:
    """Returns a copy of the arrays' bytes, one array after the other: uint8 [num_bytes]."""
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(-1).view(np.uint8) for x in leaves])


def unpack(packed: np.ndarray, like: Any) -> Any:
    """Returns the tree that was packed; `like` has its structure, dtypes and shapes."""
    leaves, start = [], 0
    for x in jax.tree.leaves(like):
        end = start + _size(x)
        leaves.append(packed[start:end].view(x.dtype).reshape(x.shape))
        start = end
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _size(x: Any) -> int:
    return int(x.dtype.itemsize) * math.prod(x.shape)
