"""How a run divides its work on this machine, where its config leaves that open.

A choice follows a rule, or what `experiments.benchmark --tune` has measured on this machine. It
changes the time that a step takes, and the order in which sums are taken, but not the result beyond
rounding. No run measures itself, and a run that is resumed keeps its choice.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.distributed.devices import has_avx512, num_cores, processor, user_cache
from seqjax.distributed.processes import broadcast, num_processes
from seqjax.errors import UserError
from seqjax.files import read_json, write_json
from seqjax.parameters import count_parameters
from seqjax.typing import Params

LEAST_ROW_STEPS = 200  # rows times time steps of a device: with less, devices wait for each other
WIDE_ROWS = 32  # of a device where kernels are wide
CACHED_ROWS = 32  # the residuals of so many rows stay in a core's cache during the backward pass


class Shape(NamedTuple):
    """What a choice depends on."""

    batch_size: int
    num_steps: int  # time steps of the longest row
    width: int  # the largest of the smaller sides of the kernels: of an LSTM, its hidden size
    num_parameters: int


def find_shape(params: Params, rows: Mapping[str, Any], batch_size: int) -> Shape:
    """Returns the sizes of training such parameters, or their shapes, on such rows."""
    columns = [x.shape for x in rows.values()]
    return Shape(
        batch_size,
        num_steps=max([shape[1] for shape in columns if len(shape) > 1], default=1),
        width=max([min(x.shape[-2:]) for x in jax.tree.leaves(params) if x.ndim > 1], default=1),
        num_parameters=count_parameters(params),
    )


class Choice(NamedTuple):
    """How the batches of a run are divided."""

    num_devices: int  # that share a batch
    microbatch_size: int  # rows per device whose gradients are computed at once; 0 = all
    source: str  # config, rule or measurement

    def describe(self) -> str:
        """Returns a line that tells of it."""
        sizes = (self.num_devices, "device"), (self.microbatch_size, "row")
        devices, rows = (f"{size} {name}{'s' * (size != 1)}" for size, name in sizes)
        at_once = rows if self.microbatch_size else "all rows"
        return f"{devices}, gradients of {at_once} of a device at once (by {self.source})"


def choose(shape: Shape, train: ConfigDict, kept: Choice | None = None) -> Choice:
    """Returns the choice for a run: the fields of `train` that are set, otherwise what the run kept
    from before, otherwise what was measured for such a shape, otherwise the rule."""
    if kept and kept.num_devices > jax.device_count():
        kept = None
    chosen = kept or _measured(shape) or choose_by_rule(shape)
    chosen = Choice(*broadcast(list(chosen)))  # all processes must have the same program
    own = {name: train[name] for name in ("num_devices", "microbatch_size") if train[name]}
    return chosen._replace(**own, **({"source": "config"} if len(own) == 2 else {}))


def choose_by_rule(shape: Shape) -> Choice:
    """Returns the choice by the processor, the number of its cores, and the shape.

    Accelerators share each batch, and compute its gradient at once. On a CPU every device is a
    core, and must have enough to do that it does not wait for the others. Where kernels are so wide
    that they do not stay in a core's cache, each device must have many rows, too, since it reads
    the kernels at every time step; otherwise all cores work on each product of one device.
    Processes always use all their devices. The numbers were measured on two cores, with AVX-512 and
    with XLA, oneDNN and MKL limited to AVX2.
    """
    available = jax.device_count()
    if jax.default_backend() != "cpu":
        return Choice(available, 0, "rule")
    is_wide = shape.width >= (1024 if has_avx512() else 512)
    microbatch_size = CACHED_ROWS // 2 if has_avx512() and shape.width >= 512 else CACHED_ROWS
    if num_processes() > 1:
        return Choice(available, microbatch_size, "rule")
    if is_wide and shape.batch_size < WIDE_ROWS * available:
        return Choice(1, microbatch_size, "rule")
    most = min(shape.batch_size, shape.batch_size * shape.num_steps // LEAST_ROW_STEPS)
    return Choice(max(1, min(most, available)), microbatch_size, "rule")


def choices_file() -> Path:
    """Returns the path of the measurements made on the user's machines; there may be none yet."""
    return user_cache() / "choices.json"


def save_choice(shape: Shape, choice: Choice) -> None:
    """Adds what was measured for a shape to the user's file."""
    found = _read_choices()
    sizes = {"num_devices": choice.num_devices, "microbatch_size": choice.microbatch_size}
    found.setdefault(_machine(), {})[_size_class(shape)] = sizes
    choices_file().parent.mkdir(parents=True, exist_ok=True)
    write_json(choices_file(), found)


def _measured(shape: Shape) -> Choice | None:
    """Returns what was measured on this machine for a shape of the same class, if anything."""
    found = _read_choices().get(_machine(), {}).get(_size_class(shape))
    if found is None or num_processes() > 1:
        return None
    return Choice(found["num_devices"], found["microbatch_size"], "measurement")


def _read_choices() -> dict[str, dict[str, dict[str, int]]]:
    """Returns the user's file; raises UserError if it is damaged."""
    path = choices_file()
    found = read_json(path) if path.exists() else {}
    try:
        sizes = [entry for of_machine in found.values() for entry in of_machine.values()]
        is_whole = all(min(x["num_devices"] - 1, x["microbatch_size"]) >= 0 for x in sizes)
    except (AttributeError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path} is damaged: delete it, and measure again with --tune")
    return found


def _machine() -> str:
    """Returns what the speed of a choice depends on, apart from the shape."""
    kind = jax.devices()[0].device_kind
    if kind == "cpu":
        kind = f"core of {processor()} {'with' if has_avx512() else 'without'} AVX-512"
    return f"{jax.device_count()} x {kind}, {num_cores()} cores, JAX {jax.__version__}"


def _size_class(shape: Shape) -> str:
    """Returns the sizes as powers of two: close ones have the same choice."""
    sizes = shape._asdict().items()
    return ", ".join(f"{name} {2 ** round(math.log2(max(1, size)))}" for name, size in sizes)
