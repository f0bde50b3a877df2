"""All devices as one mesh, over which batches are split.

The same program runs on two CPU cores and on eight accelerators: `jax.shard_map` divides a batch's
rows among the devices, and sums are taken over all of them. On a CPU each core is a device if
`jax_num_cpu_devices` was set before JAX started (`devices.start_jax` sets it).
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
from seqjax.errors import UserError, require

AXIS = "data"  # the mesh axis over which a batch is split
WHOLE, SPLIT = P(), P(AXIS)  # replicated on every device; rows divided among the devices


def make_mesh(num_devices: int) -> Mesh:
    """Returns a mesh of `num_devices` devices, equally many from each process; 0 means all.

    Raises UserError if there are too few devices or if the processes cannot share them equally.
    """
    count, devices = num_processes(), jax.devices()
    by_process = [[x for x in devices if x.process_index == number] for number in range(count)]
    if len({len(part) for part in by_process}) > 1:
        numbers = ", ".join(str(len(part)) for part in by_process)
        raise UserError(
            f"the processes have {numbers} devices: start each with the same number of devices"
        )
    if not 0 <= num_devices <= len(devices):
        have = "this machine has" if count == 1 else f"the {count} processes have"
        raise UserError(f"train.num_devices={num_devices}: {have} {len(devices)}; 0 chooses")
    is_multiple = num_devices % count == 0
    require("train.num_devices", num_devices, is_multiple, f"a multiple of the {count} processes")
    used = [x for part in by_process for x in part[: num_devices // count or None]]
    if count > 1:
        # In order of processes, as `gather_shards` concatenates their rows.
        return Mesh(np.array(used), (AXIS,))
    return jax.make_mesh((len(used),), (AXIS,), devices=used)


def shard(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Returns the arrays on the mesh's devices: SPLIT divides their rows, WHOLE replicates them.

    Every process passes the whole arrays.
    """
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_local_rows(x: Any) -> Array:
        # device_put would first send every array around to check that all processes have it.
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_local_rows, tree)


def shard_own(tree: Any, mesh: Mesh) -> Any:
    """Returns SPLIT arrays on the mesh's devices; each process passes only its own rows."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, SPLIT), tree)


def gather_shards(tree: Any) -> Any:
    """Returns SPLIT arrays as whole NumPy arrays; all processes must call it together."""
    if num_processes() == 1:
        return jax.device_get(tree)
    local = jax.tree.map(_process_rows, tree)
    parts = [unpack(packed, local) for packed in gather_array(pack(local))]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _process_rows(x: Array) -> np.ndarray:
    """Returns the rows of a SPLIT array that lie on this process's devices."""
    shards = sorted(x.addressable_shards, key=lambda part: part.index[0].start or 0)
    return np.concatenate([np.asarray(part.data) for part in shards])


def sharded(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any = WHOLE) -> Callable:
    """Returns a function that runs `function` on every device at once, each on its own rows of the
    SPLIT arguments."""
    # Without the check of varying axes, gradients stay local until their one explicit sum.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def psum_tree(tree: Any, axis: str | None) -> Any:
    """Returns the sums of the arrays over the devices of an axis; axis=None means one device."""
    if axis is None:
        return tree
    if num_processes() == 1:
        return jax.lax.psum(tree, axis)
    # Processes synchronize once for each array, whatever its size. One sum of all arrays together
    # took a tenth of the time.
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.psum(flat, axis))


def local_rows(x: Array, num_devices: int, axis: str | None) -> Array:
    """Returns this device's rows of an array that every device holds whole; axis=None means one
    device."""
    if axis is None:
        return x
    size = x.shape[0] // num_devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)
