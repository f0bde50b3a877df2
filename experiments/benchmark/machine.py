"""The machine and the versions of packages that figures belong to."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

# Those on which the speed of matrix products depends.
_FLAGS = re.compile(r"avx2|avx512f|avx512_vnni|avx512_bf16|avx_vnni|amx_\w+|fma|asimd|sve\w*")
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "keras", "tensorflow-cpu", "tensorflow", "torch")


def machine_facts() -> dict[str, Any]:
    """Returns the processor's model, its flags, the cores that this process may use, and versions.

    Where the system does not tell the model or the flags they are those that Python knows, or none.
    """
    from seqjax.distributed import devices  # loads JAX, as not every peer does

    return {
        "processor": devices.processor(),
        "flags": sorted(filter(_FLAGS.fullmatch, devices.cpu_flags())),
        "cores": devices.num_cores(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def child_environment(more: dict[str, str]) -> dict[str, str]:
    """Returns the environment of a process that finds this very seqjax, wherever it is started."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **more, "PYTHONPATH": path}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
