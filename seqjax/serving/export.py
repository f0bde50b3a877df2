"""Exports a run as one weights file, and imports such a file as a run."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ml_collections import ConfigDict

from seqjax.config import as_json, make_config
from seqjax.distributed.devices import start_jax
from seqjax.errors import TRACEBACK_HINT, UserError, is_from_user_code
from seqjax.files import MAX_JSON_MEGABYTES, read_bounded, sha256, write_json
from seqjax.inference.calibration import ABSTENTION_FILE
from seqjax.parameters import named_arrays, parameter_shapes
from seqjax.runs.identity import Identity, differences
from seqjax.runs.weights import (
    WEIGHTS_FILE,
    WeightsFile,
    as_params,
    read_weights,
    write_weights,
)
from seqjax.runs.workdir import CONFIG
from seqjax.tasks.base import fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.early_stopping import read_progress
from seqjax.training.fit import load_run
from seqjax.training.setup import make_setup

_PATHS = ("name", "labels", "held_out")  # fields of `data` that may name a file
# NAME[/CONFIG][:VERSION], no part of which leads out of the folder of the data sets.
_TFDS_NAME = re.compile(r"tfds:\w+(/[\w-][\w.-]*)?(:[\d.*]+)?")


def export_run(workdir: Path, output: Path) -> None:
    """Writes one file with the best weights of a run, its config and what was fitted to its data.

    Raises UserError for a directory without weights, and for an output that cannot be written or
    that holds anything but an export of the same run.
    """
    run = load_run(workdir)
    files = fitted_files(run.setup.task)
    if (workdir / ABSTENTION_FILE).exists():
        abstention = read_bounded(
            workdir / ABSTENTION_FILE, MAX_JSON_MEGABYTES, "it is not a file of a run"
        )
        files[ABSTENTION_FILE] = abstention.decode()
    config, tensors = as_json(run.setup.config), dict(named_arrays(run.params))
    weights = WeightsFile(config, run.progress._asdict(), files, tensors)
    try:
        _check_output(output, weights)
        write_weights(output, weights)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({error.strerror or error}): give another --output"
        ) from None
    epoch = run.progress.best_epoch
    print(f"written to {output}: weights of epoch {epoch}, SHA-256 {sha256(output)}")


def import_run(path: Path, workdir: Path, data: Mapping[str, str]) -> None:
    """Makes the directory of a run from a weights file; `data` replaces fields of `config.data`.

    The directory appears in one step, after everything in it has been tried. Raises UserError for a
    file that is not complete, contradicts itself, or names files outside the directory of its data,
    and for a directory in use.
    """
    if workdir.is_file() or (workdir.is_dir() and any(workdir.iterdir())):
        raise UserError(f"{workdir} exists already: give a new --workdir")
    weights = read_weights(path)
    progress = read_progress(path, weights.progress)
    try:
        config = make_config(_safe_config(path, weights.config, data))
        start_jax(config.train.num_devices)
        # In the nearest directory above the new one, so that it can be moved by a rename.
        above = next(parent for parent in workdir.absolute().parents if parent.is_dir())
        with tempfile.TemporaryDirectory(dir=above, prefix=".import-") as stage:
            run = Path(stage) / "run"
            run.mkdir()
            _write_run(run, path, weights, config)
            workdir.parent.mkdir(parents=True, exist_ok=True)
            run.rename(workdir)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    except Exception as error:  # the config is a stranger's, and its fields may cause any error
        if is_from_user_code(error):
            raise
        if isinstance(error, OSError):
            raise UserError(
                f"cannot make {workdir} ({error.strerror or error}): give another --workdir"
            ) from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{path} holds a config that cannot be used ({reason}) {TRACEBACK_HINT}"
        ) from error
    print(f"imported to {workdir}: weights of epoch {progress.best_epoch}")


def _write_run(run: Path, path: Path, weights: WeightsFile, config: ConfigDict) -> None:
    """Writes the files of a run; raises UserError unless its task can be made from them and has
    these weights."""
    for name, text in weights.files.items():
        (run / name).write_bytes(text.encode())
    task = make_task(config, run)
    as_params(path, weights.tensors, parameter_shapes(task.init))
    make_setup(task, config)  # only to raise its errors
    fitted = {name: text for name, text in weights.files.items() if name != ABSTENTION_FILE}
    if fitted_files(task) != fitted:  # those that the task has read from the run or fitted again
        raise UserError(
            f"{path} does not hold the vocabularies of its config: export the run again"
        )
    write_weights(run / WEIGHTS_FILE, weights._replace(config=as_json(config)))
    write_json(run / CONFIG, as_json(config))


def _safe_config(path: Path, config: dict[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    """Returns a stranger's config, with the fields of `data`, that names no file outside.

    The place of data sets and the number of devices are this machine's choice.
    """
    fields, train = config["data"] | data, dict(config["train"])
    if not 0 <= train["num_devices"] <= (os.cpu_count() or 1):
        train["num_devices"] = 0
    fields |= {name: "" for name in ("tfds_data_dir", "tfds_manual_dir") if name in fields}
    if unread := set(data) - set(config["data"]):
        raise UserError(f"{path} is of the task {config['task']}, without data.{min(unread)}")
    for field in (field for field in _PATHS if field in fields and field not in data):
        name, place = fields[field], PurePath(fields[field])
        leads_out = place.is_absolute() or ".." in place.parts
        if not _TFDS_NAME.fullmatch(name) if name.startswith("tfds:") else leads_out:
            flag = "data" if field == "name" else field
            raise UserError(
                f"{path}: data.{field} is {name!r}, a place on another machine: give --{flag}=FILE"
            )
    return config | {"data": fields, "train": train}


def _check_output(output: Path, weights: WeightsFile) -> None:
    """Raises UserError if the file exists and is not an export of the same run."""
    if not output.exists():
        return
    try:
        existing = Identity(read_weights(output).config, {})
    except UserError:
        raise UserError(
            f"{output} exists, and is not a weights file of seqjax: give another --output"
        ) from None
    if differences(existing, Identity(weights.config, {})):
        raise UserError(f"{output} holds the weights of another run: give another --output")
