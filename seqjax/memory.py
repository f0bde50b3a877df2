"""What the machine's memory holds, asked before anything is allocated. Imports: errors."""

import os

import jax

from seqjax.errors import UserError

GB = 1e9


def check_memory(num_bytes: int, what: str, remedy: str) -> None:
    """Raises UserError if that many bytes are more than this machine has, used or not."""
    if num_bytes > (total := memory_bytes()):
        raise UserError(
            f"{what} takes {num_bytes / GB:.3g} GB of memory, and this machine has "
            f"{total / GB:.3g} GB: {remedy}"
        )


def device_bytes() -> int:
    """The memory of one device: an accelerator's own, or an equal share of the machine's."""
    devices = jax.local_devices()
    own = devices[0].memory_stats() or {}
    return own.get("bytes_limit", memory_bytes() // len(devices))


def memory_bytes() -> int:
    """The memory of the machine, or of its accelerator if that has more."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = jax.local_devices()[0].memory_stats() or {}  # a CPU has none of its own
    return max(host, device.get("bytes_limit", 0))
