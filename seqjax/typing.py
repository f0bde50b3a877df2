"""Names of dimensions, types of arrays that cross module boundaries, and reserved token ids.

    B batch          T time             S source time     I input size
    H hidden size    G gates x H        E embedding size  V vocabulary size
    C classes        K beam width       N rows of a split, or members of a sweep

Arrays are batch-major `[B, T, ...]` in data, layers, models, losses and metrics, and time-major
`[T, B, ...]` only inside `unroll`. A mask is True where a position is real.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, Shaped

Params = Any  # nested dict[str, ...] of arrays: the only form in which parameters travel
Batch = Mapping[str, Any]  # arrays with a leading B; the "weight" of a padding row is 0

Tokens = Int[Array, "B T"]
Lengths = Int[Array, " B"]
Labels = Int[Array, " B"]
Mask = Bool[Array, "B T"]
Logits = Float[Array, "*dims C"]
Features = Shaped[Array, "B T I"]  # of any dtype: layers cast it to that of their parameters
RowKeys = Key[Array, " B"]  # one key per row, so that its dropout does not depend on other rows


class SpecialIds(NamedTuple):
    """The ids of padding, of the start and the end of a sequence, and of unknown tokens."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
