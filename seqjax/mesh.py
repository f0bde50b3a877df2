"""Devices as one mesh over which batches are split. Imports: errors, dropout, data.batches.

The program that runs on two CPU cores is the one that runs on eight accelerators: the batch's rows
are divided among the devices by `jax.shard_map`, and sums go over all of them. On a CPU each core
is a device, if `jax_num_cpu_devices` was set before JAX started (`launch` does).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from seqjax.array_types import Batch, RowKeys
from seqjax.data.batches import num_rows
from seqjax.dropout import row_keys
from seqjax.errors import UserError

AXIS = "data"  # the mesh axis over which a batch is split
WHOLE, SPLIT = P(), P(AXIS)  # the same on every device; rows divided among the devices


def make_mesh(num_devices: int) -> Mesh:
    """A mesh of that many devices, 0 for all; raises UserError if there are fewer."""
    devices = jax.devices()
    if not 0 <= num_devices <= len(devices):
        raise UserError(
            f"train.num_devices={num_devices}: this machine has {len(devices)}; 0 takes them all"
        )
    used = devices[: num_devices or len(devices)]
    return jax.make_mesh((len(used),), (AXIS,), devices=used)


def put(tree: Any, mesh: Mesh, spec: P) -> Any:
    """The arrays on the mesh's devices."""
    return jax.device_put(tree, NamedSharding(mesh, spec))


def sharded(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any = WHOLE) -> Callable:
    """The function on every device at once, each with its own part of the SPLIT arguments."""
    # Without the check of varying axes, gradients stay local until their one explicit sum.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def total(tree: Any, axis: str | None) -> Any:
    """Sums over the devices of an axis; axis=None is one device."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def own_part(x: Array, num_devices: int, axis: str | None) -> Array:
    """This device's rows of an array that every device holds whole; axis=None is one device."""
    if axis is None:
        return x
    size = x.shape[0] // num_devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)


def batch_keys(key: Key[Array, ""], batch: Batch, axis: str | None) -> RowKeys:
    """A key for each of this device's rows, told apart by their places in the whole batch."""
    rows = num_rows(batch)
    return row_keys(key, rows, 0 if axis is None else jax.lax.axis_index(axis) * rows)
