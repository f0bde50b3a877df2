"""Files: read within bounds, written whole or not at all, known by digests. Imports: errors."""

import hashlib
import json
from pathlib import Path
from typing import Any

from seqjax.errors import UserError

MAX_JSON_MEGABYTES = 256.0  # of a run's own files: a vocabulary of millions of words is smaller


def read_bounded(path: Path, max_megabytes: float, remedy: str) -> bytes:
    """A file's bytes; a UserError, with the remedy, if there are more than that; or an OSError."""
    limit = int(max_megabytes * 1e6)
    with path.open("rb") as file:  # measured as it is read: a pipe or a device has no size
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} is larger than {max_megabytes:g} MB: {remedy}")
    return data


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


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    whole = path.with_suffix(".tmp")
    try:
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)
    except BaseException:
        whole.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
