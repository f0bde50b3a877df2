"""Dimensions, the arrays that cross module boundaries, and the reserved token ids.

    B batch          T time             S source time     I input size
    H hidden size    G gates x H        E embedding size  V vocabulary size
    C classes        K beam width       N members of a sweep

Batch-major `[B, T, ...]` in data, layers, models, losses and metrics; time-major `[T, B, ...]`
inside `unroll` only. A mask is True where a position is real.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, Num

Params = Any  # nested dict[str, ...] of arrays: the only form in which parameters travel
Batch = Mapping[str, Any]  # arrays with a leading B, always with a "weight": 0 marks filler rows

Tokens = Int[Array, "B T"]
Lengths = Int[Array, " B"]
Labels = Int[Array, " B"]
Mask = Bool[Array, "B T"]
Logits = Float[Array, "*dims C"]
Features = Num[Array, "B T I"]
RowKeys = Key[Array, " B"]  # one key a row, so that no row's dropout depends on its batch mates


class SpecialIds(NamedTuple):
    """Padding, the start and the end of a sequence, and the word that is in no vocabulary."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
