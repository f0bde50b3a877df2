"""The devices of this process, and where its compiled programs are kept.

No JAX device may be touched before `start_jax` has said what the devices are.
"""

import os
from contextlib import suppress
from pathlib import Path

import jax
from ml_collections import ConfigDict

from seqjax.errors import UserError

MAX_DEVICES = 64  # more than cores: to try on a small machine what a large one does


def start_jax(train: ConfigDict, num_devices: int | None = None) -> None:
    """Makes every core a device, where the CPU is the device, and turns the compile cache on.

    With `num_devices` as many as that, whatever the config says; 0 is all cores.
    """
    wanted = train.num_devices if num_devices is None else num_devices
    most = max(cores := num_cores(), MAX_DEVICES)
    if not 0 <= wanted <= most:
        raise UserError(f"train.num_devices={wanted} must be at least 0 (all) and at most {most}")
    with suppress(RuntimeError):  # an earlier run in this process has started the devices
        jax.config.update("jax_num_cpu_devices", wanted or cores)
    directory = train.compilation_cache_dir
    if directory == "auto":
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
            user_cache / "seqjax" / "jax"
        )
    if directory:
        if Path(directory).exists() and not Path(directory).is_dir():
            raise UserError(f"train.compilation_cache_dir={directory} is no directory")
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def num_cores() -> int:
    """How many cores this process may use."""
    can_ask = hasattr(os, "sched_getaffinity")  # Linux only
    return len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
