"""Text pairs with labels, no source in two parts. Imports: errors, batches, pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqjax.data.batches import split_rows
from seqjax.data.pairs import check_pairs, read_labels, read_pairs
from seqjax.errors import UserError


class Part(NamedTuple):
    """One split: texts in file order, and their labels, or none."""

    sources: list[str]
    targets: list[str]
    labels: list[str]


def load_corpus(
    *,
    name: str,
    pairs: Sequence[Sequence[str]],
    labels: str,
    form: str,
    source_column: str,
    target_column: str,
    encoding: str,
    max_megabytes: float,
    valid_share: float,
    test_share: float,
    train_size: int,
    split_seed: int,
) -> dict[str, Part]:
    """Parts by split: `pairs` as they stand, or those of `name`, a shipped corpus or a file.

    Pairs with the same source fall into the same part, so that none is held out of what is
    trained on; `train_size` keeps only so many training pairs, 0 all of them. A label names the
    intent of a source, of which every target is a right answer.
    """
    for field, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise UserError(f"data.{field}={share} must lie in [0, 1)")
    if pairs:
        found = check_pairs(pairs)
    else:
        found = read_pairs(
            name,
            form=form,
            source_column=source_column,
            target_column=target_column,
            encoding=encoding,
            max_megabytes=max_megabytes,
        )
    tags = read_labels(labels, "" if pairs else name, len(found), max_megabytes)
    numbers = {source: i for i, source in enumerate(dict.fromkeys(s for s, _ in found))}
    sizes = {
        split: round(share * len(numbers))
        for split, share in (("valid", valid_share), ("test", test_share))
    }
    groups = split_rows({"group": np.arange(len(numbers))}, sizes, split_seed)
    split_of = {group: split for split, rows in groups.items() for group in rows["group"]}
    parts = {split: Part([], [], []) for split in groups}
    for i, (source, target) in enumerate(found):
        part = parts[split_of[numbers[source]]]
        part.sources.append(source)
        part.targets.append(target)
        part.labels.extend(tags[i : i + 1])
    if train_size < 0:
        raise UserError(f"data.train_size={train_size} must be at least 0")
    train = parts["train"]
    if 0 < train_size < len(train.sources):
        chosen = np.random.default_rng(split_seed).permutation(len(train.sources))[:train_size]
        parts["train"] = Part(
            *([texts[i] for i in np.sort(chosen)] if texts else [] for texts in train)
        )
    return parts
