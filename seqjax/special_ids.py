"""The ids that are no words. Imports nothing of seqjax."""

from typing import NamedTuple


class SpecialIds(NamedTuple):
    """Padding, the start and the end of a sequence, and the word that is in no vocabulary."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
