"""Files: read within bounds, written whole or not at all, known by digests."""

import contextlib
import hashlib
import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

from seqjax.errors import UserError

MAX_JSON_MEGABYTES = 256.0  # of a run's own files: a vocabulary of millions of words is smaller
MAX_TEXT_MEGABYTES = 64.0  # of a person's files, where a config does not say
MAX_LINE = 2**17  # characters; in a csv also of a cell, which may hold lines


def read_bounded(path: Path, max_megabytes: float, remedy: str) -> bytes:
    """A file's bytes; a UserError, with the remedy, if there are more than that; or an OSError."""
    if not 0 < max_megabytes < math.inf:  # so written, a NaN is refused
        raise UserError(f"data.max_megabytes={max_megabytes} must be a number above 0")
    limit = int(max_megabytes * 1e6)
    with path.open("rb") as file:  # measured as it is read: a pipe or a device has no size
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} is larger than {max_megabytes:g} MB: {remedy}")
    return data


def read_text_file(path: Path, max_megabytes: float) -> bytes:
    """The bytes of a person's text; a UserError if there are too many, or an OSError."""
    return read_bounded(path, max_megabytes, "raise data.max_megabytes, or take a part of it")


def check_line(place: str, line: str) -> None:
    """Nothing for a line that a person may have written, else a UserError that names the place."""
    if len(line) > MAX_LINE:
        raise UserError(f"{place}: longer than {MAX_LINE:,} characters; break it into several")


def read_json(path: Path) -> Any:
    """What a JSON file of a run says; raises UserError if it is not there or says nothing."""
    try:
        return json.loads(read_bounded(path, MAX_JSON_MEGABYTES, "it is no file of a run"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {error}") from None


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Another name to write to: what is there becomes the file at once, or is deleted."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
