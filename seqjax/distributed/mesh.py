"""Devices as one mesh over which batches are split.

The program that runs on two CPU cores is the one that runs on eight accelerators: the batch's rows
are divided among the devices by `jax.shard_map`, and sums go over all of them. On a CPU each core
is a device, if `jax_num_cpu_devices` was set before JAX started (`devices.start_jax` does).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from seqjax.distributed.packing import pack, unpack
from seqjax.distributed.processes import gather_array, num_processes
from seqjax.errors import UserError

AXIS = "data"  # the mesh axis over which a batch is split
WHOLE, SPLIT = P(), P(AXIS)  # the same on every device; rows divided among the devices


def make_mesh(num_devices: int) -> Mesh:
    """A mesh of that many devices, equally many of each process; 0 for all.

    Raises UserError if there are fewer, or if they cannot be shared so.
    """
    count, devices = num_processes(), jax.devices()
    own = [[x for x in devices if x.process_index == number] for number in range(count)]
    if len({len(part) for part in own}) > 1:
        numbers = ", ".join(str(len(part)) for part in own)
        raise UserError(f"the processes have {numbers} devices: start each with equally many")
    if not 0 <= num_devices <= len(devices):
        have = "this machine has" if count == 1 else f"the {count} processes have"
        raise UserError(f"train.num_devices={num_devices}: {have} {len(devices)}; 0 takes them all")
    if num_devices % count:
        raise UserError(
            f"train.num_devices={num_devices} must be a multiple of the {count} processes"
        )
    used = [x for part in own for x in part[: num_devices // count or None]]
    if count > 1:
        return Mesh(np.array(used), (AXIS,))  # process by process, as `get` puts rows together
    return jax.make_mesh((len(used),), (AXIS,), devices=used)


def put(tree: Any, mesh: Mesh, spec: P) -> Any:
    """The arrays, which every process has whole, on the mesh's devices."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_own(x: Any) -> Array:
        # device_put would first send every array around, to see whether all processes have it.
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_own, tree)


def get(tree: Any) -> Any:
    """SPLIT arrays whole, on the host. All processes must ask for them, and all get them."""
    if num_processes() == 1:
        return jax.device_get(tree)
    own = jax.tree.map(_own_rows, tree)
    parts = [unpack(packed, own) for packed in gather_array(pack(own))]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _own_rows(x: Array) -> np.ndarray:
    """What this process's devices have of a SPLIT array."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def sharded(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any = WHOLE) -> Callable:
    """The function on every device at once, each with its own part of the SPLIT arguments."""
    # Without the check of varying axes, gradients stay local until their one explicit sum.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def total(tree: Any, axis: str | None) -> Any:
    """Sums over the devices of an axis; axis=None is one device."""
    if axis is None:
        return tree
    if num_processes() == 1:
        return jax.lax.psum(tree, axis)
    # Processes meet for each array, whatever its size: ten times as long as for one of them all.
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.psum(flat, axis))


def own_part(x: Array, num_devices: int, axis: str | None) -> Array:
    """This device's rows of an array that every device holds whole; axis=None is one device."""
    if axis is None:
        return x
    size = x.shape[0] // num_devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)
