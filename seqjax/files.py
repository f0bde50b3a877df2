"""Reads files up to a size, writes them completely or not at all, and computes their digests."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.errors import UserError

MAX_JSON_MEGABYTES = 256.0  # of a run's files: a vocabulary of millions of words is smaller
MAX_TEXT_MEGABYTES = 64.0  # of a user's text file, unless the config sets another limit
MAX_LINE = 2**17  # characters of a line, and of a cell of a csv file, which may hold several lines


def read_bounded(path: Path, max_megabytes: float, remedy: str) -> bytes:
    """Returns a file's bytes.

    Raises UserError, with the remedy, for a file that is larger than the limit, and OSError for one
    that cannot be read.
    """
    if not 0 < max_megabytes < math.inf:  # this refuses NaN too
        raise UserError(f"data.max_megabytes={max_megabytes} must be a number above 0")
    limit = int(max_megabytes * 1e6)
    with path.open("rb") as file:  # the bytes are counted, because a pipe or device has no size
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} is larger than {max_megabytes:g} MB: {remedy}")
    return data


def read_text_file(path: Path, max_megabytes: float) -> bytes:
    """Returns the bytes of a user's text file; raises UserError or OSError as `read_bounded`."""
    return read_bounded(path, max_megabytes, "raise data.max_megabytes, or take a part of it")


def check_line(place: str, line: str) -> None:
    """Raises UserError, with the place, for a line of a text file that is too long."""
    if len(line) > MAX_LINE:
        raise UserError(f"{place}: longer than {MAX_LINE:,} characters; break it into several")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file of a run; raises UserError if it is missing or damaged."""
    try:
        return json.loads(read_bounded(path, MAX_JSON_MEGABYTES, "it is not a file of a run"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {error}") from None


@contextlib.contextmanager
def whole_file(path: Path, durable: bool = True) -> Generator[Path]:
    """Yields a path beside `path` to write to; the file then replaces `path` in one step.

    After an exception it is deleted, and `path` stays as it was. If `durable`, the new content is
    on the disk before that.
    """
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        if durable:
            with beside.open("rb") as file:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Writes a text in UTF-8, completely or not at all."""
    with whole_file(path, durable) as beside:
        beside.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON, with null for NaN and infinities, for which JSON has no numbers."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Returns the value with None for NaN and infinities, and with Python's numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Writes a value as JSON, completely or not at all; NaN and infinities become null."""
    write_text(path, json_text(value, indent=2) + "\n", durable)


def sha256(content: Path | Iterable[bytes | memoryview]) -> str:
    """Returns the SHA-256 digest, in hexadecimal, of a file or of consecutive pieces of bytes."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()
