"""The weights of a run as one safetensors file, with all that belongs to them.

The header holds the config, the text of what was fitted, and SHA-256 digests, of which one covers
everything. They tell damage, not who wrote a file: what is read here may be anybody's.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.errors import UserError
from seqjax.files import sha256, whole_file
from seqjax.parameters import named_arrays
from seqjax.runs.identity import arrays_digest
from seqjax.runs.workdir import CHECKPOINTS, FINGERPRINT
from seqjax.typing import Params

WEIGHTS_FILE = "weights.safetensors"
_FORMAT, _VERSION = "seqjax weights", "1"
FILE_NAME = re.compile(r"[a-z_]+\.json")  # of a file beside the weights: leads to no other folder
_REMEDY = "get a new copy, or export the run again"


class WeightsFile(NamedTuple):
    """The best weights of a run, and what is needed to use them."""

    config: dict[str, Any]  # as JSON has it
    progress: dict[str, Any]  # how far they are trained, as JSON has it
    files: dict[str, str]  # the texts of what was fitted to the training data, by file name
    tensors: dict[str, np.ndarray]  # by path, as in "stack.layer_0.weights.bias"


def write_weights(path: Path, weights: WeightsFile) -> None:
    """Writes the file, whole or not at all, and reads it again; raises OSError or UserError."""
    from safetensors.numpy import save  # only where weights are exchanged

    files = {
        name: {"sha256": sha256([text.encode()]), "text": text}
        for name, text in weights.files.items()
    }
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": json.dumps(weights.config),
        "progress": json.dumps(weights.progress),
        "files": json.dumps(files),
    }
    # safetensors writes an array's memory as it lies there, and of a view what lies beside it.
    tensors = {name: np.asarray(x, order="C") for name, x in weights.tensors.items()}
    metadata["sha256"] = _digest(metadata, tensors)
    with whole_file(path) as beside:
        beside.write_bytes(_with_sorted_header(save(tensors, metadata)))
        read_weights(beside)


def read_weights(path: Path) -> WeightsFile:
    """What a weights file holds; raises UserError unless it is just what was written."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except Exception as error:  # of the library, and of NumPy where it lacks a type or the memory
        raise UserError(f"{path} is damaged or no safetensors file ({error}): {_REMEDY}") from None
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is not of seqjax: give a file that experiments.export wrote")
    if metadata.get("version") != _VERSION:
        raise UserError(
            f"{path} has format version {metadata.get('version')!r}, but this seqjax reads "
            f"{_VERSION}: export the run with this one"
        )
    if metadata.pop("sha256", "") != _digest(metadata, tensors):
        raise UserError(f"{path} is damaged or altered: its SHA-256 does not match: {_REMEDY}")
    try:
        files = json.loads(metadata["files"])
        weights = WeightsFile(
            json.loads(metadata["config"]),
            json.loads(metadata["progress"]),
            {name: entry["text"] for name, entry in files.items()},
            tensors,
        )
        digests = {name: sha256([text.encode()]) for name, text in weights.files.items()}
        right = {name: entry["sha256"] for name, entry in files.items()} == digests
        numbers = all(isinstance(x, int | float | None) for x in weights.progress.values())
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} has a header of another form ({reason}): {_REMEDY}") from None
    if strange := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise UserError(f"{path} holds a file {min(strange)!r}, which no run has: {_REMEDY}")
    if not (right and numbers and isinstance(weights.config, dict)):
        raise UserError(f"{path} has a header that contradicts itself: {_REMEDY}")
    return weights


def as_params(path: Path, tensors: dict[str, np.ndarray], shapes: Params) -> Params:
    """Returns the tensors of a file as parameters of these shapes; bfloat16 becomes float32.

    Raises UserError if they are others, and for values that are not finite.
    """
    tensors = {n: x.astype(np.float32) if _is_bfloat16(x) else x for n, x in tensors.items()}
    for name, x in tensors.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise UserError(f"{path}: {name} has values that are not finite: {_REMEDY}")
    wanted, found = (
        {name: f"{x.dtype}{list(x.shape)}" for name, x in pairs}
        for pairs in (named_arrays(shapes), tensors.items())
    )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{path}: {name} is {found.get(name, 'not there')}, but in the model of its config "
                f"{wanted.get(name, 'not there')}: {_REMEDY}"
            )
    return jax.tree.unflatten(jax.tree.structure(shapes), [tensors[name] for name in wanted])


def is_imported(workdir: Path) -> bool:
    """Whether a directory holds weights that were trained elsewhere, and nothing to go on from."""
    trained = any((workdir / name).exists() for name in (FINGERPRINT, CHECKPOINTS))
    return (workdir / WEIGHTS_FILE).exists() and not trained


def _is_bfloat16(x: np.ndarray) -> bool:
    return x.dtype.name == "bfloat16"


def _with_sorted_header(data: bytes) -> bytes:
    """Returns a safetensors file whose header is in order, so that equal weights have equal bytes.

    The library writes the entries of `__metadata__` in any order.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:end])
    header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _digest(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of the header's entries and of the tensors."""
    return arrays_digest(tensors, json.dumps(metadata, sort_keys=True).encode())
