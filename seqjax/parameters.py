"""Counts parameters without allocating them, and checks that they fit into memory."""

import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from rich.table import Table

from seqjax.errors import UserError
from seqjax.typing import Params

GB = 1e9


def check_memory(num_bytes: int, what: str, remedy: str) -> None:
    """Raises UserError for more bytes than the total memory of this machine.

    The message says that `what` takes them, and ends with the remedy.
    """
    if num_bytes > (total := memory_bytes()):
        raise UserError(
            f"{what} takes {num_bytes / GB:.3g} GB of memory, and this machine has "
            f"{total / GB:.3g} GB: {remedy}"
        )


def device_bytes() -> int:
    """Returns the memory of one device in bytes; CPU devices share the host's memory."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit", memory_bytes() // len(devices))


def memory_bytes() -> int:
    """Returns the memory of the host in bytes, or that of its accelerator if it has more."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    return max(host, stats.get("bytes_limit", 0))


def peak_memory_bytes() -> int:
    """Returns the most memory in use so far: of the first device, or of this process on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return stats.get("peak_bytes_in_use", on_host)


# What training holds of each parameter: weight, gradient, Adam's two moments, best weight.
ARRAYS_IN_TRAINING = 5


class LayerSize(NamedTuple):
    """The parameters of one layer."""

    name: str  # the layer's path in the parameters, as in "stack.layer_0"
    shapes: dict[str, tuple[int, ...]]
    count: int
    num_bytes: int


def parameter_shapes(init: Callable[[Any], Params]) -> Params:
    """Returns the shapes and dtypes of the parameters of `init(key)` without computing them."""
    return jax.eval_shape(init, jax.random.key(0))


def named_arrays(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, array) for each array of a pytree, as in ("stack.layer_0.weights.bias", x)."""
    for path, x in jax.tree.leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), x


def layer_sizes(params: Params, name: str = "") -> Iterator[LayerSize]:
    """Yields the size of each nested dict that directly contains arrays or their shapes."""
    arrays = {field: x for field, x in params.items() if not isinstance(x, Mapping)}
    if arrays:
        # The weights of a cell are one level below their layer, whose name is clear enough.
        shapes = {field: tuple(x.shape) for field, x in arrays.items()}
        counts = {field: math.prod(shape) for field, shape in shapes.items()}
        num_bytes = sum(count * arrays[field].dtype.itemsize for field, count in counts.items())
        yield LayerSize(name.removesuffix(".weights"), shapes, sum(counts.values()), num_bytes)
    for field, child in params.items():
        if isinstance(child, Mapping):
            yield from layer_sizes(child, f"{name}.{field}" if name else field)


def count_parameters(params: Params) -> int:
    """Returns the number of elements of all parameters."""
    return sum(layer.count for layer in layer_sizes(params))


def check_parameters(init: Callable[[Any], Params]) -> None:
    """Raises UserError for parameters that this machine has too little memory to train."""
    count = count_parameters(parameter_shapes(init))
    check_memory(
        4 * ARRAYS_IN_TRAINING * count,
        f"to train a model of {count:,} parameters",
        "lower its sizes (hidden_size, embed_size, num_layers, vocab_size, num_symbols)",
    )


def parameter_table(params: Params) -> Table:
    """Returns a table with one row per layer (name, shapes, count, bytes) and a total."""
    table = Table(title="parameters", title_justify="left", show_footer=True)
    sizes = list(layer_sizes(params))
    count, num_bytes = (sum(column) for column in zip(*(s[2:] for s in sizes), strict=True))
    table.add_column("layer", footer="total")
    table.add_column("shapes")
    table.add_column("count", footer=f"{count:,}", justify="right")
    table.add_column("bytes", footer=f"{num_bytes:,}", justify="right")
    for layer in sizes:
        shapes = "  ".join(f"{field} {shape}" for field, shape in sorted(layer.shapes.items()))
        table.add_row(layer.name, shapes, f"{layer.count:,}", f"{layer.num_bytes:,}")
    return table
