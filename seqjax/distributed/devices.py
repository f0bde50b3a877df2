"""Sets up the devices of this process and JAX's compilation cache.

No JAX device may be used before `start_jax` has set the number of devices.
"""

import os
import platform
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import jax
from ml_collections import ConfigDict

from seqjax.errors import UserError, require

COMPILATION_CACHE = "JAX_COMPILATION_CACHE_DIR"
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of `cpu_flags`
MAX_DEVICES = 64  # more than most machines have cores, to try out a large machine on a small one


def start_jax(num_devices: int) -> None:
    """Makes so many CPU cores JAX devices and turns JAX's persistent compilation cache on.

    `num_devices` is `train.num_devices`; 0 means all cores. The cache is the directory that the
    environment variable COMPILATION_CACHE names, otherwise a folder in the user's cache; an empty
    value turns it off. No config and no run's directory can name it, because JAX executes the
    programs in it. Raises UserError for a number out of range and for a cache directory that
    is a file.
    """
    most = max(cores := num_cores(), MAX_DEVICES)
    expected = f"at least 0 (all) and at most {most}"
    require("train.num_devices", num_devices, 0 <= num_devices <= most, expected)
    with suppress(RuntimeError):  # an earlier run in this process has initialized the devices
        jax.config.update("jax_num_cpu_devices", num_devices or cores)
    if directory := os.environ.get(COMPILATION_CACHE, str(user_cache() / "jax")):
        if Path(directory).exists() and not Path(directory).is_dir():
            raise UserError(f"{COMPILATION_CACHE}={directory} is not a directory: give another one")
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def bfloat16_note(train: ConfigDict) -> str:
    """Returns a line on the speed of `train.compute_dtype=bfloat16` on a CPU, otherwise ""."""
    if train.compute_dtype != "bfloat16" or jax.default_backend() != "cpu":
        return ""
    without = "has no bfloat16 instructions that seqjax knows of: float32 is probably faster"
    note = "is faster with float32 for small layers" if cpu_flags() & BFLOAT16_FLAGS else without
    return f"train.compute_dtype=bfloat16: this CPU {note}"


def cpu_flags() -> set[str]:
    """Returns the processor's flags as Linux names them, such as "avx2"; elsewhere none."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return set(found[1].split()) if found else set()


def has_avx512() -> bool:
    """Returns whether XLA's programs for this CPU use AVX-512."""
    most = re.search(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    return "avx512f" in cpu_flags() and (most is None or most[1].startswith(("AVX512", "AMX")))


def processor() -> str:
    """Returns the processor's model where Linux tells it, otherwise what Python knows."""
    model = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def user_cache() -> Path:
    """Returns seqjax's folder in the user's cache, which may not exist yet.

    Without a home directory it is a temporary folder that only this process uses.
    """
    if not (base := os.environ.get("XDG_CACHE_HOME")):
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            base = _temporary_folder().name
    return Path(base) / "seqjax"


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed at exit


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    can_ask = hasattr(os, "sched_getaffinity")  # Linux only
    return len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
