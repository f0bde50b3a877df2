"""The directory of one run: what is in it, and whether it may be used. Imports: config, errors."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from seqjax.config import differing_fields, load_config, save_config
from seqjax.errors import UserError

PACKAGES = ("seqjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_run_directory(workdir: Path, config: ConfigDict) -> None:
    """Makes the directory ready for this config's run, new or to be resumed.

    Raises UserError if it cannot be written, holds other files, or holds another config's run.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(workdir.iterdir()):
                raise UserError(f"{workdir} is not empty and no run: give a new --workdir")
            save_config(config, path)
            write_json(workdir / "environment.json", environment())
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{workdir} is, or lies in, a file: give a directory as --workdir"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {workdir} ({reason}): give another --workdir") from None
    changed = differing_fields(load_config(path).to_dict(), config.to_dict())
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}): "
            "give a new --workdir, or the old settings to resume"
        )


def environment() -> dict[str, Any]:
    """What a run depends on beside its config: versions, devices, machine and git commit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "commit": _commit(),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes the value so that the file is there whole or not at all."""
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    whole.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is in; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
