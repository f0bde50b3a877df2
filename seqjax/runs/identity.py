"""What a run may not change while it goes on: its config, its data, its devices.

Two runs of the same identity end with the same bits, so a run is resumed, and a checkpoint used,
only where the identities agree.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json, differing_fields, with_present_fields
from seqjax.distributed.choices import Choice
from seqjax.distributed.processes import num_processes
from seqjax.files import sha256

# How a run gets to its result, but not what the result is: these may change when it is resumed.
# What `train.num_devices` comes to, which does change sums in their last bits, is compared itself.
FREE_FIELDS = {
    "train": (
        "steps_per_call",
        "log_every_epochs",
        "log_every_steps",
        "trial_mapping",
        "checkpoint_every_epochs",
        "checkpoint_every_minutes",
        "num_devices",
    )
}

PART_BYTES = 2**24  # of a column that are in memory at once while its digest is computed


class Identity(NamedTuple):
    """A run's config and fingerprint, as JSON has them."""

    config: dict[str, Any]
    fingerprint: dict[str, Any]


def make_identity(
    config: ConfigDict,
    splits: Mapping[str, Mapping[str, Any]],
    choice: Choice,
    files: Iterable[Path],
) -> Identity:
    """The identity of a run on these splits that has fitted these files."""
    kinds = {device.device_kind for device in jax.devices()}
    count = num_processes()  # who adds up first what its own devices found, then with the others
    fingerprint = {
        "data": {split: arrays_digest(rows) for split, rows in splits.items()},
        "choice": choice._asdict(),
        "devices": f"{choice.num_devices} x {', '.join(sorted(kinds))}"
        + (f" in {count} processes" if count > 1 else ""),
        "files": {path.name: sha256(path) if path.is_file() else "" for path in files},
    }
    return Identity(as_json(config), fingerprint)


def is_identity(identity: Identity) -> bool:
    """Whether what was read has the form of an identity, and no file's name leads elsewhere."""
    config, fingerprint = identity
    if not (isinstance(config, dict) and isinstance(fingerprint, dict)):
        return False
    files = fingerprint.get("files")
    return isinstance(files, dict) and all(Path(name).name == name for name in files)


def kept_choice(identity: Identity) -> Choice | None:
    """How a run that was begun divides its batches; None where its fingerprint does not tell."""
    found = identity.fingerprint.get("choice")
    if not isinstance(found, dict) or set(found) != set(Choice._fields):
        return None
    choice = Choice(**found)
    sizes = (choice.num_devices, 1), (choice.microbatch_size, 0)
    is_whole = all(isinstance(size, int) and size >= least for size, least in sizes)
    return choice if is_whole else None


def differences(old: Identity, new: Identity) -> list[str]:
    """What is not the same in both and should be: `field: old -> new`, or what changed."""
    lines = differing_fields(_bound_fields(old.config), _bound_fields(new.config))
    for part, what in (("data", "the rows of"), ("files", "the file"), ("devices", "")):
        before, now = old.fingerprint.get(part), new.fingerprint.get(part)
        if part == "devices" and before != now:
            lines.append(f"devices: {before} -> {now}")
        elif before != now:
            before, now = before or {}, now or {}
            names = sorted({*before, *now})
            changed = [name for name in names if before.get(name) != now.get(name)]
            lines += [f"{what} {name}" for name in changed]
    return lines


def _bound_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The config without its free fields, and with those that its version did not have yet."""
    config = with_present_fields(config)
    return {
        name: {k: v for k, v in section.items() if k not in FREE_FIELDS.get(name, ())}
        if isinstance(section, Mapping)
        else section
        for name, section in config.items()
    }


def arrays_digest(arrays: Mapping[str, Any], beside: bytes = b"") -> str:
    """SHA-256 of named arrays (names, dtypes, shapes and bytes) and what is given beside them.

    Columns of rows on disk are read in parts. A text in the attribute `digest` of a column stands
    for its bytes.
    """

    def pieces() -> Iterator[bytes | memoryview]:
        yield beside
        for name in sorted(arrays):
            column = arrays[name]
            yield json.dumps([name, str(column.dtype), column.shape]).encode()
            if known := getattr(column, "digest", ""):
                yield known.encode()
                continue
            column = column if column.shape else np.reshape(column, 1)
            row_bytes = math.prod(column.shape[1:]) * column.dtype.itemsize
            size = max(1, PART_BYTES // max(1, row_bytes))
            for start in range(0, len(column) if row_bytes else 0, size):
                part = np.ascontiguousarray(column[start : start + size])
                yield part.reshape(-1).view(np.uint8).data  # bfloat16 has no buffer of its own

    return sha256(pieces())
