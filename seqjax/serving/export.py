"""Runs given away and taken in, as one weights file."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ml_collections import ConfigDict

from seqjax.config import as_json, make_config
from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError
from seqjax.files import MAX_JSON_MEGABYTES, read_bounded, sha256, write_json
from seqjax.inference.calibration import ABSTENTION_FILE
from seqjax.parameters import named_arrays, parameter_shapes
from seqjax.runs.identity import Identity, differences
from seqjax.runs.signals import say
from seqjax.runs.weights import (
    WEIGHTS_FILE,
    WeightsFile,
    as_params,
    read_weights,
    write_weights,
)
from seqjax.runs.workdir import CONFIG, load_run_config
from seqjax.tasks.base import fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.early_stopping import read_progress
from seqjax.training.fit import restore_best
from seqjax.training.setup import make_setup

PATHS = ("name", "labels", "held_out")  # fields of `data` that may name a file
# NAME[/CONFIG][:VERSION], of which neither part leads out of the folder of the data sets.
TFDS_NAME = re.compile(r"tfds:\w+(/[\w-][\w.-]*)?(:[\d.*]+)?")


def export_run(workdir: Path, output: Path) -> None:
    """Writes the best weights of a run, with its config and what was fitted, into one file.

    Raises UserError for a directory without weights, and for an output that cannot be written or
    holds anything but an export of the same run.
    """
    config = load_run_config(workdir, say)
    start_jax(config.train)
    setup = make_setup(make_task(config, workdir), config)
    params, progress = restore_best(setup, workdir)
    files = fitted_files(setup.task)
    if (workdir / ABSTENTION_FILE).exists():
        files[ABSTENTION_FILE] = _text(workdir / ABSTENTION_FILE)
    tensors = dict(named_arrays(params))
    weights = WeightsFile(as_json(config), progress._asdict(), files, tensors)
    try:
        _check_output(output, weights)
        write_weights(output, weights)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({error.strerror or error}): give another --output"
        ) from None
    print(f"written to {output}: weights of epoch {progress.best_epoch}, SHA-256 {sha256(output)}")


def import_run(path: Path, workdir: Path, given: Mapping[str, str]) -> None:
    """Makes the directory of a run from a weights file; `given` names its data anew.

    The directory appears at once, when all in it has been tried. Raises UserError for a file that
    is not whole, contradicts itself, or leads to files outside, and for a directory in use.
    """
    if workdir.is_file() or (workdir.is_dir() and any(workdir.iterdir())):
        raise UserError(f"{workdir} is there already: give a new --workdir")
    weights = read_weights(path)
    progress = read_progress(path, weights.progress)
    try:
        config = make_config(_tamed(path, weights.config, given))
        start_jax(config.train)
        # Beside the place where it will lie, for a rename.
        room = next(parent for parent in workdir.absolute().parents if parent.is_dir())
        with tempfile.TemporaryDirectory(dir=room, prefix=".import-") as stage:
            run = Path(stage) / "run"
            run.mkdir()
            _fill(run, path, weights, config)
            workdir.parent.mkdir(parents=True, exist_ok=True)
            run.rename(workdir)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(
            f"cannot make {workdir} ({error.strerror or error}): give another --workdir"
        ) from None
    except Exception as error:  # of whatever the fields of a stranger's config lead to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} holds a config that cannot be used ({reason})") from error
    print(f"imported to {workdir}: weights of epoch {progress.best_epoch}")


def _fill(run: Path, path: Path, weights: WeightsFile, config: ConfigDict) -> None:
    """Writes the files of a run, if its task can be made of them and has these weights."""
    for name, text in weights.files.items():
        (run / name).write_bytes(text.encode())
    task = make_task(config, run)
    as_params(path, weights.tensors, parameter_shapes(task.init))
    make_setup(task, config)  # for its complaints
    given = {name: text for name, text in weights.files.items() if name != ABSTENTION_FILE}
    if fitted_files(task) != given:  # read from the run, or made anew
        raise UserError(f"{path} holds not the vocabularies of its config: export the run again")
    write_weights(run / WEIGHTS_FILE, weights._replace(config=as_json(config)))
    write_json(run / CONFIG, as_json(config))


def _tamed(path: Path, config: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """A stranger's config, with the given data, that leads to no file outside.

    Compiled programs are code: where they are kept is for this machine to say. So is where its data
    sets lie, and how many devices it has.
    """
    data = config["data"] | given
    train = config["train"] | {"compilation_cache_dir": "auto"}
    if not 0 <= train["num_devices"] <= (os.cpu_count() or 1):
        train["num_devices"] = 0
    data |= {name: "" for name in ("tfds_data_dir", "tfds_manual_dir") if name in data}
    if unread := set(given) - set(config["data"]):
        raise UserError(f"{path} is of the task {config['task']}, without data.{min(unread)}")
    for field in (field for field in PATHS if field in data and field not in given):
        name, place = data[field], PurePath(data[field])
        leads_out = place.is_absolute() or ".." in place.parts
        if not TFDS_NAME.fullmatch(name) if name.startswith("tfds:") else leads_out:
            flag = "data" if field == "name" else field
            raise UserError(
                f"{path}: data.{field} is {name!r}, a place on another machine: give --{flag}=FILE"
            )
    return config | {"data": data, "train": train}


def _check_output(output: Path, weights: WeightsFile) -> None:
    """Raises UserError if the file is there and is no export of the same run."""
    if not output.exists():
        return
    try:
        there = Identity(read_weights(output).config, {})
    except UserError:
        raise UserError(
            f"{output} is there, and no weights file of seqjax: give another --output"
        ) from None
    if differences(there, Identity(weights.config, {})):
        raise UserError(f"{output} holds the weights of another run: give another --output")


def _text(path: Path) -> str:
    return read_bounded(path, MAX_JSON_MEGABYTES, "it is no file of a run").decode()
